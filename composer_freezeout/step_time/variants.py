"""The ways of doing a training step with ``k`` frozen units that ``step_time.py`` compares.

``loop`` is a PyTorch loop in which the first ``k`` units are frozen by hand; ``bound`` is the same loop with all that
needs no gradient as an inference graph; ``freezeout``, ``layer_freezing`` and ``composer`` are Composer's Trainer with
FreezeOut, with the freezing of Composer's ``LayerFreezing``, and without an algorithm.

In one of several processes all of them exchange gradients under DistributedDataParallel: ``loop`` and ``bound`` wrap
their model once it is frozen, as one would by hand, so that frozen parameters are never exchanged.
"""

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any, Literal

import torch
import torch.nn.functional as F
from composer import Callback, Trainer
from composer.algorithms import LayerFreezing
from composer.algorithms.layer_freezing.layer_freezing import _get_layers, freeze_layers
from composer.core import Algorithm, Event, State, Time, Timestamp
from composer.loggers import Logger, LoggerDestination
from composer.utils import dist
from torch import Tensor, fx, nn
from torch.fx.experimental.optimization import fuse
from torch.fx.passes.split_module import split_module
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from composer_freezeout.algorithm.freezeout import FreezeOut
from composer_freezeout.freezing.checkpoint import Saved
from composer_freezeout.freezing.observing.partition import Partition
from composer_freezeout.freezing.observing.units import Unit
from composer_freezeout.method.schedule import freeze_times
from composer_freezeout.step_time.workload import Probe, Variant, Workload

__all__ = ['VARIANTS', 'InComposer', 'InLoop', 'VariantName', 'inference_prefix', 'make_variant']

VariantName = Literal['loop', 'bound', 'freezeout', 'layer_freezing', 'composer']
VARIANTS: tuple[VariantName, ...] = ('loop', 'bound', 'freezeout', 'layer_freezing', 'composer')

# Batches of a training, so many that progress stands still while steps are timed.
_DURATION = 10**9


def make_variant(workload: Workload, name: VariantName, units_frozen: int) -> Variant:
    """Makes a variant, with nothing run yet.

    Args:
        workload (Workload): What is trained.
        name (VariantName): One of :data:`VARIANTS`.
        units_frozen (int): In ``[0, n)``.

    Returns:
        Variant: Ready to be visited, any number of times.
    """
    if name in ('loop', 'bound'):
        return InLoop(workload, units_frozen, inference=name == 'bound')
    return InComposer(workload, name, units_frozen)


# --- in a loop


class InLoop:
    """Steps in a hand-written loop, with nothing in the optimizer but what trains.

    Args:
        workload (Workload): What is trained.
        units_frozen (int): How many units are frozen, in ``[0, n)``.
        inference (bool): Whether what needs no gradient runs as an inference graph.

    Attributes:
        model (nn.Module): The network.
        wrapper (DistributedDataParallel, optional): Around it; None in a single process.
        norms_folded (int): BatchNorms that have been folded into a convolution, in ``[0, ∞)``.
        norms_unfolded (int): Those of the inference graph that have not.
    """

    def __init__(self, workload: Workload, units_frozen: int, inference: bool) -> None:
        self.workload = workload
        model = workload.copy_model()
        for unit in workload.units[:units_frozen]:
            for name in unit.parameters:
                model.get_parameter(name).requires_grad_(False)
            for name in unit.norms:
                model.get_submodule(name).eval()
        self.model: nn.Module = model.module
        self.norms_folded = self.norms_unfolded = 0
        self._optimizer = workload.make_optimizer([p for p in model.parameters() if p.requires_grad])
        if inference and units_frozen:
            self.model, self.norms_folded, self.norms_unfolded = inference_prefix(self.model)
        self.wrapper = DistributedDataParallel(self.model) if dist.get_world_size() > 1 else None
        self._forward: Any = self.model if self.wrapper is None else self.wrapper
        if workload.compile_backend is not None:
            self._forward = torch.compile(self._forward, backend=workload.compile_backend)

    def visit(self, probe: Probe) -> None:
        """Does the steps of a visit."""
        images, labels = self.workload.batch
        for _ in range(self.workload.steps):
            probe.begin()
            self._optimizer.zero_grad()
            with self.workload.autocast():
                loss = F.cross_entropy(self._forward(images), labels)
            probe.computed(loss)
            loss.backward()
            probe.backpropagated()
            self._optimizer.step()
            probe.stepped()
            del loss
            probe.end()

    def close(self) -> None:
        """Does nothing: there is nothing to end."""


class _Inference(nn.Module):
    """Runs a module without gradients."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Any) -> Any:
        with torch.no_grad():
            return self.module(*inputs)


def inference_prefix(network: nn.Module) -> tuple[nn.Module, int, int]:
    """Divides a network into what depends on a trainable parameter and the rest, and makes the rest an inference graph.

    The rest runs without gradients and in evaluation mode, and each of its BatchNorms that directly follows a
    convolution is folded into it.

    Args:
        network (nn.Module): The network, in training mode. It is not changed, and shares its trainable parameters with
            the result.

    Returns:
        tuple[nn.Module, int, int]: The same function; how many BatchNorms have been folded, and how many have not.
    """
    traced = fx.symbolic_trace(network)
    trained: set[fx.Node] = set()
    for node in traced.graph.nodes:
        if any(parameter.requires_grad for parameter in _read(traced, node)) or trained & {*node.all_input_nodes}:
            trained.add(node)
    divided = split_module(traced, network, lambda node: int(node in trained))
    prefix = divided.get_submodule('submod_0')
    before = _count_norms(prefix)
    prefix = fuse(prefix.eval())
    after = _count_norms(prefix)
    divided.submod_0 = _Inference(prefix)
    return divided, before - after, after


def _read(traced: fx.GraphModule, node: fx.Node) -> list[nn.Parameter]:
    """The parameters that a node of a traced network reads itself."""
    if node.op == 'call_module':
        return list(traced.get_submodule(str(node.target)).parameters())
    if node.op == 'get_attr':
        owner, _, attribute = str(node.target).rpartition('.')
        value = getattr(traced.get_submodule(owner), attribute)
        return [value] if isinstance(value, nn.Parameter) else []
    return []


def _count_norms(traced: nn.Module) -> int:
    assert isinstance(traced, fx.GraphModule)
    calls = [node for node in traced.graph.nodes if node.op == 'call_module']
    return sum(isinstance(traced.get_submodule(str(call.target)), nn.modules.batchnorm._BatchNorm) for call in calls)


# --- in Composer


class InComposer:
    """Steps of ``Trainer.fit``.

    What FreezeOut freezes depends on the progress alone, so progress is held between the freeze times of two units: the
    training has a billion batches, and each visit begins in the middle between the two. A visit is an epoch, which
    takes frozen units out of the optimizer; the first visit is not yet without them.

    A step begins when the batch is there, which is before any algorithm is told of it, and ends when algorithms have
    been told that it is over.

    Args:
        workload (Workload): What is trained.
        name (str): ``'freezeout'``, ``'layer_freezing'`` or ``'composer'``.
        units_frozen (int): How many of FreezeOut's units are frozen, in ``[0, n)``; ``'layer_freezing'`` freezes as
            many layers as come next to their share of the parameters.

    Attributes:
        model (ComposerClassifier): The model.
        layers_frozen (int, optional): How many layers ``'layer_freezing'`` has frozen.
        algorithm_seconds (list[float]): Python time of FreezeOut in each step, from the end of the one before.
    """

    def __init__(self, workload: Workload, name: VariantName, units_frozen: int) -> None:
        self.model = workload.copy_model()
        self.layers_frozen: int | None = None
        self._batch = 0
        optimizer = workload.make_optimizer(list(self.model.parameters()))
        timed: list[_TimedFreezeOut] = []
        algorithms: list[Algorithm] = []
        if name == 'freezeout':
            # Each number of units can be a stage, also of a compiled model.
            timed.append(_TimedFreezeOut(max_stages=max(1, len(workload.units) - 1)))
            times = (0.0, *freeze_times(len(workload.units)))
            self._batch = round(_DURATION * (times[units_frozen] + times[units_frozen + 1]) / 2)
        elif name == 'layer_freezing' and dist.get_world_size() > 1:
            # Freezes nothing itself: DDP is made as it asks for.
            algorithms.append(LayerFreezing(freeze_start=1.0))
        self._relay = _Relay(timed)
        compiling = None if workload.compile_backend is None else {'backend': workload.compile_backend}
        self._trainer = Trainer(
            model=self.model,
            train_dataloader=_Batches(workload.batch, workload.steps),
            max_duration=Time.from_batch(_DURATION),
            optimizers=optimizer,
            algorithms=[*timed, *algorithms],
            callbacks=[self._relay],
            # What FreezeOut tells of every batch is part of its time.
            loggers=[LoggerDestination()],
            device='gpu' if workload.device.type == 'cuda' else 'cpu',
            precision=workload.precision,
            compile_config=compiling,
            progress_bar=False,
            log_to_console=False,
            seed=0,
        )
        for freezeout in timed:
            # As in a run that is resumed: its first step has no units to find any more.
            known = Partition(tuple(workload.units), tuple(range(len(workload.units) + 1)))
            freezeout.load_state_dict(Saved(known, frozen_at=(), units_removed=0).state_dict())
        if name == 'layer_freezing':
            # Not before, as in a training: what DDP exchanges has been settled when the first layer freezes.
            share = _share(self.model, workload.units, units_frozen)
            self.layers_frozen = _freeze_as_many(self.model, optimizer, share)

    @property
    def wrapper(self) -> DistributedDataParallel | None:
        """What exchanges gradients with other processes."""
        model = self._trainer.state.model
        return model if isinstance(model, DistributedDataParallel) else None

    @property
    def algorithm_seconds(self) -> list[float]:
        """Seconds of the algorithm in each step so far."""
        return self._relay.algorithm_seconds

    def algorithm_alone(self, times: int = 200) -> list[float]:
        """Seconds of FreezeOut for the events of a step, with nothing computed between them.

        Computation on a CPU empties its caches, which on a GPU it doesn't.

        Args:
            times (int): How often, in ``[1, ∞)``.

        Returns:
            list[float]: As many.
        """
        state, logger = self._trainer.state, self._trainer.logger
        self._rewind(state)
        seconds = []
        for algorithm in self._relay.algorithms:
            for _ in range(times):
                start = time.perf_counter()
                for event in self._relay.events:
                    if FreezeOut.match(algorithm, event, state):
                        FreezeOut.apply(algorithm, event, state, logger)
                seconds.append(time.perf_counter() - start)
        return seconds

    def synchronizations(self) -> int:
        """How often FreezeOut waits for the GPU in the steps of a visit, in ``[0, ∞)``."""
        for algorithm in self._relay.algorithms:
            algorithm.synchronizations = 0
        self.visit(Probe())
        found = sum(algorithm.synchronizations or 0 for algorithm in self._relay.algorithms)
        for algorithm in self._relay.algorithms:
            algorithm.synchronizations = None
        return found

    def visit(self, probe: Probe) -> None:
        """Does the steps of a visit."""
        self._relay.probe = probe
        self._rewind(self._trainer.state)
        self._trainer.fit()

    def close(self) -> None:
        """Ends the Trainer."""
        self._trainer.close()

    def _rewind(self, state: State) -> None:
        state.max_duration = Time.from_batch(_DURATION)
        state.timestamp = Timestamp(batch=self._batch)


class _Batches:
    """A loader that has its batch already."""

    def __init__(self, batch: tuple[Tensor, Tensor], length: int) -> None:
        self.batch = batch
        self.batch_size = len(batch[0])
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter([self.batch] * self.length)


class _TimedFreezeOut(FreezeOut):
    """Adds up the time that is spent in it, and takes all visits for one training.

    Attributes:
        seconds (float): Since it was last set.
        events (list[Event]): Likewise, of which it was told.
        synchronizations (int, optional): How often it waited for the GPU; None as long as that isn't counted.
    """

    seconds = 0.0
    synchronizations: int | None = None

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.events: list[Event] = []

    def match(self, event: Event, state: State) -> bool:
        if event == Event.FIT_END:
            return False
        self.events.append(event)
        start = time.perf_counter()
        matches = super().match(event, state)
        self.seconds += time.perf_counter() - start
        return matches

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        if self.synchronizations is not None:
            self.synchronizations += _count_synchronizations(lambda: FreezeOut.apply(self, event, state, logger))
            return
        start = time.perf_counter()
        super().apply(event, state, logger)
        self.seconds += time.perf_counter() - start


def _count_synchronizations(function: Callable[[], object]) -> int:
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode('warn')
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            function()
    finally:
        torch.cuda.set_sync_debug_mode(before)
    return sum('synchronizing CUDA operation' in str(warning.message) for warning in caught)


class _Relay(Callback):
    """Tells a probe what the Trainer does, and ends each fit with its epoch."""

    def __init__(self, algorithms: Sequence[_TimedFreezeOut]) -> None:
        self.probe = Probe()
        self.algorithm_seconds: list[float] = []
        self.events: list[Event] = []  # of the last step
        self.algorithms = algorithms
        self._hooked = False

    def fit_start(self, state: State, logger: Logger) -> None:
        if not self._hooked:
            self._hooked = True
            state.optimizers[0].register_step_pre_hook(self._before_step)
            state.optimizers[0].register_step_post_hook(lambda *_: self.probe.stepped())

    def after_dataloader(self, state: State, logger: Logger) -> None:
        self.probe.begin()

    def after_loss(self, state: State, logger: Logger) -> None:
        assert isinstance(state.loss, Tensor)
        self.probe.computed(state.loss)

    def batch_end(self, state: State, logger: Logger) -> None:
        self.probe.end()
        for algorithm in self.algorithms:
            self.algorithm_seconds.append(algorithm.seconds)
            algorithm.seconds = 0.0
            self.events, algorithm.events = algorithm.events, []
        if state.timestamp.batch_in_epoch == state.dataloader_len:
            state.stop_training()

    def _before_step(self, _: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # Composer computes the gradients in a closure, within the step: what the step itself does comes after.
        if (closure := kwargs.get('closure')) is None:
            self.probe.backpropagated()
            return None

        def then_told() -> Any:
            loss = closure()
            self.probe.backpropagated()
            return loss

        return args, {**kwargs, 'closure': then_told}


def _share(model: nn.Module, units: Sequence[Unit], units_frozen: int) -> float:
    sizes = [sum(model.get_parameter(name).numel() for name in unit.parameters) for unit in units]
    return sum(sizes[:units_frozen]) / sum(sizes)


def _freeze_as_many(model: nn.Module, optimizer: Optimizer, share: float) -> int:
    """Freezes as LayerFreezing does, up to the layer that comes next to a share of the parameters."""
    layers: list[nn.Module] = []
    _get_layers(model, layers)
    total = sum(parameter.numel() for parameter in model.parameters())
    frozen = accumulate((sum(p.numel() for p in layer.parameters()) for layer in layers[:-1]), initial=0)
    shares = [size / total for size in frozen]
    depth = min(range(len(shares)), key=lambda index: abs(shares[index] - share))
    # Half a layer more, so that rounding doesn't leave out the last one; at the end there is no more.
    duration = 0.0 if not depth else min(1.0, (depth + 0.5) / (len(layers) - 1))
    found, _ = freeze_layers(model, optimizer, duration, freeze_start=0.0, freeze_level=1.0)
    assert found == depth, f'froze {found} layers instead of {depth}'
    return depth
