"""What freezing is predicted to save in an arm, before it is trained."""

import math

from composer_freezeout.compare.arms.dry_run import Data
from composer_freezeout.compare.arms.known import FREEZING
from composer_freezeout.compare.arms.lengths import total_batches
from composer_freezeout.run.config import RunConfig

__all__ = ['own_saving', 'predicted_saving', 'saving_of']


def saving_of(baseline: RunConfig, config: RunConfig, data: Data) -> float | None:
    """Share of a baseline's FLOPs that an arm saves.

    Args:
        baseline (RunConfig): The baseline's, which may itself have something frozen from the start.
        config (RunConfig): The arm's.
        data (Data): What both are trained on.

    Returns:
        float, optional: In ``(-∞, 1)``; None with several algorithms that freeze.

    Raises:
        ConfigError: If the model or an algorithm is at fault.
        ValueError: If the FLOPs of the model can't be counted.
    """
    from composer_freezeout.costs.saving import saving_over

    saving = predicted_saving(config, data)
    return None if saving is None else saving_over(saving, own_saving(baseline, data))


def own_saving(baseline: RunConfig, data: Data) -> float:
    """Share of the FLOPs that a baseline saves by what is frozen in it from the start.

    Args:
        baseline (RunConfig): The baseline's; what algorithms freeze in it is left out.
        data (Data): What it is trained on.

    Returns:
        float: In ``[0, 1)``.

    Raises:
        ConfigError: If the model is at fault.
        ValueError: If the FLOPs of the model can't be counted.
    """
    if not baseline.model.freeze:
        return 0.0
    return predicted_saving(baseline.model_copy(update={'algorithms': []}), data) or 0.0


def predicted_saving(config: RunConfig, data: Data) -> float | None:
    """Share of the FLOPs that an arm saves, what is frozen from the start included.

    Args:
        config (RunConfig): The arm's.
        data (Data): What it is trained on.

    Returns:
        float, optional: In ``[0, 1)``; None with several algorithms that freeze.

    Raises:
        ConfigError: If the model or an algorithm is at fault.
        ValueError: If the FLOPs of the model can't be counted.
    """
    # Imported here: torch takes seconds.
    from composer_freezeout.run.predicted import predict_whole_saving
    from composer_freezeout.run.registry import ALGORITHMS, bind

    epochs = math.ceil(total_batches(config, data.batches_per_epoch) / data.batches_per_epoch)
    entries = [entry for entry in config.algorithms if entry.name in FREEZING]
    algorithms = [bind(ALGORITHMS, entry, 'algorithms').build() for entry in entries]
    return predict_whole_saving(config.model, data.batch, algorithms, epochs)
