"""Trains on several ranks and writes what each saw to `<folder>/rank<r>.pt`. Started by the launcher."""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from composer import Callback, Trainer
from composer.core import DataSpec, State
from composer.loggers import Logger
from composer.utils import dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.utils.data import DataLoader

from composer_freezeout import FreezeOut
from tests.networks import chain
from tests.training import classifier, images, make_optimizer, trainer


class Folding(Callback):
    """How often BatchNorm has been folded by the end of each batch."""

    def __init__(self, freezeout: FreezeOut) -> None:
        self.freezeout = freezeout
        self.refolds: list[int] = []

    def batch_end(self, state: State, logger: Logger) -> None:
        self.refolds.append(self.freezeout._freezer.prefix.folding.refolds)


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


def make_run(
    optimizer: str, grouped: bool, batchnorm: bool = False, callbacks: Any = (), **arguments: Any
) -> tuple[Trainer, FreezeOut]:
    # The single process sees the same global batches: samples are dealt out in turn.
    dataset = images().dataset
    loader = DataLoader(dataset, batch_size=4 // dist.get_world_size(), sampler=dist.get_sampler(dataset))
    torch.manual_seed(0)
    network = chain(classes=4)
    for index in () if batchnorm else (1, 2, 3):  # BatchNorm would see half a batch on each rank
        setattr(network, f'bn{index}', torch.nn.GroupNorm(2, 4))
    freezeout = FreezeOut(0.5, max_stages=3)
    if batchnorm:
        callbacks = [*callbacks, Folding(freezeout)]
    model = classifier(network)
    run = trainer(
        model,
        [freezeout],
        make_optimizer(optimizer, model, grouped),
        train_dataloader=DataSpec(loader),
        callbacks=callbacks,
        **arguments,
    )
    return run, freezeout


def weights(of: Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in unwrapped(of).state_dict().items()}


def unwrapped(of: Trainer) -> torch.nn.Module:
    return of.state.model.module if dist.get_world_size() > 1 else of.state.model


def main(folder: str, optimizer: str = 'sgd-momentum', groups: str = 'one') -> None:
    run = partial(make_run, optimizer, groups == 'two')
    dist.initialize_dist('cpu')
    traffic = Traffic()
    first, freezeout = run(
        callbacks=[traffic] if dist.get_world_size() > 1 else [],
        device_train_microbatch_size=1,
        save_folder=folder + '/checkpoints',
        save_interval='1ba',
        save_num_checkpoints_to_keep=-1,
    )
    first.fit()
    seen = {
        'model': weights(first),
        'units': freezeout.unit_table(),
        'find_unused_parameters': getattr(first.state.model, 'find_unused_parameters', None),
        **vars(traffic),
    }
    if dist.get_world_size() > 1:
        seen['resumed'] = []
        for batch in range(1, 16):
            (checkpoint,) = Path(folder, 'checkpoints').glob(f'ep*-ba{batch}-rank0.pt')
            resumed, _ = run(device_train_microbatch_size=1, load_path=str(checkpoint))
            resumed.fit()
            seen['resumed'].append(weights(resumed))
        norms, _ = run(batchnorm=True)
        norms.fit()
        seen['batchnorm'] = weights(norms)
        seen['refolds'] = next(c.refolds for c in norms.state.callbacks if isinstance(c, Folding))
        counted = Traffic()
        compiled, _ = run(compile_config={'backend': 'aot_eager'}, callbacks=[counted])
        wrapper, forward = compiled.state.model, compiled.state.model.forward
        compiled.fit()
        seen['compiled'] = weights(compiled)
        seen['compiled_reduced'], seen['compiled_trainable'] = counted.reduced, counted.trainable
        seen['still_compiled'] = compiled.state.model is wrapper and wrapper.forward is forward
    torch.save(seen, Path(folder) / f'rank{dist.get_global_rank()}.pt')


if __name__ == '__main__':
    main(*sys.argv[1:])
