"""What a step costs with units frozen, in five ways: the counts, on the smallest network."""

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from composer.core import Event

from composer_freezeout.costs.activations import saved_bytes
from composer_freezeout.freezing.execution.compiled import DEFAULT_STAGES
from composer_freezeout.method.schedule import freeze_times
from composer_freezeout.step_time import bars as step_bars
from composer_freezeout.step_time import command as step_time
from composer_freezeout.step_time import counts as step_counts
from composer_freezeout.step_time import inference_graph, prepare
from composer_freezeout.step_time import memory as step_memory
from composer_freezeout.step_time import report as step_report
from composer_freezeout.step_time import result as step_result
from composer_freezeout.step_time import variants as step_variants
from composer_freezeout.step_time import workload as step_workload
from composer_freezeout.step_time.command_line import OPTIMIZER_NAMES
from composer_freezeout.step_time.record import VARIANTS, Conditions, Measurement, VariantName
from composer_freezeout.step_time.with_freezeout import WithFreezeOut

from .limits import no_file_beyond
from .networks import DenseNet, ResidualNet, chain

ROOT = Path(__file__).parent.parent

SMALL = [
    '--model',
    'resnet8',
    '--image-size',
    '8',
    '--batch-size',
    '4',
    '--device',
    'cpu',
    '--repeats',
    '3',
    '--restarts',
    '2',
]
STAGES = (0, 3)


@pytest.fixture(scope='module')
def measured(tmp_path_factory) -> SimpleNamespace:
    out = tmp_path_factory.mktemp('step_time') / 'out'
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        assert step_time.main([*SMALL, '--stages', '0,3', '--out', str(out)]) == 0
    record = json.loads((out / 'step_time.json').read_text())
    return SimpleNamespace(out=out, record=record, rows={(r['variant'], r['units_frozen']): r for r in record['rows']})


def workload(model: str = 'resnet8', image_size: int = 8, **changes) -> step_workload.Workload:
    given = conditions(model=model, batch_size=4, image_size=image_size, num_classes=4, seed=3)
    return replace(step_workload.make_workload(given, torch.device('cpu'), steps=2), **changes)


def conditions(**given) -> Conditions:
    usual = {'model': 'made', 'batch_size': 2, 'image_size': 8, 'num_classes': 10, 'seed': 17, 'optimizer': 'sgd'}
    return Conditions(device='cpu', precision='fp32', channels_last=False, **{'compile': None, **usual, **given})


class Losses(step_workload.Probe):
    def __init__(self) -> None:
        self.values: list[float] = []

    def computed(self, loss: torch.Tensor) -> None:
        self.values.append(loss.item())


def losses(variant: step_workload.Variant, visits: int = 2) -> list[float]:
    probe = Losses()
    for _ in range(visits):
        variant.visit(probe)
    variant.close()
    return probe.values


# ---------------------------------------------------------------------------------------------------------------------
# The record
# ---------------------------------------------------------------------------------------------------------------------


def test_every_variant_was_timed_at_every_stage(measured):
    frozen = [(name, k) for name in ('loop', 'bound', 'freezeout', 'layer_freezing') for k in STAGES]
    assert sorted(measured.rows) == sorted([*frozen, ('composer', 0)])
    for row in measured.rows.values():
        seconds = np.asarray(row['seconds'])
        assert seconds.shape == (2, 1, 2)  # restarts, rounds, steps
        assert seconds.min() > 0
    assert [len(measured.rows['freezeout', k]['algorithm_seconds']) for k in STAGES] == [4, 4]
    assert [len(measured.rows['freezeout', k]['algorithm_seconds_alone']) for k in STAGES] == [400, 400]


def test_the_record_says_what_was_measured_and_where(measured):
    assert measured.record['command'] == (
        'composer-freezeout step-time --model resnet8 --image-size 8 --batch-size 4 --device cpu --repeats 3 '
        f'--restarts 2 --stages 0,3 --out {measured.out}'
    )
    assert measured.record['settings']['model'] == 'resnet8'
    assert set(measured.record['environment']) == {'versions', 'hardware', 'git', 'openmp'}
    assert len(measured.record['units']) == 8
    assert sum(unit['parameters'] for unit in measured.record['units']) > 70_000


# ---------------------------------------------------------------------------------------------------------------------
# Counts
# ---------------------------------------------------------------------------------------------------------------------


def counts(measured, variant: str, count: str) -> list[int]:
    return [measured.rows[variant, k]['counts'][count] for k in STAGES]


def test_freezing_saves_as_many_operators_in_composer_as_in_the_loop_and_folds_norms(measured):
    composer = measured.rows['composer', 0]['counts']['operators']
    ours, loop = counts(measured, 'freezeout', 'operators'), counts(measured, 'loop', 'operators')
    assert ours[0] == composer
    # A BatchNorm that is folded into the convolution before it saves two.
    assert [a - b for a, b in zip(ours, loop, strict=True)] == [composer - loop[0] - 2 * k for k in STAGES]
    assert loop[1] < loop[0]


@pytest.mark.parametrize('count', ['convolution_backwards', 'autograd_nodes', 'saved_bytes'])
def test_what_the_backward_pass_needs_is_as_in_the_loop(measured, count):
    assert counts(measured, 'freezeout', count) == counts(measured, 'loop', count)
    assert counts(measured, 'bound', count) == counts(measured, 'loop', count)


def test_memory_is_counted_as_long_as_something_holds_it():
    present = torch.ones(50)
    with step_counts._Memory([present]) as memory:
        views = present.split(10)
        first = torch.ones(1000)
        second = first.view(10, 100) + 1
        assert memory.bytes == memory.peak == 8000
        first = second.t()
        assert (memory.bytes, memory.peak) == (4000, 8000)
        del first, second, views
        assert (memory.bytes, memory.peak) == (0, 8000)


def test_freezing_saves_as_much_memory_as_in_the_loop():
    made = workload(image_size=32)

    def saved(name: VariantName) -> int:
        make = [partial(step_variants.make_variant, name=name, units_frozen=frozen) for frozen in (0, 4)]
        first, second = (step_counts.count_memory(of_it, made)['peak_memory_bytes'] for of_it in make)
        return first - second

    # Not quite: weights that are folded are there twice.
    assert 0.9 < saved('freezeout') / saved('loop') <= 1
    assert saved('loop') > 500_000


def test_convolutions_leave_the_backward_pass(measured):
    # Seven of them, of which the first has no gradient of its input.
    assert counts(measured, 'loop', 'convolution_backwards') == [7, 4]


def test_the_optimizer_of_the_loop_has_one_group(measured):
    # Decay, momentum, gradient, parameters: a multi-tensor call for each.
    assert counts(measured, 'loop', 'optimizer_operators') == [4, 4]
    assert measured.rows['composer', 0]['counts']['optimizer_operators'] == 4


def test_the_bound_has_fewer_operators_where_batchnorm_is_folded(measured):
    assert (measured.rows['bound', 3]['norms_folded'], measured.rows['bound', 3]['norms_unfolded']) == (3, 0)
    assert counts(measured, 'bound', 'operators')[0] == counts(measured, 'loop', 'operators')[0]
    assert counts(measured, 'bound', 'operators')[1] < counts(measured, 'loop', 'operators')[1]


def test_frozen_units_run_the_operators_of_the_inference_graph(measured):
    operators = {key: row['counts']['operators'] for key, row in measured.rows.items()}
    added = operators['composer', 0] - operators['loop', 0]
    for frozen in STAGES:
        assert operators['freezeout', frozen] - added == operators['bound', frozen]
    assert operators['bound', 3] < operators['loop', 3]


def test_frozen_attention_runs_the_operators_of_the_inference_graph():
    made = workload('vit_small', image_size=16)

    def operators(name: VariantName, frozen: int) -> int:
        make = partial(step_variants.make_variant, name=name, units_frozen=frozen)
        return step_counts.count_step(make, made)['operators']

    added = operators('composer', 0) - operators('loop', 0)
    assert operators('freezeout', 14) - added == operators('bound', 14) < operators('loop', 14)


def test_layer_freezing_freezes_as_many_parameters_as_come_next(measured):
    # Three convolutions, each with its normalisation, which is a layer of its own there.
    assert [measured.rows['layer_freezing', k]['layers_frozen'] for k in STAGES] == [0, 6]
    assert counts(measured, 'layer_freezing', 'convolution_backwards') == [7, 4]
    # Its normalisation goes on updating its statistics.
    assert counts(measured, 'layer_freezing', 'operators')[1] > counts(measured, 'freezeout', 'operators')[1]


# ---------------------------------------------------------------------------------------------------------------------
# The variants compute the same
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('units_frozen', [0, 3, 7])
def test_freezeout_is_held_at_a_number_of_units(units_frozen):
    """From the second visit on the frozen units are out of the optimizer, too, and their statistics stand still."""
    task = workload()
    variant = WithFreezeOut(task, units_frozen)
    loop = step_variants.make_variant(task, 'loop', units_frozen)
    assert losses(variant) == pytest.approx(losses(loop), abs=1e-3)
    frozen = [name for unit in task.units[:units_frozen] for name in unit.parameters]
    assert [name for name, p in variant.model.named_parameters() if not p.requires_grad] == frozen
    optimizer = variant.trainer.state.optimizers[0]
    held = sum(len(group['params']) for group in optimizer.param_groups)
    assert held == sum(p.requires_grad for p in variant.model.parameters())
    for name in (name for unit in task.units[:units_frozen] for name in unit.norms):
        norms = (model.get_submodule(name) for model in (variant.model, task.model))
        assert torch.equal(*(norm.running_mean for norm in norms))


def test_the_events_of_a_step_alone():
    variant = WithFreezeOut(workload(), 3)
    variant.visit(step_workload.Probe())
    told = variant.events
    assert [told.count(event) for event in (Event.BATCH_START, Event.BEFORE_FORWARD, Event.BATCH_END)] == [1, 1, 1]
    assert not {Event.FIT_START, Event.EPOCH_START, Event.EPOCH_END} & {*told}
    seconds = variant.algorithm_alone(3)
    variant.close()
    assert len(seconds) == 3 and min(seconds) > 0


def test_learning_rates_of_units_differ_as_in_training():
    """With equal ones, units could be stepped together that are not in training."""
    variant = WithFreezeOut(workload(), 0)
    variant.visit(step_workload.Probe())
    groups = variant.trainer.state.optimizers[0].param_groups
    assert len({group['lr'] for group in groups}) == len(freeze_times(8))
    variant.close()


def vision_transformer() -> torch.nn.Module:
    torch.manual_seed(0)
    network = torchvision.models.VisionTransformer(8, 4, 2, 2, 16, 32, num_classes=4)
    torch.nn.init.normal_(network.heads[-1].weight)
    return network


@pytest.mark.parametrize(
    ('network', 'trained', 'folded', 'unfolded'),
    [
        (chain, ('head',), 3, 0),
        (ResidualNet, ('blocks.2', 'head'), 5, 0),
        # What is normalised there is also passed on as it is.
        (DenseNet, ('layers.2', 'head'), 0, 2),
        (vision_transformer, ('encoder.ln', 'heads'), 0, 0),
    ],
    ids=['chain', 'residual', 'dense', 'transformer'],
)
def test_the_inference_graph_computes_the_same(network, trained, folded, unfolded):
    torch.manual_seed(1)
    network = network()
    images = torch.randn(4, 3, 8, 8)
    network.train()(images)  # statistics that are not those of the beginning
    for name, module in network.named_modules():
        if not any(name.startswith(prefix) or prefix.startswith(f'{name}.') for prefix in trained) and name:
            module.eval()
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)
    for parameter in network.parameters(recurse=False):
        parameter.requires_grad_(False)
    divided, *counted = inference_graph.inference_prefix(network)
    assert counted == [folded, unfolded]
    reference = network(images)
    torch.testing.assert_close(divided(images), reference, rtol=1e-4, atol=1e-5)
    reference.square().mean().backward()
    expected = {name: p.grad for name, p in network.named_parameters() if p.requires_grad}
    network.zero_grad()
    divided(images).square().mean().backward()
    for name, gradient in expected.items():
        torch.testing.assert_close(network.get_parameter(name).grad, gradient, rtol=1e-4, atol=1e-5)


def test_compiled_variants_do_not_share_code():
    """Each compiles its own, as in a training, although torch would find that of another to fit."""
    task = workload(compile_backend='eager')
    torch.compiler.reset()
    graphs = []
    for name in ('loop', 'bound'):
        before = step_counts.compiled_graphs()
        losses(step_variants.make_variant(task, name, 0), visits=1)
        graphs.append(step_counts.compiled_graphs() - before)
    torch.compiler.reset()
    assert graphs == [1, 1]


# ---------------------------------------------------------------------------------------------------------------------
# The report
# ---------------------------------------------------------------------------------------------------------------------


def test_the_report_is_made_from_the_record_to_the_byte(measured, tmp_path):
    shutil.copy(measured.out / 'step_time.json', tmp_path)
    assert step_time.main(['--plot-only', str(tmp_path)]) == 0
    for name in ('step_time.md', 'step_time.png'):
        assert (tmp_path / name).read_bytes() == (measured.out / name).read_bytes()


def result(slower: float = 0.0, compile_backend: str | None = None, processes: int = 1, **saving) -> step_result.Result:
    """Three units, of which no step took any other time than it should have; ``freezeout`` may take longer."""
    steps = {'loop': (0.3, 0.2, 0.1), 'bound': (0.3, 0.19, 0.08), 'layer_freezing': (0.35, 0.3, 0.2)}
    ours = tuple(step + 0.05 + slower for step in steps['loop'])
    rows = []
    for name, seconds in {**steps, 'freezeout': ours, 'composer': (0.35,)}.items():
        for frozen, step in enumerate(seconds):
            row = {'variant': name, 'units_frozen': frozen, 'seconds': [[[step, step], [step, step]]] * 2}
            row['counts'] = {'optimizer_operators': 4, 'operators': 90 - 10 * frozen, 'peak_memory_bytes': 100 - frozen}
            if processes > 1:
                row['counts']['bytes_allreduced'] = 1000 - 100 * frozen
            row |= {'norms_folded': frozen, 'norms_unfolded': 0}
            row |= {'algorithm_seconds': [50e-6] * 4, 'algorithm_seconds_alone': [20e-6] * 4}
            rows.append(row)
    hardware = {'cpu': 'one', 'threads': 1, 'gpu': None}
    record = {
        'format': 1,
        'command': '',
        'settings': conditions(compile=compile_backend, processes=processes).model_dump(),
        'environment': {'versions': {'torch': '2', 'composer': '0'}, 'hardware': hardware, 'git': None},
        'units': [{'name': 'unit', 'parameters': 9}] * 3,
        'memory_kept': False,
        'graphs_while_timed': 0,
        'rows': rows,
    }
    return step_result.Result(Measurement.model_validate({**record, **saving}))


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason="another C library than GNU's")
def test_large_tensors_are_made_of_memory_that_is_there(measured):
    import resource

    assert measured.record['memory_kept']
    assert step_memory.keep_memory()
    faults = []
    for _ in range(24):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(10_000_000)  # 40 MB, which are returned to the system otherwise, each time
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    assert max(faults[-5:]) < 1000  # of 9,766 pages


def test_bars_on_steps_that_are_known():
    before, calls, share, python, alone, bound, without, counted, memory, memory_without = step_bars.bars(result())
    assert (before.value, calls.value, share.value) == pytest.approx((1.0, 1.0, 1.0))
    assert (python.value, alone.value) == pytest.approx((50.0, 20.0))
    assert (memory.value, memory_without.value) == pytest.approx((1.0, 1.0))
    assert (bound.value, without.value) == pytest.approx((0.15 / 0.08, 0.1 / 0.08))
    assert [bar.met for bar in (before, calls, share, python, alone, memory, memory_without)] == [True] * 7
    assert [bar.met for bar in (bound, without)] == [False] * 2
    assert (counted.value, counted.met) == (pytest.approx(1), True)


def test_memory_without_what_composer_adds():
    found = result()
    for variant, frozen in (('composer', 0), ('freezeout', 1)):
        found.rows[variant, frozen].counts['peak_memory_bytes'] += 5
    memory, without = step_bars.bars(found)[-2:]
    assert (memory.value, without.value) == pytest.approx((104 / 99, 1.0))
    assert (memory.met, without.met) == (False, True)


def test_compiled_units_that_wait_for_their_stage_save_less():
    eager = float(result().saving('freezeout')[0])
    found = result(compile_backend='inductor', eager_saving=eager)
    each, staged = step_bars.bars(found)[-2:]
    assert each.value == pytest.approx(1)
    assert staged.value == pytest.approx(found.saving('freezeout', DEFAULT_STAGES)[0] / eager)
    second = freeze_times(3)[1]
    mean = 0.3 * second + 0.1 * (1 - second)
    assert found.mean_step('loop', max_stages=1)[0] == pytest.approx(mean)


def test_records_side_by_side(measured, capsys):
    assert step_time.main(['--table', str(measured.out), str(measured.out)]) == 0
    heading, rule, *rows = capsys.readouterr().out.splitlines()
    assert heading == '| | bar | resnet8, 4 × 8² | resnet8, 4 × 8² |'
    assert rule.count('---') == 4
    bars = step_bars.bars(step_result.load_result(measured.out))
    assert [row.split(' | ')[0] for row in rows] == [f'| {bar.name}' for bar in bars]
    assert rows[2].endswith('| ≥ 95.0% | not measured | not measured |')
    assert '≤ 1.50× | 1.00× | 1.00× |' in rows[1]


def test_a_bar_of_one_record_alone_is_empty_beside_another():
    one, two = result(), result(processes=2, slower=0.3, one_saving=0.5)
    *_, kept, reduced, end = step_report.side_by_side([one, two]).split('\n')
    assert end == ''
    assert kept.startswith("| share of one process's relative saving that is kept, 2 processes | ≥ 95.0% |  | ")
    assert kept.endswith('%, **not met** |')
    assert (
        reduced
        == '| bytes all-reduced with half the units frozen, against the loop | ≥ 0.9800×, ≤ 1.0200× |  | 1.0000× |'
    )


def test_a_run_is_weighted_as_the_schedule_passes_through_it():
    first, second, _ = freeze_times(3)
    mean = 0.3 * first + 0.2 * (second - first) + 0.1 * (1 - second)
    assert result().mean_step('loop')[0] == pytest.approx(mean)
    assert result().saving('loop')[0] == pytest.approx(1 - mean / 0.3)
    # What FreezeOut costs in each step is lost of what it saves.
    share = step_bars.bars(result(slower=0.01))[2]
    assert share.value == pytest.approx((0.3 - mean - 0.01) / (0.3 - mean))


def test_two_processes_are_compared_with_one():
    one = float(result().saving('freezeout')[0])
    kept, reduced = step_bars.bars(result(processes=2, one_saving=one))[-2:]
    assert kept.name == "share of one process's relative saving that is kept, 2 processes"
    assert (kept.value, kept.met, reduced.value, reduced.met) == (pytest.approx(1), True, 1, True)
    # What is added to every step, as by exchanging gradients, makes the relative saving smaller.
    slower = result(processes=2, one_saving=one, slower=0.1)
    kept = step_bars.bars(slower)[-2]
    assert (kept.value, kept.met) == (pytest.approx(slower.saving('freezeout')[0] / one), False)


def test_more_bytes_than_in_the_loop_miss_the_bar():
    found = result(processes=2, one_saving=None)
    found.rows['freezeout', 1].counts['bytes_allreduced'] = 1000
    reduced = step_bars.bars(found)[-1]
    assert (reduced.value, reduced.met) == (pytest.approx(10 / 9), False)


@pytest.mark.parametrize(
    ('saving', 'note'), [(None, 'needs --one'), (-0.1, 'nothing was saved in the record of --one')]
)
def test_without_a_saving_of_one_process_there_is_no_share(saving, note):
    kept = step_bars.bars(result(processes=2, one_saving=saving))[-2]
    assert (kept.value, kept.note) == (None, note)


def timed(found: step_result.Result, seconds: dict[tuple[str, int], np.ndarray]) -> step_result.Result:
    """The same with other seconds."""
    rows = [
        row.model_copy(update={'seconds': seconds[row.variant, row.units_frozen].tolist()}) for row in found.record.rows
    ]
    return step_result.Result(found.record.model_copy(update={'rows': rows}))


def test_a_slow_round_is_no_spread_of_a_ratio():
    steady, slow = result(), result()
    for seconds in slow.seconds.values():
        seconds[:, 1] *= 3
    slow = timed(slow, slow.seconds)
    assert step_bars.bars(slow)[0].interval is None
    assert step_bars.interval(slow.step('loop')) != step_bars.interval(steady.step('loop'))


def test_a_slow_restart_of_one_variant_is_spread():
    found = result()
    found.seconds['composer', 0] *= np.array([1.0, 1.1]).reshape(2, 1, 1)
    before = step_bars.bars(timed(found, found.seconds))[0]
    assert before.interval == pytest.approx((1 / 1.1, 1.0))


def test_what_was_not_measured_has_no_value(measured):
    bars = step_bars.bars(step_result.load_result(measured.out))
    assert [bar.value is None for bar in bars] == [False, False, True, False, False, True, True, True, False, False]
    assert bars[2].note == 'needs 0 and 7 among --stages'
    assert bars[2].met is None
    text = (measured.out / 'step_time.md').read_text()
    assert '| not measured |' in text
    assert text.startswith('# Step time: resnet8, batches of 4 images of 8², fp32\n')


# ---------------------------------------------------------------------------------------------------------------------
# Arguments
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--model', 'resnet9'], 'depth must be 6n+2'),
        (['--model', 'resnet_56'], "unknown name 'resnet_56'"),
        (['--stages', '0,8'], '--stages: 8 of 8 units cannot be frozen; at most 7 can'),
        (['--stages', '1'], '--stages: a count must be at least 2, got 1'),
        (
            ['--stages', 'all'],
            "--stages: must be numbers with commas between them, such as 0,10,55, or a count, got 'a",
        ),
        (['--precision', 'amp_bf16'], '--precision: Composer has no amp_bf16 on a CPU; use fp32'),
        (['--eager', 'nowhere'], '--eager: only a compiled run is compared with an eager one; add --compile'),
        (['--eager', 'nowhere', '--compile'], 'not a record of step times (No such file or directory)'),
        (['--one', 'nowhere'], '--one: only a run of several processes is compared with one of one process; add'),
        (['--one', 'nowhere', '--processes', '2'], 'not a record of step times (No such file or directory)'),
        (['--processes', '2', '--stages', '0,8'], '--stages: 8 of 8 units cannot be frozen; at most 7 can'),
        (['--model', 'vgg16_cifar'], 'vgg16_cifar cannot handle images of 8x8 pixels'),
        (['--model', 'vit_small', '--image-size', '17'], '--model: vit_small cannot handle images of 17x17 pixels: In'),
        (['--image-size', '100000'], '--batch-size: 4 images of 100000x100000 and their activations in a step of resn'),
        (['--batch-size', '1000000000'], 'images of 8x8 and their activations in a step of resnet8 take '),
        (['--num-classes', str(10**30)], '--num-classes: must be at most 2147483647, got 1000000000000000000000000000'),
        (['--seed', str(2**63)], '--seed: must be at most 9223372036854775807, got 9223372036854775808'),
        (['--compile', 'inductr'], "--compile: torch has no backend 'inductr'; did you mean 'inductor'?"),
        (['--stages', '9' * 5000], '--stages: must be numbers with commas between them, such as 0,10,55, or a count'),
    ],
)
def test_bad_arguments(arguments, message, tmp_path, capsys):
    assert step_time.main([*SMALL, '--out', str(tmp_path / 'out'), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count('\n') == 1
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--repeats', '0', '--out', 'x'], 'must be a whole number of at least 1'),
        (['--processes', '0', '--out', 'x'], 'must be a whole number of at least 1'),
        (['--batch-size', '1', '--out', 'x'], 'must be a whole number of at least 2'),
        ([], 'one of the arguments --out --plot-only --table is required'),
    ],
)
def test_arguments_that_the_parser_refuses(arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        step_time.main([*SMALL, *arguments])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_a_gpu_that_is_not_there(tmp_path, capsys):
    if torch.cuda.is_available():
        pytest.skip('there is one')
    assert step_time.main([*SMALL, '--device', 'gpu', '--out', str(tmp_path / 'out')]) == 2
    assert capsys.readouterr().err == '--device: there is no GPU here; use cpu\n'


def test_a_record_is_not_overwritten_unless_told_to(measured, capsys):
    before = (measured.out / 'step_time.json').read_bytes()
    assert step_time.main([*SMALL, '--out', str(measured.out)]) == 2
    assert 'is there already; choose another folder, or use --overwrite' in capsys.readouterr().err
    assert (measured.out / 'step_time.json').read_bytes() == before


def damaged(record: dict[str, Any]) -> dict[str, str]:
    """Records that are none any more, by what is wrong with them."""
    text, row = json.dumps(record), record['rows'][0]
    without = {
        key: {k: v for k, v in record.items() if k != key} for key in ('settings', 'environment', 'units', 'rows')
    }
    changed = {
        'a row': {**record, 'rows': record['rows'][1:]},
        'steps': {**record, 'rows': [{**row, 'seconds': [[[1.0]]]}, *record['rows'][1:]]},
        'counts': {**record, 'rows': [{**row, 'counts': {}}, *record['rows'][1:]]},
        'a number': {**record, 'rows': [{**row, 'seconds': [[['slow']]]}, *record['rows'][1:]]},
        'threads': {**record, 'environment': {**record['environment'], 'hardware': {'cpu': 'x', 'gpu': None}}},
        'units': {**record, 'units': record['units'][:2]},
    }
    return {
        'half of it': text[: len(text) // 2],
        'brackets': '[' * 100_000,
        'no text': '\ud800',
        **{key: json.dumps(content) for key, content in {**without, **changed}.items()},
    }


@pytest.mark.parametrize('option', ['--plot-only', '--table', '--eager', '--one'])
def test_a_damaged_record_is_told_in_a_line(option, measured, tmp_path, capsys):
    folder = tmp_path / 'damaged'
    shutil.copytree(measured.out, folder)
    summary = (folder / 'step_time.md').read_bytes()
    others = {'--eager': ['--compile'], '--one': ['--processes', '2']}
    for name, content in damaged(measured.record).items():
        (folder / 'step_time.json').write_text(content, errors='surrogatepass')
        more = [*SMALL, '--out', str(tmp_path / 'out'), *others[option]] if option in others else []
        assert step_time.main([option, str(folder), *more]) == 2, name
        error = capsys.readouterr().err
        assert f'{folder / "step_time.json"}: not a record of step times (' in error, name
        assert error.count('\n') == 1, name
    assert (folder / 'step_time.md').read_bytes() == summary
    assert not (tmp_path / 'out').exists()


def test_a_full_disk_loses_no_report(measured, tmp_path, capsys):
    folder = tmp_path / 'out'
    shutil.copytree(measured.out, folder)
    (folder / 'step_time.md').write_text('the one before')
    with no_file_beyond(1000):
        assert step_time.main(['--plot-only', str(folder)]) == 2
    assert capsys.readouterr().err == (
        f'--out: {folder / "step_time.md"} cannot be written: File too large; choose another folder\n'
    )
    assert (folder / 'step_time.md').read_text() == 'the one before'
    assert sorted(path.name for path in folder.iterdir()) == ['step_time.json', 'step_time.md', 'step_time.png']


def test_a_place_that_cannot_be_written_to_is_told_before_anything_is_measured(capsys):
    for place in ('/dev/null/out', '/proc/out'):
        assert step_time.main([*SMALL, '--out', place]) == 2
        out, error = capsys.readouterr()
        assert out == '' and error.startswith('--out: ') and error.count('\n') == 1


def test_steps_with_none_frozen_need_not_be_measured(measured, tmp_path):
    rows = [row for row in measured.record['rows'] if row['units_frozen'] or row['variant'] == 'composer']
    (tmp_path / 'step_time.json').write_text(json.dumps({**measured.record, 'rows': rows}))
    assert step_time.main(['--plot-only', str(tmp_path)]) == 0
    assert 'needs 0 among --stages' in (tmp_path / 'step_time.md').read_text()
    assert step_result.load_result(tmp_path).measured == [3]


def test_each_variant_is_made_measured_and_drawn():
    assert list(step_variants.MAKERS) == list(VARIANTS)
    assert set(step_report._STYLES) == set(VARIANTS)
    assert set(OPTIMIZER_NAMES) == set(step_workload.OPTIMIZERS)


def test_activations_are_counted_without_making_them(measured):
    made = workload(image_size=8)
    counted = saved_bytes(made.model, made.batch)
    loop = step_counts.count_step(partial(step_variants.make_variant, name='loop', units_frozen=0), made)
    assert counted == pytest.approx(loop['saved_bytes'], rel=0.01)


@pytest.mark.parametrize('content', [None, '{', '{"units": []}', '[]'])
def test_a_folder_without_a_record(content, tmp_path, capsys):
    if content is not None:
        (tmp_path / 'step_time.json').write_text(content)
    assert step_time.main(['--plot-only', str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert 'not a record of step times' in error
    assert error.count('\n') == 1


@pytest.mark.parametrize(
    ('text', 'num_units', 'stages'),
    [
        (None, 8, list(range(8))),
        ('5', 56, [0, 14, 28, 41, 55]),
        ('20', 3, [0, 1, 2]),
        ('5,0', 56, [0, 5]),
    ],
)
def test_stages(text, num_units, stages):
    assert prepare.chosen_stages(text, num_units) == stages


# ---------------------------------------------------------------------------------------------------------------------
# Several processes, and what they are compared with
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def other_run(measured, tmp_path) -> Callable[..., Path]:
    """Writes what might be the record of another run, with 0, 3 and 7 units frozen."""

    def write(threads: int | None = None, **settings: object) -> Path:
        record = json.loads(json.dumps(measured.record))
        record['rows'] += [{**row, 'units_frozen': 7} for row in record['rows'] if row['units_frozen'] == 3]
        record['settings'] |= settings
        for row in record['rows']:
            row['counts'].setdefault('bytes_allreduced', 0)
        record['environment']['hardware']['threads'] = threads or torch.get_num_threads()
        folder = tmp_path / 'other'
        folder.mkdir()
        (folder / 'step_time.json').write_text(json.dumps(record))
        return folder

    return write


@pytest.mark.parametrize(
    ('other', 'message'),
    [
        ({'batch_size': 8}, 'batch_size 8, not 4; choose a record that differs in processes only'),
        ({'processes': 3}, 'processes 3, not 1; choose a record that differs in processes only'),
        ({'threads': 77}, f'threads 77, not {torch.get_num_threads()}; choose'),
        ({'compile': 'eager'}, "compile 'eager', not None; choose"),
        ({}, 'was measured at other numbers of frozen units; use --stages 0,3,7'),
    ],
)
def test_another_run_than_that_of_one_process(other, message, other_run, tmp_path, capfd):
    arguments = ['--processes', '2', '--one', str(other_run(**other)), '--stages', '0,7']
    assert step_time.main([*SMALL, *arguments, '--out', str(tmp_path / 'out')]) == 2
    out, error = capfd.readouterr()
    assert out == ''  # no process was started
    assert error.startswith('--one: ') and message in error and error.count('\n') == 1


def test_another_run_than_that_in_eager_execution(other_run, tmp_path, capfd):
    arguments = ['--compile', '--eager', str(other_run(optimizer='adamw')), '--out', str(tmp_path / 'out')]
    assert step_time.main([*SMALL, *arguments]) == 2
    assert "optimizer 'adamw', not 'sgd'; choose a record that differs in compile only" in capfd.readouterr().err


def test_a_record_without_both_ends_tells_no_saving(measured, tmp_path, capsys):
    arguments = ['--processes', '2', '--one', str(measured.out), '--out', str(tmp_path / 'out')]
    assert step_time.main([*SMALL, *arguments]) == 2
    assert 'was not measured with 0 and 7 units frozen\n' in capsys.readouterr().err


def test_a_record_of_before_there_were_several_processes(other_run):
    folder = other_run()
    record = json.loads((folder / 'step_time.json').read_text())
    del record['settings']['processes'], record['one_saving']
    found = step_result.Result(Measurement.model_validate(record))
    assert found.processes == 1
    assert len(step_bars.bars(found)) == 10


def test_more_processes_than_were_asked_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('WORLD_SIZE', '3')
    monkeypatch.setattr('torch.distributed.is_initialized', lambda: False)
    assert step_time.main([*SMALL, '--processes', '2', '--out', str(tmp_path / 'out')]) == 2
    message = '--processes: must be 3 in 3 processes that a launcher started, got 2\n'
    assert capsys.readouterr().err == message


def test_a_process_that_fails_ends_all_with_its_message(tmp_path, monkeypatch, capfd):
    script = tmp_path / 'script.py'
    script.write_text(
        'import os, sys, time\n'
        'time.sleep(60 * (os.environ["RANK"] == "0"))\n'
        'sys.exit(print(f"{sys.argv[1:]} went wrong in {os.environ[\'RANK\']}", file=sys.stderr) or 3)\n'
    )
    monkeypatch.setattr(step_time, 'MODULE', 'script')
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    assert step_time.launch(2, ['--model', 'x y']) != 0
    assert "['--model', 'x y'] went wrong in 1" in ''.join(capfd.readouterr())


@pytest.mark.slow
def test_two_processes(other_run, tmp_path):
    one, out = other_run(threads=1), tmp_path / 'out'
    arguments = [*SMALL, '--stages', '0,3,7', '--processes', '2', '--one', str(one), '--out', str(out)]
    done = subprocess.run(
        [sys.executable, 'benchmarks/step_time.py', *arguments],
        cwd=ROOT,
        env={**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert done.stdout.count('Warming up, 1 of 2.') == 1
    assert "share of one process's relative saving that is kept, 2 processes" in done.stdout
    record = json.loads((out / 'step_time.json').read_text())
    assert record['settings']['processes'] == 2
    assert record['one_saving'] == step_result.load_result(one).saving('freezeout')[0]
    text = (out / 'step_time.md').read_text()
    assert text.startswith('# Step time: resnet8, 2 processes, each with batches of 4 images of 8², fp32\n')
    assert '| MB all-reduced |' in text
    counts = {(row['variant'], row['units_frozen']): row['counts'] for row in record['rows']}
    units = [unit['parameters'] for unit in record['units']]
    reduced = {
        name: [counts[name, k]['bytes_allreduced'] for k in (0, 3, 7)]
        for name in ('loop', 'bound', 'freezeout', 'layer_freezing')
    }
    trained = [4 * sum(units[k:]) for k in (0, 3, 7)]
    assert reduced['loop'] == reduced['bound'] == reduced['freezeout'] == trained
    # What DDP exchanges was settled before the first layer froze.
    assert reduced['layer_freezing'] == [counts['composer', 0]['bytes_allreduced']] * 3 == [trained[0]] * 3
    # It does freeze: the first three of seven convolutions, then all.
    assert [counts['layer_freezing', k]['convolution_backwards'] for k in (0, 3, 7)] == [7, 4, 0]


@pytest.mark.gpu
def test_a_gpu_is_measured_too(tmp_path):
    arguments = [*SMALL, '--device', 'gpu', '--precision', 'amp_bf16', '--channels-last', '--stages', '0,3,7']
    assert step_time.main([*arguments, '--out', str(tmp_path)]) == 0
    record = json.loads((tmp_path / 'step_time.json').read_text())
    rows = {(row['variant'], row['units_frozen']): row['counts'] for row in record['rows']}
    launches = [rows['loop', k]['kernel_launches'] for k in (0, 3, 7)]
    assert launches[0] > launches[1] > launches[2] > 0
    assert all(counts['peak_memory_bytes'] > 0 for counts in rows.values())
    assert [rows['freezeout', k]['freezeout_synchronizations'] for k in (0, 3, 7)] == [0, 0, 0]
