"""What a measurement of steps leaves behind: one typed value for who writes it and who reads it."""

from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from composer_freezeout.results.record import Git, OpenMP

__all__ = [
    'FORMAT',
    'VARIANTS',
    'Conditions',
    'Environment',
    'Hardware',
    'Measurement',
    'Row',
    'UnitSize',
    'VariantName',
    'Versions',
]

FORMAT = 1
VariantName = Literal['loop', 'bound', 'freezeout', 'layer_freezing', 'composer']
VARIANTS: tuple[VariantName, ...] = get_args(VariantName)
_FREEZING = tuple(variant for variant in VARIANTS if variant != 'composer')
# What is counted of each step in any case.
_COUNTED = {'operators', 'optimizer_operators', 'peak_memory_bytes'}

Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra='ignore', allow_inf_nan=False, frozen=True)


class Conditions(_Part):
    """What was asked for.

    Attributes:
        model (str): Name of the model.
        batch_size (int): Images of a batch, in each process.
        image_size (int): In pixels.
        num_classes (int): Classes of the images.
        device (str): ``cpu`` or ``gpu``.
        processes (int): How many trained together.
        precision (str): Composer's name of it.
        channels_last (bool): Memory format of images and weights.
        compile (str, optional): Backend of ``torch.compile``; None for eager execution.
        optimizer (str): Name of the optimizer.
        seed (int): Of weights, images and the order of turns.
    """

    model: str
    batch_size: Count
    image_size: Count
    num_classes: Count
    device: Literal['cpu', 'gpu']
    processes: Count = 1
    precision: str
    channels_last: bool
    compile: str | None
    optimizer: str
    seed: int


class Hardware(_Part):
    """The machine; other keys that the record has are for people.

    Attributes:
        cpu (str): Its processor.
        threads (int): Threads of torch in a process.
        gpu (str, optional): Its GPU.
    """

    model_config = ConfigDict(extra='allow')

    cpu: str
    threads: Count
    gpu: str | None


class Versions(_Part):
    """Versions of what matters most; other keys that the record has are for people.

    Attributes:
        torch (str): Of torch.
        composer (str): Of Composer.
    """

    model_config = ConfigDict(extra='allow')

    torch: str
    composer: str


class Environment(_Part):
    """What a measurement was made with.

    Attributes:
        versions (Versions): Of Python and of packages.
        hardware (Hardware): The machine.
        git (Git, optional): The checkout that the package was installed from; None if it was from none.
        openmp (OpenMP, optional): How threads waited; None in records that do not have it.
    """

    versions: Versions
    hardware: Hardware
    git: Git | None
    openmp: OpenMP | None = None


class UnitSize(_Part):
    """A unit of FreezeOut.

    Attributes:
        name (str): Its name.
        parameters (int): Number of its parameters.
    """

    name: str
    parameters: Natural


class Row(_Part):
    """A variant of a step with some units frozen.

    Attributes:
        variant (str): Its name.
        units_frozen (int): How many units.
        counts (dict[str, int]): What was counted of the step.
        seconds (list[list[list[float]]]): Of each step, by restart and round.
        norms_folded (int, optional): BatchNorms that have been folded into a convolution; None where none could be.
        norms_unfolded (int, optional): Those of the inference graph that have not.
        layers_frozen (int, optional): Layers that LayerFreezing has frozen; None for other variants.
        algorithm_seconds (list[float], optional): Python time of FreezeOut in each step; None for other variants.
        algorithm_seconds_alone (list[float], optional): The same with nothing computed in between.
    """

    variant: VariantName
    units_frozen: Natural
    counts: dict[str, Natural]
    seconds: list[list[list[Annotated[float, Field(gt=0)]]]]
    norms_folded: Natural | None = None
    norms_unfolded: Natural | None = None
    layers_frozen: Natural | None = None
    algorithm_seconds: Annotated[list[Seconds], Field(min_length=1)] | None = None
    algorithm_seconds_alone: Annotated[list[Seconds], Field(min_length=1)] | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Restarts, rounds of each, and steps of each round."""
        return len(self.seconds), len(self.seconds[0]), len(self.seconds[0][0])

    @model_validator(mode='after')
    def _is_whole(self) -> 'Row':
        rounds = {len(restart) for restart in self.seconds}
        steps = {len(of_round) for restart in self.seconds for of_round in restart}
        if len(rounds) != 1 or len(steps) != 1 or 0 in rounds | steps:
            raise ValueError('seconds must hold as many rounds for each restart, and as many steps for each round')
        needed = {
            'bound': ('norms_folded', 'norms_unfolded'),
            'freezeout': ('algorithm_seconds', 'algorithm_seconds_alone'),
        }
        missing = [name for name in needed.get(self.variant, ()) if getattr(self, name) is None]
        if missing:
            raise ValueError(f'{missing[0]} is missing of {self.variant}')
        return self


class Measurement(_Part):
    """What ``step_time.json`` holds.

    Attributes:
        format (int): :data:`FORMAT`.
        command (str): What to type to do the same again.
        settings (Conditions): What was asked for.
        environment (Environment): What it was made with.
        units (list[UnitSize]): The units that FreezeOut makes of the model, first to freeze first.
        memory_kept (bool): Whether the C library was told to keep freed memory.
        eager_saving (float, optional): What FreezeOut saves over a run in the record of ``--eager``; None without one.
        one_saving (float, optional): The same of ``--one``.
        rows (list[Row]): Each variant at each number of frozen units.
        graphs_while_timed (int): Graphs that were compiled during timed rounds.
    """

    format: Literal[1]
    command: str
    settings: Conditions
    environment: Environment
    units: Annotated[list[UnitSize], Field(min_length=1)]
    memory_kept: bool
    eager_saving: float | None = None
    one_saving: float | None = None
    rows: Annotated[list[Row], Field(min_length=1)]
    graphs_while_timed: Natural

    @model_validator(mode='after')
    def _has_every_variant(self) -> 'Measurement':
        found = {(row.variant, row.units_frozen) for row in self.rows}
        measured = sorted({frozen for variant, frozen in found if variant != 'composer'})
        expected = [('composer', 0), *((variant, frozen) for variant in _FREEZING for frozen in measured)]
        missing = [f'{variant} with {frozen} frozen' for variant, frozen in expected if (variant, frozen) not in found]
        if not measured or missing:
            raise ValueError(f'rows: {(missing or ["every variant that freezes"])[0]} is missing')
        if measured[-1] >= len(self.units):
            raise ValueError(f'rows: {measured[-1]} of {len(self.units)} units cannot be frozen')
        counted = _COUNTED | ({'bytes_allreduced'} if self.settings.processes > 1 else set())
        for row in self.rows:
            if not counted <= row.counts.keys() or row.counts.keys() != self.rows[0].counts.keys():
                raise ValueError(f'rows: counts of {row.variant} with {row.units_frozen} frozen are incomplete')
            if row.shape != self.rows[0].shape:
                raise ValueError(
                    f'rows: {row.variant} with {row.units_frozen} units frozen has other steps than the first'
                )
        return self
