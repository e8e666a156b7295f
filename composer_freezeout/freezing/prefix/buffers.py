"""Which modules' buffers change while a model trains."""

from collections.abc import Iterable

from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

__all__ = ['BufferWatch']

_Fingerprint = tuple[tuple[int, ...], str]


class BufferWatch:
    """Tells which modules' own buffers have changed since it was made.

    Sums of the buffers and of their squares are compared, so that no copy of them is kept.

    Args:
        model (nn.Module): The model.
        known (Iterable[str]): Names of modules that are known to change theirs.
    """

    def __init__(self, model: nn.Module, known: Iterable[str]) -> None:
        known = frozenset(known)
        self._model = model
        self._before = {
            name: _fingerprint(buffer) for name, buffer in model.named_buffers() if name.rpartition('.')[0] not in known
        }

    def changed(self) -> frozenset[str]:
        """Names of the modules, without those that were known or have been told before."""
        now = dict(self._model.named_buffers())
        found = {
            name.rpartition('.')[0]
            for name, before in self._before.items()
            if name in now and _fingerprint(now[name]) != before
        }
        self._before = {name: b for name, b in self._before.items() if name.rpartition('.')[0] not in found}
        return frozenset(found)


def _fingerprint(buffer: Tensor) -> _Fingerprint:
    if is_traceable_wrapper_subclass(buffer) or buffer.is_meta:
        return (), ''
    numbers = buffer.detach()
    numbers = numbers.abs() if numbers.is_complex() else numbers
    # Compared as text, in which NaN equals NaN.
    return tuple(buffer.shape), repr((numbers.double().sum().item(), numbers.double().square().sum().item()))
