"""Optimizers that FreezeOut is judged with: torch's, Composer's, and what people install beside them.

Each has hyperparameters that its defaults leave out of use, so that nothing goes unnoticed. What needs a package that
isn't installed is left out.
"""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch.optim import Optimizer

# Kinds of networks that an optimizer is tried on; see test_optimizers.py.
NETWORKS = ('plain', 'groups', 'scalar', 'bf16')


@dataclass(frozen=True)
class Entry:
    """How to make an optimizer, and in what it differs from others.

    Attributes:
        make (Callable[[Any], Optimizer]): Makes it from a list of param groups.
        package (str): The package that it comes from.
        networks (tuple[str, ...]): The networks that it can train by itself.
        refused (str): What FreezeOut has to say of it, as a regular expression; empty if it has to work.
        before (Callable[[Any], object], optional): What has to be done with it before its first step.
        needs_closure (bool): Whether its step computes the gradients.
        needs_graph (bool): Whether the backward pass has to keep its graph.
        moves_frozen (bool): Whether it moves parameters without a gradient, which FreezeOut has to prevent.
        fresh (Callable[[torch.Tensor], dict[str, Any]], optional): A state that acts as none, where it can't step some
            parameters of a group with a state and others without.
        counts_by_group (str): Why the groups of units come to hold different numbers. An original group has but one of
            each, so that after a unit has thawed, or a checkpoint been loaded, results are equal to rounding only.
        saves (bool): Whether it has a state dict.
        lost_in_state_dict (str): What its own state dict leaves out; then it can't go on from a checkpoint exactly.
        warnings (tuple[str, ...]): Warnings that it gives by itself, as filters.
    """

    make: Callable[[Any], Optimizer]
    package: str = 'torch'
    networks: tuple[str, ...] = NETWORKS
    refused: str = ''
    before: Callable[[Any], object] | None = None
    needs_closure: bool = False
    needs_graph: bool = False
    moves_frozen: bool = False
    fresh: Callable[[torch.Tensor], dict[str, Any]] | None = None
    counts_by_group: str = ''
    saves: bool = True
    lost_in_state_dict: str = ''
    warnings: tuple[str, ...] = ()

    def of(self, groups: Iterable[dict[str, Any]]) -> Optimizer:
        """An optimizer of these groups, ready for its first step."""
        optimizer = self.make([dict(group) for group in groups])
        if self.before is not None:
            self.before(optimizer)
        return optimizer


def nested(optimizer: Optimizer) -> list[Any]:
    """An optimizer and those that it wraps, outermost first."""
    chain: list[Any] = [optimizer]
    while True:
        inner = [getattr(chain[-1], name, None) for name in ('optimizer', 'base_optimizer')]
        found = [optimizer for optimizer in inner if isinstance(optimizer, Optimizer)]
        if not found:
            return chain
        chain.append(found[0])


def torch_classes() -> set[type[Optimizer]]:
    """The optimizers of this torch."""
    classes = {c for c in vars(torch.optim).values() if inspect.isclass(c) and issubclass(c, Optimizer)}
    return classes - {Optimizer}


def entries(refused: bool = False) -> dict[str, Entry]:
    """What is installed, by name.

    Args:
        refused (bool): Those that FreezeOut has to refuse, instead of those that have to work.
    """
    return {
        name: entry for name, entry in ENTRIES.items() if find_spec(entry.package) and bool(entry.refused) is refused
    }


def missing() -> list[str]:
    """Packages that are not installed."""
    return sorted({entry.package for entry in ENTRIES.values() if not find_spec(entry.package)})


# --- some of our own


class Odd(Optimizer):
    """SGD with momentum that keeps its state in every form that a checkpoint can hold."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {'lr': lr, 'seen': [0]})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = _evaluated(closure)
        for group in self.param_groups:
            group['seen'] = [group['seen'][0] + 1]
            for p in group['params']:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    largest = torch.full((), -1.0)
                    state.update(last=None, count=0, nested={'buffers': [torch.ones_like(p)], 'max': largest})
                buffer = state['nested']['buffers'][0]
                # The first gradient counts in full, whatever the buffer holds.
                buffer.mul_(0.9 if state['count'] else 0.0).add_(p.grad)
                state['nested']['max'] = torch.maximum(state['nested']['max'], p.grad.float().norm())
                state['last'] = p.grad.float().mean().item() if state['count'] else None
                state['count'] += 1
                p.add_(buffer, alpha=-group['lr'])
        return loss


class OwnRate(Optimizer):
    """SGD whose step sizes are its own affair."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {'lr': lr})
        self.rate = lr

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = _evaluated(closure)
        for group in self.param_groups:
            for p in group['params']:
                if p.grad is not None:
                    p.add_(p.grad, alpha=-self.rate)
        return loss


@torch.enable_grad()
def _evaluated(closure: Any) -> Any:
    return None if closure is None else closure()


# --- the registry


def _of(package: str, path: str, *arguments: Any, **keywords: Any) -> Callable[[Any], Optimizer]:
    """Makes an optimizer of a package, which is imported only when it is needed."""
    module, _, name = path.rpartition('.')

    def make(groups: Any) -> Optimizer:
        return getattr(import_module(f'{package}.{module}' if module else package), name)(
            groups, *arguments, **keywords
        )

    return make


def _torch(name: str, **keywords: Any) -> Entry:
    return Entry(_of('torch', f'optim.{name}', **keywords))


def _lookahead(groups: Any) -> Optimizer:
    inner = torch.optim.SGD(groups, lr=0.05, momentum=0.9)
    return import_module('torch_optimizer').Lookahead(inner, k=3, alpha=0.8)


def _other_lookahead(groups: Any) -> Optimizer:
    inner = torch.optim.SGD(groups, lr=0.05, momentum=0.9)
    return import_module('pytorch_optimizer').Lookahead(inner, k=3, alpha=0.8)


def _sam(groups: Any) -> Optimizer:
    module = import_module('composer.algorithms.sam.sam')
    return module.SAMOptimizer(torch.optim.SGD(groups, lr=0.05), rho=0.02)


def _muon(groups: Any) -> Optimizer:
    for group in groups:
        group['use_muon'] = all(p.ndim > 1 for p in group['params'])
    return import_module('pytorch_optimizer').Muon(groups, lr=0.01)


def _zero_redundancy(groups: Any) -> Optimizer:
    return import_module('torch.distributed.optim').ZeroRedundancyOptimizer(groups, torch.optim.SGD, lr=0.05)


def _train(optimizer: Any) -> None:
    optimizer.train()


_OLD_SIGNATURE = 'ignore:This overload of add:UserWarning'
_KEPT_GRAPH = 'ignore:Using backward\\(\\) with create_graph=True:UserWarning'
_WEIGHTS_BY_GROUP = 'the sum of the weights of its average depends on the learning rate, and is kept by group'
_NO_HOOKS = r'does not initialise torch\.optim\.Optimizer'
_OWN_RATE = 'learning rate'

_TORCH_OPTIMIZER: dict[str, dict[str, Any]] = {
    'AccSGD': {'lr': 0.05},
    'AdaBelief': {'lr': 0.01, 'weight_decay': 0.1, 'amsgrad': True},
    'AdaMod': {'lr': 0.01, 'weight_decay': 0.1},
    'AdamP': {'lr': 0.01, 'weight_decay': 0.1, 'nesterov': True},
    'AggMo': {'lr': 0.01, 'weight_decay': 0.1},
    'Apollo': {'lr': 0.01},
    'DiffGrad': {'lr': 0.01, 'weight_decay': 0.1},
    'LARS': {'lr': 0.05, 'momentum': 0.9, 'dampening': 0.3, 'weight_decay': 0.1},
    'Lamb': {'lr': 0.01, 'weight_decay': 0.1},
    'MADGRAD': {'lr': 0.01, 'weight_decay': 0.1},
    'NovoGrad': {'lr': 0.01, 'weight_decay': 0.1, 'grad_averaging': True},
    'PID': {'lr': 0.01, 'momentum': 0.9, 'dampening': 0.3, 'weight_decay': 0.1},
    'QHAdam': {'lr': 0.01, 'weight_decay': 0.1},
    'QHM': {'lr': 0.01, 'momentum': 0.9, 'weight_decay': 0.1},
    'Ranger': {'lr': 0.01, 'k': 3, 'weight_decay': 0.1},
    'RangerQH': {'lr': 0.01, 'k': 3, 'weight_decay': 0.1},
    'RangerVA': {'lr': 0.01, 'k': 3, 'weight_decay': 0.1},
    'SGDP': {'lr': 0.05, 'momentum': 0.9, 'dampening': 0.3, 'weight_decay': 0.1},
    'SGDW': {'lr': 0.05, 'momentum': 0.9, 'dampening': 0.3, 'weight_decay': 0.1},
    'SWATS': {'lr': 0.01, 'weight_decay': 0.1},
    'Shampoo': {'lr': 0.05, 'momentum': 0.9, 'weight_decay': 0.1},
    'Yogi': {'lr': 0.01, 'weight_decay': 0.1},
}
_PYTORCH_OPTIMIZER: dict[str, dict[str, Any]] = {
    'ADOPT': {'lr': 0.01, 'weight_decay': 0.1},
    'AdEMAMix': {'lr': 0.01, 'weight_decay': 0.1},
    'AdaBelief': {'lr': 0.01, 'weight_decay': 0.1, 'rectify': True},
    'Adan': {'lr': 0.01, 'weight_decay': 0.1},
    'CAME': {'lr': 0.01, 'weight_decay': 0.1},
    'Lamb': {'lr': 0.01, 'weight_decay': 0.1, 'pre_norm': True},
    'Lion': {'lr': 0.01, 'weight_decay': 0.1},
    'MARS': {'lr': 0.01, 'weight_decay': 0.1},
    'SOAP': {'lr': 0.01, 'weight_decay': 0.1, 'precondition_frequency': 2},
    'StableAdamW': {'lr': 0.01, 'weight_decay': 0.1},
    'Tiger': {'lr': 0.01, 'weight_decay': 0.1},
}
_NOT_IN_HALF = ('plain', 'groups', 'scalar')

ENTRIES: dict[str, Entry] = {
    'SGD': _torch('SGD', lr=0.1),
    'SGD dampened': _torch('SGD', lr=0.1, momentum=0.9, dampening=0.5, weight_decay=0.1),
    'SGD nesterov foreach': Entry(
        _of('torch', 'optim.SGD', lr=0.05, momentum=0.9, nesterov=True, foreach=True, maximize=True),
        # Groups that are stepped together may round differently in half precision.
        networks=_NOT_IN_HALF,
    ),
    'SGD fused': Entry(
        _of('torch', 'optim.SGD', lr=0.05, momentum=0.9, weight_decay=0.1, fused=True),
        # In half precision it rounds by where in memory its tensors lie.
        networks=_NOT_IN_HALF,
        fresh=lambda p: {'momentum_buffer': torch.zeros_like(p)},
    ),
    'SGD tensor lr': _torch('SGD', lr=torch.tensor(0.05), momentum=0.9),
    'Adam': _torch('Adam', lr=0.01, betas=(0.8, 0.95)),
    'Adam amsgrad': _torch('Adam', lr=0.01, weight_decay=0.1, amsgrad=True, foreach=False),
    'Adam foreach': _torch('Adam', lr=0.01, weight_decay=0.1, amsgrad=True, foreach=True),
    'Adam tensor lr': _torch('Adam', lr=torch.tensor(0.01)),
    'AdamW': _torch('AdamW', lr=0.01, weight_decay=0.1),
    'AdamW foreach': _torch('AdamW', lr=0.01, weight_decay=0.1, foreach=True, maximize=True),
    'AdamW fused': _torch('AdamW', lr=0.01, weight_decay=0.1, fused=True),
    'NAdam': _torch('NAdam', lr=0.01, weight_decay=0.1, decoupled_weight_decay=True),
    'RAdam': _torch('RAdam', lr=0.01, weight_decay=0.1),
    'Adamax': _torch('Adamax', lr=0.01, weight_decay=0.1),
    'Adadelta': _torch('Adadelta', lr=0.5, weight_decay=0.1),
    'Adagrad': _torch('Adagrad', lr=0.05, lr_decay=0.1, initial_accumulator_value=0.2),
    'Adagrad foreach': _torch('Adagrad', lr=0.05, weight_decay=0.1, foreach=True),
    'RMSprop': _torch('RMSprop', lr=0.01, centered=True, momentum=0.9, weight_decay=0.1),
    'ASGD': _torch('ASGD', lr=0.05, lambd=0.1, t0=2, weight_decay=0.1),
    'Adafactor': _torch('Adafactor', lr=0.05, weight_decay=0.1),
    'SparseAdam': Entry(_of('torch', 'optim.SparseAdam', lr=0.05), networks=('sparse',)),
    'LBFGS': Entry(_of('torch', 'optim.LBFGS', lr=0.1), needs_closure=True, refused=_OWN_RATE),
    'Rprop': Entry(_of('torch', 'optim.Rprop', lr=0.01), refused=_OWN_RATE),
    'ZeroRedundancyOptimizer': Entry(_zero_redundancy, refused='rank|shard|process|group'),
    'DecoupledSGDW': Entry(
        _of('composer', 'optim.DecoupledSGDW', lr=0.05, momentum=0.9, dampening=0.5, weight_decay=9e-4), 'composer'
    ),
    'DecoupledAdamW': Entry(_of('composer', 'optim.DecoupledAdamW', lr=0.01, weight_decay=9e-4), 'composer'),
    'DecoupledAdamW amsgrad': Entry(
        _of('composer', 'optim.DecoupledAdamW', lr=0.01, weight_decay=9e-4, amsgrad=True), 'composer'
    ),
    'SAM': Entry(
        _sam,
        'composer',
        needs_closure=True,
        moves_frozen=True,
        lost_in_state_dict='after loading, its groups are no longer those of the optimizer that it wraps',
    ),
    'transformers.Adafactor': Entry(
        _of('transformers', 'optimization.Adafactor', lr=0.01, relative_step=False, beta1=0.9, weight_decay=0.1),
        'transformers',
    ),
    'transformers.Adafactor relative': Entry(
        _of('transformers', 'optimization.Adafactor'), 'transformers', refused=_OWN_RATE
    ),
    'Lion': Entry(_of('lion_pytorch', 'Lion', lr=0.01, weight_decay=0.1), 'lion_pytorch'),
    'SGDScheduleFree': Entry(
        _of('schedulefree', 'SGDScheduleFree', lr=0.1, weight_decay=0.1),
        'schedulefree',
        before=_train,
        counts_by_group=_WEIGHTS_BY_GROUP,
    ),
    'AdamWScheduleFree': Entry(
        _of('schedulefree', 'AdamWScheduleFree', lr=0.01, weight_decay=0.1),
        'schedulefree',
        before=_train,
        counts_by_group=_WEIGHTS_BY_GROUP,
    ),
    'Prodigy': Entry(_of('prodigyopt', 'Prodigy', lr=1.0), 'prodigyopt', refused=_OWN_RATE),
    'DAdaptAdam': Entry(_of('dadaptation', 'DAdaptAdam', lr=1.0), 'dadaptation', refused=_OWN_RATE),
    'Ranger': Entry(
        _of('pytorch_ranger', 'Ranger', lr=0.01, k=3, weight_decay=0.1), 'pytorch_ranger', warnings=(_OLD_SIGNATURE,)
    ),
    # It doesn't initialise torch's base class, whose state dict therefore fails.
    'Lookahead': Entry(_lookahead, 'torch_optimizer', refused=_NO_HOOKS),
    'torch_optimizer.Adahessian': Entry(
        _of('torch_optimizer', 'Adahessian', lr=0.05, weight_decay=0.1),
        'torch_optimizer',
        needs_graph=True,
        warnings=(_KEPT_GRAPH,),
    ),
    # Its list of base rates has one for each group that there was at first, and it steps no others.
    'torch_optimizer.AdaBound': Entry(_of('torch_optimizer', 'AdaBound'), 'torch_optimizer', refused=_OWN_RATE),
    'torch_optimizer.A2GradUni': Entry(
        _of('torch_optimizer', 'A2GradUni', lr=0.05), 'torch_optimizer', refused=_OWN_RATE
    ),
    # It steps all groups by a step size that it has computed with the rate of the first.
    'adabound.AdaBound': Entry(_of('adabound', 'AdaBound'), 'adabound', refused=_OWN_RATE),
    'pytorch_optimizer.AdaBound': Entry(_of('pytorch_optimizer', 'AdaBound'), 'pytorch_optimizer', refused=_OWN_RATE),
    'pytorch_optimizer.Prodigy': Entry(_of('pytorch_optimizer', 'Prodigy'), 'pytorch_optimizer', refused=_OWN_RATE),
    'pytorch_optimizer.Lookahead': Entry(_other_lookahead, 'pytorch_optimizer', refused=_NO_HOOKS),
    'pytorch_optimizer.Muon': Entry(_muon, 'pytorch_optimizer', networks=('groups',)),
    'odd': Entry(partial(Odd, lr=0.05)),
    'own rate': Entry(partial(OwnRate, lr=0.05), refused=_OWN_RATE),
}
ENTRIES |= {
    f'torch_optimizer.{name}': Entry(
        _of('torch_optimizer', name, **keywords),
        'torch_optimizer',
        networks=_NOT_IN_HALF if name == 'Shampoo' else NETWORKS,
        warnings=(_OLD_SIGNATURE,),
    )
    for name, keywords in _TORCH_OPTIMIZER.items()
}
ENTRIES |= {
    f'pytorch_optimizer.{name}': Entry(_of('pytorch_optimizer', name, **keywords), 'pytorch_optimizer')
    for name, keywords in _PYTORCH_OPTIMIZER.items()
}
