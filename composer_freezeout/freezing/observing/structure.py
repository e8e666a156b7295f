"""What a module is, as far as its class, its children and the shapes of its parameters tell."""

from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from composer_freezeout.freezing.observing.names import join_names

__all__ = ['block_around', 'blocks_of', 'holds_vectors', 'is_around_others', 'is_list', 'is_matrix', 'is_within']


def is_matrix(tensor: Tensor) -> bool:
    """Whether a parameter has more than one dimension, unlike a bias or the scale of a norm."""
    return tensor.ndim > 1


def holds_vectors(model: nn.Module, module_name: str) -> bool:
    """Whether a module does no more than scale and shift, as far as its parameters tell."""
    module = model.get_submodule(module_name)
    parametrised = getattr(module, 'parametrizations', None)
    own = [*module.parameters(recurse=False), *(parametrised.parameters() if parametrised is not None else ())]
    return bool(own) and not is_around_others(model, module_name) and not any(map(is_matrix, own))


def is_list(model: nn.Module, module_name: str) -> bool:
    """Whether a module is a list or dictionary of parameters, which are layers of their own."""
    return isinstance(model.get_submodule(module_name), (nn.ParameterList, nn.ParameterDict))


def is_around_others(model: nn.Module, module_name: str) -> bool:
    """Whether what a module holds itself (a class token, say) goes by the parameter's own name."""
    children = {name for name, _ in model.get_submodule(module_name).named_children()} - {'parametrizations'}
    return not module_name or bool(children) or is_list(model, module_name)


def block_around(module_name: str, blocks: Sequence[str]) -> str | None:
    """Name of the block that a module is in, or None."""
    return next((block for block in blocks if is_within(module_name, block)), None)


def blocks_of(module: nn.Module, prefix: str = '', in_container: bool = False) -> Iterator[str]:
    """Names of the outermost modules that a container holds and that have modules with parameters inside."""
    for name, child in module.named_children():
        path = join_names(prefix, name)
        if (
            in_container
            and not _is_container(child)
            and any(c for c in child.children() if any(True for _ in c.parameters()))
        ):
            yield path
        else:
            yield from blocks_of(child, path, _is_container(child))


def _is_container(module: nn.Module) -> bool:
    if isinstance(module, nn.Sequential):  # a subclass with a forward of its own is a block
        return type(module).forward is nn.Sequential.forward
    return isinstance(module, (nn.ModuleList, nn.ModuleDict))


def is_within(name: str, module_name: str) -> bool:
    """Whether something is a module or in it, by their names; everything is in the whole model, which has no name."""
    return not module_name or name == module_name or name.startswith(f'{module_name}.')
