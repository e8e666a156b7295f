"""A part of a data set: some of its classes, and so many samples of each."""

from collections.abc import Sequence

import torch
from torch import Tensor

from composer_freezeout.run.data_config import Subset
from composer_freezeout.run.faults import ConfigError, Fault

__all__ = ['chosen']


def chosen(
    subset: Subset | None, targets: Sequence[int] | Tensor, num_classes: int, path: str, seed: int
) -> tuple[Tensor, Tensor, int]:
    """Chooses samples by their classes.

    Args:
        subset (Subset, optional): What to choose. Default: everything.
        targets (Sequence[int] | Tensor): The class of each sample, in ``[0, num_classes)``, shape ``(samples,)``.
        num_classes (int): In ``[1, ∞)``.
        path (str): Key path of the data set's section, for errors.
        seed (int): For the draw, in ``[0, 2**32)``.

    Returns:
        tuple[Tensor, Tensor, int]: Indices of the chosen samples, ascending, and their classes, numbered from 0 in the
        order of the choice, both ``int64`` of shape ``(chosen,)``; and the number of classes.

    Raises:
        ConfigError: If a class doesn't exist, or has fewer samples.
    """
    labels = torch.as_tensor(targets, dtype=torch.int64)
    if subset is None:
        return torch.arange(len(labels)), labels, num_classes
    classes = list(range(num_classes)) if subset.indices is None else subset.indices
    if max(classes) >= num_classes:
        fault = f'has class {max(classes)}, but the data set has {num_classes} classes, 0 to {num_classes - 1}'
        raise ConfigError([Fault(f'{path}.subset.classes', fault)])
    generator = torch.Generator().manual_seed(seed)
    parts = [torch.nonzero(labels == index).flatten() for index in classes]
    if subset.per_class is not None:
        fewest = min(map(len, parts))
        if fewest < subset.per_class:
            fault = f'is {subset.per_class}, but a class has {fewest} samples; take at most as many'
            raise ConfigError([Fault(f'{path}.subset.per_class', fault)])
        parts = [part[torch.randperm(len(part), generator=generator)[: subset.per_class]] for part in parts]
    numbers = torch.cat([torch.full_like(part, number) for number, part in enumerate(parts)])
    rows, order = torch.cat(parts).sort()
    return rows, numbers[order], len(classes)
