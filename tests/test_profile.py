import copy

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from composer_freezeout import FreezeOut
from composer_freezeout.costs.bench import StepSeconds
from composer_freezeout.costs.loading import profile_loading
from composer_freezeout.costs.predict import partition_for
from composer_freezeout.costs.seconds import StepProfile, counts_to_measure, profile_steps

from .networks import ResidualNet
from .training import CLASSES, classifier


def batch(samples: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(samples, 3, 8, 8, generator=generator), torch.zeros(samples, dtype=torch.long)


def network():
    torch.manual_seed(0)
    model = classifier(ResidualNet(classes=CLASSES))
    return model, partition_for(model, batch(2), FreezeOut().settings).units


def sgd(groups):
    return torch.optim.SGD(groups, lr=0.1, momentum=0.9)


def test_every_number_of_frozen_units_is_timed():
    model, units = network()
    profile = profile_steps(model, batch(), units, sgd, repeats=2)
    assert list(profile.steps) == list(range(len(units)))
    assert profile.repeats == 2
    assert profile.batch_size == 6
    assert (profile.device.type, profile.precision) == ('cpu', 'fp32')
    assert all(part > 0 for step in profile.steps.values() for part in (step.forward, step.backward, step.optimizer))
    assert all(seconds > 0 for seconds in profile.unit_forward)
    assert len(profile.unit_forward) == len(units)


def test_the_model_is_not_changed():
    model, units = network()
    before, training = copy.deepcopy(model.state_dict()), model.training
    random = torch.get_rng_state()
    profile_steps(model, batch(), units, sgd, repeats=1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert model.training == training
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.equal(torch.get_rng_state(), random)


class Spy(torch.optim.SGD):
    """Notes how many groups have a gradient at each step, and whether any weight moves."""

    def __init__(self, groups):
        super().__init__(groups, lr=0.1)
        self.live: list[int] = []
        self.moved = False

    def step(self, closure=None):
        self.live.append(sum(any(p.grad is not None for p in group['params']) for group in self.param_groups))
        before = [p.clone() for group in self.param_groups for p in group['params']]
        super().step(closure)
        after = [p for group in self.param_groups for p in group['params']]
        self.moved |= not all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_what_is_timed_is_a_step_with_the_units_frozen():
    model, units = network()
    spies: list[Spy] = []

    def spying(groups):
        spies.append(Spy(groups))
        return spies[0]

    profile_steps(model, batch(), units, spying, repeats=2)
    (spy,) = spies
    # A round to warm up and two to measure, each with none, one, … all but one frozen.
    one_round = list(range(len(units), 0, -1))
    assert spy.live[-3 * len(units) :] == 3 * one_round
    assert not spy.moved


def test_a_small_budget_makes_small_steps():
    model, units = network()
    profile = profile_steps(model, batch(512), units, sgd, repeats=9, budget_seconds=1e-6)
    assert (profile.batch_size, profile.repeats) == (2, 1)


def test_arguments_out_of_range(refusal):
    model, units = network()
    with refusal('repeats must be at least 1, got 0'):
        profile_steps(model, batch(), units, sgd, repeats=0)
    with refusal('budget_seconds must be above 0, got -1'):
        profile_steps(model, batch(), units, sgd, budget_seconds=-1)


def test_passes_grow_with_the_batch_and_the_optimizer_does_not():
    steps = {0: StepSeconds(1.0, 2.0, 0.5), 1: StepSeconds(1.0, 1.0, 0.25)}
    profile = StepProfile(steps, (0.5, 0.5), 8, 3, torch.device('cpu'), 'fp32')
    assert profile.scaled(8) == steps
    assert profile.scaled(32) == {0: StepSeconds(4.0, 8.0, 0.5), 1: StepSeconds(4.0, 4.0, 0.25)}
    assert steps[0].total == 3.5


@pytest.mark.parametrize(
    ('num_units', 'counts'),
    [
        (1, [0]),
        (2, [0, 1]),
        (12, list(range(12))),
        (13, [0, 1, 3, 4, 5, 7, 8, 9, 11, 12]),
        (91, [0, 10, 20, 30, 40, 50, 60, 70, 80, 90]),
    ],
)
def test_which_numbers_of_frozen_units_are_timed(num_units, counts):
    assert counts_to_measure(num_units) == counts


def loader(batches: int, workers: int = 0) -> DataLoader:
    return DataLoader(TensorDataset(torch.zeros(2 * batches, 3)), batch_size=2, num_workers=workers)


def test_loading_is_timed_within_an_epoch():
    loading = profile_loading(loader(5), batches=20)
    assert (loading.batches, loading.overlapped) == (4, False)
    assert loading.seconds > 0
    assert profile_loading(loader(5), batches=3).batches == 3
    assert profile_loading(loader(5), budget_seconds=1e-9).batches == 1
    # The only batch is better than nothing.
    assert profile_loading(loader(1)).batches == 1


def test_workers_load_during_the_steps():
    assert profile_loading(loader(3, workers=1)).overlapped


def test_a_loader_without_batches(refusal):
    with refusal('the loader has no batches'):
        profile_loading([])


@pytest.mark.gpu
def test_a_gpu_is_timed_too():
    model, units = network()
    profile = profile_steps(model, batch(), units, sgd, device='cuda', precision='amp_bf16', repeats=2)
    assert profile.device.type == 'cuda'
    assert next(model.parameters()).device.type == 'cpu'
    assert all(step.total > 0 for step in profile.steps.values())
