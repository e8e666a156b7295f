"""Names, and arguments checked against signatures."""

import enum
from collections.abc import Callable, Sequence
from typing import Any, Literal

import composer.algorithms
import composer.callbacks
import composer.loggers
import composer.optim
import pytest
import torch
from composer.core import Algorithm, Callback, Time
from composer.loggers import LoggerDestination

from composer_freezeout import FreezeOut
from composer_freezeout.run.config import Component
from composer_freezeout.run.faults import ConfigError
from composer_freezeout.run.registry import ALGORITHMS, CALLBACKS, LOGGERS, OPTIMIZERS, SCHEDULERS, bind
from composer_freezeout.run.signatures import check_arguments


def component(name: str, **arguments: Any) -> Component:
    return Component.model_validate({'name': name, **arguments})


def test_every_algorithm_of_composer_has_a_name():
    classes = {getattr(composer.algorithms, name) for name in composer.algorithms.__all__}
    assert set(ALGORITHMS.values()) == {cls for cls in classes if issubclass(cls, Algorithm)} | {FreezeOut}


def test_every_callback_has_a_name():
    classes = {getattr(composer.callbacks, name) for name in composer.callbacks.__all__}
    assert all(issubclass(cls, Callback) for cls in classes)
    assert classes - set(CALLBACKS.values()) == {composer.callbacks.CheckpointSaver}


def test_every_logger_has_a_name():
    classes = {getattr(composer.loggers, name) for name in composer.loggers.__all__}
    classes = {cls for cls in classes if issubclass(cls, LoggerDestination)} - {LoggerDestination}
    own_key = {composer.loggers.ProgressBarLogger, composer.loggers.ConsoleLogger}
    assert classes - set(LOGGERS.values()) == own_key


def test_every_scheduler_has_a_name():
    names = [name for name in composer.optim.__all__ if name.endswith('Scheduler') and name != 'ComposerScheduler']
    assert {cls.__name__ for cls in SCHEDULERS.values()} == set(names)


@pytest.mark.parametrize(
    ('table', 'name', 'cls'),
    [
        (ALGORITHMS, 'freezeout', FreezeOut),
        (ALGORITHMS, 'layer_freezing', composer.algorithms.LayerFreezing),
        (ALGORITHMS, 'ema', composer.algorithms.EMA),
        (ALGORITHMS, 'label_smoothing', composer.algorithms.LabelSmoothing),
        (OPTIMIZERS, 'sgd', torch.optim.SGD),
        (OPTIMIZERS, 'adamw', torch.optim.AdamW),
        (OPTIMIZERS, 'adafactor', torch.optim.Adafactor),
        (OPTIMIZERS, 'decoupled_sgdw', composer.optim.DecoupledSGDW),
        (SCHEDULERS, 'cosine_annealing', composer.optim.CosineAnnealingScheduler),
        (SCHEDULERS, 'cosine_annealing_scheduler', composer.optim.CosineAnnealingScheduler),
        (SCHEDULERS, 'multi_step_with_warmup', composer.optim.MultiStepWithWarmupScheduler),
        (CALLBACKS, 'lr_monitor', composer.callbacks.LRMonitor),
        (CALLBACKS, 'nan_monitor', composer.callbacks.NaNMonitor),
        (LOGGERS, 'wandb', composer.loggers.WandBLogger),
        (LOGGERS, 'file_logger', composer.loggers.FileLogger),
    ],
)
def test_names(table, name, cls):
    assert table[name] is cls


@pytest.mark.parametrize('table', [ALGORITHMS, OPTIMIZERS, SCHEDULERS, CALLBACKS, LOGGERS])
def test_every_signature_can_be_read(table):
    takes_any = {'generate', 'neptune', 'neptune_logger'}
    for name in table.keys() - takes_any:
        with pytest.raises(ConfigError) as caught:
            check_arguments(table[name], {'no_such_argument': 1}, name, partial=True)
        assert [fault.path for fault in caught.value.faults] == [f'{name}.no_such_argument']


class Colour(enum.Enum):
    RED = 'red'


def made(
    positional: int,
    number: float,
    count: int = 1,
    pair: tuple[float, float] = (0.9, 0.99),
    when: str | int | Time = '1ep',
    names: Sequence[str] | None = None,
    mode: Literal['a', 'b'] = 'a',
    colour: Colour = Colour.RED,
    table: dict[str, int] | None = None,
    function: Callable[[], None] | None = None,
    anything: Any = None,
):
    return locals()


def test_what_yaml_can_give_is_passed_on_and_the_rest_filled_in():
    given, resolved = check_arguments(made, {'number': 1, 'pair': [0.5, 1], 'colour': 'red'}, 'x', positional=1)
    assert given == {'number': 1, 'pair': (0.5, 1), 'colour': Colour.RED}
    assert resolved == {
        'number': 1.0,
        'count': 1,
        'pair': [0.5, 1.0],
        'when': '1ep',
        'names': None,
        'mode': 'a',
        'colour': 'red',
        'table': None,
        'anything': None,
    }


@pytest.mark.parametrize(
    ('arguments', 'path', 'part'),
    [
        ({}, 'x.number', 'missing'),
        ({'number': 'one'}, 'x.number', "must be a valid number, got 'one' (string)"),
        ({'number': True}, 'x.number', 'got True (boolean)'),
        ({'number': 1, 'count': 1.5}, 'x.count', 'got 1.5 (number)'),
        ({'number': 1, 'cuont': 1}, 'x.cuont', "made has no argument 'cuont'; did you mean 'count'?"),
        ({'number': 1, 'pair': [1, 'b']}, 'x.pair.1', "'b' (string)"),
        ({'number': 1, 'pair': [1]}, 'x.pair.1', 'missing'),
        ({'number': 1, 'when': 'later'}, 'x.when', "'later' (string)"),
        ({'number': 1, 'names': 'abc'}, 'x.names', 'list'),
        ({'number': 1, 'names': ['a', 2]}, 'x.names.1', '2 (integer)'),
        ({'number': 1, 'mode': 'c'}, 'x.mode', "'c' (string)"),
        ({'number': 1, 'colour': 'blue'}, 'x.colour', "'blue' (string)"),
        ({'number': 1, 'table': {'a': 'b'}}, 'x.table.a', "'b' (string)"),
        ({'number': 1, 'function': 'print'}, 'x.function', 'made has no argument'),
        ({'number': 1, 'positional': 1}, 'x.positional', 'made has no argument'),
    ],
)
def test_what_does_not_fit_the_signature(arguments, path, part):
    with pytest.raises(ConfigError) as caught:
        check_arguments(made, arguments, 'x', positional=1)
    (fault,) = caught.value.faults
    assert fault.path == path
    assert part in fault.message


def test_a_union_is_one_fault():
    def scheduled(when: int | str | Time = 1): ...

    with pytest.raises(ConfigError) as caught:
        check_arguments(scheduled, {'when': 'soon'}, 'x')
    (fault,) = caught.value.faults
    assert fault.message == "must be a valid integer or a time string such as '5ep', '100ba' or '0.1dur', " + (
        "got 'soon' (string)"
    )


def test_nothing_of_the_file_is_imported_or_evaluated():
    with pytest.raises(ConfigError, match='unknown name'):
        bind(ALGORITHMS, component('composer.algorithms.EMA'), 'algorithms.0')
    with pytest.raises(ConfigError, match='no argument'):
        bind(ALGORITHMS, component('gated_linear_units', act_fn='torch.nn.functional.gelu'), 'algorithms.0')


def test_an_optimizer_is_built_with_what_the_file_says():
    bound = bind(OPTIMIZERS, component('adamw', lr=1e-3, betas=[0.8, 0.9]), 'optimizer', positional=1)
    optimizer = bound.build([torch.nn.Parameter(torch.zeros(1))])
    assert type(optimizer) is torch.optim.AdamW
    assert (optimizer.defaults['lr'], optimizer.defaults['betas']) == (1e-3, (0.8, 0.9))
    assert bound.resolved['betas'] == [0.8, 0.9] and bound.resolved['weight_decay'] == 0.01


def test_decoupled_sgdw_needs_a_learning_rate():
    with pytest.raises(ConfigError, match=r'optimizer\.lr: is missing'):
        bind(OPTIMIZERS, component('decoupled_sgdw'), 'optimizer', positional=1)


@pytest.mark.parametrize(
    ('table', 'entry', 'path'),
    [
        (ALGORITHMS, component('freezeout', t_0=0), 'x.t_0'),
        (ALGORITHMS, component('freezeout', layers=['a'], granularity='block'), 'x.layers'),
        (ALGORITHMS, component('ema', half_life='soon'), 'x'),
        (LOGGERS, component('wandb'), 'x'),  # a package that is not installed
    ],
)
def test_what_a_constructor_refuses_is_a_fault(table, entry, path):
    with pytest.raises(ConfigError) as caught:
        bind(table, entry, 'x').build()
    (fault,) = caught.value.faults
    assert fault.path == path and fault.message


def test_defaults_of_the_builder_yield_to_the_file():
    bound = bind(LOGGERS, component('tensorboard', flush_interval=7), 'loggers.0')
    logger = bound.build(log_dir='somewhere', flush_interval=8)
    assert (logger.log_dir, logger.flush_interval) == ('somewhere', 7)
