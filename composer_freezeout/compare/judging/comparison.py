"""The runs of a comparison, checked for being comparable, and what their numbers say about each arm.

A comparison is a folder with a manifest, ``comparison.json``, and one record per run,
``<arm>/seed<seed>/record.json``. Accuracy is that of a run's last evaluation, never the best one; time is that of
training, from the start of fit to its end without evaluations, the first batch included.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError

from composer_freezeout.compare.arms.known import BASELINE
from composer_freezeout.compare.judging.comparable import FinishedRun, incomparable
from composer_freezeout.compare.judging.manifest import Count, Failure, Manifest, Seconds, Strict
from composer_freezeout.results.files import MANIFEST, RECORD
from composer_freezeout.results.record import ACCURACY
from composer_freezeout.run.faults import faults_of

__all__ = ['Comparison', 'accuracy', 'load']


class _Config(Strict):
    algorithms: list[dict[str, Any]]


class _Effective(Strict):
    device: str
    world_size: Count
    precision: str
    batches_per_epoch: int | None
    total_batches: Count
    parameters_total: Count


class _Epoch(Strict):
    training_seconds: float
    eval: dict[str, float | None]


class _Unit(Strict):
    name: str
    t_i: float
    frozen_at_batch: int | None


class _Trace(Strict):
    batch: list[int]
    lr: dict[str, list[float | None]]


class _Segment(Strict):
    batch: int
    batches: int
    seconds: Seconds
    units_frozen: int | None
    trainable_parameters: int


class _Record(Strict):
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
    runs: tuple[FinishedRun, ...]
    failures: tuple[Failure, ...] = ()
    missing: tuple[tuple[str, int], ...] = ()
    differences: tuple[str, ...] = ()

    def of(self, arm: str) -> list[FinishedRun]:
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
    manifest = _read(folder / MANIFEST, Manifest)
    seeds = sorted(manifest['seeds'])
    runs, absent = [], []
    for arm in manifest['arms']:
        for seed in seeds:
            path = f'{arm}/seed{seed}/{RECORD}'
            if (folder / path).exists():
                runs.append(FinishedRun(arm, seed, path, _read(folder / path, _Record)))
            else:
                absent.append((arm, seed))
    if not any(run.arm == BASELINE for run in runs):
        raise ValueError(
            f'{folder} has no finished run of the arm {BASELINE!r}, which all others are compared with; run it first'
        )
    differences = incomparable(runs)
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


def accuracy(run: FinishedRun) -> float | None:
    """Top-1 accuracy of a run's last evaluation.

    Args:
        run (Run): A finished run.

    Returns:
        float, optional: In ``[0, 1]``; None if it was never evaluated.
    """
    return run.record['final'].get(ACCURACY)
