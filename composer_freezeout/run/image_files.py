"""Images in files: folders of them, and MDS shards."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
import torchvision
from torch import Tensor
from torchvision.datasets.folder import default_loader
from torchvision.io import ImageReadMode, read_image
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import pil_to_tensor

from composer_freezeout.run.data_config import Cifar10, Cifar100, ImageFolder, Streaming
from composer_freezeout.run.faults import ConfigError, Fault
from composer_freezeout.run.images import ImageTensors, Normalize, Source
from composer_freezeout.run.memory import check_memory
from composer_freezeout.run.subsets import chosen

__all__ = ['UnreadableImage', 'as_image_folder', 'open_image_folder', 'open_streaming']

T = TypeVar('T')


class UnreadableImage(Exception):
    """An image file cannot be read.

    Args:
        message (str): Which one, and why; in a data worker's error its traceback stands before that.
    """

    def __init__(self, message: str):
        super().__init__(message.rpartition(f'{type(self).__name__}: ')[2].strip())


def open_image_folder(config: ImageFolder, path: str, seed: int) -> Source:
    """Opens a folder of images.

    Args:
        config (ImageFolder): Its section, with the role's defaults filled in.
        path (str): Key path of the section, for errors.
        seed (int): For the draw of a subset.

    Returns:
        Source: Images in memory, or files that are read when they are needed.

    Raises:
        ConfigError: If the folder is missing or empty, or an image that is to be in memory is unfit.
    """
    assert config.split is not None, 'filled in with the role'
    folder = Path(config.root) / config.split
    if not folder.is_dir():
        key = 'root' if not Path(config.root).is_dir() else 'split'
        fault = f'no folder {str(folder)!r}; it must hold one folder of images for each class'
        raise ConfigError([Fault(f'{path}.{key}', fault)])
    transform = None if config.cache else _file_transform(config)
    try:
        files = torchvision.datasets.ImageFolder(str(folder), transform, loader=_load)
    except OSError as error:
        raise ConfigError([Fault(f'{path}.root', ' '.join(str(error).split()))]) from error
    rows, targets, num_classes = chosen(config.subset, files.targets, len(files.classes), path, seed)
    # What is not chosen is not decoded.
    files.targets = targets.tolist()
    files.samples = [(files.samples[row][0], target) for row, target in zip(rows.tolist(), files.targets, strict=True)]
    dataset = _decoded(files, config, path) if config.cache else files
    return Source(dataset, Normalize(config.mean, config.std), num_classes)


def as_image_folder(
    config: Cifar10 | Cifar100, path: str, torchvisions: Any, mean: Sequence[float], std: Sequence[float]
) -> ImageFolder | None:
    """CIFAR as a folder of images, where its root holds that in place of torchvision's files.

    Args:
        config (Cifar10 | Cifar100): Its section, with the role's defaults filled in.
        path (str): Key path of the section, for errors.
        torchvisions (type): Torchvision's data set, whose files are taken where they are there.
        mean (Sequence[float]): Of each channel, in ``[0, 1]``.
        std (Sequence[float]): Likewise, in ``(0, 1]``.

    Returns:
        ImageFolder, optional: Its images, to be decoded into memory; None if there is no such folder.

    Raises:
        ConfigError: If it has not as many classes as the data set, or lossy images, which are other data.
    """
    assert config.split is not None, 'filled in with the role'
    folder = Path(config.root, config.split)
    classes = [entry for entry in sorted(folder.iterdir()) if entry.is_dir()] if folder.is_dir() else []
    if not classes or Path(config.root, torchvisions.base_folder).is_dir():
        return None
    wrong = ''
    if len(classes) != config.num_classes_known:
        wrong = f'{len(classes)} folders of classes'
    elif any(file.suffix.lower() in ('.jpg', '.jpeg') for file in classes[0].iterdir()):
        wrong = 'JPEG files, whose pixels are others'
    if wrong:
        fault = f'{str(folder)!r} has {wrong}: it is not {config.name}; name it image_folder, or give another root'
        raise ConfigError([Fault(f'{path}.root', fault)])
    shared = config.model_dump(exclude={'name', 'image_size', 'subset', 'augment'})
    return ImageFolder(
        name='image_folder',
        cache=True,
        mean=list(mean),
        std=list(std),
        subset=config.subset,
        augment=config.augment,
        **shared,
    )


def open_streaming(config: Streaming, path: str, seed: int, batch_size: int) -> Source:
    """Opens images in MDS shards.

    Args:
        config (Streaming): Its section, with the role's defaults filled in.
        path (str): Key path of the section, for errors.
        seed (int): For the order of the samples.
        batch_size (int): Samples of a batch on this process, in ``[1, ∞)``.

    Returns:
        Source: Images that are fetched when they are needed.

    Raises:
        ConfigError: If there are no such shards, or the package that reads them is missing.
    """
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


def _file_transform(config: ImageFolder | Streaming) -> v2.Transform:
    assert config.image_size is not None, 'filled in where images are resized'
    if config.augment is None:
        # The customary ratio of 256 to 224.
        steps = [v2.Resize(round(config.image_size * 256 / 224)), v2.CenterCrop(config.image_size)]
    else:
        steps = [v2.RandomResizedCrop(config.image_size)]
        steps += [v2.RandomHorizontalFlip()] if config.augment.flip else []
    return v2.Compose([*steps, v2.PILToTensor()])


def _reading(file: str, read: Callable[[str], T]) -> T:
    try:
        return read(file)
    except MemoryError:
        raise
    except Exception as error:  # each format has errors of its own
        reason = f'{type(error).__name__}: {" ".join(str(error).split())}'
        raise UnreadableImage(f'{file} cannot be read as an image ({reason}); replace or remove it') from error


def _load(file: str) -> object:
    return _reading(file, default_loader)


def _decode(file: str) -> Tensor:
    # torchvision's own decoder is several times as fast as Pillow, also in threads, but knows fewer formats.
    try:
        return read_image(file, ImageReadMode.RGB)
    except RuntimeError:
        return _reading(file, lambda file: pil_to_tensor(default_loader(file)))


def _decoded(files: torchvision.datasets.ImageFolder, config: ImageFolder, path: str) -> ImageTensors:
    try:
        first, *others = [file for file, _ in files.samples]
        image = _decode(first)
        remedy = 'set cache: false and image_size'
        check_memory(len(files) * image.numel(), f'{path}.cache', f'{len(files)} images', remedy)
        images = torch.empty((len(files), *image.shape), dtype=torch.uint8)
        images[0] = image
        for index, file in enumerate(others, start=1):
            image = _decode(file)
            if image.shape != images.shape[1:]:
                (_, height, width), (_, other_height, other_width) = images.shape[1:], image.shape
                fault = (
                    f'true needs images of one size, but {first} is {width}x{height} '
                    f'and {file} is {other_width}x{other_height}; {remedy}'
                )
                raise ConfigError([Fault(f'{path}.cache', fault)])
            images[index] = image
    except UnreadableImage as error:
        raise ConfigError([Fault(f'{path}.root', str(error))]) from error
    return ImageTensors(images, torch.tensor(files.targets, dtype=torch.int64), config.augment)
