"""The committed results: comparable records, and a report that they regenerate."""

from pathlib import Path

import matplotlib
import pytest

from composer_freezeout.comparison import load
from composer_freezeout.report import PLOTS, outdated

ROOT = Path(__file__).parent.parent
RESULTS = sorted(path.parent for path in (ROOT / 'benchmarks' / 'results').glob('*/comparison.json'))
# Which drew the committed plots; another release may place a glyph elsewhere.
DRAWN_BY = '3.11'


def test_there_are_results():
    assert RESULTS


@pytest.mark.parametrize('folder', RESULTS, ids=lambda folder: folder.name)
def test_the_report_regenerates_to_the_byte(folder):
    stale = {path.name for path in outdated(load(folder), folder)}
    if not matplotlib.__version__.startswith(DRAWN_BY):
        stale -= {*PLOTS, 'report.html'}
    assert stale == set()


@pytest.mark.parametrize('folder', RESULTS, ids=lambda folder: folder.name)
def test_a_folder_is_named_after_family_device_and_first_day(folder):
    comparison = load(folder)
    first = min(run.record['started_at'] for run in comparison.runs)[:10]
    devices = {run.record['effective']['device'] for run in comparison.runs}
    assert {folder.name} == {f'{comparison.family}-{device}-{first}' for device in devices}
