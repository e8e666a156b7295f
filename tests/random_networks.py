"""Random small networks, and what a forward pass may do to the outputs of their layers.

A network is a :class:`Plan`: the names of its modules, and the steps that its forward pass takes with them. Every
dimension but that of the batch has the same size, so that any step may follow any other.
"""

import copy
import dataclasses
import io
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from composer_freezeout.freezing.observing.units import Unit

SIZE = 4
BATCHES = 6
MODULES = 6  # at most, of each sort
EPSILON = 0.01  # norms of values that are nearly equal make nothing else but rounding large
HALF = torch.float16  # rounds less than bfloat16 does, which leaves more to be seen
BATCH_SIZES = (4, 4, 3, 4, 5, 4)  # statistics of fewer values would be all but singular
SHAPES = {'flat': (SIZE,), 'sequence': (SIZE, SIZE), 'image': (SIZE, SIZE, SIZE)}

# --- modules, by name


class OwnConvolution(nn.Conv2d):
    """Computes something else than its class does."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class OwnNorm(nn.BatchNorm2d):
    """Computes something else than its class does."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) - 1


def _convolutions(kind: Callable[..., nn.Module]) -> dict[str, Callable[[], nn.Module]]:
    def make(kernel: int, **options: Any) -> Callable[[], nn.Module]:
        return lambda: kind(SIZE, SIZE, kernel, padding=kernel // 2, **options)

    return {
        'convolution': make(3),
        'pointwise convolution': make(1),
        'convolution without bias': make(3, bias=False),
        'grouped convolution': make(3, groups=2),
        'depthwise convolution': make(3, groups=SIZE, bias=False),
        'circular convolution': make(3, padding_mode='circular'),
    }


_LINEAR: dict[str, Callable[[], nn.Module]] = {
    'linear': lambda: nn.Linear(SIZE, SIZE),
    'linear without bias': lambda: nn.Linear(SIZE, SIZE, bias=False),
}

LAYERS: dict[str, dict[str, Callable[[], nn.Module]]] = {
    'flat': _LINEAR,
    'sequence': _convolutions(nn.Conv1d) | _LINEAR,
    'image': _convolutions(nn.Conv2d)
    | _LINEAR
    | {
        'own convolution': lambda: OwnConvolution(SIZE, SIZE, 1),
        'weight-normed convolution': lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(SIZE, SIZE, 1)),
    },
}


def _norms(kind: Callable[..., nn.Module]) -> dict[str, Callable[[], nn.Module]]:
    return {
        'batch norm': lambda: kind(SIZE, eps=EPSILON),
        'batch norm without weight': lambda: kind(SIZE, eps=EPSILON, affine=False),
        'averaging batch norm': lambda: kind(SIZE, eps=EPSILON, momentum=None),
        'batch norm without statistics': lambda: kind(SIZE, eps=EPSILON, track_running_stats=False),
        'group norm': lambda: nn.GroupNorm(1, SIZE, eps=EPSILON),
    }


NORMS: dict[str, dict[str, Callable[[], nn.Module]]] = {
    'flat': _norms(nn.BatchNorm1d),
    'sequence': _norms(nn.BatchNorm1d),
    'image': _norms(nn.BatchNorm2d) | {'own norm': lambda: OwnNorm(SIZE)},
}

ATTENTION: dict[str, Callable[[], nn.Module]] = {
    'batch first': lambda: nn.MultiheadAttention(SIZE, 2, batch_first=True),
    'batch second': lambda: nn.MultiheadAttention(SIZE, 2),
    'with dropout': lambda: nn.MultiheadAttention(SIZE, 2, dropout=0.5, batch_first=True),
    'without bias': lambda: nn.MultiheadAttention(SIZE, 2, bias=False, batch_first=True),
    'with a zero key': lambda: nn.MultiheadAttention(SIZE, 2, add_zero_attn=True, batch_first=True),
}

# --- steps


class State:
    """Where a forward pass has got to.

    Attributes:
        network (Network): The network.
        kept (list[Tensor]): Outputs that have been put aside.
        before (Tensor, optional): The input of the layer that ran last.
    """

    def __init__(self, network: 'Network') -> None:
        self.network = network
        self.kept: list[Tensor] = []
        self.before: Tensor | None = None

    def run(self, steps: Sequence['Step'], x: Tensor) -> Tensor:
        """Takes some steps."""
        for step in steps:
            x = step.run(self, x)
        return x

    def see(self, value: object) -> None:
        """Notes a value, unless a checkpoint is computing once more: where that stops is its own business."""
        if self.network.in_forward:
            self.network.seen.append(value.detach().clone() if isinstance(value, Tensor) else value)


@dataclasses.dataclass(frozen=True)
class Step:
    """What is done to the values that a forward pass has computed so far."""

    def run(self, state: State, x: Tensor) -> Tensor:
        """Takes the step."""
        raise NotImplementedError


Body = tuple[Step, ...]
Call = Literal['call', 'forward', 'keyword', 'functional', 'swapped']
CALLS: tuple[Call, ...] = ('call', 'forward', 'keyword', 'functional', 'swapped')


def called(module: Any, x: Tensor, how: Call) -> Tensor:
    """Runs a layer or norm in one of several ways; ``'swapped'`` has other weights for this one time."""
    if how == 'call':
        return module(x)
    if how == 'keyword':
        return module(input=x)
    if how == 'forward':
        return module.forward(x)
    if how == 'swapped':
        return functional_call(module, {name: 1.5 * value for name, value in module.named_parameters()}, (x,))
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        training = module.training or module.running_mean is None
        return F.batch_norm(x, module.running_mean, module.running_var, module.weight, module.bias, training)
    if isinstance(module, (nn.Conv1d, nn.Conv2d)):
        function: Any = F.conv1d if isinstance(module, nn.Conv1d) else F.conv2d
        return function(x, module.weight, module.bias, padding=module.padding, groups=module.groups)
    return F.linear(x, module.weight, module.bias) if isinstance(module, nn.Linear) else module(x)


def in_type_of(module: nn.Module, x: Tensor) -> Tensor:
    """What a model does outside of autocast, after a part inside."""
    return x if torch.is_autocast_enabled('cpu') else x.to(next(module.parameters()).dtype)


@dataclasses.dataclass(frozen=True)
class Layer(Step):
    """A convolution or a linear layer."""

    index: int = 0
    how: Call = 'call'

    def run(self, state: State, x: Tensor) -> Tensor:
        layer = state.network.layers[self.index]
        state.before = x = in_type_of(layer, x)
        return called(layer, x, self.how)


@dataclasses.dataclass(frozen=True)
class Norm(Step):
    """A norm."""

    index: int = 0
    how: Call = 'call'

    def run(self, state: State, x: Tensor) -> Tensor:
        return called(state.network.norms[self.index], x, self.how)


@dataclasses.dataclass(frozen=True)
class Attention(Step):
    """Attention of a sequence to itself, or to its reverse; what becomes of rows without a key is seen as a number."""

    index: int = 0
    mask: Literal['none', 'padding', 'whole row', 'causal', 'float'] = 'none'
    weights: bool = False
    positional: bool = False
    across: bool = False

    def run(self, state: State, x: Tensor) -> Tensor:
        attention = state.network.attention[self.index]
        x = in_type_of(attention, x)
        state.before = x
        padding, mask = self._masks(x)
        query = x if attention.batch_first else x.transpose(0, 1)
        key = query.flip(0) if self.across else query
        if self.positional:
            y, weights = attention(query, key, key, padding, self.weights, mask)
        else:
            y, weights = attention(query, key, key, key_padding_mask=padding, need_weights=self.weights, attn_mask=mask)
        if weights is not None:
            state.see(weights)
        state.see(y.dtype)
        return torch.nan_to_num(y if attention.batch_first else y.transpose(0, 1), nan=3.0)

    def _masks(self, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        padding = torch.zeros(len(x), SIZE, dtype=torch.bool)
        padding[0, 1:] = True
        padding[1] = self.mask == 'whole row'
        later = torch.ones(SIZE, SIZE, dtype=torch.bool).triu(1)
        if self.mask in ('padding', 'whole row'):
            return padding, None
        if self.mask == 'causal':
            return None, later
        return None, 0.5 * later.to(x.dtype) if self.mask == 'float' else None


@dataclasses.dataclass(frozen=True)
class Activation(Step):
    """An activation function."""

    kind: Literal['relu', 'leaky', 'tanh'] = 'relu'
    inplace: bool = False

    def run(self, state: State, x: Tensor) -> Tensor:
        if self.kind == 'tanh':
            return x.tanh_() if self.inplace else x.tanh()
        return F.leaky_relu(x, 0.0 if self.kind == 'relu' else 0.2, self.inplace)


@dataclasses.dataclass(frozen=True)
class Dropout(Step):
    """Dropout."""

    inplace: bool = False

    def run(self, state: State, x: Tensor) -> Tensor:
        return F.dropout(x, 0.4, state.network.training, self.inplace)


@dataclasses.dataclass(frozen=True)
class Identity(Step):
    """A module that does nothing."""

    def run(self, state: State, x: Tensor) -> Tensor:
        return nn.Identity()(x)


Look = Literal['shape', 'type', 'numpy', 'tolist', 'deepcopy', 'dlpack', 'file', 'sum', 'part', 'repr']
LOOKS: tuple[Look, ...] = ('shape', 'type', 'numpy', 'tolist', 'deepcopy', 'dlpack', 'file', 'sum', 'part', 'repr')


@dataclasses.dataclass(frozen=True)
class Peek(Step):
    """Reads the value and goes on with it."""

    kind: Look = 'shape'

    def run(self, state: State, x: Tensor) -> Tensor:
        free = x.detach() if x.requires_grad else x  # not detached where it needn't be: that would be one more view
        if self.kind == 'shape':
            state.see((x.shape, x.stride(), x.is_contiguous()))
        elif self.kind == 'type':
            state.see((x.dtype, x.device, x.layout, x.requires_grad, x.is_leaf))
        elif self.kind == 'numpy':
            state.see(torch.tensor(free.numpy()))
        elif self.kind == 'tolist':
            state.see(torch.tensor(free.tolist(), dtype=x.dtype))
        elif self.kind == 'deepcopy':
            state.see(copy.deepcopy(free))
        elif self.kind == 'dlpack':
            state.see(torch.from_dlpack(free))
        elif self.kind == 'file':
            file = io.BytesIO()
            torch.save(free, file)
            file.seek(0)
            state.see(torch.load(file))
        elif self.kind == 'sum':
            state.see(x.sum())
        elif self.kind == 'part':
            state.see(x[:, 0])
        else:
            repr(x)
        return x


Alias = Literal['view', 'slice', 'transpose', 'detach', 'contiguous', 'clone', 'alias', 'chunks', 'type', 'times one']
ALIASES: tuple[Alias, ...] = (
    'view', 'slice', 'transpose', 'detach', 'contiguous', 'clone', 'alias', 'chunks', 'type', 'times one'
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class View(Step):
    """Goes on with the same numbers, in this tensor or in another one."""

    kind: Alias = 'view'

    def run(self, state: State, x: Tensor) -> Tensor:
        if self.kind == 'view':
            return x.reshape(x.shape)
        if self.kind == 'slice':
            return x[:]
        if self.kind == 'transpose':
            return x.transpose(1, -1)
        if self.kind == 'chunks':
            return torch.cat(x.chunk(2, 1), 1)
        if self.kind == 'type':
            return x.to(x.dtype)
        if self.kind == 'times one':
            return x * 1
        return {'detach': x.detach, 'contiguous': x.contiguous, 'clone': x.clone, 'alias': lambda: x.view_as(x)}[
            self.kind
        ]()


Where = Literal['value', 'input', 'kept']
WHERES: tuple[Where, ...] = ('value', 'input', 'kept')
How = Literal['scale', 'relu', 'part', 'data', 'numpy', 'storage', 'out']
HOWS: tuple[How, ...] = ('scale', 'relu', 'part', 'data', 'numpy', 'storage', 'out')


@dataclasses.dataclass(frozen=True)
class Write(Step):
    """Writes in place to the value, to the input of the layer that ran last, or to what has been kept."""

    where: Where = 'input'
    how: How = 'scale'

    def run(self, state: State, x: Tensor) -> Tensor:
        kept = state.kept[-1] if state.kept else None
        target = {'value': x, 'input': state.before, 'kept': kept}[self.where]
        if target is None:
            return x
        if self.how == 'scale':
            target.mul_(0.5)
        elif self.how == 'relu':
            target.relu_()
        elif self.how == 'part':
            target[:, 0] = 0.25
        elif self.how == 'data':  # not counted as a write
            target.data.mul_(0.5)
        elif self.how == 'storage':
            alias = torch.empty(0, dtype=target.dtype)
            alias.set_(target.untyped_storage(), target.storage_offset(), target.shape, target.stride()).mul_(0.5)
        elif self.how == 'out':
            torch.mul(target.detach(), 0.5, out=target)
        else:  # past torch
            (target.detach() if target.requires_grad else target).numpy()[...] *= 0.5
        return x


@dataclasses.dataclass(frozen=True)
class Keep(Step):
    """Puts the value aside: in a list, in an attribute that a later pass reads, or among what the model returns."""

    where: Literal['list', 'attribute', 'returned'] = 'list'

    def run(self, state: State, x: Tensor) -> Tensor:
        if self.where == 'list':
            state.kept.append(x)
        elif state.network.in_forward and self.where == 'attribute':
            state.network.memory = x
        elif state.network.in_forward:
            state.network.returned.append(x)
        return x


@dataclasses.dataclass(frozen=True)
class Recall(Step):
    """Adds what has been put aside, in this pass or by an earlier one."""

    where: Literal['list', 'attribute'] = 'list'
    inplace: bool = False

    def run(self, state: State, x: Tensor) -> Tensor:
        kept = state.kept[-1] if state.kept else None
        other = kept if self.where == 'list' else state.network.previous
        if other is None or other.shape != x.shape:
            return x
        other = other if self.where == 'list' else other.detach()
        return x.add_(other) if self.inplace else x + other


@dataclasses.dataclass(frozen=True)
class RequireGradient(Step):
    """Asks for the gradient of a value that has none."""

    def run(self, state: State, x: Tensor) -> Tensor:
        if x.is_leaf and torch.is_grad_enabled():
            x.requires_grad_()
            if state.network.in_forward:
                state.network.leaves.append(x)
        return x


@dataclasses.dataclass(frozen=True)
class Residual(Step):
    """Adds what some steps make of the value to it."""

    body: Body
    how: Literal['sum', 'into input', 'into output'] = 'sum'

    def run(self, state: State, x: Tensor) -> Tensor:
        y = state.run(self.body, x)
        if self.how == 'sum':
            return x + y
        return x.add_(y) if self.how == 'into input' else y.add_(x)


@dataclasses.dataclass(frozen=True)
class Fork(Step):
    """Adds what two ways make of one value."""

    left: Body
    right: Body

    def run(self, state: State, x: Tensor) -> Tensor:
        return state.run(self.left, x) + state.run(self.right, x)


@dataclasses.dataclass(frozen=True)
class Gate(Step):
    """Takes one of two ways, by the batch: the digits of ``pattern`` say which, over and over again."""

    pattern: str
    body: Body
    otherwise: Body = ()

    def run(self, state: State, x: Tensor) -> Tensor:
        return state.run(self.body if is_on(self.pattern, state.network.batch) else self.otherwise, x)


def is_on(pattern: str, batch: int) -> bool:
    """Whether the digit of a batch is 1."""
    return pattern[batch % len(pattern)] == '1'


@dataclasses.dataclass(frozen=True)
class Checkpoint(Step):
    """Computes some steps once more in the backward pass."""

    body: Body
    reentrant: bool = False

    def run(self, state: State, x: Tensor) -> Tensor:
        def run(x: Tensor) -> Tensor:
            inner = State(state.network)
            inner.kept = list(state.kept)
            y = inner.run(self.body, x)
            if state.network.in_forward:
                state.kept = inner.kept
            return y

        result: Any = checkpoint(run, x, use_reentrant=self.reentrant)
        return result


@dataclasses.dataclass(frozen=True)
class NoGradient(Step):
    """Leaves some steps out of the backward pass."""

    body: Body

    def run(self, state: State, x: Tensor) -> Tensor:
        with torch.no_grad():
            return state.run(self.body, x)


@dataclasses.dataclass(frozen=True)
class Autocast(Step):
    """Switches autocast on or off around some steps."""

    body: Body
    enabled: bool = True

    def run(self, state: State, x: Tensor) -> Tensor:
        with torch.autocast('cpu', HALF, enabled=self.enabled):
            return state.run(self.body, x)


Rewriting = Literal['in place', 'copy', 'data', 'in place data', 'replace']
REWRITINGS: tuple[Rewriting, ...] = ('in place', 'copy', 'data', 'replace')


@dataclasses.dataclass(frozen=True)
class Rewrite(Step):
    """Writes other numbers to a layer, a norm or its statistics."""

    name: str = 'layers.0'
    how: Rewriting = 'in place'

    def run(self, state: State, x: Tensor) -> Tensor:
        if state.network.in_forward:
            self.apply(state.network)
        return x

    def apply(self, network: nn.Module) -> None:
        """Does it now."""
        module = network.get_submodule(self.name)
        with torch.no_grad():
            for tensors in (module._parameters, module._buffers):
                for name, tensor in tensors.items():
                    if tensor is not None and tensor.is_floating_point():
                        tensors[name] = self._rewritten(tensor)

    def _rewritten(self, tensor: Any) -> Any:
        other = 0.75 * tensor.detach()
        if self.how == 'in place':
            tensor.mul_(0.75)
        elif self.how == 'copy':
            tensor.copy_(other)
        elif self.how == 'data':
            tensor.data = other
        elif self.how == 'in place data':
            tensor.data.mul_(0.75)
        elif isinstance(tensor, nn.Parameter):
            return nn.Parameter(other, tensor.requires_grad)
        else:
            return other
        return tensor


# --- networks


@dataclasses.dataclass(frozen=True)
class Hook:
    """A hook that is on a module in some batches.

    Attributes:
        name (str): Name of the module; of no meaning to ``'global'`` ones, which see all modules.
        kind (str): What it does.
        pattern (str): In which batches, as in :class:`Gate`.
    """

    name: str
    kind: Literal['see', 'change', 'change input', 'backward', 'global'] = 'see'
    pattern: str = '1'

    def put(self, network: Any, batch: int) -> list[Any]:
        """Puts it on its module, if the batch is one of its own, and returns what takes it off."""
        if not is_on(self.pattern, batch):
            return []
        module: Any = network.get_submodule(self.name)
        if self.kind == 'see':
            return [module.register_forward_hook(lambda *given: network.see(given[-1]))]
        if self.kind == 'change':
            return [module.register_forward_hook(lambda *given: 1.5 * given[-1])]
        if self.kind == 'change input':
            return [module.register_forward_pre_hook(lambda _, inputs: tuple(1.5 * value for value in inputs))]
        if self.kind == 'backward':
            return [module.register_full_backward_hook(lambda *_: None)]
        own = set(network.modules())
        see = nn.modules.module.register_module_forward_hook
        return [see(lambda module, _, output: network.see(output) if module in own else None)]


@dataclasses.dataclass(frozen=True)
class Plan:
    """A network and how it is trained.

    Attributes:
        space (str): The shape of its values, a key of ``SHAPES``.
        layers (tuple[str, ...]): Its layers.
        norms (tuple[str, ...]): As many norms.
        attention (tuple[str, ...]): Its attention; none, or as many.
        steps (Body): The forward pass.
        frozen (tuple[int, ...]): How many units are frozen in each of ``BATCHES`` batches.
        split (bool): Whether a layer and its norm are units of their own.
        dtype (str): Type of its tensors.
        autocast (bool): Whether it runs in autocast.
        channels_last (str): What of images lies in memory with the channels last.
        input_gradient (bool): Whether the input requires a gradient.
        hooks (tuple[Hook, ...]): Its hooks.
        rewrites (tuple[tuple[str, Rewrite], ...]): What is written to it before the batches of a pattern.
        evaluated (str): Behind which batches it is evaluated, as a pattern.
    """

    space: str
    layers: tuple[str, ...]
    norms: tuple[str, ...]
    steps: Body
    frozen: tuple[int, ...]
    attention: tuple[str, ...] = ()
    split: bool = False
    dtype: Literal['float64', 'float32'] = 'float64'
    autocast: bool = False
    channels_last: Literal['', 'input', 'weights', 'both'] = ''
    input_gradient: bool = False
    hooks: tuple[Hook, ...] = ()
    rewrites: tuple[tuple[str, Rewrite], ...] = ()
    evaluated: str = '0'

    def network(self) -> 'Network':
        """The network, always with the same numbers."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = Network(self).to(getattr(torch, self.dtype))
        if self.channels_last in ('weights', 'both'):
            network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        return network

    def units(self) -> list[Unit]:
        """One for each stage, or for each module; last the head, which stays live."""
        network = self.network()
        stages = [
            [f'{kind}.{index}' for kind, of_kind in network.named_children() if isinstance(of_kind, nn.ModuleList)
             if index < len(of_kind)]
            for index in range(len(self.layers))
        ]  # fmt: skip
        groups = [[name] for stage in stages for name in stage] if self.split else stages
        return [_unit(network, group) for group in [*groups, ['head']]]

    def batches(self) -> list[Tensor]:
        """The input of each batch."""
        generator = torch.Generator().manual_seed(0)
        dtype = getattr(torch, self.dtype)
        repeats = 4 if self.space == 'flat' else 1
        shapes = [(repeats * size, *SHAPES[self.space]) for size in BATCH_SIZES]
        inputs = [torch.randn(shape, dtype=dtype, generator=generator) for shape in shapes]
        if self.channels_last in ('input', 'both'):
            inputs = [batch.to(memory_format=torch.channels_last) for batch in inputs]
        return inputs


def _unit(network: nn.Module, names: Sequence[str]) -> Unit:
    modules = [(name, network.get_submodule(name)) for name in names]
    parameters = tuple(f'{name}.{inner}' for name, module in modules for inner, _ in module.named_parameters())
    norms = tuple(name for name, module in modules if any(True for _ in module.buffers()))
    return Unit(names[0], parameters, norms)


class Network(nn.Module):
    """The network of a plan.

    Attributes:
        batch (int): Number of the batch, set by whoever trains it.
        seen (list): What the latest forward pass has looked at.
        returned (list[Tensor]): Which values it returns besides its output.
        leaves (list[Tensor]): Values that it has asked gradients of.
        memory (Tensor, optional): A value that the latest pass has put aside, and ``previous`` one from a pass before.
        in_forward (bool): Whether it is running forward, and no checkpoint once more.
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.steps = plan.steps
        self.layers = nn.ModuleList(LAYERS[plan.space][name]() for name in plan.layers)
        self.norms = nn.ModuleList(NORMS[plan.space][name]() for name in plan.norms)
        self.attention: Any = nn.ModuleList(ATTENTION[name]() for name in plan.attention)
        self.head = nn.Linear(SIZE ** len(SHAPES[plan.space]), 3)
        self.batch = 0
        self.seen: list[Any] = []
        self.returned: list[Tensor] = []
        self.leaves: list[Tensor] = []
        self.memory: Tensor | None = None
        self.previous: Tensor | None = None
        self.in_forward = False
        shake(self)

    def see(self, value: Any) -> None:
        """Notes a value, unless a checkpoint computes once more."""
        if self.in_forward and isinstance(value, Tensor):
            self.seen.append(value.detach().clone())

    def evidence(self) -> list[Any]:
        """What there is to see of the latest step besides what it returned."""
        memory = None if self.memory is None else self.memory.detach().clone()
        return [*self.seen, memory, *(leaf.grad for leaf in self.leaves)]

    def forget(self) -> None:
        """Lets go of what earlier passes have put aside."""
        self.memory = None

    def forward(self, x: Tensor) -> Any:
        """Returns the output, or a dictionary with other values besides."""
        self.seen, self.returned, self.leaves, self.previous = [], [], [], self.memory
        self.in_forward = True
        try:
            x = State(self).run(self.steps, x)
            output = self.head(in_type_of(self.head, x.flatten(1)))
        finally:
            self.in_forward = False
        return {'output': output, 'others': self.returned} if self.returned else output


def shake(network: nn.Module) -> None:
    """Gives norms and attention numbers that are far from those of modules that do nothing."""
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.GroupNorm)):
                for name, tensor in (*module.named_parameters(), *module.named_buffers()):
                    if name in ('weight', 'running_var'):
                        tensor.uniform_(0.3, 2.0)
                    elif tensor.is_floating_point():
                        tensor.uniform_(-1.5, 1.5)
            elif isinstance(module, nn.MultiheadAttention) and module.in_proj_bias is not None:
                module.in_proj_bias.uniform_(-0.5, 0.5)
                module.out_proj.bias.uniform_(-0.5, 0.5)


# --- drawing them


@dataclasses.dataclass(frozen=True)
class Theme:
    """What sort of network is drawn.

    Attributes:
        specials (tuple): What may stand besides plain layers with norms: functions of the writer, and of how deep
            bodies in bodies may be.
        spaces (tuple[str, ...]): Shapes of values.
        calls (tuple[str, ...]): How layers and norms are called.
        float64 (bool): Whether numbers may be of double precision; autocast leaves those alone.
        more (frozenset[str]): What half of the networks have besides: ``'hooks'``, ``'rewrites'`` between batches,
            memory ``'layouts'``, ``'autocast'`` around everything, an ``'input'`` that requires a gradient.
    """

    specials: tuple['Special', ...]
    spaces: tuple[str, ...] = ('image', 'sequence', 'flat')
    calls: tuple[Call, ...] = ('call',)
    float64: bool = True
    more: frozenset[str] = frozenset()


class Writer:
    """Draws the steps of a network; first options are the simpler ones, to which examples shrink.

    Attributes:
        used (int): How many layers and norms there are so far.
        latest (int): Number of the layer that was written last.
    """

    def __init__(self, draw: Callable[[st.SearchStrategy[Any]], Any], theme: Theme, space: str) -> None:
        self.draw = draw
        self.theme = theme
        self.space = space
        self.used = 1
        self.latest = -1

    def pick(self, options: Sequence[Any]) -> Any:
        return self.draw(st.sampled_from(options))

    def chance(self, one_in: int) -> bool:
        return self.pick([False] * (one_in - 1) + [True])

    def pattern(self) -> str:
        return self.pick(['10', '01', '0111', '1000', '111110', '110', '001'])

    def layer(self, shared: bool = False) -> Layer:
        """A layer, a new one unless it may be shared."""
        self.latest = self._any() if shared or self.chance(8) else min(self.latest + 1, MODULES - 1)
        self.used = max(self.used, self.latest + 1)
        return Layer(self.latest, self.pick(self.theme.calls))

    def norm(self, shared: bool = False) -> Norm:
        """A norm, that of the latest layer unless it may be shared."""
        index = self._any() if shared or self.chance(8) else max(self.latest, 0)
        return Norm(index, self.pick(self.theme.calls))

    def _any(self) -> int:
        index = self.pick(range(min(self.used + 1, MODULES)))
        self.used = max(self.used, index + 1)
        return index

    def pair(self, depth: int) -> Body:
        """A layer and its norm, with something between them, or something in the norm's place."""
        layer, own_norm = self.layer(), self.norm()
        between = self.special(depth) if self.chance(2) else ()
        norm = () if between and self.chance(2) else (own_norm,)
        after = self.pick([(), (Activation(),), (Activation(inplace=True),), (Activation('tanh'),)])
        return (layer, *between, *norm, *after)

    def special(self, depth: int) -> Body:
        return self.pick(self.theme.specials)(self, depth)

    def body(self, depth: int) -> Body:
        """Some steps inside of others."""
        if depth < 1:
            return (self.layer(), self.norm())
        items = [self.pair(depth - 1) if self.chance(2) else self.special(depth - 1) for _ in range(self.pick([1, 2]))]
        return tuple(step for item in items for step in item)

    def stage(self) -> Body:
        before, behind = (self.special(1) if self.chance(3) else () for _ in range(2))
        return (*before, *self.pair(1), *behind)


Special = Callable[[Writer, int], Body]


def gated_norms(writer: Writer, depth: int) -> Body:
    """A norm for each domain."""
    return (Gate(writer.pattern(), (writer.norm(),), writer.pick([(), (writer.norm(shared=True),)])),)


def forked_norms(writer: Writer, depth: int) -> Body:
    """Two norms of one value."""
    return (Fork((writer.norm(),), (writer.norm(shared=True),)),)


def changed_order(writer: Writer, depth: int) -> Body:
    """The norm first, in some batches."""
    layer, norm = writer.layer(), writer.norm()
    return (Gate(writer.pattern(), (layer, norm), (norm, layer)),)


def skipped(writer: Writer, depth: int) -> Body:
    """Steps that some batches leave out."""
    body = writer.pick([(writer.norm(),), (writer.layer(),), (Activation(),), writer.body(depth)])
    return (Gate(writer.pattern(), body),)


def another_layer(writer: Writer, depth: int) -> Body:
    """A layer that may be shared, by itself or with a norm."""
    layer = writer.layer(shared=True)
    return writer.pick([(layer,), (layer, writer.norm()), (layer, writer.norm(shared=True))])


def forked_layers(writer: Writer, depth: int) -> Body:
    """One norm behind two layers, or two behind one, or nothing of that."""
    one, norm = writer.layer(), writer.norm()
    return (Fork((one, norm), (writer.layer(shared=writer.chance(2)), writer.norm(shared=writer.chance(2)))),)


def crossed_layers(writer: Writer, depth: int) -> Body:
    """A layer's output is put aside, and a norm reads it when others have run."""
    one, norm = writer.layer(), writer.norm()
    return (one, Keep(), writer.layer(), writer.norm(shared=writer.chance(2)), Recall(), norm)


def residual(writer: Writer, depth: int) -> Body:
    return (Residual(writer.body(depth), writer.pick(['sum', 'into input', 'into output'])),)


def write(writer: Writer, depth: int) -> Body:
    return (Write(writer.pick([*WHERES, 'value', 'input']), writer.pick([*HOWS, 'data', 'numpy', 'storage'])),)


def keep(writer: Writer, depth: int) -> Body:
    return (Keep(writer.pick(['list', 'list', 'attribute', 'returned'])),)


def recall(writer: Writer, depth: int) -> Body:
    return (Recall(writer.pick(['list', 'attribute']), writer.chance(3)),)


def small(writer: Writer, depth: int) -> Body:
    """What usually stands between layers."""
    return (writer.pick([Activation(), Identity(), Dropout(), Activation(inplace=True), Dropout(inplace=True)]),)


def peek(writer: Writer, depth: int) -> Body:
    return (Peek(writer.pick(LOOKS)),)


def view(writer: Writer, depth: int) -> Body:
    return (View(writer.pick(ALIASES)),)


def checkpointed(writer: Writer, depth: int) -> Body:
    return (Checkpoint(writer.body(depth), writer.chance(2)),)


def without_gradient(writer: Writer, depth: int) -> Body:
    return (NoGradient(writer.pick([writer.body(depth), (writer.layer(),), (writer.norm(),)])),)


def require_gradient(writer: Writer, depth: int) -> Body:
    return (RequireGradient(),)


def autocast(writer: Writer, depth: int) -> Body:
    body = writer.pick([(writer.layer(),), (writer.norm(),), writer.body(depth)])
    return (Autocast(body, not writer.chance(3)),)


def rewrite(writer: Writer, depth: int) -> Body:
    return (Gate(writer.pattern(), (_rewriting(writer),)),)


def attention(writer: Writer, depth: int) -> Body:
    if writer.space != 'sequence':
        return small(writer, depth)
    masks = ['none', 'none', 'padding', 'whole row', 'causal', 'float']
    return (Attention(writer.norm().index, writer.pick(masks), *(writer.chance(3) for _ in range(3))),)


def _module(writer: Writer) -> str:
    return f'{writer.pick(["layers", "norms"])}.{writer.pick(range(writer.used))}'


def _rewriting(writer: Writer) -> Rewrite:
    return Rewrite(_module(writer), writer.pick(REWRITINGS))


def _hook(writer: Writer) -> Hook:
    what = writer.pick(['see', 'change', 'change input', 'backward', 'global'])
    return Hook(_module(writer), what, writer.pick(['1', '01', '0001']))


THEMES = {
    'plain': Theme((small, residual), more=frozenset({'layouts'})),
    'norms': Theme((gated_norms, forked_norms, changed_order, skipped)),
    'layers': Theme((skipped, another_layer, forked_layers, crossed_layers), calls=CALLS),
    'in place': Theme((write, write, write, residual, keep)),
    'reads': Theme((peek, view, keep, recall, gated_norms)),
    'checkpoints': Theme((checkpointed, checkpointed, skipped, keep, recall), more=frozenset({'input'})),
    'gradients': Theme(
        (require_gradient, require_gradient, without_gradient, view, checkpointed), more=frozenset({'input'})
    ),
    'autocast': Theme(
        (autocast, autocast, gated_norms, checkpointed), float64=False, more=frozenset({'autocast', 'layouts'})
    ),
    'rewriting': Theme((rewrite, gated_norms, residual), more=frozenset({'rewrites'})),
    'hooks': Theme((skipped, small, peek), more=frozenset({'hooks'})),
    'attention': Theme((attention, residual, skipped), spaces=('sequence',), more=frozenset({'input'})),
}
THEMES['everything'] = Theme(
    tuple(dict.fromkeys(special for theme in THEMES.values() for special in theme.specials)),
    calls=('call', 'call', *CALLS),
    more=frozenset({'hooks', 'rewrites', 'layouts', 'autocast', 'input'}),
)


@st.composite
def plans(draw: st.DrawFn, theme: Theme) -> Plan:
    """Random networks.

    Args:
        draw (DrawFn): Given by hypothesis.
        theme (Theme): Of this sort.
    """
    space = draw(st.sampled_from(theme.spaces))
    writer = Writer(draw, theme, space)
    more = {name for name in sorted(theme.more) if writer.chance(2)}
    steps = tuple(step for _ in range(writer.pick([1, 2, 3])) for step in writer.stage())
    # The first of each are the usual ones.
    layers = tuple(writer.pick([next(iter(LAYERS[space]))] * 3 + list(LAYERS[space])) for _ in range(writer.used))
    channels_last = writer.pick(['', 'input', 'weights', 'both']) if 'layouts' in more and space == 'image' else ''
    # Behind what is frozen, a live group norm of values with the channels last brings torch down on a CPU.
    usable = [name for name in NORMS[space] if not (channels_last and name == 'group norm')]
    norms = tuple(writer.pick(['batch norm'] * 5 + usable) for _ in range(writer.used))
    has_attention = 'Attention' in repr(steps)
    kinds = tuple(writer.pick(['batch first', *ATTENTION]) for _ in range(writer.used if has_attention else 0))
    split = writer.chance(3)
    return Plan(
        space,
        layers,
        norms,
        steps,
        _schedule(writer, writer.used * (2 + has_attention if split else 1)),
        kinds,
        split,
        dtype='float64' if theme.float64 and 'autocast' not in more and not writer.chance(4) else 'float32',
        autocast='autocast' in more,
        channels_last=channels_last,
        input_gradient='input' in more and writer.chance(3),
        hooks=tuple(_hook(writer) for _ in range(writer.pick([1, 2]))) if 'hooks' in more else (),
        rewrites=((writer.pattern(), _rewriting(writer)),) if 'rewrites' in more else (),
        evaluated=writer.pick(['0', '01', '1']),
    )


def _schedule(writer: Writer, units: int) -> tuple[int, ...]:
    """How many units are frozen in each batch: from the start or the second batch on, and others later."""
    count = writer.pick([units, units, *range(1, units + 1)])
    counts = [count] * BATCHES
    if writer.chance(2):
        counts[0] = 0
    if writer.chance(4):
        counts[3:] = [writer.pick(range(units + 1))] * (BATCHES - 3)
    return tuple(counts)
