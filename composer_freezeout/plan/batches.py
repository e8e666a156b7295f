"""Batches to look at and to measure steps with: those of the run, or random ones where its data are not there."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from composer.utils import map_collection

from composer_freezeout.costs.loading import Loading, profile_loading
from composer_freezeout.run.config import RunConfig
from composer_freezeout.run.data import build_data
from composer_freezeout.run.data_config import Cifar10, Cifar100, DataConfig, ImageFolder, Streaming
from composer_freezeout.run.faults import ConfigError, Fault

__all__ = []

# Random samples where there are no data: a CPU profiles no more of them.
_RANDOM_SAMPLES_ON_CPU = 256


@dataclass(frozen=True)
class _Data:
    """Batches to look at, and what is known of the others."""

    example: Any
    batch: Any
    loading: Loading | None
    batches_per_epoch: int | None

    @property
    def image_shape(self) -> tuple[int, ...]:
        return tuple(self.example[0].shape[1:])


def _data(config: RunConfig, device: str, image_size: int | None, *, measure: bool, notes: list[str]) -> _Data:
    if _is_there(config.train_data):
        section, name = config.train_data, 'gpu' if device == 'cuda' else 'cpu'
        spec = build_data(section, 'train_data', num_classes=config.model.num_classes, seed=config.seed, device=name)
        loader: Any = spec.dataloader

        def prepared(batch: Any) -> Any:
            return map_collection(spec.batch_transforms(batch), lambda tensor: tensor.cpu())

        ends = [loader.dataset[0], loader.dataset[len(loader.dataset) - 1]]
        example = tuple(torch.stack([torch.as_tensor(part) for part in parts]) for parts in zip(*ends, strict=True))
        batches = min(len(loader), config.train_subset_num_batches or len(loader))
        loading, batch = None, None
        if measure:
            loading, batch = profile_loading(loader), prepared(next(iter(loader)))
        return _Data(prepared(example), batch, loading, batches)

    size = _image_size(config.train_data, image_size)
    notes.append(
        f'no data in {str(_folder(config.train_data))!r}: random images of {size}x{size} pixels in their place, and '
        'waiting for data is not measured'
    )
    samples = config.train_data.batch_size
    if device == 'cpu':
        samples = min(samples, _RANDOM_SAMPLES_ON_CPU)
    batch = _random_batch(config, max(2, samples if measure else 2), size)
    return _Data(map_collection(batch, lambda tensor: tensor[:2]), batch, None, None)


def _folder(data: DataConfig) -> Path | None:
    """What must exist for the data to be opened without fetching them; None where nothing must."""
    if isinstance(data, (Cifar10, Cifar100)):
        source = torchvision.datasets.CIFAR10 if data.name == 'cifar10' else torchvision.datasets.CIFAR100
        return Path(data.root) / source.base_folder
    if isinstance(data, ImageFolder):
        return Path(data.root) / (data.split or '')
    if isinstance(data, Streaming):
        return Path(data.local) / (data.split or '')
    return None


def _is_there(data: DataConfig) -> bool:
    folder = _folder(data)
    # What is streamed may be there in part, and be fetched when it is looked at.
    return folder is None or (folder.is_dir() and getattr(data, 'remote', None) is None)


def _image_size(data: DataConfig, image_size: int | None) -> int:
    if isinstance(data, (Cifar10, Cifar100)):
        return 32
    known = getattr(data, 'image_size', None) or image_size
    if known is None:
        fault = 'there are no images there, and with cache: true only they tell their size; give --image-size PIXELS'
        raise ConfigError([Fault('train_data.root', f'{str(_folder(data))!r}: {fault}')])
    return known


def _random_batch(config: RunConfig, samples: int, size: int) -> Any:
    generator = torch.Generator().manual_seed(config.seed)
    images = torch.randn(samples, config.model.in_channels, size, size, generator=generator)
    return images, torch.randint(config.model.num_classes, (samples,), generator=generator)
