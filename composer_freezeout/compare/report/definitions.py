"""What a report says besides numbers: what was not run, and what the numbers mean."""

from composer_freezeout.compare.arms.known import (
    FREEZEOUT,
    HEAD_ONLY,
    SHORTENED,
    STATIC,
    length_of,
)
from composer_freezeout.compare.judging.clock import SAME_CORES, SAME_WORK
from composer_freezeout.compare.judging.comparison import Comparison
from composer_freezeout.compare.judging.curve import TOLERANCE
from composer_freezeout.compare.judging.score import BY_ACCURACY, Score
from composer_freezeout.compare.report.text import number_text
from composer_freezeout.results.stats import CONFIDENCE

__all__ = ['definitions', 'not_run']


def not_run(comparison: Comparison) -> list[str]:
    """Runs that failed or are missing, and arms that a full comparison has.

    Args:
        comparison (Comparison): The runs.

    Returns:
        list[str]: Lines.
    """
    lines = [
        f'{failure.arm}, seed {failure.seed}: failed with exit code {failure.exit_code}: {failure.message}'
        for failure in comparison.failures
    ]
    lines += [f'{arm}, seed {seed}: no record' for arm, seed in comparison.missing]
    if absent := comparison.absent_arms:
        lines.append(f'Arms of a full comparison that are not part of this one: {", ".join(absent)}.')
    return lines


def _of_metric(score: Score) -> list[str]:
    if score.metric is None:
        return []
    kind = 'more' if score.metric.higher_is_better else 'less'
    return [f'The runs have no accuracy, and are compared by {score.name}, of which {kind} is better.']


def definitions(comparison: Comparison) -> list[str]:
    """What the numbers of a report mean.

    Args:
        comparison (Comparison): The runs.

    Returns:
        list[str]: Sentences, only of what the report has.
    """
    level, outside = number_text(1 - CONFIDENCE, 2), number_text(TOLERANCE, 0, 100)
    score = comparison.score
    means = 'accuracies' if score == BY_ACCURACY else f'values of {score.name}'
    gain = f'its mean {score.name} less the curve’s'
    if score.quality(1.0) < 0:
        gain = f'the curve’s {score.name} less the arm’s mean'
    lines = [
        f'{score.title} is that of the last evaluation, never the best one.',
        *_of_metric(score),
        'Training time runs from the start of fit to its end without evaluations; the first batch is included.',
        'Mean ± sample standard deviation over the seeds; 95 % intervals of means by Student’s t.',
        'The baseline is trained for several lengths, each with its whole schedule compressed. A monotone curve goes '
        f'through its mean {means} over its mean times. The gain of an arm is {gain} at '
        'its mean time.',
        'The interval and p of a gain come from what it is without each seed in turn (the jackknife), by Student’s t: '
        'so they contain the spread of the arm, of the curve and of the times, and leave out what a seed does to all '
        'arms alike. p (Holm) is corrected for the number of arms that are judged.',
        f'An arm pays if its gain is above zero, and does not pay if it is below, with p (Holm) < {level}. Otherwise '
        f'it is undecided. One whose time is more than {outside} % outside of the curve is not judged.',
        'FLOPs are predicted, relative to the whole baseline’s, and do not depend on what else a machine does. '
        'Verdicts are by time; where no times can be compared, by FLOPs.',
        'Differences from the whole baseline are by Welch’s test, and not corrected.',
        *(
            f'{short} is the baseline with its schedule compressed into the training time measured for {source}.'
            for short, source in SHORTENED.items()
            if short in comparison.arms
        ),
        *(
            f'{arm} is the baseline with its schedule compressed to {number_text(length, 0, 100)} % of its batches.'
            for arm in comparison.arms
            if (length := length_of(arm)) is not None
        ),
    ]
    if any(run.record.effective.frozen for run in comparison.runs):
        lines.append(
            f'{STATIC} is the baseline with as many of its first layers frozen from the start as are predicted to save '
            f'what {FREEZEOUT} does, {STATIC}_0.25 with as many as save 25 %; {HEAD_ONLY} trains the last layer alone.'
        )
    if any(run.record.training_cpu_seconds is not None for run in comparison.runs):
        lines.append(
            'CPU time is that of training, over all threads and data workers. Divided by wall-clock it is the number '
            'of cores that training had. If on a CPU that number differs between arms by more than '
            f'{number_text(SAME_CORES, 0, 100)} %, other processes held up some of them, and CPU times are compared '
            'in place of wall-clock. If CPU times of the same work, batches with nothing frozen, differ between arms '
            f'by more than {number_text(SAME_WORK, 0, 100)} %, or if waiting threads use CPU time, no times are '
            'compared.'
        )
    return lines
