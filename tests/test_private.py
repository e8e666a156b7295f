"""What the package touches of other libraries that they do not promise to keep: an upgrade fails here first."""

import ast
from collections.abc import Callable
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import composer_freezeout

from .test_ddp_wrapper import alone

PACKAGE = Path(composer_freezeout.__file__).parent

# By module. What objects have and their class has not is named after what makes them: see MAKERS.
PRIVATE: dict[str, list[str]] = {
    'costs/first_step.py': [
        'torch.autograd.graph.Node._sequence_nr',
    ],
    'costs/flops.py': [
        'torch.UntypedStorage._cdata',
        'torch.compile._torchdynamo_orig_callable',
        'torch.utils._python_dispatch',
        'torch.utils._pytree',
    ],
    'freezing/execution/compiled.py': [
        'torch._dynamo',
        'torch._dynamo.OptimizedModule._orig_mod',
        'torch.compile._torchdynamo_orig_callable',
        'torch.nn.Module._compiled_call_impl',
    ],
    'freezing/execution/ddp.py': [
        'torch.Tensor._backward_hooks',
        'torch.distributed.Logger._set_static_graph',
        'torch.distributed.Reducer._set_mixed_precision_param_dtype',
        'torch.distributed.Reducer._set_static_graph',
        'torch.nn.parallel.DistributedDataParallel._build_debug_param_to_name_mapping',
        'torch.nn.parallel.DistributedDataParallel._build_params_for_reducer',
        'torch.nn.parallel.DistributedDataParallel._comm_hooks',
        'torch.nn.parallel.DistributedDataParallel._ddp_init_helper',
        'torch.nn.parallel.DistributedDataParallel._delay_all_reduce_params',
        'torch.nn.parallel.DistributedDataParallel._delay_grad_buffer',
        'torch.nn.parallel.DistributedDataParallel._delay_grad_views',
        'torch.nn.parallel.DistributedDataParallel._delayed_all_reduce_hook',
        'torch.nn.parallel.DistributedDataParallel._get_ddp_logging_data',
        'torch.nn.parallel.DistributedDataParallel._has_rebuilt_buckets',
        'torch.nn.parallel.DistributedDataParallel._register_builtin_comm_hook',
        'torch.nn.parallel.DistributedDataParallel._remove_autograd_hooks',
        'torch.nn.parallel.DistributedDataParallel._static_graph_delay_allreduce_enqueued',
        'torch.nn.parallel.distributed._setup_mixed_precision_params._mp_param',
    ],
    'freezing/observing/graph.py': [
        'torch.autograd.graph.Node._sequence_nr',
    ],
    'freezing/observing/observer.py': [
        'torch.utils._python_dispatch',
    ],
    'freezing/observing/recorder.py': [
        'torch._C',
        'torch._C._current_graph_task_id',
        'torch._ops.OpOverload._schema',
        'torch.autograd._get_sequence_nr',
        'torch.utils._python_dispatch',
        'torch.utils._pytree',
    ],
    'freezing/observing/rehearsal.py': [
        'torch._ops.OpOverload._schema',
        'torch.utils._pytree',
    ],
    'freezing/observing/tensors.py': [
        'torch._C',
        'torch._C._functorch',
        'torch.utils._python_dispatch',
    ],
    'freezing/observing/uses.py': [
        'torch.autograd.graph.Node._input_metadata',
    ],
    'freezing/optimizer/check.py': [
        'torch.optim.Optimizer._optimizer_state_dict_pre_hooks',
    ],
    'freezing/optimizer/multi_tensor.py': [
        'torch.optim.Optimizer._group_tensors_by_device_and_dtype',
        'torch.optim.SGD._init_group',
        'torch.optim.optimizer._default_to_fused_or_foreach',
    ],
    'freezing/optimizer/scheduler_lists.py': [
        'torch.optim.lr_scheduler.SequentialLR._last_lr',
        'torch.optim.lr_scheduler.SequentialLR._schedulers',
    ],
    'freezing/optimizer/steps.py': [
        'torch._foreach_add',
        'torch._foreach_add_',
        'torch._foreach_addcdiv_',
        'torch._foreach_addcmul_',
        'torch._foreach_div_',
        'torch._foreach_lerp_',
        'torch._foreach_maximum_',
        'torch._foreach_mul_',
        'torch._foreach_neg',
        'torch._foreach_sqrt',
    ],
    'freezing/prefix/activation_checkpoints.py': [
        'torch._C',
        'torch._C._current_graph_task_id',
        'torch.utils.checkpoint._checkpoint_hook',
    ],
    'freezing/prefix/around_forward.py': [
        'torch.utils._pytree',
    ],
    'freezing/prefix/buffers.py': [
        'torch.utils._python_dispatch',
    ],
    'freezing/prefix/fold.py': [
        'torch.Tensor._version',
        'torch.nn.Conv2d._conv_forward',
        'torch.nn.Module._buffers',
        'torch.nn.Module._parameters',
    ],
    'freezing/prefix/folding.py': [
        'torch._C',
        'torch._C._functorch',
        'torch.nn.BatchNorm1d._check_input_dim',
        'torch.nn.Module._backward_hooks',
        'torch.nn.Module._backward_pre_hooks',
        'torch.nn.Module._forward_hooks',
        'torch.nn.Module._forward_pre_hooks',
        'torch.utils._pytree',
    ],
    'freezing/prefix/layer_run.py': [
        'torch.Tensor._version',
        'torch.nn.Module._parameters',
    ],
    'freezing/prefix/prefix.py': [
        'torch.nn.modules.batchnorm._BatchNorm',
    ],
    'freezing/prefix/starvation.py': [
        'torch._C',
        'torch._C._current_graph_task_id',
    ],
    'freezing/prefix/unread.py': [
        'torch.Tensor._make_wrapper_subclass',
        'torch.Tensor._use_count',
        'torch._C',
        'torch.utils._pytree',
    ],
    'step_time/counts.py': [
        'torch._dynamo',
        'torch.utils._python_dispatch',
        'torch.utils._pytree',
    ],
    'step_time/inference_graph.py': [
        'torch.nn.modules.batchnorm._BatchNorm',
    ],
    'step_time/measure.py': [
        'torch._dynamo',
    ],
    'step_time/with_layer_freezing.py': [
        'composer.algorithms.layer_freezing.layer_freezing._get_layers',
    ],
    'step_time/workload.py': [
        'torch.nn.modules.batchnorm._BatchNorm',
    ],
}

# Documented, though it looks otherwise.
NAMED_TUPLE = {'_asdict', '_fields', '_make', '_replace'}

# Strings that look like private names and are none, or that are names of our own.
WORDS = {'_P', '_T', '_bytes', '_freezeout_groups', '_logger', '_scheduler'}


def wrapper() -> DistributedDataParallel:
    with alone():
        return DistributedDataParallel(nn.Linear(1, 1), static_graph=True)


def mixed_parameter() -> torch.Tensor:
    module = nn.Linear(1, 1)
    settings = resolve_name('torch.nn.parallel.distributed._MixedPrecision')()
    resolve_name('torch.nn.parallel.distributed._setup_mixed_precision_params')(settings, module)
    return module.weight


def optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.ones(1)])


def schedulers() -> torch.optim.lr_scheduler.SequentialLR:
    of = optimizer()
    return torch.optim.lr_scheduler.SequentialLR(of, [torch.optim.lr_scheduler.ConstantLR(of)], [])


MAKERS: dict[str, Callable[[], Any]] = {
    'torch._dynamo.OptimizedModule': lambda: torch.compile(nn.Linear(1, 1), backend='eager'),
    'torch._ops.OpOverload': lambda: resolve_name('torch:ops.aten.add.Tensor'),
    'torch.autograd.graph.Node': lambda: torch.ones(1, requires_grad=True).exp().grad_fn,
    'torch.compile': lambda: torch.compile(torch.exp, backend='eager'),
    'torch.nn.Module': lambda: nn.Linear(1, 1),
    'torch.nn.parallel.DistributedDataParallel': wrapper,
    'torch.nn.parallel.distributed._setup_mixed_precision_params': mixed_parameter,
    'torch.optim.Optimizer': optimizer,
    'torch.optim.lr_scheduler.SequentialLR': schedulers,
}


def is_private(name: str) -> bool:
    return name.isidentifier() and name[0] == '_' and name[:2] not in ('_', '__') and name not in NAMED_TUPLE


def own(tree: ast.AST) -> set[str]:
    """What a module itself defines: functions, classes, variables, and attributes of its objects."""
    names = set()
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.Name(id=name, ctx=ast.Store()):
                names.add(name)
            case ast.Attribute(value=ast.Name(id='self' | 'cls'), attr=name, ctx=ast.Store()):
                names.add(name)
    return names


def slots(tree: ast.AST) -> set[ast.AST]:
    """Strings that name attributes of a class of the module's own."""
    return {
        string
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == '__slots__'
        for string in ast.walk(node.value)
    }


def touched(source: str) -> dict[str, int]:
    """Private names that are read of something else than the module's own objects, imported, or given as strings.

    Each with the first line that has it.
    """
    tree = ast.parse(source)
    ours, slotted = own(tree), slots(tree)
    lines: dict[str, int] = {}
    for node in ast.walk(tree):
        line, names = getattr(node, 'lineno', 0), []
        match node:
            case ast.Attribute(value=ast.Name(id='self' | 'cls')):
                pass
            case ast.Attribute(attr=name) if name not in ours:
                names = [name]
            case ast.ImportFrom(module=module, names=aliases):
                names = [*str(module).split('.'), *(alias.name for alias in aliases)]
            case ast.Import(names=aliases):
                names = [part for alias in aliases for part in alias.name.split('.')]
            case ast.Constant(value=str(text)) if node not in slotted:
                names = [text]
        for name in filter(is_private, names):
            lines[name] = min(line, lines.get(name, line))
    return lines


def found() -> dict[str, dict[str, int]]:
    return {
        path.relative_to(PACKAGE).as_posix(): touched(path.read_text(encoding='utf-8'))
        for path in PACKAGE.rglob('*.py')
    }


def differences(by_module: dict[str, dict[str, int]], table: dict[str, list[str]]) -> list[str]:
    """What to change in a table, a line each."""
    changes = []
    for module in sorted({*by_module, *table}):
        lines, entries = by_module.get(module, {}), table.get(module, [])
        known = {entry.rpartition('.')[2] for entry in entries} | WORDS
        changes += [f'{module}: add OWNER.{name}, see line {lines[name]}' for name in sorted({*lines} - known)]
        changes += [f'{module}: remove {entry}' for entry in entries if entry.rpartition('.')[2] not in lines]
    return changes


def exists(entry: str) -> bool:
    owner, _, name = entry.rpartition('.')
    try:
        resolve_name(entry)
    except (ImportError, AttributeError):
        return owner in MAKERS and hasattr(MAKERS[owner](), name)
    return True


def test_the_table_is_complete():
    changes = differences(found(), PRIVATE)
    assert not changes, 'PRIVATE has to change, or WORDS if it is no attribute:\n' + '\n'.join(changes)


def test_the_table_is_in_order():
    assert {module: sorted(set(entries)) for module, entries in PRIVATE.items()} == PRIVATE
    assert list(PRIVATE) == sorted(PRIVATE)
    assert set().union(*found().values()) >= WORDS


@pytest.mark.parametrize('entry', sorted({entry for entries in PRIVATE.values() for entry in entries}))
def test_it_is_still_there(entry):
    modules = [module for module, entries in PRIVATE.items() if entry in entries]
    assert exists(entry), f'{entry} is gone, and {", ".join(modules)} touches it'


def test_these_tests_can_fail():
    source = """
import torch._a
from torch._b import c as d
from torch import _e
class F:
    __slots__ = ('_k', '_g')
    def __init__(self, other): self._own, self._g = other._h, getattr(other, '_own')
    def read(self): return self.value._g, self._inherited, self.value._i, self.__dict__, self.value._replace(_j=_)
"""
    assert touched(source) == {'_a': 2, '_b': 3, '_e': 4, '_h': 7, '_own': 7, '_i': 8}
    assert differences({'m.py': {'_a': 2, '_b': 3, '_T': 4}}, {'m.py': ['x._a', 'y._c'], 'n.py': ['_d']}) == [
        'm.py: add OWNER._b, see line 3',
        'm.py: remove y._c',
        'n.py: remove _d',
    ]
    assert not any(map(exists, ('torch.optim.Optimizer._missing', 'torch._missing', '_missing')))
