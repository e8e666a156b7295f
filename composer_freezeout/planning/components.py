"""The parts of a run that its plan needs, made from the YAML file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from composer.models import ComposerModel

from composer_freezeout.algorithm.freezeout import FreezeOut
from composer_freezeout.costs.batches import map_tensors
from composer_freezeout.costs.predict import partition_for
from composer_freezeout.freezing.observing.partition import Partition
from composer_freezeout.planning.looked import Place
from composer_freezeout.run import registry
from composer_freezeout.run.config import RunConfig
from composer_freezeout.run.faults import ConfigError, Fault, units_fault
from composer_freezeout.run.registry import Bound, bind

__all__ = ['Components', 'components_of', 'partition_of', 'place_note', 'place_to_measure']


@dataclass(frozen=True)
class Components:
    """What the file names, with nothing left to complain of.

    Attributes:
        index (int, optional): Of FreezeOut in ``algorithms``; None if it isn't there.
        freezeout (FreezeOut): The algorithm, with its defaults if it isn't there.
        given (Mapping[str, Any]): Its arguments, as far as they were given.
        optimizer (Bound): To be built.
        learning_rates (tuple[float, ...]): Its learning rate.
        notes (tuple[str, ...]): What was assumed or left out.
    """

    index: int | None
    freezeout: FreezeOut
    given: Mapping[str, Any]
    optimizer: Bound
    learning_rates: tuple[float, ...]
    notes: tuple[str, ...]

    def with_head(self, head: Sequence[str] | None, notes: tuple[str, ...]) -> 'Components':
        """The same with a head, where that is known only now; None for FreezeOut's own."""
        freezeout = self.freezeout if head is None else FreezeOut(**{'head': head, **self.given})
        return replace(self, freezeout=freezeout, notes=(*self.notes, *notes))


def components_of(config: RunConfig, settings: Mapping[str, Any] | None = None) -> Components:
    """Makes FreezeOut and binds the optimizer.

    Args:
        config (RunConfig): A checked configuration.
        settings (Mapping[str, Any], optional): Arguments of FreezeOut that stand in place of those of the file.

    Returns:
        Components: Both.

    Raises:
        ConfigError: If an argument is at fault, with a fault for each.
    """
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
    # What its constructor refuses, such as a rate below 0, is told although nothing may be measured.
    optimizer = bound['optimizer'].build([torch.nn.Parameter(torch.zeros(1))])
    rates = tuple(float(group['lr']) for group in optimizer.param_groups if group.get('lr') is not None)
    others = ', '.join(entry.name for entry in config.algorithms if entry.name != 'freezeout')
    notes = [f'other algorithms of the file are left out of the plan: {others}'] if others else []
    given = dict(config.algorithms[ours[0]].arguments) if ours else {}
    freezeout = bound[f'algorithms.{ours[0]}'].build() if ours else FreezeOut()
    if settings:
        notes += _replaced(given, settings)
        given |= settings
        freezeout = FreezeOut(**given)
    elif not ours:
        notes.append(
            'the file has no freezeout among its algorithms: planned with its defaults, '
            f't_0 {freezeout.settings.t_0} and how_scale {freezeout.settings.how_scale}'
        )
    return Components(ours[0] if ours else None, freezeout, given, bound['optimizer'], rates, tuple(notes))


def _replaced(given: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    """Says which of the file's settings the plan is not for."""
    replaced = [f'{name} {given[name]}' for name in settings if name in given and given[name] != settings[name]]
    return [f"settings of the file are left out of the plan: freezeout's {', '.join(replaced)}"] if replaced else []


def place_to_measure(config: RunConfig) -> Place:
    """Chooses the device that the file asks for, or this CPU where there is none.

    Args:
        config (RunConfig): A checked configuration.

    Returns:
        Place: The device and its precision.
    """
    if config.device != 'cpu' and torch.cuda.is_available():
        return Place('cuda', config.precision, as_asked=True)
    return Place('cpu', 'fp32', as_asked=config.device != 'gpu' and config.precision == 'fp32')


def place_note(place: Place, config: RunConfig) -> tuple[str, ...]:
    """What to know of seconds that are measured there: one sentence, or nothing.

    Args:
        place (Place): The place.
        config (RunConfig): A checked configuration.
    """
    if place.as_asked:
        return ()
    return (
        f'the file asks for {config.precision} on a GPU, and there is none here: seconds are those of this CPU in '
        'fp32, and a GPU divides its time otherwise; run the plan there, too',
    )


def partition_of(model: ComposerModel, example: Any, components: Components) -> Partition:
    """The units that FreezeOut will make of the model.

    Args:
        model (ComposerModel): The model, before training.
        example (Any): A batch, two samples suffice: images ``(n, channels, height, width)`` and labels.
        components (Components): FreezeOut, and where it stands.

    Returns:
        Partition: The units.

    Raises:
        ConfigError: If ``layers`` or ``head`` doesn't fit the model, or the model can't be run on such images.
    """
    try:
        return partition_for(model, example, components.freezeout.settings)
    except ValueError as error:
        fault = units_fault(error, components.index)
        raise ConfigError([Fault('', ' '.join(str(error).split())) if fault is None else fault]) from error
    except (AssertionError, RuntimeError) as error:
        message = ' '.join(str(error).split())[:200]
        raise ConfigError([Fault('model', f'cannot be run on {_described(example)}: {message}')]) from error


def _described(batch: Any) -> str:
    """A batch in an error message."""
    shapes: list[str] = []
    map_tensors(batch, lambda tensor: shapes.append('x'.join(map(str, tensor.shape[1:]))))
    return f'{"images" if isinstance(batch, tuple) else "samples"} of {shapes[0]}'
