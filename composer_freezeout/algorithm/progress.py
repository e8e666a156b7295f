"""From Composer's clock to the progress of training, in batches whatever the duration is given in."""

from composer.core import State, Time, TimeUnit

__all__ = ['as_progress', 'lengthened', 'parse_warmup', 'progress']


def progress(state: State) -> float:
    """Share of the training that is done.

    Args:
        state (State): The trainer's state.

    Returns:
        float: In ``[0, 1)`` during training, with the grain of a batch.

    Raises:
        ValueError: If the duration is unknown, or in a unit that doesn't count batches.
    """
    duration, timestamp = state.max_duration, state.timestamp
    if duration is None:
        raise ValueError("max_duration is not set; FreezeOut needs it: pass max_duration='20ep', say, to the Trainer")
    # By identity, and without `timestamp.get`: this is asked in every batch, and units are slow to compare otherwise.
    unit = duration.unit
    if unit is TimeUnit.EPOCH:
        batches_per_epoch = _batches_per_epoch(state)
        done = timestamp.epoch.value * batches_per_epoch + timestamp.batch_in_epoch.value
        return done / (duration.value * batches_per_epoch)
    if unit is TimeUnit.BATCH:
        return timestamp.batch.value / duration.value
    if unit is TimeUnit.SAMPLE:
        return timestamp.sample.value / duration.value
    if unit is TimeUnit.TOKEN:
        return timestamp.token.value / duration.value
    raise ValueError(f'max_duration must be in epochs, batches, samples or tokens (ep, ba, sp, tok), got {duration}')


def as_progress(time: Time, state: State) -> float:
    """A length of time as a share of the training.

    Args:
        time (Time): In the unit of the duration, as a fraction of it, or in batches or epochs where the duration is in
            the other of the two.
        state (State): The trainer's state, with a duration.

    Returns:
        float: In ``[0, ∞)``.

    Raises:
        ValueError: If the two can't be compared.
    """
    duration = state.max_duration
    assert duration is not None, 'Composer refuses to fit without it'
    if time.unit == TimeUnit.DURATION:
        return time.value
    if time.unit == duration.unit:
        return time.value / duration.value
    if (time.unit, duration.unit) == (TimeUnit.BATCH, TimeUnit.EPOCH):
        return time.value / (duration.value * _batches_per_epoch(state))
    if (time.unit, duration.unit) == (TimeUnit.EPOCH, TimeUnit.BATCH):
        return time.value * _batches_per_epoch(state) / duration.value
    raise ValueError(
        f't_warmup={time.to_timestring()!r} cannot be compared with max_duration={duration.to_timestring()!r}; give it '
        "in the same unit or as a fraction, such as '0.05dur'"
    )


def lengthened(state: State, factor: float) -> Time:
    """The training's duration, multiplied.

    Args:
        state (State): The trainer's state, with a duration.
        factor (float): In ``[1, ∞)``.

    Returns:
        Time: In batches where the duration is in epochs, of which Composer counts whole ones only.

    Raises:
        ValueError: If the number of batches in an epoch is unknown.
    """
    duration = state.max_duration
    assert duration is not None, 'Composer refuses to fit without it'
    if duration.unit == TimeUnit.EPOCH:
        return Time(round(duration.value * _batches_per_epoch(state) * factor), TimeUnit.BATCH)
    return Time(round(duration.value * factor), duration.unit)


def parse_warmup(t_warmup: str | Time) -> Time:
    """Reads the length of a warm-up.

    Args:
        t_warmup (str | Time): A Composer time string.

    Returns:
        Time: In ``[0, ∞)``, in epochs, batches, samples, tokens or as a fraction.

    Raises:
        ValueError: If it is something else.
    """
    try:
        time = Time.from_input(t_warmup)
    except (OverflowError, RuntimeError, TypeError, ValueError):
        time = None
    if time is None or time.unit in (TimeUnit.SECOND, TimeUnit.ITERATION) or not time.value >= 0:
        raise ValueError(
            't_warmup must be a Composer time string, a whole number of ep, ba, sp or tok or a fraction in dur, such '
            f"as '5ep' or '0.05dur', got {t_warmup!r}"
        )
    return time


def _batches_per_epoch(state: State) -> int:
    if state.dataloader_len is None:
        raise ValueError(
            'the train dataloader has no length, so progress within an epoch is unknown; give max_duration in batches, '
            'samples or tokens, or set train_subset_num_batches'
        )
    return state.dataloader_len.value
