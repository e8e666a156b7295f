"""Batches to look at and to measure steps with: those of the run, or random ones where its data are not there."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision

from composer_freezeout.costs.batches import first_samples, map_tensors
from composer_freezeout.costs.loading import Loading, profile_loading
from composer_freezeout.run.config import RunConfig
from composer_freezeout.run.data import batches_of_an_epoch, build_data
from composer_freezeout.run.data_config import Cifar10, Cifar100, DataConfig, ImageFolder, OwnData, Streaming
from composer_freezeout.run.faults import ConfigError, Fault
from composer_freezeout.run.memory import check_memory

__all__ = ['Batches', 'look_at_data', 'size_path']

# Random samples where there are no data: a CPU profiles no more of them.
_RANDOM_SAMPLES_ON_CPU = 256


@dataclass(frozen=True)
class Batches:
    """Batches to look at, and what is known of the others.

    Attributes:
        example (Any): Two samples on the CPU, ready for the model: images ``(2, channels, height, width)`` and labels,
            or what a registered data set has.
        batch (Any): A whole batch, likewise; None if nothing is measured.
        loading (Loading, optional): How fast batches come; None if that isn't measured, or the data aren't there.
        per_epoch (int, optional): Batches of an epoch; None if the data aren't there.
        notes (tuple[str, ...]): What was assumed or left out.
    """

    example: Any
    batch: Any
    loading: Loading | None
    per_epoch: int | None
    notes: tuple[str, ...] = ()

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of a sample's first tensor: channels, height and width of an image."""
        shapes: list[tuple[int, ...]] = []
        map_tensors(self.example, lambda tensor: shapes.append(tuple(tensor.shape[1:])))
        return shapes[0]


def look_at_data(config: RunConfig, device: str, image_size: int | None, *, measure: bool) -> Batches:
    """Takes batches of the run's data, or makes random ones. Nothing is downloaded, unless a registered data set does.

    Args:
        config (RunConfig): A checked configuration.
        device (str): Where steps are measured, as torch calls it.
        image_size (int, optional): Pixels, in ``[1, ∞)``, where there are no data and the file doesn't say.
        measure (bool): Whether steps and loading are to be measured.

    Returns:
        Batches: What there is.

    Raises:
        ConfigError: If the data can't be read, or nothing tells the size of their images.
    """
    if _is_there(config.train_data):
        return _of_data(config, device, measure)
    return _at_random(config, device, image_size, measure)


def size_path(data: DataConfig) -> str:
    """Where the size of images stands: a key path, or the command line's option.

    Args:
        data (DataConfig): The training data.

    Returns:
        str: ``train_data.image_size`` or ``--image-size``.
    """
    return 'train_data.image_size' if getattr(data, 'image_size', None) is not None else '--image-size'


def _of_data(config: RunConfig, device: str, measure: bool) -> Batches:
    section, name = config.train_data, 'gpu' if device == 'cuda' else 'cpu'
    spec = build_data(section, 'train_data', num_classes=config.model.num_classes, seed=config.seed, device=name)
    loader: Any = spec.dataloader

    def prepared(batch: Any) -> Any:
        return map_tensors(spec.batch_transforms(batch), lambda tensor: tensor.cpu())

    per_epoch = batches_of_an_epoch(loader, config)
    if isinstance(section, OwnData):
        batch = prepared(next(iter(loader)))
        loading = profile_loading(loader) if measure else None
        return Batches(first_samples(batch, 2), batch if measure else None, loading, per_epoch)
    ends = [loader.dataset[0], loader.dataset[len(loader.dataset) - 1]]
    example = tuple(torch.stack([torch.as_tensor(part) for part in parts]) for parts in zip(*ends, strict=True))
    if not measure:
        return Batches(prepared(example), None, None, per_epoch)
    loading = profile_loading(loader)
    return Batches(prepared(example), prepared(next(iter(loader))), loading, per_epoch)


def _at_random(config: RunConfig, device: str, image_size: int | None, measure: bool) -> Batches:
    data, size = config.train_data, _image_size(config.train_data, image_size)
    samples = data.batch_size if device == 'cuda' else min(data.batch_size, _RANDOM_SAMPLES_ON_CPU)
    samples = max(2, samples if measure else 2)
    image = 4 * config.model.in_channels * size**2  # bytes
    check_memory(image * samples, size_path(data), f'{samples} random images of {size}x{size}', 'choose smaller ones')
    generator = torch.Generator().manual_seed(config.seed)
    images = torch.randn(samples, config.model.in_channels, size, size, generator=generator)
    batch = (
        images,
        torch.randint(config.model.num_classes or data.number_of_classes or 2, (samples,), generator=generator),
    )
    note = (
        f'no data in {str(_folder(data))!r}: random images of {size}x{size} pixels in their place, and waiting for '
        'data is not measured'
    )
    return Batches(first_samples(batch, 2), batch, None, None, (note,))


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
