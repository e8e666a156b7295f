"""What can be counted of a training step, and its clock: probes of the variants that are compared."""

import gc
import time
import weakref
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node, saved_tensors_hooks
from torch.distributed import GradBucket, ProcessGroup  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from composer_freezeout.step_time.with_freezeout import WithFreezeOut
from composer_freezeout.step_time.workload import Probe, Variant, Workload

__all__ = ['Clock', 'compiled_graphs', 'count_memory', 'count_step', 'count_traffic', 'measure_on_gpu']


class Clock(Probe):
    """Times steps, up to the end of what they have enqueued on the device.

    Args:
        device (torch.device): Where they run.

    Attributes:
        seconds (list[float]): Of each step.
    """

    def __init__(self, device: torch.device) -> None:
        self.seconds: list[float] = []
        self._device = device
        self._start = 0.0

    def begin(self) -> None:
        """Starts the clock."""
        self._start = self._now()

    def end(self) -> None:
        """Reads it."""
        self.seconds.append(self._now() - self._start)

    def _now(self) -> float:
        if self._device.type == 'cuda':
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


class _Operators(TorchDispatchMode, Probe):
    """Counts the operators of the last step, those of the optimizer apart."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, int] = {}
        self.all = self.convolution_backwards = self.optimizer = 0
        self._before_optimizer = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # Marks for profilers are operators, too.
        self.all += func.namespace != 'profiler'
        self.convolution_backwards += func.name() == 'aten::convolution_backward'
        return func(*args, **(kwargs or {}))

    def begin(self) -> None:
        self.all = self.convolution_backwards = self.optimizer = 0

    def backpropagated(self) -> None:
        self._before_optimizer = self.all

    def stepped(self) -> None:
        self.optimizer = self.all - self._before_optimizer

    def end(self) -> None:
        # Here and not when asked: what comes after the step isn't the step's.
        self.counts = {
            'operators': self.all - self.optimizer,
            'optimizer_operators': self.optimizer,
            'convolution_backwards': self.convolution_backwards,
        }


class _Graph(Probe):
    """Counts the nodes of the last step's autograd graph, and the bytes that it keeps for the backward pass.

    Parameters don't count: they are there anyway. Neither does what is saved twice.
    """

    def __init__(self, model: nn.Module) -> None:
        self.counts: dict[str, int] = {}
        self._parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        self._saved: dict[int, int] = {}

    def begin(self) -> None:
        self._saved.clear()

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._parameters:
            self._saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    def computed(self, loss: Tensor) -> None:
        self.counts = {'autograd_nodes': _graph_size(loss), 'saved_bytes': sum(self._saved.values())}


class _Memory(TorchDispatchMode):
    """Follows the memory of the tensors that operators make, as long as anything holds them.

    Args:
        present (Iterable[Tensor]): Tensors that are there already; views of them take no memory.

    Attributes:
        bytes (int): Held now.
        peak (int): The most that was held since it was last set.
    """

    def __init__(self, present: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self._known = weakref.WeakSet(tensor.untyped_storage() for tensor in present)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._hold(leaf.untyped_storage())
        self.peak = max(self.peak, self.bytes)
        return result

    def _hold(self, storage: torch.UntypedStorage) -> None:
        if storage not in self._known:
            self._known.add(storage)
            size = storage.nbytes()
            self.bytes += size
            weakref.finalize(storage, self._release, size)

    def _release(self, size: int) -> None:
        self.bytes -= size


def _graph_size(loss: Tensor) -> int:
    todo: list[Node | None] = [loss.grad_fn]
    seen: set[Node] = set()
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo.extend(following for following, _ in node.next_functions)
    return len(seen)


class _Launches(Probe):
    """Counts kernels that the last step launches."""

    def __init__(self) -> None:
        self.count = 0
        self._profile: Any = None

    def begin(self) -> None:
        self._profile = profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA], acc_events=True)
        self._profile.start()

    def end(self) -> None:
        torch.cuda.synchronize()
        self._profile.stop()
        # cudaLaunchKernel, cudaLaunchKernelExC, cuLaunchKernel, …
        self.count = sum('LaunchKernel' in event.name for event in self._profile.events())


class _Traffic(Probe):
    """Counts the bytes of gradients that the last step all-reduces.

    Args:
        wrapper (DistributedDataParallel): What does so. It has not been run yet.
    """

    def __init__(self, wrapper: DistributedDataParallel) -> None:
        self.reduced = 0
        wrapper.register_comm_hook(None, self._reduce)

    def begin(self) -> None:
        self.reduced = 0

    def _reduce(self, group: ProcessGroup, bucket: GradBucket) -> Future[Tensor]:
        self.reduced += bucket.buffer().nbytes
        return allreduce_hook(group, bucket)


def count_step(make: Callable[[Workload], Variant], workload: Workload) -> dict[str, int]:
    """Counts what a step does, whatever the machine: eagerly, and with an optimizer of multi-tensor calls.

    Args:
        make (Callable[[Workload], Variant]): Makes the variant.
        workload (Workload): What is trained.

    Returns:
        dict[str, int]: ``operators`` outside of the optimizer, ``optimizer_operators``, ``convolution_backwards``,
        ``autograd_nodes`` and ``saved_bytes`` (in bytes).
    """
    variant = make(replace(workload, compile_backend=None, foreach=True))
    # Until everything that is done only once has been done.
    variant.visit(Probe())
    with _Operators() as operators:
        variant.visit(operators)
    graph = _Graph(variant.model)
    with saved_tensors_hooks(graph.pack, lambda tensor: tensor):
        variant.visit(graph)
    variant.close()
    return {**operators.counts, **graph.counts}


def count_memory(make: Callable[[Workload], Variant], workload: Workload) -> dict[str, int]:
    """Counts the memory of all tensors of a training, where the device doesn't: eagerly.

    Args:
        make (Callable[[Workload], Variant]): Makes the variant.
        workload (Workload): What is trained.

    Returns:
        dict[str, int]: ``peak_memory_bytes`` of weights, optimizer and step.
    """
    gc.collect()
    with _Memory([*workload.batch, *workload.model.parameters(), *workload.model.buffers()]) as memory:
        variant = make(replace(workload, compile_backend=None))
        variant.visit(Probe())
        memory.peak = memory.bytes
        variant.visit(Probe())
    variant.close()
    return {'peak_memory_bytes': memory.peak}


def count_traffic(make: Callable[[Workload], Variant], workload: Workload) -> dict[str, int]:
    """Counts what a step exchanges with the other processes, all of which have to call this.

    Args:
        make (Callable[[Workload], Variant]): Makes the variant.
        workload (Workload): What is trained.

    Returns:
        dict[str, int]: ``bytes_allreduced``, of gradients. The buffers that DDP broadcasts are not among them.
    """
    # A variant of its own: the hook's operators are not those of a step.
    variant = make(replace(workload, compile_backend=None))
    assert variant.wrapper is not None
    traffic = _Traffic(variant.wrapper)
    # Twice: FreezeOut freezes in the first visit.
    variant.visit(traffic)
    variant.visit(traffic)
    variant.close()
    return {'bytes_allreduced': traffic.reduced}


def measure_on_gpu(make: Callable[[Workload], Variant], workload: Workload) -> dict[str, int]:
    """Measures what a step needs on a GPU, with nothing else there but the batch.

    Args:
        make (Callable[[Workload], Variant]): Makes the variant.
        workload (Workload): What is trained.

    Returns:
        dict[str, int]: ``peak_memory_bytes`` of weights, optimizer and step, ``kernel_launches``, and how often
        FreezeOut waits for the device in a visit, ``freezeout_synchronizations``.
    """
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    variant = make(workload)
    variant.visit(Probe())
    torch.cuda.reset_peak_memory_stats()
    variant.visit(Probe())
    peak = torch.cuda.max_memory_allocated() - before
    launches = _Launches()
    variant.visit(launches)
    waits = variant.synchronizations() if isinstance(variant, WithFreezeOut) else 0
    variant.close()
    return {
        'peak_memory_bytes': peak,
        'kernel_launches': launches.count,
        'freezeout_synchronizations': waits,
    }


def compiled_graphs() -> int:
    """How many graphs ``torch.compile`` has captured so far, in ``[0, ∞)``."""
    return int(torch._dynamo.utils.counters['stats']['unique_graphs'])
