"""Trains under FSDP, resumes from several checkpoints, and writes what each rank saw. Started by the launcher."""

import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault('FSDP_VERSION', '2')

import torch
from composer import Callback, Trainer
from composer.core import DataSpec, State
from composer.loggers import Logger
from composer.utils import dist
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader

from composer_freezeout import FreezeOut
from tests.networks import ResidualNet
from tests.training import StepTrace, classifier, images, make_optimizer, trainer

RESUMED_AT = range(1, 16)
# The first version needs a GPU.
DEVICE = 'cpu' if os.environ['FSDP_VERSION'] == '2' else 'gpu'


class Reduced(Callback):
    """Elements that each step reduces and scatters."""

    def __init__(self) -> None:
        self.reduced: list[int] = []
        self.trainable: list[int] = []

    def fit_start(self, state: State, logger: Logger) -> None:
        original = torch.distributed.reduce_scatter_tensor

        def counting(output: torch.Tensor, input: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            self.reduced[-1] += input.numel()
            return original(output, input, *args, **kwargs)

        torch.distributed.reduce_scatter_tensor = counting
        self._restore = lambda: setattr(torch.distributed, 'reduce_scatter_tensor', original)

    def fit_end(self, state: State, logger: Logger) -> None:
        self._restore()

    def batch_start(self, state: State, logger: Logger) -> None:
        self.reduced.append(0)

    def batch_end(self, state: State, logger: Logger) -> None:
        self.trainable.append(sum(p.numel() for p in state.model.parameters() if p.requires_grad))


def make_run(optimizer: str, kind: str, freezeout: FreezeOut | None, **arguments: Any) -> Trainer:
    dataset = images().dataset
    loader = DataLoader(dataset, batch_size=4 // dist.get_world_size(), sampler=dist.get_sampler(dataset))
    torch.manual_seed(0)
    network = ResidualNet()
    for block in network.blocks:
        block._fsdp_wrap = True
    model = classifier(network)
    return trainer(
        model,
        [] if freezeout is None else [freezeout],
        make_optimizer(optimizer, model, grouped=True),
        train_dataloader=DataSpec(loader),
        device=DEVICE,
        parallelism_config={'fsdp': {'state_dict_type': kind}},
        **arguments,
    )


def evaluation() -> DataSpec:
    dataset = images().dataset
    return DataSpec(DataLoader(dataset, batch_size=2, sampler=dist.get_sampler(dataset)))


def whole(tensor: Any) -> torch.Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else torch.as_tensor(tensor)).detach().clone()


def end_of(run: Trainer) -> dict[str, Any]:
    optimizer = run.state.optimizers[0]
    return {
        'model': {name: whole(tensor) for name, tensor in run.state.model.state_dict().items()},
        # torch gives tuples back as lists.
        'groups': [
            {k: list(v) if isinstance(v, tuple) else v for k, v in group.items() if k != 'params'}
            for group in optimizer.param_groups
        ],
        'state': [
            [whole(value) for value in optimizer.state[p].values()]
            for group in optimizer.param_groups
            for p in group['params']
        ],
    }


def main(kind: str, folder: str, optimizer: str = 'sgd-momentum') -> None:
    run = partial(make_run, optimizer, kind)
    dist.initialize_dist(DEVICE)
    freezeout, trace, reduced = FreezeOut(0.5), StepTrace(), Reduced()
    first = run(
        freezeout,
        callbacks=[trace, reduced],
        eval_dataloader=evaluation(),
        eval_interval='3ba',
        save_folder=f'{folder}/checkpoints',
        save_interval='1ba',
    )
    first.fit()
    resumed = []
    for batch in RESUMED_AT:
        name = f'ep*-ba{batch}' if kind == 'sharded' else f'ep*-ba{batch}-rank0.pt'
        (checkpoint,) = Path(folder, 'checkpoints').glob(name)
        again = run(FreezeOut(0.5), load_path=str(checkpoint), eval_dataloader=evaluation(), eval_interval='3ba')
        again.fit()
        resumed.append(end_of(again))
    # The last of them opens without FreezeOut as well.
    plain = run(None, load_path=str(checkpoint))
    plain.fit()
    torch.save(
        {
            'units': freezeout.unit_table(),
            'steps': trace.steps,
            'reduced': reduced.reduced,
            'trainable': reduced.trainable,
            'whole': end_of(first),
            'resumed': resumed,
            'plain_groups': [len(group['params']) for group in plain.state.optimizers[0].param_groups],
        },
        Path(folder) / f'rank{dist.get_global_rank()}.pt',
    )


if __name__ == '__main__':
    main(*sys.argv[1:])
