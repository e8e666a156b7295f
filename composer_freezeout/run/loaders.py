"""Loaders of data sets: what their sections say of them, in the words of torch."""

from collections.abc import Mapping
from typing import Any

from composer.utils import dist
from torch.utils.data import DataLoader

from composer_freezeout.run.data_config import DataConfig
from composer_freezeout.run.faults import ConfigError, Fault

__all__ = ['check_full_batch', 'dealt_out', 'loader_arguments']


def check_full_batch(config: DataConfig, samples: int, path: str) -> None:
    """Makes sure that there is a batch, where batches that are not full are dropped.

    Args:
        config (DataConfig): The section, with the role's defaults filled in.
        samples (int): Samples of an epoch over all processes.
        path (str): Key path of the section.

    Raises:
        ConfigError: If there is none.
    """
    if config.drop_last and samples < config.batch_size:
        fault = f'{config.batch_size} is more than the {samples} samples there are, which leaves no full batch'
        raise ConfigError([Fault(f'{path}.batch_size', f'{fault}; take a smaller one or set drop_last: false')])


def dealt_out(data_set: Any, config: DataConfig, seed: int, arguments: Mapping[str, Any]) -> DataLoader[Any]:
    """A loader whose samples are dealt out to the processes.

    Args:
        data_set (Dataset): With a length.
        config (DataConfig): Its section, with the role's defaults filled in.
        seed (int): For the order of the samples.
        arguments (Mapping[str, Any]): Of the loader.

    Returns:
        DataLoader: It.
    """
    drop_last, shuffle = bool(config.drop_last), bool(config.shuffle)
    sampler = dist.get_sampler(data_set, drop_last=drop_last, shuffle=shuffle, seed=seed)
    return DataLoader(data_set, sampler=sampler, **arguments)


def loader_arguments(config: DataConfig, batch_size: int, device: str) -> dict[str, Any]:
    """Arguments of a ``torch.utils.data.DataLoader``, but for data set, sampler and collation.

    Args:
        config (DataConfig): The section, with the role's defaults filled in.
        batch_size (int): Samples of a step on this process, in ``[1, ∞)``.
        device (str): ``'cpu'`` or ``'gpu'``.

    Returns:
        dict[str, Any]: By name.
    """
    return {
        'batch_size': batch_size,
        'drop_last': bool(config.drop_last),
        'num_workers': config.num_workers,
        'persistent_workers': config.num_workers > 0,
        'pin_memory': device == 'gpu',
    }
