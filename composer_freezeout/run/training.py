"""From a configuration to a trained network and its record."""

import datetime
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from composer_freezeout.results.environment import environment
from composer_freezeout.results.files import CONFIG, RECORD, json_safe, write_json
from composer_freezeout.results.record import FORMAT, Effective, Frozen, Record
from composer_freezeout.run.build import Run, assemble
from composer_freezeout.run.config import RunConfig
from composer_freezeout.run.error_lines import disk_error
from composer_freezeout.run.faults import ConfigError, Fault, Refused
from composer_freezeout.run.frozen import FrozenPart
from composer_freezeout.run.image_files import UnreadableImage
from composer_freezeout.run.models import build_model
from composer_freezeout.run.new_head import head_line
from composer_freezeout.run.output import prepare_output
from composer_freezeout.run.plugins import plugins
from composer_freezeout.run.predicted import predict_backward_left, predict_whole_saving
from composer_freezeout.run.processes import rank
from composer_freezeout.run.starting import check_left, continued
from composer_freezeout.run.weights import weights_line
from composer_freezeout.run.yaml_files import write_yaml

__all__ = ['train']

T = TypeVar('T')


def train(config: RunConfig, origin: Mapping[str, Any]) -> Record | None:
    """Trains what a configuration describes, and writes the record to its output folder.

    Args:
        config (RunConfig): A checked configuration.
        origin (Mapping[str, Any]): ``config_file`` and ``command`` of the record.

    Returns:
        Record, optional: What was measured; None in all processes but the first.

    Raises:
        ConfigError: If the configuration is at fault.
        Refused: If data cannot be read, or the record not be written.
    """
    _quieten()
    parts = assemble(config)
    # Before the run has a checkpoint of its own.
    path = continued(config)
    prepare_output(config, clear=rank() == 0)
    if rank() == 0 and parts.weights is not None:
        print(weights_line(parts.weights), flush=True)
        if parts.head is not None:
            print(head_line(parts.head), flush=True)
    run = parts.build()
    started = _now()
    try:
        state = run.trainer.state
        check_left(config, state, path)
        if rank() == 0:
            write_yaml(Path(config.output) / CONFIG, run.config)
        assert state.max_duration is not None
        # A run that was interrupted after its last checkpoint has only its record left to write.
        if state.timestamp < state.max_duration:
            _fit(run, config)
        run.recorder.finish(state)
        # Before the trainer is closed, whose loggers may fail at that: the run is done.
        record = _record(run, config, origin, started) if rank() == 0 else None
        if record is not None:
            _write(record, Path(config.output) / RECORD)
    finally:
        run.trainer.close()
    return record


def _quieten() -> None:
    # About Composer's own code, not about the user's run; and that the last batch of an evaluation is a short one.
    about_composer = ('.*pkg_resources.*', '.*torch.cuda.amp.*', '.*`torch.distributed.reduce_op` is deprecated.*')
    for message in (*about_composer, 'Cannot split tensor of length .* As it is smaller, no splitting will be done.*'):
        warnings.filterwarnings('ignore', message=message)


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds')


def _fit(run: Run, config: RunConfig) -> None:
    try:
        run.trainer.fit()
    except ValueError as error:
        given = [f'algorithms.{i}.unit_costs' for i, entry in enumerate(config.algorithms) if entry.name == 'freezeout']
        # How many units there are only the first batch shows.
        if not (given and str(error).startswith('unit_costs ')):
            raise
        raise ConfigError([Fault(given[0], str(error))]) from error
    except UnreadableImage as error:
        raise Refused(str(error)) from error
    except (OSError, RuntimeError) as error:
        disk = disk_error(error)
        if disk is None:
            raise
        again = 'train again' if config.checkpoint is None else 'continue with checkpoint.resume=true'
        raise Refused(f'{config.output}: {disk.strerror}; free some space there, and {again}') from error


def _record(run: Run, config: RunConfig, origin: Mapping[str, Any], started: str) -> Record:
    state, recorder = run.trainer.state, run.recorder
    effective = Effective(
        **json_safe(recorder.effective(state)),
        global_batch_size=config.train_data.batch_size,
        train_samples=run.train_samples,
        eval_samples=run.eval_samples,
        frozen=_frozen(config),
    )
    return Record(
        format=FORMAT,
        run_name=config.run_name,
        **origin,
        config=json_safe(run.config),
        seed=config.seed,
        started_at=started,
        finished_at=_now(),
        effective=effective,
        **recorder.results(state),
        predicted_saving=_foretold(_predicted_saving, run, config),
        backward_left=_foretold(_backward_left, run, config),
        plugins=plugins(),
        **environment(),
    )


def _frozen(config: RunConfig) -> Frozen | None:
    if not config.model.freeze:
        return None
    # Of the model as it was built: another one's names may have changed by now.
    part = FrozenPart(build_model(config.model), config.model.freeze)
    return Frozen(modules=part.modules(), parameters=part.size())


def _foretold(predict: Callable[[Run, RunConfig], T | None], run: Run, config: RunConfig) -> T | None:
    """What is predicted; None where a model of the user's own cannot be counted: its training is done."""
    try:
        return predict(run, config)
    except Exception as error:
        if not config.model.registered:
            raise
        reason = f'{type(error).__name__}: {" ".join(str(error).split())[:200]}'
        print(f'the FLOPs of {config.model.name} cannot be counted, and no saving is predicted ({reason})', flush=True)
        return None


def _predicted_saving(run: Run, config: RunConfig) -> float | None:
    """From FLOPs; None if not all of the schedule was trained this time, or there is more than one kind of freezing."""
    example, epochs = run.recorder.example, _epochs(run)
    if example is None or epochs is None:
        return None
    return predict_whole_saving(config.model, example, run.trainer.state.algorithms, epochs)


def _backward_left(run: Run, config: RunConfig) -> dict[str, float] | None:
    """As parameters freeze; None where the saving isn't predicted either."""
    example, epochs = run.recorder.example, _epochs(run)
    if example is None or epochs is None:
        return None
    left = predict_backward_left(build_model(config.model), example, run.trainer.state.algorithms, epochs)
    # Keys of JSON are text.
    return None if left is None else {str(trainable): share for trainable, share in left.items()}


def _epochs(run: Run) -> int | None:
    """Length of the schedule; None if not all of it was trained this time, or an epoch has no length."""
    state = run.trainer.state
    if run.recorder.started_from is not None or state.dataloader_len is None:
        return None
    return max(1, round(state.timestamp.batch.value / state.dataloader_len.value))


def _write(record: Record, path: Path) -> None:
    content = record.model_dump()
    try:
        write_json(path, content)
    except OSError as error:
        raise Refused(
            f'{path}: cannot be written: {error.strerror}; the run is done, and {_rescue(content)}'
        ) from error


def _rescue(content: Mapping[str, Any]) -> str:
    """Hours of training are not lost because the disk was full at their end."""
    try:
        elsewhere = Path(tempfile.gettempdir()) / f'{content["run_name"]}-{os.getpid()}-{RECORD}'
        write_json(elsewhere, content)
    except OSError:
        print(json.dumps(content, allow_nan=False), file=sys.stdout, flush=True)
        return 'its record is printed instead'
    return f'its record is in {elsewhere}'
