"""The YAML schema of a run: strict, typed, and without torch.

A file is read as YAML 1.2 (so ``5e-4`` is a number and ``12:30`` a string), ``key=value`` overrides are laid over it,
and the result is checked against :class:`RunConfig`. Everything that is wrong is reported at once, as the faults of one
:class:`ConfigError`. Arguments of components (optimizer, algorithms, …) are checked later, against the constructors
they are meant for, by :mod:`composer_freezeout.run.registry`.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidationError, model_validator

from composer_freezeout.method.presets import PRESETS, expanded
from composer_freezeout.run.data_config import DataConfig
from composer_freezeout.run.faults import ConfigError, Fault
from composer_freezeout.run.fields import Count, Duration, Interval, MicrobatchSize, RunName, Section
from composer_freezeout.run.registered import MODELS
from composer_freezeout.run.validation import faults_of
from composer_freezeout.run.yaml_files import apply_overrides, read_yaml

__all__ = ['Checkpoint', 'Component', 'ModelConfig', 'RunConfig', 'load', 'parse']


class Component(Section):
    """A part that is chosen by name; the other keys are arguments of its constructor."""

    model_config = ConfigDict(extra='allow')

    name: str

    @property
    def arguments(self) -> dict[str, Any]:
        """Every key but the name."""
        return dict(self.model_extra or {})


class ModelConfig(Component):
    """A network of :mod:`composer_freezeout.run.models`, what its weights begin with, and what of it never trains.

    A registered one gets ``num_classes`` and ``in_channels`` if they are given and it takes them.
    """

    num_classes: Annotated[int, Field(ge=2)] | None = None
    in_channels: Count = 3
    weights: str | None = None
    freeze: list[str] | None = None

    @property
    def registered(self) -> bool:
        """Whether it is a user's own."""
        return self.name in MODELS

    @property
    def known_channels(self) -> int | None:
        """Channels of its images; None where it doesn't say."""
        return None if self.registered and 'in_channels' not in self.model_fields_set else self.in_channels


class Checkpoint(Section):
    """When the state is saved to ``<output>/checkpoints``, and where training starts from."""

    interval: Interval = '1ep'
    resume: bool = False
    load_path: str | None = None
    keep: Count | None = None


class RunConfig(Section):
    """Everything that describes a run."""

    run_name: RunName
    model: ModelConfig
    train_data: DataConfig
    eval_data: DataConfig | None = None
    optimizer: Component
    scheduler: Component | None = None
    algorithms: list[Component] = Field(default_factory=list)
    callbacks: list[Component] = Field(default_factory=list)
    loggers: list[Component] = Field(default_factory=list)
    max_duration: Duration
    eval_interval: Interval = '1ep'
    train_subset_num_batches: Count | None = None
    precision: Literal['fp32', 'amp_fp16', 'amp_bf16'] = 'fp32'
    device: Literal['auto', 'cpu', 'gpu'] = 'auto'
    microbatch_size: MicrobatchSize = None
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    deterministic: bool = False
    checkpoint: Checkpoint | None = None
    output: str = ''
    overwrite: bool = False
    progress_bar: bool = True

    @model_validator(mode='after')
    def _fill_in(self) -> 'RunConfig':
        self.train_data.fill_in('train')
        if self.eval_data is not None:
            self.eval_data.fill_in('eval')
        self.algorithms = [_with_preset(entry) for entry in self.algorithms]
        self.output = self.output or str(Path('runs') / self.run_name)
        return self

    @property
    def checkpoint_folder(self) -> Path:
        """Where this run's checkpoints are."""
        return Path(self.output) / 'checkpoints'

    @property
    def latest_checkpoint(self) -> Path:
        """Where this run's last checkpoint is, if there is one; the first process writes it."""
        return self.checkpoint_folder / 'latest-rank0.pt'

    @property
    def resume(self) -> bool:
        """Whether an unfinished run in the output folder is continued."""
        return self.checkpoint is not None and self.checkpoint.resume

    @property
    def resumes_itself(self) -> bool:
        """Whether there is such a run to be continued."""
        return self.resume and self.latest_checkpoint.exists()


def _with_preset(entry: Component) -> Component:
    """FreezeOut with the settings that a preset stands for, so that all who read the configuration see the same."""
    if entry.name != 'freezeout' or entry.arguments.get('preset') not in list(PRESETS):
        return entry  # of an unknown preset, its constructor's arguments tell
    return Component(name=entry.name, **expanded(entry.arguments))


def parse(raw: dict[str, Any]) -> RunConfig:
    """Checks a configuration and fills in the defaults.

    Args:
        raw (dict[str, Any]): What the file and the command line say.

    Returns:
        RunConfig: With every default filled in.

    Raises:
        ConfigError: With one fault for each key that is wrong.
    """
    try:
        config = RunConfig.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(faults_of(error, RunConfig, raw)) from None
    faults = list(_contradictions(config))
    if faults:
        raise ConfigError(faults)
    return config


def _contradictions(config: RunConfig) -> Iterable[Fault]:
    if config.model.num_classes is None and not config.model.registered:
        yield Fault('model.num_classes', 'is missing, and has no default')
    for role, data in (('train_data', config.train_data), ('eval_data', config.eval_data)):
        if data is None:
            continue
        classes = data.number_of_classes
        if config.model.num_classes is not None and classes not in (None, config.model.num_classes):
            yield Fault(
                'model.num_classes',
                f'is {config.model.num_classes}, but {role} ({data.name}) has {classes} classes; make them equal',
            )
        channels = config.model.known_channels
        if channels is not None and data.image_channels not in (None, channels):
            yield Fault(
                'model.in_channels',
                f'is {channels}, but images of {role} ({data.name}) have {data.image_channels}; make them equal',
            )
    if config.model.weights is not None and config.checkpoint is not None and config.checkpoint.load_path is not None:
        fault = (
            'contradicts checkpoint.load_path, which brings weights, too; give the one that training is to start from'
        )
        yield Fault('model.weights', fault)
    if config.overwrite and config.resume:
        yield Fault('overwrite', 'true contradicts checkpoint.resume: true; keep the earlier run or replace it')


def load(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Reads, overrides and checks the configuration of a run.

    Args:
        path (str | Path): A YAML file.
        overrides (Sequence[str]): ``key=value`` pairs.

    Returns:
        RunConfig: The configuration.

    Raises:
        ConfigError: If anything is wrong with it.
    """
    return parse(apply_overrides(read_yaml(path), overrides))
