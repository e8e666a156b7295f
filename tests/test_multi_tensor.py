"""Groups that differ in their learning rate only are stepped in the same calls, and end with the same bits."""

import copy
import math
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from composer.algorithms.sam.sam import SAMOptimizer
from composer.optim import DecoupledAdamW, DecoupledSGDW
from torch import nn
from torch.distributed import device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import ExponentialLR
from torch.utils._python_dispatch import TorchDispatchMode

from composer_freezeout import apply_freezeout
from composer_freezeout.freezing.optimizer.multi_tensor import MergedGroups
from composer_freezeout.freezing.optimizer.ones import Ones

from .networks import chain

# Multi-tensor calls of one step, whatever the number of groups.
CASES = {
    'sgd': (SGD, {}, 1),
    'decay': (SGD, {'weight_decay': 0.1}, 2),
    'maximize': (SGD, {'weight_decay': 0.1, 'maximize': True}, 3),
    'momentum': (SGD, {'momentum': 0.9}, 3),
    'dampening': (SGD, {'momentum': 0.9, 'dampening': 0.1, 'weight_decay': 0.1}, 4),
    'nesterov': (SGD, {'momentum': 0.9, 'nesterov': True}, 4),
    'nesterov-maximize': (SGD, {'momentum': 0.9, 'nesterov': True, 'maximize': True}, 5),
    'adam': (Adam, {}, 8),
    'adam-decay': (Adam, {'weight_decay': 0.1}, 9),
    'adam-decoupled': (Adam, {'weight_decay': 0.1, 'decoupled_weight_decay': True}, 9),
    'adamw': (AdamW, {}, 9),
    'adamw-maximize': (AdamW, {'maximize': True}, 10),
    'adamw-amsgrad': (AdamW, {'amsgrad': True}, 10),
}  # fmt: skip
SHAPES = ((4, 3, 3, 3), (17,), ())


class Calls(TorchDispatchMode):
    """Names of the operators that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace != 'profiler':
            self.names.append(str(func.overloadpacket.__name__))
        return func(*args, **(kwargs or {}))

    @property
    def multi_tensor(self) -> int:
        return sum(name.startswith('_foreach') for name in self.names)


def make_params(units: int, dtype: torch.dtype = torch.float32, device: str = 'cpu') -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [
        nn.Parameter(torch.randn(shape, generator=generator).to(device, dtype))
        for _ in range(units)
        for shape in SHAPES
    ]


def make_groups(params: list[nn.Parameter]) -> list[dict[str, Any]]:
    """A group per unit, each with a learning rate of its own."""
    size = len(SHAPES)
    return [{'params': params[i : i + size], 'lr': 0.1 / (i + 1.3)} for i in range(0, len(params), size)]


def set_grads(params: list[nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator).to(param)


def calls_of_a_step(optimizer: Optimizer) -> Calls:
    """The second step's; the first makes the state."""
    for step in (0, 1):
        set_grads([p for group in optimizer.param_groups for p in group['params']], step)
        with Calls() as calls:
            optimizer.step()
    return calls


def assert_same(ours: Optimizer, theirs: Optimizer) -> None:
    a, b = ([p for group in o.param_groups for p in group['params']] for o in (ours, theirs))
    assert len(ours.state) == len(theirs.state)
    for p, q in zip(a, b, strict=True):
        assert torch.equal(p, q)
        assert (p.grad is None) == (q.grad is None)
        assert p.grad is None or torch.equal(p.grad, q.grad)
        assert (p in ours.state) == (q in theirs.state)
        assert list(ours.state.get(p, {})) == list(theirs.state.get(q, {}))
        for x, y in zip(ours.state.get(p, {}).values(), theirs.state.get(q, {}).values(), strict=True):
            assert (x.dtype, x.device, x.stride()) == (y.dtype, y.device, y.stride())
            assert torch.equal(x, y)


def pair(make: Callable[[], Optimizer]) -> tuple[Optimizer, Optimizer]:
    merged, split = make(), make()
    MergedGroups(merged)
    return merged, split


def train(optimizer: Optimizer, steps: int = 3) -> None:
    params = [p for group in optimizer.param_groups for p in group['params']]
    for step in range(steps):
        set_grads(params, step)
        optimizer.step()


# --- counts


@pytest.mark.parametrize('units', [4, 12, 60])
@pytest.mark.parametrize('case', CASES)
def test_the_calls_of_one_group_whatever_the_number_of_units(case, units):
    kind, hyperparameters, calls = CASES[case]
    single = calls_of_a_step(kind(make_params(units), lr=0.1, foreach=True, **hyperparameters))
    merged, split = pair(lambda: kind(make_groups(make_params(units)), lr=0.1, foreach=True, **hyperparameters))
    ours = calls_of_a_step(merged)
    assert ours.multi_tensor == single.multi_tensor == calls
    assert len(ours.names) <= len(single.names)
    assert calls_of_a_step(split).multi_tensor == units * calls


def test_groups_of_the_user_are_stepped_apart():
    """Two weight decays: twice the calls, with units and without."""
    single = [{'params': make_params(4)}, {'params': make_params(4), 'weight_decay': 0.1}]
    units = [*make_groups(make_params(4)), *({**g, 'weight_decay': 0.1} for g in make_groups(make_params(4)))]
    merged = SGD(units, lr=0.1, momentum=0.9, foreach=True)
    MergedGroups(merged)
    ours, theirs = calls_of_a_step(merged), calls_of_a_step(SGD(single, lr=0.1, momentum=0.9, foreach=True))
    assert ours.multi_tensor == theirs.multi_tensor == 3 + 4


# --- equality


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('case', CASES)
def test_the_bits_of_a_step_per_group(case, dtype):
    """Twenty steps: rates that move, a group that joins late, one that leaves, frozen parameters, two weight decays."""
    kind, hyperparameters, _ = CASES[case]

    def make() -> Optimizer:
        groups = make_groups(make_params(6, dtype))
        for group in groups[1::2]:
            group['weight_decay'] = 0.03
        return kind(groups, lr=0.1, foreach=True, **hyperparameters)

    merged, split = pair(make)
    for step in range(20):
        for optimizer in (merged, split):
            params = [p for group in optimizer.param_groups for p in group['params']]
            set_grads(params, step)
            for position, group in enumerate(optimizer.param_groups):
                group['lr'] = 0.1 * (1 + math.cos(math.pi * step / (21 + position)))
            for param in (
                *(optimizer.param_groups[2]['params'] if step < 3 else ()),
                *(optimizer.param_groups[-1]['params'] if step > 8 else ()),
            ):
                param.grad = None
            if step == 12:
                for param in optimizer.param_groups.pop()['params']:
                    optimizer.state.pop(param, None)
            optimizer.step()
        assert_same(merged, split)


@pytest.mark.parametrize(
    ('case', 'name', 'value'),
    [
        *(('nesterov', name, value) for name, value in (('weight_decay', 0.1), ('momentum', 0.5), ('nesterov', False))),
        *(('dampening', name, value) for name, value in (('dampening', 0.5), ('maximize', True), ('momentum', 0))),
        ('adam-decay', 'decoupled_weight_decay', True),
        ('adamw', 'betas', (0.8, 0.9)),
        ('adamw', 'eps', 0.1),
        ('adamw', 'weight_decay', 0),
        ('adamw', 'amsgrad', True),
        ('adamw', 'maximize', True),
    ],
)
def test_groups_keep_their_own_hyperparameters(case, name, value):
    kind, hyperparameters, _ = CASES[case]

    def make() -> Optimizer:
        groups = make_groups(make_params(4))
        groups[1][name] = value
        return kind(groups, foreach=True, **hyperparameters)

    merged, split = pair(make)
    train(merged)
    train(split)
    assert_same(merged, split)


@pytest.mark.parametrize('case', ['sgd', 'adamw'])
def test_what_changes_between_steps_is_noticed(case):
    kind, hyperparameters, _ = CASES[case]
    merged, split = pair(lambda: kind(make_groups(make_params(4)), lr=0.1, foreach=True, **hyperparameters))
    for optimizer in (merged, split):
        train(optimizer)
        optimizer.param_groups[1]['weight_decay'] = 0.3
        train(optimizer)
        optimizer.param_groups[2]['foreach'] = False
        train(optimizer)
        # Groups that look like those before, and hold other parameters.
        optimizer.param_groups[:] = [{**group, 'params': list(group['params'])} for group in optimizer.param_groups]
        optimizer.param_groups[0]['params'].pop()
        train(optimizer)
    assert_same(merged, split)


def test_what_is_left_to_the_optimizer_is_not_touched():
    optimizer = SGD(make_groups(make_params(3)), lr=0.1, foreach=False)
    merged, seen = MergedGroups(optimizer), []
    merged.step = lambda: seen.append('stepped here') or optimizer.param_groups
    train(optimizer)
    assert not seen
    optimizer.param_groups[0]['foreach'] = optimizer.param_groups[1]['foreach'] = True
    train(optimizer, steps=1)
    assert seen


def test_these_comparisons_can_fail():
    merged, split = pair(lambda: SGD(make_groups(make_params(3)), lr=0.1, momentum=0.9, foreach=True))
    merged.param_groups[0]['lr'] *= 1 + 1e-6
    train(merged)
    train(split)
    with pytest.raises(AssertionError):
        assert_same(merged, split)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    merged, split = pair(lambda: AdamW(make_groups(make_params(3, dtype)), foreach=True))
    train(merged)
    train(split)
    assert_same(merged, split)
    # On a CPU these operators see the rate, or its product with the gradient, in half precision.
    merged, split = pair(lambda: SGD(make_groups(make_params(3, dtype)), lr=0.1, foreach=True))
    before = [param.detach().clone() for group in split.param_groups for param in group['params']]
    train(merged, steps=1)
    train(split, steps=1)
    pairs = zip(merged.param_groups, split.param_groups, strict=True)
    tensors = [(p, q) for ours, theirs in pairs for p, q in zip(ours['params'], theirs['params'], strict=True)]
    for (p, q), start in zip(tensors, before, strict=True):
        scale = torch.maximum(q.detach().abs(), start.abs()).double()
        assert ((p.double() - q.double()).abs() <= scale * torch.finfo(dtype).eps).all()


def test_several_types_layouts_and_shapes_at_once():
    def make() -> Optimizer:
        images = nn.Parameter(make_params(1)[0].detach().to(memory_format=torch.channels_last))
        doubles, more = make_params(1, torch.float64), make_params(2)
        wide = [nn.Parameter(torch.ones(3, 100).t()), nn.Parameter(torch.ones(0, 2))]
        groups = [[images, *doubles], [*more[:3], *wide], more[3:]]
        return SGD([{'params': g, 'lr': 0.1 / (i + 1.3)} for i, g in enumerate(groups)], momentum=0.9, foreach=True)

    merged, split = pair(make)
    for steps in (1, 2):
        train(merged, steps)
        train(split, steps)
        assert_same(merged, split)
    # A parameter that has grown since needs more ones than there have been.
    for optimizer in (merged, split):
        grown = optimizer.param_groups[2]['params'][1]
        grown.data = torch.ones(1000)
        optimizer.state.pop(grown)
        train(optimizer)
    assert_same(merged, split)


def test_ones_take_the_memory_of_the_largest_parameter():
    ones = Ones()
    for sizes in ((3,), (2, 7), (5, 3)):
        views = ones.like([torch.zeros(size) for size in sizes])
        assert [view.tolist() for view in views] == [[1.0] * size for size in sizes]
    assert {view.untyped_storage().nbytes() for view in ones.like([torch.zeros(2), torch.zeros(3)])} == {7 * 4}
    assert len({view.untyped_storage().data_ptr() for view in ones._views.values()}) == 1


@pytest.fixture
def mesh() -> Iterator[device_mesh.DeviceMesh]:
    started = not torch.distributed.is_initialized()
    if started:
        torch.distributed.init_process_group('gloo', store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield device_mesh.DeviceMesh('cpu', [0])
    if started:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize('case', ['momentum', 'adamw'])
def test_sharded_parameters(case, mesh):
    kind, hyperparameters, calls = CASES[case]

    def make() -> Optimizer:
        params = [distribute_tensor(p.detach(), mesh, [Shard(0)]) for p in make_params(4) if p.ndim]
        groups = [{'params': params[i : i + 2], 'lr': 0.1 / (i + 1.3)} for i in range(0, len(params), 2)]
        return kind(groups, foreach=True, **hyperparameters)

    def step(optimizer: Optimizer, seed: int) -> int:
        for position, param in enumerate(p for group in optimizer.param_groups for p in group['params']):
            whole = torch.randn(param.shape, generator=torch.Generator().manual_seed(100 * seed + position))
            param.grad = distribute_tensor(whole, mesh, [Shard(0)])
        with Calls() as counted:
            optimizer.step()
        return sum(name.startswith('_foreach') for name in counted.names)

    merged, split = pair(make)
    for seed in range(3):
        ours, theirs = step(merged, seed), step(split, seed)
    assert (ours, theirs) == (calls, 4 * calls)
    for a, b in zip(merged.param_groups, split.param_groups, strict=True):
        for p, q in zip(a['params'], b['params'], strict=True):
            assert isinstance(p, DTensor)
            assert torch.equal(p.to_local(), q.to_local())
            assert list(merged.state[p]) == list(split.state[q])


# --- what is left to the optimizer


class Reversed(SGD):
    """Somebody's own optimizer, which goes the other way."""

    def step(self, closure: Any = None) -> None:
        with torch.no_grad():
            for group in self.param_groups:
                for param in group['params']:
                    param += group['lr'] * param.grad


LEFT_ALONE = {
    'subclass': lambda groups: Reversed(groups, foreach=True),
    'loop': lambda groups: SGD(groups, momentum=0.9, foreach=False),
    'loop-by-default': lambda groups: AdamW(groups),
    'neither': lambda groups: SGD(groups, foreach=None, fused=False),
    'fused': lambda groups: AdamW(groups, fused=True),
    'rates-as-tensors': lambda groups: SGD([{**g, 'lr': torch.tensor(g['lr'])} for g in groups], foreach=True),
    'all-different': lambda groups: SGD([{**g, 'momentum': 0.1 * i} for i, g in enumerate(groups)], foreach=True),
    'decay-as-tensor': lambda groups: SGD(groups, weight_decay=torch.tensor(0.1), foreach=True),
    'decoupled-sgdw': lambda groups: DecoupledSGDW(groups, lr=0.1, momentum=0.9, weight_decay=1e-5),
    'decoupled-adamw': lambda groups: DecoupledAdamW(groups),
}  # fmt: skip


@pytest.mark.parametrize('case', LEFT_ALONE)
def test_left_to_the_optimizer(case):
    merged, split = pair(lambda: LEFT_ALONE[case](make_groups(make_params(3))))
    for _ in range(3):
        assert calls_of_a_step(merged).names == calls_of_a_step(split).names
    assert_same(merged, split)


@pytest.mark.parametrize('make', [DecoupledSGDW, DecoupledAdamW])
def test_decoupled_optimizers_call_as_often_as_with_one_group(make):
    split, single = make(make_groups(make_params(12)), lr=0.1), make(make_params(12), lr=0.1)
    assert sorted(calls_of_a_step(split).names) == sorted(calls_of_a_step(single).names)


def test_sparse_and_complex_gradients_are_left_to_the_optimizer():
    def make() -> Optimizer:
        sparse = [{'params': [nn.Parameter(torch.ones(5, 2))]} for _ in range(2)]
        numbers = [{'params': [nn.Parameter(torch.ones(3, dtype=torch.complex64))], 'lr': lr} for lr in (0.1, 0.2)]
        return SGD([*make_groups(make_params(2)), *sparse, *numbers], lr=0.3, momentum=0.9, foreach=True)

    merged, split = pair(make)
    counts = []
    for optimizer in (merged, split):
        params = [group['params'] for group in optimizer.param_groups]
        for seed in range(3):
            set_grads([param for of_group in params for param in of_group], seed)
            for (param,) in params[2:4]:
                param.grad = torch.sparse_coo_tensor([[0, 3]], torch.ones(2, 2), (5, 2))
            with Calls() as calls:
                optimizer.step()
        counts.append(calls.multi_tensor)
    sparse = 2  # the last of the three calls has no form for sparse tensors
    assert counts == [3 + 2 * sparse + 2 * 3, 2 * 3 + 2 * sparse + 2 * 3]
    for a, b in zip(merged.param_groups, split.param_groups, strict=True):
        assert all(torch.equal(p, q) for p, q in zip(a['params'], b['params'], strict=True))


# --- around the step


def test_hooks_run_once_and_see_all_groups():
    optimizer = SGD(make_groups(make_params(3)), lr=0.1, foreach=True)
    seen = []

    def record(hooked: Optimizer, *_: object) -> None:
        assert hooked is optimizer
        seen.append(len(hooked.param_groups))

    optimizer.register_step_pre_hook(record)
    MergedGroups(optimizer)
    optimizer.register_step_pre_hook(record)
    optimizer.register_step_post_hook(record)
    train(optimizer, steps=2)
    assert seen == [3] * 6


def test_gradients_of_the_closure_are_used_and_its_loss_is_returned():
    def make() -> Optimizer:
        return SGD(make_groups(make_params(3)), lr=0.1, momentum=0.9, foreach=True)

    merged, split = pair(make)
    for optimizer in (merged, split):
        params = [p for group in optimizer.param_groups for p in group['params']]

        def closure(params: list[nn.Parameter] = params, optimizer: Optimizer = optimizer) -> torch.Tensor:
            optimizer.zero_grad()
            assert len(optimizer.param_groups) == 3
            loss = torch.stack([(p**2).sum() for p in params]).sum()
            loss.backward()
            return loss

        first, second = optimizer.step(closure), optimizer.step(closure=closure)
        assert 0 < second < first
    assert_same(merged, split)


def test_an_error_in_the_closure_leaves_the_optimizer_usable():
    merged, split = pair(lambda: SGD(make_groups(make_params(3)), lr=0.1, foreach=True))

    def closure() -> float:
        raise AttributeError('of the closure')

    with pytest.raises(AttributeError, match='of the closure'):
        merged.step(closure)
    train(merged)
    train(split)
    assert_same(merged, split)


def test_an_error_on_the_way_is_not_stepped_over():
    optimizer = SGD(make_groups(make_params(3)), lr=0.1, momentum=0.9, foreach=True)
    MergedGroups(optimizer)
    params = [p for group in optimizer.param_groups for p in group['params']]
    before = [p.detach().clone() for p in params]
    optimizer.state[params[-1]] = None
    with pytest.raises(AttributeError):
        train(optimizer)
    assert all(torch.equal(p, q) for p, q in zip(params, before, strict=True))


@pytest.mark.parametrize('first', ['scheduler', 'merge'])
def test_next_to_a_scheduler(first):
    """Which patches the step, and warns if it does not see it."""

    def make(merge: bool) -> Optimizer:
        optimizer = SGD(make_groups(make_params(3)), lr=0.1, foreach=True)
        if merge and first == 'merge':
            MergedGroups(optimizer)
        scheduler = ExponentialLR(optimizer, 0.5)
        if merge and first == 'scheduler':
            MergedGroups(optimizer)
        for _ in range(3):
            train(optimizer, 1)
            scheduler.step()
        return optimizer

    assert_same(make(True), make(False))


def test_a_skipped_step_changes_nothing():
    merged, split = pair(lambda: SGD(make_groups(make_params(3)), lr=0.1, momentum=0.9, foreach=True))
    for optimizer in (merged, split):
        scaler = torch.amp.GradScaler('cpu', init_scale=4.0)
        scaler.scale(torch.ones(()))  # makes the scale
        params = [p for group in optimizer.param_groups for p in group['params']]
        for step in range(4):
            set_grads(params, step)
            if step == 2:
                params[0].grad.fill_(torch.inf)
            before = [p.detach().clone() for p in params]
            scaler.step(optimizer)
            scaler.update()
            assert all(torch.equal(p, q) for p, q in zip(params, before, strict=True)) == (step == 2)
    assert_same(merged, split)


def test_inside_of_a_sharpness_aware_optimizer():
    model, inputs = chain(), torch.zeros(2, 3, 8, 8)
    inner = SGD(model.parameters(), lr=0.1, momentum=0.9, foreach=True)
    optimizer = SAMOptimizer(inner)
    freezer = apply_freezeout(model, optimizer, lambda: model(inputs))
    freezer.batch_start(0.0)

    def closure(**_: object) -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(inputs).square().sum()
        loss.backward()
        return loss

    for _ in range(2):
        with Calls() as calls:
            optimizer.step(closure)
    assert len(inner.param_groups) == 4
    assert sum('addcmul' in name for name in calls.names) == 1


@pytest.mark.parametrize('duplicate', [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=['copy', 'pickle'])
def test_copies_step_on_their_own(duplicate):
    merged, split = pair(lambda: AdamW(make_groups(make_params(3)), foreach=True))
    train(merged)
    train(split)
    copied = duplicate(merged)
    train(copied)
    assert_same(merged, split)
    train(split)
    assert_same(copied, split)


@pytest.mark.parametrize('foreach', [True, False])
@pytest.mark.parametrize('case', ['momentum', 'adamw'])
def test_checkpoints_cross_over(case, foreach):
    """From a step that is merged to one that is not, and back."""
    kind, hyperparameters, _ = CASES[case]

    def make(foreach: bool) -> Optimizer:
        return kind(make_groups(make_params(3)), foreach=foreach, **hyperparameters)

    def follow(optimizer: Optimizer, other: Optimizer) -> None:
        for a, b in zip(optimizer.param_groups, other.param_groups, strict=True):
            for p, q in zip(a['params'], b['params'], strict=True):
                p.data.copy_(q)
        optimizer.load_state_dict(copy.deepcopy(other.state_dict()))

    merged, split = make(True), make(foreach)
    MergedGroups(merged)
    train(merged)
    follow(split, merged)
    train(split)
    follow(merged, split)
    train(merged)
    reference = make(True)
    for _ in range(3):
        train(reference)
    assert_same(merged, reference)


def test_detached_groups_are_stepped_one_by_one():
    optimizer = SGD(make_groups(make_params(3)), lr=0.1, foreach=True)
    merged = MergedGroups(optimizer)
    assert calls_of_a_step(optimizer).multi_tensor == 1
    merged.detach()
    assert calls_of_a_step(optimizer).multi_tensor == 3


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore::UserWarning', 'ignore::DeprecationWarning', 'ignore::FutureWarning')
def test_a_compiled_step_is_left_to_the_optimizer():
    """Whose graph holds the calls of each group; a compiler fuses them in its own way."""
    merged, split = pair(lambda: SGD(make_groups(make_params(2)), lr=0.1, momentum=0.9, foreach=True))
    calls: dict[Optimizer, int] = {}
    for optimizer in (merged, split):
        torch._dynamo.reset()

        def count(graph: torch.fx.GraphModule, _: Any, optimizer: Optimizer = optimizer) -> Callable[..., Any]:
            calls[optimizer] = sum('_foreach' in str(node.target) for node in graph.graph.nodes)
            return graph.forward

        step = torch.compile(optimizer.step, backend=count)
        for seed in range(3):
            set_grads([p for group in optimizer.param_groups for p in group['params']], seed)
            step()
    torch._dynamo.reset()
    assert calls == {merged: 2 * 3, split: 2 * 3}
    assert_same(merged, split)


@pytest.mark.gpu
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize('case', CASES)
def test_the_bits_of_a_step_per_group_on_a_gpu(case, dtype):
    """Where torch takes multi-tensor operators by default."""
    kind, hyperparameters, calls = CASES[case]
    merged, split = pair(lambda: kind(make_groups(make_params(6, dtype, 'cuda')), lr=0.1, **hyperparameters))
    train(merged, 20)
    train(split, 20)
    assert_same(merged, split)
    assert calls_of_a_step(merged).multi_tensor == calls


def test_hyperparameters_that_a_checkpoint_has_made_lists():
    ends = []
    for kind in (tuple, list):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, foreach=True)
        freezer = apply_freezeout(model, optimizer, lambda model=model: model(torch.ones(2, 4)))
        for group in optimizer.param_groups:
            group['betas'] = kind(group['betas'])
        freezer.batch_start(0.0)
        model(torch.ones(2, 4)).sum().backward()
        optimizer.step()
        ends.append([parameter.detach().clone() for parameter in model.parameters()])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*ends, strict=True))
