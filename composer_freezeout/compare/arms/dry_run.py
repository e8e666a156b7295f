"""What there is to know of a run before it is trained."""

import warnings
from typing import Any, NamedTuple

from composer_freezeout.run.config import RunConfig
from composer_freezeout.run.data_config import DataConfig, OwnData, Synthetic
from composer_freezeout.run.faults import ConfigError, Fault

__all__ = ['Data', 'look_at_data', 'resolve']


class Data(NamedTuple):
    """What there is to know of training data before a run.

    Attributes:
        batches_per_epoch (int): In ``[1, ∞)``.
        batch (Any): Two samples, for what depends on shapes: without content, unless they are of a registered data set.
    """

    batches_per_epoch: int
    batch: Any


def resolve(config: RunConfig) -> dict[str, Any]:
    """A configuration as the record of its run will hold it, after all its components have been made once.

    Args:
        config (RunConfig): The configuration.

    Returns:
        dict[str, Any]: With the components' defaults filled in.

    Raises:
        ConfigError: If a component is at fault.
    """
    with warnings.catch_warnings():
        # About Composer's own code.
        warnings.simplefilter('ignore')
        from composer_freezeout.run.build import assemble
        from composer_freezeout.run.own_data import resolved_data

        # The data are looked at apart, once for all arms: opening them may take long.
        sections = {'train_data': _stand_in(config, config.train_data)}
        if config.eval_data is not None:
            sections['eval_data'] = _stand_in(config, config.eval_data)
        resolved = dict(assemble(config.model_copy(update=sections)).resolved)
    return resolved | {key: resolved_data(getattr(config, key), key) for key in sections}


def _stand_in(config: RunConfig, data: DataConfig) -> Synthetic:
    section = Synthetic(
        name='synthetic',
        num_samples=data.batch_size,
        batch_size=data.batch_size,
        image_size=8,
        channels=config.model.in_channels,
        num_classes=config.model.num_classes or 2,
    )
    section.fill_in('train')
    return section


def look_at_data(config: RunConfig) -> Data:
    """Opens the data sets of a run, without reading all images.

    Args:
        config (RunConfig): The configuration.

    Returns:
        Data: What there is to know of the training data.

    Raises:
        ConfigError: If a data set cannot be opened or doesn't suit the model.
    """
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        import torch
        from torchvision.transforms.v2.functional import pil_to_tensor

        from composer_freezeout.run.data import batches_of_an_epoch, build_data

    def opened(data: Any, path: str) -> Any:
        if not getattr(data, 'cache', False):
            return build_data(data, path, num_classes=config.model.num_classes, seed=config.seed)
        # Decoding them all takes long; one, as it is, is enough.
        data = data.model_copy(update={'cache': False, 'image_size': 8})
        spec: Any = build_data(data, path, num_classes=config.model.num_classes, seed=config.seed)
        spec.dataloader.dataset.transform = None
        return spec

    spec = opened(config.train_data, 'train_data')
    if config.eval_data is not None:
        opened(config.eval_data, 'eval_data')
    loader: Any = spec.dataloader
    batches = batches_of_an_epoch(loader, config)
    if batches is None:
        fault = 'has no length, of which others are made; give its data set __len__, or set train_subset_num_batches'
        raise ConfigError([Fault('train_data', fault)])
    if isinstance(config.train_data, OwnData):
        return Data(batches, _two_samples(spec))
    image = loader.dataset[0][0]
    shape = (image if isinstance(image, torch.Tensor) else pil_to_tensor(image)).shape
    return Data(batches, (torch.zeros(2, *shape), torch.zeros(2, dtype=torch.int64)))


def _two_samples(spec: Any) -> Any:
    """Samples of a registered data set: only its own are known to be such as the model takes."""
    from composer_freezeout.costs.batches import first_samples, map_tensors

    batch = next(iter(spec.dataloader), None)
    if batch is None:
        raise ConfigError([Fault('train_data', 'has no batch; give it samples, or smaller batches')])
    return map_tensors(first_samples(spec.batch_transforms(batch), 2), lambda tensor: tensor.cpu())
