"""``comparison.json``: what a comparison consists of."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from composer_freezeout.compare.arms.known import in_order
from composer_freezeout.run.faults import Refused

__all__ = ['Failure', 'Manifest', 'merged', 'new_manifest']


def _folder_name(value: str) -> str:
    if not value or value in ('.', '..') or '/' in value or '\\' in value:
        raise ValueError('must be the name of a subfolder')
    return value


def _unique(values: list[Any]) -> list[Any]:
    if len(set(values)) < len(values):
        raise ValueError('must not repeat a value')
    return values


ArmName = Annotated[str, AfterValidator(_folder_name)]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra='ignore', allow_inf_nan=False, frozen=True)


class Failure(_Part):
    """A run that ended without a record.

    Attributes:
        arm (str): Its arm.
        seed (int): Its seed.
        exit_code (int): Of its process.
        message (str): Last line of its output.
    """

    arm: ArmName
    seed: int
    exit_code: int
    message: str


class Manifest(_Part):
    """What was run, and how.

    Attributes:
        format (int): Of this file.
        family (str): Name of the family of configurations.
        command (str): What was typed.
        arms (list[str]): The arms, at least one, in the order of the tables.
        seeds (list[int]): The seeds, at least one.
        scale (float): Share of the family's epochs, and of its batches per epoch, that is trained; in ``(0, 1]``.
        overrides (list[str]): ``key=value`` pairs laid over every configuration.
        failures (list[Failure]): Runs that failed.
        workers (int, optional): How many runs were trained side by side; None if one after another.
        company (float, optional): Time of a step with all of them running over that of one alone; None if not measured.
    """

    format: Literal[1]
    family: str
    command: str
    arms: Annotated[list[ArmName], Field(min_length=1), AfterValidator(_unique)]
    seeds: Annotated[list[int], Field(min_length=1), AfterValidator(_unique)]
    scale: Annotated[float, Field(gt=0, le=1)]
    overrides: list[str]
    failures: list[Failure]
    workers: Annotated[int, Field(ge=2)] | None = None
    company: Annotated[float, Field(gt=0)] | None = None

    def with_outcome(self, arm: str, seed: int, failure: Failure | None) -> 'Manifest':
        """The same after a run, which failed or did not."""
        others = [other for other in self.failures if (other.arm, other.seed) != (arm, seed)]
        return self.model_copy(update={'failures': [*others, *([failure] if failure else [])]})


def new_manifest(
    family: Path, arms: Sequence[str], seeds: Sequence[int], scale: float, overrides: Sequence[str], command: str
) -> Manifest:
    """What ``comparison.json`` says before the first run.

    Args:
        family (Path): Folder with a YAML file per arm.
        arms (Sequence[str]): Names of the arms.
        seeds (Sequence[int]): The seeds.
        scale (float): In ``(0, 1]``.
        overrides (Sequence[str]): ``key=value`` pairs laid over every file.
        command (str): What was typed.

    Returns:
        Manifest: Its content.
    """
    return Manifest(
        format=1,
        family=family.resolve().name,
        command=command,
        arms=in_order(arms),
        seeds=sorted(seeds),
        scale=scale,
        overrides=list(overrides),
        failures=[],
    )


def merged(earlier: Manifest, now: Manifest, path: Path) -> Manifest:
    """Goes on with a comparison: arms and seeds are added to those that are there.

    Args:
        earlier (Manifest): The one that is there.
        now (Manifest): That of this command.
        path (Path): Where the first one is.

    Returns:
        Manifest: Both in one.

    Raises:
        Refused: If the two are not of the same family and scale.
    """
    lines = [
        f'{path}: the comparison that is there has {key} {there!r}, and this one {here!r}; '
        'train all again with --overwrite, or choose another --out'
        for key in ('family', 'scale')
        if (there := getattr(earlier, key)) != (here := getattr(now, key))
    ]
    if lines:
        raise Refused(lines)
    return now.model_copy(
        update={
            'arms': in_order([*earlier.arms, *now.arms]),
            'seeds': sorted({*earlier.seeds, *now.seeds}),
            'failures': earlier.failures,
            'workers': earlier.workers,
            'company': earlier.company,
        }
    )
