"""Whether the runs of a comparison differ in nothing but the arm and the seed."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from composer_freezeout.compare.arms.known import BASELINE, SHORTENED, length_of, without_freezing
from composer_freezeout.results.differences import ABSENT, differences
from composer_freezeout.results.record import Record

__all__ = ['FinishedRun', 'incomparable']

# Keys of a configuration that may differ between any two runs of an arm, between arms, and between runs of one arm.
_INCIDENTAL = {'run_name', 'output', 'overwrite', 'progress_bar', 'seed'}
_BETWEEN_ARMS = _INCIDENTAL | {'scheduler'}
# Their warm-up is shortened with them.
_OF_AN_ARM = {short: {'max_duration', 'scheduler'} for short in SHORTENED}


@dataclass(frozen=True)
class FinishedRun:
    """A finished run.

    Attributes:
        arm (str): Its arm.
        seed (int): Its seed.
        path (str): Its record, relative to the comparison's folder, with slashes.
        record (Record): What the record says.
    """

    arm: str
    seed: int
    path: str
    record: Record


def incomparable(runs: Sequence[FinishedRun]) -> list[str]:
    """What the runs differ in, besides the arm and the seed.

    Args:
        runs (Sequence[FinishedRun]): The runs; the baseline is among them.

    Returns:
        list[str]: Lines that name a key, two values of it, and the records that have them.
    """
    baseline = next(run for run in runs if run.arm == BASELINE)
    first = {run.arm: run for run in reversed(runs)}
    found: dict[tuple[str, str, str, str], list[str]] = {}
    for run in runs:
        own = _OF_AN_ARM.get(run.arm, set())
        length = {'max_duration'} if length_of(run.arm) is not None else set()
        within, between = _INCIDENTAL | own, _BETWEEN_ARMS | own | length
        pairs = [
            (baseline, _facts(baseline), _facts(run)),
            (baseline, _settings(baseline, between, True), _settings(run, between, True)),
            (first[run.arm], _settings(first[run.arm], within), _settings(run, within)),
        ]
        for reference, expected, actual in pairs:
            for key, (other, this) in sorted(differences(expected, actual).items()):
                found.setdefault((key, _text(this), _text(other), reference.path), []).append(run.path)
        if run.record.seed != run.seed:
            key = ('seed', str(run.record.seed), str(run.seed), 'the name of its folder')
            found.setdefault(key, []).append(run.path)
    return [
        f'{key} is {this} in {", ".join(dict.fromkeys(paths))}, but {other} in {reference}'
        for (key, this, other, reference), paths in found.items()
    ]


def _text(value: Any) -> str:
    return repr(value) if value is ABSENT else json.dumps(value)


def _facts(run: FinishedRun) -> dict[str, Any]:
    effective = run.record.effective.model_dump(include={'device', 'world_size', 'precision'})
    facts = {'versions': run.record.versions, 'hardware': run.record.hardware, 'effective': effective}
    return facts if run.record.metric is None else facts | {'metric': run.record.metric.name}


def _settings(run: FinishedRun, free: set[str], between_arms: bool = False) -> dict[str, Any]:
    """A run's configuration without some of its keys, and between arms without what freezes."""
    whole = without_freezing(run.record.config) if between_arms else run.record.config
    config = {key: value for key, value in whole.items() if key not in free}
    return {'config': config}
