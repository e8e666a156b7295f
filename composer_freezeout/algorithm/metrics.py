"""What every batch logs, and where: learning rates go to where they are plotted, not to the console."""

import functools
import re
from collections.abc import Mapping

from composer.core import State
from composer.loggers import ConsoleLogger, Logger, LoggerDestination, MLFlowLogger, ProgressBarLogger

from composer_freezeout.freezing.execution.execution import Execution
from composer_freezeout.freezing.freezer import LayerFreezer

__all__ = ['log_batch', 'name_for_mlflow']


def log_batch(state: State, logger: Logger, freezer: LayerFreezer, execution: Execution, progress: float) -> None:
    """Logs how far freezing has come.

    Args:
        state (State): The trainer's state.
        logger (Logger): Its logger.
        freezer (LayerFreezer): What freezes the units.
        execution (Execution): How the model runs.
        progress (float): Share of the training that is done, in ``[0, 1)``.
    """
    metrics: dict[str, float] = {
        'freezeout/progress': progress,
        'freezeout/units_frozen': freezer.units_frozen,
        'freezeout/fraction_frozen': freezer.fraction_frozen,
    }
    metrics.update((f'freezeout/{name}', value) for name, value in execution.metrics().items())
    rates = freezer.learning_rates()
    everything = {**metrics, **dict(zip(map(_rate_of, rates), rates.values(), strict=True))}
    step = state.timestamp.batch.value
    for destination in logger.destinations:
        if isinstance(destination, ProgressBarLogger):
            _show(destination, freezer)
        _log_to(destination, metrics if _is_read_by_people(destination) else everything, step)


def _log_to(destination: LoggerDestination, metrics: Mapping[str, float], step: int) -> None:
    if isinstance(destination, MLFlowLogger):
        # One name that it refuses ends the training.
        metrics = {name_for_mlflow(name): value for name, value in metrics.items()}
    destination.log_metrics(dict(metrics), step)


def _is_read_by_people(destination: LoggerDestination) -> bool:
    # They print all metrics that they get at every interval: a rate for each unit would drown the loss.
    return isinstance(destination, (ConsoleLogger, ProgressBarLogger))


def _show(destination: ProgressBarLogger, freezer: LayerFreezer) -> None:
    """Has the progress bar say how many units are frozen, when it next writes the loss."""
    bar = destination.train_pbar
    if bar is not None and bar.metrics:  # behind the loss, which a narrow terminal would cut off
        bar.metrics['frozen'] = f'{freezer.units_frozen}/{len(freezer.partition.units)}'


@functools.cache
def _rate_of(unit: str) -> str:
    return f'freezeout/lr/{unit}'


@functools.cache
def name_for_mlflow(name: str) -> str:
    """The name of a metric, such that MLflow takes it; the same for ordinary names of units.

    Expressions of ``layers``, which units are named after, hold other characters than it allows. They are written by
    their code points, so that two expressions don't become one name.

    Args:
        name (str): The name.

    Returns:
        str: Of alphanumerics, ``_``, ``-``, ``.``, space and ``/``.
    """
    allowed = re.sub(r'[^\w\-. /]', lambda match: f'_{ord(match[0]):02x}_', name)
    # It takes the name for a path, which has to be the shortest to where it leads.
    return re.sub(r'(?:(?<=/)|^)(\.{0,2})(?=/|$)', r'\1_', allowed)
