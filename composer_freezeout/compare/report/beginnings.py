"""What the runs of a report began with: weights, and what was frozen from the start."""

from collections.abc import Iterable

from composer_freezeout.compare.judging.comparison import Comparison
from composer_freezeout.compare.report.text import counted

__all__ = ['beginnings']


def beginnings(comparison: Comparison) -> list[str]:
    """What the runs began with, where that was not the same random weights for all and nothing frozen.

    Args:
        comparison (Comparison): The runs.

    Returns:
        list[str]: Lines; none where there is nothing to tell.
    """
    return [*dict.fromkeys(_weights(comparison)), *_frozen(comparison)]


def _weights(comparison: Comparison) -> Iterable[str]:
    for run in comparison.runs:
        if (weights := run.record.weights) is not None:
            new = f'; new: {", ".join(weights.new)}' if weights.new else ''
            yield f'Weights of {weights.source}: {counted(weights.loaded, "tensor")} loaded{new}.'


def _frozen(comparison: Comparison) -> Iterable[str]:
    for arm in comparison.arms:
        for run in comparison.of(arm)[:1]:
            frozen, total = run.record.effective.frozen, run.record.effective.parameters_total
            if frozen is not None:
                patterns = ', '.join(run.record.config['model']['freeze'])
                yield f'{arm}: frozen from the start: {patterns} ({frozen.parameters:,} of {total:,} parameters).'
