"""What the README promises is there: its examples run, its commands exist, its numbers are those of the records."""

import re
from functools import cache
from inspect import signature
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest

from composer_freezeout import FreezeOut
from composer_freezeout.compare.judging.comparison import Comparison, load
from composer_freezeout.compare.judging.verdict import ArmResult, arm_results
from composer_freezeout.compare.report.text import gain_text, p_sentence, p_text, points_text
from composer_freezeout.step_time.result import load_result

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / 'benchmarks' / 'results'
README = (ROOT / 'README.md').read_text(encoding='utf-8')


def test_the_examples_do_what_they_say():
    examples = re.findall(r'```python\n(.*?)```', README, re.DOTALL)
    assert 'algorithms=[FreezeOut()]' in examples[0]
    namespace: dict[str, Any] = {}
    for example in examples:
        exec(compile(example, 'README.md', 'exec'), namespace)
    units = namespace['trainer'].state.algorithms[0].unit_table()
    assert [unit['frozen'] for unit in units] == [True, True, False]
    assert namespace['freezer'].units_frozen == 0  # one unit is left, and it trains to the end


@pytest.mark.parametrize('page', ['README.md', 'CONTRIBUTING.md', 'docs/index.md', '.ci/run'])
def test_what_is_made_is_a_target(page):
    targets = re.findall(r'^(\w[\w-]*):', (ROOT / 'Makefile').read_text(encoding='utf-8'), re.MULTILINE)
    named = re.findall(r'(?:^|`)make ((?:[\w-]+ )*[\w-]+)', (ROOT / page).read_text(encoding='utf-8'), re.MULTILINE)
    assert named
    assert {target for line in named for target in line.split()} <= set(targets)


def test_the_first_screen_shows_what_it_is():
    screen = README[:1800]
    for needed in ('FreezeOut', '![', 'pip install composer-freezeout', 'make quickstart', 'make test'):
        assert needed in screen


def test_every_setting_is_described():
    for name, parameter in signature(FreezeOut).parameters.items():
        assert f'| `{name}` | `{parameter.default!r}` |' in README


# --- numbers


@cache
def comparison_of(folder: str) -> Comparison:
    return load(RESULTS / folder)


@cache
def results_of(folder: str) -> dict[str, ArmResult]:
    return {result.arm: result for result in arm_results(comparison_of(folder))}


def rows(folder: str) -> dict[str, list[str]]:
    """Of each arm, what tables show: accuracy, time, what was saved of it, gain at equal time and its p."""
    found, comparison = {}, comparison_of(folder)
    baseline = mean(run.record.training_seconds for run in comparison.of('baseline'))
    for arm, result in results_of(folder).items():
        records = [run.record for run in comparison.of(arm)]
        scores, seconds = [100 * (record.accuracy or 0) for record in records], [r.training_seconds for r in records]
        saved = '–' if arm == 'baseline' else f'{100 * (1 - mean(seconds) / baseline):.1f}'.replace('-', '−')
        gain, means = result.by_time, [f'{mean(scores):.2f} ± {stdev(scores):.2f}']
        means.append(f'{mean(seconds):.1f} ± {stdev(seconds):.1f}')
        found[arm] = [*means, saved, gain_text(gain), p_text(gain.p_holm if gain else None)]
    return found


@cache
def all_rows() -> list[dict[str, list[str]]]:
    return [rows(path.parent.name) for path in RESULTS.glob('*/comparison.json')]


@pytest.mark.parametrize(('page', 'number'), [('README.md', 8), ('docs/results.md', 108)])
def test_the_tables_show_the_records(page, number):
    found = re.findall(
        r'^\| (?:\*\*)?([\w.]+)(?:\*\*)? \| ([\d.]+ ± .*)', (ROOT / page).read_text('utf-8'), re.MULTILINE
    )
    assert len(found) == number
    for arm, cells in found:
        shown = [cell.strip() for cell in cells.split('|')][:5]
        # Other tables have predicted savings and plain differences beside the first three.
        width = 5 if ' to ' in shown[3] else 3
        assert shown[:width] in [of[arm][:width] for of in all_rows() if arm in of], arm


@pytest.mark.parametrize(('page', 'number'), [('README.md', 4), ('docs/fine_tuning.md', 8)])
def test_the_summaries_show_the_records(page, number):
    """A column for each comparison, which its heading links to, and a row for each arm."""
    text = (ROOT / page).read_text('utf-8')
    heading, *lines = re.findall(
        r'^\| (?:gain at|(?:\*\*)?[\w.]+(?:\*\*)? \| (?:[+−][\d.]+ \(p|–)).*', text, re.MULTILINE
    )
    folders = re.findall(r'benchmarks/results/([^/]+)/report\.md', heading)
    assert folders and len(lines) == number
    results = [results_of(folder) for folder in folders]
    for arm, *cells in ([cell.strip('* ') for cell in line.strip('|').split('|')] for line in lines):
        assert cells == [gain_and_p(of.get(arm)) for of in results], arm


def gain_and_p(result: ArmResult | None) -> str:
    gain = result.by_time if result else None
    return f'{points_text(gain.difference)} ({p_sentence(gain.p_holm)})' if gain and gain.difference else '–'


def test_the_share_of_a_step_that_is_left_is_the_records():
    shares = []
    for network in ('resnet20', 'resnet56', 'resnet50', 'densenet_bc', 'vit_small'):
        result = load_result(RESULTS / f'step_time-{network}-cpu-2026-11-21')
        shares.append(result.step('freezeout', result.units - 1)[0] / result.step('composer')[0])
    assert f'takes {min(shares):.0%} to {max(shares):.0%}'.replace('%', ' %') in README.replace('\n', ' ')
