"""The results of a sweep in Markdown, as a plot and as JSON."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from composer_freezeout.compare.judging.clock import WALL, Clock
from composer_freezeout.compare.judging.curve import Baselines, Curve, Run
from composer_freezeout.compare.judging.score import BY_ACCURACY, Score
from composer_freezeout.compare.report.text import (
    gain_text,
    number_text,
    p_text,
    score_text,
    summary_text,
)
from composer_freezeout.compare.sweep.results import Row
from composer_freezeout.compare.sweep.settings import Setting
from composer_freezeout.compare.sweep.verdict import verdict
from composer_freezeout.results.files import write_json, write_text
from composer_freezeout.results.stats import summary

__all__ = ['FORMAT', 'PLOT', 'RESULT', 'TABLE', 'Search', 'Trial', 'report', 'table']

FORMAT = 1

RESULT, PLOT, TABLE = 'sweep.json', 'accuracy_time.svg', 'sweep.md'


@dataclass(frozen=True)
class Trial:
    """A setting that was tried.

    Attributes:
        setting (Mapping[str, Any]): Arguments of FreezeOut.
        score (float): Mean accuracy over the choosing seeds, in ``[0, 1]``, or of what else runs are compared by.
        predicted_saving (float): Share of the FLOPs that it saves, of those with nothing frozen.
    """

    setting: Setting
    score: float
    predicted_saving: float


@dataclass(frozen=True)
class Search:
    """What was searched, as ``sweep.json`` has it.

    Attributes:
        family (str): Name of the family of configurations.
        command (str): What was typed.
        identity (Mapping[str, Any]): What must be the same for a sweep to be gone on with.
        choosing_seeds (Sequence[int]): The seeds that settings were chosen by.
        judging_seeds (Sequence[int]): The seeds that they were judged by.
        trials (Sequence[Trial]): The settings that were tried.
    """

    family: str
    command: str
    identity: Mapping[str, Any]
    choosing_seeds: Sequence[int]
    judging_seeds: Sequence[int]
    trials: Sequence[Trial]


def table(rows: Sequence[Row], clock: Clock = WALL, score: Score = BY_ACCURACY) -> str:
    """The results in Markdown.

    Args:
        rows (Sequence[Row]): Settings and baselines.
        clock (Clock): What their times are compared by.
        score (Score): What else they are compared by.

    Returns:
        str: A table, with its line breaks.
    """
    seconds = 'CPU seconds' if clock.kind == 'CPU' else 'training seconds'
    lines = [
        f'| name | setting | n | {score.name}{score.unit} | {seconds} | predicted saving, % '
        f'| gain at equal cost, {score.gain_unit} | p (Holm) |',
        '|---|---|---:|---:|---:|---:|---:|---:|',
    ]
    for row in rows:
        setting = ', '.join(f'{key}={json.dumps(value)}' for key, value in (row.setting or {}).items())
        cells = [
            row.name,
            setting or '–',
            str(len(row.seeds)),
            score_text(summary(row.scores), score),
            summary_text(summary(row.seconds), 1),
            number_text(row.predicted_saving or None, 1, 100),
            gain_text(row.gain, score),
            p_text(row.gain.p_holm if row.gain else None),
        ]
        lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines) + '\n'


def report(out: Path, search: Search, rows: Sequence[Row], clock: Clock, score: Score = BY_ACCURACY) -> str:
    """Writes the results, and draws accuracy, or what else runs are compared by, against training time.

    Args:
        out (Path): The folder.
        search (Search): What was searched.
        rows (Sequence[Row]): Settings and baselines.
        clock (Clock): What their times are compared by.
        score (Score): What else they are compared by.

    Returns:
        str: The verdict.

    Raises:
        OSError: If a file cannot be written.
    """
    from composer_freezeout.compare.report.figures.arms import Point, accuracy_against_cost
    from composer_freezeout.compare.report.figures.style import svg

    sentence = verdict({row.name: row.gain for row in rows if row.gain is not None}, clock, score=score)
    judged = [row.as_json() for row in rows]
    write_json(out / RESULT, {'format': FORMAT, **asdict(search), 'judged': judged, 'verdict': sentence})
    points = [Point(row.name, summary(row.seconds), summary(row.scores)) for row in rows]
    title = f'{search.family}: FreezeOut on judging seeds, and shortened baselines'
    curve = _curve(rows, score) if clock.decides else None
    figure = accuracy_against_cost(points, curve, f'{clock.training_time} in seconds', title, score=score)
    write_text(out / PLOT, svg(figure, title))
    write_text(out / TABLE, _page(search, sentence, table(rows, clock, score), clock, score))
    return sentence


def _curve(rows: Sequence[Row], score: Score) -> Curve | None:
    columns = [zip(row.seeds, row.seconds, row.scores, strict=True) for row in rows if row.setting is None]
    return Baselines([{seed: Run(cost, score.quality(value)) for seed, cost, value in c} for c in columns]).curve()


def _page(search: Search, sentence: str, grid: str, clock: Clock, score: Score) -> str:
    return (
        f'# Settings of FreezeOut: {search.family}\n\n{sentence}\n\n![{score.title} against training time]({PLOT})\n\n'
        f'{grid}\n'
        f'{len(search.trials)} settings were tried with the seeds {_listed(search.choosing_seeds)}, for '
        f'{score.name}{score.direction} and predicted saving. Those that no other beat, and the default, were trained '
        f'with the seeds {_listed(search.judging_seeds)}. Gain at equal cost: {_less(score)} a baseline in the same '
        f'mean {clock.training_time if clock.decides else "FLOPs"}, read off the curve through the baselines, with a '
        '95 % confidence interval; p by Student’s t over the seeds, after Holm’s correction. Mean ± standard '
        'deviation.\n\n'
        f'```\n{search.command}\n```\n'
    )


def _less(score: Score) -> str:
    return f'{score.name} less that of' if score.quality(1.0) > 0 else f'how much lower {score.name} is than that of'


def _listed(seeds: Sequence[int]) -> str:
    return f'{seeds[0]} to {seeds[-1]}' if len(seeds) > 1 else str(seeds[0])
