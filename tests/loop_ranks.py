"""Trains in a loop without a trainer, on several ranks, and writes what each saw. Started by the launcher."""

import sys
from pathlib import Path
from typing import Any

import torch
from composer.utils import dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from composer_freezeout import apply_freezeout
from tests.networks import chain
from tests.training import images

EPOCHS = 4


def train(stop: int = EPOCHS, state: dict[str, Any] | None = None, compiled: bool = False) -> dict[str, Any]:
    """Trains for some epochs of four, from a state if there is one."""
    torch.manual_seed(0)
    model = chain(classes=4)
    world, rank = dist.get_world_size(), dist.get_global_rank()
    wrapped: Any = DistributedDataParallel(model) if world > 1 else model
    reduced: list[int] = []

    def count(
        group: torch.distributed.ProcessGroup, bucket: torch.distributed.GradBucket
    ) -> torch.futures.Future[torch.Tensor]:
        reduced[-1] += bucket.buffer().nbytes
        return allreduce_hook(group, bucket)

    if world > 1:
        wrapped.register_comm_hook(None, count)
    if compiled:
        model.compile(backend='aot_eager')
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    forward = (lambda: model(torch.zeros(2, 3, 8, 8))) if compiled else None
    freezer = apply_freezeout(wrapped, optimizer, forward, t_0=0.5)
    start = 0
    if state is not None:
        model.load_state_dict(state['model'])
        freezer.load_state_dict(state['freezer'])
        optimizer.load_state_dict(state['optimizer'])
        start = state['epoch']
    trainable, frozen = [], []
    loader = images()
    for epoch in range(start, stop):
        wrapped.train()
        for batch, (inputs, targets) in enumerate(loader):
            freezer.batch_start((epoch * len(loader) + batch) / (EPOCHS * len(loader)))
            reduced.append(0)
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(wrapped(inputs[rank::world]), targets[rank::world]).backward()
            optimizer.step()
            trainable.append(sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad))
            frozen.append(freezer.units_frozen)
        freezer.epoch_end()
    return {
        'epoch': stop,
        'model': {name: tensor.clone() for name, tensor in model.state_dict().items()},
        'optimizer': optimizer.state_dict(),
        'freezer': freezer.state_dict(),
        'units': freezer.unit_table(),
        'reduced': reduced,
        'trainable': trainable,
        'frozen': frozen,
    }


def main(folder: str) -> None:
    dist.initialize_dist('cpu')
    seen = {
        'whole': train(),
        'resumed': [train(state=train(stop)) for stop in (1, 2, 3)],
        'compiled': train(compiled=True),
    }
    torch.save(seen, Path(folder) / f'rank{dist.get_global_rank()}.pt')


if __name__ == '__main__':
    main(*sys.argv[1:])
