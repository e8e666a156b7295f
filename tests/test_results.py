"""The committed results: comparable records, and a report that they regenerate."""

from pathlib import Path

import matplotlib
import pytest

from composer_freezeout.compare.judging.comparison import load
from composer_freezeout.compare.report.page import outdated
from composer_freezeout.compare.report.plots import PLOTS
from composer_freezeout.step_time import report as step_report
from composer_freezeout.step_time import result as step_result

ROOT = Path(__file__).parent.parent

RESULTS = sorted(path.parent for path in (ROOT / 'benchmarks' / 'results').glob('*/comparison.json'))
STEPS = sorted(path.parent for path in (ROOT / 'benchmarks' / 'results').glob('*/step_time.json'))
# Which drew the committed plots; another release may place a glyph elsewhere.
DRAWN_BY = '3.11'


def test_there_are_results():
    assert RESULTS
    assert STEPS


@pytest.mark.parametrize('folder', RESULTS, ids=lambda folder: folder.name)
def test_the_report_regenerates_to_the_byte(folder):
    stale = {path.name for path in outdated(load(folder), folder)}
    if not matplotlib.__version__.startswith(DRAWN_BY):
        stale -= {*PLOTS, 'report.html'}
    assert stale == set()


@pytest.mark.parametrize('folder', STEPS, ids=lambda folder: folder.name)
def test_the_summary_of_steps_regenerates_to_the_byte(folder, tmp_path):
    for path in step_report.write_report(step_result.load_result(folder), tmp_path):
        if path.suffix != '.png' or matplotlib.__version__.startswith(DRAWN_BY):
            assert path.read_bytes() == (folder / path.name).read_bytes()


@pytest.mark.parametrize(
    'names',
    [
        ['resnet20', 'resnet56', 'resnet50', 'densenet_bc', 'vit_small'],
        ['resnet20_one', 'resnet20_two', 'resnet20_compiled'],
    ],
    ids='-'.join,
)
def test_the_docs_show_the_records_of_steps(names):
    folders = {folder.name.removeprefix('step_time-').rsplit('-cpu', 1)[0]: folder for folder in STEPS}
    table = step_report.side_by_side([step_result.load_result(folders[name]) for name in names])
    assert table in (ROOT / 'docs' / 'speed.md').read_text(encoding='utf-8')


@pytest.mark.parametrize('folder', RESULTS, ids=lambda folder: folder.name)
def test_a_folder_is_named_after_family_device_and_first_day(folder):
    comparison = load(folder)
    first = min(run.record.started_at for run in comparison.runs)[:10]
    devices = {run.record.effective.device for run in comparison.runs}
    # What tells apart comparisons of one day comes after it.
    assert folder.name.startswith(tuple(f'{comparison.family}-{device}-{first}' for device in devices))
