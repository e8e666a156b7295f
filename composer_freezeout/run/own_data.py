"""Data sets that users have registered: called with the arguments of a YAML file, and made loaders of."""

from typing import Any

from composer.core import DataSpec
from torch.utils.data import DataLoader, IterableDataset

from composer_freezeout.run.data_config import DataConfig, OwnData
from composer_freezeout.run.faults import ConfigError, Fault
from composer_freezeout.run.loaders import check_full_batch, dealt_out, loader_arguments
from composer_freezeout.run.own_models import called
from composer_freezeout.run.registered import DATA_SETS, SUPPLIED
from composer_freezeout.run.signatures import check_arguments

__all__ = ['open_own_data', 'resolved_data']


def open_own_data(config: OwnData, path: str, seed: int, batch_size: int, device: str) -> DataSpec:
    """Calls the function of a registered data set, and makes a loader of what it returns.

    Args:
        config (OwnData): Its section, with the role's defaults filled in.
        path (str): Key path of the section, for errors.
        seed (int): That of the run; also of the order of the samples.
        batch_size (int): Samples of a step on this process, in ``[1, ∞)``.
        device (str): ``'cpu'`` or ``'gpu'``.

    Returns:
        DataSpec: The loader; without change where the function has made one.

    Raises:
        ConfigError: If an argument is unknown, missing or refused, or it is no data set.
    """
    registered = DATA_SETS[config.name]
    arguments, _ = check_arguments(registered.make, config.arguments, path, supplied=SUPPLIED)
    values = {'role': config.role, 'seed': seed, 'batch_size': batch_size}
    values |= {key: getattr(config, key) for key in ('shuffle', 'drop_last', 'num_workers')}
    taken = {key: value for key, value in values.items() if key in registered.parameters}
    with called(path, arguments):
        made = registered.make(**taken, **arguments)
        if not isinstance(made, (DataSpec, DataLoader)) and _is_data_set(made):
            return DataSpec(_loader(made, config, path, seed, batch_size, device))
        spec = made if isinstance(made, DataSpec) else _of_loader(made, config, path)
    _check_own_loader(spec, config, path, batch_size, frozenset(taken))
    return spec


def resolved_data(config: DataConfig, path: str) -> dict[str, Any]:
    """The section as a record holds it: that of a registered data set with its function's defaults.

    Args:
        config (DataConfig): The section, with the role's defaults filled in.
        path (str): Its key path, for errors.

    Returns:
        dict[str, Any]: As JSON can hold it; the name comes first.

    Raises:
        ConfigError: If an argument is at fault.
    """
    resolved = {'name': config.name} | config.model_dump(mode='json')
    if isinstance(config, OwnData):
        make = DATA_SETS[config.name].make
        resolved |= check_arguments(make, config.arguments, path, supplied=SUPPLIED)[1]
    return resolved


def _is_data_set(made: Any) -> bool:
    return isinstance(made, IterableDataset) or (hasattr(made, '__getitem__') and hasattr(made, '__len__'))


def _of_loader(made: Any, config: OwnData, path: str) -> DataSpec:
    if not hasattr(made, '__iter__'):
        fault = f'{config.name} returned {type(made).__name__}; let it return a Dataset, a DataLoader or a DataSpec'
        raise ConfigError([Fault(f'{path}.name', fault)])
    return DataSpec(made)


def _loader(data_set: Any, config: OwnData, path: str, seed: int, batch_size: int, device: str) -> DataLoader[Any]:
    shared = loader_arguments(config, batch_size, device)
    shared['collate_fn'] = getattr(data_set, 'collate_fn', None)
    if isinstance(data_set, IterableDataset):
        return DataLoader(data_set, **shared)
    check_full_batch(config, len(data_set), path)
    return dealt_out(data_set, config, seed, shared)


def _check_own_loader(spec: DataSpec, config: OwnData, path: str, batch_size: int, taken: frozenset[str]) -> None:
    """Makes sure that the section is true of a loader that the function has made."""
    faults = [
        Fault(
            f'{path}.{key}', f'{config.name} makes its own loader, and has no argument {key!r}; add it, or remove this'
        )
        for key in ('shuffle', 'drop_last', 'num_workers')
        if key in config.given and key not in taken
    ]
    size = getattr(spec.dataloader, 'batch_size', None)
    if size not in (None, batch_size):
        fault = (
            f'asks for batches of {batch_size} on each process, and the loader of {config.name} has batches of {size}; '
            'let the function take batch_size'
        )
        faults.append(Fault(f'{path}.batch_size', fault))
    if faults:
        raise ConfigError(faults)
