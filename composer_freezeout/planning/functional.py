"""A plan for any model in Python, as a function."""

import contextlib
import inspect
from collections.abc import Callable
from typing import Any

import torch
from composer.core import Time, TimeUnit
from torch import nn
from torch.compiler import set_stance
from torch.optim import Optimizer

from composer_freezeout.algorithm.freezeout import FreezeOut
from composer_freezeout.freezing.observing.snapshot import random_states_put_back
from composer_freezeout.planning.looked import Looked
from composer_freezeout.planning.make import make_plan
from composer_freezeout.planning.module import Training, look_at_module
from composer_freezeout.planning.plan import Plan
from composer_freezeout.planning.step import Step
from composer_freezeout.run.faults import suggest

__all__ = ['plan']

_REPEATS = 5


def plan(
    model: nn.Module,
    batch: Any,
    optimizer: Optimizer,
    duration: str | int | Time,
    *,
    loss_fn: Callable[[Any, Any], Any] | None = None,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    batches_per_epoch: int | None = None,
    target: float | None = None,
    profile: bool | int = False,
    **settings: Any,
) -> Plan:
    """Says what FreezeOut will freeze when, and what that saves, before anything is trained.

    The units are those that :class:`.FreezeOut` and :func:`.apply_freezeout` make of the model. They show in a training
    pass on the batch, of which no trace is left: parameters, buffers, modes, gradients, the optimizer and random states
    are as they were. FLOPs are counted on a copy without data, where the model can be run on one.

    Example:
        .. code-block:: python

            plan = composer_freezeout.plan(
                model, next(iter(loader)), optimizer, '10ep', loss_fn=loss_fn, batches_per_epoch=len(loader), t_0=0.5
            )
            print(plan)
            plan.plot('plan.png')

    Args:
        model (nn.Module): The model before training, of any kind; a ComposerModel has its loss.
        batch (Any): An example batch, in any nesting of tensors, with the samples in front. A module is called with
            what it is: a tensor as it is, a mapping as keyword arguments; of a pair ``(inputs, targets)`` it gets the
            inputs.
        optimizer (Optimizer): The optimizer of the training. The learning rates of its groups are those that
            FreezeOut starts from, and what isn't in it never moves.
        duration (str | int | Time): How long the training is: a Composer time string in epochs, batches, samples or
            tokens, such as ``'10ep'``, or a number of batches, in ``[1, ∞)``.
        loss_fn (Callable, optional): From outputs and targets to the loss. Default: ``None``: what the model returns as
            its loss, as those of ``transformers`` do that are given labels; else the outputs stand for it, which is
            all the same to the units.
        forward (Callable, optional): From the model and the batch to the loss, for everything else. Default: ``None``.
        batches_per_epoch (int, optional): In ``[1, ∞)``; tells in which batch of a training in epochs units freeze.
            Default: ``None``.
        target (float, optional): A saving, in ``(0, 1)``, to find ``t_0`` for. Default: ``None``.
        profile (bool | int, optional): Whether to measure training steps where the model is, on a copy, within about
            half a minute; a number says how many of each, in ``[1, ∞)``. Default: ``False``.
        **settings: Arguments of :class:`.FreezeOut`, such as ``t_0=0.5`` or ``preset='fine_tuning'``.

    Returns:
        Plan: To be printed, drawn (:meth:`.Plan.plot`) and read.

    Raises:
        TypeError: If an argument has the wrong type, or is none of FreezeOut's.
        ValueError: If one is out of range, or the model can't be run, split or counted so.
    """
    if not isinstance(model, nn.Module) or isinstance(model, nn.DataParallel):
        raise TypeError(f'model must be a module, which DistributedDataParallel may wrap, got {type(model).__name__}')
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f'optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}')
    _check_count('batches_per_epoch', batches_per_epoch)
    repeats = _REPEATS if isinstance(profile, bool) else profile
    _check_count('profile', repeats)
    if target is not None and not isinstance(target, (int, float)):
        raise TypeError(f'target must be a number in (0, 1), such as 0.15, got {target!r}')
    if target is not None and not 0 < target < 1:
        raise ValueError(f'target must be a share in (0, 1), such as 0.15, got {target!r}')
    training = Training(model, batch, optimizer, loss_fn, forward)
    freezeout, length = _freezeout(settings), _duration(duration)
    devices = [parameter.device for parameter in model.parameters()]
    with random_states_put_back(devices), set_stance('force_eager'), torch.enable_grad():
        run = look_at_module(training, freezeout, length, batches_per_epoch, measure=profile is not False)
        found = _made(run, target, repeats)
    flops = next(prediction for prediction in found.predictions if prediction.model == 'flops')
    if target is not None and flops.t_0 is None:  # what is measured may be noise
        raise ValueError(
            f'target {target:.1%} is out of reach: t_0 in (0, 1) saves between 0 and {flops.largest:.1%} of the FLOPs; '
            'give less'
        )
    return found


def _check_count(name: str, value: object) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise TypeError(f'{name} must be a whole number of at least 1, got {value!r}')
    if value is not None and value < 1:
        raise ValueError(f'{name} must be at least 1, got {value}')


def _freezeout(settings: dict[str, Any]) -> FreezeOut:
    known = inspect.signature(FreezeOut).parameters
    for name in settings:
        if name not in known:
            raise TypeError(f'FreezeOut has no argument {name!r}; {suggest(name, known)}')
    return FreezeOut(**settings)


def _duration(duration: str | int | Time) -> str:
    """A length of training as a Composer time string."""
    time = None
    if isinstance(duration, int) and not isinstance(duration, bool):
        time = Time(duration, TimeUnit.BATCH)
    elif isinstance(duration, (str, Time)):
        with contextlib.suppress(OverflowError, RuntimeError, TypeError, ValueError):
            time = Time.from_input(duration)
    units = (TimeUnit.EPOCH, TimeUnit.BATCH, TimeUnit.SAMPLE, TimeUnit.TOKEN)
    if time is None or time.unit not in units or time.value < 1:
        raise ValueError(
            "duration must be a Composer time string of at least 1 ep, ba, sp or tok, such as '10ep', or a number of "
            f'batches, got {duration!r}'
        )
    return time.to_timestring()


def _made(run: Looked, target: float | None, repeats: int) -> Plan:
    try:
        return make_plan(run, target=target, repeats=repeats)
    except ValueError as error:
        # What else the message says is for a training.
        reason, is_ours, _ = str(error).partition('; use const_time')
        if not is_ours:
            raise
        reason = reason.replace(Step.__name__, run.name, 1)
        raise ValueError(f'{reason}; the training itself needs no count, only the plan does') from error
