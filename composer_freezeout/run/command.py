"""``python -m composer_freezeout.run FILE [key=value …]``: one YAML file, one training run, one record."""

import argparse
import datetime
import os
import shlex
import shutil
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from composer_freezeout.results.environment import environment
from composer_freezeout.results.files import CONFIG, RECORD, json_safe, write_json
from composer_freezeout.results.record import FORMAT, Record
from composer_freezeout.run.config import RunConfig, load
from composer_freezeout.run.families import find_config, names
from composer_freezeout.run.faults import ConfigError, Fault, describe
from composer_freezeout.run.yaml_files import write_yaml

if TYPE_CHECKING:
    from composer_freezeout.run.build import Run

__all__ = ['main']

_EPILOG = """\
examples:
  composer-freezeout run quickstart
  composer-freezeout run quickstart/baseline max_duration=2ep optimizer.lr=0.1
  composer run yamls/quickstart.yaml algorithms.0.t_0=0.5
  composer -n 2 run yamls/quickstart.yaml
  composer -m composer_freezeout.run my.yaml
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Trains what a YAML file describes and writes ``record.json`` to its output folder.

    Args:
        argv (Sequence[str], optional): The file and ``key=value`` overrides. Default: the command line's.

    Returns:
        int: 0, or 2 if the configuration is at fault. What goes wrong in training is raised.
    """
    parser = argparse.ArgumentParser(
        prog='composer-freezeout run',
        description='Train what a YAML file describes; write record.json and config.yaml to its output folder.',
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('file', help=f'a YAML file, or the name of a family: {", ".join(names())}')
    parser.add_argument('overrides', nargs='*', metavar='key=value', help='values that replace those of the file')
    arguments = parser.parse_args(argv)
    command = _command(sys.argv[1:] if argv is None else argv)
    file: str | Path = arguments.file
    try:
        file = find_config(arguments.file)
        config = load(file, arguments.overrides)
        _check_output(config)
        # Imported here: torch and Composer take seconds, and a typing error should be told at once.
        from composer_freezeout.run.build import assemble

        _quieten()
        parts = assemble(config)
        _prepare_output(config)
        run = parts.build()
        _fit(run, config, {'config_file': arguments.file, 'command': command})
    except ConfigError as error:
        _report([describe(fault, file, arguments.overrides) for fault in error.faults])
        return 2
    return 0


def _command(arguments: Sequence[str]) -> str:
    """What to type to do the same again."""
    world_size = os.environ.get('WORLD_SIZE', '1')
    ranks = [] if world_size == '1' else ['-n', world_size]
    script = ['run'] if Path(sys.argv[0]).name == 'run' else ['-m', 'composer_freezeout.run']
    return shlex.join(['composer', *ranks, *script, *arguments])


def _rank() -> int:
    return int(os.environ.get('RANK', '0'))


def _report(lines: Sequence[str]) -> None:
    # The launcher ends all processes as soon as one of them exits, and takes over the first one's code. The others
    # stand back until the first has spoken; if it has nothing to say, the fault is theirs alone, and they speak.
    if _rank() != 0:
        time.sleep(10)
    print(*lines, sep='\n', file=sys.stderr)


def _check_output(config: RunConfig) -> None:
    folder = Path(config.output)
    if folder.exists() and not folder.is_dir():
        raise ConfigError([Fault('output', f'{config.output!r} is a file; give a folder')])
    if config.overwrite:
        return
    remedy = 'set overwrite=true to replace it, or choose another output'
    if (folder / RECORD).exists():
        raise ConfigError([Fault('output', f'{config.output!r} already holds the record of a finished run; {remedy}')])
    checkpoints = config.checkpoint_folder
    if not config.resume and checkpoints.is_dir() and any(checkpoints.iterdir()):
        fault = f'{config.output!r} holds checkpoints of an unfinished run; set checkpoint.resume=true to continue it'
        raise ConfigError([Fault('output', f'{fault}, {remedy}')])


def _prepare_output(config: RunConfig) -> None:
    folder = Path(config.output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError([Fault('output', f'{config.output!r} cannot be created: {error}')]) from error
    if config.overwrite and _rank() == 0:
        for file in (folder / RECORD, folder / CONFIG):
            file.unlink(missing_ok=True)
        for subfolder in (config.checkpoint_folder, folder / 'tensorboard'):
            shutil.rmtree(subfolder, ignore_errors=True)


def _quieten() -> None:
    # About Composer's own code, not about the user's run.
    for message in ('.*pkg_resources.*', '.*torch.cuda.amp.*', '.*`torch.distributed.reduce_op` is deprecated.*'):
        warnings.filterwarnings('ignore', message=message)


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds')


def _fit(run: 'Run', config: RunConfig, origin: Mapping[str, Any]) -> None:
    folder, state, started = Path(config.output), run.trainer.state, _now()
    if _rank() == 0:
        write_yaml(folder / CONFIG, run.config)
    try:
        assert state.max_duration is not None
        # A run that was interrupted after its last checkpoint has only its record left to write.
        if state.timestamp < state.max_duration:
            _train(run, config)
        run.recorder.finish(state)
        results = run.recorder.results(state)
    finally:
        run.trainer.close()
    if _rank() != 0:
        return
    results['predicted_saving'] = _predicted_saving(run, config)
    results['effective'] |= {
        'global_batch_size': config.train_data.batch_size,
        'train_samples': run.train_samples,
        'eval_samples': run.eval_samples,
    }
    record = {
        'format': FORMAT,
        'run_name': config.run_name,
        **origin,
        'config': run.config,
        'seed': config.seed,
        'started_at': started,
        'finished_at': _now(),
        **results,
        **environment(),
    }
    # Validated as whoever reads it does, so that no run leaves what nothing can read.
    write_json(folder / RECORD, Record.model_validate(json_safe(record)).model_dump())


def _train(run: 'Run', config: RunConfig) -> None:
    try:
        run.trainer.fit()
    except ValueError as error:
        given = [f'algorithms.{i}.unit_costs' for i, entry in enumerate(config.algorithms) if entry.name == 'freezeout']
        # How many units there are only the first batch shows.
        if not (given and str(error).startswith('unit_costs ')):
            raise
        raise ConfigError([Fault(given[0], str(error))]) from error


def _predicted_saving(run: 'Run', config: RunConfig) -> float | None:
    """From FLOPs; None if nothing was trained this time, or there is more than one kind of freezing."""
    from composer_freezeout.run.models import build_model
    from composer_freezeout.run.predicted import predict_saving

    state = run.trainer.state
    if run.recorder.example is None or state.dataloader_len is None:
        return None
    epochs = max(1, round(state.timestamp.batch.value / state.dataloader_len.value))
    return predict_saving(build_model(config.model), run.recorder.example, state.algorithms, epochs)


if __name__ == '__main__':
    sys.exit(main())
