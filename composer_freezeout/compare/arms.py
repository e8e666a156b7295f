"""What a comparison is made of: the arms of a family, in which order they run, and at what scale."""

import argparse
import math
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from composer_freezeout.compare.comparison import ARMS, BASELINE, FREEZEOUT, FREEZING, SHORTENED
from composer_freezeout.run.config import (
    Component,
    ConfigError,
    DataConfig,
    Fault,
    RunConfig,
    Synthetic,
    describe,
    load,
)

T = TypeVar('T')

__all__ = [
    'MATCHED',
    'MAY_DIFFER',
    'Arm',
    'Data',
    'Refused',
    'and_more',
    'choose_arms',
    'count',
    'differences',
    'family_arms',
    'in_order',
    'look_at_data',
    'make_arm',
    'matched_freeze_start',
    'read_arms',
    'relative_times',
    'resolve',
    'round_order',
    'scaled',
    'shortened',
    'total_batches',
]

LAYER_FREEZING, MATCHED = 'layer_freezing', 'layer_freezing_matched'
# The arms without a file of their own, and those that they are made of.
DERIVED = {short: (BASELINE, arm) for short, arm in SHORTENED.items()} | {MATCHED: (LAYER_FREEZING, FREEZEOUT)}

# What the configurations of two arms may differ in, besides the algorithm that freezes.
MAY_DIFFER = frozenset({'run_name', 'output', 'overwrite', 'progress_bar', 'scheduler'})

_RESERVED = {
    'output': 'give the folder of the comparison with --out',
    'overwrite': 'use --overwrite',
    'run_name': 'each arm has its own',
}


class Refused(ValueError):
    """A comparison cannot be started.

    Args:
        lines (Iterable[str]): A line for each fault.
    """

    def __init__(self, lines: Iterable[str]):
        self.lines = tuple(dict.fromkeys(lines))
        super().__init__('\n'.join(self.lines))


@dataclass(frozen=True)
class Arm:
    """One way to train, before the seed is chosen.

    Attributes:
        name (str): Its name, which is that of its folder of results.
        file (Path): The YAML file that it is made from.
        overrides (tuple[str, ...]): ``key=value`` pairs laid over the file.
        config (RunConfig): What the two say.
        resolved (Mapping[str, Any]): The same with the components' defaults filled in, as a record holds it.
        note (str): What to tell about it, if anything.
    """

    name: str
    file: Path
    overrides: tuple[str, ...]
    config: RunConfig
    resolved: Mapping[str, Any]
    note: str = ''


class Data(NamedTuple):
    """What there is to know of training data before a run.

    Attributes:
        batches_per_epoch (int): In ``[1, ∞)``.
        batch (Any): Two samples without content, for what depends on shapes alone.
    """

    batches_per_epoch: int
    batch: Any


# ---------------------------------------------------------------------------------------------------------------------
# Arms and their order
# ---------------------------------------------------------------------------------------------------------------------


def in_order(names: Iterable[str]) -> list[str]:
    """Sorts names of arms into the order of tables.

    Args:
        names (Iterable[str]): The names.

    Returns:
        list[str]: Without repetitions.
    """
    return sorted(set(names), key=lambda name: (ARMS.index(name) if name in ARMS else len(ARMS), name))


def family_arms(family: Path) -> list[str]:
    """Names of a family's arms: its YAML files, and the arms that are derived from them.

    Args:
        family (Path): The folder.

    Returns:
        list[str]: In the order of tables.

    Raises:
        Refused: If the folder lacks the baseline or FreezeOut.
    """
    names = {path.stem for path in family.glob('*.yaml')}
    missing = sorted({BASELINE, FREEZEOUT} - names)
    if missing:
        raise Refused([f'{family} has no {missing[0]}.yaml; give a folder with a file per arm, as yamls/quickstart'])
    names |= {derived for derived, sources in DERIVED.items() if names.issuperset(sources)}
    return in_order(names)


def choose_arms(available: Sequence[str], wanted: str | None) -> list[str]:
    """Reads the choice of arms of a command line.

    Args:
        available (Sequence[str]): All arms of the family.
        wanted (str, optional): Names with commas between them. Default: all.

    Returns:
        list[str]: In the order of tables.

    Raises:
        Refused: If a name is unknown, the baseline is missing, or what a shortened baseline is measured by.
    """
    if wanted is None:
        return list(available)
    names = [name.strip() for name in wanted.split(',') if name.strip()]
    lines = [
        f'--arms: no arm {name!r} in this family; choose from {", ".join(available)}'
        for name in names
        if name not in available
    ]
    needed = {BASELINE: [BASELINE], **{short: [arm] for short, arm in SHORTENED.items() if short in names}}
    lines += [
        f'--arms: {missing!r} is missing, which {"the others are" if why == BASELINE else f"{why} is"} compared with; '
        f'add it'
        for why, sources in needed.items()
        for missing in sources
        if missing not in names
    ]
    if lines:
        raise Refused(lines)
    return in_order(names)


def round_order(names: Sequence[str], number: int) -> list[str]:
    """The order in which the arms run with one seed.

    From round to round the order moves on by one, so that no arm is always the first, or always runs when the machine
    is warm. A shortened baseline waits for the arms that its length is taken from.

    Args:
        names (Sequence[str]): The arms.
        number (int): Number of the round, in ``[0, ∞)``.

    Returns:
        list[str]: All of them.
    """
    turn = number % len(names)
    order = [*names[turn:], *names[:turn]]
    for short in SHORTENED:
        if short in order:
            after = max((order.index(name) for name in DERIVED[short] if name in order), default=-1)
            if (at := order.index(short)) < after:
                order.insert(after, order.pop(at))
    return order


# ---------------------------------------------------------------------------------------------------------------------
# Durations
# ---------------------------------------------------------------------------------------------------------------------


def _split(time: str) -> tuple[int, str]:
    match = re.fullmatch(r'(\d+)(\D+)', time)
    assert match is not None, 'checked with the configuration'
    return int(match[1]), match[2]


def total_batches(config: RunConfig, batches_per_epoch: int) -> int:
    """Length of a run.

    Args:
        config (RunConfig): Its configuration.
        batches_per_epoch (int): In ``[1, ∞)``.

    Returns:
        int: Batches, in ``[1, ∞)``.

    Raises:
        ConfigError: If the duration counts neither epochs nor batches.
    """
    value, unit = _split(config.max_duration)
    if unit not in ('ep', 'ba'):
        message = (
            f"{config.max_duration!r} cannot be shortened in batches; give it in epochs ('20ep') or batches ('500ba')"
        )
        raise ConfigError([Fault('max_duration', message)])
    return value * batches_per_epoch if unit == 'ep' else value


def relative_times(config: RunConfig, batches_per_epoch: int) -> list[str]:
    """Overrides that give the warm-up and the other times of a schedule as shares of the run.

    So a shorter run has the same schedule, compressed.

    Args:
        config (RunConfig): The configuration.
        batches_per_epoch (int): In ``[1, ∞)``.

    Returns:
        list[str]: ``key=value`` pairs; none where times are shares already.
    """
    total = total_batches(config, batches_per_epoch)

    def share(value: object) -> object:
        if isinstance(value, list):
            return [share(item) for item in value]
        if not isinstance(value, str) or not re.fullmatch(r'\d+(ep|ba)', value):
            return value
        count, unit = _split(value)
        batches = count * batches_per_epoch if unit == 'ep' else count
        return f'{batches / total:.8f}'.rstrip('0').rstrip('.') + 'dur'

    sections: list[tuple[str, Component]] = [('scheduler', config.scheduler)] if config.scheduler else []
    # Times of other algorithms than FreezeOut may be about something else than the learning rate.
    sections += [(f'algorithms.{i}', entry) for i, entry in enumerate(config.algorithms) if entry.name == 'freezeout']
    overrides = []
    for path, section in sections:
        for key, value in section.arguments.items():
            if (relative := share(value)) != value:
                text = f'[{", ".join(map(str, relative))}]' if isinstance(relative, list) else relative
                overrides.append(f'{path}.{key}={text}')
    return overrides


def shortened(config: RunConfig, batches_per_epoch: int, batches: int) -> list[str]:
    """Overrides that compress a run and its schedule.

    Args:
        config (RunConfig): Configuration of the whole run.
        batches_per_epoch (int): In ``[1, ∞)``.
        batches (int): The new length, in ``[1, ∞)``.

    Returns:
        list[str]: ``key=value`` pairs.
    """
    return [f'max_duration={batches}ba', *relative_times(config, batches_per_epoch)]


def scaled(config: RunConfig, scale: float, batches_per_epoch: int) -> list[str]:
    """Overrides that reduce the number of epochs and the batches of each by the same factor, but not below 1.

    Args:
        config (RunConfig): Configuration at full scale.
        scale (float): The factor, in ``(0, 1]``.
        batches_per_epoch (int): At full scale, in ``[1, ∞)``.

    Returns:
        list[str]: ``key=value`` pairs; none if the scale is 1.
    """
    if scale == 1:
        return []
    total = total_batches(config, batches_per_epoch)
    per_epoch = max(1, round(batches_per_epoch * scale))
    value, unit = _split(config.max_duration)
    if unit == 'ep':
        duration = f'{max(1, round(value * scale))}ep'
    else:
        duration = f'{max(1, round(total / batches_per_epoch * scale * per_epoch))}ba'
    return [
        f'max_duration={duration}',
        f'train_subset_num_batches={per_epoch}',
        *relative_times(config, batches_per_epoch),
    ]


# ---------------------------------------------------------------------------------------------------------------------
# Checks, and what needs the model or the data
# ---------------------------------------------------------------------------------------------------------------------


def resolve(config: RunConfig) -> dict[str, Any]:
    """A configuration as the record of its run will hold it, after all its components have been made once.

    Args:
        config (RunConfig): The configuration.

    Returns:
        dict[str, Any]: With the components' defaults filled in.

    Raises:
        ConfigError: If a component is at fault.
    """
    with warnings.catch_warnings():
        # About Composer's own code.
        warnings.simplefilter('ignore')
        from composer_freezeout.run.build import assemble

        # The data are looked at apart, once for all arms: opening them may take long.
        sections = {'train_data': _stand_in(config, config.train_data)}
        if config.eval_data is not None:
            sections['eval_data'] = _stand_in(config, config.eval_data)
        resolved = dict(assemble(config.model_copy(update=sections)).resolved)
    whole = config.model_dump(mode='json')
    return resolved | {key: whole[key] for key in sections}


def _stand_in(config: RunConfig, data: DataConfig) -> Synthetic:
    section = Synthetic(
        name='synthetic',
        num_samples=data.batch_size,
        batch_size=data.batch_size,
        image_size=8,
        channels=config.model.in_channels,
        num_classes=config.model.num_classes,
    )
    section.fill_in('train')
    return section


def look_at_data(config: RunConfig) -> Data:
    """Opens the data sets of a run, without reading all images.

    Args:
        config (RunConfig): The configuration.

    Returns:
        Data: What there is to know of the training data.

    Raises:
        ConfigError: If a data set cannot be opened or doesn't suit the model.
    """
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        import torch
        from torchvision.transforms.v2.functional import pil_to_tensor

        from composer_freezeout.run.data import build_data

    def opened(data: Any, path: str) -> Any:
        if not getattr(data, 'cache', False):
            return build_data(data, path, num_classes=config.model.num_classes, seed=config.seed).dataloader
        # Decoding them all takes long; one, as it is, is enough.
        data = data.model_copy(update={'cache': False, 'image_size': 8})
        loader: Any = build_data(data, path, num_classes=config.model.num_classes, seed=config.seed).dataloader
        loader.dataset.transform = None
        return loader

    loader = opened(config.train_data, 'train_data')
    if config.eval_data is not None:
        opened(config.eval_data, 'eval_data')
    image = loader.dataset[0][0]
    shape = (image if isinstance(image, torch.Tensor) else pil_to_tensor(image)).shape
    batches = min(len(loader), config.train_subset_num_batches or len(loader))
    return Data(batches, (torch.zeros(2, *shape), torch.zeros(2, dtype=torch.int64)))


def matched_freeze_start(config: RunConfig, freezeout: RunConfig, data: Data) -> tuple[str, str]:
    """Solves ``freeze_start`` of Composer's ``LayerFreezing`` for the saving that is predicted for FreezeOut.

    Args:
        config (RunConfig): Configuration of the arm with ``LayerFreezing``.
        freezeout (RunConfig): Configuration of the arm with FreezeOut.
        data (Data): What both are trained on.

    Returns:
        tuple[str, str]: The override, and a note on what it brings.

    Raises:
        ConfigError: If one of the two lacks its algorithm.
    """
    from composer_freezeout.run.models import build_model
    from composer_freezeout.run.predicted import match_layer_freezing, predict_saving
    from composer_freezeout.run.registry import ALGORITHMS, bind

    index, entry = _algorithm(config, 'layer_freezing')
    _, other = _algorithm(freezeout, 'freezeout')
    epochs = math.ceil(total_batches(config, data.batches_per_epoch) / data.batches_per_epoch)
    model = build_model(config.model)
    target = predict_saving(model, data.batch, [bind(ALGORITHMS, other, 'algorithms').build()], epochs)
    assert target is not None, 'there is one algorithm'
    level = entry.arguments.get('freeze_level', 1.0)
    try:
        start, saving = match_layer_freezing(model, data.batch, target, epochs, level)
        note = f'freeze_start={start} saves {saving:.1%} of the FLOPs, as freezeout does ({target:.1%})'
    except ValueError as error:
        start, note = 0.0, f'freeze_start=0: {error}'
    return f'algorithms.{index}.freeze_start={start}', note


def _algorithm(config: RunConfig, name: str) -> tuple[int, Component]:
    for index, entry in enumerate(config.algorithms):
        if entry.name == name:
            return index, entry
    raise ConfigError([Fault('algorithms', f'has no {name}, which {MATCHED} needs; add it or leave the arm out')])


def differences(one: Any, other: Any, path: str = '') -> dict[str, tuple[Any, Any]]:
    """Where two configurations differ.

    Args:
        one (Any): A configuration, or a part of it.
        other (Any): Another one.
        path (str): Key path of the part.

    Returns:
        dict[str, tuple[Any, Any]]: Both values by key path; None where there is none.
    """
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        keys: Iterable[Any] = dict.fromkeys([*one, *other])
        pairs = {key: (one.get(key), other.get(key)) for key in keys}
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = dict(enumerate(zip(one, other, strict=True)))
    else:
        return {} if one == other else {path: (one, other)}
    found: dict[str, tuple[Any, Any]] = {}
    for key, (left, right) in pairs.items():
        found |= differences(left, right, f'{path}.{key}' if path else str(key))
    return found


def read_arms(family: Path, names: Sequence[str], overrides: Sequence[str], scale: float) -> tuple[list[Arm], Data]:
    """Reads, scales and checks all arms.

    Args:
        family (Path): Folder with a YAML file per arm.
        names (Sequence[str]): The arms, derived ones included.
        overrides (Sequence[str]): ``key=value`` pairs laid over every file.
        scale (float): Factor on the epochs and on the batches of each, in ``(0, 1]``.

    Returns:
        tuple[list[Arm], Data]: The arms, and what they are trained on. Shortened baselines have no duration of their
        own yet.

    Raises:
        Refused: With all that is wrong.
    """
    reserved = [
        f'command line: {key}: {remedy}'
        for key, remedy in _RESERVED.items()
        if any(override.partition('=')[0] == key for override in overrides)
    ]
    if reserved:
        raise Refused(reserved)
    sources = in_order(source for name in names for source in DERIVED.get(name, (name,)))
    files = {name: family / f'{name}.yaml' for name in sources}
    attempts = _Attempts(overrides)
    configs = {name: attempts.attempt(file, load, file, overrides) for name, file in files.items()}
    resolved = {
        name: attempts.attempt(files[name], resolve, config) for name, config in configs.items() if config is not None
    }
    attempts.refuse_if_any()
    _check_equal(files, resolved)

    baseline = files[BASELINE]
    full = attempts.attempt(baseline, look_at_data, configs[BASELINE])
    attempts.refuse_if_any()
    assert full is not None
    extra = {
        name: attempts.attempt(files[name], scaled, config, scale, full.batches_per_epoch)
        for name, config in configs.items()
    }
    attempts.attempt(baseline, total_batches, configs[BASELINE], full.batches_per_epoch)
    attempts.refuse_if_any()
    data = full._replace(batches_per_epoch=max(1, round(full.batches_per_epoch * scale)))
    overlay = {name: (*overrides, *(own or ())) for name, own in extra.items()}
    arms = [attempts.attempt(files[_source(name)], _arm, name, files, overlay, data) for name in names]
    attempts.refuse_if_any()
    return [arm for arm in arms if arm is not None], data


class _Attempts:
    """Collects the faults of several files, to report them together and each once."""

    def __init__(self, overrides: Sequence[str]):
        self.overrides = overrides
        self.faults: dict[Fault, list[Path]] = {}

    def attempt(self, file: Path, function: Callable[..., T], *arguments: Any) -> T | None:
        try:
            return function(*arguments)
        except ConfigError as error:
            for fault in error.faults:
                self.faults.setdefault(fault, []).append(file)
            return None

    def refuse_if_any(self) -> None:
        if self.faults:
            raise Refused(describe(f, and_more(files), self.overrides) for f, files in self.faults.items())


def and_more(paths: Sequence[Path]) -> str:
    """Names the first of some files, and counts the others.

    Args:
        paths (Sequence[Path]): At least one.

    Returns:
        str: The start of an error message.
    """
    return f'{paths[0]} and {len(paths) - 1} more' if len(paths) > 1 else str(paths[0])


def _check_equal(files: Mapping[str, Path], resolved: Mapping[str, Any]) -> None:
    base = _without_freezing(resolved[BASELINE])
    lines = [
        f'{files[name]}: {key}: is {here!r}, but {there!r} in {files[BASELINE].name}; make them equal'
        for name, found in resolved.items()
        for key, (there, here) in differences(base, _without_freezing(found)).items()
        if key.partition('.')[0] not in MAY_DIFFER
    ]
    if lines:
        raise Refused(lines)


def _source(name: str) -> str:
    return DERIVED.get(name, (name,))[0]


def _without_freezing(resolved: Mapping[str, Any]) -> dict[str, Any]:
    return {**resolved, 'algorithms': [entry for entry in resolved['algorithms'] if entry['name'] not in FREEZING]}


def _arm(name: str, files: Mapping[str, Path], overlay: Mapping[str, tuple[str, ...]], data: Data) -> Arm:
    source = _source(name)
    if name == source:
        return make_arm(name, files[name], overlay[name])
    overrides = overlay[source]
    config = load(files[source], overrides)
    overrides += (f'run_name={config.run_name}{name.removeprefix(source)}',)
    if name != MATCHED:
        return make_arm(name, files[source], overrides)
    override, note = matched_freeze_start(config, load(files[FREEZEOUT], overlay[FREEZEOUT]), data)
    return make_arm(name, files[source], (*overrides, override), note)


def make_arm(name: str, file: Path, overrides: tuple[str, ...], note: str = '') -> Arm:
    """Makes an arm of a file.

    Args:
        name (str): Its name.
        file (Path): The YAML file.
        overrides (tuple[str, ...]): ``key=value`` pairs laid over the file.
        note (str): What to tell about it.

    Returns:
        Arm: The arm, checked.

    Raises:
        ConfigError: If a component is at fault.
    """
    config = load(file, overrides)
    return Arm(name, file, overrides, config, resolve(config), note)


def count(text: str, least: int = 1) -> int:
    """Reads a whole number.

    Args:
        text (str): The number.
        least (int): The least that is allowed.

    Returns:
        int: In ``[least, ∞)``.

    Raises:
        argparse.ArgumentTypeError: If it is something else.
    """
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f'must be a whole number of at least {least}, got {text!r}')
    return int(text)
