"""What can't do its work next to FreezeOut: other algorithms that freeze, and whatever sets the learning rate."""

import inspect
import logging
from collections.abc import Sequence

from composer.algorithms import SWA, LayerFreezing
from composer.core import Algorithm
from composer.optim import ConstantScheduler
from torch.optim.lr_scheduler import LRScheduler

__all__ = ['refuse_rivals', 'warn_of_schedulers']

log = logging.getLogger(__name__)


def refuse_rivals(algorithms: Sequence[Algorithm], ours: type[Algorithm]) -> None:
    """Checks that no other algorithm of the Trainer gets in the way.

    Args:
        algorithms (Sequence[Algorithm]): All of them.
        ours (type[Algorithm]): FreezeOut's class.

    Raises:
        ValueError: If one does.
    """
    for algorithm in algorithms:
        if isinstance(algorithm, SWA) and algorithm.schedule_swa_lr:
            raise ValueError(
                'FreezeOut and SWA(schedule_swa_lr=True) both set the learning rate, and SWA knows a single one only; '
                'use SWA(schedule_swa_lr=False)'
            )
        if isinstance(algorithm, LayerFreezing):
            raise ValueError('FreezeOut and LayerFreezing both freeze layers; use one of them')
    if sum(isinstance(algorithm, ours) for algorithm in algorithms) > 1:
        raise ValueError('FreezeOut stands more than once in `algorithms`; give it once')


def warn_of_schedulers(schedulers: Sequence[LRScheduler]) -> None:
    """Says which schedulers have no effect.

    Args:
        schedulers (Sequence[LRScheduler]): Those of the Trainer.
    """
    rivals = [name for name in map(_name_of_rival, schedulers) if name is not None]
    if rivals:
        log.warning(
            'FreezeOut sets the learning rate of every unit itself, so %s has no effect on training and only '
            'changes what monitors read at the end of a batch. Remove it from `schedulers`; for a warm-up use '
            "FreezeOut(t_warmup='5ep').",
            ' and '.join(rivals),
        )


def _name_of_rival(scheduler: LRScheduler) -> str | None:
    """Name of a scheduler as the user knows it, or None if it leaves the learning rate alone."""
    # Composer compiles its schedulers to a LambdaLR around a closure.
    functions = getattr(scheduler, 'lr_lambdas', [None])
    closure = inspect.getclosurevars(functions[0]).nonlocals if inspect.isfunction(functions[0]) else {}
    original = closure.get('scheduler', scheduler)
    if isinstance(original, ConstantScheduler) and original.alpha == 1.0:
        return None
    return getattr(original, '__name__', type(original).__name__)
