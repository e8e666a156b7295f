"""What the course of a run says: when a target was reached, and how much was frozen; the numbers for a spreadsheet."""

import csv
import io

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from composer_freezeout.compare.judging.comparison import load
from composer_freezeout.compare.judging.course import (
    backward_share,
    backward_shares,
    course,
    frozen_at_end,
    frozen_share,
    frozen_shares,
    reached,
    target,
)
from composer_freezeout.compare.judging.verdict import arm_results
from composer_freezeout.compare.report.figures.arms import Point, accuracy_against_cost
from composer_freezeout.compare.report.page import render
from composer_freezeout.compare.report.spreadsheet import summary_csv
from composer_freezeout.results.record import Record
from composer_freezeout.results.stats import summary

from .records import edit, folder, record

ARMS = {'baseline': [0.93, 0.932], 'baseline_0.5': [0.88, 0.90], 'freezeout': [0.88, 0.895]}
SECONDS = {'baseline_0.5': 55.0, 'freezeout': 80.0}


def compared(out):
    folder(out, ARMS, SECONDS)
    for seed in (0, 1):
        edit(out / f'baseline_0.5/seed{seed}/record.json', 'effective', 'total_batches', value=10)
    return load(out)


def test_the_target_is_what_the_shortest_baseline_reaches(tmp_path):
    comparison = compared(tmp_path)
    accuracy = target(comparison)
    assert accuracy == pytest.approx(0.89)
    found = {row.arm: row for row in reached(comparison, accuracy)}
    assert (found['baseline'].reached, found['baseline'].runs) == (2, 2)
    # Of two runs one has it, at its last evaluation.
    assert found['freezeout'].reached == 1
    assert found['freezeout'].seconds is not None and found['freezeout'].seconds.mean == pytest.approx(80.4)
    assert [row.seconds for row in reached(comparison, 0.99)] == [None] * 3
    assert '| not reached | 0 of 2 |' not in render(comparison)['report.md']


def test_a_target_is_reached_at_the_first_evaluation_that_has_it(tmp_path):
    comparison = compared(tmp_path)
    # The first of two evaluations, after 60 % of the time, has 30 %.
    (first, second) = course(comparison.of('baseline')[0].record, comparison.clock)
    assert first == (pytest.approx(59.7), 0.3) and second == (pytest.approx(99.5), 0.93)
    seconds = reached(comparison, 0.3)[0].seconds
    assert seconds is not None and seconds.mean == pytest.approx(60.0)


def test_frozen_shares_over_training():
    run = Record.model_validate(record('freezeout', 0))
    # After 10 of 20 batches 400 of 1,000 parameters are frozen.
    assert frozen_shares(run) == [(0.0, 0.0), (0.5, 0.4), (1.0, 0.4)]
    assert frozen_share([run]) == pytest.approx(0.2) and frozen_at_end([run]) == pytest.approx(0.4)
    without = Record.model_validate(record('freezeout', 0) | {'segments': []})
    assert frozen_shares(without) == [] and frozen_share([without]) is None and frozen_at_end([without]) is None


def test_backward_flops_are_shown_where_the_records_have_them(tmp_path):
    content = record('freezeout', 0)
    assert backward_shares(Record.model_validate(content)) == []
    known = Record.model_validate(content | {'backward_left': {'1000': 1.0, '600': 0.3}})
    assert backward_shares(known) == [(0.0, 0.0), (0.5, pytest.approx(0.7)), (1.0, pytest.approx(0.7))]
    assert backward_share([known]) == pytest.approx(0.35)
    folder(tmp_path, ARMS, SECONDS)
    assert 'backward FLOPs frozen' not in render(load(tmp_path))['report.md']
    for seed in (0, 1):
        edit(tmp_path / f'freezeout/seed{seed}/record.json', 'backward_left', value={'1000': 1.0, '600': 0.3})
    text = render(load(tmp_path))['report.md']
    assert 'backward FLOPs frozen, mean over training' in text and '| freezeout | 20.0 | 40.0 | 35.0 | 20.0 |' in text


def test_the_engagement_of_each_arm_is_in_the_report(tmp_path):
    text = render(compared(tmp_path))['report.md']
    assert '| freezeout | 20.0 | 40.0 | 20.0 | 700 ± 0 |' in text and '| baseline | 0.0 | 0.0 | – | 700 ± 0 |' in text


def test_a_spreadsheet_has_a_row_for_each_arm(tmp_path):
    results = arm_results(compared(tmp_path))
    rows = {row['arm']: row for row in csv.DictReader(io.StringIO(summary_csv(results)))}
    assert list(rows) == ['baseline', 'baseline_0.5', 'freezeout']
    row, gain = rows['freezeout'], results[2].gain
    assert gain is not None and gain.difference is not None and gain.difference.interval is not None
    assert float(row['accuracy_mean']) == pytest.approx(0.8875) and row['accuracy_n'] == '2'
    assert float(row['gain_at_equal_time']) == pytest.approx(gain.difference.value)
    assert float(row['gain_at_equal_time_low']) == pytest.approx(gain.difference.interval[0])
    assert float(row['p_holm_at_equal_time']) == pytest.approx(gain.p_holm)
    assert (row['verdict'], row['verdict_by'], row['cpu_seconds_mean']) == ('undecided', 'time', '')
    assert float(rows['baseline_0.5']['flops_of_baseline']) == 0.5 and rows['baseline']['verdict'] == ''


def test_what_only_few_need_is_folded_away(tmp_path):
    page = render(compared(tmp_path))['report.html']
    folded = page[page.index('<details>') :]
    for title in ('Runs', 'Environment', 'What the numbers mean', 'Learning rates'):
        assert f'<summary>{title}</summary>' in folded
    assert page.index('<picture>') < page.index('Gain at equal cost') < page.index('<details>')


@pytest.mark.parametrize('size', [(9.0, 5.6), (4.6, 5.2)])
def test_names_at_the_points_hide_each_other_nowhere(size):
    # As close as the arms of a comparison are.
    places = [(47.5, 53.2), (47.0, 53.1), (48.5, 53.6), (46.9, 52.8), (46.8, 53.4), (50.1, 54.0), (59.2, 56.8)]
    points = [
        Point(f'freezeout_number_{n}', summary([x - 2, x + 2]), summary([(y - 1) / 100, (y + 1) / 100]))
        for n, (x, y) in enumerate(places)
    ]
    figure = accuracy_against_cost(points, None, 'seconds', size=size)
    renderer = FigureCanvasAgg(figure).get_renderer()
    (axes,) = figure.axes
    frame = axes.get_window_extent(renderer)
    for text in axes.texts:
        text.update_positions(renderer)
    # Of the words, without the lines to their points.
    boxes = [Text.get_window_extent(text, renderer) for text in axes.texts]
    assert sorted(text.get_text() for text in axes.texts) == [point.label for point in points]
    for number, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[number + 1 :])
        assert frame.x0 <= box.x0 and box.x1 <= frame.x1
