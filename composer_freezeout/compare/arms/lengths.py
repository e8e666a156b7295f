"""How long an arm is trained: its length in batches, and shorter runs with the same schedule."""

import re

from composer_freezeout.run.config import Component, RunConfig
from composer_freezeout.run.faults import ConfigError, Fault

__all__ = ['relative_times', 'scaled', 'shortened', 'total_batches']


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
