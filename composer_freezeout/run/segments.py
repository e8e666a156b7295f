"""Training time by what was trainable: segments of batches between one freeze and the next."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch.nn import Parameter

from composer_freezeout.results.record import Segment

__all__ = ['Moment', 'Segments']


@dataclass(frozen=True)
class Moment:
    """Where a run is.

    Args:
        batch (int): Batches that were trained, in ``[0, ∞)``.
        seconds (float): Reading of the clock of training, in ``[0, ∞)``.
        cpu_seconds (float, optional): Reading of the clock of its CPU time, in ``[0, ∞)``; None if it is not known.
    """

    batch: int
    seconds: float
    cpu_seconds: float | None


@dataclass(frozen=True)
class _Opening:
    moment: Moment
    trainable_tensors: int
    trainable_parameters: int
    units_frozen: int | None


class Segments:
    """The segments of a run, of which the last one may be open.

    Attributes:
        done (list[Segment]): Those that have ended.
    """

    def __init__(self) -> None:
        self.done: list[Segment] = []
        self._parameters: list[Parameter] = []
        self._opening: _Opening | None = None

    @property
    def is_open(self) -> bool:
        """Whether a segment has begun and not ended."""
        return self._opening is not None

    def watch(self, parameters: Iterable[Parameter]) -> None:
        """Chooses the parameters that are looked at.

        Args:
            parameters (Iterable[Parameter]): Those of the model.
        """
        self._parameters = list(parameters)

    def outdated(self) -> bool:
        """Whether the number of trainable tensors is another than where the open segment began."""
        return self._opening is not None and self._opening.trainable_tensors != self._trainable_tensors()

    def open(self, now: Moment, units_frozen: int | None) -> None:
        """Begins a segment.

        Args:
            now (Moment): Where it begins.
            units_frozen (int, optional): Number of frozen units; None without FreezeOut.
        """
        trainable_parameters = sum(p.numel() for p in self._parameters if p.requires_grad)
        self._opening = _Opening(now, self._trainable_tensors(), trainable_parameters, units_frozen)

    def close(self, now: Moment) -> None:
        """Ends the open segment, if there is one.

        Args:
            now (Moment): Where it ends.
        """
        self.done, self._opening = self.until(now), None

    def until(self, now: Moment) -> list[Segment]:
        """All segments.

        Args:
            now (Moment): Where the open one ends.

        Returns:
            list[Segment]: In order.
        """
        opening = self._opening
        if opening is None or now.batch <= opening.moment.batch:
            return self.done
        since = opening.moment
        used = None
        if now.cpu_seconds is not None and since.cpu_seconds is not None:
            # Of other processes it is told in ticks, and may be a little less than before.
            used = max(0.0, now.cpu_seconds - since.cpu_seconds)
        segment = Segment(
            batch=since.batch,
            batches=now.batch - since.batch,
            seconds=now.seconds - since.seconds,
            units_frozen=opening.units_frozen,
            trainable_parameters=opening.trainable_parameters,
            cpu_seconds=used,
        )
        return [*self.done, segment]

    def _trainable_tensors(self) -> int:
        return sum(parameter.requires_grad for parameter in self._parameters)
