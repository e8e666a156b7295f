"""The runs of a comparison, checked for being comparable, and what their numbers say about each arm.

A comparison is a folder with a manifest, ``comparison.json``, and one record per run,
``<arm>/seed<seed>/record.json``. Accuracy is that of a run's last evaluation, never the best one; time is that of
training, from the start of fit to its end without evaluations, the first batch included.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from composer_freezeout.results.stats import CONFIDENCE, Difference, Ratio, Summary, holm, ratio, summary, welch
from composer_freezeout.run.config import faults_of

__all__ = [
    'ARMS',
    'BASELINE',
    'BASELINE_SHORT',
    'COST_AWARE',
    'EQUAL_TIME',
    'FREEZEOUT',
    'FREEZING',
    'MANIFEST',
    'RECORD',
    'SHORTENED',
    'ArmResult',
    'Comparison',
    'Failure',
    'Run',
    'Verdict',
    'accuracy',
    'arm_results',
    'best_in_the_same_time',
    'load',
]

MANIFEST, RECORD = 'comparison.json', 'record.json'
BASELINE, BASELINE_SHORT, FREEZEOUT = 'baseline', 'baseline_short', 'freezeout'
# FreezeOut with freeze times shifted by measured costs, in families that have them.
COST_AWARE = 'freezeout_cost_aware'
# The shortened baselines, and the arm whose time each has.
SHORTENED = {BASELINE_SHORT: FREEZEOUT, 'baseline_short_cost_aware': COST_AWARE}
# What a full comparison consists of, in the order of the tables.
ARMS = (
    BASELINE,
    BASELINE_SHORT,
    'layer_freezing',
    'layer_freezing_matched',
    FREEZEOUT,
    'freezeout_unscaled',
    'freezeout_squared',
    'freezeout_squared_unscaled',
    'freezeout_linear',
    'freezeout_linear_unscaled',
    'freezeout_const_time',
)
# Names of the algorithms that freeze, as they stand in a configuration.
FREEZING = ('freezeout', 'layer_freezing')
# Mean training times that differ by no more than this share count as equal.
EQUAL_TIME = 0.03

_ACCURACY = 'MulticlassAccuracy'
# Keys of a configuration that may differ between any two runs of an arm, between arms, and between runs of one arm.
_INCIDENTAL = {'run_name', 'output', 'overwrite', 'progress_bar', 'seed'}
_BETWEEN_ARMS = _INCIDENTAL | {'scheduler'}
# Their warm-up is shortened with them.
_OF_AN_ARM = {short: {'max_duration', 'scheduler'} for short in SHORTENED}

Verdict = Literal['pays', 'does not pay', 'undecided']


# ---------------------------------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------------------------------


def _folder_name(value: str) -> str:
    if not value or value in ('.', '..') or '/' in value or '\\' in value:
        raise ValueError('must be the name of a subfolder')
    return value


def _unique(values: list[Any]) -> list[Any]:
    if len(set(values)) < len(values):
        raise ValueError('must not repeat a value')
    return values


ArmName = Annotated[str, AfterValidator(_folder_name)]
Share = Annotated[float, Field(gt=0, le=1)]
Seconds = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra='ignore', allow_inf_nan=False)


class Failure(_Strict):
    """A run that ended without a record.

    Args:
        arm (str): Its arm.
        seed (int): Its seed.
        exit_code (int): Of its process.
        message (str): Last line of its output.
    """

    arm: ArmName
    seed: int
    exit_code: int
    message: str


class _Manifest(_Strict):
    format: Literal[1]
    family: str
    command: str
    arms: Annotated[list[ArmName], Field(min_length=1), AfterValidator(_unique)]
    seeds: Annotated[list[int], Field(min_length=1), AfterValidator(_unique)]
    scale: Share
    overrides: list[str]
    failures: list[Failure]


class _Config(_Strict):
    algorithms: list[dict[str, Any]]


class _Effective(_Strict):
    device: str
    world_size: Count
    precision: str
    batches_per_epoch: int | None
    total_batches: Count
    parameters_total: Count


class _Epoch(_Strict):
    training_seconds: float
    eval: dict[str, float | None]


class _Unit(_Strict):
    name: str
    t_i: float
    frozen_at_batch: int | None


class _Trace(_Strict):
    batch: list[int]
    lr: dict[str, list[float | None]]


class _Segment(_Strict):
    batch: int
    batches: int
    seconds: Seconds
    units_frozen: int | None
    trainable_parameters: int


class _Record(_Strict):
    """What this module and the report need of a record; its other fields are not looked at."""

    format: Literal[1]
    run_name: str
    config: _Config
    seed: int
    started_at: str
    effective: _Effective
    units: list[_Unit]
    epochs: list[_Epoch]
    lr_trace: _Trace
    training_seconds: Annotated[float, Field(gt=0)]
    first_batch_seconds: Seconds | None = None
    data_wait_share: float | None
    peak_memory_bytes: int
    resumed_at_batch: list[int]
    predicted_saving: float | None
    segments: list[_Segment] = []
    final: dict[str, float | None]
    versions: dict[str, Any]
    hardware: dict[str, Any]
    git: dict[str, Any] | None


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        arm (str): Its arm.
        seed (int): Its seed.
        path (str): Its record, relative to the comparison's folder, with slashes.
        record (Mapping[str, Any]): What the record says.
    """

    arm: str
    seed: int
    path: str
    record: Mapping[str, Any]


@dataclass(frozen=True)
class Comparison:
    """What was run, and how.

    Attributes:
        family (str): Name of the family of configurations.
        command (str): The command that made the comparison.
        arms (tuple[str, ...]): Its arms, in the order of the tables.
        seeds (tuple[int, ...]): Its seeds.
        scale (float): Share of the family's epochs, and of its batches per epoch, that was trained; in ``(0, 1]``.
        overrides (tuple[str, ...]): ``key=value`` pairs laid over every configuration.
        runs (tuple[Run, ...]): Finished runs, by arm and seed.
        failures (tuple[Failure, ...]): Runs that failed and have no record.
        missing (tuple[tuple[str, int], ...]): Arm and seed of the runs that have neither a record nor failed.
        differences (tuple[str, ...]): Why the runs are not comparable; empty if they are.
    """

    family: str
    command: str
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    scale: float
    overrides: tuple[str, ...]
    runs: tuple[Run, ...]
    failures: tuple[Failure, ...] = ()
    missing: tuple[tuple[str, int], ...] = ()
    differences: tuple[str, ...] = ()

    def of(self, arm: str) -> list[Run]:
        """Finished runs of an arm, by seed."""
        return [run for run in self.runs if run.arm == arm]


def load(folder: Path, allow_mixed: bool = False) -> Comparison:
    """Reads a comparison and checks that its runs differ in nothing but the arm and the seed.

    Args:
        folder (Path): Folder of the comparison.
        allow_mixed (bool): Takes runs that are not comparable, and lists in ``differences`` why they are not.

    Returns:
        Comparison: What is there; runs without a record are listed.

    Raises:
        ValueError: If the manifest or a record cannot be read, if the baseline has no finished run, or, one line for
            each difference, if the runs are not comparable.
    """
    manifest = _read(folder / MANIFEST, _Manifest)
    seeds = sorted(manifest['seeds'])
    runs, absent = [], []
    for arm in manifest['arms']:
        for seed in seeds:
            path = f'{arm}/seed{seed}/{RECORD}'
            if (folder / path).exists():
                runs.append(Run(arm, seed, path, _read(folder / path, _Record)))
            else:
                absent.append((arm, seed))
    if not any(run.arm == BASELINE for run in runs):
        raise ValueError(
            f'{folder} has no finished run of the arm {BASELINE!r}, which all others are compared with; run it first'
        )
    differences = _differences(runs)
    if differences and not allow_mixed:
        lines = [f'{folder}: {difference}' for difference in differences]
        raise ValueError('\n'.join([*lines, 'these runs are not comparable; run them anew, or allow mixed records']))
    failures = [Failure.model_validate(failure) for failure in manifest['failures']]
    failed = {(failure.arm, failure.seed): failure for failure in failures}
    return Comparison(
        family=manifest['family'],
        command=manifest['command'],
        arms=tuple(manifest['arms']),
        seeds=tuple(seeds),
        scale=manifest['scale'],
        overrides=tuple(manifest['overrides']),
        runs=tuple(runs),
        # Of a run that failed and then succeeded, only the success counts.
        failures=tuple(failed[run] for run in absent if run in failed),
        missing=tuple(run for run in absent if run not in failed),
        differences=tuple(differences),
    )


def _read(path: Path, schema: type[BaseModel]) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except OSError as error:
        raise ValueError(f'{path} cannot be read: {error.strerror}; give the output folder of a comparison') from error
    except ValueError as error:
        raise ValueError(f'{path} is damaged: {error}; delete it and run the comparison again') from error
    try:
        schema.model_validate(content)
    except ValidationError as error:
        faults = [f'{path}: {fault.path}: {fault.message}' for fault in faults_of(error, schema, content)]
        raise ValueError('\n'.join(faults)) from error
    return content


def _differences(runs: Sequence[Run]) -> list[str]:
    """Lines that name a key, two values of it, and the records that have them."""
    baseline = next(run for run in runs if run.arm == BASELINE)
    first = {run.arm: run for run in reversed(runs)}
    found: dict[tuple[str, str, str, str], list[str]] = {}
    for run in runs:
        own = _OF_AN_ARM.get(run.arm, set())
        within, between = _INCIDENTAL | own, _BETWEEN_ARMS | own
        pairs = [
            (baseline, _facts(baseline), _facts(run)),
            (baseline, _settings(baseline, between, FREEZING), _settings(run, between, FREEZING)),
            (first[run.arm], _settings(first[run.arm], within), _settings(run, within)),
        ]
        for reference, expected, actual in pairs:
            expected, actual = dict(_flat(expected)), dict(_flat(actual))
            for key in sorted(expected.keys() | actual.keys()):
                this, other = (json.dumps(side[key]) if key in side else 'absent' for side in (actual, expected))
                if this != other:
                    found.setdefault((key, this, other, reference.path), []).append(run.path)
        if run.record['seed'] != run.seed:
            key = ('seed', str(run.record['seed']), str(run.seed), 'the name of its folder')
            found.setdefault(key, []).append(run.path)
    return [
        f'{key} is {this} in {", ".join(dict.fromkeys(paths))}, but {other} in {reference}'
        for (key, this, other, reference), paths in found.items()
    ]


def _facts(run: Run) -> dict[str, Any]:
    record = run.record
    effective = {key: record['effective'][key] for key in ('device', 'world_size', 'precision')}
    return {'versions': record['versions'], 'hardware': record['hardware'], 'effective': effective}


def _settings(run: Run, free: set[str], algorithms: Sequence[str] = ()) -> dict[str, Any]:
    """A run's configuration without some of its keys and without the algorithms of some names."""
    config = {key: value for key, value in run.record['config'].items() if key not in free}
    config['algorithms'] = [entry for entry in config['algorithms'] if entry.get('name') not in algorithms]
    return {'config': config}


def _flat(value: Any, key: str = '') -> Iterator[tuple[str, Any]]:
    if isinstance(value, (dict, list)) and value:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for name, item in items:
            yield from _flat(item, f'{key}.{name}' if key else str(name))
    else:
        yield key, value


# ---------------------------------------------------------------------------------------------------------------------
# Numbers
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ArmResult:
    """The numbers of an arm with at least one finished run.

    Attributes:
        arm (str): Its name.
        freezes (bool): Whether an algorithm freezes parameters in it.
        accuracy (Summary, optional): Top-1 accuracy of the last evaluations, in ``[0, 1]``; None without evaluations.
        seconds (Summary): Training time.
        memory (Summary): Peak memory, in bytes.
        time_ratio (Ratio): Training time over the baseline's.
        measured_saving (float, optional): Share of the baseline's training time that was saved, in ``(-∞, 1)``; None
            for the baseline.
        predicted_saving (float, optional): The same, predicted from FLOPs; None if nothing is predicted.
        versus_baseline (Difference, optional): Accuracy less that of the baseline.
        versus_short (Difference, optional): Accuracy less that of the shortened baseline.
        control (str, optional): The arm without freezing that the verdict is against; None for such an arm itself.
        control_time_ratio (float, optional): Mean training time over the control's.
        difference (Difference, optional): Accuracy less that of the control.
        p_holm (float, optional): Its p-value, corrected for the number of arms that freeze.
        verdict (Verdict, optional): Of an arm that freezes.
    """

    arm: str
    freezes: bool
    accuracy: Summary | None
    seconds: Summary
    memory: Summary
    time_ratio: Ratio
    measured_saving: float | None
    predicted_saving: float | None
    versus_baseline: Difference | None = None
    versus_short: Difference | None = None
    control: str | None = None
    control_time_ratio: float | None = None
    difference: Difference | None = None
    p_holm: float | None = None
    verdict: Verdict | None = None


def accuracy(run: Run) -> float | None:
    """Top-1 accuracy of a run's last evaluation.

    Args:
        run (Run): A finished run.

    Returns:
        float, optional: In ``[0, 1]``; None if it was never evaluated.
    """
    return run.record['final'].get(_ACCURACY)


def arm_results(comparison: Comparison) -> list[ArmResult]:
    """Compares every arm with the baselines.

    The control of an arm is the slowest of the baseline and the shortened baseline that took no more time than the arm,
    or the quickest if the arm took less than both; that of an arm in :data:`SHORTENED` is always the baseline that was
    shortened to its time, if there is one. The arm *pays* if its accuracy is higher than the
    control's and it took no more time; it *does not pay* if its accuracy is lower and the control took no more time.
    Higher and lower are decided by Welch's test at 5 %, for all arms but ``freezeout`` after Holm's correction. Times
    are compared as means, of which :data:`EQUAL_TIME` is the tolerance. Everything else is *undecided*.

    Args:
        comparison (Comparison): The runs.

    Returns:
        list[ArmResult]: Arms with at least one finished run, in the comparison's order.
    """
    seconds = {arm: [run.record['training_seconds'] for run in comparison.of(arm)] for arm in comparison.arms}
    accuracies = {
        arm: [value for run in comparison.of(arm) if (value := accuracy(run)) is not None] for arm in comparison.arms
    }

    def difference(arm: str, other: str) -> Difference | None:
        known = arm != other and accuracies[arm] and accuracies.get(other)
        return welch(accuracies[arm], accuracies[other]) if known else None

    rows: list[dict[str, Any]] = []
    for arm in comparison.arms:
        runs = comparison.of(arm)
        if not runs:
            continue
        predictions = [saving for run in runs if (saving := run.record['predicted_saving']) is not None]
        time_ratio = ratio(seconds[arm], seconds[BASELINE])
        freezes = any(entry.get('name') in FREEZING for run in runs for entry in run.record['config']['algorithms'])
        row = {
            'arm': arm,
            'freezes': freezes,
            'accuracy': summary(accuracies[arm]) if accuracies[arm] else None,
            'seconds': summary(seconds[arm]),
            'memory': summary([run.record['peak_memory_bytes'] for run in runs]),
            'time_ratio': time_ratio,
            'measured_saving': None if arm == BASELINE else 1 - time_ratio.value,
            'predicted_saving': summary(predictions).mean if freezes and predictions else None,
            'versus_baseline': difference(arm, BASELINE),
            'versus_short': difference(arm, BASELINE_SHORT),
        }
        if freezes:
            row['control'] = _control(arm, seconds)
            row['control_time_ratio'] = ratio(seconds[arm], seconds[row['control']]).value
            row['difference'] = difference(arm, row['control'])
        rows.append(row)

    tested = [row for row in rows if row.get('difference') is not None and row['difference'].p is not None]
    for row, p in zip(tested, holm([row['difference'].p for row in tested]), strict=True):
        row['p_holm'] = p
    for row in rows:
        if row['freezes']:
            p = row['difference'].p if row['arm'] == FREEZEOUT and row['difference'] else row.get('p_holm')
            row['verdict'] = _verdict(row['difference'], p, row['control_time_ratio'])
    return [ArmResult(**row) for row in rows]


def best_in_the_same_time(results: Sequence[ArmResult]) -> ArmResult | None:
    """The arm that freezes with the highest mean accuracy among those that took no more time than the control.

    The control is the shortened baseline, or the baseline where there is none.

    Args:
        results (Sequence[ArmResult]): Of :func:`arm_results`.

    Returns:
        ArmResult, optional: The quicker one of two with the same accuracy; None if no arm qualifies.
    """
    means = {result.arm: result.seconds.mean for result in results}
    limit = means.get(BASELINE_SHORT, means[BASELINE]) * (1 + EQUAL_TIME)
    eligible = [r for r in results if r.freezes and r.accuracy is not None and r.seconds.mean <= limit]
    return max(eligible, key=lambda r: (r.accuracy.mean if r.accuracy else 0.0, -r.seconds.mean), default=None)


def _control(arm: str, seconds: Mapping[str, Sequence[float]]) -> str:
    own = next((short for short, source in SHORTENED.items() if source == arm and seconds.get(short)), None)
    if own is not None:
        return own
    means = {name: summary(seconds[name]).mean for name in (BASELINE, BASELINE_SHORT) if seconds.get(name)}
    limit = summary(seconds[arm]).mean * (1 + EQUAL_TIME)
    no_slower = [name for name in means if means[name] <= limit]
    return max(no_slower, key=means.__getitem__) if no_slower else min(means, key=means.__getitem__)


def _verdict(difference: Difference | None, p: float | None, time_ratio: float) -> Verdict:
    if difference is None or p is None or p >= 1 - CONFIDENCE:
        return 'undecided'
    if difference.value > 0 and time_ratio <= 1 + EQUAL_TIME:
        return 'pays'
    if difference.value < 0 and time_ratio >= 1 / (1 + EQUAL_TIME):
        return 'does not pay'
    return 'undecided'
