"""A data-parallel wrapper that has been started anew is the one that it was, but for what is frozen.

Most of it shows in a group of one. What ranks make of each other's gradients takes two: this file is also their script.
"""

import contextlib
import copy
import gc
import inspect
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives  # mixed precision takes it for imported
from composer.utils import dist as composer_dist
from torch import nn
from torch._C._distributed_c10d import BuiltinCommHookType, GradBucket, HashStore
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, post_localSGD_hook, powerSGD_hook
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parallel.distributed import _MixedPrecision

from composer_freezeout.freezing.execution.ddp import restart_ddp

from .launching import launch

SIZE, LAYERS = 8, 5
BUCKET_MB = 400 / 2**20  # a weight and a bias are 288 bytes


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [layer for _ in range(LAYERS) for layer in (nn.Linear(SIZE, SIZE), nn.Tanh())]
    return nn.Sequential(*layers[:-1])


def linear(model: Any, index: int) -> nn.Linear:
    return getattr(model, 'module', model)[2 * index]


def freeze(model: Any, *indices: int) -> None:
    for index in indices:
        linear(model, index).requires_grad_(False)
        linear(model, index).zero_grad()


def step(model: nn.Module, seed: int = 0) -> list[torch.Tensor | None]:
    """The gradients of one batch."""
    model.zero_grad()
    inputs = torch.randn(4, SIZE, generator=torch.Generator().manual_seed(seed))
    model(inputs).square().sum().backward()
    return [None if p.grad is None else p.grad.clone() for p in model.parameters()]


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """In a group of this process alone."""
    ours = not dist.is_initialized()
    if ours:
        dist.init_process_group('gloo', store=HashStore(), rank=0, world_size=1)
    yield
    if ours:
        dist.destroy_process_group()


@pytest.fixture(scope='module')
def group() -> Iterator[None]:
    with alone():
        yield


# --- the arguments of the constructor


def delayed_arguments(module: nn.Module) -> dict[str, Any]:
    return {
        'delay_all_reduce_named_params': [('6.weight', linear(module, 3).weight)],
        'param_to_hook_all_reduce': linear(module, 1).weight,
    }


# What each argument of torch's constructor is tried with: on the CPU there are no devices to choose from.
ARGUMENTS: dict[str, Callable[[nn.Module], dict[str, Any]]] = {
    'module': lambda module: {},
    'device_ids': lambda module: {'device_ids': []},
    'output_device': lambda module: {'output_device': None},
    'dim': lambda module: {'dim': 1},
    'broadcast_buffers': lambda module: {'broadcast_buffers': False},
    'init_sync': lambda module: {'init_sync': False},
    'process_group': lambda module: {'process_group': dist.new_group([0])},
    'bucket_cap_mb': lambda module: {'bucket_cap_mb': BUCKET_MB},
    'find_unused_parameters': lambda module: {'find_unused_parameters': True},
    'check_reduction': lambda module: {'check_reduction': True},
    'gradient_as_bucket_view': lambda module: {'gradient_as_bucket_view': True},
    'static_graph': lambda module: {'static_graph': True},
    'delay_all_reduce_named_params': delayed_arguments,
    'param_to_hook_all_reduce': delayed_arguments,
    'mixed_precision': lambda module: {'mixed_precision': _MixedPrecision(torch.bfloat16, torch.bfloat16)},
    'device_mesh': lambda module: {'device_mesh': init_device_mesh('cpu', (1,))},
}
IN_TORCH = [name for name in inspect.signature(DistributedDataParallel.__init__).parameters if name != 'self']


def test_every_argument_is_tried():
    assert set(IN_TORCH) == set(ARGUMENTS), (
        "torch's DistributedDataParallel takes other arguments than ARGUMENTS lists: see whether they survive "
        'restart_ddp, and whether its own parts of the constructor (_build_reducer) still do all that belongs there'
    )


class FakeStream:
    """Stands for a stream, and for an event: without an accelerator there is nothing to wait for."""

    def __enter__(self) -> 'FakeStream':
        return self

    def __exit__(self, *_: object) -> None: ...

    def record(self) -> None: ...

    def wait(self, stream: Any = None) -> None: ...

    def wait_stream(self, stream: Any) -> None: ...


@pytest.fixture
def on_cpu(monkeypatch) -> None:
    """Lets DDP's mixed precision run on the CPU, and puts two small layers into the default first bucket."""
    monkeypatch.setattr(torch, 'Stream', FakeStream)
    monkeypatch.setattr(torch, 'Event', FakeStream)
    monkeypatch.setattr(torch.accelerator, 'current_stream', FakeStream)
    monkeypatch.setattr(dist, '_DEFAULT_FIRST_BUCKET_BYTES', 500)


def logged(model: DistributedDataParallel) -> dict[str, Any]:
    """What the reducer says of itself, such as the sizes of its buckets."""
    data = model._get_ddp_logging_data()
    # Under mixed precision torch makes the first buckets with another precision than those of the second step.
    passing = {'dtypes', 'total_parameter_size_bytes', 'bucket_sizes'} if model.mixed_precision else set()
    return {key: value for key, value in data.items() if 'time' not in key and key not in {'iteration', *passing}}


@pytest.mark.filterwarnings('ignore:The `check_reduction` argument')
@pytest.mark.parametrize('name', IN_TORCH)
def test_a_wrapper_goes_on_as_a_new_one_would(name, group, on_cpu):
    module = network()
    model = DistributedDataParallel(module, **ARGUMENTS[name](module))
    for _ in range(3):
        step(model)
    freeze(model, 0)
    restart_ddp(model)
    assert not model._has_rebuilt_buckets
    module = network()
    freeze(module, 0)
    new = DistributedDataParallel(module, **ARGUMENTS[name](module))
    step(new)  # the first gradients under mixed precision are not to be had from torch
    for seed in range(4):
        torch.testing.assert_close(step(model, seed), step(new, seed), rtol=0, atol=0)
    assert logged(model) == logged(new)


@pytest.mark.filterwarnings('ignore:The `check_reduction` argument')
@pytest.mark.parametrize('name', IN_TORCH)
def test_all_but_the_reducer_stays_the_same(name, group, on_cpu):
    module = network()
    model = DistributedDataParallel(module, **ARGUMENTS[name](module))
    step(model)
    freeze(model, 0)
    with model.no_sync():
        before = dict(vars(model))
        restart_ddp(model)
        after = dict(vars(model))
    changed = {key for key in before | after if before.get(key) is not after.get(key)}
    renewed = {'reducer', 'logger', '_comm_hooks', 'parameters_to_ignore', 'settled_buffers'}
    assert changed <= renewed | {'modules_buffers', 'named_module_buffers', '_static_graph_delay_allreduce_enqueued'}
    assert {'reducer', 'logger'} <= changed
    assert [hook for hook, _ in before['_comm_hooks']] == [hook for hook, _ in after['_comm_hooks']]


def test_the_first_bucket_stays_small(group, on_cpu):
    """With a size of their own the others would have it as well."""
    model = DistributedDataParallel(network())
    for restart in (False, True):
        if restart:
            freeze(model, 0)
            restart_ddp(model)
        for _ in range(3):
            step(model)
        assert logged(model)['rebuilt_bucket_sizes'].split(', ')[0] == '576'  # two layers


# --- what is registered on the wrapper


HOOKS = {
    'register_forward_pre_hook': {'prepend': True},
    'register_forward_hook': {'always_call': True},
    'register_full_backward_pre_hook': {},
    'register_full_backward_hook': {},
    'register_state_dict_pre_hook': {},
    'register_state_dict_post_hook': {},
    'register_load_state_dict_pre_hook': {},
    'register_load_state_dict_post_hook': {},
}


def called(model: nn.Module, calls: list[str]) -> list[str]:
    calls.clear()
    model(torch.ones(2, SIZE, requires_grad=True)).sum().backward()
    model.load_state_dict(model.state_dict())
    return sorted(calls)


def test_hooks_on_the_wrapper_go_on_being_called(group):
    model = DistributedDataParallel(network())
    calls: list[str] = []
    for register, arguments in HOOKS.items():
        getattr(model, register)(lambda *_, name=register: calls.append(name), **arguments)
    assert called(model, calls) == sorted(HOOKS)
    freeze(model, 0)
    restart_ddp(model)
    assert called(model, calls) == sorted(HOOKS)


class Counting(DistributedDataParallel):
    """Made otherwise than its base, and with something of its own."""

    def __init__(self, name: str, module: nn.Module) -> None:
        super().__init__(module)
        self.name = name
        self.register_buffer('steps', torch.zeros(()))


def test_a_subclass_keeps_what_is_its_own(group):
    model: Any = Counting('counting', network())
    model.steps += 1
    model.eval()
    freeze(model, 0)
    restart_ddp(model)
    assert (model.name, model.steps.item(), model.training) == ('counting', 1, False)


def test_nothing_is_communicated_where_it_is_not_asked_for(group):
    model = DistributedDataParallel(network())
    calls: list[int] = []
    model.register_comm_hook(None, counted(default_hooks.allreduce_hook, calls))
    with model.no_sync():
        freeze(model, 0)
        restart_ddp(model)
        step(model)
    assert calls == []
    step(model)
    assert sum(calls) == 4 * (SIZE + 1) * SIZE * 4


def test_the_earlier_reducer_is_gone(group):
    model = DistributedDataParallel(network())
    step(model)
    reducer = weakref.ref(model.reducer)
    freeze(model, 0)
    restart_ddp(model)
    step(model)
    gc.collect()
    assert reducer() is None


def test_an_earlier_reducer_that_lives_on_communicates_nothing(group):
    model = DistributedDataParallel(network())
    calls: list[int] = []
    model.register_comm_hook(None, counted(default_hooks.allreduce_hook, calls))
    reducer = model.reducer
    model(torch.ones(2, SIZE))  # it waits for the backward pass
    restart_ddp(model)
    step(model)
    assert len(calls) == 1 and model.reducer is not reducer


def test_a_hook_in_cpp_stays(group):
    model = DistributedDataParallel(network())
    model._register_builtin_comm_hook(BuiltinCommHookType.FP16_COMPRESS)
    for index in range(2):
        freeze(model, index)
        restart_ddp(model)
        assert logged(model)['comm_hook'] == 'BuiltinCommHookType.FP16_COMPRESS'
    sent = step(model)[-1]
    assert sent is not None and torch.equal(sent, sent.half().float())


# --- buffers


class Buffers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.BatchNorm1d(2, affine=False), nn.BatchNorm1d(2, affine=False)
        self.last = nn.Linear(2, 2)
        for name in ('own', 'ignored'):
            self.register_buffer(name, torch.zeros(1))


def sent(model: DistributedDataParallel, settled: list[nn.Module]) -> set[str]:
    restart_ddp(model, settled)
    return {name.split('.')[0] for name in model.named_module_buffers}


def test_buffers_that_stand_still_are_not_sent(group):
    model = DistributedDataParallel(Buffers())
    model.parameters_to_ignore.add('ignored')
    assert sent(model, []) == {'first', 'second', 'own'}
    assert sent(model, [model.module.first]) == {'second', 'own'}
    assert sent(model, [model.module.first, model.module.second]) == {'own'}
    assert sent(model, [model.module]) == {'first', 'second'}
    assert sent(model, []) == {'first', 'second', 'own'}


# --- communication hooks with something to remember


def test_powersgd_begins_anew_after_a_freeze(group):
    state = power_sgd(rank=1, start=2)
    model = DistributedDataParallel(network())
    model.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
    for index in range(2):
        for _ in range(4):
            step(model)
        assert state.error_dict and state.p_memory_dict and state.q_memory_dict
        freeze(model, index)
        restart_ddp(model)
        assert not (state.error_dict or state.p_memory_dict or state.q_memory_dict)
        exact = copy.deepcopy(model.module)
        for _ in range(2):
            torch.testing.assert_close(step(model), step(exact))
        assert not state.error_dict
    compressed = state.total_numel_after_compression
    step(model)
    assert state.error_dict and state.total_numel_after_compression > compressed


def test_powersgd_that_has_not_begun_begins_when_it_would_have(group):
    state = power_sgd(rank=1, start=100)
    model = DistributedDataParallel(network())
    model.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
    restart_ddp(model)
    assert state.start_powerSGD_iter == 100


def test_powersgd_without_a_memory_has_nothing_to_wait_for(group):
    state = powerSGD_hook.PowerSGDState(None, start_powerSGD_iter=0, use_error_feedback=False, warm_start=False)
    model = DistributedDataParallel(network())
    model.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
    step(model)
    restart_ddp(model)
    assert state.start_powerSGD_iter == 0
    step(model)


def power_sgd(rank: int, start: int) -> powerSGD_hook.PowerSGDState:
    # Without a least rate everything is compressed.
    return powerSGD_hook.PowerSGDState(None, rank, start, min_compression_rate=0)


# --- two ranks


def counted(hook: Callable[..., Any], calls: list[int]) -> Callable[..., Any]:
    """A communication hook that notes how many bytes come in."""

    def counting(state: Any, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
        calls.append(bucket.buffer().nbytes)
        return hook(state, bucket)

    return counting


# Hooks with their states, and how far from an exact mean they may lead.
COMM_HOOKS: dict[str, tuple[Callable[..., Any], Callable[[], Any], float]] = {
    'allreduce': (default_hooks.allreduce_hook, lambda: None, 0.0),
    'fp16': (default_hooks.fp16_compress_hook, lambda: None, 1e-3),
    'bf16': (default_hooks.bf16_compress_hook, lambda: None, 1e-2),
    'local': (
        post_localSGD_hook.post_localSGD_hook,
        lambda: post_localSGD_hook.PostLocalSGDState(None, dist.group.WORLD, 6),
        0.0,
    ),
    'exact PowerSGD': (powerSGD_hook.powerSGD_hook, lambda: power_sgd(rank=SIZE, start=2), 1e-4),
    'PowerSGD': (powerSGD_hook.powerSGD_hook, lambda: power_sgd(rank=1, start=2), 1e-1),
    'fp16 PowerSGD': (
        default_hooks.fp16_compress_wrapper(powerSGD_hook.powerSGD_hook),
        lambda: power_sgd(rank=1, start=2),
        1e-1,
    ),
}


def train(model: Any, calls: list[int]) -> dict[str, Any]:
    """Four steps with all layers, four without the first, four without the second."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    communicated, trainable = [], []
    for batch in range(12):
        if batch in (4, 8):
            freeze(model, batch // 4 - 1)
            restart_ddp(model)
        calls.clear()
        step(model, 2 * batch + dist.get_rank())
        optimizer.step()
        communicated.append(sum(calls))
        trainable.append(sum(p.numel() * 4 for p in model.parameters() if p.requires_grad))
    weights = {name: p.detach().clone() for name, p in model.module.named_parameters()}
    return {'weights': weights, 'communicated': communicated, 'trainable': trainable}


def with_hook(name: str) -> dict[str, Any]:
    hook, state, _ = COMM_HOOKS[name]
    # PowerSGD waits within its callbacks, for which gloo has too few threads if there are several buckets.
    model = DistributedDataParallel(network(), bucket_cap_mb=None if 'PowerSGD' in name else BUCKET_MB)
    calls: list[int] = []
    model.register_comm_hook(state(), counted(hook, calls))
    return train(model, calls)


def delayed_gradients(frozen: list[int]) -> list[tuple[list[Any], list[Any]]]:
    """Gradients of a wrapper with delayed parameters, and their mean: before a freeze, after it, and thawed."""
    module, rank = network(), dist.get_rank()
    other = copy.deepcopy(module)
    model = DistributedDataParallel(module, **delayed_arguments(module))
    seen = []
    for thawed in (True, False, True):
        for index in frozen:
            for network_ in (model, other):
                linear(network_, index).requires_grad_(thawed).zero_grad()
        restart_ddp(model)
        for batch in range(3):
            got = step(model, 2 * batch + rank)
            dist.barrier()  # DDP does not wait for the delayed ones itself
            got = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
            pairs = zip(step(other, 2 * batch), step(other, 2 * batch + 1), strict=True)
            seen.append((got, [None if a is None or b is None else (a + b) / 2 for a, b in pairs]))
    return seen


DELAYED = {'nothing of them': [0], 'a delayed one': [3], 'the one that starts it': [0, 1], 'both': [0, 1, 2, 3]}


def main(folder: str) -> None:
    composer_dist.initialize_dist('cpu', timeout=60)
    seen = {
        'hooks': {name: with_hook(name) for name in COMM_HOOKS},
        'delayed': {name: delayed_gradients(frozen) for name, frozen in DELAYED.items()},
    }
    torch.save(seen, Path(folder) / f'rank{dist.get_rank()}.pt')


@pytest.fixture(scope='module')
def two_ranks(tmp_path_factory) -> list[dict[str, Any]]:
    return launch(2, Path(__file__), tmp_path_factory.mktemp('ddp'))


@pytest.mark.parametrize('name', COMM_HOOKS)
def test_ranks_go_on_with_a_hook(name, two_ranks):
    first, second = (rank['hooks'][name] for rank in two_ranks)
    assert first['communicated'] == second['communicated'] == first['trainable']
    torch.testing.assert_close(first['weights'], second['weights'], rtol=0, atol=0)
    exact = two_ranks[0]['hooks']['allreduce']['weights']
    torch.testing.assert_close(first['weights'], exact, rtol=0, atol=COMM_HOOKS[name][2])


@pytest.mark.parametrize('name', DELAYED)
def test_delayed_gradients_are_the_mean_of_all_ranks(name, two_ranks):
    for rank in two_ranks:
        for got, expected in rank['delayed'][name]:
            torch.testing.assert_close(got, expected)


if __name__ == '__main__':
    main(*sys.argv[1:])
