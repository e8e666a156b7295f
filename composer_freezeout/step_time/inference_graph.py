"""What needs no gradient of a network, as an inference graph."""

from typing import Any

import torch
from torch import fx, nn
from torch.fx.experimental.optimization import fuse
from torch.fx.passes.split_module import split_module

__all__ = ['inference_prefix']


class _Inference(nn.Module):
    """Runs a module without gradients."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Any) -> Any:
        with torch.no_grad():
            return self.module(*inputs)


def inference_prefix(network: nn.Module) -> tuple[nn.Module, int, int]:
    """Divides a network into what depends on a trainable parameter and the rest, and makes the rest an inference graph.

    The rest runs without gradients and in evaluation mode, and each of its BatchNorms that directly follows a
    convolution is folded into it.

    Args:
        network (nn.Module): The network, in training mode. It is not changed, and shares its trainable parameters with
            the result.

    Returns:
        tuple[nn.Module, int, int]: The same function; how many BatchNorms have been folded, and how many have not.
    """
    traced = fx.symbolic_trace(network)
    trained: set[fx.Node] = set()
    for node in traced.graph.nodes:
        if any(parameter.requires_grad for parameter in _read(traced, node)) or trained & {*node.all_input_nodes}:
            trained.add(node)
    divided = split_module(traced, network, lambda node: int(node in trained))
    prefix = divided.get_submodule('submod_0')
    before = _count_norms(prefix)
    prefix = fuse(prefix.eval())
    after = _count_norms(prefix)
    divided.submod_0 = _Inference(prefix)
    return divided, before - after, after


def _read(traced: fx.GraphModule, node: fx.Node) -> list[nn.Parameter]:
    """The parameters that a node of a traced network reads itself."""
    if node.op == 'call_module':
        return list(traced.get_submodule(str(node.target)).parameters())
    if node.op == 'get_attr':
        owner, _, attribute = str(node.target).rpartition('.')
        value = getattr(traced.get_submodule(owner), attribute)
        return [value] if isinstance(value, nn.Parameter) else []
    return []


def _count_norms(traced: nn.Module) -> int:
    assert isinstance(traced, fx.GraphModule)
    calls = [node for node in traced.graph.nodes if node.op == 'call_module']
    return sum(isinstance(traced.get_submodule(str(call.target)), nn.modules.batchnorm._BatchNorm) for call in calls)
