"""Keeps ``torch.compile`` in step with what is frozen."""

import torch
from torch import nn

__all__ = ['DEFAULT_STAGES', 'compile_seconds', 'forget_compiled', 'is_compiled', 'stage_limit']

# How often units of a compiled model may freeze if the user doesn't say: every time costs a compilation.
DEFAULT_STAGES = 4


def is_compiled(model: nn.Module) -> bool:
    """Whether the model, or a module in it, runs compiled.

    Args:
        model (nn.Module): The model as it is trained, with its data-parallel wrapper.

    Returns:
        bool: True if `torch.compile` was applied to a forward method, a module or by ``module.compile()``.
    """
    return any(
        isinstance(module, torch._dynamo.OptimizedModule)
        or module._compiled_call_impl is not None
        or hasattr(module.forward, '_torchdynamo_orig_callable')
        for module in model.modules()
    )


def stage_limit(max_stages: int | None, compiled: bool) -> int | None:
    """How often units may freeze.

    Args:
        max_stages (int, optional): What the user says.
        compiled (bool): Whether the model is compiled.

    Returns:
        int, optional: None for no limit.
    """
    return max_stages or (DEFAULT_STAGES if compiled else None)


def forget_compiled() -> None:
    """Makes the next forward pass compile anew.

    Compiled code is not checked against ``requires_grad`` of parameters: without this the backward pass of a frozen
    prefix goes on as before. It also starts the count that makes torch fall back to eager after too many compilations.
    """
    torch.compiler.reset()


def compile_seconds() -> float:
    """Seconds that this process has spent on compiling so far, in ``[0, ∞)``."""
    times = torch._dynamo.utils.compilation_time_metrics
    return sum(sum(times.get(key, ())) for key in ('_compile.compile_inner', 'backward._backward_impl'))
