"""What a user chooses of FreezeOut: checked once, when it is given, and read by everything else."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from composer_freezeout.method.allocation import COST_SHIFT, check_unit_costs
from composer_freezeout.method.schedule import (
    Anneal,
    HowScale,
    check_anneal,
    check_schedule,
    freeze_stages,
    freeze_times,
    lr_factors,
)

__all__ = ['BatchNormMode', 'Granularity', 'Settings', 'check_batchnorm', 'check_patterns']

BatchNormMode = Literal['eval', 'batch', 'update']
Granularity = Literal['module', 'block']


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings that the algorithm and the loop have in common.

    Args:
        t_0 (float, optional): Freeze time of the first unit before scaling, as a fraction of training, in ``(0, 1]``.
            Smaller saves more and costs more accuracy; at 1 nothing freezes and all units follow one cosine. Default:
            ``0.8``.
        how_scale (str, optional): How freeze times depend on ``t_0``: ``'linear'``, ``'squared'`` or ``'cubic'``.
            Default: ``'cubic'``, with which the first unit freezes at ``t_0 ** 3``.
        scale_lr (bool, optional): Whether to scale each unit's learning rate by ``1 / t_i``, so that units that freeze
            early travel as far as the others. Default: ``True``.
        layers (Sequence[str], optional): The units: regular expressions over module names, first to freeze first. A
            module belongs to the unit whose expression matches its full name or that of a module around it. Default:
            ``None``, a unit for each module that owns parameters, with the normalisation that follows it, in the order
            of the forward pass.
        granularity (str, optional): ``'module'``, or ``'block'`` for one unit per residual, dense or transformer block.
            Default: ``'module'``.
        batchnorm (str, optional): What a frozen BatchNorm does in training: ``'eval'`` normalises by its running
            statistics, ``'batch'`` by those of the batch without updating the running ones, ``'update'`` goes on as
            before. Default: ``'eval'``.
        max_stages (int, optional): How often units may freeze, in ``[1, ∞)``. The units of a stage freeze together when
            the last of them is due; until then they stand still, all but their BatchNorm's statistics. Default:
            ``None``: no limit, or 4 if the model is compiled, as each stage is compiled anew.
        fuse_frozen (bool, optional): Whether a frozen prefix runs with the operators of inference while the model
            trains: BatchNorm folded into the convolution before it, attention without dropout in one operator. Faster,
            and equal to rounding. Compiled and sharded models run as they are. Default: ``True``.
        unit_costs (Sequence[float], optional): What freezing each unit saves of a step, in any unit of cost, one number
            per unit, first unit first; the last one, which never freezes, is not used. Expensive units then freeze
            earlier and cheap ones later, with the same mean, and none before the paper's first. Not the paper's
            FreezeOut. Default: ``None``, the paper's freeze times.
        cost_shift (float, optional): How much earlier a unit freezes that costs twice the average, as a fraction of
            training, in ``(0, 1]``, as far as order and bounds permit. Default: ``0.25``.
        head (Sequence[str], optional): What trains to the end, such as a new head of several layers: regular
            expressions over module names, as in ``layers``, where the ``module.`` of a wrapper may be left out. Its
            learning rate follows one cosine to the end of training. The other units freeze as if the head were the
            paper's last layer. Default: ``None``, the last unit, and others that no unit comes behind.
        anneal (str, optional): ``'shared'`` has the learning rates of all units fall along one cosine to the end of
            training, which freezing breaks off; ``scale_lr`` then stands for the factor under which units travel
            equally far. Not the paper's FreezeOut. Default: ``None``, a cosine for each unit, which ends when it
            freezes.

    Raises:
        TypeError: If one has the wrong type.
        ValueError: If one is out of range, or two contradict each other.
    """

    t_0: float = 0.8
    how_scale: HowScale = 'cubic'
    scale_lr: bool = True
    layers: Sequence[str] | None = None
    granularity: Granularity = 'module'
    batchnorm: BatchNormMode = 'eval'
    max_stages: int | None = None
    fuse_frozen: bool = True
    unit_costs: Sequence[float] | None = None
    cost_shift: float = COST_SHIFT
    head: Sequence[str] | None = None
    anneal: Anneal | None = None

    def __post_init__(self) -> None:
        check_schedule(self.t_0, self.how_scale)
        check_unit_costs(self.unit_costs, self.cost_shift)
        _check_granularity(self.granularity)
        check_batchnorm(self.batchnorm)
        check_anneal(self.anneal)
        for name in ('scale_lr', 'fuse_frozen'):
            if not isinstance(value := getattr(self, name), bool):
                raise TypeError(f'{name} must be True or False, got {value!r}')
        if self.head is not None:
            check_patterns(self.head, 'head')
        if self.layers is not None:
            check_patterns(self.layers, 'layers')
            if self.granularity != 'module':
                raise ValueError(f'layers already says what the units are; leave out granularity={self.granularity!r}')
        _check_stages(self.max_stages)
        # What the caller does with its lists afterwards changes no settings.
        for name in ('layers', 'unit_costs', 'head'):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, tuple(value))

    def freeze_times(self, num_units: int, heads: int = 1) -> tuple[float, ...]:
        """Progress at which each unit of a model freezes.

        Args:
            num_units (int): Number of units ``n``, in ``[1, ∞)``.
            heads (int): How many of the last units train to the end, in ``[1, num_units]``. Default: ``1``.

        Returns:
            tuple[float, ...]: ``n`` times in ``(0, 1]``, ascending; those of the heads are exactly 1.

        Raises:
            ValueError: If there is not one of ``unit_costs`` per unit.
        """
        return freeze_times(num_units, self.t_0, self.how_scale, self.unit_costs, self.cost_shift, heads)

    def lr_factors(self, t: float, times: Sequence[float], warmup: float = 0.0) -> list[float]:
        """Learning rates of all units at progress ``t``, as multiples of the base learning rate.

        Args:
            t (float): Progress, in ``[0, 1)``.
            times (Sequence[float]): Freeze time of each unit, in ``(0, 1]``.
            warmup (float): Progress at which the warm-up ends, below all freeze times. Default: ``0``, none.

        Returns:
            list[float]: As many factors, each in ``[0, 1 / t_i]``.
        """
        return lr_factors(t, times, self.scale_lr, warmup, self.anneal)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint says of them, as plain values; not ``fuse_frozen``, which may differ when it is resumed."""
        return {
            't_0': self.t_0,
            'how_scale': self.how_scale,
            'scale_lr': self.scale_lr,
            'layers': None if self.layers is None else list(self.layers),
            'granularity': self.granularity,
            'batchnorm': self.batchnorm,
            'max_stages': self.max_stages,
            'unit_costs': None if self.unit_costs is None else list(self.unit_costs),
            'cost_shift': self.cost_shift,
            'head': None if self.head is None else list(self.head),
            'anneal': self.anneal,
        }


def check_patterns(patterns: Sequence[str], name: str) -> None:
    """Checks that a setting is a non-empty list of regular expressions.

    Args:
        patterns (Sequence[str]): The expressions.
        name (str): Name of the setting, for errors.

    Raises:
        TypeError: If it isn't a list or tuple of strings.
        ValueError: If it is empty or an expression doesn't compile.
    """
    # The order counts, so a set won't do, and neither will what can be read only once.
    if not isinstance(patterns, Sequence) or isinstance(patterns, str) or not all(isinstance(p, str) for p in patterns):
        raise TypeError(f'{name} must be a list of regular expressions, got {patterns!r}')
    if not patterns:
        raise ValueError(
            f'{name} must hold at least one regular expression, got an empty list; leave it out for the default'
        )
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f'{name}: {pattern!r} is not a regular expression: {error}') from None


def check_batchnorm(batchnorm: str) -> None:
    """Checks the meaning of a frozen BatchNorm.

    Raises:
        ValueError: If it is not ``'eval'``, ``'batch'`` or ``'update'``.
    """
    if batchnorm not in get_args(BatchNormMode):
        raise ValueError(f'batchnorm must be one of {", ".join(get_args(BatchNormMode))}, got {batchnorm!r}')


def _check_granularity(granularity: str) -> None:
    if granularity not in get_args(Granularity):
        raise ValueError(f'granularity must be one of {", ".join(get_args(Granularity))}, got {granularity!r}')


def _check_stages(max_stages: int | None) -> None:
    if max_stages is not None and (isinstance(max_stages, bool) or not isinstance(max_stages, int)):
        raise TypeError(f'max_stages must be a whole number of at least 1, or None, got {max_stages!r}')
    freeze_stages(1, max_stages)
