"""What runs are compared by: their accuracy, or else a metric of their own, of which less may be better."""

from collections.abc import Sequence
from dataclasses import dataclass

from composer_freezeout.results.record import ACCURACY, Epoch, Metric, Record

__all__ = ['BY_ACCURACY', 'Score', 'score_of']


@dataclass(frozen=True)
class Score:
    """What runs are compared by, and how it is told.

    Its *quality* is what the judging handles: the value itself, or its negative where less is better, so that more is
    always better, and a gain above 0 is one.

    Attributes:
        metric (Metric, optional): A metric of the runs' own; None for top-1 accuracy.
    """

    metric: Metric | None = None

    @property
    def key(self) -> str:
        """Its name in a record."""
        return ACCURACY if self.metric is None else self.metric.name

    @property
    def name(self) -> str:
        """What it is called."""
        return 'accuracy' if self.metric is None else self.metric.name

    @property
    def title(self) -> str:
        """The same at the start of a heading."""
        return 'Accuracy' if self.metric is None else self.metric.name

    @property
    def direction(self) -> str:
        """What of it is better, where that is not plain: the end of a heading."""
        return '' if self.metric is None else f' ({"higher" if self.metric.higher_is_better else "lower"} is better)'

    @property
    def factor(self) -> float:
        """From its values to what is shown: accuracies are in percent."""
        return 100.0 if self.metric is None else 1.0

    @property
    def digits(self) -> int:
        """After the point."""
        return 2 if self.metric is None else 4

    @property
    def unit(self) -> str:
        """Of its values, as it ends a heading."""
        return ', %' if self.metric is None else self.direction

    @property
    def gain_unit(self) -> str:
        """Of gains, as it ends a heading."""
        if self.metric is None:
            return 'points'
        return f'{self.name}, how much {"higher" if self.metric.higher_is_better else "lower"}'

    def of(self, measured: Record | Epoch) -> float | None:
        """The value of a run's last evaluation, or of an epoch's; None without one."""
        return (measured.final if isinstance(measured, Record) else measured.eval).get(self.key)

    def quality(self, value: float) -> float:
        """The quality of a value; and the value of a quality."""
        return value if self.metric is None or self.metric.higher_is_better else -value

    def quality_of(self, record: Record) -> float | None:
        """The quality of a run; None without an evaluation."""
        value = self.of(record)
        return None if value is None else self.quality(value)


BY_ACCURACY = Score()


def score_of(records: Sequence[Record]) -> Score:
    """What some runs, which have the same model, are compared by."""
    return next((Score(record.metric) for record in records if record.metric is not None), BY_ACCURACY)
