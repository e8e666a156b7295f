"""Trains every arm of a family with several seeds and compares them.

``composer-freezeout compare yamls/quickstart --out runs/quickstart``

An arm is a YAML file of the family's folder, or derived from such files: ``baseline_short`` is the baseline with its
schedule compressed into the time that ``freezeout`` took, ``baseline_short_cost_aware`` the same for
``freezeout_cost_aware``, ``layer_freezing_matched`` is Composer's LayerFreezing with ``freeze_start`` solved so that it
is predicted to save what ``freezeout`` is.

Every run is a process of its own. The runs are interleaved: all arms with the first seed, then all with the next, in an
order that moves on by one, so that a machine that slows down slows all arms down alike. The length of a shortened
baseline in a round comes from the mean times of ``baseline`` and its arm up to that round: waiting for all of them
would put all its runs at the end. So its length may differ a little between seeds; each record has its own.

What has been finished is not done again: after an interruption, the same command goes on.
"""

import argparse
import json
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from composer_freezeout.compare.arms import (
    Arm,
    Data,
    Refused,
    choose_arms,
    count,
    family_arms,
    in_order,
    read_arms,
    round_order,
    shortened,
)
from composer_freezeout.compare.comparison import BASELINE, MANIFEST, RECORD, SHORTENED, load
from composer_freezeout.compare.jobs import Job, Outcome, Runner, check_environment, finished, warm_up, write_json
from composer_freezeout.run.processes import Stopped, stoppable

FORMAT = 1
# Of the run that is thrown away.
WARM_UP_BATCHES = 5


@dataclass
class Comparison:
    """A comparison that is being run.

    Attributes:
        out (Path): Folder of the results.
        arms (Sequence[Arm]): The arms.
        data (Data): What they are trained on.
        seeds (Sequence[int]): The seeds, one for each round.
        manifest (dict[str, Any]): What ``comparison.json`` says.
        records (dict[tuple[str, int], Mapping[str, Any]]): Of the finished runs, by arm and seed.
    """

    out: Path
    arms: Sequence[Arm]
    data: Data
    seeds: Sequence[int]
    manifest: dict[str, Any]
    records: dict[tuple[str, int], Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.by_name = {arm.name: arm for arm in self.arms}

    def job(self, name: str, seed: int) -> Job:
        """The run of an arm with a seed; the duration of a shortened baseline is left to :meth:`with_duration`."""
        arm = self.by_name[name]
        free = frozenset({'max_duration', 'scheduler'}) if name in SHORTENED else frozenset()
        return Job(name, seed, arm.file, arm.overrides, self.record_path(name, seed).parent, arm.resolved, free)

    def with_duration(self, job: Job) -> Job | None:
        """Gives a shortened baseline the time that its arm took, as far as is known by now; None if nothing is."""
        batches = batches_in_the_same_time(self._of(BASELINE), self._of(SHORTENED[job.label]))
        if batches is None:
            return None
        config = self.by_name[job.label].config
        return replace(job, overrides=(*job.overrides, *shortened(config, self.data.batches_per_epoch, batches)))

    def warm_up_job(self) -> Job:
        """A few batches of the baseline, which leave nothing behind."""
        job, config = self.job(BASELINE, self.seeds[0]), self.by_name[BASELINE].config
        short = shortened(config, self.data.batches_per_epoch, WARM_UP_BATCHES)
        silent = ('loggers=[]', 'callbacks=[]', 'checkpoint=null')
        return Job('warm-up', job.seed, job.file, (*job.overrides, *short, *silent), self.out / 'warm_up', {})

    def record_path(self, name: str, seed: int) -> Path:
        """Where the record of a run is."""
        return self.out / name / f'seed{seed}' / RECORD

    @property
    def has_baseline(self) -> bool:
        """Whether there is something to compare with."""
        return bool(self._of(BASELINE))

    def schedule(self) -> list[tuple[str, int]]:
        """Arm and seed of every run, in the order in which they are run."""
        names = [arm.name for arm in self.arms]
        return [(name, seed) for number, seed in enumerate(self.seeds) for name in round_order(names, number)]

    def take_over(self) -> None:
        """Finds the finished runs.

        Raises:
            Refused: If one of them has another configuration.
        """
        records = finished(self.job(name, seed) for name, seed in self.schedule())
        self.records = {(job.label, job.seed): record for job, record in records.items()}

    def note(self, outcome: Outcome) -> None:
        """Adds what came of a run, and writes the manifest."""
        job = outcome.job
        key = {'arm': job.label, 'seed': job.seed}
        failures = [failure for failure in self.manifest['failures'] if not key.items() <= failure.items()]
        if outcome.record is None:
            failures.append({**key, 'exit_code': outcome.exit_code, 'message': outcome.message})
        else:
            self.records[job.label, job.seed] = outcome.record
        self.manifest['failures'] = failures
        self.write()

    def write(self) -> None:
        """Writes the manifest."""
        write_json(self.out / MANIFEST, self.manifest)

    def _of(self, name: str) -> list[Mapping[str, Any]]:
        return [record for (arm, _), record in self.records.items() if arm == name]


def batches_in_the_same_time(
    baseline: Sequence[Mapping[str, Any]], freezeout: Sequence[Mapping[str, Any]]
) -> int | None:
    """Batches that the baseline does in the time that FreezeOut takes.

    Args:
        baseline (Sequence[Mapping[str, Any]]): Records of the baseline.
        freezeout (Sequence[Mapping[str, Any]]): Records of FreezeOut.

    Returns:
        int, optional: In ``[1, ∞)``; None if there is no record of one of them.
    """
    if not baseline or not freezeout:
        return None
    mean, mean_freezeout = (
        sum(record['training_seconds'] for record in records) / len(records) for records in (baseline, freezeout)
    )
    return max(1, round(baseline[0]['effective']['total_batches'] * mean_freezeout / mean))


def new_manifest(
    family: Path, arms: Sequence[str], seeds: Sequence[int], scale: float, overrides: Sequence[str], command: str
) -> dict[str, Any]:
    """What ``comparison.json`` says before the first run.

    Args:
        family (Path): Folder with a YAML file per arm.
        arms (Sequence[str]): Names of the arms.
        seeds (Sequence[int]): The seeds.
        scale (float): In ``(0, 1]``.
        overrides (Sequence[str]): ``key=value`` pairs laid over every file.
        command (str): What was typed.

    Returns:
        dict[str, Any]: Its content.
    """
    return {
        'format': FORMAT,
        'family': family.resolve().name,
        'command': command,
        'arms': in_order(arms),
        'seeds': sorted(seeds),
        'scale': scale,
        'overrides': list(overrides),
        'failures': [],
    }


def merged(earlier: Mapping[str, Any], now: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Goes on with a comparison: arms and seeds are added to those that are there.

    Args:
        earlier (Mapping[str, Any]): The manifest that is there.
        now (Mapping[str, Any]): That of this command.
        path (Path): Where the first one is.

    Returns:
        dict[str, Any]: Both in one.

    Raises:
        Refused: If the two are not of the same family and scale.
    """
    lines = [
        f'{path}: the comparison that is there has {key} {earlier[key]!r}, and this one {now[key]!r}; '
        'train all again with --overwrite, or choose another --out'
        for key in ('format', 'family', 'scale')
        if earlier[key] != now[key]
    ]
    if lines:
        raise Refused(lines)
    return {
        **now,
        'arms': in_order([*earlier['arms'], *now['arms']]),
        'seeds': sorted({*earlier['seeds'], *now['seeds']}),
        'failures': list(earlier['failures']),
    }


def prepare_folder(out: Path, manifest: dict[str, Any], overwrite: bool) -> dict[str, Any]:
    """Finds out what the folder of the results holds.

    Args:
        out (Path): The folder. Nothing in it is changed.
        manifest (dict[str, Any]): That of this command.
        overwrite (bool): Whether to begin anew.

    Returns:
        dict[str, Any]: The manifest to go on with.

    Raises:
        Refused: If the folder holds something else, or another comparison.
    """
    if out.exists() and not out.is_dir():
        raise Refused([f'--out: {out} is a file; give a folder'])
    if overwrite or not out.exists():
        return manifest
    path = out / MANIFEST
    try:
        earlier = json.loads(path.read_text(encoding='utf-8'))
        return merged(earlier, manifest, path)
    except FileNotFoundError:
        if any(out.iterdir()):
            line = f'--out: {out} is not empty and holds no {MANIFEST}; choose another folder, or use --overwrite'
            raise Refused([line]) from None
        return manifest
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        line = f'{path}: not a manifest of a comparison ({error}); choose another --out, or use --overwrite'
        raise Refused([line]) from None


def run_all(comparison: Comparison, console: Console) -> int:
    """Does the runs that are not finished.

    Args:
        comparison (Comparison): What to run.
        console (Console): Where progress is told.

    Returns:
        int: How many runs have no record.
    """
    schedule = comparison.schedule()
    comparison.out.mkdir(parents=True, exist_ok=True)
    comparison.write()
    if taken_over := len(comparison.records):
        console.print(f'{taken_over} of {len(schedule)} runs are finished already.', highlight=False)
    if taken_over < len(schedule):
        console.print(f'Warming up with {WARM_UP_BATCHES} batches of the baseline.', highlight=False)
        warm_up(comparison.warm_up_job(), console)
    missing = 0
    with Runner(console, len(schedule)) as runner:
        for name, seed in schedule:
            if (record := comparison.records.get((name, seed))) is not None:
                runner.take_over(record, name)
        todo = [key for key in schedule if key not in comparison.records]
        for position, (name, seed) in enumerate(todo):
            job = comparison.job(name, seed)
            if name in SHORTENED and (job := comparison.with_duration(job)) is None:
                sources = f'{BASELINE} and {SHORTENED[name]}'
                runner.skip(name, seed, f'its length is that of {sources}, and one of them has no run')
                missing += 1
                continue
            outcome = runner.train(job, [label for label, _ in todo[position + 1 :]])
            comparison.note(outcome)
            missing += outcome.record is None
    return missing


def report(out: Path, allow_mixed: bool, console: Console) -> None:
    """Writes the report and prints the table.

    Args:
        out (Path): Folder of the results.
        allow_mixed (bool): Whether runs may differ in more than the arm.
        console (Console): Where the table goes.

    Raises:
        ValueError: If the runs cannot be compared.
    """
    # Imported here: plots and tables are needed at the end only.
    from composer_freezeout.compare.report import HTML, comparison_table, conclusion, write_report

    comparison = load(out, allow_mixed)
    write_report(comparison, out)
    console.print()
    console.print(comparison_table(comparison))
    for line in (*conclusion(comparison), f'Report: {out / HTML}'):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _scale(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f'must be a number in (0, 1], such as 0.1, got {text!r}')
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='composer-freezeout compare', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('family', type=Path, help='folder with a YAML file per arm')
    parser.add_argument('--out', type=Path, required=True, help='folder for the results; runs in it are taken over')
    parser.add_argument('--seeds', type=count, default=1, metavar='N', help="how many, from the files' seed on (1)")
    parser.add_argument('--arms', metavar='A,B,…', help='which arms (all)')
    parser.add_argument('--scale', type=_scale, default=1.0, metavar='S', help='factor on epochs and their batches (1)')
    parser.add_argument('--overwrite', action='store_true', help='train again what the folder already holds')
    parser.add_argument('--allow-mixed', action='store_true', help='go on with runs of other versions or hardware')
    parser.add_argument('overrides', nargs='*', metavar='key=value', help='laid over the file of every arm')
    return parser


def command_line(argv: Sequence[str]) -> str:
    """What to type to go on: the command without what would begin anew."""
    return shlex.join(['composer-freezeout', 'compare', *(argument for argument in argv if argument != '--overwrite')])


def main(argv: Sequence[str] | None = None) -> int:
    """Trains, compares, and prints the table and the path of the report.

    Args:
        argv (Sequence[str], optional): Command line. Default: the process's.

    Returns:
        int: 0; 1 if a run failed; 2 if the command, a file or what is in the folder is at fault; 128 and the number of
        the signal that ended it.
    """
    argv = sys.argv[1:] if argv is None else argv
    arguments = _parser().parse_intermixed_args(argv)
    command = command_line(argv)
    console = Console()
    out: Path = arguments.out
    with stoppable():
        try:
            names = choose_arms(family_arms(arguments.family), arguments.arms)
            arms, data = read_arms(arguments.family, names, arguments.overrides, arguments.scale)
            seeds = range(arms[0].config.seed, arms[0].config.seed + arguments.seeds)
            manifest = new_manifest(arguments.family, names, seeds, arguments.scale, arguments.overrides, command)
            manifest = prepare_folder(out, manifest, arguments.overwrite)
            comparison = Comparison(out, arms, data, seeds, manifest)
            if arguments.overwrite:
                _clear(comparison)
            comparison.take_over()
            if not arguments.allow_mixed:
                check_environment({comparison.record_path(*key): record for key, record in comparison.records.items()})
            for arm in arms:
                if arm.note:
                    console.print(f'{arm.name}: {arm.note}', markup=False, highlight=False, soft_wrap=True)
            # Composer has taken over SIGTERM when it was imported.
            with stoppable():
                missing = run_all(comparison, console)
            # Without it there is nothing to compare with.
            if comparison.has_baseline:
                report(out, arguments.allow_mixed, console)
        except Stopped as error:
            print(f'stopped; to go on: {command}', file=sys.stderr)
            return 128 + error.signal_number
        except Refused as error:
            print(*error.lines, sep='\n', file=sys.stderr)
            return 2
        except ValueError as error:
            print(error, file=sys.stderr)
            return 2
    if missing:
        runs = '1 run has' if missing == 1 else f'{missing} runs have'
        print(f'{runs} no record; to try again: {command}', file=sys.stderr)
    return 1 if missing else 0


def _clear(comparison: Comparison) -> None:
    for name, seed in comparison.schedule():
        shutil.rmtree(comparison.record_path(name, seed).parent, ignore_errors=True)


if __name__ == '__main__':
    sys.exit(main())
