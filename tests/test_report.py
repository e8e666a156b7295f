"""The terminal's table and the report: complete, escaped, and the same every time."""

import io
import os
import re
import subprocess
import sys
import xml.etree.ElementTree
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import matplotlib.image
import pytest
from markdown_it import MarkdownIt
from rich.console import Console

from composer_freezeout.compare.judging.comparison import Comparison, load
from composer_freezeout.compare.report import command
from composer_freezeout.compare.report.figures.learning_rates import learning_rates
from composer_freezeout.compare.report.page import outdated, render, write_report
from composer_freezeout.compare.report.sentences import conclusion
from composer_freezeout.compare.report.terminal import comparison_table
from composer_freezeout.results.record import Record

from .records import edit, folder, record

ROOT = Path(__file__).parent.parent
ARMS = {
    'baseline': [0.93, 0.931, 0.932],
    'baseline_short': [0.90, 0.901, 0.902],
    'layer_freezing': [0.91, 0.913, 0.912],
    'freezeout': [0.92, 0.923, 0.922],
}
SECONDS = {'baseline_short': 80.0, 'layer_freezing': 79.0, 'freezeout': 80.0}
PLOTS = {
    'accuracy_time.svg',
    'engagement.svg',
    'learning_curves.svg',
    'learning_curves_others.svg',
    'learning_rates.svg',
    'savings.svg',
    'step_times.svg',
    'memory.svg',
}
EVIL = '<script>alert(1)</script> | `a` *b* _c_ [d](e) "f" $g$ & \\'


class Page(HTMLParser):
    """Tags, the text of the cells of each table row, and the values of some attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.rows: list[list[str]] = []
        self.attributes: list[tuple[str, str | None]] = []
        self._in_cell = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag == 'tr':
            self.rows.append([])
        self._in_cell = self._in_cell or tag in ('td', 'th')
        if tag in ('td', 'th'):
            self.rows[-1].append('')

    def handle_endtag(self, tag):
        self._in_cell = self._in_cell and tag not in ('td', 'th')

    def handle_data(self, data):
        if self._in_cell:
            self.rows[-1][-1] += data


@pytest.fixture(scope='module')
def comparison(tmp_path_factory) -> Comparison:
    failures = [{'arm': 'freezeout', 'seed': 3, 'exit_code': 137, 'message': EVIL}]
    out = tmp_path_factory.mktemp('comparison')
    folder(out, ARMS | {'baseline': [*ARMS['baseline'], 0.93]}, SECONDS, failures=failures, scale=0.25, family=EVIL)
    for seed in range(3):
        edit(out / f'freezeout/seed{seed}/record.json', 'run_name', value=EVIL)
    return load(out)


@pytest.fixture(scope='module')
def files(comparison) -> dict[str, str]:
    return render(comparison)


@pytest.fixture(scope='module')
def pages(files) -> dict[str, Page]:
    return {
        'html': Page(files['report.html']),
        'md': Page(MarkdownIt('gfm-like', {'linkify': False}).render(files['report.md'])),
    }


def shown(comparison: Comparison, width: int = 110) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width).print(comparison_table(comparison))
    return stream.getvalue()


def cells(line: str) -> list[str]:
    """Of the table without lines between its columns; a sign or a name stays with its number."""
    return [cell.replace('_', ' ') for cell in re.sub(r'(±|\bp\b|<|=) ', r'\1_', line).split()]


# --- the terminal


def test_the_table_of_several_seeds(tmp_path):
    lines = shown(load(folder(tmp_path, ARMS, SECONDS))).splitlines()
    (number,) = [number for number, line in enumerate(lines) if cells(line)[0] == 'freezeout']
    assert cells(lines[number]) == ['freezeout', '+2.07', 'pays', '92.17', '80.0', '20.0', '20.0']
    assert lines[number + 1].split()[:3] == ['+1.78', 'to', '+2.35'] and '± 0.15' in lines[number + 1]


def test_the_table_of_one_seed_has_no_spread_and_shows_losses(tmp_path):
    text = shown(load(folder(tmp_path, {'baseline': [0.9], 'freezeout': [0.5]}, {'freezeout': 125.0})), width=80)
    (line,) = [line for line in text.splitlines() if line.startswith('freezeout')]
    assert cells(line) == ['freezeout', 'beyond', 'not', '50.00', '125.0', '−25.0', '20.0']
    assert '±' not in text


def test_the_table_fits_a_narrow_terminal(tmp_path):
    arms = ARMS | {'freezeout_squared_unscaled': [0.9, 0.901, 0.902]}
    text = shown(load(folder(tmp_path, arms, SECONDS)), width=80)
    assert max(map(len, text.splitlines())) <= 80
    assert '…' not in text and all(number in text for number in ('92.17', '± 0.15', '+2.07', '+1.78 to'))


def test_names_are_not_markup_in_the_terminal(tmp_path):
    folder(tmp_path, {'baseline': [0.9], '[red]arm[': [0.9]}, family='[b]title')
    assert '[red]arm[' in shown(load(tmp_path)) and '[b]title' in shown(load(tmp_path))


# --- the verdict in words


@pytest.mark.parametrize(
    ('accuracies', 'sentence'),
    [
        (
            [0.92, 0.923, 0.922],
            'freezeout pays: at equal training time its accuracy is 2.07 points above the baseline’s (95 % interval +',
        ),
        (
            [0.88, 0.883, 0.882],
            'freezeout does not pay: at equal training time its accuracy is 1.93 points below the baseline’s',
        ),
        ([0.89, 0.901, 0.92], 'Undecided whether freezeout pays: at equal training time its accuracy is 0.27 points'),
        ([0.92], 'Undecided whether freezeout pays: at equal training time its accuracy is 1.88 points above'),
        ([None] * 3, 'freezeout is not judged: it has no accuracies.'),
        ([], 'No verdict: freezeout has no finished run.'),
    ],
)
def test_the_first_sentence_is_the_verdict(accuracies, sentence, tmp_path):
    first = conclusion(load(folder(tmp_path, ARMS | {'freezeout': accuracies}, SECONDS)))[0]
    assert first.startswith(sentence)
    if accuracies:
        assert first.endswith('It took 20.0 % less training time than the whole baseline.')
        assert ('the interval includes zero' in first) == (len(accuracies) == 3 and first.startswith('Undecided'))
        assert ('1 seed, too few for an interval' in first) == (len(accuracies) == 1)


def test_an_arm_outside_of_the_curve_is_told_so(tmp_path):
    folder(tmp_path, ARMS, SECONDS | {'freezeout': 70.0})
    for seed in range(3):
        edit(tmp_path / f'baseline_short/seed{seed}/record.json', 'effective', 'total_batches', value=16)
    first = conclusion(load(tmp_path))[0]
    found = 'freezeout is not judged: its training time of 70.0 s is less than that of the shortest baseline (80.0 s)'
    assert first.startswith(found)
    assert 'At equal FLOPs its accuracy is 2.07 points above the baseline’s (95 % interval' in first


def test_every_arm_has_a_sentence_and_the_verdicts_are_counted(tmp_path):
    lines = conclusion(load(folder(tmp_path, ARMS, SECONDS)))
    assert lines[1] == 'Of 2 arms that freeze, 2 pay.' and lines[4].startswith('layer_freezing pays: ')
    assert lines[2].startswith('Not tried: anything but this recipe on a CPU; the arms layer_freezing_matched, ')
    few = 'The baseline was run in 2 lengths only: between them its curve is a straight line, and arms that took less '
    assert lines[3].startswith(few)
    lost = conclusion(load(folder(tmp_path / 'lost', ARMS | {'freezeout': [0.88, 0.883, 0.882]}, SECONDS)))
    assert lost[1] == 'Of 2 arms that freeze, 1 pays and 1 does not pay.'


def test_reservations(comparison, tmp_path):
    text = '\n'.join(conclusion(comparison))
    assert 'epochs and batches per epoch × 0.25' in text and '1 run failed' in text and '2 runs are not there' in text
    assert 'demonstration' not in text
    folder(tmp_path, {'baseline': [0.9], 'freezeout': [0.8]})
    edit(tmp_path / 'freezeout/seed0/record.json', 'hardware', 'threads', value=8)
    text = '\n'.join(conclusion(load(tmp_path, allow_mixed=True)))
    assert 'One seed is a demonstration' in text and 'not comparable (1 difference' in text


# --- the report


def test_everything_is_in_both_reports(comparison, pages, files):
    assert set(files) == {'report.md', 'report.html', 'summary.csv'} | PLOTS
    for page in pages.values():
        rows = [[cell.strip() for cell in row] for row in page.rows]
        (results,) = [row for row in rows if row[0] == 'freezeout' and 'pays' in row]
        assert results[1].startswith('+2.07 (+') and results[3] == 'pays' and '92.17 ± 0.15' in results
        assert rows[0][1] == 'gain at equal time, points'
        # No baseline is shorter than the whole one in batches, which sets the target.
        assert ['freezeout', 'not reached', '0 of 3'] in rows
        runs = [row for row in rows if len(row) == 10 and row[0] != 'arm']
        assert [(row[0], int(row[1])) for row in runs] == [(run.arm, run.seed) for run in comparison.runs]
        assert ['memory bytes', '17179869184 (16.0 GiB)'] in rows
        assert ['git commit', 'abc123'] in rows
    for text in (files['report.md'], files['report.html']):
        for words in ('failed with exit code 137', 'seed 3: no record', 'layer_freezing_matched, ', '× 0.25'):
            assert words in text
        assert comparison.command in text


def test_text_from_outside_is_text(pages, files):
    assert 'script' not in pages['html'].tags and 'script' not in pages['md'].tags
    assert 'em' not in pages['md'].tags and 'code' in pages['md'].tags  # the command's
    for page in pages.values():
        assert any(row[-1].strip() == EVIL for row in page.rows)
    assert '<script' not in ''.join(files.values())
    # XML that can be read, with the title as text.
    for name in PLOTS:
        xml.etree.ElementTree.fromstring(files[name])


def test_the_page_needs_no_other_file_and_no_network(pages):
    page = pages['html']
    assert not {'link', 'script', 'iframe', 'object'} & set(page.tags)
    sources = [value or '' for name, value in page.attributes if name in ('src', 'srcset')]
    # The first one has another form for narrow screens.
    assert len(sources) == len(PLOTS) + 1 and all(value.startswith('data:image/svg+xml;base64,') for value in sources)
    alternatives = [value for name, value in page.attributes if name == 'alt']
    assert len(alternatives) == len(PLOTS) and all(alternatives)


def test_links_lead_to_files(comparison, files, tmp_path):
    targets = {unquote(t) for t in re.findall(r'\]\((\S+?)\)', files['report.md']) if not t.startswith('e)')}
    assert {run.path for run in comparison.runs} <= targets and targets >= PLOTS
    hrefs = [value for name, value in Page(files['report.html']).attributes if name == 'href']
    assert hrefs == [run.path for run in comparison.runs]


def test_it_repeats_to_the_byte(comparison, files, tmp_path):
    # In another process, with other hash seeds, settings and time zone.
    code = (
        'import sys, matplotlib; matplotlib.rcParams["axes.linewidth"] = 9\n'
        'from pathlib import Path\n'
        'from composer_freezeout.compare.judging.comparison import load\n'
        'from composer_freezeout.compare.report.page import write_report\n'
        'write_report(load(Path(sys.argv[1])), Path(sys.argv[2]))\n'
    )
    out = tmp_path / 'out'
    out.mkdir()
    source = folder(tmp_path / 'in', ARMS, SECONDS)
    environment = os.environ | {'PYTHONHASHSEED': '123', 'TZ': 'Asia/Tokyo', 'SOURCE_DATE_EPOCH': '1'}
    subprocess.run([sys.executable, '-c', code, str(source), str(out)], check=True, timeout=120, env=environment)
    expected = render(load(source))
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {
        name: text.encode() for name, text in expected.items()
    }


def test_writing_removes_plots_that_are_no_more(tmp_path):
    folder(tmp_path, {'baseline': [0.9], 'freezeout': [0.8]})
    gone = {
        tmp_path / f'{name}.svg' for name in ('learning_rates', 'step_times', 'engagement', 'learning_curves_others')
    }
    for path in gone:
        path.write_text('of an earlier report')
    for key in ('units', 'segments'):
        edit(tmp_path / 'freezeout/seed0/record.json', key, value=[])
    comparison = load(tmp_path)
    names = {'report.md', 'report.html', 'summary.csv'} | PLOTS
    assert set(outdated(comparison, tmp_path)) == {tmp_path / name for name in names}
    assert set(write_report(comparison, tmp_path)) == {tmp_path / name for name in names} - gone
    assert outdated(comparison, tmp_path) == [] and not any(path.exists() for path in gone)


def test_runs_without_evaluations_still_make_a_report(tmp_path):
    files = render(load(folder(tmp_path, {'baseline': [None], 'freezeout': [None]})))
    assert 'accuracy_time.svg' not in files and 'freezeout is not judged: it has no accuracies' in files['report.md']


# --- the command


def test_the_command(tmp_path, capsys):
    assert command.main([str(tmp_path)]) == 2
    assert 'comparison.json cannot be read' in capsys.readouterr().err
    folder(tmp_path, {'baseline': [0.9], 'freezeout': [0.8]})
    assert command.main([str(tmp_path), '--check']) == 1
    assert f'{tmp_path / "report.md"} is not up to date' in capsys.readouterr().out
    assert not (tmp_path / 'report.md').exists()
    assert command.main([str(tmp_path)]) == 0
    assert command.main([str(tmp_path), '--check']) == 0
    edit(tmp_path / 'freezeout/seed0/record.json', 'hardware', 'threads', value=8)
    assert command.main([str(tmp_path)]) == 2
    assert 'hardware.threads is 8 in freezeout/seed0/record.json' in capsys.readouterr().err
    assert command.main([str(tmp_path), '--allow-mixed']) == 0
    assert 'not comparable' in (tmp_path / 'report.md').read_text()


# --- learning rates


def test_the_plot_of_learning_rates(tmp_path, refusal):
    run = Record.model_validate(record('freezeout', 0))
    learning_rates(run).savefig(tmp_path / 'plot.png', dpi=150)
    image = matplotlib.image.imread(tmp_path / 'plot.png')
    # Blue for the first unit and orange for the last, as lines and as bars.
    for colour in ((0.231, 0.510, 0.965), (0.976, 0.451, 0.086)):
        assert (abs(image[:, :, :3] - colour).max(axis=2) < 0.06).sum() > 1000
    with refusal("'family-freezeout' has no FreezeOut units"):
        learning_rates(run.model_copy(update={'units': []}))
