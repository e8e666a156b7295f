"""What of a model never trains: chosen by names, out of the backward pass, its running statistics standing still."""

import re
from collections.abc import Iterator, Sequence
from itertools import accumulate

import torch
from torch import nn

from composer_freezeout.freezing.hooks import UncopiedHook
from composer_freezeout.run.faults import ConfigError, Fault, shortened, suggest

__all__ = ['FrozenPart', 'freeze']

# What a module's running statistics are called, whatever its class is.
_STATISTICS = frozenset({'running_mean', 'running_var', 'num_batches_tracked'})


class FrozenPart:
    """The part of a model that regular expressions choose.

    Args:
        model (nn.Module): The model.
        patterns (Sequence[str]): Regular expressions, each for whole names of modules or parameters. A leading
            ``module.``, which is Composer's own, may be left out. What is in a chosen module is chosen, too.
    """

    def __init__(self, model: nn.Module, patterns: Sequence[str]) -> None:
        self._model = model
        self._expressions = [re.compile(pattern) for pattern in patterns]

    def parameters(self) -> dict[str, nn.Parameter]:
        """The chosen parameters by name."""
        named = self._model.named_parameters(remove_duplicate=False)
        return {name: parameter for name, parameter in named if self._has(name)}

    def norms(self) -> dict[str, nn.Module]:
        """The chosen modules with running statistics by name."""
        return {
            name: module
            for name, module in self._model.named_modules(remove_duplicate=False)
            if self._has(name) and any(buffer in _STATISTICS for buffer, _ in module.named_buffers(recurse=False))
        }

    def modules(self) -> list[str]:
        """Names of the modules that hold what is chosen, in the model's order."""
        holders = [name.rpartition('.')[0] for name in self.parameters()] + list(self.norms())
        order = {name: index for index, (name, _) in enumerate(self._model.named_modules(remove_duplicate=False))}
        return sorted(set(holders), key=order.__getitem__)

    def size(self) -> int:
        """Number of the chosen parameters."""
        return sum(parameter.numel() for parameter in set(self.parameters().values()))

    def _has(self, name: str) -> bool:
        return any(expression.fullmatch(part) for part in _lineage(name) for expression in self._expressions)


def freeze(model: nn.Module, patterns: Sequence[str], path: str) -> FrozenPart:
    """Freezes a part of a model for good. In training its running statistics are used, and don't change.

    Args:
        model (nn.Module): The model, before an optimizer is made of it.
        patterns (Sequence[str]): As in :class:`FrozenPart`.
        path (str): Their key path, for errors.

    Returns:
        FrozenPart: What is frozen.

    Raises:
        ConfigError: If an expression is none, or chooses nothing, or if nothing is left to train.
    """
    faults = [fault for index, pattern in enumerate(patterns) for fault in _faults(model, pattern, f'{path}.{index}')]
    if faults:
        raise ConfigError(faults)
    part = FrozenPart(model, patterns)
    for parameter in part.parameters().values():
        parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError([Fault(path, 'leaves no parameter to train; choose less, at least not the head')])
    model.register_forward_pre_hook(UncopiedHook(_Hold(part)))
    return part


class _Hold:
    """Keeps running statistics still in every pass of training, whoever has switched the model's mode before it."""

    def __init__(self, part: FrozenPart) -> None:
        self._part = part
        self._norms: list[nn.Module] | None = None

    def __call__(self, module: nn.Module, _: object) -> None:
        if torch.compiler.is_compiling() or not module.training:
            return
        if self._norms is None:
            # Not before: algorithms put other modules in the place of some as training starts.
            for parameter in self._part.parameters().values():
                parameter.requires_grad_(False)
            self._norms = list(self._part.norms().values())
        for norm in self._norms:
            norm.training = False


def _faults(model: nn.Module, pattern: str, path: str) -> Iterator[Fault]:
    try:
        part = FrozenPart(model, [pattern])
    except re.error as error:
        yield Fault(path, f'{shortened(pattern)} is not a regular expression: {error}')
        return
    if not part.modules():
        names = {name.removeprefix('module.') for name in FrozenPart(model, ['.*']).modules()}
        # Those of the layers around them may be meant, too.
        around = {outer for name in names for outer in accumulate(name.split('.'), '{}.{}'.format)}
        yield Fault(path, f'{shortened(pattern)} matches no module with parameters; {suggest(pattern, around)}')


def _lineage(name: str) -> list[str]:
    """The names of a module and of those around it, with and without what Composer puts before them."""
    whole = list(accumulate(name.split('.'), '{}.{}'.format))
    return whole + [part.removeprefix('module.') for part in whole if part.startswith('module.')]
