"""What FreezeOut puts into a checkpoint, and what it makes sure of before it uses one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.optim import Optimizer

from composer_freezeout.freezing.observing.partition import Partition
from composer_freezeout.freezing.observing.units import Unit
from composer_freezeout.freezing.prefix.pairs import Known
from composer_freezeout.freezing.prefix.starvation import Gradients
from composer_freezeout.method.allocation import COST_SHIFT

__all__ = ['ADOPT', 'Saved', 'check_same_settings']

# How a user of Composer says that a checkpoint's settings don't count.
ADOPT = "load_ignore_keys=['state/algorithms']"

# Settings that came later, with the values that say what there was before.
_LATER = {'unit_costs': None, 'cost_shift': COST_SHIFT, 'head': None, 'anneal': None}


@dataclass(frozen=True)
class Saved:
    """How far freezing had come.

    Attributes:
        partition (Partition): The units.
        frozen_at (tuple[int, ...]): Batches trained before each frozen unit froze, one per frozen unit.
        units_removed (int): How many of them had left the optimizer, in ``[0, len(frozen_at)]``.
        folding (Known): What has been observed of frozen BatchNorm layers.
        gradients (Gradients): Which parameters had a gradient before anything froze.
        groups_added (tuple[int, ...]): Indices of the optimizer's param groups that were added while training.
        own_values (Sequence[Sequence[Any]]): What param groups hold that others of the same origin don't.
    """

    partition: Partition
    frozen_at: tuple[int, ...]
    units_removed: int
    folding: Known = field(default_factory=Known)
    gradients: Gradients = field(default_factory=Gradients)
    groups_added: tuple[int, ...] = ()
    own_values: Sequence[Sequence[Any]] = ()

    def state_dict(self) -> dict[str, Any]:
        """As plain lists and numbers."""
        return {
            'units': [[unit.name, list(unit.parameters), list(unit.norms)] for unit in self.partition.units],
            'cuts': list(self.partition.cuts),
            'heads': self.partition.heads,
            'frozen_at': list(self.frozen_at),
            'units_removed': self.units_removed,
            'fused': [dict(self.folding.norm_of), list(self.folding.apart)],
            'gradients': list(self.gradients),
            'groups_added': list(self.groups_added),
            'own_values': [list(values) for values in self.own_values],
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> 'Saved':
        """Reads what :meth:`state_dict` wrote.

        Raises:
            ValueError: If it contradicts itself.
        """
        try:
            units = tuple(Unit(name, tuple(parameters), tuple(norms)) for name, parameters, norms in state['units'])
            partition = Partition(units, tuple(state['cuts']), state.get('heads', 1))
            norm_of, apart = state.get('fused', ({}, ()))
            folding = Known(dict(norm_of), tuple(apart))
            gradients = Gradients(*state.get('gradients', ()))
            added, own = tuple(state.get('groups_added', ())), state.get('own_values', ())
            saved = cls(partition, tuple(state['frozen_at']), state['units_removed'], folding, gradients, added, own)
            parameters = [name for unit in units for name in unit.parameters]
            if (
                len(saved.partition.cuts) == len(units) + 1
                and len(set(parameters)) == len(parameters)
                and 0 <= saved.units_removed <= len(saved.frozen_at) <= len(units) - partition.heads < len(units)
            ):
                return saved
        except (KeyError, TypeError, ValueError):
            pass
        raise ValueError(
            "the checkpoint's FreezeOut units contradict themselves, so it is damaged; load another one, or use "
            'load_weights_only=True to start a new schedule from its weights'
        )

    def check_fit(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Checks that the units are those of a model in which nothing else is frozen.

        Args:
            model (nn.Module): The model.
            optimizer (Optimizer): Its optimizer, with the groups that were added while training.

        Raises:
            ValueError: If a parameter or a module is missing on either side.
        """
        groups = [group for index, group in enumerate(optimizer.param_groups) if index in self.groups_added]
        added = {id(parameter) for group in groups for parameter in group['params']}
        # A model that has been copied in the middle of a run shows its frozen parameters as such.
        frozen = {name for unit in self.partition.units[: len(self.frozen_at)] for name in unit.parameters}
        parameters = {
            name for name, p in model.named_parameters() if name in frozen or (p.requires_grad and id(p) not in added)
        }
        modules = {name for name, _ in model.named_modules()}
        saved = {name for unit in self.partition.units for name in unit.parameters}
        norms = [name for unit in self.partition.units for name in unit.norms]
        norms += [name for pair in self.folding.norm_of.items() for name in pair]
        norms += self.folding.apart
        unknown = sorted(saved - parameters) + [name for name in norms if name not in modules]
        if unknown or parameters != saved:
            raise ValueError(
                "the checkpoint's FreezeOut units don't fit the model: parameters only in the checkpoint "
                f'{unknown[:3]}, only in the model {sorted(parameters - saved)[:3]}; build the same model, or use '
                'load_weights_only=True'
            )


def check_same_settings(saved: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Checks that a checkpoint was made with the settings of now.

    One that doesn't mention a setting that came later was made with its default; what else it doesn't mention isn't
    compared.

    Args:
        saved (Mapping[str, Any]): Settings in the checkpoint.
        current (Mapping[str, Any]): Settings of the run.

    Raises:
        ValueError: If one differs.
    """
    saved = {**_LATER, **saved} if saved else {}
    for name, value in current.items():
        if (before := saved.get(name, value)) != value:
            raise ValueError(
                f'the checkpoint was made with FreezeOut({name}={before!r}), not {name}={value!r}; use the same '
                f'value, or adopt the new one with {ADOPT}'
            )
