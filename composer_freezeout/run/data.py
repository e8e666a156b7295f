"""The data sets of the YAML runner, by name.

Small images live in memory as one ``uint8`` tensor, are picked and augmented a batch at a time, and are normalised on
the device: loading is meant never to be what training waits for.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from composer.core import DataSpec
from composer.utils import dist
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset
from torchvision.datasets.folder import default_loader
from torchvision.io import ImageReadMode, read_image
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import pil_to_tensor

from composer_freezeout.run.data_config import (
    Augment,
    Cifar10,
    Cifar100,
    DataConfig,
    Digits,
    ImageFolder,
    Streaming,
    Synthetic,
)
from composer_freezeout.run.faults import ConfigError, Fault

__all__ = ['ImageTensors', 'Normalize', 'Source', 'augmented', 'build_data', 'open_source', 'per_rank']


def augmented(images: Tensor, augment: Augment) -> Tensor:
    """Shifts and flips each image of a batch at random, drawing from torch's global generator.

    Args:
        images (Tensor): ``(batch, channels, height, width)``.
        augment (Augment): Pixels of zero padding around the image before a crop of its own size, and whether to flip.

    Returns:
        Tensor: Of the same shape and type.
    """
    batch, _, height, width = images.shape
    if augment.crop_padding:
        windows = F.pad(images, (augment.crop_padding,) * 4).unfold(2, height, 1).unfold(3, width, 1)
        top, left = torch.randint(2 * augment.crop_padding + 1, (2, batch))
        images = windows[torch.arange(batch), :, top, left]
    if augment.flip:
        images = torch.where(torch.rand(batch, 1, 1, 1) < 0.5, images.flip(3), images)
    return images


class ImageTensors(Dataset):
    """Images in memory, handed out as whole batches.

    Args:
        images (Tensor): ``uint8``, ``(samples, channels, height, width)``.
        labels (Tensor): ``int64``, ``(samples,)``.
        augment (Augment, optional): Random changes made to each batch.
    """

    def __init__(self, images: Tensor, labels: Tensor, augment: Augment | None = None):
        self.images = images
        self.labels = labels
        self.augment = augment

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        images, labels = self.__getitems__([index])
        return images[0], labels[0]

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """A collated batch."""
        chosen = torch.as_tensor(indices)
        images = self.images[chosen]
        return (augmented(images, self.augment) if self.augment else images), self.labels[chosen]


class Normalize:
    """Moves a batch to a device, and there makes its ``uint8`` images floating point, normalised for each channel.

    Args:
        mean (Sequence[float]): Of pixels scaled to ``[0, 1]``.
        std (Sequence[float]): Likewise, above 0.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        self.mean = torch.tensor(mean).view(-1, 1, 1) * 255
        self.std = torch.tensor(std).view(-1, 1, 1) * 255

    def to(self, device: torch.device) -> 'Normalize':
        """Chooses the device; returns the object itself."""
        self.mean, self.std = self.mean.to(device), self.std.to(device)
        return self

    def __call__(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Images and labels, on the device."""
        images, labels = (part.to(self.mean.device, non_blocking=True) for part in batch)
        return (images - self.mean) / self.std, labels


@dataclass(frozen=True)
class Source:
    """A data set together with what the loader needs to know of it.

    Args:
        dataset (Dataset): Map-style and sized, or a ``streaming.StreamingDataset``, which deals out its samples itself.
        normalize (Normalize): Applied on the device.
        num_classes (int, optional): Labels are in ``[0, num_classes)``; None where the files don't tell.
    """

    dataset: Dataset
    normalize: Normalize
    num_classes: int | None

    @property
    def samples(self) -> int:
        """Samples of an epoch over all processes."""
        # The length of a streaming data set is that of this process's share.
        return self.dataset.size if _is_streaming(self.dataset) else len(self.dataset)  # pyright: ignore


def _cifar(config: Cifar10 | Cifar100, path: str, folder: type, mean: Sequence[float], std: Sequence[float]) -> Source:
    try:
        with dist.run_local_rank_zero_first() if dist.is_initialized() else nullcontext():
            raw = folder(config.root, train=config.split == 'train', download=True)
    except (OSError, RuntimeError) as error:
        fault = (
            f'{config.name} is not in {config.root!r} and cannot be downloaded ({error}); '
            f'extract its Python version there ({folder.url}), or use the data set digits'
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
    images = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
    labels = torch.randint(config.num_classes, (config.num_samples,), generator=generator)
    deviation = (1 / 12) ** 0.5  # of a uniform distribution
    normalize = Normalize([0.5] * config.channels, [deviation] * config.channels)
    return Source(ImageTensors(images, labels, config.augment), normalize, config.num_classes)


def _image_folder(config: ImageFolder, path: str) -> Source:
    assert config.split is not None, 'filled in with the role'
    folder = Path(config.root) / config.split
    if not folder.is_dir():
        key = 'root' if not Path(config.root).is_dir() else 'split'
        fault = f'no folder {str(folder)!r}; it must hold one folder of images for each class'
        raise ConfigError([Fault(f'{path}.{key}', fault)])
    transform = None if config.cache else _file_transform(config)
    try:
        files = torchvision.datasets.ImageFolder(str(folder), transform=transform)
    except FileNotFoundError as error:
        raise ConfigError([Fault(f'{path}.root', ' '.join(str(error).split()))]) from error
    dataset = _decoded(files, config, path) if config.cache else files
    return Source(dataset, Normalize(config.mean, config.std), len(files.classes))


def _streaming(config: Streaming, path: str, seed: int) -> Source:
    try:
        # Imported here: the package is optional.
        from composer_freezeout.run.mds import StreamingImages
    except ImportError as error:
        fault = f"{config.name!r} needs mosaicml-streaming ({error}); pip install 'composer-freezeout[streaming]'"
        raise ConfigError([Fault(f'{path}.name', fault)]) from error
    assert config.split is not None, 'filled in with the role'
    key, place = ('local', config.local) if config.remote is None else ('remote', config.remote)
    index = Path(config.local, config.split, 'index.json')
    if config.remote is None and not index.is_file():
        fault = f'no MDS data set in {str(index.parent)!r} (it has no index.json); write one there or give remote'
        raise ConfigError([Fault(f'{path}.{key}', fault)])
    batch_size = per_rank(config.batch_size, path)
    try:
        dataset = StreamingImages(
            remote=config.remote,
            local=config.local,
            split=config.split,
            transform=_file_transform(config),
            batch_size=batch_size,
            shuffle=bool(config.shuffle),
            shuffle_seed=seed,
            cache_limit=config.cache_limit,
            predownload=config.predownload,
            num_canonical_nodes=config.num_canonical_nodes,
            download_retry=config.download_retry,
            download_timeout=config.download_timeout,
        )
    except Exception as error:  # each kind of storage has errors of its own
        message = ' '.join(str(error).split())
        fault = f'{place!r} cannot be opened, split {config.split!r} ({type(error).__name__}: {message})'
        raise ConfigError([Fault(f'{path}.{key}', fault)]) from error
    columns = list(dataset.shards[0].column_names)
    if not {'x', 'y'} <= set(columns):
        fault = f'{place!r} has the columns {columns}, not x (the image) and y (the class); write it with these'
        raise ConfigError([Fault(f'{path}.{key}', fault)])
    return Source(dataset, Normalize(config.mean, config.std), None)


def _is_streaming(dataset: Dataset) -> bool:
    return isinstance(dataset, IterableDataset)


def _file_transform(config: ImageFolder | Streaming) -> v2.Transform:
    assert config.image_size is not None, 'filled in where images are resized'
    if config.augment is None:
        # The customary ratio of 256 to 224.
        steps = [v2.Resize(round(config.image_size * 256 / 224)), v2.CenterCrop(config.image_size)]
    else:
        steps = [v2.RandomResizedCrop(config.image_size)]
        steps += [v2.RandomHorizontalFlip()] if config.augment.flip else []
    return v2.Compose([*steps, v2.PILToTensor()])


def _decode(file: str) -> Tensor:
    # torchvision's own decoder is several times as fast as Pillow, also in threads, but knows fewer formats.
    try:
        return read_image(file, ImageReadMode.RGB)
    except RuntimeError:
        return pil_to_tensor(default_loader(file))


def _decoded(files: torchvision.datasets.ImageFolder, config: ImageFolder, path: str) -> ImageTensors:
    images = [_decode(file) for file, _ in files.samples]
    for (file, _), image in zip(files.samples, images, strict=True):
        if image.shape != images[0].shape:
            (_, height, width), (_, other_height, other_width) = images[0].shape, image.shape
            fault = (
                f'true needs images of one size, but {files.samples[0][0]} is {width}x{height} '
                f'and {file} is {other_width}x{other_height}; set cache: false and image_size'
            )
            raise ConfigError([Fault(f'{path}.cache', fault)])
    return ImageTensors(torch.stack(images), torch.tensor(files.targets, dtype=torch.int64), config.augment)


_SOURCES = {
    'cifar10': partial(
        _cifar,
        folder=torchvision.datasets.CIFAR10,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
    ),
    'cifar100': partial(
        _cifar,
        folder=torchvision.datasets.CIFAR100,
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
    ),
    'digits': _digits,
    'image_folder': _image_folder,
    'synthetic': _synthetic,
}


def open_source(config: DataConfig, path: str = 'train_data', seed: int = 0) -> Source:
    """Opens a data set.

    Args:
        config (DataConfig): Its section, with the role's defaults filled in.
        path (str): Key path of the section, for errors.
        seed (int): For the order of the samples, where that is the data set's own business.

    Returns:
        Source: The data set and how to normalise it.

    Raises:
        ConfigError: If its files are missing or unfit.
    """
    if isinstance(config, Streaming):
        return _streaming(config, path, seed)
    return _SOURCES[config.name](config, path)


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


def build_data(config: DataConfig, path: str, *, num_classes: int, seed: int, device: str = 'cpu') -> DataSpec:
    """Opens a data set and makes a loader of it that deals samples out to the processes.

    Args:
        config (DataConfig): Its section, with the role's defaults filled in.
        path (str): Key path of the section, for errors.
        num_classes (int): Outputs of the network, in ``[2, ∞)``.
        seed (int): For the order of the samples.
        device (str): ``'cpu'`` or ``'gpu'``, where batches are normalised.

    Returns:
        DataSpec: Batches of normalised images and ``int64`` labels, on the device.

    Raises:
        ConfigError: If the data cannot be opened, has another number of classes, or is less than a batch.
    """
    batch_size = per_rank(config.batch_size, path)
    source = open_source(config, path, seed)
    if source.num_classes not in (None, num_classes):
        fault = f'is {num_classes}, but {path} ({config.name}) has {source.num_classes} classes; make them equal'
        raise ConfigError([Fault('model.num_classes', fault)])
    if config.drop_last and source.samples < config.batch_size:
        fault = f'{config.batch_size} is more than the {source.samples} samples there are, which leaves no full batch'
        raise ConfigError([Fault(f'{path}.batch_size', f'{fault}; take a smaller one or set drop_last: false')])
    drop_last, shuffle = bool(config.drop_last), bool(config.shuffle)
    shared: dict[str, Any] = {
        'batch_size': batch_size,
        'drop_last': drop_last,
        'num_workers': config.num_workers,
        'persistent_workers': config.num_workers > 0,
        'pin_memory': device == 'gpu',
        'collate_fn': _as_is if isinstance(source.dataset, ImageTensors) else None,
    }
    if _is_streaming(source.dataset):
        from streaming import StreamingDataLoader  # pyright: ignore[reportMissingImports]

        loader = StreamingDataLoader(source.dataset, **shared)
    else:
        sampler = dist.get_sampler(source.dataset, drop_last=drop_last, shuffle=shuffle, seed=seed)
        loader = DataLoader(source.dataset, sampler=sampler, **shared)
    # Composer has a transform after its own copy to the device, but algorithms that look at a whole batch would then
    # see bytes; copying in the first one gives them what the network sees.
    target = torch.device('cuda', dist.get_local_rank()) if device == 'gpu' else torch.device('cpu')
    return DataSpec(loader, num_samples=source.samples, batch_transforms=source.normalize.to(target))


def _as_is(batch: Any) -> Any:
    return batch
