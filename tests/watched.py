"""Models of many kinds in a Trainer, with and without FreezeOut at the same rates. A script for several processes."""

import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from composer import Callback, Trainer
from composer.core import DataSpec, State
from composer.loggers import Logger
from composer.models import ComposerModel
from composer.utils import dist, reproducibility
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from composer_freezeout import FreezeOut
from composer_freezeout.method.schedule import lr_factors
from tests.networks import ResidualNet, Transformer, chain

BATCHES = 16


class Counted(nn.Module):
    """Counts how often it runs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.calls = 0

    def forward(self, *inputs: Any) -> Any:
        self.calls += 1
        return self.model(*inputs)


class Tasks(nn.Module):
    """One head for each task.

    Args:
        in_turn (bool): Whether every batch is for one of them.
    """

    def __init__(self, in_turn: bool = True) -> None:
        super().__init__()
        self.in_turn = in_turn
        self.trunk = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU())
        self.heads = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.register_buffer('batch', torch.zeros((), dtype=torch.long))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heads = [self.heads[int(self.batch) % 2]] if self.in_turn else list(self.heads)
        if self.training:
            self.batch += 1
        features = self.trunk(x).mean((2, 3))
        return torch.stack([head(features) for head in heads]).mean(0)


class SideEffects(nn.Module):
    """A momentum encoder, a queue, noise from three sources, layers dropped by chance, a batch changed in place.

    Args:
        drop (float): Probability of a block to be left out, in ``[0, 1]``.
    """

    def __init__(self, drop: float = 0.3) -> None:
        super().__init__()
        self.drop = drop
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4))
        self.blocks = nn.ModuleList(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)) for _ in range(3))
        self.head = nn.Linear(4, 4)
        self.slow = nn.Conv2d(3, 4, 3, padding=1).requires_grad_(False)
        self.register_buffer('queue', torch.zeros(4, 8))
        self.register_buffer('place', torch.zeros((), dtype=torch.long))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.sub_(0.1).div_(2.0)
        with torch.no_grad():
            self.slow.weight.mul_(0.9).add_(self.stem[0].weight, alpha=0.1)
            self.queue[:, int(self.place) % 8] = self.slow(x).mean((0, 2, 3))
            self.place += 1
        x = self.stem(x) + random.gauss(0, 0.1)
        for block in self.blocks:
            if not self.training or np.random.rand() > self.drop:
                x = x + block(x).relu()
        x = F.dropout(x, 0.1, self.training)
        return self.head(x.mean((2, 3))) + self.queue.mean()


class Forces(nn.Module):
    """Differentiates by its input while it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.Tanh(), nn.Linear(8, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.detach().requires_grad_()
        energy = self.layers(x)
        force = torch.autograd.grad(energy.sum(), x, create_graph=True)[0]
        return energy + force.square().mean()


def _transformer() -> nn.Module:
    model = Transformer()
    return nn.Sequential(_Tokens(), model, nn.Dropout(0.1), _Mean())


class _Tokens(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x[:, 0, 0].abs() * 5).long().clamp(max=10)


class _Mean(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(1)[:, :4]


MODELS: dict[str, Any] = {
    'plain': lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(192, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)
    ),
    'batchnorm': lambda: nn.Sequential(chain(), nn.Dropout(0.1)),
    'residual': lambda: nn.Sequential(ResidualNet(), nn.Dropout(0.1)),
    'transformer': _transformer,
    'tasks': Tasks,
    'tasks together': lambda: Tasks(in_turn=False),
    'side effects': SideEffects,
    'side effects, nothing dropped': lambda: SideEffects(0.0),
    'forces': Forces,
}  # fmt: skip


class Watched(ComposerModel):
    """A model whose forward passes are counted, with a draw of each kind of random number in its loss."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.network = Counted(MODELS[name]())

    def forward(self, batch: Any) -> Any:
        return self.network(batch[0])

    def loss(self, outputs: Any, batch: Any) -> torch.Tensor:
        noise = 1e-3 * (torch.rand(()) + np.random.rand() + random.random())
        return F.cross_entropy(outputs, batch[1]) * (1 + noise)


def make(model: str) -> Watched:
    reproducibility.seed_all(0)
    return Watched(model)


@dataclass
class Run:
    """What came of a run."""

    weights: dict[str, torch.Tensor]
    random: dict[str, Any]
    forwards: int
    steps: int
    frozen: int


def train(
    model: Watched,
    algorithms: Sequence[FreezeOut],
    batches: int = BATCHES,
    save_folder: Path | None = None,
    load_path: Path | None = None,
) -> Run:
    """Trains for some batches of a training of `BATCHES`; without FreezeOut at the rates that it would have set."""
    generator = torch.Generator().manual_seed(1)
    data = TensorDataset(torch.randn(32, 3, 8, 8, generator=generator), torch.randint(0, 4, (32,), generator=generator))
    sampler = dist.get_sampler(data, shuffle=True)
    loader = DataLoader(data, batch_size=4 // dist.get_world_size(), sampler=sampler)
    if not algorithms:  # a group for each parameter, at the rate of its unit
        freezeout = FreezeOut(0.6)
        units = train_units(model, freezeout)
        times = freezeout.freeze_times(len(units['names']), heads=units['heads'])
        factor = {name: i for i, unit in enumerate(units['names']) for name in unit}
        groups = [{'params': [p]} for p in model.parameters() if p.requires_grad]
        names = [name for name, p in model.named_parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(groups, lr=0.05, momentum=0.9)

        class ByHand(Callback):
            def batch_start(self, state: State, logger: Logger) -> None:
                factors = lr_factors(int(state.timestamp.batch) / BATCHES, times)
                for name, group in zip(names, optimizer.param_groups, strict=True):
                    group['lr'] = 0.05 * factors[factor[name]]

        callbacks: list[Callback] = [ByHand()]
    else:
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05, momentum=0.9)
        callbacks = []

    class Stop(Callback):
        steps = 0

        def batch_end(self, state: State, logger: Logger) -> None:
            Stop.steps += 1
            if int(state.timestamp.batch) == batches:
                state.stop_training()

    saving: dict[str, Any] = (
        {}
        if save_folder is None
        else {
            'save_folder': str(save_folder),
            'save_filename': 'ba{batch}.pt',
            'save_interval': '1ba',
            'save_num_checkpoints_to_keep': -1,
        }
    )
    trainer = Trainer(
        model=model,
        train_dataloader=DataSpec(loader),
        max_duration=f'{BATCHES}ba',
        algorithms=list(algorithms),
        optimizers=optimizer,
        callbacks=[*callbacks, Stop()],
        device='cpu',
        progress_bar=False,
        seed=3,
        load_path=None if load_path is None else str(load_path),
        dist_timeout=60,
        ddp_sync_strategy='forced_sync',
        **saving,
    )
    trainer.fit()
    inner: Any = trainer.state.model.module if dist.get_world_size() > 1 else trainer.state.model
    run = Run(
        weights={name: tensor.clone() for name, tensor in inner.state_dict().items()},
        random={
            'torch': torch.get_rng_state(),
            'numpy': torch.as_tensor(np.random.get_state()[1].astype(np.int64)),
            'python': list(random.getstate()[1]),
        },
        forwards=inner.network.calls,
        steps=Stop.steps,
        frozen=sum(bool(row['frozen']) for a in algorithms for row in a.unit_table()),
    )
    trainer.close()
    return run


UNITS: dict[str, dict[str, Any]] = {}


def train_units(model: Watched, freezeout: FreezeOut) -> dict[str, Any]:
    """The units of a model like this one, from a run of its own."""
    if model.name not in UNITS:
        other = FreezeOut(0.6)
        train(make(model.name), [other], 1)
        assert other._freezer is not None
        partition = other._freezer.partition
        UNITS[model.name] = {'names': [unit.parameters for unit in partition.units], 'heads': partition.heads}
        make(model.name)  # the random state as it was after the model was made
    return UNITS[model.name]


def main(folder: str) -> None:
    dist.initialize_dist('cpu')
    seen: dict[str, Any] = {'batches': {}, 'ours': {}, 'theirs': {}, 'first': {}}
    # Not those that leave out a part in one batch or on one rank: DDP itself stops there.
    for model in ('plain', 'batchnorm', 'transformer', 'tasks together', 'side effects, nothing dropped', 'forces'):
        freezeout = FreezeOut(0.6)
        train(make(model), [freezeout])
        batches = min(r['frozen_at_batch'] for r in freezeout.unit_table() if r['frozen_at_batch'] is not None)
        seen['batches'][model] = batches
        seen['first'][model] = [row['name'] for row in freezeout.unit_table()]
        again = FreezeOut(0.6)
        seen['ours'][model] = {**vars(train(make(model), [again], batches))}
        seen['ours'][model]['units'] = [row['name'] for row in again.unit_table()]
        seen['theirs'][model] = vars(train(make(model), [], batches))
    torch.save(seen, Path(folder) / f'rank{dist.get_global_rank()}.pt')


if __name__ == '__main__':
    main(*sys.argv[1:])
