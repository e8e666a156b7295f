"""FLOPs of training steps from the first one of them: counted while it runs, so that nothing runs for their sake.

The operators of the forward pass are counted as they come. What the backward pass will cost with ``k`` units frozen
follows from the graph: a product has a gradient for each factor that still leads to a trained parameter.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from composer_freezeout.freezing.observing.recorder import Recorder

__all__ = ['CountingRecorder']

# Products, by the name of their node: which of its edges lead to factors. The gradient of each costs what the product
# does.
_FACTORS = {
    'AddmmBackward0': (1, 2),
    'BaddbmmBackward0': (1, 2),
    'BmmBackward0': (0, 1),
    'ConvolutionBackward0': (0, 1),
    'MmBackward0': (0, 1),
}
# Attention in one operator computes two products, hence four gradients.
_ATTENTION = ('ScaledDotProductCudnn', 'ScaledDotProductEfficient', 'ScaledDotProductFlash')


class CountingRecorder(Recorder):
    """Sees the operators of a forward pass, and counts their FLOPs by torch's formulas."""

    def __init__(self) -> None:
        super().__init__()
        self._flops: dict[int, int] = {}  # by number of the operator
        self._complete = True

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        number = self.operator
        result = super().__torch_dispatch__(func, types, args, kwargs)
        try:
            if flops := _flops_of(func, args, kwargs or {}, result):
                self._flops[number] = flops
        except Exception:  # no reason for a training to fail
            self._complete = False
        return result

    def by_units_frozen(self, losses: Iterable[Tensor], unit_of: Mapping[int, int], num_units: int) -> list[int] | None:
        """FLOPs of a step with the first ``k`` units frozen, for each ``k``.

        Args:
            losses (Iterable[Tensor]): The losses, before the backward pass.
            unit_of (Mapping[int, int]): Index of the unit by the ``id`` of each trained parameter.
            num_units (int): Number of units ``n``, in ``[1, ∞)``.

        Returns:
            list[int], optional: ``n`` numbers, for ``k`` from 0 to ``n - 1``, descending. None where they can't be
            told: nothing was counted, or there are functions whose backward pass torch doesn't know.
        """
        # Gradients of a product's factors, by the last unit that needs them.
        backward = [0] * (num_units + 1)
        needed_by: dict[Any, int] = {None: -1}
        for node in _children_first(losses):
            name = type(node).__name__
            children = [child for child, _ in node.next_functions]
            needs = [needed_by[child] for child in children]
            needed_by[node] = max(needs, default=-1)
            if hasattr(node, 'variable'):
                needed_by[node] = unit_of.get(id(node.variable), num_units)
            seen = self.seen.get(node._sequence_nr())
            flops = 0 if seen is None else self._flops.get(seen.operator, 0)
            if isinstance(node, BackwardCFunction) or (flops and not _is_known(name)):
                return None
            if name in _FACTORS:
                for edge in _FACTORS[name]:
                    backward[needs[edge]] += flops if needs[edge] >= 0 else 0
            elif name.startswith(_ATTENTION):
                backward[needed_by[node]] += 2 * flops
        if not self._complete or not self._flops:
            return None
        forward = sum(self._flops.values())
        return [forward + sum(backward[frozen:]) for frozen in range(num_units)]


def _flops_of(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> int:
    if 'scaled_dot_product' in str(func):  # of which torch counts not all
        query, key, value = (tensor.shape for tensor in args[:3])
        return int(sdpa_flop_count(query, key, value))
    formula = flop_registry.get(func.overloadpacket)
    return 0 if formula is None else int(formula(*args, **kwargs, out_val=result))


def _is_known(name: str) -> bool:
    return name in _FACTORS or name.startswith(_ATTENTION)


def _children_first(losses: Iterable[Tensor]) -> list[Any]:
    ordered: list[Any] = []
    done: set[Any] = set()
    todo = [(loss.grad_fn, False) for loss in losses if loss.grad_fn is not None]
    while todo:
        node, complete = todo.pop()
        if complete:
            ordered.append(node)
        elif node not in done:
            done.add(node)
            todo.append((node, True))
            todo += [(child, False) for child, _ in node.next_functions if child is not None and child not in done]
    return ordered
