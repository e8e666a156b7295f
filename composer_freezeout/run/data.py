"""The data sets of the YAML runner, by name.

Small images live in memory as one ``uint8`` tensor, are picked and augmented a batch at a time, and are normalised on
the device: loading is meant never to be what training waits for.
"""

import math
from contextlib import nullcontext
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
import torchvision
from composer.core import DataSpec
from composer.utils import dist
from torch import Tensor

from composer_freezeout.run.config import RunConfig
from composer_freezeout.run.data_config import (
    Cifar10,
    Cifar100,
    DataConfig,
    Digits,
    ImageFolder,
    OwnData,
    Streaming,
    Synthetic,
)
from composer_freezeout.run.faults import ConfigError, Fault
from composer_freezeout.run.image_files import as_image_folder, open_image_folder, open_streaming
from composer_freezeout.run.images import ImageTensors, Normalize, Source, averaged, is_streaming
from composer_freezeout.run.loaders import check_full_batch, dealt_out, loader_arguments
from composer_freezeout.run.memory import check_memory
from composer_freezeout.run.own_data import open_own_data
from composer_freezeout.run.subsets import chosen

__all__ = ['batches_of_an_epoch', 'build_data', 'open_source', 'per_rank']


def _cifar(config: Cifar10 | Cifar100, path: str) -> Source:
    folder, mean, std = _CIFAR[config.name]
    try:
        with dist.run_local_rank_zero_first() if dist.is_initialized() else nullcontext():
            raw = folder(config.root, train=config.split == 'train', download=True)
    except (OSError, RuntimeError) as error:
        fault = (
            f'{config.name} is not in {config.root!r} and cannot be downloaded ({error}); '
            f'extract its Python version there ({folder.url}), or its images as PNG in '
            f'{config.split}/<class>/, or use the data set digits'
        )
        raise ConfigError([Fault(f'{path}.root', fault)]) from error
    images = torch.from_numpy(raw.data).permute(0, 3, 1, 2).contiguous()
    labels = torch.tensor(raw.targets, dtype=torch.int64)
    return Source(ImageTensors(images, labels, config.augment), Normalize(mean, std), len(raw.classes))


def _digits(config: Digits, path: str) -> Source:
    # Imported here: scikit-learn takes a second, and only this data set needs it.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, targets = load_digits(return_X_y=True)
    # A fixed split, whatever the seed of the run: runs are compared on the same 360 images.
    train, test, train_labels, test_labels = train_test_split(
        pixels, targets, test_size=0.2, stratify=targets, random_state=0
    )
    chosen, labels = (test, test_labels) if config.split == 'test' else (train, train_labels)

    def scaled(rows: Any) -> Tensor:
        images = torch.as_tensor(rows, dtype=torch.float32).view(-1, 1, 8, 8) * (255 / 16)
        size = (config.image_size, config.image_size)
        return F.interpolate(images, size=size, mode='bilinear').round().to(torch.uint8)

    reference = scaled(train).float() / 255
    images = scaled(chosen).expand(-1, config.channels, -1, -1).contiguous()
    normalize = Normalize([reference.mean().item()] * config.channels, [reference.std().item()] * config.channels)
    return Source(ImageTensors(images, torch.as_tensor(labels, dtype=torch.int64), config.augment), normalize, 10)


def _synthetic(config: Synthetic, path: str) -> Source:
    generator = torch.Generator().manual_seed(2 * config.seed + (config.split == 'test'))
    shape = (config.num_samples, config.channels, config.image_size, config.image_size)
    size = math.prod(shape) + config.num_samples * torch.int64.itemsize
    remedy = 'take fewer num_samples or a smaller image_size'
    check_memory(size, f'{path}.num_samples', f'{config.num_samples} images', remedy)
    images = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
    labels = torch.randint(config.num_classes, (config.num_samples,), generator=generator)
    deviation = (1 / 12) ** 0.5  # of a uniform distribution
    normalize = Normalize([0.5] * config.channels, [deviation] * config.channels)
    return Source(ImageTensors(images, labels, config.augment), normalize, config.num_classes)


Images: TypeAlias = Cifar10 | Cifar100 | Digits | ImageFolder | Streaming | Synthetic

# Torchvision's, and mean and standard deviation of each channel.
_CIFAR: dict[str, tuple[Any, tuple[float, ...], tuple[float, ...]]] = {
    'cifar10': (torchvision.datasets.CIFAR10, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    'cifar100': (torchvision.datasets.CIFAR100, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}
_SOURCES = {
    'cifar10': _cifar,
    'cifar100': _cifar,
    'digits': _digits,
    'synthetic': _synthetic,
}


def open_source(config: Images, path: str = 'train_data', seed: int = 0) -> Source:
    """Opens a data set.

    Args:
        config (DataConfig): Its section, with the role's defaults filled in.
        path (str): Key path of the section, for errors.
        seed (int): For the draw of a subset, and for the order of samples where that is the data set's own business.

    Returns:
        Source: The data set and how to normalise it.

    Raises:
        ConfigError: If its files are missing or unfit.
    """
    if isinstance(config, Streaming):
        return open_streaming(config, path, seed, per_rank(config.batch_size, path))
    if isinstance(config, ImageFolder):
        return open_image_folder(config, path, seed)
    cifar = config if isinstance(config, Cifar10 | Cifar100) else None
    if cifar is not None and (files := as_image_folder(cifar, path, *_CIFAR[cifar.name])) is not None:
        return averaged(open_image_folder(files, path, seed), cifar.image_size)
    whole = _SOURCES[config.name](config, path)
    images = whole.dataset
    rows, labels, num_classes = chosen(config.subset, images.labels, whole.num_classes, path, seed)
    source = Source(ImageTensors(images.images[rows], labels, images.augment), whole.normalize, num_classes)
    return source if cifar is None else averaged(source, cifar.image_size)


def per_rank(batch_size: int, path: str) -> int:
    """Divides a global batch among the processes.

    Args:
        batch_size (int): Samples of a step over all processes, in ``[1, ∞)``.
        path (str): Key path of the section, for errors.

    Returns:
        int: Samples of a step on this process.

    Raises:
        ConfigError: If it cannot be divided evenly.
    """
    world_size = dist.get_world_size()
    if batch_size % world_size:
        fault = f'{batch_size} cannot be divided evenly among {world_size} processes; take a multiple of {world_size}'
        raise ConfigError([Fault(f'{path}.batch_size', fault)])
    return batch_size // world_size


def build_data(config: DataConfig, path: str, *, num_classes: int | None, seed: int, device: str = 'cpu') -> DataSpec:
    """Opens a data set and makes a loader of it that deals samples out to the processes.

    Args:
        config (DataConfig): Its section, with the role's defaults filled in.
        path (str): Key path of the section, for errors.
        num_classes (int, optional): Outputs of the network, in ``[2, ∞)``; None where it doesn't say.
        seed (int): For the order of the samples.
        device (str): ``'cpu'`` or ``'gpu'``, where batches are normalised.

    Returns:
        DataSpec: Batches of normalised images and ``int64`` labels, on the device; of a registered data set what its
        function makes.

    Raises:
        ConfigError: If the data cannot be opened, has another number of classes, or is less than a batch.
    """
    batch_size = per_rank(config.batch_size, path)
    if isinstance(config, OwnData):
        return open_own_data(config, path, seed, batch_size, device)
    source = open_source(config, path, seed)
    if num_classes is not None and source.num_classes not in (None, num_classes):
        fault = f'is {num_classes}, but {path} ({config.name}) has {source.num_classes} classes; make them equal'
        raise ConfigError([Fault('model.num_classes', fault)])
    check_full_batch(config, source.samples, path)
    shared = loader_arguments(config, batch_size, device)
    shared['collate_fn'] = _as_is if isinstance(source.dataset, ImageTensors) else None
    if is_streaming(source.dataset):
        from streaming import StreamingDataLoader  # pyright: ignore[reportMissingImports]

        loader = StreamingDataLoader(source.dataset, **shared)
    else:
        loader = dealt_out(source.dataset, config, seed, shared)
    # Composer has a transform after its own copy to the device, but algorithms that look at a whole batch would then
    # see bytes; copying in the first one gives them what the network sees.
    target = torch.device('cuda', dist.get_local_rank()) if device == 'gpu' else torch.device('cpu')
    return DataSpec(loader, num_samples=source.samples, batch_transforms=source.normalize.to(target))


def batches_of_an_epoch(loader: Any, config: RunConfig) -> int | None:
    """Length of an epoch of the training data.

    Args:
        loader (Any): Their loader.
        config (RunConfig): The configuration.

    Returns:
        int, optional: In ``[1, ∞)``; None if nothing tells.
    """
    try:
        length = len(loader)
    except (TypeError, NotImplementedError):  # of an IterableDataset without a length
        return config.train_subset_num_batches
    return min(length, config.train_subset_num_batches or length)


def _as_is(batch: Any) -> Any:
    return batch
