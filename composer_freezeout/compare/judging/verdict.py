"""What the numbers say about each arm, and which of them pay."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from composer_freezeout.compare.arms.known import BASELINE, FREEZING, STATIC, is_baseline
from composer_freezeout.compare.judging.comparison import Comparison
from composer_freezeout.compare.judging.costs import flops_of, runs_by_flops, runs_by_time, step_saving
from composer_freezeout.compare.judging.curve import Baselines, Gain, Runs
from composer_freezeout.results.record import Record
from composer_freezeout.results.stats import CONFIDENCE, Difference, Ratio, Summary, holm, paired, ratio, summary, welch

__all__ = ['ArmResult', 'Cost', 'Verdict', 'arm_results', 'baselines_of', 'best_arm', 'runs_of', 'with_holm']

Cost = Literal['time', 'FLOPs']
Verdict = Literal['pays', 'does not pay', 'undecided', 'not judged']


@dataclass(frozen=True)
class ArmResult:
    """The numbers of an arm with at least one finished run.

    Times are wall-clock, but for those that are compared: they are by the comparison's clock.

    Attributes:
        arm (str): Its name.
        freezes (bool): Whether an algorithm freezes parameters in it.
        accuracy (Summary, optional): Top-1 accuracy of the last evaluations, in ``[0, 1]``, or what else runs are
            compared by; None without evaluations.
        seconds (Summary): Training time.
        cpu_seconds (Summary, optional): CPU time of training; None if it was not measured.
        time (Summary): Training time, by the comparison's clock.
        memory (Summary): Peak memory, in bytes.
        time_ratio (Ratio, optional): Training time over the baseline's; None if there are no times to compare.
        measured_saving (float, optional): Share of the baseline's training time that was saved, in ``(-∞, 1)``; None
            for the baseline, and if there are no times to compare.
        predicted_saving (float, optional): What freezing saves of it, predicted from FLOPs; None if nothing is
            predicted.
        flops (float, optional): FLOPs of training over the baseline's, in ``(0, ∞)``; None if nothing is predicted.
        versus_baseline (Difference, optional): Accuracy less that of the whole baseline.
        versus_static (Difference, optional): Accuracy, seed by seed, less that of the arm whose first layers are frozen
            from the start, of another arm that freezes; None without that arm or a seed that both have.
        by_time (Gain, optional): Accuracy, or another quality, less the baseline's in the same time, of an arm that
            freezes; None without accuracies or times to compare.
        by_flops (Gain, optional): The same for as many FLOPs.
        judged_by (str): Which of the two the verdict is by: ``'time'``, or ``'FLOPs'`` if no times can be compared.
        verdict (Verdict, optional): Of an arm that freezes.
    """

    arm: str
    freezes: bool
    accuracy: Summary | None
    seconds: Summary
    cpu_seconds: Summary | None
    time: Summary
    memory: Summary
    time_ratio: Ratio | None
    measured_saving: float | None
    predicted_saving: float | None
    flops: float | None
    judged_by: Cost
    versus_baseline: Difference | None = None
    versus_static: Difference | None = None
    by_time: Gain | None = None
    by_flops: Gain | None = None
    verdict: Verdict | None = None

    @property
    def gain(self) -> Gain | None:
        """What the verdict is on."""
        return self.by_time if self.judged_by == 'time' else self.by_flops


def arm_results(comparison: Comparison) -> list[ArmResult]:
    """Judges every arm that freezes by the baseline in the arm's own time.

    The control is read off a curve through the baselines of all lengths, and the gain over it has an interval and a
    test that take in how uncertain the curve is: see :mod:`composer_freezeout.compare.judging.curve`. An arm *pays* if
    its gain is above 0, and *does not pay* if it is below, both at 5 % after Holm's correction for all arms that freeze
    and can be judged: so with a chance of at most 5 % any arm at all is called what it is not. Everything else is
    *undecided*. An arm whose cost lies outside of the curve, by more than
    :data:`~composer_freezeout.compare.judging.curve.TOLERANCE`, is *not judged*.

    Costs are times by the comparison's clock; where it finds none to compare
    (:mod:`composer_freezeout.compare.judging.clock`), FLOPs. Both are worked out; all verdicts are by the same.

    Args:
        comparison (Comparison): The runs.

    Returns:
        list[ArmResult]: Arms with at least one finished run, in the comparison's order.
    """
    results = [_measured(arm, comparison) for arm in comparison.arms if comparison.of(arm)]
    by_time = _gains(results, comparison, 'time')
    by_flops = _gains(results, comparison, 'FLOPs')
    compared = [
        replace(
            r,
            versus_static=_versus_static(r, comparison),
            by_time=by_time.get(r.arm),
            by_flops=by_flops.get(r.arm),
        )
        for r in results
    ]
    return [replace(r, verdict=_verdict(r.gain)) if r.freezes else r for r in compared]


def runs_of(comparison: Comparison, arm: str, by: Cost) -> Runs:
    """What the runs of an arm cost, and how accurate they are.

    Args:
        comparison (Comparison): The runs.
        arm (str): The arm.
        by (str): The cost: ``'time'``, by the comparison's clock, or ``'FLOPs'``.

    Returns:
        Runs: By seed; empty if there are no times to compare.
    """
    records = {run.seed: run.record for run in comparison.of(arm)}
    if by == 'time':
        return runs_by_time(records, comparison.clock, comparison.score)
    return runs_by_flops(records, comparison.of(BASELINE)[0].record, comparison.score)


def baselines_of(comparison: Comparison, by: Cost) -> Baselines:
    """The baselines of all lengths, which arms are compared with.

    Args:
        comparison (Comparison): The runs.
        by (str): The cost.

    Returns:
        Baselines: Those with accuracies and costs.
    """
    return Baselines([runs_of(comparison, arm, by) for arm in filter(is_baseline, comparison.arms)])


def with_holm(gains: Mapping[str, Gain]) -> dict[str, Gain]:
    """Gains with their p-values corrected for the number of tests."""
    p = {arm: g.difference.p for arm, g in gains.items() if g.difference is not None and g.difference.p is not None}
    corrected = dict(zip(p, holm(list(p.values())), strict=True))
    return {arm: replace(gain, p_holm=corrected.get(arm), tests=len(p)) for arm, gain in gains.items()}


def best_arm(results: Sequence[ArmResult]) -> ArmResult | None:
    """The arm with the highest gain; None if none has been judged."""
    judged = [r for r in results if r.gain is not None and r.gain.difference is not None]
    return max(judged, key=lambda r: r.gain.difference.value if r.gain and r.gain.difference else 0.0, default=None)


def _measured(arm: str, comparison: Comparison) -> ArmResult:
    own, whole = ([run.record for run in comparison.of(name)] for name in (arm, BASELINE))
    clock = comparison.clock
    freezes = not is_baseline(arm) and any(_freezes(record) for record in own)
    accuracies, reference = (_known([comparison.score.of(r) for r in records]) for records in (own, whole))
    cpu = _known([record.training_cpu_seconds for record in own])
    predictions = _known([step_saving(record, whole[0]) for record in own])
    flops = _known([flops_of(record, whole[0]) for record in own])
    times = [clock.seconds(record) for record in own]
    time_ratio = ratio(times, [clock.seconds(record) for record in whole]) if clock.decides else None
    return ArmResult(
        arm=arm,
        freezes=freezes,
        accuracy=summary(accuracies) if accuracies else None,
        seconds=summary([record.training_seconds for record in own]),
        cpu_seconds=summary(cpu) if len(cpu) == len(own) else None,
        time=summary(times),
        memory=summary([record.peak_memory_bytes for record in own]),
        time_ratio=time_ratio,
        measured_saving=None if arm == BASELINE or time_ratio is None else 1 - time_ratio.value,
        predicted_saving=summary(predictions).mean if freezes and predictions else None,
        flops=summary(flops).mean if flops else None,
        judged_by='time' if clock.decides else 'FLOPs',
        versus_baseline=welch(accuracies, reference) if arm != BASELINE and accuracies and reference else None,
    )


def _freezes(record: Record) -> bool:
    return record.effective.frozen is not None or any(entry.get('name') in FREEZING for entry in record.algorithms)


def _known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _versus_static(result: ArmResult, comparison: Comparison) -> Difference | None:
    if not result.freezes or result.arm == STATIC:
        return None
    values = [
        {run.seed: value for run in comparison.of(arm) if (value := comparison.score.of(run.record)) is not None}
        for arm in (result.arm, STATIC)
    ]
    common = sorted(values[0].keys() & values[1].keys())
    return paired(*([of[seed] for seed in common] for of in values)) if common else None


def _gains(results: Sequence[ArmResult], comparison: Comparison, by: Cost) -> dict[str, Gain]:
    baselines = baselines_of(comparison, by)
    gains = {r.arm: baselines.gain(runs_of(comparison, r.arm, by)) for r in results if r.freezes}
    return with_holm({arm: gain for arm, gain in gains.items() if gain is not None})


def _verdict(gain: Gain | None) -> Verdict:
    if gain is None or gain.difference is None:
        return 'not judged'
    if gain.p_holm is None or gain.p_holm >= 1 - CONFIDENCE:
        return 'undecided'
    return 'pays' if gain.difference.value > 0 else 'does not pay'
