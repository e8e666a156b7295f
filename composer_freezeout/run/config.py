"""The YAML schema of a run: strict, typed, and without torch.

A file is read as YAML 1.2 (so ``5e-4`` is a number and ``12:30`` a string), ``key=value`` overrides are laid over it,
and the result is checked against :class:`RunConfig`. Everything that is wrong is reported at once, as the faults of one
:class:`ConfigError`. Arguments of components (optimizer, algorithms, …) are checked later, against the constructors
they are meant for, by :mod:`composer_freezeout.run.registry`.
"""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

__all__ = [
    'Augment',
    'Checkpoint',
    'Cifar10',
    'Cifar100',
    'Component',
    'ConfigError',
    'DataConfig',
    'Digits',
    'Fault',
    'ImageFolder',
    'ModelConfig',
    'RunConfig',
    'Streaming',
    'Synthetic',
    'apply_overrides',
    'describe',
    'faults_of',
    'load',
    'parse',
    'read_yaml',
    'suggest',
]

COMMAND_LINE = 'command line'


class Fault(NamedTuple):
    """One thing that is wrong.

    Args:
        path (str): Dotted path of the key, empty for the file as a whole.
        message (str): What is wrong, with the value and what is allowed.
    """

    path: str
    message: str


class ConfigError(ValueError):
    """A run cannot be started because of what its configuration says.

    Args:
        faults (Iterable[Fault]): At least one fault.
    """

    def __init__(self, faults: Iterable[Fault]):
        self.faults = tuple(faults)
        super().__init__('\n'.join(f'{path}: {message}' if path else message for path, message in self.faults))


def _nearest(name: str, valid: Iterable[str]) -> str | None:
    near = difflib.get_close_matches(str(name), sorted(valid), n=1, cutoff=0.5)
    return near[0] if near else None


def suggest(name: str, valid: Iterable[str]) -> str:
    """Names the valid name nearest to a wrong one, or all of them if none is near.

    Args:
        name (str): The wrong name.
        valid (Iterable[str]): The right ones.

    Returns:
        str: The end of an error message.
    """
    valid = sorted(valid)
    near = _nearest(name, valid)
    if near:
        return f'did you mean {near!r}?'
    return f'valid: {", ".join(valid)}' if valid else 'it takes none'


# ---------------------------------------------------------------------------------------------------------------------
# Types of single values
# ---------------------------------------------------------------------------------------------------------------------


def _duration(value: str) -> str:
    if not re.fullmatch(r'0*[1-9]\d*(ep|ba|sp|tok)', value):
        raise ValueError(
            "must be a whole number above 0 with a unit: '20ep' (epochs), '500ba' (batches), 'sp' or 'tok'"
        )
    return value


def _interval(value: str) -> str:
    if re.fullmatch(r'0?\.\d*[1-9]\d*dur|1(\.0*)?dur', value):
        return value
    try:
        return _duration(value)
    except ValueError:
        raise ValueError("must be like '1ep' (epochs), '100ba' (batches), or '0.1dur' (share of the run)") from None


def _time_string(value: object) -> object:
    # A bare number would be taken as epochs by Composer; which unit is meant should be readable in the file.
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        raise ValueError(f"needs a unit: '{value}ep' (epochs) or '{value}ba' (batches)")
    return value


def _size(value: str) -> str:
    if not re.fullmatch(r'0*[1-9]\d*(kb|mb|gb|tb)', value):
        raise ValueError("must be a whole number above 0 with a unit: '500mb', '200gb' or '1tb'")
    return value


def _microbatch_size(value: object) -> object:
    if value is None or value == 'auto' or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value
    raise ValueError("must be a whole number above 0, 'auto' or null")


def _run_name(value: str) -> str:
    if not re.fullmatch(r'[A-Za-z0-9][A-Za-z0-9._-]*', value):
        raise ValueError("must consist of letters, digits, '.', '_' and '-': it names the output folder")
    return value


Duration = Annotated[str, AfterValidator(_duration), BeforeValidator(_time_string)]
Interval = Annotated[str, AfterValidator(_interval), BeforeValidator(_time_string)]
Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]


class _Section(BaseModel):
    model_config = ConfigDict(extra='forbid', strict=True, allow_inf_nan=False)


# ---------------------------------------------------------------------------------------------------------------------
# Sections
# ---------------------------------------------------------------------------------------------------------------------


class Component(_Section):
    """A part that is chosen by name; the other keys are arguments of its constructor."""

    model_config = ConfigDict(extra='allow')

    name: str

    @property
    def arguments(self) -> dict[str, Any]:
        """Every key but the name."""
        return dict(self.model_extra or {})


class ModelConfig(Component):
    """A network of :mod:`composer_freezeout.run.models`."""

    num_classes: Annotated[int, Field(ge=2)]
    in_channels: Count = 3


class Augment(_Section):
    """Random changes to training images: zero padding and a crop of the old size, and a horizontal flip."""

    crop_padding: Natural = 0
    flip: bool = False


class _Data(_Section):
    """What all data sets share. Keys left out are filled in by the role, train or eval."""

    batch_size: Count
    shuffle: bool | None = None
    drop_last: bool | None = None
    num_workers: Natural = 0
    augment: Augment | None = None

    num_classes_known: ClassVar[int | None] = None
    channels_known: ClassVar[int | None] = None
    eval_split: ClassVar[str] = 'test'
    train_augment: ClassVar[Augment | None] = None

    def fill_in(self, role: Literal['train', 'eval']) -> None:
        """Sets the keys that were left out to what is usual for the role."""
        train = role == 'train'
        defaults = {
            'split': 'train' if train else self.eval_split,
            'shuffle': train,
            'drop_last': train,
            'augment': self.train_augment if train else None,
        }
        for key, value in defaults.items():
            # Only `augment: null` means something by itself: do not augment.
            if key not in self.model_fields_set or (getattr(self, key) is None and key != 'augment'):
                setattr(self, key, value)

    @property
    def classes(self) -> int | None:
        """Number of classes, where the name tells it."""
        return self.num_classes_known

    @property
    def image_channels(self) -> int | None:
        """Channels of an image, where the configuration tells them."""
        return self.channels_known


class _TrainTest(_Data):
    split: Literal['train', 'test'] | None = None


class _Cifar(_TrainTest):
    root: str = 'data'

    channels_known: ClassVar[int | None] = 3
    train_augment: ClassVar[Augment | None] = Augment(crop_padding=4, flip=True)


class Cifar10(_Cifar):
    """CIFAR-10, downloaded to ``root`` where there is a network."""

    name: Literal['cifar10']
    num_classes_known: ClassVar[int | None] = 10


class Cifar100(_Cifar):
    """CIFAR-100, downloaded to ``root`` where there is a network."""

    name: Literal['cifar100']
    num_classes_known: ClassVar[int | None] = 100


class Digits(_TrainTest):
    """Scikit-learn's handwritten digits (1,797 images of 8x8), scaled up to ``image_size``."""

    name: Literal['digits']
    image_size: Annotated[int, Field(ge=8, le=512)] = 8
    channels: Literal[1, 3] = 1

    num_classes_known: ClassVar[int | None] = 10

    @property
    def image_channels(self) -> int:
        """Channels of an image."""
        return self.channels


class _ImageFiles(_Data):
    """Images of any size: a random part (training) or the centre (evaluation) is resized to ``image_size``."""

    image_size: Annotated[int, Field(ge=8)] | None = None
    mean: Annotated[list[Annotated[float, Field(ge=0, le=1)]], Field(min_length=3, max_length=3)] = [
        0.485,
        0.456,
        0.406,
    ]
    std: Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=3, max_length=3)] = [0.229, 0.224, 0.225]

    channels_known: ClassVar[int | None] = 3
    eval_split: ClassVar[str] = 'val'
    train_augment: ClassVar[Augment | None] = Augment(flip=True)

    def _check_resizing(self, where: str, instead: str = '') -> None:
        if self.augment is not None and self.augment.crop_padding:
            raise ValueError(
                f'augment.crop_padding={self.augment.crop_padding} has no meaning {where} '
                f'(a random part of the image is resized instead); remove it {instead}'.rstrip()
            )
        if self.image_size is None:
            self.image_size = 224


class ImageFolder(_ImageFiles):
    """Images in ``root/split/<class>/``, decoded once into memory (``cache``) or every time they are needed."""

    name: Literal['image_folder']
    root: str
    split: str | None = None
    cache: bool = False

    @model_validator(mode='after')
    def _check_cache(self) -> 'ImageFolder':
        if self.cache and self.image_size is not None:
            raise ValueError(
                'image_size has no meaning with cache: true (images keep their size); remove one of the two'
            )
        if not self.cache:
            self._check_resizing('with cache: false', 'or set cache: true')
        return self


class Streaming(_ImageFiles):
    """Images in MDS shards in ``remote/split``, fetched to ``local/split`` while they are needed.

    Their columns are those that MosaicML's ``streaming.vision`` writes: ``x`` (the image) and ``y`` (the class).
    """

    name: Literal['streaming']
    local: str
    remote: str | None = None
    split: str | None = None
    cache_limit: Annotated[str, AfterValidator(_size)] | None = None
    predownload: Count | None = None
    num_canonical_nodes: Count | None = None
    download_retry: Natural = 2
    download_timeout: Annotated[float, Field(gt=0)] = 60

    @model_validator(mode='after')
    def _check(self) -> 'Streaming':
        self._check_resizing('here')
        return self


class Synthetic(_TrainTest):
    """Random images and labels from a seed, for measuring throughput."""

    name: Literal['synthetic']
    num_samples: Count = 1024
    image_size: Count = 32
    channels: Count = 3
    num_classes: Annotated[int, Field(ge=2)] = 10
    seed: Natural = 0

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.num_classes

    @property
    def image_channels(self) -> int:
        """Channels of an image."""
        return self.channels


DataConfig = Annotated[Cifar10 | Cifar100 | Digits | ImageFolder | Streaming | Synthetic, Field(discriminator='name')]


class Checkpoint(_Section):
    """When the state is saved to ``<output>/checkpoints``, and where training starts from."""

    interval: Interval = '1ep'
    resume: bool = False
    load_path: str | None = None
    keep: Count | None = None


class RunConfig(_Section):
    """Everything that describes a run."""

    run_name: Annotated[str, AfterValidator(_run_name)]
    model: ModelConfig
    train_data: DataConfig
    eval_data: DataConfig | None = None
    optimizer: Component
    scheduler: Component | None = None
    algorithms: list[Component] = []
    callbacks: list[Component] = []
    loggers: list[Component] = []
    max_duration: Duration
    eval_interval: Interval = '1ep'
    train_subset_num_batches: Count | None = None
    precision: Literal['fp32', 'amp_fp16', 'amp_bf16'] = 'fp32'
    device: Literal['auto', 'cpu', 'gpu'] = 'auto'
    microbatch_size: Annotated[Any, BeforeValidator(_microbatch_size)] = None
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
        self.output = self.output or str(Path('runs') / self.run_name)
        return self

    @property
    def checkpoint_folder(self) -> Path:
        """Where this run's checkpoints are."""
        return Path(self.output) / 'checkpoints'

    @property
    def resume(self) -> bool:
        """Whether an unfinished run in the output folder is continued."""
        return self.checkpoint is not None and self.checkpoint.resume


# ---------------------------------------------------------------------------------------------------------------------
# From pydantic's errors to ours
# ---------------------------------------------------------------------------------------------------------------------

_TYPE_NAMES = {
    bool: 'boolean',
    int: 'integer',
    float: 'number',
    str: 'string',
    list: 'list',
    dict: 'mapping',
    type(None): 'null',
}


_MISSING = 'is missing, and has no default'


def _shown(value: object) -> str:
    if value is None:
        return 'null'
    text = repr(value)
    return f'{text if len(text) <= 60 else text[:57] + "..."} ({_TYPE_NAMES.get(type(value), type(value).__name__)})'


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]


def _valid_keys(schema: type[BaseModel], loc: Sequence[int | str]) -> list[str]:
    """Keys of the section at a pydantic location, whose elements are field names, list indices and union tags."""
    models = [schema]
    for element in loc:
        tagged = [
            m for m in models if 'name' in m.model_fields and element in get_args(m.model_fields['name'].annotation)
        ]
        if tagged:
            models = tagged
        elif isinstance(element, str):
            fields = [field for m in models for key, field in m.model_fields.items() if element in (key, field.alias)]
            models = [m for field in fields for m in _models_in(field.annotation)]
    return [field.alias or key for m in models for key, field in m.model_fields.items()]


def _has(node: Any, key: int | str) -> bool:
    if isinstance(node, list):
        return isinstance(key, int) and key < len(node)
    return isinstance(node, Mapping) and key in node


def _key_path(loc: Sequence[int | str], raw: Any, *, missing: bool) -> tuple[int | str, ...]:
    """The part of a pydantic location that is made of keys of the file; union branches are left out."""
    path: list[int | str] = []
    for position, element in enumerate(loc):
        if _has(raw, element):
            raw = raw[element]
        elif not (missing and position == len(loc) - 1):
            continue
        path.append(element)
    return tuple(path)


def _message(error: Any, schema: type[BaseModel]) -> str:
    kind, value, context = error['type'], error['input'], error.get('ctx', {})
    if kind == 'extra_forbidden':
        key = error['loc'][-1]
        return f'unknown key {key!r}; {suggest(str(key), _valid_keys(schema, error["loc"][:-1]))}'
    if kind in ('missing', 'union_tag_not_found'):
        return _MISSING
    if kind == 'union_tag_invalid':
        tags = [tag.strip(" '") for tag in context['expected_tags'].split(',')]
        return f'unknown name {context["tag"]!r}; {suggest(context["tag"], tags)}'
    if kind == 'value_error':
        return f'{context["error"]}, got {_shown(value)}' if not isinstance(value, Mapping) else str(context['error'])
    text = error['msg'].replace('Input should be', 'must be')
    if kind in ('model_type', 'dict_type', 'model_attributes_type'):
        text = 'must be a mapping'
    if kind == 'literal_error' and isinstance(value, str):
        choices = [choice.strip(" '") for choice in re.split(',| or ', context['expected'])]
        return f'{text}, got {_shown(value)}; {suggest(value, choices)}'
    return f'{text}, got {_shown(value)}'


def faults_of(error: ValidationError, schema: type[BaseModel], raw: object, prefix: str = '') -> list[Fault]:
    """Turns pydantic's errors into faults, one for each key.

    Args:
        error (ValidationError): What pydantic raised.
        schema (type[BaseModel]): The model that was validated, for the names of valid keys.
        raw (object): The validated input.
        prefix (str): Path of the input within the file.

    Returns:
        list[Fault]: In the order of pydantic's errors.
    """
    messages: dict[str, list[str]] = {}
    meant = set()
    for entry in error.errors(include_url=False):
        path = _key_path(entry['loc'], raw, missing=entry['type'] == 'missing')
        if entry['type'].startswith('union_tag'):
            path += ('name',)
        messages.setdefault(_dotted(prefix, *path), []).append(_message(entry, schema))
        if entry['type'] == 'extra_forbidden':
            near = _nearest(str(path[-1]), _valid_keys(schema, entry['loc'][:-1]))
            meant.add(_dotted(prefix, *path[:-1], near))
    # A required key that is misspelt is one fault, not two.
    return [
        Fault(path, _merged(texts)) for path, texts in messages.items() if not (path in meant and texts == [_MISSING])
    ]


def _dotted(*keys: object) -> str:
    return '.'.join(str(key) for key in keys if key not in (None, ''))


def _merged(texts: list[str]) -> str:
    # The branches of a union each complain about the same value: say it once, with every alternative.
    if len(texts) == 1:
        return texts[0]
    heads, tails = zip(*(text.partition(', got ')[::2] for text in texts), strict=True)
    alternatives = list(dict.fromkeys(head.removeprefix('must be ') for head in heads))
    return f'must be {" or ".join(alternatives)}, got {tails[0]}'


# ---------------------------------------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------------------------------------


def _yaml() -> YAML:
    return YAML(typ='safe', pure=True)


def _yaml_fault(error: YAMLError) -> str:
    if not isinstance(error, MarkedYAMLError):
        return f'not YAML: {" ".join(str(error).split())}'
    problem = str(error.problem or error.context).splitlines()[0]
    mark = error.problem_mark or error.context_mark
    where = f'line {mark.line + 1}: ' if mark else ''
    if 'duplicate key' in problem:
        return f'{where}{problem.replace("found ", "")}; remove one of the two'
    return f'{where}not YAML: {problem}'


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Reads a YAML 1.2 file whose top level is a mapping.

    Args:
        path (str | Path): The file.

    Returns:
        dict[str, Any]: Its content.

    Raises:
        ConfigError: If it cannot be read, is not YAML, repeats a key, or is not a mapping.
    """
    try:
        raw = _yaml().load(Path(path).read_text(encoding='utf-8'))
    except FileNotFoundError:
        folder = Path(path).parent
        siblings = [str(folder / file.name) for file in folder.glob('*.y*ml')] if folder.is_dir() else []
        near = difflib.get_close_matches(str(path), siblings, n=1)
        hint = f'; did you mean {near[0]!r}?' if near else '; give the path of a YAML file'
        raise ConfigError([Fault('', f'no such file{hint}')]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([Fault('', f'cannot be read: {error}')]) from None
    except YAMLError as error:
        raise ConfigError([Fault('', _yaml_fault(error))]) from None
    if not isinstance(raw, dict):
        raise ConfigError([Fault('', f'must be a mapping of keys to values, got {_shown(raw)}')])
    return raw


def apply_overrides(raw: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Lays ``key=value`` pairs over a configuration.

    Args:
        raw (dict[str, Any]): The configuration; it is changed.
        overrides (Sequence[str]): Each a dotted path, ``=``, and a YAML value: ``optimizer.lr=0.1``,
            ``algorithms.0.t_0=0.5``.

    Returns:
        dict[str, Any]: ``raw``.

    Raises:
        ConfigError: If a pair is incomplete, its value is not YAML, or its path leads nowhere.
    """
    faults = []
    for override in overrides:
        path, equals, text = override.partition('=')
        keys = path.split('.')
        if not equals or not all(keys):
            faults.append(Fault('', f'expected key=value, got {override!r}; for example max_duration=2ep'))
            continue
        try:
            _set(raw, keys, _yaml().load(text))
        except YAMLError as error:
            faults.append(Fault(path, f'the value {text!r} is {_yaml_fault(error).rpartition("line 1: ")[2]}'))
        except KeyError as error:
            faults.append(Fault(path, error.args[0]))
    if faults:
        raise ConfigError(faults)
    return raw


def _set(node: Any, keys: Sequence[str], value: object) -> None:
    for position, key in enumerate(keys):
        here = '.'.join(keys[:position])
        last = position == len(keys) - 1
        if isinstance(node, list):
            if not (key.isdecimal() and int(key) < len(node)):
                raise KeyError(f'{here!r} is a list of {len(node)}: {key!r} is not an index from 0 to {len(node) - 1}')
            index: Any = int(key)
        elif isinstance(node, dict):
            index = key
            if not last and node.get(key) is None:
                node[key] = {}
        else:
            raise KeyError(f'{here!r} is {_shown(node)} and has no key {key!r}')
        if last:
            node[index] = value
        else:
            node = node[index]


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
    for role, data in (('train_data', config.train_data), ('eval_data', config.eval_data)):
        if data is None:
            continue
        if data.classes not in (None, config.model.num_classes):
            yield Fault(
                'model.num_classes',
                f'is {config.model.num_classes}, but {role} ({data.name}) has {data.classes} classes; make them equal',
            )
        if data.image_channels not in (None, config.model.in_channels):
            yield Fault(
                'model.in_channels',
                f'is {config.model.in_channels}, but images of {role} ({data.name}) have {data.image_channels}; '
                'make them equal',
            )
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


def describe(fault: Fault, path: str | Path, overrides: Sequence[str] = ()) -> str:
    """The line that tells a user of a fault, with where the value comes from.

    Args:
        fault (Fault): The fault.
        path (str | Path): The YAML file.
        overrides (Sequence[str]): The ``key=value`` pairs that were laid over it.

    Returns:
        str: ``<file>: <key>: <message>``, or ``command line`` for the file where an override set the value.
    """
    overridden = [override.partition('=')[0] for override in overrides]
    unknown = fault.message.startswith('unknown key')
    from_command_line = fault.message.startswith('expected key=value') or any(
        # Of a key that is not in the file an override makes the sections around it, too.
        f'{fault.path}.'.startswith(f'{key}.') or (unknown and key.startswith(f'{fault.path}.'))
        for key in overridden
    )
    source = COMMAND_LINE if from_command_line else str(path)
    return ': '.join(filter(None, [source, fault.path, fault.message]))
