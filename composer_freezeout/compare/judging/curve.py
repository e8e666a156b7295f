"""The control of an arm: the baseline in the arm's own time, read off a curve through baselines of several lengths.

**The curve.** Baselines are trained for several lengths, each with its whole schedule. The curve goes through their
mean accuracies over their mean costs, a cost being a training time or FLOPs. Between them it is interpolated by
:class:`scipy.interpolate.PchipInterpolator`, which is monotone where its points are. Where a longer baseline has the
lower mean, :func:`scipy.optimize.isotonic_regression` pools the two before: a dip between neighbouring lengths is taken
for chance, and a time that is needed for some accuracy stays unique. scipy has both, so that nothing else is needed.

**The gain** of an arm is its mean accuracy less the curve's at its mean cost.

**Its uncertainty.** Runs of a seed share initialisation and order of data, and runs of a round the state of the
machine, in the arm as in every point of the curve. So the seed is what is drawn, and all its runs with it: the gain is
computed again without each seed in turn (the jackknife), means of costs, pooling and interpolation included. The
changes make one value per seed, whose mean is the gain; :func:`scipy.stats.ttest_1samp` tests them against 0 and gives
the interval. So the interval contains the spread of the arm, of the curve and of both their times, and what a seed does
to all of them alike drops out. Only seeds that the arm and all points have are taken.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator
from scipy.optimize import isotonic_regression

from composer_freezeout.results.stats import Difference, jackknife

__all__ = ['TOLERANCE', 'Baselines', 'Curve', 'Gain', 'Line', 'Run', 'Runs']

# Beyond the ends of the curve, by more than this share of the time there, nothing is known of it.
TOLERANCE = 0.02

Array: TypeAlias = NDArray[np.float64]


class Run(NamedTuple):
    """What a run cost, and what came of it.

    Attributes:
        cost (float): Seconds of training, or FLOPs as a share of the whole baseline's; in ``(0, ∞)``.
        accuracy (float): In ``[0, 1]``; or another quality, of which more is better.
    """

    cost: float
    accuracy: float


# By seed.
Runs: TypeAlias = Mapping[int, Run]


@dataclass(frozen=True)
class Gain:
    """What an arm has over the baseline at equal cost.

    Attributes:
        cost (float): The arm's mean cost.
        seeds (int): How many seeds it was compared with.
        difference (Difference, optional): Accuracy less the curve's; None if the cost lies outside of the curve.
        outside (str, optional): ``'below'`` if the arm is cheaper than the cheapest baseline, ``'above'`` if it is
            dearer than the dearest.
        end (float, optional): Cost of the baseline that it is beyond.
        p_holm (float, optional): The p-value, corrected for the number of tests.
        tests (int): That number.
    """

    cost: float
    seeds: int
    difference: Difference | None = None
    outside: Literal['below', 'above'] | None = None
    end: float | None = None
    p_holm: float | None = None
    tests: int = 1


class Line:
    """A monotone line through points.

    Args:
        costs (NDArray): Shape ``(lengths,)``, in any order.
        accuracies (NDArray): Shape ``(lengths,)``.
    """

    def __init__(self, costs: Array, accuracies: Array):
        # Lengths that came out at the same cost are one point.
        self.costs, place = np.unique(costs, return_inverse=True)
        counts = np.bincount(place)
        means = np.bincount(place, weights=accuracies) / counts
        self.accuracies: Array = isotonic_regression(means, weights=counts).x
        self._between = PchipInterpolator(self.costs, self.accuracies) if len(self.costs) > 1 else None

    def at(self, costs: Array | float) -> Array:
        """Accuracies at some costs, shape of the argument; beyond an end that of the end."""
        inside = np.clip(costs, self.costs[0], self.costs[-1])
        return np.full(np.shape(inside), self.accuracies[0]) if self._between is None else self._between(inside)

    def cost_of(self, accuracy: float) -> float | None:
        """The least cost at which the line has an accuracy; None if it nowhere has."""
        if accuracy > self.accuracies[-1]:
            return None
        if accuracy <= self.accuracies[0] or self._between is None:
            return float(self.costs[0])
        roots = self._between.solve(accuracy, extrapolate=False)
        # On a flat stretch, its start and NaN.
        return float(np.nanmin(roots)) if len(roots) else float(self.costs[-1])


@dataclass(frozen=True)
class Curve:
    """Baselines of several lengths, with the same seeds.

    Attributes:
        costs (NDArray): Shape ``(seeds, lengths)``.
        accuracies (NDArray): Shape ``(seeds, lengths)``.
    """

    costs: Array
    accuracies: Array

    @property
    def seeds(self) -> int:
        """How many seeds it is made of."""
        return len(self.costs)

    @cached_property
    def whole(self) -> Line:
        """The line through the means."""
        return Line(self.costs.mean(axis=0), self.accuracies.mean(axis=0))

    @cached_property
    def _without(self) -> list[Line]:
        """The line without each seed in turn."""
        kept = [np.arange(self.seeds) != seed for seed in range(self.seeds)]
        return [Line(self.costs[rows].mean(axis=0), self.accuracies[rows].mean(axis=0)) for rows in kept]

    def gain(self, costs: Array, accuracies: Array) -> Difference:
        """Compares an arm with the curve at the arm's cost.

        Args:
            costs (NDArray): Of the arm, by seed, shape ``(seeds,)``.
            accuracies (NDArray): Of the arm, by seed, shape ``(seeds,)``.

        Returns:
            Difference: Accuracy less the curve's.
        """
        gain = float(accuracies.mean() - self.whole.at(costs.mean()))
        if self.seeds == 1:
            return Difference(gain)
        n = self.seeds - 1
        others = zip((costs.sum() - costs) / n, (accuracies.sum() - accuracies) / n, self._without, strict=True)
        return jackknife(gain, [float(accuracy - line.at(cost)) for cost, accuracy, line in others])

    def band(self, costs: Array) -> list[Difference]:
        """The curve with its uncertainty.

        Args:
            costs (NDArray): Where, shape ``(n,)``.

        Returns:
            list[Difference]: Accuracies and their intervals, shape ``(n,)``.
        """
        middle = self.whole.at(costs)
        if self.seeds == 1:
            return [Difference(float(value)) for value in middle]
        without = np.array([line.at(costs) for line in self._without])
        return [jackknife(float(value), others.tolist()) for value, others in zip(middle, without.T, strict=True)]


class Baselines:
    """Baselines of several lengths, which arms are compared with.

    Args:
        lengths (Sequence[Runs]): Runs of each length, shape ``(lengths,)``, in any order.
    """

    def __init__(self, lengths: Sequence[Runs]):
        self.lengths = [runs for runs in lengths if runs]
        self._curves: dict[tuple[int, ...], Curve] = {}

    def curve(self, seeds: Iterable[int] | None = None) -> Curve | None:
        """The curve of the seeds that all lengths have.

        Args:
            seeds (Iterable[int], optional): Of these only. Default: of all.

        Returns:
            Curve, optional: None if there is no such seed.
        """
        if not self.lengths:
            return None
        common = set(self.lengths[0]).intersection(*self.lengths)
        chosen = tuple(sorted(common if seeds is None else common.intersection(seeds)))
        if chosen and chosen not in self._curves:
            table = np.array([[runs[seed] for runs in self.lengths] for seed in chosen])
            self._curves[chosen] = Curve(table[..., 0], table[..., 1])
        return self._curves.get(chosen)

    def gain(self, arm: Runs) -> Gain | None:
        """Compares an arm with the baseline at the arm's cost.

        Args:
            arm (Runs): The arm's.

        Returns:
            Gain, optional: None if there is no seed that the arm and all baselines have.
        """
        curve = self.curve(arm)
        if curve is None:
            return None
        seeds = sorted(set(arm).intersection(*self.lengths))
        costs, accuracies = np.array([arm[seed] for seed in seeds]).T
        cost, ends = float(costs.mean()), curve.whole.costs
        if cost < ends[0] * (1 - TOLERANCE):
            return Gain(cost, len(seeds), outside='below', end=float(ends[0]))
        if cost > ends[-1] * (1 + TOLERANCE):
            return Gain(cost, len(seeds), outside='above', end=float(ends[-1]))
        return Gain(cost, len(seeds), curve.gain(costs, accuracies))
