"""Trains on several ranks and writes what each saw to `<folder>/rank<r>.pt`. Started by the launcher."""

import sys
from pathlib import Path

import torch
from composer import Callback
from composer.core import DataSpec, State
from composer.loggers import Logger
from composer.utils import dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.utils.data import DataLoader

from composer_freezeout import FreezeOut
from tests.networks import chain
from tests.training import classifier, images, trainer


class Traffic(Callback):
    """Bytes that each step all-reduces, the number of synchronised backward passes, and the bytes that it should be."""

    def __init__(self) -> None:
        self.reduced: list[int] = []
        self.synchronised: list[int] = []
        self.trainable: list[int] = []

    def fit_start(self, state: State, logger: Logger) -> None:
        def count(
            process_group: torch.distributed.ProcessGroup, bucket: torch.distributed.GradBucket
        ) -> torch.futures.Future[torch.Tensor]:
            self.reduced[-1] += bucket.buffer().nbytes
            self.synchronised[-1] += bucket.is_last()
            return allreduce_hook(process_group, bucket)

        state.model.register_comm_hook(None, count)

    def batch_start(self, state: State, logger: Logger) -> None:
        self.reduced.append(0)
        self.synchronised.append(0)

    def batch_end(self, state: State, logger: Logger) -> None:
        self.trainable.append(sum(p.numel() * p.element_size() for p in state.model.parameters() if p.requires_grad))


def main(folder: str) -> None:
    dist.initialize_dist('cpu')
    # The single process sees the same global batches: samples are dealt out in turn.
    dataset = images().dataset
    loader = DataLoader(dataset, batch_size=4 // dist.get_world_size(), sampler=dist.get_sampler(dataset))
    torch.manual_seed(0)
    network = chain(classes=4)
    for index in (1, 2, 3):  # BatchNorm would see half a batch on each rank
        setattr(network, f'bn{index}', torch.nn.GroupNorm(2, 4))
    model, traffic, freezeout = classifier(network), Traffic(), FreezeOut(0.5)
    run = trainer(
        model,
        [freezeout],
        train_dataloader=DataSpec(loader),
        callbacks=[traffic] if dist.get_world_size() > 1 else [],
        device_train_microbatch_size=1,
        save_folder=folder + '/checkpoints',
        save_interval='3ba',
    )
    run.fit()
    torch.save(
        {
            'model': model.state_dict(),
            'units': freezeout.unit_table(),
            'find_unused_parameters': getattr(run.state.model, 'find_unused_parameters', None),
            **vars(traffic),
        },
        Path(folder) / f'rank{dist.get_global_rank()}.pt',
    )


if __name__ == '__main__':
    main(sys.argv[1])
