"""The baselines of other lengths, which the curve goes through that arms are judged by."""

import argparse
from collections.abc import Sequence

import numpy as np

from composer_freezeout.compare.arms.dry_run import Data
from composer_freezeout.compare.arms.family import Arm, make_arm
from composer_freezeout.compare.arms.known import BASELINE, FREEZING, baseline_of_length, in_order
from composer_freezeout.compare.arms.lengths import shortened, total_batches
from composer_freezeout.compare.arms.predicted import own_saving, predicted_saving
from composer_freezeout.run.config import RunConfig

__all__ = ['LENGTHS', 'bracketing', 'curve_lengths', 'length_arm', 'lengths_for', 'with_lengths']

# How many lengths besides the whole baseline are trained by default.
LENGTHS = 4
# An arm may take longer, or less, than is predicted for it by this share.
_MARGIN = 0.1
_AUTO, _NONE = 'auto', 'none'


def curve_lengths(text: str) -> str | tuple[float, ...]:
    """Reads the lengths of a command line.

    Args:
        text (str): ``auto``, ``none``, or shares of the whole baseline with commas between them.

    Returns:
        str | tuple[float, ...]: ``'auto'``, or the lengths, in ``(0, 2)`` and not 1.

    Raises:
        argparse.ArgumentTypeError: If it is something else.
    """
    if text == _AUTO:
        return _AUTO
    if text == _NONE:
        return ()
    try:
        lengths = tuple(round(float(part), 4) for part in text.split(','))
    except ValueError:
        lengths = (0.0,)
    if not all(0 < length < 2 and length != 1 for length in lengths):
        shown = text if len(text) <= 40 else f'{text[:40]}…'
        raise argparse.ArgumentTypeError(
            f"must be 'auto', 'none' or shares of the baseline's length in (0, 2) other than 1, as '0.6,0.8', "
            f'got {shown!r}'
        )
    return lengths


def lengths_for(wanted: str | tuple[float, ...] | None, all_arms: bool, arms: Sequence[Arm], data: Data) -> list[float]:
    """The lengths that are trained.

    Args:
        wanted (str | tuple[float, ...], optional): Of :func:`curve_lengths`. Default: ``'auto'`` with all arms of a
            family; none with a choice of arms, which is taken at its word.
        all_arms (bool): Whether all arms of the family are trained.
        arms (Sequence[Arm]): The arms.
        data (Data): What they are trained on.

    Returns:
        list[float]: Shares of the whole baseline's batches.
    """
    if wanted is None:
        wanted = _AUTO if all_arms else ()
    return list(wanted) if isinstance(wanted, tuple) else bracketing(_predicted(arms, data))


def bracketing(costs: Sequence[float]) -> list[float]:
    """Lengths of the baseline between which the times of all arms should lie.

    Args:
        costs (Sequence[float]): What arms are predicted to take, as shares of the whole baseline; in ``(0, 2)``.

    Returns:
        list[float]: :data:`LENGTHS` shares, from a tenth below the least cost, evenly up to the whole baseline, which
        is not among them; the last is a tenth above the greatest cost where that is beyond the whole baseline. None
        without costs.
    """
    if not costs:
        return []
    low = min(*costs, 1.0) * (1 - _MARGIN)
    # An arm that takes as long as the baseline may take a little longer.
    high = max(costs) * (1 + _MARGIN)
    beyond = [high] if high > 1 + _MARGIN / 2 else []
    inside = np.linspace(low, 1.0, LENGTHS + 1 - len(beyond))[:-1]
    return [round(float(length), 2) for length in (*inside, *beyond)]


def _predicted(arms: Sequence[Arm], data: Data) -> list[float]:
    """Costs of the arms that freeze, as shares of the whole baseline's; without those that cannot be predicted."""
    # Imported here: scipy takes a while.
    from composer_freezeout.costs.saving import saving_over

    own = arms[0].config
    try:
        reference = own_saving(own, data)
    except ValueError:
        # Of a model whose FLOPs can't be counted nothing is predicted.
        return []
    costs: list[float] = []
    for arm in arms:
        freezes = any(entry.name in FREEZING for entry in arm.config.algorithms)
        if not freezes and arm.config.model.freeze == own.model.freeze:
            continue
        try:
            saving = predicted_saving(arm.config, data)
        except ValueError:
            # Its own run tells what is wrong with it, and the others go on.
            continue
        costs += [] if saving is None else [1 - saving_over(saving, reference)]
    return costs


def length_arm(baseline: Arm, length: float, data: Data, name: str | None = None) -> Arm:
    """The baseline with its schedule compressed, or stretched, to a share of its batches.

    Args:
        baseline (Arm): The whole baseline.
        length (float): The share, in ``(0, 2)``.
        data (Data): What it is trained on.
        name (str, optional): Its name. Default: :func:`~composer_freezeout.compare.arms.known.baseline_of_length`.

    Returns:
        Arm: It.
    """
    name = baseline_of_length(length) if name is None else name
    batches = max(1, round(total_batches(baseline.config, data.batches_per_epoch) * length))
    own = (f'run_name={_run_name(baseline.config, name)}', *shortened(baseline.config, data.batches_per_epoch, batches))
    return make_arm(name, baseline.file, (*baseline.overrides, *own))


def with_lengths(arms: Sequence[Arm], lengths: Sequence[float], data: Data) -> list[Arm]:
    """Adds baselines of other lengths to the arms.

    Args:
        arms (Sequence[Arm]): The arms, the whole baseline among them.
        lengths (Sequence[float]): Shares of its batches.
        data (Data): What they are trained on.

    Returns:
        list[Arm]: In the order of tables.
    """
    by_name = {arm.name: arm for arm in arms}
    added = [length_arm(by_name[BASELINE], length, data) for length in lengths]
    by_name |= {arm.name: arm for arm in added}
    return [by_name[name] for name in in_order(by_name)]


def _run_name(config: RunConfig, name: str) -> str:
    return f'{config.run_name}{name.removeprefix(BASELINE)}'
