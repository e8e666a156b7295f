"""Frozen layers that run with the operators of inference give what they gave before, whatever a model does with them.

Two copies of a model are trained, one with ``fuse_frozen`` and one without, and everything that can be seen of them is
compared in every batch. After each batch the fused copy takes over what has come out otherwise by rounding, so that
small differences don't grow; what has stood still must be equal to the bit, and is never written to.
"""

import contextlib
import copy
import io
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, Phase, given, settings
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_leaves
from torch.utils.checkpoint import checkpoint

from composer_freezeout import apply_freezeout
from composer_freezeout.freezing.observing.units import Unit
from composer_freezeout.freezing.prefix.prefix import FrozenPrefix
from composer_freezeout.method.settings import BatchNormMode

from .networks import ResidualBlock
from .random_networks import (
    ATTENTION,
    BATCHES,
    HALF,
    THEMES,
    Activation,
    Attention,
    Autocast,
    Checkpoint,
    Gate,
    Hook,
    Keep,
    Layer,
    NoGradient,
    Norm,
    Plan,
    RequireGradient,
    Residual,
    Step,
    is_on,
    plans,
    shake,
)

# Relative to the largest number of its sort. Real differences are far larger: no norm is near to doing nothing.
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4}
# Numbers of 8 bits are rounded between a layer and its norm, or once behind both. Gradients and many layers add up such
# errors.
AUTOCAST_TOLERANCE = 0.1
DEEP_AUTOCAST_TOLERANCE = 0.25
SMALLEST_SCALE = 1e-2  # nothing but rounding is left of gradients that vanish

Freezing = Callable[[nn.Module, torch.optim.Optimizer, bool], Callable[[int], object]]


# --- two runs, and all that can be seen of them


@dataclass
class Training:
    """How a model is trained.

    Attributes:
        batches (Sequence[Tensor]): The inputs.
        freezing (Callable): Given a model, its optimizer and ``fuse_frozen``, returns what is called before each batch,
            with its number.
        tolerance (float): Up to which two numbers are equal.
        autocast (torch.dtype, optional): The type of the autocast that the model runs in.
        input_gradient (bool): Whether inputs require a gradient.
        hooks (Callable): Puts hooks on the model for one batch, and returns their handles.
        rewrite (Callable): Writes to the model before a batch.
        evaluated (str): After which batches it is evaluated, as a pattern.
    """

    batches: Sequence[Tensor]
    freezing: Freezing
    tolerance: float = TOLERANCES[torch.float64]
    autocast: torch.dtype | None = None
    input_gradient: bool = False
    hooks: Callable[[Any, int], Sequence[Any]] = lambda model, batch: ()
    rewrite: Callable[[Any, int], object] = lambda model, batch: None
    evaluated: str = '01'


@dataclass
class Seen:
    """What can be seen of a step: what has to be equal to rounding, and what to the bit."""

    close: dict[str, Any] = field(default_factory=dict)
    same: dict[str, Any] = field(default_factory=dict)
    warned: set[str] = field(default_factory=set)


class Run:
    """A copy of a model in training.

    The model has an attribute ``batch`` and the methods ``evidence``, which returns what there is to see of the latest
    step besides the outputs, and ``forget``, which lets go of tensors of earlier passes.
    """

    def __init__(self, model: nn.Module, training: Training, fuse_frozen: bool) -> None:
        self.model: Any = copy.deepcopy(model).train()
        self.training = training
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05)
        self.start = training.freezing(self.model, self.optimizer, fuse_frozen)

    def step(self, number: int) -> Seen:
        """Trains one batch."""
        self.model.batch = number
        self.optimizer.zero_grad()
        self.training.rewrite(self.model, number)
        inputs = self.training.batches[number].clone().requires_grad_(self.training.input_gradient)
        torch.default_generator.manual_seed(number)
        with contextlib.ExitStack() as stack:
            caught = stack.enter_context(warnings.catch_warnings(record=True))
            warnings.simplefilter('always')
            for handle in self.training.hooks(self.model, number):
                stack.callback(handle.remove)
            changed = self.start(number)
            with torch.autocast('cpu', self.training.autocast, self.training.autocast is not None):
                output = self.model(inputs)
            random_state = torch.get_rng_state()
            # Its slope is never near 0, where gradients would be differences of numbers that are nearly equal.
            loss: Any = sum((value.double() + F.softplus(value.double())).mean() for value in tree_leaves(output))
            loss.backward()
        seen = Seen(
            {'outputs': (output, loss), 'evidence': self.model.evidence(), 'inputs': inputs.detach()},
            {'what froze': changed, 'random state': random_state},
            {f'{warning.category.__name__}: {warning.message}' for warning in caught},
        )
        seen.close['gradients'] = self._gradients(inputs)
        self.optimizer.step()
        return seen

    def _gradients(self, inputs: Tensor) -> list[Tensor | None]:
        """Copies of them; weights are to stay finite, so what isn't is dropped."""
        leaves = [inputs if inputs.is_leaf else None, *self.model.parameters()]
        gradients = [None if leaf is None else leaf.grad for leaf in leaves]
        copies = [None if gradient is None else gradient.clone() for gradient in gradients]
        for gradient in gradients:
            if gradient is not None:
                gradient.nan_to_num_(0.0, 0.0, 0.0)
        return copies

    def evaluate(self, number: int) -> Any:
        """What can be seen of the model in evaluation."""
        self.model.eval().forget()
        torch.default_generator.manual_seed(number)
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter('ignore')
                return self.model(self.training.batches[number].clone()), self.model.evidence()
        finally:
            self.model.train()

    def tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers."""
        return dict((*self.model.named_parameters(), *self.model.named_buffers()))

    def copies(self) -> dict[str, Tensor]:
        """Copies of them, as they are now."""
        return {name: tensor.detach().clone() for name, tensor in self.tensors().items()}

    def follow(self, other: 'Run') -> None:
        """Takes over what another run has come to, where it differs."""
        with torch.no_grad():
            for ours, theirs in zip(self.tensors().values(), other.tensors().values(), strict=True):
                if not torch.equal(ours, theirs):
                    ours.copy_(theirs)


def compare_runs(model: nn.Module, training: Training, goes_on: bool = True) -> int:
    """Trains two copies of a model, and compares them in every batch.

    Args:
        model (nn.Module): The model.
        training (Training): How it is trained.
        goes_on (bool): Whether training goes on after a batch that fails without fusing: from where the unfused copy
            has come to, and nothing is said of what the other one does in it.

    Returns:
        int: How many batches didn't fail.
    """
    plain, fused = (Run(model, training, fuse_frozen) for fuse_frozen in (False, True))
    compared = 0
    for number in range(len(training.batches)):
        before = plain.copies()
        expected = attempt(plain.step, number)
        if expected is None:
            if not goes_on:
                break
            attempt(fused.step, number)
        else:
            assert_same_step(expected, fused.step(number), training.tolerance)
            assert_same_tensors(before, plain.tensors(), fused.tensors(), training.tolerance)
            compared += 1
        fused.follow(plain)
        if is_on(training.evaluated, number):
            assert_close('evaluation', plain.evaluate(number), fused.evaluate(number), 0.0)
            fused.follow(plain)
    return compared


def attempt(run: Callable[[int], Any], number: int) -> Any:
    """What it returns, or None if it fails."""
    with contextlib.suppress(Exception):
        return run(number)


def assert_same_step(expected: Seen, actual: Seen, tolerance: float) -> None:
    for kind, value in expected.same.items():
        assert_close(kind, value, actual.same[kind], 0.0)
    for kind, value in expected.close.items():
        assert_close(kind, value, actual.close[kind], tolerance)
    assert actual.warned <= expected.warned, f'warned of {actual.warned - expected.warned}'


def assert_same_tensors(
    before: dict[str, Tensor], expected: dict[str, Tensor], actual: dict[str, Tensor], tolerance: float
) -> None:
    """Of what has stood still to the bit, of all other to rounding."""
    assert list(actual) == list(expected)
    still = {name for name, tensor in expected.items() if torch.equal(before[name], tensor)}
    # Where a gradient is nothing but rounding, one of the two weights may have stood still.
    still = {name for name in still if not expected[name].requires_grad}
    for names, of_these in ((sorted(still), 0.0), (sorted(expected.keys() - still), tolerance)):
        assert_close('', {name: expected[name] for name in names}, {name: actual[name] for name in names}, of_these)


def assert_close(kind: str, expected: Any, actual: Any, tolerance: float) -> None:
    """Fails where two structures differ in more than the rounding of their numbers, and says where."""
    (theirs, structure), (ours, other) = tree_flatten_with_path(expected), tree_flatten_with_path(actual)
    assert other == structure, f'{kind}: {other} instead of {structure}'
    scale = max([SMALLEST_SCALE, *(_largest(value) for _, value in theirs if isinstance(value, Tensor))])
    for (path, b), (_, a) in zip(theirs, ours, strict=True):
        at = f'{kind}{keystr(path)}'
        if not isinstance(b, Tensor):
            assert a == b, f'{at}: {a} instead of {b}'
            continue
        # What is contiguous can be used as what isn't: attention as one operator gives it so.
        assert _form(a) == _form(b.contiguous() if a.ndim == 3 and a.is_contiguous() else b), (
            f'{at}: {_form(a)} instead of {_form(b)}'
        )
        assert torch.equal(a.isnan(), b.isnan()), f'{at}: other ones are not a number'
        difference = _largest(a.detach().double() - b.detach().double()) / scale
        assert difference <= tolerance, f'{at}: differs by {difference:.2g} of the largest number'


def _largest(values: Tensor) -> float:
    return float(values.detach().double().abs().nan_to_num(0.0).max()) if values.numel() else 0.0


def _form(tensor: Tensor) -> tuple[Any, ...]:
    """What a tensor is, besides its numbers; strides of dimensions of size 1 mean nothing."""
    strides = [stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size > 1]
    return type(tensor), tensor.dtype, tensor.device, tuple(tensor.shape), strides, tensor.requires_grad


def by_units(units: Sequence[Unit], frozen: Sequence[int], batchnorm: BatchNormMode = 'eval') -> Freezing:
    """Freezes as many of these units as said for each batch."""

    def start(model: nn.Module, _: torch.optim.Optimizer, fuse_frozen: bool) -> Callable[[int], object]:
        freezer = FrozenPrefix(model, units, batchnorm, fuse_frozen)
        return lambda number: freezer.set_frozen(frozen[number])

    return start


def by_progress(batches: int) -> Freezing:
    """Freezes the units that FreezeOut finds, when it is time for them."""

    def start(model: nn.Module, optimizer: torch.optim.Optimizer, fuse_frozen: bool) -> Callable[[int], object]:
        loop = apply_freezeout(model, optimizer, t_0=0.3, fuse_frozen=fuse_frozen)

        def begin(number: int) -> object:
            loop.batch_start(number / batches)
            return loop.units_frozen

        return begin

    return start


# --- one network for each kind


class Small(nn.Module):
    """Two convolutions, each with a norm, and a head.

    Args:
        steps (Callable): What it does with them, given itself and the input: returns features, or a tuple of features
            and whatever else it returns.
    """

    def __init__(self, steps: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.steps = steps
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.other_conv, self.other_norm = nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)
        self.batch = 0
        self.seen: list[Any] = []
        self.kept: list[Tensor] = []
        shake(self)

    def evidence(self) -> list[Any]:
        return [*self.seen, *(tensor.detach().clone() for tensor in self.kept)]

    def forget(self) -> None:
        self.kept = []

    def see(self, value: Tensor) -> None:
        self.seen.append(value.detach().clone())

    def forward(self, x: Tensor) -> Any:
        self.seen = []
        result = self.steps(self, x)
        features, *others = result if isinstance(result, tuple) else (result,)
        output = self.head(features.flatten(2).mean(2).to(self.head.weight.dtype))
        return (output, *others) if others else output


UNITS = (
    Unit('first', ('conv.weight', 'conv.bias', 'norm.weight', 'norm.bias'), ('norm',)),
    Unit('second', ('other_conv.weight', 'other_norm.weight', 'other_norm.bias'), ('other_norm',)),
    Unit('head', ('head.weight', 'head.bias')),
)

KINDS: dict[str, Callable[[Any, Tensor], Any]] = {}


def kind(steps: Callable[[Any, Tensor], Any]) -> Callable[[Any, Tensor], Any]:
    """Adds what a network does to ``KINDS``."""
    KINDS[steps.__name__.replace('_', ' ')] = steps
    return steps


@kind
def plain(m: Any, x: Tensor) -> Tensor:
    x = m.norm(m.conv(x)).relu()
    return m.other_norm(m.other_conv(x)).relu()


# norms and layers that depend on the batch


@kind
def a_norm_for_each_domain(m: Any, x: Tensor) -> Tensor:
    return (m.norm if m.batch % 2 else m.other_norm)(m.conv(x)).relu()


@kind
def a_norm_for_each_domain_later(m: Any, x: Tensor) -> Tensor:
    return (m.norm if m.batch < 4 else m.other_norm)(m.conv(x)).relu()


@kind
def a_norm_that_is_left_out(m: Any, x: Tensor) -> Tensor:
    x = m.conv(x)
    return m.norm(x) if m.batch % 3 else x


@kind
def a_layer_that_is_left_out(m: Any, x: Tensor) -> Tensor:
    return m.norm(m.conv(x) if m.batch % 3 else x)


@kind
def a_pair_that_is_left_out(m: Any, x: Tensor) -> Tensor:
    x = m.norm(m.conv(x))
    return x if m.batch % 3 == 1 else m.other_norm(m.other_conv(x))


@kind
def layers_that_change_places(m: Any, x: Tensor) -> Tensor:
    one, other = (m.conv, m.other_conv) if m.batch % 2 else (m.other_conv, m.conv)
    return m.other_norm(other(m.norm(one(x)).relu()))


@kind
def a_norm_that_changes_its_place(m: Any, x: Tensor) -> Tensor:
    return m.norm(m.conv(x)) if m.batch % 2 else m.conv(m.norm(x))


@kind
def something_between_at_times(m: Any, x: Tensor) -> Tensor:
    x = m.conv(x)
    return m.norm(x.relu() if m.batch == 4 else x)


@kind
def an_output_that_is_read_at_times(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    return m.norm(y) + y if m.batch == 4 else m.norm(y)


# norms and layers that are shared


@kind
def two_norms_of_one_output(m: Any, x: Tensor) -> Tensor:
    x = m.conv(x)
    return m.norm(x) + m.other_norm(x)


@kind
def a_norm_twice_of_one_output(m: Any, x: Tensor) -> Tensor:
    x = m.conv(x)
    return m.norm(x) * m.norm(x)


@kind
def a_norm_of_a_norm(m: Any, x: Tensor) -> Tensor:
    return m.norm(m.norm(m.conv(x)))


@kind
def a_norm_behind_two_layers(m: Any, x: Tensor) -> Tensor:
    return m.norm(m.other_conv(m.norm(m.conv(x)).relu()))


@kind
def a_norm_behind_one_of_two_layers(m: Any, x: Tensor) -> Tensor:
    return m.norm((m.conv if m.batch % 2 else m.other_conv)(x))


@kind
def two_layers_and_then_their_norms(m: Any, x: Tensor) -> Tensor:
    one, other = m.conv(x), m.other_conv(x)
    return m.norm(one) + m.other_norm(other)


@kind
def two_layers_and_then_each_others_norms(m: Any, x: Tensor) -> Tensor:
    one, other = m.conv(x), m.other_conv(x)
    return (m.norm(one) + m.other_norm(other)) if m.batch % 2 else (m.norm(other) + m.other_norm(one))


@kind
def a_shared_layer_with_its_norm(m: Any, x: Tensor) -> Tensor:
    x = m.norm(m.conv(x)).relu()
    return m.norm(m.conv(x))


@kind
def a_shared_layer_with_its_norm_at_times(m: Any, x: Tensor) -> Tensor:
    x = m.norm(m.conv(x)).relu()
    return m.norm(m.conv(x)) if m.batch % 2 else x


@kind
def a_shared_layer_with_other_norms(m: Any, x: Tensor) -> Tensor:
    x = m.norm(m.conv(x)).relu()
    return m.other_norm(m.conv(x))


@kind
def a_shared_layer_without_its_norm(m: Any, x: Tensor) -> Tensor:
    return m.conv(m.norm(m.conv(x)).relu())


@kind
def a_shared_layer_twice_before_its_norm(m: Any, x: Tensor) -> Tensor:
    one, other = m.conv(x), m.conv(2 * x)
    return m.norm(one) + other


# writes


@kind
def an_activation_in_place_between(m: Any, x: Tensor) -> Tensor:
    return m.norm(F.relu(m.conv(x), inplace=True))


@kind
def a_write_to_the_output_through_a_view(m: Any, x: Tensor) -> Tensor:
    x = m.conv(x)
    x[:, 0] *= 2
    return m.norm(x)


@kind
def a_write_to_the_output_through_numpy(m: Any, x: Tensor) -> Tensor:
    x = m.conv(x)
    if x.dtype is not torch.bfloat16:
        (x.detach() if x.requires_grad else x).numpy()[...] *= 2
    return m.norm(x)


@kind
def a_write_to_the_input_between(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    F.relu(x, inplace=True)
    return m.norm(y) + x


@kind
def an_uncounted_write_to_the_input_between(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    x.data.mul_(2)
    return m.norm(y) + x


@kind
def a_residual_in_place(m: Any, x: Tensor) -> Tensor:
    x += m.norm(m.conv(x))
    return m.other_norm(m.other_conv(x))


@kind
def a_residual_onto_the_norm_in_place(m: Any, x: Tensor) -> Tensor:
    y = m.norm(m.conv(x))
    y += x
    return m.other_norm(m.other_conv(y.relu_()))


@kind
def a_write_to_what_the_norm_gives(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    z = m.norm(y).mul_(2)
    return y + z


@kind
def a_write_to_the_output_behind_the_norm(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    z = m.norm(y)
    y.mul_(2)
    return z


# outputs that are put aside


@kind
def an_output_that_is_read_behind_the_norm(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    return m.norm(y) + y


@kind
def outputs_in_a_list(m: Any, x: Tensor) -> Tensor:
    outputs = [m.conv(x)]
    outputs.append(m.norm(outputs[-1]))
    return torch.stack(outputs).sum(0)


@kind
def outputs_in_an_attribute(m: Any, x: Tensor) -> Tensor:
    m.kept = [m.conv(x)]
    return m.norm(m.kept[0])


@kind
def an_output_that_a_later_pass_reads(m: Any, x: Tensor) -> Tensor:
    earlier = sum(tensor.detach().mean() for tensor in m.kept)
    m.kept = [m.conv(x)]
    return m.norm(m.kept[0]) + earlier


@kind
def an_output_that_is_put_aside_in_the_last_batch(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    m.kept = [y] if m.batch == 5 else []
    return m.norm(y)


@kind
def an_output_that_is_returned(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    y = m.conv(x)
    return m.norm(y), y


@kind
def a_view_of_the_output_that_is_returned(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    y = m.conv(x)
    return m.norm(y), y[:, 0]


@kind
def what_the_norm_gives_is_returned(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    y = m.norm(m.conv(x))
    return m.other_norm(m.other_conv(y)), y


# reads


@kind
def the_form_of_an_output(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    m.seen = [y.shape, y.dtype, y.device, y.stride(), y.layout, y.is_leaf, y.requires_grad, len(y)]
    return m.norm(y).view(y.shape)


@kind
def the_numbers_of_an_output(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    free = y.detach() if y.requires_grad else y
    m.seen = [torch.tensor(free.tolist()), free.sum().item(), copy.deepcopy(free), torch.from_dlpack(free).clone()]
    m.seen[1] = torch.tensor(m.seen[1])
    return m.norm(y)


@kind
def an_output_as_an_array(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    if y.dtype is not torch.bfloat16:
        m.seen = [torch.tensor((y.detach() if y.requires_grad else y).numpy())]
    return m.norm(y)


@kind
def a_copy_of_the_output(m: Any, x: Tensor) -> Tensor:
    return m.norm(m.conv(x).clone())


@kind
def a_view_of_the_output(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    return m.norm(y.view(y.shape))


@kind
def a_transposed_output(m: Any, x: Tensor) -> Tensor:
    return m.norm(m.conv(x).transpose(2, 3))


@kind
def channels_that_are_turned_round(m: Any, x: Tensor) -> Tensor:
    return m.norm(m.conv(x).flip(1))


@kind
def a_module_that_does_nothing_between(m: Any, x: Tensor) -> Tensor:
    return m.norm(nn.Identity()(m.conv(x)))


@kind
def dropout_between(m: Any, x: Tensor) -> Tensor:
    return m.norm(F.dropout(m.conv(x), 0.5, m.training))


@kind
def an_output_as_somebody_elses_array(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    if not y.requires_grad and y.dtype is not torch.bfloat16:
        m.seen = [torch.tensor(np.asarray(y))]
    return m.norm(y)


@kind
def an_output_in_a_file(m: Any, x: Tensor) -> Tensor:
    y, file = m.conv(x), io.BytesIO()
    torch.save(y.detach() if y.requires_grad else y, file)
    file.seek(0)
    m.seen = [torch.load(file)]
    return m.norm(y)


@kind
def the_storage_of_an_output(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    same = torch.empty(0, dtype=y.dtype).set_(y.untyped_storage(), 0, y.shape, y.stride())
    m.seen = [same.clone()]
    same.mul_(2)
    return m.norm(y)


@kind
def the_data_of_an_output(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    y.data.mul_(2)
    return m.norm(y.data)


@kind
def an_output_whose_data_is_replaced(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    y.data = 2 * y.data
    return m.norm(y)


@kind
def an_output_that_is_written_over(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    if not y.requires_grad:
        torch.mul(y.detach(), 2, out=y)
    return m.norm(y)


@kind
def an_output_that_is_copied_shallowly(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    return m.norm(copy.copy(y)) + y if not y.requires_grad else m.norm(y) + y


@kind
def an_output_as_a_parameter(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    m.seen = [nn.Parameter(y.detach() if y.requires_grad else y).sum().detach()]
    return m.norm(y)


@kind
def one_image_after_the_other(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    return m.norm(y) + sum(image.sum() for image in y)


@kind
def an_operator_by_its_full_name(m: Any, x: Tensor) -> Tensor:
    y, operators = m.conv(x), cast(Any, torch.ops.aten)
    return m.norm(y) + operators.relu.default(y)


class Swish(torch.autograd.Function):
    """An activation that keeps nothing but its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(x)
        return x * x.sigmoid()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        (x,) = ctx.saved_tensors
        return gradient * x.sigmoid() * (1 + x * (1 - x.sigmoid()))


@kind
def a_function_of_ones_own(m: Any, x: Tensor) -> Any:
    y = m.conv(x)
    return m.norm(y) + Swish.apply(y)


@kind
def a_function_of_ones_own_between(m: Any, x: Tensor) -> Any:
    return m.norm(Swish.apply(m.conv(x)))


@torch.jit.script
def scripted(x: Tensor) -> Tensor:
    return x * x.sigmoid()


@kind
def a_scripted_function(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    return m.norm(y) + scripted(y)


@kind
def a_scripted_function_between(m: Any, x: Tensor) -> Tensor:
    return m.norm(scripted(m.conv(x)))


# what happens to what an output comes from


@kind
def an_output_that_is_read_when_its_input_is_another(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    z = m.norm(y)
    x.mul_(2)
    return z + y


@kind
def an_output_that_is_read_when_its_layer_is_another(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    z = m.norm(y)
    m.conv.weight.data = 0.9 * m.conv.weight.data
    return z + y


@kind
def an_output_that_a_later_pass_reads_when_its_input_is_another(m: Any, x: Tensor) -> Tensor:
    earlier = 0.0
    if len(m.kept) > 1:
        m.kept[1].zero_()
        earlier = m.kept[0].detach().mean()
    m.kept = [m.conv(x), x]
    return m.norm(m.kept[0]) + earlier


# passes in passes, and passes that fail


@kind
def a_pass_in_a_pass(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    if not hasattr(m, 'inside'):
        m.inside = True
        m.seen = [m(x.flip(0)).detach()]
        del m.inside
    return m.norm(y)


@kind
def a_pass_that_fails_between(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    if m.training and m.batch in (2, 3):
        raise ValueError('no')
    return m.norm(y)


@kind
def a_layer_that_fails(m: Any, x: Tensor) -> Tensor:
    with contextlib.suppress(RuntimeError):
        m.conv(x[:, :3])
    return m.norm(m.conv(x))


@kind
def a_norm_that_fails(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    with contextlib.suppress(ValueError, RuntimeError):
        m.norm(y[0])
    return m.norm(y)


# backward passes


def _pair(m: Any, x: Tensor) -> Tensor:
    return m.norm(m.conv(x)).relu()


@kind
def a_checkpoint(m: Any, x: Tensor) -> Any:
    y = checkpoint(lambda x: _pair(m, x), x, use_reentrant=False)
    return checkpoint(lambda y: m.other_norm(m.other_conv(y)), y, use_reentrant=False)


@kind
def a_reentrant_checkpoint(m: Any, x: Tensor) -> Any:
    return checkpoint(lambda x: m.other_norm(m.other_conv(x)), _pair(m, x), use_reentrant=True)


@kind
def a_reentrant_checkpoint_with_a_gradient_of_its_input(m: Any, x: Tensor) -> Any:
    x = x.detach().requires_grad_()
    return checkpoint(lambda x: m.other_norm(m.other_conv(_pair(m, x))), x, use_reentrant=True)


@kind
def a_checkpoint_around_the_layer(m: Any, x: Tensor) -> Any:
    return m.norm(checkpoint(m.conv, x, use_reentrant=False))


@kind
def a_checkpoint_around_the_norm(m: Any, x: Tensor) -> Any:
    return checkpoint(m.norm, m.conv(x), use_reentrant=False)


@kind
def a_reentrant_checkpoint_from_a_norm_to_a_layer(m: Any, x: Tensor) -> Any:
    return checkpoint(lambda y: m.other_conv(m.norm(y)), m.conv(x), use_reentrant=True)


@kind
def an_output_that_is_returned_and_read_by_a_checkpoint(m: Any, x: Tensor) -> Any:
    y = m.conv(x)
    return checkpoint(lambda y: m.other_norm(m.other_conv(y)), y, use_reentrant=False), y


@kind
def an_output_that_is_returned_and_read_by_a_reentrant_checkpoint(m: Any, x: Tensor) -> Any:
    y = m.conv(x)
    return checkpoint(lambda y: m.other_norm(m.other_conv(y)), y, use_reentrant=True), y


@kind
def a_part_without_gradients(m: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        x = _pair(m, x)
    return m.other_norm(m.other_conv(x))


@kind
def a_layer_without_gradients(m: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        x = m.conv(x)
    return m.norm(x)


@kind
def a_gradient_of_the_output(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    if y.is_leaf and torch.is_grad_enabled():
        y.requires_grad_()
    z = m.norm(y)
    if y.requires_grad:
        m.seen = list(torch.autograd.grad(z.square().sum(), y, retain_graph=True))
    return z


# autocast


@kind
def autocast_around_the_layer(m: Any, x: Tensor) -> Tensor:
    with torch.autocast('cpu', torch.bfloat16):
        y = m.conv(x)
    return m.norm(y)


@kind
def autocast_around_the_norm(m: Any, x: Tensor) -> Tensor:
    with torch.autocast('cpu', torch.bfloat16, enabled=False):
        y = m.conv(x.to(m.conv.weight.dtype))
    with torch.autocast('cpu', torch.bfloat16):
        return m.norm(y)


@kind
def no_autocast_around_the_norm(m: Any, x: Tensor) -> Tensor:
    with torch.autocast('cpu', torch.bfloat16):
        y = m.conv(x)
    with torch.autocast('cpu', torch.bfloat16, enabled=False):
        return m.norm(y.to(m.norm.weight.dtype))


@kind
def no_autocast_around_a_norm_of_less_precise_numbers(m: Any, x: Tensor) -> Tensor:
    with torch.autocast('cpu', torch.bfloat16):
        y = m.other_conv(m.conv(x))
    with torch.autocast('cpu', torch.bfloat16, enabled=False):
        return m.other_norm(y)


# memory formats


@kind
def channels_last(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    y = _pair(m, x.contiguous(memory_format=torch.channels_last))
    return m.other_norm(m.other_conv(y)), y


@kind
def channels_last_at_times(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    y = _pair(m, x.contiguous(memory_format=torch.channels_last) if m.batch % 2 else x)
    return m.other_norm(m.other_conv(y)), y


# weights


@kind
def weights_that_the_pass_writes_to(m: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        m.conv.weight.mul_(0.9)
    return m.norm(m.conv(x))


@kind
def statistics_that_are_written_to_between(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    m.norm.running_mean.add_(0.1)
    return m.norm(y)


@kind
def statistics_that_are_replaced_between(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    m.norm.running_var = 1.1 * m.norm.running_var
    return m.norm(y)


@kind
def data_that_is_replaced_in_the_pass(m: Any, x: Tensor) -> Tensor:
    m.conv.weight.data = 0.9 * m.conv.weight.data
    return m.norm(m.conv(x))


@kind
def weights_that_are_swapped_for_one_call(m: Any, x: Tensor) -> Any:
    return m.norm(functional_call(m.conv, {'weight': 2 * m.conv.weight}, (x,)))


@kind
def statistics_that_are_swapped_for_one_call(m: Any, x: Tensor) -> Any:
    return functional_call(m.norm, {'running_mean': 2 * m.norm.running_mean}, (m.conv(x),))


def _swapped(module: nn.Module, factor: float, x: Tensor) -> Any:
    return functional_call(module, {name: factor * value for name, value in module.named_parameters()}, (x,))


@kind
def other_weights_in_each_call(m: Any, x: Tensor) -> Any:
    """Numbers that are gone at once: the next ones may come to lie where they lay."""
    y = _swapped(m.norm, 1.5, m.conv(x))
    for factor in (0.5, 1.5, 2.0):
        y = _swapped(m.norm, factor, _swapped(m.conv, factor, y))
    return y


@kind
def an_epsilon_that_changes(m: Any, x: Tensor) -> Tensor:
    m.norm.eps = 0.5 * (m.batch % 2) + 1e-5
    return m.norm(m.conv(x))


@kind
def a_stride_that_changes(m: Any, x: Tensor) -> Tensor:
    m.conv.stride = (1 + m.batch % 2,) * 2
    return m.norm(m.conv(x))


@kind
def a_norm_that_its_model_sets_to_training(m: Any, x: Tensor) -> Tensor:
    m.norm.train(m.training and m.batch % 2 == 0)
    return m.norm(m.conv(x))


# ways to call


@kind
def the_layers_forward_method(m: Any, x: Tensor) -> Tensor:
    return m.norm(m.conv.forward(x))


@kind
def the_norms_forward_method(m: Any, x: Tensor) -> Tensor:
    return m.norm.forward(m.conv(x))


@kind
def the_layers_weights_in_a_function(m: Any, x: Tensor) -> Tensor:
    return m.norm(F.conv2d(x, m.conv.weight, m.conv.bias, padding=1))


@kind
def the_layer_and_a_function_with_its_weights(m: Any, x: Tensor) -> Tensor:
    return m.norm(m.conv(x)) + F.conv2d(x, m.conv.weight, padding=1)


@kind
def the_norms_statistics_in_a_function(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    return F.batch_norm(y, m.norm.running_mean, m.norm.running_var, m.norm.weight, m.norm.bias)


@kind
def named_arguments(m: Any, x: Tensor) -> Tensor:
    return m.norm(input=m.conv(input=x))


@kind
def the_layer_in_vmap(m: Any, x: Tensor) -> Any:
    return m.norm(torch.vmap(lambda image: m.conv(image[None])[0])(x))


@kind
def an_image_without_a_batch(m: Any, x: Tensor) -> Tensor:
    return m.norm(torch.stack([m.conv(image) for image in x]))


def small(steps: Callable[[Any, Tensor], Any], dtype: torch.dtype = torch.float64) -> Small:
    torch.manual_seed(0)
    return Small(steps).to(dtype)


def images(dtype: torch.dtype = torch.float64, batches: int = BATCHES) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(3, 4, 5, 5, generator=generator).to(dtype) for _ in range(batches)]


@pytest.mark.parametrize('frozen', [1, 2])
@pytest.mark.parametrize('name', KINDS)
def test_every_kind(name, frozen):
    """From the first batch on, as some of them fail where a backward pass would go through."""
    training = Training(images(), by_units(UNITS, [frozen] * BATCHES))
    assert compare_runs(small(KINDS[name]), training) == BATCHES - 2 * ('pass that fails' in name)


@pytest.mark.parametrize('name', KINDS)
def test_every_kind_that_freezes_as_it_trains(name):
    compare_runs(small(KINDS[name]), Training(images(), by_units(UNITS, [0, 1, 2, 2, 2, 2])))


@pytest.mark.parametrize('name', KINDS)
def test_every_kind_in_autocast(name):
    autocast = None if 'autocast' in name else torch.bfloat16
    training = Training(images(torch.float32), by_units(UNITS, [2] * BATCHES), AUTOCAST_TOLERANCE, autocast)
    assert compare_runs(small(KINDS[name], torch.float32), training) == BATCHES - 2 * ('pass that fails' in name)


@pytest.mark.parametrize('name', KINDS)
def test_every_kind_whose_units_are_observed(name):
    compare_runs(small(KINDS[name]), Training(images(batches=8), by_progress(8)), goes_on=False)


@pytest.mark.parametrize('name', ['plain', 'a norm for each domain', 'a residual onto the norm in place'])
@pytest.mark.parametrize('batchnorm', ['batch', 'update'])
def test_other_meanings_of_a_frozen_norm(name, batchnorm):
    training = Training(images(), by_units(UNITS, [2] * BATCHES, batchnorm))
    assert compare_runs(small(KINDS[name]), training) == BATCHES


@pytest.mark.parametrize('inputs', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('weights', [torch.contiguous_format, torch.channels_last])
def test_memory_formats(inputs, weights):
    """What is returned lies in memory as it did."""
    model: Any = small(what_the_norm_gives_is_returned)
    batches = [batch.to(memory_format=inputs) for batch in images()]
    training = Training(batches, by_units(UNITS, [0, *[2] * 5]))
    assert compare_runs(model.to(memory_format=weights), training) == BATCHES


def test_a_norm_for_each_domain_is_the_one_that_is_called():
    """What the two runs have in common is right, too."""
    model, inputs = small(a_norm_for_each_domain), images()
    reference = copy.deepcopy(model).eval()
    freezer = FrozenPrefix(model.train(), UNITS)
    freezer.set_frozen(2)
    for batch, x in enumerate(inputs):
        model.batch = batch
        norm = reference.norm if batch % 2 else reference.other_norm
        expected = reference.head(norm(reference.conv(x)).relu().mean((2, 3)))
        torch.testing.assert_close(model(x), expected)


# --- what runs


class Operators(TorchDispatchMode):
    """Counts operators, by a part of their names."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for name in ('convolution', 'batch_norm', 'multi_head_attention'):
            self.counts[name] += name in str(func)
        return func(*args, **(kwargs or {}))


def counted(model: nn.Module, batches: Sequence[Tensor]) -> list[tuple[int, int]]:
    """Convolutions and batch normalisations in the forward passes of training."""
    counts = []
    for x in batches:
        with Operators() as operators:
            output: Any = model(x)
        output.sum().backward()
        counts.append((operators.counts['convolution'], operators.counts['batch_norm']))
    return counts


def sequence() -> nn.Sequential:
    stages = (nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()) for _ in range(3))
    return nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))


def residual_blocks() -> nn.Sequential:
    return nn.Sequential(*(ResidualBlock(4) for _ in range(3)), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))


@pytest.mark.parametrize(('make', 'pairs'), [(sequence, 1), (residual_blocks, 2)])
@pytest.mark.parametrize('frozen', [1, 2, 3])
def test_a_frozen_prefix_runs_the_operators_of_inference(make, pairs, frozen):
    """From the second pass on; the first one may look at how layers and norms belong together."""
    model = make().train()
    names = [name for name, _ in model.named_parameters()]
    units = [
        Unit(f'{stage}', tuple(name for name in names if name.startswith(f'{stage}.')), norms_in(model, f'{stage}'))
        for stage in range(3)
    ]
    freezer = FrozenPrefix(model, units)
    assert counted(model, images(torch.float32, 1)) == [(3 * pairs, 3 * pairs)]
    freezer.set_frozen(frozen)
    counted(model, images(torch.float32, 1))
    for number, counts in enumerate(counted(model, images(torch.float32))):
        assert counts == (3 * pairs, (3 - frozen) * pairs), number
        freezer.set_frozen(frozen)


def norms_in(model: nn.Module, around: str) -> tuple[str, ...]:
    modules = model.get_submodule(around).named_modules()
    return tuple(f'{around}.{name}' for name, module in modules if isinstance(module, nn.BatchNorm2d))


def test_frozen_attention_runs_as_one_operator():
    plan = attention_plan('batch first', Attention())
    network = plan.network().train()
    freezer = FrozenPrefix(network, plan.units())
    freezer.set_frozen(1)
    for x in plan.batches():
        with Operators() as operators:
            network(x)
        assert operators.counts['multi_head_attention'] == 1


# --- hooks, and weights that are written to between two passes


HOOKS: dict[str, tuple[Any, str]] = {
    'a hook that sees the layer': ('see', 'conv'),
    'a hook that sees the norm': ('see', 'norm'),
    'a hook that changes what the layer gives': ('change', 'conv'),
    'a hook that changes what the norm gives': ('change', 'norm'),
    'a hook that changes what the layer reads': ('change input', 'conv'),
    'a hook that changes what the norm reads': ('change input', 'norm'),
    'a backward hook': ('backward', 'conv'),
    'a hook on all modules': ('global', ''),
}


@pytest.mark.parametrize('pattern', ['1', '0001'])
@pytest.mark.parametrize('name', HOOKS)
def test_hooks(name, pattern):
    what, module = HOOKS[name]
    hook = Hook(module, what, pattern)
    training = Training(images(), by_units(UNITS, [0, *[2] * 5]), hooks=lambda m, batch: hook.put(m, batch))
    assert compare_runs(small(plain), training) == BATCHES


def in_place(m: Any) -> None:
    m.conv.weight.mul_(0.9)


def in_place_of_statistics(m: Any) -> None:
    m.norm.running_mean.add_(0.1)


def in_place_through_data(m: Any) -> None:
    m.conv.weight.data.mul_(0.9)


def in_place_through_data_of_statistics(m: Any) -> None:
    m.norm.running_mean.data.add_(0.1)


def replaced_data(m: Any) -> None:
    m.conv.weight.data = 0.9 * m.conv.weight.data


def replaced_parameter(m: Any) -> None:
    m.conv.weight = nn.Parameter(0.9 * m.conv.weight.detach(), m.conv.weight.requires_grad)


def replaced_norm(m: Any) -> None:
    m.norm = copy.deepcopy(m.norm)
    m.norm.running_mean.add_(0.1)


def replaced_layer(m: Any) -> None:
    m.conv = copy.deepcopy(m.conv)
    m.conv.weight.mul_(0.9)


def loaded(m: Any) -> None:
    m.load_state_dict({name: 0.9 * tensor for name, tensor in m.state_dict().items()})


def another_epsilon(m: Any) -> None:
    m.norm.eps += 0.1


def a_norm_less(m: Any) -> None:
    m.norm = nn.Identity()


def thawed(m: Any) -> None:
    m.requires_grad_(True)


def compare_with_change(change: Callable[[Any], None]) -> int:
    def rewrite(m: Any, batch: int) -> None:
        with torch.no_grad():
            if batch == 3:
                change(m)

    return compare_runs(small(plain), Training(images(), by_units(UNITS, [2] * BATCHES), rewrite=rewrite))


@pytest.mark.parametrize(
    'change',
    [in_place, in_place_of_statistics, replaced_data, replaced_parameter, replaced_norm, replaced_layer, loaded,
     another_epsilon, a_norm_less, thawed],
)  # fmt: skip
def test_changes_between_passes(change):
    assert compare_with_change(change) == BATCHES


@pytest.mark.xfail(strict=True, reason='torch does not count what is written in place to the data of a tensor')
@pytest.mark.parametrize('change', [in_place_through_data, in_place_through_data_of_statistics])
def test_changes_that_are_not_counted(change):
    compare_with_change(change)


# --- attention


def attention_plan(kind: str, *steps: Step, frozen: int = 1) -> Plan:
    """A sequence that goes through a linear layer with a norm, and then through attention."""
    return Plan(
        'sequence', ('linear',), ('group norm',), (Layer(), Norm(), *steps), (0, *[frozen] * (BATCHES - 1)), (kind,)
    )


@pytest.mark.parametrize('how', ['', 'positional', 'across'])
@pytest.mark.parametrize('weights', [False, True])
@pytest.mark.parametrize('mask', ['none', 'padding', 'whole row', 'causal', 'float'])
@pytest.mark.parametrize('kind', ATTENTION)
def test_attention(kind, mask, weights, how):
    check(attention_plan(kind, Attention(0, mask, weights, positional=how == 'positional', across=how == 'across')))


AROUND_ATTENTION = {
    'twice': (Attention(), Attention()),
    'left out': (Gate('110', (Attention(),)),),
    'masked at times': (Gate('1110', (Attention(),), (Attention(0, 'whole row'),)),),
    'kept': (Residual((Attention(), Keep('attribute'))),),
    'returned': (Attention(), Keep('returned')),
    'in place': (Residual((Attention(), Activation('relu', inplace=True)), 'into output'),),
    'in a checkpoint': (Checkpoint((Attention(), Norm())),),
    'in a reentrant checkpoint': (RequireGradient(), Checkpoint((Attention(), Norm()), reentrant=True)),
    'without gradients': (NoGradient((Attention(),)),),
    'of what requires a gradient': (RequireGradient(), Attention()),
}


@pytest.mark.parametrize('name', AROUND_ATTENTION)
def test_around_attention(name):
    check(attention_plan('batch first', *AROUND_ATTENTION[name]))


@pytest.mark.parametrize('whole', [True, False])
def test_attention_in_autocast(whole):
    attention = Attention()
    plan = attention_plan('batch first', attention if whole else Autocast((attention,)))
    check(replace(plan, dtype='float32', autocast=whole))


class Encoder(nn.Module):
    """Two of torch's own blocks around attention, and a head."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        blocks = (
            nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=batch_first, norm_first=norm_first)
            for norm_first in (False, True)
        )
        self.blocks, self.head = nn.ModuleList(blocks), nn.Linear(4, 3)
        self.batch = 0
        shake(self)

    def evidence(self) -> list[Any]:
        return []

    def forget(self) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


@pytest.mark.parametrize('batch_first', [False, True])
def test_blocks_around_attention(batch_first):
    torch.manual_seed(0)
    model = Encoder(batch_first).double()
    names = [name for name, _ in model.named_parameters()]
    units = [Unit(kind, tuple(name for name in names if kind in name)) for kind in ('blocks.0', 'blocks.1', 'head')]
    training = Training([batch[:, :, 0, :4] for batch in images()], by_units(units, [0, 1, 1, 2, 2, 2]))
    assert compare_runs(model, training) == BATCHES


# --- random networks


def check(plan: Plan, observed: bool = False) -> None:
    """Compares the two runs of a network.

    Args:
        plan (Plan): The network.
        observed (bool): Whether FreezeOut itself finds the units and freezes them.
    """
    dtype = getattr(torch, plan.dtype)
    training = Training(
        plan.batches(),
        by_progress(BATCHES) if observed else by_units(plan.units(), plan.frozen),
        DEEP_AUTOCAST_TOLERANCE if uses_autocast(plan) else TOLERANCES[dtype],
        HALF if plan.autocast else None,
        plan.input_gradient,
        lambda model, batch: [hook for one in plan.hooks for hook in one.put(model, batch)],
        lambda model, batch: [step.apply(model) for pattern, step in plan.rewrites if is_on(pattern, batch)],
        plan.evaluated,
    )
    compare_runs(plan.network(), training, goes_on=not observed)


def uses_autocast(plan: Plan) -> bool:
    return plan.dtype == 'float32' and (plan.autocast or 'Autocast' in repr(plan.steps))


def check_random_ones(theme: str, examples: int, observed: bool = False, derandomize: bool = True) -> None:
    """Compares the two runs of random networks of a theme; of those that differ, hypothesis shows the simplest."""

    @settings(
        max_examples=examples,
        derandomize=derandomize,
        database=None,
        deadline=None,
        # One failure, made simple and shown: to look for others, or for what they have in common, takes minutes.
        phases=[Phase.generate, Phase.shrink],
        report_multiple_bugs=False,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(plan=plans(THEMES[theme]))
    def run(plan: Plan) -> None:
        check(plan, observed)

    run()


@pytest.mark.parametrize('theme', THEMES)
def test_random_networks(theme):
    check_random_ones(theme, 100)


@pytest.mark.parametrize('theme', THEMES)
def test_random_networks_whose_units_are_observed(theme):
    check_random_ones(theme, 20, observed=True)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize('observed', [False, True])
@pytest.mark.parametrize('theme', THEMES)
def test_many_random_networks(theme, observed):
    """Other ones each time; ``--hypothesis-seed`` repeats some."""
    check_random_ones(theme, 400 if observed else 1000, observed, derandomize=False)
