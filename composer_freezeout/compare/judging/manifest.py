"""``comparison.json``: what a comparison consists of."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from composer_freezeout.compare.arms.family import Refused
from composer_freezeout.compare.arms.known import in_order

__all__ = ['FORMAT', 'ArmName', 'Count', 'Failure', 'Manifest', 'Seconds', 'Share', 'Strict', 'merged', 'new_manifest']


def _folder_name(value: str) -> str:
    if not value or value in ('.', '..') or '/' in value or '\\' in value:
        raise ValueError('must be the name of a subfolder')
    return value


def _unique(values: list[Any]) -> list[Any]:
    if len(set(values)) < len(values):
        raise ValueError('must not repeat a value')
    return values


ArmName = Annotated[str, AfterValidator(_folder_name)]
Share = Annotated[float, Field(gt=0, le=1)]
Seconds = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


class Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra='ignore', allow_inf_nan=False)


class Failure(Strict):
    """A run that ended without a record.

    Args:
        arm (str): Its arm.
        seed (int): Its seed.
        exit_code (int): Of its process.
        message (str): Last line of its output.
    """

    arm: ArmName
    seed: int
    exit_code: int
    message: str


class Manifest(Strict):
    format: Literal[1]
    family: str
    command: str
    arms: Annotated[list[ArmName], Field(min_length=1), AfterValidator(_unique)]
    seeds: Annotated[list[int], Field(min_length=1), AfterValidator(_unique)]
    scale: Share
    overrides: list[str]
    failures: list[Failure]


FORMAT = 1


def new_manifest(
    family: Path, arms: Sequence[str], seeds: Sequence[int], scale: float, overrides: Sequence[str], command: str
) -> dict[str, Any]:
    """What ``comparison.json`` says before the first run.

    Args:
        family (Path): Folder with a YAML file per arm.
        arms (Sequence[str]): Names of the arms.
        seeds (Sequence[int]): The seeds.
        scale (float): In ``(0, 1]``.
        overrides (Sequence[str]): ``key=value`` pairs laid over every file.
        command (str): What was typed.

    Returns:
        dict[str, Any]: Its content.
    """
    return {
        'format': FORMAT,
        'family': family.resolve().name,
        'command': command,
        'arms': in_order(arms),
        'seeds': sorted(seeds),
        'scale': scale,
        'overrides': list(overrides),
        'failures': [],
    }


def merged(earlier: Mapping[str, Any], now: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Goes on with a comparison: arms and seeds are added to those that are there.

    Args:
        earlier (Mapping[str, Any]): The manifest that is there.
        now (Mapping[str, Any]): That of this command.
        path (Path): Where the first one is.

    Returns:
        dict[str, Any]: Both in one.

    Raises:
        Refused: If the two are not of the same family and scale.
    """
    lines = [
        f'{path}: the comparison that is there has {key} {earlier[key]!r}, and this one {now[key]!r}; '
        'train all again with --overwrite, or choose another --out'
        for key in ('format', 'family', 'scale')
        if earlier[key] != now[key]
    ]
    if lines:
        raise Refused(lines)
    return {
        **now,
        'arms': in_order([*earlier['arms'], *now['arms']]),
        'seeds': sorted({*earlier['seeds'], *now['seeds']}),
        'failures': list(earlier['failures']),
    }
