"""Which metric of an evaluation runs are judged by, and whether more of it is better."""

from collections.abc import Iterable, Mapping
from typing import Any

from composer.core import State
from composer.metrics import BinaryF1Score, CrossEntropy, LanguageCrossEntropy, LossMetric, MaskedAccuracy, MIoU

from composer_freezeout.results.record import ACCURACY, Metric

__all__ = ['eval_metrics', 'judged_by']

# Of Composer's own, which don't say it as those of torchmetrics do. Perplexity is a kind of cross entropy.
_LOWER = (CrossEntropy, LanguageCrossEntropy, LossMetric)
_HIGHER = (BinaryF1Score, MaskedAccuracy, MIoU)


def eval_metrics(state: State) -> dict[str, Any]:
    """The metrics of a run's evaluations.

    Args:
        state (State): The trainer's state.

    Returns:
        dict[str, torchmetrics.Metric]: By name, in the model's order.
    """
    return {name: metric for metrics in state.eval_metrics.values() for name, metric in metrics.items()}


def judged_by(metrics: Mapping[str, Any], evaluated: Iterable[str]) -> Metric | None:
    """The metric that a run is judged by.

    Args:
        metrics (Mapping[str, torchmetrics.Metric]): Those of the evaluation by name, in the model's order.
        evaluated (Iterable[str]): Names of those that have a value.

    Returns:
        Metric, optional: The first of which is known whether more of it is better; None if there is an accuracy, which
        comes before all, or no such metric.
    """
    evaluated = set(evaluated)
    if ACCURACY in evaluated:
        return None
    for name, metric in metrics.items():
        higher = _higher_is_better(metric)
        if name in evaluated and higher is not None:
            return Metric(name=name, higher_is_better=higher)
    return None


def _higher_is_better(metric: Any) -> bool | None:
    if isinstance(metric, _LOWER):
        return False
    return True if isinstance(metric, _HIGHER) else getattr(metric, 'higher_is_better', None)
