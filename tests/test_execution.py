"""How a model runs is found once, and what differs stands in one class for each way."""

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from composer_freezeout.freezing.execution.compiled import DEFAULT_STAGES, Compiled
from composer_freezeout.freezing.execution.ddp import DDP
from composer_freezeout.freezing.execution.execution import Eager
from composer_freezeout.freezing.execution.find import execution_of
from composer_freezeout.freezing.execution.fsdp import FSDP

from .networks import chain
from .test_ddp_wrapper import alone


def test_an_eager_model_needs_nothing():
    model = chain()
    execution = execution_of(model)
    assert type(execution) is Eager and execution.module is model
    assert execution.shows_steps and execution.runs_as_written and execution.runs_hooks and execution.counts_flops
    assert execution.stage_limit(None) is None and execution.stage_limit(3) == 3
    assert execution.metrics() == {}


def test_what_ddp_wraps_is_unwrapped():
    model = chain()
    with alone():
        execution = execution_of(DistributedDataParallel(model))
    assert type(execution) is DDP and execution.module is model and execution.runs_as_written


@pytest.mark.parametrize('wrap', [lambda model: model, DistributedDataParallel])
def test_a_compiled_model_runs_in_another_way_besides(wrap):
    model = chain()
    with alone():
        wrapped = wrap(model)
    wrapped.compile()
    execution = execution_of(wrapped)
    assert type(execution) is Compiled and execution.module is model
    assert not execution.shows_steps and not execution.runs_as_written and not execution.runs_hooks
    assert execution.stage_limit(None) == DEFAULT_STAGES and execution.stage_limit(3) == 3
    assert list(execution.metrics()) == ['compile_seconds']


def test_a_compiled_wrapper_is_started_anew_and_compiled_anew(monkeypatch):
    model = chain()
    forgotten = []
    monkeypatch.setattr(torch.compiler, 'reset', lambda: forgotten.append(True))
    with alone():
        wrapper = DistributedDataParallel(model)
        wrapper.compile()
        before = wrapper.reducer
        model[0].requires_grad_(False)
        execution_of(wrapper).after_freeze([])
        assert wrapper.reducer is not before and forgotten == [True]


def test_what_is_compiled_out_of_sight_can_be_said_to_be():
    assert type(execution_of(chain(), compiled=True)) is Compiled


def test_a_sharded_model_has_its_shards_back_after_a_rehearsal():
    model = chain()
    with alone():
        for layer in model:
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                fully_shard(layer)
        fully_shard(model, reshard_after_forward=False)
        execution = execution_of(model)
        assert type(execution) is FSDP and not execution.runs_as_written and not execution.counts_flops
        with execution.rehearsing():
            model(torch.randn(2, 3, 8, 8))
        assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
