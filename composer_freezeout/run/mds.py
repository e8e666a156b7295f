"""Images in MDS shards, streamed from where they are. Needs mosaicml-streaming, which is optional."""

from collections.abc import Callable
from typing import Any

from streaming import StreamingDataset  # pyright: ignore[reportMissingImports]
from torch import Tensor

__all__ = ['StreamingImages']


class StreamingImages(StreamingDataset):
    """Labelled images from the columns ``x`` (the image) and ``y`` (the class).

    Args:
        transform (Callable): Makes a tensor of an RGB image of PIL's.
        **kwargs (Any): Arguments of ``streaming.StreamingDataset``.
    """

    def __init__(self, transform: Callable[[Any], Tensor], **kwargs: Any):
        super().__init__(**kwargs)
        self.transform = transform

    def get_item(self, sample_id: int, retry: int = 7) -> tuple[Tensor, int]:
        """An image and its class, fetching the shard if it isn't there."""
        sample = super().get_item(sample_id, retry)
        return self.transform(sample['x'].convert('RGB')), sample['y']

    def state_dict(self, num_samples: int, from_beginning: bool) -> dict[str, Any]:
        """Where the next batch comes from.

        Args:
            num_samples (int): Samples of this epoch that were used, in ``[0, ∞)``.
            from_beginning (bool): Whether they count from the beginning of the epoch, as Composer counts.

        Returns:
            dict[str, Any]: What :meth:`load_state_dict` takes.
        """
        state = super().state_dict(num_samples, from_beginning)
        if from_beginning and not num_samples:
            # At the end of an epoch Composer's count begins anew: the next batch is the first of the next epoch, and
            # not once more that of the epoch that has ended.
            state['epoch'] = max(state['epoch'], self.next_epoch)
        return state
