"""The output of a frozen layer while nobody has read it yet."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from composer_freezeout.freezing.prefix.layer_run import LayerRun

__all__ = ['Unread', 'UnreadOutputs']


class Unread(Tensor):
    """The output of a frozen layer, which can be computed in one of two ways until someone reads it.

    To everybody but a BatchNorm it is a tensor like any other, of another class until it is read. Asking for its shape
    is not reading.
    """

    run: LayerRun
    outputs: 'UnreadOutputs'  # of the same forward pass
    value: Tensor | None = None  # once it has been read
    is_normalised = False

    @staticmethod
    def __new__(cls, run: LayerRun, outputs: 'UnreadOutputs') -> 'Unread':
        """Makes a tensor with the shape, strides, type and device of what the run has given."""
        value = run.value
        made = Tensor._make_wrapper_subclass(  # pyright: ignore[reportAttributeAccessIssue]
            cls, value.shape, strides=value.stride(), dtype=value.dtype, device=value.device
        )
        made.run, made.outputs = run, outputs
        return made

    def read(self) -> Tensor:
        """The tensor that the layer gives."""
        if self.value is None:
            self.outputs.set_apart(self.run.layer)
            self.value = self.run.alone()
            del self.run  # and what the layer has run on
        return self.value

    def become(self) -> Tensor:
        """The tensor that the layer gives, which this one becomes if nothing but Python holds on to the two."""
        value, outputs = self.read(), self.outputs
        outputs.let_go(self)
        self.value = None
        with torch._C.DisableTorchFunctionSubclass():
            if self._use_count() == value._use_count() == 1:  # pyright: ignore[reportAttributeAccessIssue]
                torch.utils.swap_tensors(self, value)
                return self
        self.value = value
        outputs.add(self)
        return value

    def normalised(self) -> Tensor:
        """The tensor that the run has given, for the norm that is the first to read it."""
        self.is_normalised = True
        value = self.run.value
        if self.run.fold is not None:
            del self.run.value  # it is the norm's result, which may be written to
        return value

    def as_subclass(self, cls: Any) -> Any:
        """Reads the tensor first, as torch calls no ``__torch_function__`` here."""
        return self.read().as_subclass(cls)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _ABOUT and args and type(args[0]) is Unread and args[0].value is None:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        args, kwargs = tree_map_only(Unread, Unread.become, (args, kwargs))
        return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # Calls that bypass `__torch_function__`, as those of C++ extensions do.
        args, kwargs = tree_map_only(Unread, Unread.read, (args, kwargs or {}))
        return func(*args, **kwargs)


class UnreadOutputs:
    """The outputs of a forward pass that have not been read yet, as long as somebody holds on to them.

    Args:
        set_apart (Callable[[nn.Module], None]): Is told of a layer whose output is read by another than its norm.
    """

    def __init__(self, set_apart: Callable[[nn.Module], None]) -> None:
        self.set_apart = set_apart
        self._outputs: dict[int, weakref.ref[Unread]] = {}

    def add(self, output: Unread) -> None:
        """Remembers an output until the pass is over."""
        self._outputs[id(output)] = weakref.ref(output)

    def let_go(self, output: Unread) -> None:
        """Forgets an output."""
        self._outputs.pop(id(output), None)

    def read_all(self) -> bool:
        """Reads and forgets all that are still held, as by the result, or by a module that keeps one for later.

        Returns:
            bool: Whether there were any.
        """
        held = [output for reference in self._outputs.values() if (output := reference()) is not None]
        self._outputs = {}
        for output in held:
            output.read()
        return bool(held)


# What can be asked of a tensor without reading it.
_ABOUT = {
    *(getattr(Tensor, name).__get__ for name in ('device', 'dtype', 'grad_fn', 'is_cpu', 'is_cuda', 'is_leaf')),
    *(getattr(Tensor, name).__get__ for name in ('is_meta', 'is_nested', 'is_quantized', 'is_sparse', 'itemsize')),
    *(getattr(Tensor, name).__get__ for name in ('layout', 'nbytes', 'ndim', 'requires_grad', 'shape')),
    *(getattr(Tensor, name) for name in ('__hash__', '__len__', 'dim', 'element_size', 'get_device', 'is_complex')),
    *(getattr(Tensor, name) for name in ('is_contiguous', 'is_floating_point', 'is_inference', 'ndimension')),
    *(getattr(Tensor, name) for name in ('nelement', 'numel', 'size', 'stride')),
}
