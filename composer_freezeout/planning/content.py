"""What a plan holds: what freezes when in a run, and what that saves. Without torch."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from composer_freezeout.method.schedule import Anneal, HowScale

__all__ = ['CostAware', 'CostModel', 'Measured', 'PlanContent', 'PlannedUnit', 'Prediction']

CostModel = Literal['paper', 'flops', 'seconds']


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
        freeze_batch (int, optional): Batches that are trained before it freezes; None likewise.
        learning_rates (tuple[float, ...]): The optimizer's rates for it, of which its schedule is a multiple, one for
            each param group that holds some of it; empty if none does, so that it never moves.
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
    freeze_batch: int | None
    learning_rates: tuple[float, ...]


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
class PlanContent:
    """FreezeOut for a run, before it is trained.

    Attributes:
        run_name (str): The run's name; the model's class where it has none.
        duration (str): Its length, as a Composer time string.
        batch_size (int): Its samples per step.
        image_shape (tuple[int, ...]): Shape of a sample that the FLOPs are for: of an image its channels, height and
            width.
        algorithm (int, optional): Index of FreezeOut in the ``algorithms`` of a YAML file; None if it isn't there.
        t_0 (float): The planned setting.
        how_scale (str): Likewise.
        scale_lr (bool): Likewise.
        anneal (str, optional): Likewise.
        unit_costs (tuple[float, ...], optional): Likewise; None for the paper's freeze times.
        cost_shift (float): Likewise.
        warmup (float): Progress at which the warm-up ends, in ``[0, ∞)``.
        stages (int): How often units freeze.
        heads (int): How many of the last units train to the end.
        units (tuple[PlannedUnit, ...]): First to freeze first.
        predictions (tuple[Prediction, ...]): One per cost model.
        relied_on (str): The cost model that fits this run best: ``'seconds'`` if they are those of the device that it
            will be trained on, else ``'flops'``.
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
    anneal: Anneal | None
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

    @property
    def saving(self) -> float:
        """Share of the training's cost that it saves, by that model."""
        return self.prediction.saving

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON can hold it, with the same fields; only seconds differ from one profile to the next."""
        return {'format': 1, **asdict(self)}
