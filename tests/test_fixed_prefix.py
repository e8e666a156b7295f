"""What the user has frozen from the start runs with the operators of inference, as what FreezeOut freezes does."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from composer_freezeout import FreezeOut, apply_freezeout
from composer_freezeout.freezing.prefix.prefix import FrozenPrefix

from .networks import TransformerBlock, chain
from .training import classifier, images, trainer

STEPS = 16


def fixed(still: bool = True) -> Any:
    """The first of three convolutions, and its norm, are frozen; whether the norm is kept in evaluation."""
    torch.manual_seed(0)
    model: Any = chain()
    for name in ('conv1', 'bn1'):
        model.get_submodule(name).requires_grad_(False)
    model.bn1.running_mean.normal_()
    model.bn1.running_var.uniform_(0.5, 2)
    if still:
        model.register_forward_pre_hook(lambda module, _: module.bn1.eval() and None)
    return model


def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    while True:
        yield from images()


def trained(model: nn.Module, **arguments: Any) -> list[dict[str, str]]:
    """Trains in a loop; what is folded in each pass."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    loop = apply_freezeout(model, optimizer, t_0=0.7, **arguments)
    pairs = []
    for step, (inputs, targets) in zip(range(STEPS), batches(), strict=False):
        model.train()
        loop.batch_start(step / STEPS)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
        pairs.append(dict(loop.prefix.folding.pairs))
    loop.release()
    return pairs


def test_it_is_folded_before_anything_else_freezes_and_stays_so():
    model, plain = fixed(), fixed()
    pairs = trained(model)
    assert pairs[0] == {} and pairs[1:5] == [{'conv1': 'bn1'}] * 4
    assert pairs[-1] == {'conv1': 'bn1', 'conv2': 'bn2', 'conv3': 'bn3'}
    assert not any(trained(plain, fuse_frozen=False))
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, rtol=1e-4, atol=1e-5, msg=name)
    assert torch.equal(model.bn1.running_mean, fixed().bn1.running_mean)
    assert len(model._forward_pre_hooks) == len(plain._forward_pre_hooks)


@pytest.mark.parametrize('arguments', [{'layers': ['conv2|bn2', 'conv3|bn3', 'head']}, {'batchnorm': 'batch'}])
def test_it_is_folded_however_the_units_are_chosen_and_frozen(arguments):
    model, plain = fixed(), fixed()
    assert trained(model, **arguments)[1] == {'conv1': 'bn1'}
    trained(plain, fuse_frozen=False, **arguments)
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, rtol=1e-4, atol=1e-5, msg=name)


def test_a_norm_that_goes_on_counting_is_left_as_it_is():
    model, plain = fixed(still=False), fixed(still=False)
    assert {'conv1': 'bn1'} not in trained(model)[:5]
    trained(plain, fuse_frozen=False)
    assert torch.equal(model.bn1.running_mean, plain.bn1.running_mean)
    assert not torch.equal(model.bn1.running_mean, fixed().bn1.running_mean)


def test_a_norm_without_statistics_is_left_as_it_is():
    model = fixed()
    model.bn1 = nn.BatchNorm2d(4, track_running_stats=False).requires_grad_(False)
    assert not any('conv1' in pairs for pairs in trained(model))


def test_a_norm_that_trains_in_evaluation_is_folded_once_it_is_frozen():
    """As in detectors: its statistics are those of the pretraining from the start, its scale and shift train."""
    model = fixed()
    model.requires_grad_(True)
    pairs = trained(model)
    assert not any(pairs[:4]) and pairs[-1]['conv1'] == 'bn1'


def test_where_nothing_was_frozen_by_others_nothing_is_put_on_the_model():
    model = chain()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    loop = apply_freezeout(model, optimizer, lambda: model(torch.randn(2, 3, 8, 8)))
    before = len(model._forward_pre_hooks)
    loop.batch_start(0.0)
    assert len(model._forward_pre_hooks) == before


def test_attention_that_was_frozen_from_the_start_runs_as_one_operator():
    model = nn.Sequential(TransformerBlock(8), TransformerBlock(8))
    attention = [module for module in model.modules() if isinstance(module, nn.MultiheadAttention)]
    attention[0].requires_grad_(False)
    prefix = FrozenPrefix(model, ())
    prefix.set_frozen(0)
    model.train()(torch.randn(2, 3, 8))
    assert [module.training for module in attention] == [False] + [True] * (len(attention) - 1)
    prefix.release()
    assert attention[0].training


def test_a_trainer_resumes_with_the_same_bits(tmp_path):
    def run(**arguments: Any) -> dict[str, torch.Tensor]:
        model = classifier(fixed())
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05, momentum=0.9)
        made = trainer(model, [FreezeOut(0.7)], optimizer, **arguments)
        made.fit()
        return made.state.model.state_dict()

    whole = run(save_folder=str(tmp_path), save_interval='1ba', save_num_checkpoints_to_keep=-1)
    for batch in (1, 3, 9):
        resumed = run(load_path=str(next(tmp_path.glob(f'*-ba{batch}-rank0.pt'))))
        assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items()), batch


def test_what_a_checkpoint_runs_once_more_is_left_as_it_is():
    model = fixed(still=False)
    model.bn1.eval()

    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = model

        def forward(self, inputs: torch.Tensor) -> Any:
            return checkpoint(self.net, inputs, use_reentrant=False)

    outer = Checkpointed()
    prefix = FrozenPrefix(outer, ())
    prefix.set_frozen(0)
    for _ in range(2):
        outer(torch.randn(2, 3, 8, 8)).sum().backward()
    assert prefix.folding.pairs == {}
    prefix.release()
