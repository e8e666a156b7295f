"""A run that is planned, looked at: its model and units, when these freeze, and what to measure steps with."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from composer.models import ComposerModel
from torch.optim import Optimizer

from composer_freezeout.algorithm.freezeout import FreezeOut
from composer_freezeout.costs.loading import Loading
from composer_freezeout.freezing.execution.execution import Execution
from composer_freezeout.freezing.observing.partition import Partition
from composer_freezeout.freezing.observing.units import Unit
from composer_freezeout.method.schedule import freeze_stages
from composer_freezeout.method.settings import Settings

__all__ = ['Looked', 'Place', 'Schedule', 'ToMeasure', 'schedule_of']


@dataclass(frozen=True)
class Place:
    """Where steps are measured.

    Attributes:
        device (str): As torch calls it.
        precision (str): As Composer calls it.
        as_asked (bool): Whether the run is to be trained there and so.
    """

    device: str
    precision: str
    as_asked: bool

    @property
    def name(self) -> str:
        """For people."""
        return 'CPU' if self.device == 'cpu' else 'GPU'


@dataclass(frozen=True)
class ToMeasure:
    """What steps are measured with.

    Attributes:
        batch (Any): A whole batch, with the samples in front.
        make_optimizer (Callable[[Any], Optimizer]): From param groups, one per unit, to the optimizer.
        place (Place): Where.
        loading (Loading, optional): How fast batches come; None if that isn't measured.
    """

    batch: Any
    make_optimizer: Callable[[Any], Optimizer]
    place: Place
    loading: Loading | None


@dataclass(frozen=True)
class Schedule:
    """When units freeze.

    Attributes:
        times (tuple[float, ...]): Progress at which the learning rate of each unit is 0, ascending, in ``(0, 1]``.
        stages (tuple[int, ...]): Numbers of frozen units that the run passes through, ascending from 0.
    """

    times: tuple[float, ...]
    stages: tuple[int, ...]


@dataclass(frozen=True)
class Looked:
    """What was seen of a run with ``n`` units.

    Attributes:
        name (str): The run's.
        duration (str): Its length, as a Composer time string.
        batch_size (int): Samples of a step, in ``[1, ∞)``.
        batches_per_epoch (int, optional): None if it is not known.
        freezeout (FreezeOut): The algorithm.
        algorithm (int, optional): Its index in the ``algorithms`` of a YAML file; None if it isn't there.
        model (ComposerModel): The model, untrained.
        example (Any): A batch that FLOPs are counted on, two samples suffice.
        sample_shape (tuple[int, ...]): Shape of the first tensor of a sample.
        partition (Partition): The units as FreezeOut makes them.
        units (tuple[Unit, ...]): The same, with the names that their parameters have in ``model``.
        names (tuple[str, ...]): What they are called in the plan.
        learning_rates (tuple[tuple[float, ...], ...]): The optimizer's rates for each unit.
        schedule (Schedule): When they freeze.
        to_measure (ToMeasure, optional): None if nothing is measured.
        notes (tuple[str, ...]): What was assumed or left out.
    """

    name: str
    duration: str
    batch_size: int
    batches_per_epoch: int | None
    freezeout: FreezeOut
    algorithm: int | None
    model: ComposerModel
    example: Any
    sample_shape: tuple[int, ...]
    partition: Partition
    units: tuple[Unit, ...]
    names: tuple[str, ...]
    learning_rates: tuple[tuple[float, ...], ...]
    schedule: Schedule
    to_measure: ToMeasure | None
    notes: tuple[str, ...]


def schedule_of(settings: Settings, partition: Partition, execution: Execution) -> Schedule:
    """When units will freeze.

    Args:
        settings (Settings): FreezeOut's.
        partition (Partition): The units.
        execution (Execution): How the model runs.

    Returns:
        Schedule: As in training.

    Raises:
        ValueError: If there is not one of ``unit_costs`` per unit.
    """
    num_units = len(partition.units)
    stages = freeze_stages(num_units - partition.heads + 1, execution.stage_limit(settings.max_stages))
    return Schedule(settings.freeze_times(num_units, partition.heads), stages)
