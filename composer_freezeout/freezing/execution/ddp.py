"""Models that DistributedDataParallel wraps: a reducer that waits for frozen parameters would wait for ever."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState
from torch.nn.parallel import DistributedDataParallel

from composer_freezeout.freezing.execution.execution import Execution

__all__ = ['DDP', 'restart_ddp']


class DDP(Execution):
    """A model in a ``DistributedDataParallel`` wrapper, which is started anew whenever units freeze.

    Args:
        model (DistributedDataParallel): The wrapper.
    """

    def __init__(self, model: DistributedDataParallel) -> None:
        super().__init__(model)
        self._wrapper = model

    @property
    def module(self) -> nn.Module:
        """What is inside of the wrapper."""
        return self._wrapper.module

    def after_freeze(self, settled: Sequence[nn.Module]) -> None:
        """Gives the wrapper a reducer that doesn't wait for what is frozen, besides."""
        super().after_freeze(settled)
        restart_ddp(self._wrapper, settled)


def restart_ddp(model: DistributedDataParallel, settled: Iterable[nn.Module] = ()) -> None:
    """Gives a wrapper a new reducer, so that only what still changes is communicated.

    DDP fixes the parameters that it expects gradients for when it is made. All else stays as it is: settings, hooks,
    attributes, a compiled forward. Parameters are not broadcast: the ranks agree on them already. The new reducer puts
    the parameters into other buckets, at once and when the second backward pass has begun, hence

    - PowerSGD forgets its errors and its low-rank factors, which belong to places in the old buckets, and sends the
      gradients of two steps as they are, as it does at the beginning. Its ``start_powerSGD_iter`` is moved for that.
    - Parameters whose all-reduce was delayed join the others' buckets as soon as one of them, or the one whose gradient
      starts their all-reduce, is frozen.

    Args:
        model (DistributedDataParallel): The wrapper. At least one parameter must be trainable.
        settled (Iterable[nn.Module]): Modules of the model whose buffers stand still and are the same on every rank.
    """
    builtin_hook = _builtin_hook(model)
    # The old reducer's hooks sit on the parameters and would communicate every gradient a second time.
    model._remove_autograd_hooks()
    _ignore_buffers(model, settled)
    _join_delayed(model)
    _build_reducer(model)
    if builtin_hook is not None:
        model._register_builtin_comm_hook(builtin_hook)
    hooks, model._comm_hooks = model._comm_hooks, []
    for hook, state in hooks:
        if isinstance(state, PowerSGDState):
            _restart_power_sgd(state)
        model.register_comm_hook(state, hook)


def _build_reducer(model: Any) -> None:
    """Makes a wrapper's reducer as torch does when it unpickles one, and as its constructor ends."""
    vars(model).update(reducer=None, logger=None)  # frees the buckets before there are new ones
    parameters, sparse = model._build_params_for_reducer()
    names = model._build_debug_param_to_name_mapping(parameters)
    low = [] if model.mixed_precision is None else parameters
    whole = [p.data for p in low]
    for p in low:
        # Told of the precision later, it would fill its first buckets in this one, and send others.
        p.data = p._mp_param
    model._ddp_init_helper(parameters, sparse, names, model.static_graph)
    for p, data in zip(low, whole, strict=True):
        p.data = data
    model._has_rebuilt_buckets = False
    if model.static_graph:
        model.reducer._set_static_graph()
        model.logger._set_static_graph()
        model._static_graph_delay_allreduce_enqueued = False
    if model.mixed_precision is not None:
        model.reducer._set_mixed_precision_param_dtype(model.mixed_precision.param_dtype)


def _builtin_hook(model: DistributedDataParallel) -> Any:
    """The communication hook of those that are written in C++, which only the log has the name of."""
    name = model._get_ddp_logging_data().get('comm_hook', '')
    kinds: Any = dist.BuiltinCommHookType  # pyright: ignore[reportPrivateImportUsage]
    return kinds.__members__.get(name.removeprefix('BuiltinCommHookType.'))


def _ignore_buffers(model: DistributedDataParallel, settled: Iterable[nn.Module]) -> None:
    """Leaves out buffers from the broadcast: written to before every forward pass, they would look as if they changed.

    Args:
        model (DistributedDataParallel): The wrapper. What it left out for an earlier call, it sends again.
        settled (Iterable[nn.Module]): The modules with these buffers.
    """
    still = {id(buffer) for module in settled for buffer in module.buffers(recurse=False)}
    names = {name for name, buffer in model.module.named_buffers() if id(buffer) in still}
    # Those that the user ignores are not ours to take back.
    others = model.parameters_to_ignore - vars(model).get('settled_buffers', set())
    vars(model)['settled_buffers'] = names - others
    model.parameters_to_ignore = names | others


def _join_delayed(model: DistributedDataParallel) -> None:
    """Lets the reducer have the parameters with a delayed all-reduce, once that can't go on as it was.

    DDP gives all of them a gradient, and reduces them when one parameter gets its own.

    Args:
        model (DistributedDataParallel): The wrapper.
    """
    start = model._delayed_all_reduce_hook
    starting = [p for p in model.module.parameters() if start in (p._backward_hooks or {}).values()]
    if all(p.requires_grad for p in (*model._delay_all_reduce_params, *starting)):
        return
    for hooks in (p._backward_hooks or {} for p in starting):
        for key in [key for key, hook in hooks.items() if hook == start]:
            del hooks[key]
    delayed = {id(p) for p in model._delay_all_reduce_params}
    for name, parameter in model.module.named_parameters(remove_duplicate=False):
        if id(parameter) in delayed:
            # The reducer's names of the parameters of the model itself begin with a dot.
            model.parameters_to_ignore -= {name, f'.{name}'}
    model._delay_all_reduce_params, model._delay_grad_views, model._delay_grad_buffer = [], [], None


def _restart_power_sgd(state: PowerSGDState) -> None:
    """Forgets what belongs to places in buckets, and leaves time for the new ones to get their order."""
    for memory in (state.error_dict, state.p_memory_dict, state.q_memory_dict):
        memory.clear()
    if state.use_error_feedback or state.warm_start:
        # Two steps, as PowerSGDState asks for.
        state.start_powerSGD_iter = max(state.start_powerSGD_iter, state.iter + 2)
