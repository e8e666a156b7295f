"""The parts of the run that a plan needs, made from its YAML file."""

from typing import Any

import torch
from composer.models import ComposerModel

from composer_freezeout.algorithm.freezeout import FreezeOut
from composer_freezeout.freezing.observing.partition import Partition
from composer_freezeout.run import registry
from composer_freezeout.run.config import RunConfig
from composer_freezeout.run.faults import ConfigError, Fault
from composer_freezeout.run.predicted import partition_for
from composer_freezeout.run.registry import Bound, bind

__all__ = []


def _components(config: RunConfig, notes: list[str]) -> tuple[int | None, FreezeOut, Bound]:
    """Index of FreezeOut, FreezeOut, and the optimizer, with nothing left to complain of."""
    faults: list[Fault] = []
    bound: dict[str, Bound] = {}
    entries = [(registry.ALGORITHMS, entry, f'algorithms.{i}', 0) for i, entry in enumerate(config.algorithms)]
    for table, entry, path, positional in [*entries, (registry.OPTIMIZERS, config.optimizer, 'optimizer', 1)]:
        try:
            bound[path] = bind(table, entry, path, positional)
        except ConfigError as error:
            faults += error.faults
    ours = [index for index, entry in enumerate(config.algorithms) if entry.name == 'freezeout']
    if len(ours) > 1:
        faults.append(Fault(f'algorithms.{ours[1]}', 'FreezeOut stands more than once in `algorithms`; give it once'))
    if faults:
        raise ConfigError(faults)
    others = [entry.name for entry in config.algorithms if entry.name != 'freezeout']
    if others:
        notes.append(f'other algorithms of the file are left out of the plan: {", ".join(others)}')
    if not ours:
        freezeout = FreezeOut()
        notes.append(
            f'the file has no freezeout among its algorithms: planned with its defaults, t_0 {freezeout.settings.t_0} and '
            f'how_scale {freezeout.settings.how_scale}'
        )
        return None, freezeout, bound['optimizer']
    return ours[0], bound[f'algorithms.{ours[0]}'].build(), bound['optimizer']


def _device(config: RunConfig, notes: list[str]) -> tuple[str, str]:
    """Where to measure, as torch calls it, and in which precision."""
    if config.device != 'cpu' and torch.cuda.is_available():
        return 'cuda', config.precision
    if config.device == 'gpu' or config.precision != 'fp32':
        notes.append(
            f'the file asks for {config.precision} on a GPU, and there is none here: seconds are those of this CPU in '
            'fp32, and a GPU divides its time otherwise; run the plan there, too'
        )
    return 'cpu', 'fp32'


def _is_as_asked(config: RunConfig, device: str, precision: str) -> bool:
    return precision == config.precision and not (config.device == 'gpu' and device == 'cpu')


def _partition(model: ComposerModel, example: Any, freezeout: FreezeOut, index: int | None) -> Partition:
    try:
        return partition_for(model, example, freezeout)
    except ValueError as error:
        path = '' if index is None else f'algorithms.{index}.layers'
        raise ConfigError([Fault(path, ' '.join(str(error).split()).removeprefix('layers: '))]) from error
    except (AssertionError, RuntimeError) as error:
        shape = 'x'.join(str(length) for length in example[0].shape[1:])
        message = ' '.join(str(error).split())[:200]
        raise ConfigError([Fault('model', f'cannot be run on images of {shape}: {message}')]) from error
