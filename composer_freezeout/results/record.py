"""What a run has measured: one typed value for who writes it and who reads it."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

__all__ = [
    'ACCURACY',
    'FORMAT',
    'Effective',
    'Epoch',
    'Frozen',
    'Git',
    'LearningRates',
    'Metric',
    'OpenMP',
    'Plugin',
    'Record',
    'Segment',
    'StartedFrom',
    'Unit',
    'Weights',
]

FORMAT = 1
# The metric that runs are compared by.
ACCURACY = 'MulticlassAccuracy'

Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]
# What JSON has instead of NaN.
Number = float | None


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra='ignore', allow_inf_nan=False, frozen=True)


def _names_algorithms(config: dict[str, Any]) -> dict[str, Any]:
    entries = config.get('algorithms')
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError('must hold algorithms, a list of mappings')
    return config


class Frozen(_Part):
    """What was frozen from the start.

    Attributes:
        modules (list[str]): The modules whose own parameters, or running statistics, it is.
        parameters (int): Number of the parameters, in ``[0, ∞)``.
    """

    modules: list[str]
    parameters: Natural


class Effective(_Part):
    """What the configuration came to.

    Attributes:
        optimizer (dict[str, Any]): Its name, and of each param group the unit, the number of parameters and the
            hyperparameters, as they were after the first step.
        algorithms (list[str]): The algorithms, as text.
        batches_per_epoch (int, optional): None where the data does not tell.
        total_batches (int): Batches that the run has trained itself, in ``[1, ∞)``.
        world_size (int): Number of processes, in ``[1, ∞)``.
        device (str): ``cpu`` or ``gpu``.
        precision (str): Composer's name of it.
        parameters_total (int): Parameters of the model, in ``[1, ∞)``.
        global_batch_size (int): Samples of a batch over all processes, in ``[1, ∞)``.
        train_samples (int): Samples of the training set.
        eval_samples (int, optional): Samples of the evaluation set.
        frozen (Frozen, optional): What the configuration froze from the start; None if nothing.
    """

    optimizer: dict[str, Any]
    algorithms: list[str]
    batches_per_epoch: int | None
    total_batches: Count
    world_size: Count
    device: str
    precision: str
    parameters_total: Count
    global_batch_size: Count
    train_samples: Natural
    eval_samples: Natural | None
    frozen: Frozen | None = None


class Unit(_Part):
    """A unit of FreezeOut.

    Attributes:
        name (str): Its name.
        parameters (int): Number of its parameters.
        t_i (float): When it freezes, as a share of the run.
        frozen (bool): Whether it is frozen in the end.
        frozen_at_batch (int, optional): Batches that were trained before it froze; None if it never did.
    """

    name: str
    parameters: Natural
    t_i: float
    frozen: bool
    frozen_at_batch: int | None


class Epoch(_Part):
    """An epoch, or what was trained of it.

    Attributes:
        epoch (int): From 1, or from the epoch of the checkpoint of another run that training goes on from.
        batch (int): Batches that were trained until its end, those before that checkpoint included.
        train (dict[str, float | None]): Metrics of training, and the mean loss.
        eval (dict[str, float | None]): Metrics of its evaluation; empty without one.
        training_seconds (float): Wall-clock of its training, without evaluations.
        data_wait_seconds (float): Part of it that was spent waiting for batches.
        trainable_parameters (int): Parameters that were not frozen at its end.
        training_cpu_seconds (float, optional): CPU time of its training, over all threads and data workers; None in
            records that do not have it.
    """

    epoch: Count
    batch: Natural
    train: dict[str, Number]
    eval: dict[str, Number]
    training_seconds: float
    data_wait_seconds: float
    trainable_parameters: Natural
    training_cpu_seconds: float | None = None


class LearningRates(_Part):
    """The learning rates that the optimizer used.

    Attributes:
        batch (list[int]): Batches that were trained before, one for each point.
        lr (dict[str, list[float | None]]): For each unit or param group its rate at each point; None once it has left
            the optimizer.
    """

    batch: list[int]
    lr: dict[str, list[Number]]


class Metric(_Part):
    """What runs without an accuracy are judged by.

    Attributes:
        name (str): Its name among the metrics of an evaluation.
        higher_is_better (bool): Whether more of it is better.
    """

    name: str
    higher_is_better: bool


class Segment(_Part):
    """Batches with the same trainable parameters, one after the other.

    Attributes:
        batch (int): Batches that were trained before it.
        batches (int): Its length.
        seconds (float): Wall-clock of its training, without evaluations.
        units_frozen (int, optional): Number of frozen units; None without FreezeOut.
        trainable_parameters (int): Number of parameters that were not frozen.
        cpu_seconds (float, optional): CPU time, as in :class:`Epoch`.
    """

    batch: Natural
    batches: Natural
    seconds: Seconds
    units_frozen: int | None
    trainable_parameters: Natural
    cpu_seconds: Seconds | None = None


class Git(_Part):
    """State of the checkout that the package was installed from.

    Attributes:
        commit (str): The commit.
        dirty (bool): Whether files differed from it.
    """

    commit: str
    dirty: bool


class OpenMP(_Part):
    """How threads on a CPU waited for each other.

    Attributes:
        wait_policy (str, optional): ``OMP_WAIT_POLICY``; None if it was not set.
        spin_count (str, optional): ``GOMP_SPINCOUNT``; None if it was not set.
    """

    wait_policy: str | None
    spin_count: str | None


class Plugin(_Part):
    """A module with models and data sets of a user's own, which was imported for the run.

    Attributes:
        module (str): Its name.
        distribution (str, optional): Name and version of the installed package that has named it; None if the command
            line has.
        sha256 (str, optional): Of its file; None if it has none.
    """

    module: str
    distribution: str | None
    sha256: str | None


class Weights(_Part):
    """The weights that a run began with, where they were not random.

    Attributes:
        source (str): The file, or the name of torchvision's weights.
        loaded (int): Tensors that were loaded, in ``[1, ∞)``.
        new (list[str]): Tensors of the model that began as without them.
        left_out (list[str]): Tensors of the source that were not used.
    """

    source: str
    loaded: Count
    new: list[str]
    left_out: list[str]


class StartedFrom(_Part):
    """The checkpoint of another run whose training goes on.

    Attributes:
        path (str): The file, as the configuration gives it.
        batches (int): Batches that had been trained, in ``[0, ∞)``. The run's own are counted on from there.
        epochs (int): Whole epochs of these, in ``[0, ∞)``.
    """

    path: str
    batches: Natural
    epochs: Natural


class Record(_Part):
    """What a run leaves behind in ``record.json``.

    Attributes:
        format (int): :data:`FORMAT`.
        run_name (str): Name of the run.
        config_file (str): The YAML file that was given.
        command (str): What to type to do the same again.
        config (dict[str, Any]): The configuration with every default filled in.
        seed (int): The seed.
        started_at (str): Time in UTC, ISO 8601.
        finished_at (str): The same.
        effective (Effective): What the configuration came to.
        units (list[Unit]): Units of FreezeOut, first to freeze first; empty without it.
        epochs (list[Epoch]): Epochs in order.
        lr_trace (LearningRates): Learning rates over the run.
        segments (list[Segment]): Spans between freezes, without the first batch.
        training_seconds (float): Wall-clock of training, without evaluations, in ``(0, ∞)``.
        first_batch_seconds (float, optional): The first batch's part of it.
        evaluation_seconds (float): Wall-clock of evaluations.
        data_wait_seconds (float): Part of the training time that was spent waiting for batches.
        data_wait_share (float, optional): The same as a share.
        peak_memory_bytes (int): Most memory that was used: of the GPU, else of the process.
        resumed_at_batch (list[int]): Batches that were trained before each resumption.
        final (dict[str, float | None]): Metrics of the last evaluation; empty without one.
        predicted_saving (float, optional): Share of the FLOPs that freezing saves; None if nothing is predicted.
        backward_left (dict[str, float], optional): Share of the FLOPs of a whole backward pass that is left, by the
            number of parameters that train; None without freezing, and in records that do not have it.
        versions (dict[str, str]): Of Python and of packages.
        hardware (dict[str, Any]): Processor, memory, GPU, and number of threads.
        git (Git, optional): The checkout that the package was installed from; None if it was from none.
        training_cpu_seconds (float, optional): CPU time of training, over all threads and data workers, without
            evaluations; None in records that do not have it.
        openmp (OpenMP, optional): How threads waited; None in records that do not have it.
        started_from (StartedFrom, optional): The checkpoint of another run that training went on from. What was trained
            before is not counted in seconds, epochs, segments and ``total_batches``; None for a run of its own, which
            may have been interrupted and resumed.
        weights (Weights, optional): What the run began with; None for random weights.
        plugins (list[Plugin]): Modules with models and data sets of the user's own.
        metric (Metric, optional): What the run is judged by; None for top-1 accuracy, and if nothing tells of any
            metric whether more of it is better.
    """

    format: Literal[1]
    run_name: str
    config_file: str
    command: str
    config: Annotated[dict[str, Any], AfterValidator(_names_algorithms)]
    seed: int
    started_at: str
    finished_at: str
    effective: Effective
    units: list[Unit]
    epochs: list[Epoch]
    lr_trace: LearningRates
    segments: list[Segment] = []
    training_seconds: Annotated[float, Field(gt=0)]
    first_batch_seconds: Seconds | None = None
    evaluation_seconds: Seconds
    data_wait_seconds: Seconds
    data_wait_share: Number
    peak_memory_bytes: int
    resumed_at_batch: list[int]
    final: dict[str, Number]
    predicted_saving: Number
    backward_left: dict[str, float] | None = None
    versions: dict[str, str]
    hardware: dict[str, Any]
    git: Git | None
    training_cpu_seconds: Seconds | None = None
    openmp: OpenMP | None = None
    started_from: StartedFrom | None = None
    weights: Weights | None = None
    plugins: list[Plugin] = []
    metric: Metric | None = None

    @property
    def accuracy(self) -> float | None:
        """Top-1 accuracy of the last evaluation, in ``[0, 1]``; None if there was none."""
        return self.final.get(ACCURACY)

    @property
    def last_batch(self) -> int:
        """Batches that had been trained of the schedule in the end, by whichever run."""
        return self.effective.total_batches + (self.started_from.batches if self.started_from else 0)

    @property
    def algorithms(self) -> list[dict[str, Any]]:
        """Name and arguments of each algorithm of the configuration."""
        return self.config['algorithms']
