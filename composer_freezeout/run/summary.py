"""What a finished run tells on the terminal."""

from pathlib import Path

from composer_freezeout.results.record import Record

__all__ = ['summary_lines']


def summary_lines(record: Record, path: Path) -> list[str]:
    """The result of a run, in plain lines.

    Args:
        record (Record): What the run measured.
        path (Path): Where that is written.

    Returns:
        list[str]: Accuracy or another metric, training time and predicted saving; what has been frozen; where the
        record is.
    """
    result = f'{record.run_name}: {record.training_seconds:.1f} s of training'
    if record.accuracy is not None:
        result += f', accuracy {record.accuracy:.2%}'
    elif record.metric is not None and (value := record.final.get(record.metric.name)) is not None:
        result += f', {record.metric.name} {value:.4f}'
    if record.predicted_saving:
        result += f', {record.predicted_saving:.1%} of the FLOPs saved by freezing (predicted)'
    return [result, *_started_from(record), *_frozen(record), f'record: {path}']


def _started_from(record: Record) -> list[str]:
    started = record.started_from
    if started is None:
        return []
    return [
        f'went on from {started.path}, after {started.batches} batches; the seconds are those of the '
        f'{record.effective.total_batches} batches since then'
    ]


def _frozen(record: Record) -> list[str]:
    total, part = record.last_batch, record.effective.frozen
    always = [] if part is None else [f'never trained: {part.parameters:,} of {_parameters(record)} parameters']
    frozen = [unit for unit in record.units if unit.frozen_at_batch is not None]
    if frozen:
        first, last = frozen[0], frozen[-1]
        line = f'frozen: {len(frozen)} of {len(record.units)} units, from {_when(first.name, first.frozen_at_batch)}'
        if len(frozen) > 1:
            line += f' to {_when(last.name, last.frozen_at_batch)}'
        return [*always, f'{line}, of {total} batches']
    if record.units:
        return [*always, f'frozen: none of {len(record.units)} units']
    rest = record.epochs[-1].trainable_parameters if record.epochs else record.effective.parameters_total
    fixed = record.effective.parameters_total - rest
    return [*always, f'frozen in the end: {fixed:,} of {_parameters(record)} parameters'] if fixed else []


def _parameters(record: Record) -> str:
    return f'{record.effective.parameters_total:,}'


def _when(name: str, batch: int | None) -> str:
    return f'{name} at batch {batch}'
