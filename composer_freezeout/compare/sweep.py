"""Explores the settings of FreezeOut, and judges the best against baselines of several lengths.

``composer-freezeout sweep yamls/quickstart --trials 20 --out runs/sweep``

Optuna looks for settings with a high accuracy and a high saving on the choosing seeds. The saving is the one predicted
from FLOPs: it is the same on a busy machine, and what it leaves out shows when times are measured. The settings that no
other beats in both, and the paper's default, are then trained with the judging seeds, which no choice was made by,
next to baselines with their schedules compressed to 100, 90, 80, 70 and 60 % of the duration. A setting is worth its
while if it lies above the line through these baselines: more accurate than a baseline in the same training time.

What has been finished is not done again: after an interruption, the same command goes on.
"""

import argparse
import hashlib
import json
import re
import shlex
import shutil
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from rich.console import Console

from composer_freezeout.compare.arms import (
    Arm,
    Data,
    Refused,
    count,
    differences,
    make_arm,
    read_arms,
    round_order,
    shortened,
    total_batches,
)
from composer_freezeout.compare.comparison import BASELINE, FREEZEOUT
from composer_freezeout.compare.jobs import Job, Runner, finished, write_json
from composer_freezeout.results.stats import Summary, holm, pareto_front, summary
from composer_freezeout.run.config import ConfigError
from composer_freezeout.run.processes import Stopped, stoppable

FORMAT = 1
RESULT, STUDY, PLOT, TABLE = 'sweep.json', 'study.log', 'accuracy_time.svg', 'sweep.md'

# The paper's default, where the family's own file doesn't say otherwise.
DEFAULT = {'t_0': 0.8, 'how_scale': 'cubic', 'scale_lr': True, 'granularity': 'module', 't_warmup': '0dur'}
WARM_UPS = ('0dur', '0.03dur', '0.1dur')
LENGTHS = (100, 90, 80, 70, 60)
# Outside of the baselines' times, by more than this share, nothing is known of their line.
TOLERANCE = 0.02

Setting = Mapping[str, Any]


class Judged(NamedTuple):
    """How a setting compares with baselines in the same training time.

    Attributes:
        difference (Summary, optional): Of accuracies, one for each seed; None if the baselines took other times.
        p (float, optional): Two-sided, of the difference being 0; None with one seed, or without any spread.
    """

    difference: Summary | None
    p: float | None


def default_setting(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The setting that others are compared with: that of the family.

    Args:
        arguments (Mapping[str, Any]): What the family's file gives to FreezeOut.

    Returns:
        dict[str, Any]: Arguments of FreezeOut; the paper's where the file has none.
    """
    return {key: arguments[key] if arguments.get(key) is not None else value for key, value in DEFAULT.items()}


def suggest(trial: optuna.Trial, warm_ups: Sequence[str] = WARM_UPS) -> dict[str, Any]:
    """Draws a setting.

    Args:
        trial (optuna.Trial): A trial of Optuna's.
        warm_ups (Sequence[str]): The lengths of warm-up to choose from.

    Returns:
        dict[str, Any]: Arguments of FreezeOut.
    """
    return {
        't_0': trial.suggest_float('t_0', 0.5, 0.95, step=0.05),
        'how_scale': trial.suggest_categorical('how_scale', ['linear', 'squared', 'cubic']),
        'scale_lr': trial.suggest_categorical('scale_lr', [True, False]),
        'granularity': trial.suggest_categorical('granularity', ['module', 'block']),
        't_warmup': trial.suggest_categorical('t_warmup', list(warm_ups)),
    }


def name_of(setting: Setting) -> str:
    """A short name for a setting, the same in every sweep.

    Args:
        setting (Mapping[str, Any]): Arguments of FreezeOut.

    Returns:
        str: What names its folder and its point of a plot.
    """
    digest = hashlib.sha256(json.dumps(setting, sort_keys=True).encode()).hexdigest()
    return f'{setting["how_scale"]}-{setting["t_0"]:g}-{digest[:6]}'


def above_the_line(
    seconds: float, accuracies: Sequence[float], times: Sequence[float], lines: Sequence[Sequence[float]]
) -> Summary | None:
    """Compares a setting with the line through the baselines of several lengths.

    For each seed the accuracy of a baseline in the setting's time is read off that seed's line, between its points.
    Times are means over the seeds: that a single run was held up by something else says nothing of a setting.

    Args:
        seconds (float): Mean training time of the setting.
        accuracies (Sequence[float]): Its accuracies, shape ``(seeds,)``, in ``[0, 1]``.
        times (Sequence[float]): Mean training times of the baselines, shape ``(lengths,)``.
        lines (Sequence[Sequence[float]]): Their accuracies, shape ``(seeds, lengths)``.

    Returns:
        Summary, optional: Accuracy less that on the line; None if the time is outside of the line's, or without seeds.
    """
    if not accuracies or not min(times) * (1 - TOLERANCE) <= seconds <= max(times) * (1 + TOLERANCE):
        return None
    order = np.argsort(times)
    ordered = np.asarray(times)[order]
    return summary(
        [
            accuracy - float(np.interp(seconds, ordered, np.asarray(line)[order]))
            for accuracy, line in zip(accuracies, lines, strict=True)
        ]
    )


def p_value(difference: Summary) -> float | None:
    """Probability of a mean as far from 0 as this one, if there were no difference (Student's t test).

    Args:
        difference (Summary): Differences of pairs.

    Returns:
        float, optional: In ``[0, 1]``; None with one pair, or without spread.
    """
    if not difference.std:
        return None
    from scipy.stats import t

    statistic = difference.mean / (difference.std / difference.n**0.5)
    return float(2 * t.sf(abs(statistic), difference.n - 1))


def verdict(judged: Mapping[str, Judged], level: float = 0.05) -> str:
    """Says whether any setting lies above the baselines' line.

    Args:
        judged (Mapping[str, Judged]): By name of the setting.
        level (float): Of the tests, corrected for their number by Holm's method; in ``(0, 1)``.

    Returns:
        str: A sentence.
    """
    compared = {name: found.difference for name, found in judged.items() if found.difference is not None}
    if not compared:
        return "No setting can be judged: none has finished runs with training times in the range of the baselines'."
    best = max(compared, key=lambda name: compared[name].mean)
    lead = f'the best, {best}, is {100 * compared[best].mean:+.2f} points from it (mean of {compared[best].n} seeds)'
    tested = [(name, found.p) for name, found in judged.items() if found.p is not None]
    if not tested:
        return f"Whether a setting lies above the baselines' line cannot be told without spread; {lead}."
    adjusted = holm([p for _, p in tested])
    sure = {name for (name, _), p in zip(tested, adjusted, strict=True) if p < level}
    above = sorted(name for name in sure if compared[name].mean > 0)
    corrected = (
        f'at the {100 * level:g} % level, corrected for {len(tested)} comparison{"s" if len(tested) > 1 else ""}'
    )
    if above:
        names = ', '.join(above)
        return f"Above the baselines' line: {len(above)} of {len(compared)} settings ({names}), {corrected}; {lead}."
    below = sum(compared[name].mean < 0 for name in sure)
    return (
        f"No setting is shown to lie above the baselines' line {corrected} ({below} of {len(compared)} lie below it, "
        f'the others are undecided); {lead}.'
    )


# ---------------------------------------------------------------------------------------------------------------------
# Running
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class Sweep:
    """A sweep that is being run.

    Attributes:
        out (Path): Folder of the results.
        baseline (Arm): The arm without freezing.
        freezeout (Arm): The arm whose settings are explored.
        data (Data): What they are trained on.
        console (Console): Where progress is told.
    """

    out: Path
    baseline: Arm
    freezeout: Arm
    data: Data
    console: Console

    def __post_init__(self) -> None:
        self.index = next(i for i, e in enumerate(self.freezeout.config.algorithms) if e.name == 'freezeout')
        self.default = default_setting(self.freezeout.config.algorithms[self.index].arguments)
        self.warm_ups = tuple(dict.fromkeys([*WARM_UPS, self.default['t_warmup']]))

    def setting_arm(self, setting: Setting) -> Arm:
        """The arm with FreezeOut of other settings."""
        own = tuple(f'algorithms.{self.index}.{key}={json.dumps(value)}' for key, value in setting.items())
        return make_arm(name_of(setting), self.freezeout.file, (*self.freezeout.overrides, *own))

    def baseline_arm(self, percent: int) -> Arm:
        """The baseline, compressed to a share of its duration."""
        per_epoch = self.data.batches_per_epoch
        batches = max(1, round(total_batches(self.baseline.config, per_epoch) * percent / 100))
        own = shortened(self.baseline.config, per_epoch, batches)
        return make_arm(f'{BASELINE}-{percent}', self.baseline.file, (*self.baseline.overrides, *own))

    def job(self, arm: Arm, seed: int) -> Job:
        """The run of an arm with a seed."""
        return Job(arm.name, seed, arm.file, arm.overrides, self.out / arm.name / f'seed{seed}', arm.resolved)

    def explore(self, trials: int, seeds: Sequence[int], budget: float | None) -> optuna.Study:
        """Looks for settings with a high accuracy and a high saving.

        Args:
            trials (int): How many settings are tried, in ``[1, ∞)``.
            seeds (Sequence[int]): The choosing seeds.
            budget (float, optional): Seconds after which no further setting is tried.

        Returns:
            optuna.Study: The trials.
        """
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(self.out / STUDY))),
            study_name='freezeout',
            directions=['maximize', 'maximize'],
            load_if_exists=True,
        )
        # After an interruption another seed: the draws of the first one have been made.
        study.sampler = optuna.samplers.TPESampler(seed=self.baseline.config.seed + len(study.trials))
        for trial in study.get_trials(states=(TrialState.RUNNING,)):
            # Of an interrupted sweep. Its runs are taken over when the setting is tried again.
            study.tell(trial.number, state=TrialState.FAIL)
            if trial.params:
                study.enqueue_trial(trial.params)
        if not study.trials:
            study.enqueue_trial(self.default)
        begun, over = time.monotonic(), len(_completed(study)) + len(_given_up(study))
        with Runner(self.console, trials * len(seeds)) as runner:
            runner.done = over * len(seeds)
            for number in range(over, trials):
                if budget is not None and time.monotonic() - begun > budget:
                    runner.say(f'The budget is spent after {number} of {trials} settings.')
                    break
                trial = study.ask()
                self._try(study, trial, seeds, runner, (trials - number) * len(seeds))
        return study

    def _try(self, study: optuna.Study, trial: optuna.Trial, seeds: Sequence[int], runner: Runner, left: int) -> None:
        setting = suggest(trial, self.warm_ups)
        jobs = [self.job(self.setting_arm(setting), seed) for seed in seeds]
        records: dict[int, Mapping[str, Any]] = {job.seed: record for job, record in finished(jobs).items()}
        for position, job in enumerate(jobs):
            if job.seed in records:
                runner.take_over(records[job.seed], 'setting')
                continue
            pending = ['setting'] * (left - position - 1)
            outcome = runner.train(job, pending, kind='setting')
            if outcome.record is None:
                # A setting that diverges or doesn't suit the model is out.
                trial.set_user_attr('failure', outcome.message)
                study.tell(trial, state=TrialState.FAIL)
                runner.done += len(jobs) - position - 1
                return
            records[job.seed] = outcome.record
        values = [
            (record['final']['MulticlassAccuracy'], record['predicted_saving'] or 0.0) for record in records.values()
        ]
        study.tell(trial, [float(np.mean(column)) for column in zip(*values, strict=True)])

    def judge(self, settings: Sequence[Setting], seeds: Sequence[int]) -> dict[str, dict[int, Mapping[str, Any]]]:
        """Trains settings and baselines of several lengths with the judging seeds, interleaved.

        Args:
            settings (Sequence[Mapping[str, Any]]): The settings.
            seeds (Sequence[int]): The judging seeds.

        Returns:
            dict[str, dict[int, Mapping[str, Any]]]: Records by name and seed.
        """
        arms = {
            arm.name: arm for arm in [*map(self.baseline_arm, LENGTHS), *(self.setting_arm(item) for item in settings)]
        }
        schedule = [(name, seed) for n, seed in enumerate(seeds) for name in round_order(list(arms), n)]
        jobs = [self.job(arms[name], seed) for name, seed in schedule]
        done = finished(jobs)
        records: dict[str, dict[int, Mapping[str, Any]]] = {name: {} for name in arms}
        with Runner(self.console, len(jobs)) as runner:
            for job, record in done.items():
                records[job.label][job.seed] = record
                runner.take_over(record, job.label)
            todo = [job for job in jobs if job not in done]
            for position, job in enumerate(todo):
                outcome = runner.train(job, [other.label for other in todo[position + 1 :]])
                if outcome.record is not None:
                    records[job.label][job.seed] = outcome.record
        return records


def _completed(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    return study.get_trials(states=(TrialState.COMPLETE,))


def _given_up(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    return [trial for trial in study.get_trials(states=(TrialState.FAIL,)) if 'failure' in trial.user_attrs]


def chosen(trials: Iterable[tuple[Setting, Sequence[float]]], keep: int, default: Setting) -> list[Setting]:
    """The settings that are judged: those that no other beats in accuracy and saving, and the default.

    Args:
        trials (Iterable[tuple[Mapping[str, Any], Sequence[float]]]): Settings, with accuracy and saving.
        keep (int): At most so many besides the default, evenly spread over the front; in ``[1, ∞)``.
        default (Mapping[str, Any]): The default.

    Returns:
        list[Mapping[str, Any]]: By rising saving, the default first.
    """
    unique = {name_of(setting): (setting, values) for setting, values in trials}
    settings = [setting for setting, _ in unique.values()]
    values = [values for _, values in unique.values()]
    # A front of costs and gains: the saving is a negative cost.
    front = pareto_front([-saving for _, saving in values], [accuracy for accuracy, _ in values])[::-1]
    places = sorted({round(place) for place in np.linspace(0, len(front) - 1, min(keep, len(front)))})
    found = [settings[front[place]] for place in places]
    return [default, *(setting for setting in found if setting != default)]


# ---------------------------------------------------------------------------------------------------------------------
# Results
# ---------------------------------------------------------------------------------------------------------------------


def results(
    settings: Sequence[Setting], records: Mapping[str, Mapping[int, Mapping[str, Any]]]
) -> tuple[list[dict[str, Any]], dict[str, Judged]]:
    """What the judging seeds say.

    Args:
        settings (Sequence[Mapping[str, Any]]): The settings.
        records (Mapping[str, Mapping[int, Mapping[str, Any]]]): Of settings and baselines, by name and seed.

    Returns:
        tuple[list[dict[str, Any]], dict[str, Judged]]: A row for each that has a run, and each setting's comparison.
    """
    by_name = {name_of(setting): setting for setting in settings}
    rows, judged = [], {}
    for name, runs in records.items():
        if not runs:
            continue
        seconds, accuracies = zip(*(_measured(runs[seed]) for seed in sorted(runs)), strict=True)
        row = {
            'name': name,
            'setting': by_name.get(name),
            'seeds': sorted(runs),
            'accuracies': accuracies,
            'seconds': seconds,
            'predicted_saving': next(iter(runs.values()))['predicted_saving'],
        }
        if name in by_name:
            difference = _compared(runs, [records[f'{BASELINE}-{percent}'] for percent in LENGTHS])
            judged[name] = Judged(difference, difference and p_value(difference))
            row |= {'difference': difference and asdict(difference), 'p': judged[name].p}
        rows.append(row)
    return rows, judged


def _compared(
    runs: Mapping[int, Mapping[str, Any]], baselines: Sequence[Mapping[int, Mapping[str, Any]]]
) -> Summary | None:
    """A setting with the baselines, of the seeds that all of them have."""
    seeds = sorted(seed for seed in runs if all(seed in baseline for baseline in baselines))
    if not seeds:
        return None

    def mean_time(found: Mapping[int, Mapping[str, Any]]) -> float:
        return summary([_measured(found[seed])[0] for seed in seeds]).mean

    return above_the_line(
        mean_time(runs),
        [_measured(runs[seed])[1] for seed in seeds],
        [mean_time(baseline) for baseline in baselines],
        [[_measured(baseline[seed])[1] for baseline in baselines] for seed in seeds],
    )


def _measured(record: Mapping[str, Any]) -> tuple[float, float]:
    return record['training_seconds'], record['final']['MulticlassAccuracy']


def table(rows: Sequence[Mapping[str, Any]], judged: Mapping[str, Judged]) -> str:
    """The results in Markdown.

    Args:
        rows (Sequence[Mapping[str, Any]]): Of :func:`results`.
        judged (Mapping[str, Judged]): Of :func:`results`.

    Returns:
        str: A table, with its line breaks.
    """
    lines = [
        '| name | setting | n | accuracy % | training seconds | predicted saving % | points above the line | p |',
        '|---|---|---:|---:|---:|---:|---:|---:|',
    ]
    for row in rows:
        setting = ', '.join(f'{key}={json.dumps(value)}' for key, value in (row['setting'] or {}).items())
        found = judged.get(row['name'], Judged(None, None))
        cells = [
            row['name'],
            setting or '–',
            str(len(row['seeds'])),
            _spread(summary(row['accuracies']), 100, 2),
            _spread(summary(row['seconds']), 1, 1),
            f'{100 * row["predicted_saving"]:.1f}' if row['predicted_saving'] else '–',
            _difference(found.difference),
            '–' if found.p is None else f'{found.p:.3f}',
        ]
        lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines) + '\n'


def _spread(found: Summary, factor: float, digits: int) -> str:
    mean = f'{factor * found.mean:.{digits}f}'
    return mean if found.std is None else f'{mean} ± {factor * found.std:.{digits}f}'


def _difference(found: Summary | None) -> str:
    if found is None:
        return '–'
    low_high = '' if found.interval is None else ' [{:+.2f}, {:+.2f}]'.format(*(100 * end for end in found.interval))
    return f'{100 * found.mean:+.2f}{low_high}'


def report(out: Path, result: Mapping[str, Any], judged: Mapping[str, Judged]) -> str:
    """Writes the results, and draws accuracy against training time.

    Args:
        out (Path): The folder.
        result (Mapping[str, Any]): What ``sweep.json`` says.
        judged (Mapping[str, Judged]): Of :func:`results`.

    Returns:
        str: The verdict.
    """
    from composer_freezeout.compare.plots import Point, accuracy_against_time, svg

    rows, sentence = result['judged'], verdict(judged)
    write_json(out / RESULT, {**result, 'verdict': sentence})
    points = [Point(row['name'], summary(row['seconds']), summary(row['accuracies'])) for row in rows]
    line = [f'{BASELINE}-{percent}' for percent in LENGTHS]
    title = f'{result["family"]}: FreezeOut on judging seeds, and shortened baselines'
    (out / PLOT).write_text(svg(accuracy_against_time(points, line, title), title), encoding='utf-8')
    text = (
        f'# Settings of FreezeOut: {result["family"]}\n\n{sentence}\n\n![Accuracy against training time]({PLOT})\n\n'
        f'{table(rows, judged)}\n'
        f'{len(result["trials"])} settings were tried with the seeds {_listed(result["choosing_seeds"])}, for '
        'accuracy and predicted saving. Those that no other beat, and the default, were trained with the seeds '
        f'{_listed(result["judging_seeds"])}. Points above the line: accuracy less that of a baseline in the same '
        'mean training time, read off between the baselines of the same seed, with a 95 % confidence interval; p by a '
        f'paired t test, not corrected. Mean ± standard deviation.\n\n```\n{result["command"]}\n```\n'
    )
    (out / TABLE).write_text(text, encoding='utf-8')
    return sentence


def _listed(seeds: Sequence[int]) -> str:
    return f'{seeds[0]} to {seeds[-1]}' if len(seeds) > 1 else str(seeds[0])


# ---------------------------------------------------------------------------------------------------------------------
# Command line
# ---------------------------------------------------------------------------------------------------------------------


def duration(text: str) -> float:
    """Reads a length of time.

    Args:
        text (str): A number with ``s``, ``m`` or ``h``, such as ``30m``.

    Returns:
        float: Seconds, above 0.

    Raises:
        argparse.ArgumentTypeError: If it is something else.
    """
    match = re.fullmatch(r'(\d+(?:\.\d+)?)([smh])', text)
    seconds = float(match[1]) * {'s': 1, 'm': 60, 'h': 3600}[match[2]] if match else 0.0
    if not seconds:
        raise argparse.ArgumentTypeError(f"must be a time above 0 such as '90s', '30m' or '2h', got {text!r}")
    return seconds


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='composer-freezeout sweep', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('family', type=Path, help='folder with baseline.yaml and freezeout.yaml')
    parser.add_argument('--out', type=Path, required=True, help='folder for the results; runs in it are taken over')
    parser.add_argument('--trials', type=count, default=20, metavar='N', help='settings that are tried (20)')
    parser.add_argument(
        '--choose-seeds', type=count, default=2, metavar='N', help='seeds that settings are chosen by (2)'
    )
    parser.add_argument('--judge-seeds', type=partial(count, least=2), default=5, metavar='N', help='other seeds (5)')
    parser.add_argument('--keep', type=count, default=4, metavar='N', help='settings to judge besides the default (4)')
    parser.add_argument('--budget', type=duration, metavar='TIME', help="how long new settings are tried: '30m', '2h'")
    parser.add_argument('--overwrite', action='store_true', help='begin anew')
    parser.add_argument('overrides', nargs='*', metavar='key=value', help='laid over both files')
    return parser


def identity(baseline: Arm, freezeout: Arm, seeds: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """What must be the same for a sweep to be gone on with.

    Args:
        baseline (Arm): The arm without freezing.
        freezeout (Arm): The arm whose settings are explored.
        seeds (Mapping[str, Sequence[int]]): Choosing and judging seeds.

    Returns:
        dict[str, Any]: As JSON can hold it.
    """
    return json.loads(json.dumps({'configs': [baseline.resolved, freezeout.resolved], **seeds}))


def prepare_folder(out: Path, now: Mapping[str, Any], overwrite: bool) -> None:
    """Makes the folder of the results, if it isn't there.

    Args:
        out (Path): The folder.
        now (Mapping[str, Any]): Of :func:`identity`.
        overwrite (bool): Whether to remove what an earlier sweep has left.

    Raises:
        Refused: If it holds something else, or another sweep.
    """
    path = out / RESULT
    if out.exists() and not out.is_dir():
        raise Refused([f'--out: {out} is a file; give a folder'])
    if out.exists() and any(out.iterdir()):
        try:
            earlier = json.loads(path.read_text(encoding='utf-8'))['identity']
        except (OSError, ValueError, KeyError, TypeError):
            raise Refused([f'--out: {out} is not empty and holds no sweep; choose another folder']) from None
        if overwrite:
            shutil.rmtree(out)
        elif changed := differences(earlier, dict(now)):
            key, (there, here) = next(iter(changed.items()))
            remedy = 'use --overwrite or another --out'
            raise Refused([f'{path}: {key} is {there!r} in this sweep and would be {here!r} now; {remedy}'])
    out.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        write_json(path, {'format': FORMAT, 'identity': now})


def main(argv: Sequence[str] | None = None) -> int:
    """Explores, judges, and prints the verdict and where the results are.

    Args:
        argv (Sequence[str], optional): Command line. Default: the process's.

    Returns:
        int: 0; 1 if there is nothing to judge by; 2 if the command, a file or what is in the folder is at fault; 128
        and the number of the signal that ended it.
    """
    argv = sys.argv[1:] if argv is None else argv
    arguments = _parser().parse_intermixed_args(argv)
    command = shlex.join(['composer-freezeout', 'sweep', *(argument for argument in argv if argument != '--overwrite')])
    console = Console()
    try:
        (baseline, freezeout), data = read_arms(arguments.family, [BASELINE, FREEZEOUT], arguments.overrides, 1.0)
        first = baseline.config.seed
        seeds = {
            'choosing_seeds': list(range(first, first + arguments.choose_seeds)),
            'judging_seeds': list(
                range(first + arguments.choose_seeds, first + arguments.choose_seeds + arguments.judge_seeds)
            ),
        }
        now = identity(baseline, freezeout, seeds)
        prepare_folder(arguments.out, now, arguments.overwrite)
        sweep = Sweep(arguments.out, baseline, freezeout, data, console)
        # Composer takes over SIGTERM when it is imported, and that has happened.
        with stoppable():
            study = sweep.explore(arguments.trials, seeds['choosing_seeds'], arguments.budget)
            trials = [(trial.params, trial.values) for trial in _completed(study)]
            settings = chosen(trials, arguments.keep, sweep.default)
            rows, judged = results(settings, sweep.judge(settings, seeds['judging_seeds']))
        result = {
            'format': FORMAT,
            'family': arguments.family.resolve().name,
            'command': command,
            'identity': now,
            **seeds,
            'trials': [
                {'setting': setting, 'accuracy': accuracy, 'predicted_saving': saving}
                for setting, (accuracy, saving) in trials
            ],
            'judged': rows,
        }
        if not rows:
            print('no run has a record; their logs are in the folders of the settings', file=sys.stderr)
            return 1
        sentence = report(arguments.out, result, judged)
    except Stopped as error:
        print(f'stopped; to go on: {command}', file=sys.stderr)
        return 128 + error.signal_number
    except Refused as error:
        print(*error.lines, sep='\n', file=sys.stderr)
        return 2
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    console.print(f'{sentence}\nTable and plot: {arguments.out / TABLE}', markup=False, highlight=False, soft_wrap=True)
    return 0


if __name__ == '__main__':
    sys.exit(main())
