"""The course of a run: accuracy over training time, when a target was reached, and how much was frozen."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from composer_freezeout.compare.arms.known import is_baseline
from composer_freezeout.compare.judging.clock import Clock
from composer_freezeout.compare.judging.comparison import Comparison
from composer_freezeout.compare.judging.score import BY_ACCURACY, Score
from composer_freezeout.results.record import Record
from composer_freezeout.results.stats import Summary, summary

__all__ = [
    'Reached',
    'backward_share',
    'backward_shares',
    'course',
    'frozen_at_end',
    'frozen_share',
    'frozen_shares',
    'reached',
    'target',
]


def course(record: Record, clock: Clock, score: Score = BY_ACCURACY) -> list[tuple[float, float]]:
    """Training time and accuracy at each evaluation.

    Args:
        record (Record): The run.
        clock (Clock): What time is measured by.
        score (Score): What stands in the place of accuracy, if anything.

    Returns:
        list[tuple[float, float]]: Seconds and accuracies, in order.
    """
    seconds, points = 0.0, []
    for row in record.epochs:
        seconds += clock.seconds(row)
        value = score.of(row)
        if value is not None:
            points.append((seconds, value))
    return points


def target(comparison: Comparison) -> float | None:
    """What the shortest baseline reaches at its end, on average.

    Args:
        comparison (Comparison): The runs.

    Returns:
        float, optional: An accuracy, in ``[0, 1]``, or what else runs are compared by; None without one.
    """
    batches = {
        arm: _mean_batches(comparison, arm) for arm in comparison.arms if is_baseline(arm) and comparison.of(arm)
    }
    shortest = min(batches, key=batches.__getitem__)
    accuracies = [comparison.score.of(run.record) for run in comparison.of(shortest)]
    known = [accuracy for accuracy in accuracies if accuracy is not None]
    return summary(known).mean if known else None


def _mean_batches(comparison: Comparison, arm: str) -> float:
    return summary([run.record.effective.total_batches for run in comparison.of(arm)]).mean


@dataclass(frozen=True)
class Reached:
    """When the runs of an arm reached an accuracy.

    Attributes:
        arm (str): The arm.
        runs (int): How many runs it has.
        reached (int): How many of them reached it.
        seconds (Summary, optional): Training time until the first evaluation that had it, of these; None if none did.
    """

    arm: str
    runs: int
    reached: int
    seconds: Summary | None


def reached(comparison: Comparison, accuracy: float) -> list[Reached]:
    """When each arm reached an accuracy, as far as it was evaluated.

    Args:
        comparison (Comparison): The runs.
        accuracy (float): In ``[0, 1]``, or what else runs are compared by.

    Returns:
        list[Reached]: Arms with a finished run.
    """
    found, score = [], comparison.score
    enough = score.quality(accuracy)
    for arm in comparison.arms:
        if runs := comparison.of(arm):
            courses = [course(run.record, comparison.clock, score) for run in runs]
            times = [
                next((time for time, value in points if score.quality(value) >= enough), None) for points in courses
            ]
            known = [time for time in times if time is not None]
            found.append(Reached(arm, len(runs), len(known), summary(known) if known else None))
    return found


def frozen_shares(record: Record) -> list[tuple[float, float]]:
    """Share of the parameters that are frozen, over the run.

    Args:
        record (Record): The run.

    Returns:
        list[tuple[float, float]]: Progress in ``[0, 1]`` and share in ``[0, 1]``, where each segment begins and at the
        end; empty without segments. What the configuration froze from the start counts, what the model had frozen
        by itself doesn't.
    """
    if not record.segments:
        return []
    total = record.effective.total_batches
    trainable = max(segment.trainable_parameters for segment in record.segments) or 1
    trainable += record.effective.frozen.parameters if record.effective.frozen else 0
    points = [(s.batch / total, 1 - s.trainable_parameters / trainable) for s in record.segments]
    return [(0.0, points[0][1]), *points[1:], (1.0, points[-1][1])]


def backward_shares(record: Record) -> list[tuple[float, float]]:
    """Share of the FLOPs of the backward pass that freezing saves, over the run.

    Args:
        record (Record): The run.

    Returns:
        list[tuple[float, float]]: As :func:`frozen_shares`; empty if it is not known.
    """
    known = record.backward_left or {}
    total = record.effective.total_batches
    points = [(s.batch / total, known.get(str(s.trainable_parameters))) for s in record.segments]
    shares = [(at, 1 - left) for at, left in points if left is not None]
    if not shares or len(shares) < len(points):
        return []
    return [(0.0, shares[0][1]), *shares[1:], (1.0, shares[-1][1])]


def backward_share(records: Sequence[Record]) -> float | None:
    """Share of the FLOPs of the backward pass that freezing saves, averaged over training; None if it is not known."""
    return _mean_share([backward_shares(record) for record in records])


def frozen_share(records: Sequence[Record]) -> float | None:
    """Share of the parameters that are frozen, averaged over training; None without segments."""
    return _mean_share([frozen_shares(record) for record in records])


def _mean_share(courses: Sequence[list[tuple[float, float]]]) -> float | None:
    shares = [
        sum((end - begin) * share for (begin, share), (end, _) in pairwise(points)) for points in courses if points
    ]
    return summary(shares).mean if shares else None


def frozen_at_end(records: Sequence[Record]) -> float | None:
    """Share of the parameters that are frozen when training ends; None without segments."""
    shares = [points[-1][1] for record in records if (points := frozen_shares(record))]
    return summary(shares).mean if shares else None
