"""Plans FreezeOut for the run that a YAML file describes: what freezes when, and what that saves.

Costs come from three models (:mod:`composer_freezeout.costs.saving`); the third is measured on this
machine. Nothing here says what freezing costs in accuracy.
"""

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, cast

import torch
import torchvision
from composer.core import State, Time, TimeUnit
from composer.models import ComposerModel
from composer.utils import map_collection, reproducibility

from composer_freezeout.algorithm.freezeout import FreezeOut
from composer_freezeout.algorithm.progress import as_progress
from composer_freezeout.costs.flops import UnitFlops, step_flops_by_units_frozen, unit_flops
from composer_freezeout.costs.saving import (
    in_stages,
    interpolated,
    largest_saving,
    paper_costs,
    predicted_saving,
    saving_by_t_0,
    solve_t_0,
    with_loading,
)
from composer_freezeout.costs.seconds import Loading, StepProfile, counts_to_measure, profile_loading, profile_steps
from composer_freezeout.freezing.execution.compilation import is_compiled, stage_limit
from composer_freezeout.freezing.observing.partition import Partition
from composer_freezeout.freezing.observing.units import Unit
from composer_freezeout.method.allocation import measured_unit_costs
from composer_freezeout.method.schedule import HowScale, freeze_stages, freeze_times
from composer_freezeout.run import registry
from composer_freezeout.run.config import (
    Cifar10,
    Cifar100,
    ConfigError,
    DataConfig,
    Fault,
    ImageFolder,
    RunConfig,
    Streaming,
)
from composer_freezeout.run.data import build_data
from composer_freezeout.run.models import build_model
from composer_freezeout.run.predicted import partition_for
from composer_freezeout.run.registry import Bound, bind, constructed

__all__ = ['CostAware', 'Measured', 'Plan', 'PlannedUnit', 'Prediction', 'make_plan', 'plan_as_json']

CostModel = Literal['paper', 'flops', 'seconds']

# From this share of a step on, waiting for data is worth a warning.
_WAITS = 0.1
# A model of which no more than this can be saved is worth one, too.
_HARDLY_SAVES = 0.15
# The smallest t_0 that the paper tried.
_TRIED = 0.3
# Random samples where there are no data: a CPU profiles no more of them.
_RANDOM_SAMPLES_ON_CPU = 256


@dataclass(frozen=True)
class PlannedUnit:
    """A unit, and what becomes of it.

    Attributes:
        name (str): Its name.
        parameters (int): How many it has.
        forward_flops (int): FLOPs of its forward pass, per sample.
        step_share (float): Its share of the FLOPs of a training step in which nothing is frozen, in ``[0, 1]``.
        forward_seconds (float, optional): Measured seconds of its forward pass in a step; None without a profile.
        backward_seconds (float, optional): Measured seconds that freezing it takes off the backward pass and the
            optimizer; None without a profile. Below 0 where it is less than the noise.
        t_i (float): Progress at which its learning rate is 0, in ``(0, 1]``.
        freezes_at (float): Progress at which it freezes: ``t_i``, or that of the last unit of its stage.
        freeze_epoch (int, optional): Epoch, counted from 1, in which it freezes; None if it never does, as the last
            unit, and where the length of an epoch is unknown.
    """

    name: str
    parameters: int
    forward_flops: int
    step_share: float
    forward_seconds: float | None
    backward_seconds: float | None
    t_i: float
    freezes_at: float
    freeze_epoch: int | None


@dataclass(frozen=True)
class Prediction:
    """What one of the cost models says.

    Attributes:
        model (str): ``'paper'``, ``'flops'`` or ``'seconds'``.
        meaning (str): The model in words.
        saving (float): Share of the training's cost that the planned settings save.
        largest (float): The same as ``t_0`` goes to 0.
        t_0 (float, optional): ``t_0`` that saves the target; None without a target, or if it is out of reach.
        first_freeze (float, optional): Progress at which the first unit freezes with it.
        step_costs (tuple[float, ...]): Cost of a step by number of units that are due: in FLOPs per sample, or seconds.
    """

    model: CostModel
    meaning: str
    saving: float
    largest: float
    t_0: float | None
    first_freeze: float | None
    step_costs: tuple[float, ...]


@dataclass(frozen=True)
class Measured:
    """How the seconds were measured.

    Attributes:
        device (str): Name of the device.
        precision (str): Composer's name of the precision.
        batch_size (int): Samples of the measured steps.
        repeats (int): Steps that each median is of.
        points (int): Numbers of frozen units that were measured.
        step_seconds (float): A step of the run's batch size with nothing frozen, without waiting for data.
        load_seconds (float, optional): What the loader takes to bring a batch; None if it wasn't measured.
        wait_share (float, optional): Share of such a step with its wait that is the wait, in ``[0, 1)``.
        saving_with_wait (float, optional): Saving of the wall clock, waiting included.
    """

    device: str
    precision: str
    batch_size: int
    repeats: int
    points: int
    step_seconds: float
    load_seconds: float | None
    wait_share: float | None
    saving_with_wait: float | None


@dataclass(frozen=True)
class CostAware:
    """Freeze times shifted by the measured costs of the units, with the planned ``t_0`` and ``how_scale``.

    Attributes:
        unit_costs (tuple[float, ...]): Milliseconds that freezing each unit takes off a step, in ``[0, ∞)``; the last,
            which never freezes, is 0.
        measured_at_each (bool): Whether each unit's cost was measured, and not that of several of them together.
        cost_shift (float): How far they are shifted, in ``(0, 1]``.
        saving (float): Share of the training's measured seconds that they save.
        paper_saving (float): The same by the paper's freeze times.
    """

    unit_costs: tuple[float, ...]
    measured_at_each: bool
    cost_shift: float
    saving: float
    paper_saving: float


@dataclass(frozen=True)
class Plan:
    """FreezeOut for a run, before it is trained.

    Attributes:
        run_name (str): The run's name.
        duration (str): Its ``max_duration``.
        batch_size (int): Its samples per step.
        image_shape (tuple[int, ...]): Channels, height and width that the FLOPs are for.
        algorithm (int, optional): Index of FreezeOut in the file's ``algorithms``; None if it isn't there.
        t_0 (float): The planned setting.
        how_scale (str): Likewise.
        scale_lr (bool): Likewise.
        unit_costs (tuple[float, ...], optional): Likewise; None for the paper's freeze times.
        cost_shift (float): Likewise.
        warmup (float): Progress at which the warm-up ends, in ``[0, ∞)``.
        stages (int): How often units freeze.
        heads (int): How many of the last units train to the end.
        units (tuple[PlannedUnit, ...]): First to freeze first.
        predictions (tuple[Prediction, ...]): One per cost model.
        relied_on (str): The cost model that fits this run best: ``'seconds'`` if they are those of the device that the
            file asks for, else ``'flops'``.
        target (float, optional): The saving that was asked for.
        measured (Measured, optional): None without a profile.
        cost_aware (CostAware, optional): None without a profile, and where freezing was not seen to save anything.
        notes (tuple[str, ...]): What was assumed or left out.
        warnings (tuple[str, ...]): Where freezing won't pay, or the run would be refused.
    """

    run_name: str
    duration: str
    batch_size: int
    image_shape: tuple[int, ...]
    algorithm: int | None
    t_0: float
    how_scale: HowScale
    scale_lr: bool
    unit_costs: tuple[float, ...] | None
    cost_shift: float
    warmup: float
    stages: int
    heads: int
    units: tuple[PlannedUnit, ...]
    predictions: tuple[Prediction, ...]
    relied_on: CostModel
    target: float | None
    measured: Measured | None
    cost_aware: CostAware | None
    notes: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def prediction(self) -> Prediction:
        """That of the model that fits this run best."""
        return next(p for p in self.predictions if p.model == self.relied_on)


def plan_as_json(plan: Plan) -> dict[str, Any]:
    """A plan as JSON can hold it.

    Args:
        plan (Plan): The plan.

    Returns:
        dict[str, Any]: Its fields; the seconds differ from one profile to the next, nothing else does.
    """
    return {'format': 1, **asdict(plan)}


def make_plan(
    config: RunConfig,
    *,
    target: float | None = None,
    profile_repeats: int | None = 5,
    image_size: int | None = None,
    budget_seconds: float = 30.0,
    every_unit: bool = False,
) -> Plan:
    """Plans FreezeOut for a run. Nothing is trained or downloaded.

    Args:
        config (RunConfig): A checked configuration; without FreezeOut in it, FreezeOut's defaults are planned.
        target (float, optional): A saving, in ``(0, 1)``, to find ``t_0`` for.
        profile_repeats (int, optional): Measured steps for each number of frozen units, in ``[1, ∞)``; None to measure
            nothing. Default: 5.
        image_size (int, optional): Pixels, in ``[1, ∞)``, where there are no data and the file doesn't say.
        budget_seconds (float): About how long the profile may take. Default: 30.
        every_unit (bool): Whether to measure steps with every number of frozen units, at the expense of time: the
            budget is that of the usual ones. Default: ``False``.

    Returns:
        Plan: The plan.

    Raises:
        ConfigError: If the configuration is at fault, or the model can't be run.
    """
    notes: list[str] = []
    index, freezeout, optimizer = _components(config, notes)
    reproducibility.seed_all(config.seed)
    model = build_model(config.model)
    device, precision = _device(config, notes if profile_repeats else [])
    data = _data(config, device, image_size, measure=profile_repeats is not None, notes=notes)
    partition = _partition(model, data.example, freezeout, index)
    units = partition.units
    with constructed(f'algorithms.{index}', vars(freezeout)):
        times = freezeout.freeze_times(len(units), heads=partition.heads)
    flops = [UnitFlops(*_per_sample(unit)) for unit in unit_flops(model, data.example, units)]
    profile = None
    if profile_repeats is not None:
        usual = counts_to_measure(len(units))
        counts = range(len(units)) if every_unit else usual
        profile = profile_steps(
            model,
            data.batch,
            units,
            optimizer.build,
            device=device,
            precision=precision,
            batchnorm=freezeout.batchnorm,
            repeats=profile_repeats,
            budget_seconds=budget_seconds * len(counts) / len(usual),
            counts=counts,
        )

    max_stages = stage_limit(freezeout.max_stages, is_compiled(model))
    stages = freeze_stages(len(units) - partition.heads + 1, max_stages)
    costs: dict[CostModel, list[float]] = {
        'paper': in_stages(paper_costs([unit.forward for unit in flops]), stages),
        'flops': in_stages(_per_sample(step_flops_by_units_frozen(model, data.example, units)), stages),
    }
    cost_aware = None
    if profile is not None:
        steps = {count: step.total for count, step in profile.scaled(config.train_data.batch_size).items()}
        seconds = interpolated(steps, len(units))
        costs['seconds'] = in_stages(seconds, stages)
        cost_aware = _cost_aware(seconds, costs['seconds'], len(steps) == len(units), freezeout, partition.heads)
    predictions = tuple(
        _prediction(name, cost, freezeout, partition.heads, target, profile) for name, cost in costs.items()
    )
    saving = {prediction.model: prediction.saving for prediction in predictions}
    as_asked = profile is not None and _is_as_asked(config, device, precision)
    measured = profile and _measured(profile, config, costs['seconds'], data.loading, times)

    stretch = 1 / (1 - saving['flops']) if freezeout.const_time else 1.0
    if freezeout.const_time:
        notes.append(
            f'const_time: the run is {stretch:.3f} times as long as {config.max_duration}, and freeze epochs are those '
            'of the longer run'
        )
    warmup = _warmup(config, freezeout, data.batches_per_epoch, stretch, notes)
    plan = Plan(
        run_name=config.run_name,
        duration=config.max_duration,
        batch_size=config.train_data.batch_size,
        image_shape=data.image_shape,
        algorithm=index,
        t_0=freezeout.t_0,
        how_scale=freezeout.how_scale,
        scale_lr=freezeout.scale_lr,
        unit_costs=None if freezeout.unit_costs is None else tuple(freezeout.unit_costs),
        cost_shift=freezeout.cost_shift,
        warmup=warmup,
        stages=len(stages) - 1,
        heads=partition.heads,
        units=_planned_units(
            _sizes(model, units),
            flops,
            _unit_seconds(profile, config.train_data.batch_size, len(units)),
            times,
            stages,
            _Clock(config, data, stretch),
        ),
        predictions=predictions,
        relied_on='seconds' if as_asked else 'flops',
        target=target,
        measured=measured,
        cost_aware=cost_aware,
        notes=tuple(notes),
        warnings=(),
    )
    return _with_warnings(plan, partition)


# --- what the file says


def _components(config: RunConfig, notes: list[str]) -> tuple[int | None, FreezeOut, Bound]:
    """Index of FreezeOut, FreezeOut, and the optimizer, with nothing left to complain of."""
    faults: list[Fault] = []
    bound: dict[str, Bound] = {}
    entries = [(registry.ALGORITHMS, entry, f'algorithms.{i}', 0) for i, entry in enumerate(config.algorithms)]
    for table, entry, path, positional in [*entries, (registry.OPTIMIZERS, config.optimizer, 'optimizer', 1)]:
        try:
            bound[path] = bind(table, entry, path, positional)
        except ConfigError as error:
            faults += error.faults
    ours = [index for index, entry in enumerate(config.algorithms) if entry.name == 'freezeout']
    if len(ours) > 1:
        faults.append(Fault(f'algorithms.{ours[1]}', 'FreezeOut stands more than once in `algorithms`; give it once'))
    if faults:
        raise ConfigError(faults)
    others = [entry.name for entry in config.algorithms if entry.name != 'freezeout']
    if others:
        notes.append(f'other algorithms of the file are left out of the plan: {", ".join(others)}')
    if not ours:
        freezeout = FreezeOut()
        notes.append(
            f'the file has no freezeout among its algorithms: planned with its defaults, t_0 {freezeout.t_0} and '
            f'how_scale {freezeout.how_scale}'
        )
        return None, freezeout, bound['optimizer']
    return ours[0], bound[f'algorithms.{ours[0]}'].build(), bound['optimizer']


def _device(config: RunConfig, notes: list[str]) -> tuple[str, str]:
    """Where to measure, as torch calls it, and in which precision."""
    if config.device != 'cpu' and torch.cuda.is_available():
        return 'cuda', config.precision
    if config.device == 'gpu' or config.precision != 'fp32':
        notes.append(
            f'the file asks for {config.precision} on a GPU, and there is none here: seconds are those of this CPU in '
            'fp32, and a GPU divides its time otherwise; run the plan there, too'
        )
    return 'cpu', 'fp32'


def _is_as_asked(config: RunConfig, device: str, precision: str) -> bool:
    return precision == config.precision and not (config.device == 'gpu' and device == 'cpu')


# --- data


@dataclass(frozen=True)
class _Data:
    """Batches to look at, and what is known of the others."""

    example: Any
    batch: Any
    loading: Loading | None
    batches_per_epoch: int | None

    @property
    def image_shape(self) -> tuple[int, ...]:
        return tuple(self.example[0].shape[1:])


def _data(config: RunConfig, device: str, image_size: int | None, *, measure: bool, notes: list[str]) -> _Data:
    if _is_there(config.train_data):
        section, name = config.train_data, 'gpu' if device == 'cuda' else 'cpu'
        spec = build_data(section, 'train_data', num_classes=config.model.num_classes, seed=config.seed, device=name)
        loader: Any = spec.dataloader

        def prepared(batch: Any) -> Any:
            return map_collection(spec.batch_transforms(batch), lambda tensor: tensor.cpu())

        ends = [loader.dataset[0], loader.dataset[len(loader.dataset) - 1]]
        example = tuple(torch.stack([torch.as_tensor(part) for part in parts]) for parts in zip(*ends, strict=True))
        batches = min(len(loader), config.train_subset_num_batches or len(loader))
        loading, batch = None, None
        if measure:
            loading, batch = profile_loading(loader), prepared(next(iter(loader)))
        return _Data(prepared(example), batch, loading, batches)

    size = _image_size(config.train_data, image_size)
    notes.append(
        f'no data in {str(_folder(config.train_data))!r}: random images of {size}x{size} pixels in their place, and '
        'waiting for data is not measured'
    )
    samples = config.train_data.batch_size
    if device == 'cpu':
        samples = min(samples, _RANDOM_SAMPLES_ON_CPU)
    batch = _random_batch(config, max(2, samples if measure else 2), size)
    return _Data(map_collection(batch, lambda tensor: tensor[:2]), batch, None, None)


def _folder(data: DataConfig) -> Path | None:
    """What must exist for the data to be opened without fetching them; None where nothing must."""
    if isinstance(data, (Cifar10, Cifar100)):
        source = torchvision.datasets.CIFAR10 if data.name == 'cifar10' else torchvision.datasets.CIFAR100
        return Path(data.root) / source.base_folder
    if isinstance(data, ImageFolder):
        return Path(data.root) / (data.split or '')
    if isinstance(data, Streaming):
        return Path(data.local) / (data.split or '')
    return None


def _is_there(data: DataConfig) -> bool:
    folder = _folder(data)
    # What is streamed may be there in part, and be fetched when it is looked at.
    return folder is None or (folder.is_dir() and getattr(data, 'remote', None) is None)


def _image_size(data: DataConfig, image_size: int | None) -> int:
    if isinstance(data, (Cifar10, Cifar100)):
        return 32
    known = getattr(data, 'image_size', None) or image_size
    if known is None:
        fault = 'there are no images there, and with cache: true only they tell their size; give --image-size PIXELS'
        raise ConfigError([Fault('train_data.root', f'{str(_folder(data))!r}: {fault}')])
    return known


def _per_sample(of_example: Sequence[int]) -> list[int]:
    return [flops // 2 for flops in of_example]


def _random_batch(config: RunConfig, samples: int, size: int) -> Any:
    generator = torch.Generator().manual_seed(config.seed)
    images = torch.randn(samples, config.model.in_channels, size, size, generator=generator)
    return images, torch.randint(config.model.num_classes, (samples,), generator=generator)


# --- what it comes to


def _partition(model: ComposerModel, example: Any, freezeout: FreezeOut, index: int | None) -> Partition:
    try:
        return partition_for(model, example, freezeout)
    except ValueError as error:
        path = '' if index is None else f'algorithms.{index}.layers'
        raise ConfigError([Fault(path, ' '.join(str(error).split()).removeprefix('layers: '))]) from error
    except (AssertionError, RuntimeError) as error:
        shape = 'x'.join(str(length) for length in example[0].shape[1:])
        message = ' '.join(str(error).split())[:200]
        raise ConfigError([Fault('model', f'cannot be run on images of {shape}: {message}')]) from error


def _cost_aware(
    seconds: Sequence[float], step_costs: Sequence[float], measured_at_each: bool, freezeout: FreezeOut, heads: int
) -> CostAware | None:
    unit_costs = measured_unit_costs([1e3 * second for second in seconds])
    if not any(unit_costs):
        return None
    times = partial(freeze_times, len(seconds), freezeout.t_0, freezeout.how_scale, heads=heads)
    return CostAware(
        unit_costs=tuple(unit_costs),
        measured_at_each=measured_at_each,
        cost_shift=freezeout.cost_shift,
        saving=predicted_saving(step_costs, times(unit_costs, freezeout.cost_shift)),
        paper_saving=predicted_saving(step_costs, times()),
    )


def _prediction(
    name: CostModel,
    costs: Sequence[float],
    freezeout: FreezeOut,
    heads: int,
    target: float | None,
    profile: StepProfile | None,
) -> Prediction:
    times = partial(freezeout.freeze_times, len(costs), heads=heads)
    saving = saving_by_t_0(costs, times)
    t_0 = None
    if target is not None and target < largest_saving(saving):
        t_0 = solve_t_0(saving, target)
    return Prediction(
        model=name,
        meaning=_meaning(name, profile),
        saving=saving(freezeout.t_0),
        largest=largest_saving(saving),
        t_0=t_0,
        first_freeze=None if t_0 is None else times(t_0)[0],
        step_costs=tuple(costs),
    )


def _meaning(name: CostModel, profile: StepProfile | None) -> str:
    where = 'GPU' if profile is not None and profile.device.type == 'cuda' else 'CPU'
    return {
        'paper': 'backward counted as one forward',
        'flops': 'both passes counted on this model',
        'seconds': f'steps measured on this {where}',
    }[name]


def _measured(
    profile: StepProfile, config: RunConfig, costs: Sequence[float], loading: Loading | None, times: Sequence[float]
) -> Measured:
    wait_share = saving = None
    if loading is not None:
        waiting = with_loading(costs, loading.seconds, loading.overlapped)
        wait_share = 1 - costs[0] / waiting[0]
        saving = predicted_saving(waiting, times)
    return Measured(
        device=torch.cuda.get_device_name() if profile.device.type == 'cuda' else 'CPU',
        precision=profile.precision,
        batch_size=profile.batch_size,
        repeats=profile.repeats,
        points=len(profile.steps),
        step_seconds=profile.scaled(config.train_data.batch_size)[0].total,
        load_seconds=None if loading is None else loading.seconds,
        wait_share=wait_share,
        saving_with_wait=saving,
    )


class _Clock:
    """From progress to epochs."""

    def __init__(self, config: RunConfig, data: _Data, stretch: float) -> None:
        duration, self.batches = Time.from_timestring(config.max_duration), data.batches_per_epoch
        self.epochs = stretch * duration.value if duration.unit == TimeUnit.EPOCH else None
        self.total: float | None = None  # batches
        if self.batches is not None and duration.unit == TimeUnit.SAMPLE:
            self.total = stretch * duration.value / config.train_data.batch_size
        elif self.batches is not None and duration.unit in (TimeUnit.EPOCH, TimeUnit.BATCH):
            per_unit = self.batches if duration.unit == TimeUnit.EPOCH else 1
            self.total = round(stretch * duration.value * per_unit)

    def epoch(self, progress: float) -> int | None:
        """Epoch, counted from 1, of the first batch from there on; None if there is none, or it can't be told."""
        if self.total is not None and self.batches is not None:
            # By the same division as in training: its rounding decides where a unit is due with the start of a batch.
            total, count = self.total, math.ceil(self.total)
            batch = bisect_left(range(count), progress, key=lambda batch: batch / total)
            return batch // self.batches + 1 if batch < count else None
        if self.epochs is not None and progress < 1:
            return math.floor(progress * self.epochs) + 1
        return None


def _warmup(
    config: RunConfig, freezeout: FreezeOut, batches_per_epoch: int | None, stretch: float, notes: list[str]
) -> float:
    if freezeout.t_warmup is None:
        return 0.0
    length = None if batches_per_epoch is None else Time(batches_per_epoch, TimeUnit.BATCH)
    state = SimpleNamespace(max_duration=Time.from_timestring(config.max_duration), dataloader_len=length)
    try:
        share = as_progress(freezeout.t_warmup, cast(State, state))
    except ValueError as error:
        notes.append(f'the warm-up is left out: {error}')
        return 0.0
    return share if freezeout.t_warmup.unit == TimeUnit.DURATION else share / stretch


def _sizes(model: ComposerModel, units: Sequence[Unit]) -> dict[str, int]:
    return {unit.name: sum(model.get_parameter(name).numel() for name in unit.parameters) for unit in units}


def _unit_seconds(
    profile: StepProfile | None, batch_size: int, num_units: int
) -> Sequence[tuple[float | None, float | None]]:
    """Seconds of each unit in a step of the run: of its forward pass, and what freezing it takes off the rest."""
    if profile is None:
        return [(None, None)] * num_units
    steps = profile.scaled(batch_size)
    # A frozen unit still runs forward: the forward pass's differences would be noise.
    rest = interpolated({count: step.backward + step.optimizer for count, step in steps.items()}, num_units)
    saved = [now - after for now, after in pairwise([*rest, 0.0])]
    scale = batch_size / profile.batch_size
    return [(scale * forward, backward) for forward, backward in zip(profile.unit_forward, saved, strict=True)]


def _planned_units(
    sizes: Mapping[str, int],
    flops: Sequence[UnitFlops],
    seconds: Sequence[tuple[float | None, float | None]],
    times: Sequence[float],
    stages: Sequence[int],
    clock: _Clock,
) -> tuple[PlannedUnit, ...]:
    whole = sum(sum(unit) for unit in flops)
    planned = []
    for index, (name, size) in enumerate(sizes.items()):
        stage = next((stage for stage in stages if stage > index), None)
        freezes_at = 1.0 if stage is None else times[stage - 1]
        planned.append(
            PlannedUnit(
                name=name.removeprefix('module.'),
                parameters=size,
                forward_flops=flops[index].forward,
                step_share=sum(flops[index]) / whole,
                forward_seconds=seconds[index][0],
                backward_seconds=seconds[index][1],
                t_i=times[index],
                freezes_at=freezes_at,
                freeze_epoch=clock.epoch(freezes_at),
            )
        )
    return tuple(planned)


# --- where it doesn't pay


def _with_warnings(plan: Plan, partition: Partition) -> Plan:
    return Plan(**{**vars(plan), 'warnings': tuple(_warnings(plan, partition))})


def _warnings(plan: Plan, partition: Partition) -> list[str]:
    warnings = []
    measured, prediction, last = plan.measured, plan.prediction, plan.units[-1]
    if measured is not None and measured.wait_share is not None and measured.wait_share > _WAITS:
        seconds = _by_model(plan)['seconds'].saving
        warnings.append(
            f'input-bound: {measured.wait_share:.0%} of a step is waiting for data, which freezing does not shorten; '
            f'the saving of the wall clock shrinks from {seconds:.1%} to {measured.saving_with_wait:.1%}'
        )
    if prediction.largest < _HARDLY_SAVES:
        warnings.append(
            f'freezing can save at most {prediction.largest:.1%} of this model ({prediction.model}), whatever t_0 is; '
            f'its last unit, {last.name}, which trains to the end, is {last.step_share:.0%} of a step'
        )
    bad_cuts = partition.describe_bad_cuts()
    if bad_cuts is not None:
        warnings.append(bad_cuts)
    chosen = {plan.t_0: plan.units[0].t_i}
    if prediction.t_0 is not None and prediction.first_freeze is not None:
        chosen[prediction.t_0] = prediction.first_freeze
    for t_0, first_freeze in chosen.items():
        if plan.warmup >= first_freeze:
            warnings.append(
                f't_0 {t_0:.3f} is refused in training: the warm-up ends at progress {plan.warmup:.4f}, and the first '
                f'unit freezes at {first_freeze:.4f}; shorten t_warmup or raise t_0'
            )
        if t_0 < _TRIED:
            warnings.append(f't_0 {t_0:.3f} is below what the paper tried ({_TRIED} to 0.9)')
    return warnings


def _by_model(plan: Plan) -> Mapping[str, Prediction]:
    return {prediction.model: prediction for prediction in plan.predictions}
