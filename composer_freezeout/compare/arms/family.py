"""The arms of a family: a folder with a YAML file for each arm."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from composer_freezeout.compare.arms.dry_run import Data, look_at_data, resolve
from composer_freezeout.compare.arms.known import (
    BASELINE,
    DERIVED,
    FREEZEOUT,
    HEAD_ONLY,
    MATCHED,
    SHORTENED,
    STATIC,
    in_order,
    share_of,
    sources_of,
    without_freezing,
)
from composer_freezeout.compare.arms.lengths import scaled, total_batches
from composer_freezeout.compare.arms.matching import matched_freeze_start
from composer_freezeout.compare.arms.static import static_override
from composer_freezeout.results.differences import differences
from composer_freezeout.run.config import RunConfig, load
from composer_freezeout.run.error_lines import describe
from composer_freezeout.run.families import PRETRAIN
from composer_freezeout.run.faults import ConfigError, Fault, Refused
from composer_freezeout.run.registered import MODELS
from composer_freezeout.run.yaml_files import read_yaml

T = TypeVar('T')

__all__ = [
    'MAY_DIFFER',
    'Arm',
    'and_more',
    'choose_arms',
    'family_arms',
    'make_arm',
    'read_arms',
]

# What the configurations of two arms may differ in, besides the algorithm that freezes.
MAY_DIFFER = frozenset({'run_name', 'output', 'overwrite', 'progress_bar', 'scheduler'})
_RESERVED = {
    'output': 'give the folder of the comparison with --out',
    'overwrite': 'use --overwrite',
    'run_name': 'each arm has its own',
}


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


def family_arms(family: Path) -> list[str]:
    """Names of a family's arms: its YAML files, and the arms that are derived from them.

    Args:
        family (Path): The folder.

    Returns:
        list[str]: In the order of tables.

    Raises:
        Refused: If the folder lacks the baseline or FreezeOut.
    """
    names = {path.stem for path in family.glob('*.yaml')} - {PRETRAIN}
    missing = sorted({BASELINE, FREEZEOUT} - names)
    if missing:
        raise Refused([f'{family} has no {missing[0]}.yaml; give a folder with a file per arm, as yamls/quickstart'])
    derived = {name for name, sources in DERIVED.items() if names.issuperset(sources)}
    # Layers that begin with random weights are not frozen from the start by anybody.
    names |= derived if _begins_with_weights(family) else derived - {STATIC, HEAD_ONLY}
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
        if name not in available and share_of(name) is None
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
    sources = in_order(source for name in names for source in sources_of(name))
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
    arms = [attempts.attempt(files[sources_of(name)[0]], _arm, name, files, overlay, data) for name in names]
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
    base = without_freezing(resolved[BASELINE])
    lines = [
        f'{files[name]}: {key}: is {here!r}, but {there!r} in {files[BASELINE].name}; make them equal'
        for name, found in resolved.items()
        for key, (there, here) in differences(base, without_freezing(found)).items()
        if key.partition('.')[0] not in MAY_DIFFER
    ]
    if lines:
        raise Refused(lines)


def _begins_with_weights(family: Path) -> bool:
    if (family / f'{PRETRAIN}.yaml').is_file():
        return True
    try:
        model = read_yaml(family / f'{BASELINE}.yaml').get('model')
    except ConfigError:
        return False  # it is told when the file is read to be used
    # What a model of the user's own begins with only its function knows.
    return isinstance(model, Mapping) and (model.get('weights') is not None or model.get('name') in MODELS)


def _arm(name: str, files: Mapping[str, Path], overlay: Mapping[str, tuple[str, ...]], data: Data) -> Arm:
    source, *others = sources_of(name)
    if name == source:
        return make_arm(name, files[name], overlay[name])
    overrides = overlay[source]
    config = load(files[source], overrides)
    overrides += (f'run_name={_run_name(config.run_name, source, name)}',)
    if name in SHORTENED:
        return make_arm(name, files[source], overrides)
    freezeout = load(files[FREEZEOUT], overlay[FREEZEOUT]) if FREEZEOUT in others else None
    if name == MATCHED:
        assert freezeout is not None, f'{MATCHED} is made of {FREEZEOUT}'
        override, note = matched_freeze_start(config, freezeout, data)
    else:
        override, note = static_override(name, config, freezeout, data)
    return make_arm(name, files[source], (*overrides, override), note)


def _run_name(of_source: str, source: str, name: str) -> str:
    if name.startswith(source):
        return of_source + name.removeprefix(source)
    return f'{of_source.removesuffix(f"-{source}")}-{name}'


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
