"""The run that is planned, looked at: its model, batches and units, and when these freeze."""

from dataclasses import dataclass

from composer.models import ComposerModel
from composer.utils import reproducibility

from composer_freezeout.costs.activations import saved_bytes
from composer_freezeout.freezing.execution.find import execution_of
from composer_freezeout.freezing.observing.partition import Partition
from composer_freezeout.method.schedule import freeze_stages
from composer_freezeout.method.settings import Settings
from composer_freezeout.planning.batches import Batches, look_at_data, size_path
from composer_freezeout.planning.components import Components, Place, components_of, partition_of, place_to_measure
from composer_freezeout.run.config import RunConfig
from composer_freezeout.run.faults import ConfigError, Fault
from composer_freezeout.run.memory import check_memory
from composer_freezeout.run.models import build_model

__all__ = ['Looked', 'look_at']


@dataclass(frozen=True)
class Looked:
    """What was seen of a run with ``n`` units.

    Attributes:
        config (RunConfig): What the file says.
        components (Components): FreezeOut and the optimizer.
        model (ComposerModel): The model, untrained, on the CPU.
        place (Place): Where steps are measured.
        batches (Batches): Batches of the data.
        partition (Partition): The units.
        times (tuple[float, ...]): Progress at which the learning rate of each unit is 0, ascending, in ``(0, 1]``.
        stages (tuple[int, ...]): Numbers of frozen units that the run passes through, ascending from 0.
    """

    config: RunConfig
    components: Components
    model: ComposerModel
    place: Place
    batches: Batches
    partition: Partition
    times: tuple[float, ...]
    stages: tuple[int, ...]

    @property
    def settings(self) -> Settings:
        """Those of FreezeOut."""
        return self.components.freezeout.settings

    @property
    def batch_size(self) -> int:
        """Samples of a step."""
        return self.config.train_data.batch_size


def look_at(config: RunConfig, image_size: int | None, *, measure: bool) -> Looked:
    """Makes what the file describes, and looks at it. Nothing is trained or downloaded.

    Args:
        config (RunConfig): A checked configuration; without FreezeOut in it, FreezeOut's defaults are planned.
        image_size (int, optional): Pixels, in ``[1, ∞)``, where there are no data and the file doesn't say.
        measure (bool): Whether steps and loading are to be measured.

    Returns:
        Looked: What there is.

    Raises:
        ConfigError: If the configuration is at fault, or the model can't be run.
    """
    components = components_of(config)
    reproducibility.seed_all(config.seed)
    model = build_model(config.model)
    place = place_to_measure(config)
    batches = look_at_data(config, place.device, image_size, measure=measure)
    _check_step(model, batches, config)
    partition = partition_of(model, batches.example, components)
    settings = components.freezeout.settings
    max_stages = execution_of(model).stage_limit(settings.max_stages)
    stages = freeze_stages(len(partition.units) - partition.heads + 1, max_stages)
    try:
        times = settings.freeze_times(len(partition.units), partition.heads)
    except ValueError as error:
        # How many units there are only the model shows.
        raise ConfigError([Fault(f'algorithms.{components.index}.unit_costs', str(error))]) from error
    return Looked(config, components, model, place, batches, partition, times, tuple(stages))


def _check_step(model: ComposerModel, batches: Batches, config: RunConfig) -> None:
    samples, (_, height, width) = len(batches.example[0]), batches.image_shape
    what = f'the activations of {samples} images of {height}x{width}'
    check_memory(saved_bytes(model, batches.example), size_path(config.train_data), what, 'choose smaller images')
