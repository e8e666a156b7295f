"""What the user is told: what was found when training starts, what freezes and when, and what came of it."""

import logging
from collections.abc import Sequence

from composer_freezeout.freezing.freezer import LayerFreezer

__all__ = ['describe_end', 'describe_start', 'follow_composer']

_SHOWN = 6  # units by name; those of large models would fill the screen

_level_given = logging.NOTSET


def follow_composer() -> None:
    """Has our messages appear where Composer's do.

    A Trainer's ``python_log_level`` sets the level of Composer's own logger only. A level or a handler that somebody
    has given to ours stays.
    """
    global _level_given
    ours, theirs = logging.getLogger('composer_freezeout'), logging.getLogger('composer')
    if ours.level in (logging.NOTSET, _level_given):
        _level_given = theirs.level
        ours.setLevel(_level_given)
    silenced = not ours.handlers and not ours.propagate
    if theirs.handlers and not silenced and all(handler in theirs.handlers for handler in ours.handlers):
        for handler in theirs.handlers:
            ours.addHandler(handler)  # once, however often this is called
        ours.propagate = theirs.propagate


def describe_start(freezer: LayerFreezer, optimizer: str, saving: float | None = None) -> str:
    """One line on what was found.

    Args:
        freezer (LayerFreezer): What freezes the units.
        optimizer (str): Name of the optimizer.
        saving (float, optional): Share of the FLOPs that is predicted to be saved, in ``[0, 1)``; None if unknown.

    Returns:
        str: Without a full stop at its end.
    """
    names = [unit.name for unit in freezer.partition.units]
    times = freezer.freeze_times
    points = [(names[stage - 1], times[stage - 1]) for stage in freezer.stages[1:] if times[stage - 1] < 1]
    parts = [f'FreezeOut found {_counted(len(names), "unit")} for {optimizer}']
    if freezer.units_frozen:
        parts.append(f'{freezer.units_frozen} frozen already')
    if not points:
        return '; '.join([*parts, 'nothing freezes before the end'])
    (first, start), (last, end) = (names[0], points[0][1]), points[-1]
    parts.append(f'{first!r} freezes first, at {start:.1%} of the training')
    if len(points) > 1:
        parts.append(f'{last!r} last, at {end:.1%}')
    told = 'see `composer-freezeout plan` for what that saves'
    parts.append(told if saving is None else f'predicted to save {saving:.1%} of the FLOPs')
    return '; '.join(parts)


def describe_end(
    freezer: LayerFreezer,
    frozen_at: Sequence[int],
    batches: int,
    saving: float | None = None,
) -> str:
    """One line on what came of it.

    Args:
        freezer (LayerFreezer): What froze the units.
        frozen_at (Sequence[int]): Batches trained before each frozen unit froze.
        batches (int): Batches trained in all, in ``[0, ∞)``.
        saving (float, optional): Share of the FLOPs that is predicted to be saved, in ``[0, 1)``; None if unknown.

    Returns:
        str: Without a full stop at its end.
    """
    names = [unit.name for unit in freezer.partition.units]
    if not frozen_at:
        return f'FreezeOut froze none of {_counted(len(names), "unit")} in {_counted(batches, "batch", "es")}'
    when = [f'{name!r} after {at}' for name, at in zip(names, frozen_at, strict=False)]
    shown = ', '.join(when) if len(when) <= _SHOWN else f'from {when[0]} to {when[-1]}'
    parts = [
        f'FreezeOut froze {len(when)} of {_counted(len(names), "unit")}: {shown} of {_counted(batches, "batch", "es")}'
    ]
    if saving is not None:
        parts.append(f'predicted to save {saving:.1%} of the FLOPs')
    return '; '.join(parts)


def _counted(number: int, noun: str, plural: str = 's') -> str:
    return f'{number} {noun}{"" if number == 1 else plural}'
