"""From a checked configuration to a Trainer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from composer import DataSpec, Trainer
from composer.models import ComposerModel
from composer.utils import dist, get_device, reproducibility

from composer_freezeout.results.record import Weights
from composer_freezeout.run import registry
from composer_freezeout.run.config import Component, RunConfig
from composer_freezeout.run.data import build_data, per_rank
from composer_freezeout.run.faults import Attempts, ConfigError, SectionFault, units_fault
from composer_freezeout.run.fused import FusedPart
from composer_freezeout.run.models import build_model
from composer_freezeout.run.new_head import new_head
from composer_freezeout.run.own_data import resolved_data
from composer_freezeout.run.own_models import resolved_model
from composer_freezeout.run.recorder import Recorder
from composer_freezeout.run.registry import Bound, bind
from composer_freezeout.run.signatures import Constructor
from composer_freezeout.run.starting import check_start, checkpoint_fault, continued
from composer_freezeout.run.weights import load_weights

__all__ = ['Parts', 'Run', 'assemble']


@dataclass(frozen=True)
class Run:
    """A run that is ready to be fitted.

    Args:
        trainer (Trainer): Composer's trainer.
        recorder (Recorder): The callback that measures it.
        config (Mapping[str, Any]): The configuration with every default filled in, as JSON and YAML can hold it.
        train_samples (int): Samples of the training set.
        eval_samples (int, optional): Samples of the evaluation set.
    """

    trainer: Trainer
    recorder: Recorder
    config: Mapping[str, Any]
    train_samples: int
    eval_samples: int | None


@dataclass(frozen=True)
class Parts:
    """Everything that a Trainer is made of. Nothing has been written yet.

    Args:
        config (RunConfig): The configuration.
        resolved (Mapping[str, Any]): The same with the components' defaults filled in too.
        train (DataSpec): Training data.
        evaluation (DataSpec, optional): Evaluation data.
        keywords (Mapping[str, Any]): The other arguments of the Trainer.
        weights (Weights, optional): What the model begins with; None for random weights.
        head (Sequence[str], optional): FreezeOut's, where the file doesn't say and there are new layers.
    """

    config: RunConfig
    resolved: Mapping[str, Any]
    train: DataSpec
    evaluation: DataSpec | None
    keywords: Mapping[str, Any]
    weights: Weights | None = None
    head: Sequence[str] | None = None

    def build(self) -> Run:
        """Makes the Trainer. Loggers open their files, and a checkpoint is loaded if there is one.

        Returns:
            Run: The trainer, and what the record needs.

        Raises:
            ConfigError: If the parts do not go together.
        """
        recorder = Recorder(continues=continued(self.config), weights=self.weights)
        keywords = {**self.keywords, 'callbacks': [*self.keywords['callbacks'], recorder]}
        try:
            trainer = Trainer(**keywords)
        except ValueError as error:
            ours = next((i for i, entry in enumerate(self.config.algorithms) if entry.name == 'freezeout'), None)
            if (fault := units_fault(error, ours)) is not None:
                raise ConfigError([fault]) from error
            message = ' '.join(str(error).split())
            raise ConfigError([SectionFault('', f'the parts of this run do not go together: {message}', '')]) from error
        except (EOFError, KeyError, OSError, RuntimeError, UnpicklingError) as error:
            fault = checkpoint_fault(self.config, error)
            if fault is None:
                raise
            raise ConfigError([fault]) from error
        return Run(
            trainer=trainer,
            recorder=recorder,
            config=self.resolved,
            train_samples=self.train.num_samples or 0,
            eval_samples=self.evaluation.num_samples if self.evaluation is not None else None,
        )


def assemble(config: RunConfig) -> Parts:
    """Makes the parts of the run that a configuration describes.

    The same seed gives the same initial weights, whatever the algorithms.

    Args:
        config (RunConfig): A checked configuration.

    Returns:
        Parts: Ready to be built.

    Raises:
        ConfigError: If a component or the data cannot be had, or the machine cannot do what is asked.
    """
    components = _bind_all(config)
    device = _device(config)
    if dist.get_world_size() > 1:
        # Now, and not in the Trainer: one process of a machine downloads data before the others look for it.
        dist.initialize_dist(get_device(device))

    attempts = Attempts()
    shared: dict[str, Any] = {'num_classes': config.model.num_classes, 'seed': config.seed, 'device': device}
    train = attempts.attempt(build_data, config.train_data, 'train_data', **shared)
    evaluation = config.eval_data and attempts.attempt(build_data, config.eval_data, 'eval_data', **shared)
    reproducibility.seed_all(config.seed)
    model = attempts.attempt(build_model, config.model)
    weights = None
    # A run that resumes has trained them on, and knows from its checkpoint where they came from.
    if model is not None and config.model.weights is not None and not config.resumes_itself:
        given = (config.model.name, config.model.weights, 'model.weights')
        weights = attempts.attempt(load_weights, model, *given)
    attempts.raise_if_any()
    assert train is not None and model is not None
    head = new_head(config, model, weights)

    keywords = {
        'model': model,
        'train_dataloader': train,
        **_built(components, config, model, head),
        **_settings(config),
        'device': device,
    }
    if evaluation is not None:
        keywords |= {'eval_dataloader': evaluation, 'eval_interval': config.eval_interval}
    return Parts(config, _resolved(config, components), train, evaluation, keywords, weights, head)


@dataclass(frozen=True)
class _Components:
    optimizer: Bound
    scheduler: Bound | None
    algorithms: list[Bound]
    callbacks: list[Bound]
    loggers: list[Bound]


def _built(
    components: _Components, config: RunConfig, model: ComposerModel, head: Sequence[str] | None
) -> dict[str, Any]:
    """The components, as arguments of the Trainer."""
    attempts, defaults = Attempts(), _output_defaults(config)
    if head is not None:
        defaults['freezeout'] = {'head': head}
    keywords: dict[str, Any] = {
        key: [attempts.attempt(bound.build, **defaults.get(bound.name, {})) for bound in getattr(components, key)]
        for key in ('algorithms', 'callbacks', 'loggers')
    }
    if config.model.freeze and not any(entry.name == 'freezeout' for entry in config.algorithms):
        keywords['callbacks'].append(FusedPart())
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    keywords['optimizers'] = attempts.attempt(components.optimizer.build, trained)
    keywords['schedulers'] = components.scheduler and attempts.attempt(components.scheduler.build)
    attempts.raise_if_any()
    return keywords


def _settings(config: RunConfig) -> dict[str, Any]:
    """What the Trainer takes as it stands in the configuration."""
    keywords: dict[str, Any] = {
        'train_subset_num_batches': config.train_subset_num_batches or -1,
        'max_duration': config.max_duration,
        'run_name': config.run_name,
        'progress_bar': config.progress_bar,
        'precision': config.precision,
        'device_train_microbatch_size': config.microbatch_size,
        'seed': config.seed,
        'deterministic_mode': config.deterministic,
    }
    if config.checkpoint is not None:
        keywords |= {
            'save_folder': str(config.checkpoint_folder),
            'save_interval': config.checkpoint.interval,
            'save_num_checkpoints_to_keep': config.checkpoint.keep or -1,
            'autoresume': config.checkpoint.resume,
            # Of a run that was ended while it wrote one, that is there in part.
            'save_overwrite': config.checkpoint.resume,
            'load_path': config.checkpoint.load_path,
            'load_progress_bar': config.progress_bar,
        }
    return keywords


def _bind_all(config: RunConfig) -> _Components:
    attempts = Attempts()

    def bind_list(table: Mapping[str, Constructor], entries: list[Component], key: str) -> list[Bound | None]:
        return [attempts.attempt(bind, table, entry, f'{key}.{index}') for index, entry in enumerate(entries)]

    # An optimizer's first argument is the model's parameters.
    optimizer = attempts.attempt(bind, registry.OPTIMIZERS, config.optimizer, 'optimizer', positional=1)
    scheduler = config.scheduler and attempts.attempt(bind, registry.SCHEDULERS, config.scheduler, 'scheduler')
    algorithms = bind_list(registry.ALGORITHMS, config.algorithms, 'algorithms')
    callbacks = bind_list(registry.CALLBACKS, config.callbacks, 'callbacks')
    loggers = bind_list(registry.LOGGERS, config.loggers, 'loggers')
    _check_machine(config, attempts)
    attempts.raise_if_any()
    assert optimizer is not None
    return _Components(optimizer, scheduler, *([b for b in bs if b] for bs in (algorithms, callbacks, loggers)))


def _check_machine(config: RunConfig, attempts: Attempts) -> None:
    attempts.attempt(per_rank, config.train_data.batch_size, 'train_data')
    if config.eval_data is not None:
        attempts.attempt(per_rank, config.eval_data.batch_size, 'eval_data')
    if config.device == 'gpu' and not torch.cuda.is_available():
        attempts.add('device', "'gpu' asks for a CUDA device and torch sees none; use device: cpu or auto")
    elif _device(config) == 'cpu':
        if config.precision != 'fp32':
            attempts.add('precision', f'{config.precision!r} needs a GPU, and this run is on the CPU; use fp32')
        if config.microbatch_size == 'auto':
            attempts.add('microbatch_size', "'auto' needs a GPU, and this run is on the CPU; give a number or null")
    attempts.attempt(check_start, config)


def _device(config: RunConfig) -> str:
    if config.device == 'auto':
        return 'gpu' if torch.cuda.is_available() else 'cpu'
    return config.device


def _output_defaults(config: RunConfig) -> dict[str, dict[str, Any]]:
    """Where components write if the file doesn't say: into the run's own folder."""
    output = Path(config.output)
    rank = dist.get_global_rank()
    log = output / ('log.txt' if rank == 0 else f'log-rank{rank}.txt')
    attempt = 1
    while config.resume and log.exists():
        attempt += 1
        log = log.with_name(f'{log.stem.partition(".")[0]}.{attempt}.txt')
    named = {
        # An unfinished run that is not resumed has no result, and its log goes.
        'file': {'filename': str(log), 'overwrite': True},
        'tensorboard': {'log_dir': str(output / 'tensorboard')},
        'wandb': {'name': config.run_name, 'init_kwargs': {'dir': str(output)}},
        'memory_snapshot': {'folder': str(output / 'torch_traces')},
        'oom_observer': {'folder': str(output / 'torch_traces')},
    }
    return named | {f'{name}_logger': named[name] for name in ('file', 'tensorboard', 'wandb')}


def _resolved(config: RunConfig, components: _Components) -> dict[str, Any]:
    resolved = config.model_dump(mode='json')
    resolved['model'] = resolved_model(config.model)
    resolved['train_data'] = resolved_data(config.train_data, 'train_data')
    if config.eval_data is not None:
        resolved['eval_data'] = resolved_data(config.eval_data, 'eval_data')
    resolved['optimizer'] = dict(components.optimizer.resolved)
    if components.scheduler is not None:
        resolved['scheduler'] = dict(components.scheduler.resolved)
    for key in ('algorithms', 'callbacks', 'loggers'):
        resolved[key] = [dict(bound.resolved) for bound in getattr(components, key)]
    return resolved
