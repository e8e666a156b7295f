"""Models that ``torch.compile`` compiles, which is done anew for each set of frozen units."""

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from composer_freezeout.freezing.execution.execution import Execution

__all__ = ['DEFAULT_STAGES', 'Compiled', 'as_written', 'is_compiled']

# How often units of a compiled model may freeze if the user doesn't say: every time costs a compilation.
DEFAULT_STAGES = 4


class Compiled(Execution):
    """A model of which a part is compiled, and which runs in another way besides.

    Args:
        inner (Execution): The other way: eager, in a wrapper or sharded.
    """

    shows_steps = False
    runs_as_written = False
    runs_hooks = False  # they would be compiled, and their absence once more

    def __init__(self, inner: Execution) -> None:
        super().__init__(inner.module)
        self._inner = inner

    def stage_limit(self, max_stages: int | None) -> int | None:
        """Few, unless the user wants more: each stage is compiled anew."""
        return max_stages or DEFAULT_STAGES

    @contextlib.contextmanager
    def rehearsing(self) -> Iterator[None]:
        """As it runs otherwise; nothing compiled runs in it anyway."""
        with self._inner.rehearsing():
            yield

    def after_freeze(self, settled: Sequence[nn.Module]) -> None:
        """Has the next forward pass compiled anew, besides."""
        self._inner.after_freeze(settled)
        _forget_compiled()

    def metrics(self) -> dict[str, float]:
        """The time spent on compiling."""
        return {'compile_seconds': _compile_seconds()}


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


def as_written(model: nn.Module) -> tuple[str, nn.Module]:
    """What a model was before ``torch.compile`` was called on it.

    Args:
        model (nn.Module): The model, without a data-parallel wrapper.

    Returns:
        tuple[str, nn.Module]: What is in front of the names of its parameters in those of the model, and the module;
        nothing and the model itself if it runs as it is.
    """
    if isinstance(model, torch._dynamo.OptimizedModule):
        return '_orig_mod.', model.get_submodule('_orig_mod')
    return '', model


def _forget_compiled() -> None:
    """Makes the next forward pass compile anew.

    Compiled code is not checked against ``requires_grad`` of parameters: without this the backward pass of a frozen
    prefix goes on as before. It also starts the count that makes torch fall back to eager after too many compilations.
    """
    torch.compiler.reset()


def _compile_seconds() -> float:
    """Seconds that this process has spent on compiling so far, in ``[0, ∞)``."""
    times = torch._dynamo.utils.compilation_time_metrics
    return sum(sum(times.get(key, ())) for key in ('_compile.compile_inner', 'backward._backward_impl'))
