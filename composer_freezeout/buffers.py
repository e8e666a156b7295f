"""Which modules' buffers change while a model trains."""

from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

__all__ = ['BufferWatch']

_Fingerprint = tuple[tuple[int, ...], str]


class BufferWatch:
    """Tells which modules' own buffers have changed since it was made.

    By what they add up to, so that no copy of them is kept.

    Args:
        model (nn.Module): The model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._before = {name: _fingerprint(buffer) for name, buffer in model.named_buffers()}

    def changed(self, known: frozenset[str]) -> frozenset[str]:
        """Names of the modules.

        Args:
            known (frozenset[str]): Modules that are not looked at.

        Returns:
            frozenset[str]: Without the known ones.
        """
        found = set()
        for name, buffer in self._model.named_buffers():
            module_name = name.rpartition('.')[0]
            if module_name not in known | found and self._before.get(name) != _fingerprint(buffer):
                found.add(module_name)
        return frozenset(found)


def _fingerprint(buffer: Tensor) -> _Fingerprint:
    if is_traceable_wrapper_subclass(buffer) or buffer.is_meta:
        return (), ''
    numbers = buffer.detach()
    numbers = numbers.abs() if numbers.is_complex() else numbers
    # As text: not a number is itself, too.
    return tuple(buffer.shape), repr((numbers.double().sum().item(), numbers.double().square().sum().item()))
