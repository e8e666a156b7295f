"""What a user sees: messages where Composer's own are, rates where they are plotted, what was found and what froze."""

import logging
import posixpath
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from composer import Callback
from composer.core import State
from composer.loggers import ConsoleLogger, InMemoryLogger, Logger, ProgressBarLogger

from composer_freezeout import FreezeOut
from composer_freezeout.algorithm.messages import follow_composer
from composer_freezeout.algorithm.metrics import name_for_mlflow

from .training import classifier, trainer

SCRIPT = """
import logging, sys
from composer_freezeout import FreezeOut
from tests.training import classifier, trainer
{before}
trainer(classifier(), [FreezeOut(0.5)], **{arguments}).fit()
"""


def printed(before: str = '', **arguments: Any) -> str:
    """What a training in a process of its own prints."""
    script = SCRIPT.format(before=before, arguments=arguments)
    done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, check=True, timeout=300)
    return done.stdout + done.stderr


def lines(text: str) -> list[str]:
    return re.findall(r'FreezeOut (?:found|froze) .*', text)


# --- messages


@pytest.mark.parametrize(
    ('before', 'arguments'),
    [
        ('', {'python_log_level': 'info'}),
        pytest.param('logging.basicConfig(level="INFO")', {'python_log_level': 'info'}, marks=pytest.mark.slow),
        (
            'logger = logging.getLogger("composer"); logger.setLevel("INFO"); logger.propagate = False\n'
            'logger.addHandler(logging.StreamHandler())',
            {},
        ),
    ],
)
def test_messages_appear_once_where_composers_do(before, arguments):
    found = lines(printed(before, **arguments))
    assert [line.split()[1] for line in found] == ['found', 'froze', 'froze', 'froze', 'froze']
    assert found[0].startswith(
        "FreezeOut found 4 units for SGD; 'module.conv1' freezes first, at 12.5% of the training; 'module.conv3' last, "
    )
    assert found[1] == 'FreezeOut froze module.conv1 at progress 0.1250'
    assert found[-1].startswith(
        "FreezeOut froze 3 of 4 units: 'module.conv1' after 2, 'module.conv2' after 5, 'module.conv3' after 10 of "
        '16 batches'
    )


@pytest.mark.parametrize(
    ('before', 'arguments'),
    [
        pytest.param('', {}, marks=pytest.mark.slow),
        ('logging.getLogger("composer_freezeout").setLevel("WARNING")', {'python_log_level': 'info'}),
    ],
)
def test_messages_are_not_forced_on_those_who_want_none(before, arguments):
    assert lines(printed(before, **arguments)) == []


@pytest.fixture
def loggers() -> Iterator[tuple[logging.Logger, logging.Logger]]:
    """Ours and Composer's, with nothing configured; put back as they were."""
    both = logging.getLogger('composer_freezeout'), logging.getLogger('composer')
    before = [(logger.level, logger.handlers[:], logger.propagate) for logger in both]
    for logger in both:
        logger.setLevel(logging.NOTSET)
        logger.handlers, logger.propagate = [], True
    yield both
    for logger, (level, handlers, propagate) in zip(both, before, strict=True):
        logger.setLevel(level)
        logger.handlers, logger.propagate = handlers, propagate


def test_a_handler_of_our_own_logger_is_not_joined_by_others(loggers):
    ours, theirs = loggers
    own = logging.NullHandler()
    ours.addHandler(own)
    theirs.addHandler(logging.NullHandler())
    follow_composer()
    assert ours.handlers == [own]


def test_a_logger_that_was_silenced_stays_silent(loggers):
    ours, theirs = loggers
    ours.propagate = False
    theirs.addHandler(logging.NullHandler())
    follow_composer()
    assert not ours.handlers and not ours.propagate


def test_the_level_follows_that_of_the_latest_trainer_until_the_user_sets_one(loggers):
    ours, theirs = loggers
    for level in (logging.DEBUG, logging.INFO, logging.NOTSET):
        theirs.setLevel(level)
        follow_composer()
        assert ours.level == level
    ours.setLevel(logging.ERROR)
    theirs.setLevel(logging.INFO)
    follow_composer()
    assert ours.level == logging.ERROR


def test_importing_configures_nothing():
    code = (
        'import logging, composer_freezeout.algorithm; ours = logging.getLogger("composer_freezeout"); '
        'assert (ours.level, ours.handlers, ours.propagate) == (0, [], True)'
    )
    subprocess.run([sys.executable, '-c', code], check=True, timeout=120)


def told(caplog: Any, *arguments: Any, **others: Any) -> list[str]:
    with caplog.at_level(logging.INFO, 'composer_freezeout'):
        trainer(classifier(), [FreezeOut(*arguments, **others)]).fit()
    return [message for message in caplog.messages if message.startswith('FreezeOut')]


def test_nothing_to_freeze_is_said(caplog):
    first, last = told(caplog, 1.0)
    assert first == 'FreezeOut found 4 units for SGD; nothing freezes before the end.'
    assert last == 'FreezeOut froze none of 4 units in 16 batches.'


def test_units_that_freeze_together_are_told_at_the_point_where_they_do(caplog):
    first, *_, last = told(caplog, 0.5, max_stages=1)
    assert "; 'module.conv1' freezes first, at 57.9% of the training; " in first and 'last' not in first
    assert "'module.conv1' after 10, 'module.conv2' after 10, 'module.conv3' after 10 of 16 batches" in last


def test_the_saving_that_a_training_is_lengthened_by_is_told(caplog):
    lengthens, first, *_, last = told(caplog, 0.5, const_time=True)
    saving = re.search(r'predicted to save ([\d.]+)% of the FLOPs', first)
    assert saving is not None and saving[0] in last
    batches = int(re.search(r'to (\d+)ba', lengthens)[1])  # pyright: ignore[reportOptionalSubscript]
    assert 1 - 16 / batches == pytest.approx(float(saving[1]) / 100, abs=0.02)


# --- metrics


class Bars(Callback):
    """What the progress bar shows at the end of each batch."""

    def __init__(self) -> None:
        self.shown: list[str] = []

    def batch_end(self, state: State, logger: Logger) -> None:
        for bar in (d for d in logger.destinations if isinstance(d, ProgressBarLogger)):
            assert bar.train_pbar is not None
            self.shown.append(bar.train_pbar.pbar.postfix or '')


def test_the_progress_bar_shows_behind_the_loss_how_many_units_are_frozen():
    bars = Bars()
    trainer(classifier(), [FreezeOut(0.5)], callbacks=[bars], progress_bar=True).fit()
    assert re.fullmatch(r'loss/train/total=[\d.]+, frozen=3/4', bars.shown[-1])
    assert re.fullmatch(r'loss/train/total=[\d.]+, frozen=0/4', bars.shown[1])


def test_rates_go_to_where_they_are_plotted_and_not_to_the_console(capsys):
    memory = InMemoryLogger()
    trainer(classifier(), [FreezeOut(0.5)], loggers=[memory], log_to_console=True, console_log_interval='1ba').fit()
    out = ''.join(capsys.readouterr())
    assert 'freezeout/units_frozen: 3' in out and 'loss/train/total' in out
    assert 'freezeout/lr' not in out
    rates = [name for name in memory.data if name.startswith('freezeout/lr/')]
    assert len(rates) == 4 and all(len(memory.data[name]) == 16 for name in rates)


def test_a_unit_named_after_a_loss_does_not_crowd_the_progress_bar():
    bars = Bars()
    layers = ['module.(conv|bn)1|loss/train', 'module.(conv|bn)2', 'module.(conv|bn)3', 'module.head']
    trainer(classifier(), [FreezeOut(0.5, layers=layers)], callbacks=[bars], progress_bar=True).fit()
    assert all(shown.count('=') <= 2 for shown in bars.shown)


@pytest.mark.parametrize('name', ['module.layer1.0.conv1', 'module.head/group0', 'block_2-a'])
def test_ordinary_names_stay_as_they_are(name):
    assert name_for_mlflow(f'freezeout/lr/{name}') == f'freezeout/lr/{name}'


def test_mlflow_takes_every_name_and_different_ones_stay_different():
    units = [
        '^conv[12]',
        '^conv(12)',
        r'layer\d+\.0',
        'a|b',
        'a:b',
        '.',
        '..',
        '',
        'a/',
        'a//b',
        '/a',
        './a',
        '$',
        'é+',
    ]
    names = [name_for_mlflow(f'freezeout/lr/{unit}') for unit in units]
    for name in names:  # what MLflow asks of the name of a metric
        assert re.fullmatch(r'[/\w.\- ]*', name) and posixpath.normpath(name) == name
    assert len(set(names)) == len(units)


def test_mlflow_itself_takes_them(tmp_path):
    mlflow = pytest.importorskip('mlflow')
    from composer.loggers import MLFlowLogger

    uri = f'sqlite:///{tmp_path / "mlflow.db"}'
    logger = MLFlowLogger(experiment_name='test', tracking_uri=uri, log_system_metrics=False, synchronous=True)
    layers = ['module.(conv|bn)[1]', 'module.(conv|bn)(2|x)', 'module.(conv|bn)3', 'module.head']
    trainer(classifier(), [FreezeOut(0.5, layers=layers)], loggers=[logger]).fit()
    (run,) = mlflow.tracking.MlflowClient(uri).search_runs([logger._experiment_id])
    assert sum(name.startswith('freezeout/lr/') for name in run.data.metrics) == 4


def test_console_loggers_are_still_what_composer_prints_with():
    # If Composer prints by another class, rates are back on the console.
    assert {type(d) for d in trainer(classifier(), [], log_to_console=True).logger.destinations} == {ConsoleLogger}
