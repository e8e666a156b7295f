"""Images in memory, changed at random and normalised by the batch."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from composer_freezeout.run.data_config import Augment

__all__ = ['ImageTensors', 'Normalize', 'Source', 'augmented', 'averaged', 'is_streaming']


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
        return self.dataset.size if is_streaming(self.dataset) else len(self.dataset)  # pyright: ignore


def averaged(source: Source, size: int | None) -> Source:
    """Makes the images of a data set smaller, each pixel the mean of those in its place.

    Args:
        source (Source): A data set of images in memory.
        size (int, optional): Their new height and width. Default: as they are.

    Returns:
        Source: The same with the smaller images.
    """
    images = source.dataset
    assert isinstance(images, ImageTensors), 'images in memory'
    if size is None or size == images.images.shape[-1]:
        return source
    # In parts: as floating point all of them would take four times the memory.
    parts = images.images.split(4096)
    smaller = torch.cat([F.interpolate(p.float(), (size, size), mode='area').round().to(torch.uint8) for p in parts])
    return replace(source, dataset=ImageTensors(smaller, images.labels, images.augment))


def is_streaming(dataset: Dataset) -> bool:
    """Whether a data set deals out its samples itself.

    Args:
        dataset (Dataset): A data set of a :class:`Source`.

    Returns:
        bool: True for a ``streaming.StreamingDataset``.
    """
    return isinstance(dataset, IterableDataset)
