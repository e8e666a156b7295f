"""The arm with LayerFreezing that saves as much as FreezeOut."""

import math

from composer_freezeout.compare.arms.dry_run import Data
from composer_freezeout.compare.arms.known import MATCHED
from composer_freezeout.compare.arms.lengths import total_batches
from composer_freezeout.compare.arms.predicted import saving_of
from composer_freezeout.run.config import Component, RunConfig
from composer_freezeout.run.faults import ConfigError, Fault

__all__ = ['matched_freeze_start']


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
    from composer_freezeout.costs.predict import match_layer_freezing
    from composer_freezeout.run.models import build_model

    index, entry = _algorithm(config, 'layer_freezing')
    _, other = _algorithm(freezeout, 'freezeout')
    epochs = math.ceil(total_batches(config, data.batches_per_epoch) / data.batches_per_epoch)
    model = build_model(config.model)
    target = saving_of(config, freezeout.model_copy(update={'algorithms': [other]}), data)
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
