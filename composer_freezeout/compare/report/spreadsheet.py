"""``summary.csv``: a row for each arm, for notebooks and spreadsheets."""

import csv
import io
from collections.abc import Callable, Sequence

from composer_freezeout.compare.judging.curve import Gain
from composer_freezeout.compare.judging.score import BY_ACCURACY, Score
from composer_freezeout.compare.judging.verdict import ArmResult
from composer_freezeout.results.stats import Summary

__all__ = ['SUMMARY', 'summary_csv']

SUMMARY = 'summary.csv'


def summary_csv(results: Sequence[ArmResult], score: Score = BY_ACCURACY) -> str:
    """Numbers of each arm: shares and not percent, seconds, bytes; what is not known is empty.

    Args:
        results (Sequence[ArmResult]): The arms.
        score (Score): What stands in the columns of accuracies, which are named after it.

    Returns:
        str: A row with the names of the columns, and one for each arm.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator='\n')
    writer.writerow(name.replace('accuracy', score.name) for name in _COLUMNS)
    writer.writerows([[_cell(read(result)) for read in _COLUMNS.values()] for result in results])
    return stream.getvalue()


_Value = str | float | None


def _cell(value: _Value) -> str:
    # As many digits as the same everywhere: the last ones depend on the version of numpy.
    return '' if value is None else value if isinstance(value, str) else f'{value:.8g}'


def _column(*parts: str) -> str:
    return '_'.join(parts)


def _of(name: str, key: Callable[[ArmResult], Summary | None]) -> dict[str, Callable[[ArmResult], _Value]]:
    def read(attribute: str) -> Callable[[ArmResult], _Value]:
        return lambda result: getattr(key(result), attribute, None)

    return {_column(name, 'mean'): read('mean'), _column(name, 'sd'): read('std')}


def _gain(name: str, key: Callable[[ArmResult], Gain | None]) -> dict[str, Callable[[ArmResult], _Value]]:
    def read(attribute: str) -> Callable[[ArmResult], _Value]:
        return lambda result: getattr(getattr(key(result), 'difference', None), attribute, None)

    def end(place: int) -> Callable[[ArmResult], _Value]:
        def value(result: ArmResult) -> _Value:
            gain = key(result)
            interval = gain.difference.interval if gain and gain.difference else None
            return interval[place] if interval else None

        return value

    return {
        _column('gain_at_equal', name): read('value'),
        _column('gain_at_equal', name, 'low'): end(0),
        _column('gain_at_equal', name, 'high'): end(1),
        _column('p_at_equal', name): read('p'),
        _column('p_holm_at_equal', name): lambda result: getattr(key(result), 'p_holm', None),
    }


_COLUMNS: dict[str, Callable[[ArmResult], _Value]] = {
    'arm': lambda r: r.arm,
    'runs': lambda r: r.seconds.n,
    **_of('accuracy', lambda r: r.accuracy),
    'accuracy_n': lambda r: r.accuracy.n if r.accuracy else None,
    **_of('seconds', lambda r: r.seconds),
    **_of('cpu_seconds', lambda r: r.cpu_seconds),
    'flops_of_baseline': lambda r: r.flops,
    'saved_measured': lambda r: r.measured_saving,
    'saved_predicted': lambda r: r.predicted_saving,
    **_of('peak_memory_bytes', lambda r: r.memory),
    **_gain('time', lambda r: r.by_time),
    **_gain('flops', lambda r: r.by_flops),
    'verdict': lambda r: r.verdict,
    'verdict_by': lambda r: r.judged_by if r.verdict and r.verdict != 'not judged' else None,
}
