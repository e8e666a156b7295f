"""FreezeOut as a function, for a training loop without a trainer."""

from collections.abc import Callable, Sequence

from torch import nn
from torch.optim import Optimizer

from composer_freezeout.freezing.loop import FreezeOutLoop
from composer_freezeout.method.allocation import COST_SHIFT
from composer_freezeout.method.presets import Preset, takes_preset
from composer_freezeout.method.schedule import Anneal, HowScale
from composer_freezeout.method.settings import BatchNormMode, Granularity, Settings

__all__ = ['apply_freezeout']


@takes_preset
def apply_freezeout(
    model: nn.Module,
    optimizer: Optimizer,
    forward: Callable[[], object] | None = None,
    t_0: float = 0.8,
    how_scale: HowScale = 'cubic',
    scale_lr: bool = True,
    layers: Sequence[str] | None = None,
    granularity: Granularity = 'module',
    batchnorm: BatchNormMode = 'eval',
    fuse_frozen: bool = True,
    unit_costs: Sequence[float] | None = None,
    cost_shift: float = COST_SHIFT,
    max_stages: int | None = None,
    head: Sequence[str] | None = None,
    *,
    anneal: Anneal | None = None,
    preset: Preset | None = None,
) -> FreezeOutLoop:
    """Sets up `FreezeOut <https://arxiv.org/abs/1706.04983>`_ for a training loop without a trainer.

    Splits the optimizer's param groups in place, one per unit, and returns the object that anneals and freezes them.
    Which units the model has, and in which order, shows in its first training pass; with ``forward``, in a pass of its
    own that leaves no trace.

    Example:
        .. code-block:: python

            freezer = apply_freezeout(model, optimizer)
            for epoch in range(epochs):
                model.train()
                for batch, (inputs, targets) in enumerate(loader):
                    freezer.batch_start((epoch * len(loader) + batch) / (epochs * len(loader)))
                    optimizer.zero_grad()
                    loss_fn(model(inputs), targets).backward()
                    optimizer.step()
                freezer.epoch_end()

    Args:
        model (nn.Module): The model as it is trained: a ``DistributedDataParallel`` wrapper is started anew whenever
            units freeze, and a compiled model is compiled anew.
        optimizer (Optimizer): Its optimizer.
        forward (Callable[[], object], optional): Runs the model once on an example batch, as in training, and returns
            the loss or the outputs. Needed for compiled models; otherwise it tells the units before training begins.
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
        fuse_frozen (bool, optional): Whether a frozen prefix runs with the operators of inference while the model
            trains: BatchNorm folded into the convolution before it, attention without dropout in one operator. Faster,
            and equal to rounding. Compiled and sharded models run as they are. Default: ``True``.
        unit_costs (Sequence[float], optional): What freezing each unit saves of a step, in any unit of cost, one number
            per unit, first unit first; the last one, which never freezes, is not used. Expensive units then freeze
            earlier and cheap ones later, with the same mean, and none before the paper's first. Not the paper's
            FreezeOut. Default: ``None``, the paper's freeze times.
        cost_shift (float, optional): How much earlier a unit freezes that costs twice the average, as a fraction of
            training, in ``(0, 1]``, as far as order and bounds permit. Default: ``0.25``.
        max_stages (int, optional): How often units may freeze, in ``[1, ∞)``. The units of a stage freeze together when
            the last of them is due; until then they stand still, all but their BatchNorm's statistics. Default:
            ``None``: no limit, or 4 if the model is compiled, as each stage is compiled anew.
        head (Sequence[str], optional): What trains to the end, such as a new head of several layers: regular
            expressions over module names, as in ``layers``, where the ``module.`` of a wrapper may be left out. Its
            learning rate follows one cosine to the end of training. The other units freeze as if the head were the
            paper's last layer. Default: ``None``, the last unit, and others that no unit comes behind.
        anneal (str, optional): ``'shared'`` has the learning rates of all units fall along one cosine to the end of
            training, which freezing breaks off; ``scale_lr`` then stands for the factor under which units travel
            equally far. Not the paper's FreezeOut. Default: ``None``, a cosine for each unit, which ends when it
            freezes.
        preset (str, optional): ``'fine_tuning'`` takes the settings of :data:`.FINE_TUNING`, for training that begins
            with trained weights; what is given besides stands. Default: ``None``, the defaults above.

    Returns:
        FreezeOutLoop: To be called at the start of each batch and at the end of each epoch.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of range or the model can't be split as asked.
    """
    settings = Settings(
        t_0=t_0,
        how_scale=how_scale,
        scale_lr=scale_lr,
        layers=layers,
        granularity=granularity,
        batchnorm=batchnorm,
        max_stages=max_stages,
        fuse_frozen=fuse_frozen,
        unit_costs=unit_costs,
        cost_shift=cost_shift,
        head=head,
        anneal=anneal,
    )
    if not isinstance(model, nn.Module) or isinstance(model, nn.DataParallel):
        raise TypeError(f'model must be a module, which DistributedDataParallel may wrap, got {type(model).__name__}')
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f'optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}')
    if forward is not None and (not callable(forward) or forward is model):
        raise TypeError('forward must be a function without arguments, such as `lambda: model(example_inputs)`')
    return FreezeOutLoop(model, optimizer, forward, settings)
