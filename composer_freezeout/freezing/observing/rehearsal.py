"""One more forward pass, where a step of the training itself can't be watched, and no trace of it left."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_leaves

from composer_freezeout.freezing.observing.observation import Observation
from composer_freezeout.freezing.observing.observer import Observer
from composer_freezeout.freezing.observing.recorder import Recorder, written_to
from composer_freezeout.freezing.observing.snapshot import Snapshot, random_states_put_back
from composer_freezeout.freezing.observing.tensors import plain_tensors, storages_of, tensors_in

__all__ = ['rehearse']


def rehearse(model: nn.Module, forward: Callable[[], object]) -> Observation:
    """Runs a forward pass and tells what it shows.

    The pass is one of training: in training mode, with gradients. Afterwards everything is as it was before:
    parameters, buffers, the batch, other tensors that are written to, the modules' attributes and what is in them, the
    modes, gradients, and the random states of torch, NumPy and Python.

    Args:
        model (nn.Module): The model.
        forward (Callable[[], object]): Runs the model on a batch, its loss too where that has parameters, and returns
            what comes of it.

    Returns:
        Observation: What was seen.

    Raises:
        ValueError: If the model has parameters that are not materialised yet.
    """
    written = _WrittenTo()
    observer = Observer(model, written)
    with _undisturbed(model), written.put_back():
        with observer.watching(), torch.enable_grad():
            if not model.training:
                model.train()
            result = forward()
        roots = [tensor for tensor in tensors_in(result) if tensor.grad_fn is not None] or observer.outputs
        return observer.finish(roots)


class _WrittenTo(Recorder):
    """Keeps a copy of every storage that was there before and is written to."""

    def __init__(self) -> None:
        super().__init__()
        self._before: dict[StorageWeakRef, tuple[Any, Any]] = {}
        self._made: set[StorageWeakRef] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func._schema.is_mutable:
            for value in written_to(func, args, kwargs):
                self._keep(value)
        given = {storage for leaf in tree_leaves((args, kwargs)) for storage in storages_of(leaf)}
        result = super().__torch_dispatch__(func, types, args, kwargs)
        self._made |= {storage for leaf in tree_leaves(result) for storage in storages_of(leaf)} - given
        return result

    @contextlib.contextmanager
    def put_back(self) -> Iterator[None]:
        """Puts back, in the end, what has been written to inside."""
        try:
            yield
        finally:
            # Bypasses torch's count of writes to a tensor, so that autograd doesn't take it for changed.
            for storage, before in self._before.values():
                storage.copy_(before)

    def _keep(self, value: Any) -> None:
        for tensor in plain_tensors(value):
            storage = tensor.untyped_storage()
            reference = StorageWeakRef(storage)
            if reference not in self._made and reference not in self._before:
                self._before[reference] = storage, storage.clone()


@contextlib.contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Puts back what a forward pass changes other than by an operator that says so."""
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    attributes = Snapshot(list(model.modules()))
    modes = [(module, module.training) for module in model.modules()]
    cached = torch.is_autocast_cache_enabled()
    try:
        with random_states_put_back(p.device for p in model.parameters()):
            # Otherwise the pass that is trained would find weights that were cast here, with no graph behind them.
            torch.set_autocast_cache_enabled(False)
            yield
    finally:
        torch.set_autocast_cache_enabled(cached)
        attributes.restore()
        for module, mode in modes:
            if module.training != mode:
                module.training = mode
        for parameter, gradient in gradients:
            parameter.grad = gradient
        for buffer, before in buffers:
            buffer.data.copy_(before)
