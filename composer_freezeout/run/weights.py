"""Weights to start from: read from a file or from torchvision, and laid into a model by name and shape."""

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
import torchvision
from composer.utils import dist
from torch import Tensor, nn

from composer_freezeout.results.record import Weights
from composer_freezeout.run.faults import ConfigError, Fault, nearest, suggest
from composer_freezeout.run.weight_files import WEIGHT_FILES, read_pickle, read_safetensors

__all__ = ['load_weights', 'weights_line']

# What wrappers put before a model's own names: data-parallel ones, Composer's and Lightning's models.
_WRAPPERS = re.compile(r'(?:(?:module|model)\.)*')
# Where a state dict is in what others save.
_WITHIN = ('state_dict', 'model_state_dict', 'model')


def load_weights(model: nn.Module, name: str, source: str, path: str) -> Weights:
    """Lays weights into a model, each tensor where its name and its shape fit.

    If tensors of the model's last layer have other shapes, as for another number of classes, all of that layer starts
    anew.

    Args:
        model (nn.Module): The model; it is changed.
        name (str): Its name in the configuration.
        source (str): A file, or the name of weights of torchvision.
        path (str): Key path of the source, for errors.

    Returns:
        Weights: What was loaded, what starts anew, and what of the source was left out.

    Raises:
        ConfigError: If there are no such weights, they cannot be read, none fits, or shapes differ in other layers.
    """
    given = _state_dict(_read(name, source, path), source, path)
    own = {key: tensor for key, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}
    name_in = _names_in(given, own)
    common = {key: given[name_in[key]] for key in own if name_in.get(key) in given}
    other = [key for key, tensor in common.items() if not _fits(tensor, own[key])]
    last = _last_layer(model)
    if elsewhere := [key for key in other if key.rpartition('.')[0] != last]:
        raise ConfigError([Fault(path, _other_shapes(source, elsewhere, common, own))])
    fitting = {key: tensor for key, tensor in common.items() if not (other and key.rpartition('.')[0] == last)}
    if not fitting:
        raise ConfigError([Fault(path, _nothing_fits(source, given, own))])
    with torch.no_grad():
        for key, tensor in fitting.items():
            own[key].copy_(tensor)
    used = {name_in[key] for key in fitting}
    return Weights(
        source=source,
        loaded=len(fitting),
        new=[key for key in own if key not in fitting],
        left_out=[key for key in given if key not in used],
    )


def weights_line(weights: Weights) -> str:
    """What became of the weights, in a line.

    Args:
        weights (Weights): From :func:`load_weights`.

    Returns:
        str: Numbers of tensors, with some of their names.
    """
    line = f'weights of {weights.source}: {weights.loaded} tensors loaded'
    for what, names in (('new', weights.new), ('left out', weights.left_out)):
        if names:
            line += f', {len(names)} {what} ({", ".join(names[:3])}{", …" if len(names) > 3 else ""})'
    return line


def _read(name: str, source: str, path: str) -> Any:
    file = Path(source)
    if file.suffix in WEIGHT_FILES or '/' in source or file.exists():
        if not file.exists():
            raise ConfigError([Fault(path, f'no such file: {source!r}')])
        return read_safetensors(file, path) if file.suffix == '.safetensors' else read_pickle(file, path)
    return read_pickle(_fetched(name, source, path), path)


def _fetched(name: str, source: str, path: str) -> Path:
    """The file of torchvision's weights, in torch's own cache."""
    if name not in torchvision.models.list_models(module=torchvision.models):
        fault = f'no such file: {source!r}; torchvision, whose weights have names, has no {name}'
        raise ConfigError([Fault(path, fault)])
    published = torchvision.models.get_model_weights(name)
    if source not in published.__members__:
        fault = f'torchvision has no weights {source!r} of {name}; {suggest(source, published.__members__)}'
        raise ConfigError([Fault(path, f'{fault} Or give a file')])
    weights: Any = published[source]
    file = Path(torch.hub.get_dir()) / 'checkpoints' / Path(urlparse(weights.url).path).name
    # One process of a machine downloads; the others find the file.
    with dist.run_local_rank_zero_first() if dist.is_initialized() else nullcontext():
        if not file.exists():
            try:
                weights.get_state_dict(progress=False, check_hash=True, weights_only=True, map_location='cpu')
            except (OSError, RuntimeError) as error:  # no network, no space, or another file than was published
                reason = ' '.join(str(error).split())[:200]
                fault = f'{source} cannot be downloaded from {weights.url} ({reason}); put that file into {file.parent}'
                raise ConfigError([Fault(path, fault)]) from error
    return file


def _state_dict(content: Any, source: str, path: str) -> dict[str, Tensor]:
    """The tensors of a state dict, of a Composer checkpoint, or of what other trainers save."""
    inner = content.get('state') if isinstance(content, Mapping) else None
    if isinstance(inner, Mapping) and isinstance(inner.get('model'), Mapping):
        content = inner['model']
    elif isinstance(content, Mapping):
        within = (content[key] for key in _WITHIN if isinstance(content.get(key), Mapping))
        content = next(within, content)
    tensors = content.items() if isinstance(content, Mapping) else ()
    # Compiled models have this before the names of what is compiled.
    found = {str(key).replace('_orig_mod.', ''): tensor for key, tensor in tensors if isinstance(tensor, Tensor)}
    if not found:
        raise ConfigError(
            [Fault(path, f'{source!r} holds no weights; give a file of torch.save(model.state_dict(), …)')]
        )
    return found


def _names_in(given: Iterable[str], own: Iterable[str]) -> dict[str, str]:
    """The name in the file of each of a model's tensors: those of one wrapper in the place of the other's."""
    given, own = list(given), list(own)

    def named(theirs: str, ours: str) -> dict[str, str]:
        there = {key.removeprefix(theirs) for key in given if key.startswith(theirs)}
        rests = {key: key.removeprefix(ours) for key in own if key.startswith(ours)}
        return {key: theirs + rest for key, rest in rests.items() if rest in there}

    found = [named(theirs, ours) for theirs in _wrappers(given) for ours in _wrappers(own)]
    return max(found, key=len)


def _wrappers(names: Iterable[str]) -> Sequence[str]:
    """What may have been put before names, nothing first."""
    chains = {match[0] for name in names if (match := _WRAPPERS.match(name))}
    parts = [chain.split('.')[:-1] for chain in chains]
    return sorted({''.join(f'{part}.' for part in chain[:n]) for chain in parts for n in range(len(chain) + 1)})


def _fits(tensor: Tensor, own: Tensor) -> bool:
    # A sparse or quantized tensor, or one without values, is none of a layer's.
    plain = tensor.layout is torch.strided and not tensor.is_meta and not tensor.is_quantized
    return plain and tensor.shape == own.shape and tensor.is_complex() == own.is_complex()


def _last_layer(model: nn.Module) -> str:
    """Name of the module with parameters that is registered last: the head, in classifiers as they are written."""
    holders = [name for name, module in model.named_modules() if any(True for _ in module.parameters(recurse=False))]
    return holders[-1]


def _other_shapes(source: str, keys: Sequence[str], given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    shapes = [f'{key} {tuple(given[key].shape)} instead of {tuple(own[key].shape)}' for key in keys[:3]]
    more = f' and {len(keys) - 3} more' if len(keys) > 3 else ''
    told = f'{source!r} is of another model: {", ".join(shapes)}{more}'
    return f'{told}; only the last layer may differ: choose the model that it was made of'


def _nothing_fits(source: str, given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    pairs = [(key, nearest(key, list(given)[:2000])) for key in list(own)[:3]]
    near = ', '.join(f'{there!r} is nearest to {key!r}' for key, there in pairs if there is not None)
    shown = near or f'its names are {", ".join(map(repr, list(given)[:3]))}, …, those of the model {pairs[0][0]!r}, …'
    return f'none of the {len(given)} tensors in {source!r} has the name and shape of one of the model: {shown}'
