"""What times are compared by: wall-clock, or CPU time where other processes have held up some runs more than others.

Wall-clock is what training costs, and what is compared as long as it can be. On a CPU that other processes work on too,
it tells more of them than of freezing. That shows in how many cores a run had: its CPU time over its wall-clock.
Freezing changes this number by a few hundredths only, so that arms with other numbers of cores were held up.

CPU time doesn't grow while a run waits for its turn. But it does grow where caches and cores are shared, and while
threads wait in a loop. Whether it is fit to compare shows in work that is the same in all arms: batches with nothing
frozen.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from composer_freezeout.results.record import Epoch, Record, Segment

__all__ = ['SAME_CORES', 'SAME_WORK', 'WALL', 'Clock', 'choose_clock', 'cores', 'seconds_ratio']

# Arms whose numbers of cores differ by no more than this share had the machine to themselves alike.
SAME_CORES = 0.10
# Arms whose CPU times for the same work differ by no more than this share are comparable.
SAME_WORK = 0.10
# Passes of the waiting loop of OpenMP's threads, up to which it costs no time that counts.
_SHORT_SPIN = 10_000


@dataclass(frozen=True)
class Clock:
    """What times are compared by.

    Attributes:
        kind (str): ``'wall-clock'``; ``'CPU'`` if wall-clock tells nothing; ``'none'`` if neither does CPU time.
        note (str): Why it is not wall-clock; empty if it is.
    """

    kind: Literal['wall-clock', 'CPU', 'none'] = 'wall-clock'
    note: str = ''

    @property
    def decides(self) -> bool:
        """Whether there are times to compare."""
        return self.kind != 'none'

    @property
    def time(self) -> str:
        """What a time is called in a table."""
        return 'CPU time' if self.kind == 'CPU' else 'time'

    @property
    def training_time(self) -> str:
        """What it is called in a sentence."""
        return 'CPU time of training' if self.kind == 'CPU' else 'training time'

    def seconds(self, measured: Record | Epoch | Segment) -> float:
        """Seconds of training, by this clock."""
        if isinstance(measured, Segment):
            wall, cpu = measured.seconds, measured.cpu_seconds
        else:
            wall, cpu = measured.training_seconds, measured.training_cpu_seconds
        return cpu if self.kind == 'CPU' and cpu is not None else wall


WALL = Clock()


def choose_clock(runs: Mapping[str, Sequence[Record]]) -> Clock:
    """Decides what the times of some runs are compared by.

    Args:
        runs (Mapping[str, Sequence[Record]]): The runs of each arm.

    Returns:
        Clock: Wall-clock if all arms had the same number of cores, up to :data:`SAME_CORES`; also on a GPU, where CPU
        time tells nothing, and if a record has no CPU time. Else CPU time, if it is the same for the same work, up to
        :data:`SAME_WORK`. Else nothing.
    """
    runs = {arm: records for arm, records in runs.items() if records}
    records = [record for group in runs.values() for record in group]
    if not all(record.effective.device == 'cpu' and record.training_cpu_seconds for record in records):
        return WALL
    shares = [cores(group) for group in runs.values()]
    if not shares or _spread(shares) <= SAME_CORES:
        return WALL
    held_up = (
        f'Other processes held up some arms more than others: from arm to arm, training had {min(shares):.2f} to '
        f'{max(shares):.2f} processor cores to itself. Wall-clock times tell nothing of freezing'
    )
    if any(map(_spins, records)):
        return Clock('none', f'{held_up}, and neither does CPU time, as waiting threads used it up. {_AGAIN}')
    most = max((segment.trainable_parameters for r in records for segment in r.segments), default=0)
    same_work = [seconds for group in runs.values() if (seconds := _with_all_trained(group, most)) is not None]
    spread = _spread(same_work) if same_work else 0.0
    if spread > SAME_WORK:
        found = f'CPU time for the same work differs by up to {100 * spread:.0f} %'
        return Clock('none', f'{held_up}, and neither does CPU time: {found}. {_AGAIN}')
    return Clock('CPU', f'{held_up}; CPU times are compared instead.')


_AGAIN = 'Arms are judged by FLOPs; to judge them by time, run the comparison again on a quiet machine.'


def cores(records: Iterable[Record]) -> float:
    """Cores that runs had to themselves, on average.

    Args:
        records (Iterable[Record]): At least one, all with CPU times.

    Returns:
        float: CPU time of training over its wall-clock, in ``(0, ∞)``.
    """
    records = list(records)
    return sum(r.training_cpu_seconds or 0.0 for r in records) / sum(r.training_seconds for r in records)


def seconds_ratio(above: Sequence[Record], below: Sequence[Record]) -> float:
    """Mean training time of some runs over that of others.

    Args:
        above (Sequence[Record]): At least one.
        below (Sequence[Record]): At least one.

    Returns:
        float: In ``(0, ∞)``; by CPU time if one of the two was held up by other processes.
    """
    clock = choose_clock({'above': above, 'below': below})
    # CPU time that is inflated a little is still nearer to the truth.
    clock = WALL if clock.kind == 'wall-clock' else Clock('CPU')
    means = [sum(map(clock.seconds, records)) / len(records) for records in (above, below)]
    return means[0] / means[1]


def _spread(values: Sequence[float]) -> float:
    return max(values) / min(values) - 1 if min(values) > 0 else float('inf')


def _with_all_trained(records: Sequence[Record], trainable: int) -> float | None:
    """CPU seconds per batch with so many parameters trained; None where there are none, or they were not measured."""
    whole = [s for record in records for s in record.segments if s.trainable_parameters == trainable]
    batches = sum(segment.batches for segment in whole)
    if not batches or any(segment.cpu_seconds is None for segment in whole):
        return None
    return sum(segment.cpu_seconds or 0.0 for segment in whole) / batches


def _spins(record: Record) -> bool:
    """Whether threads that wait for each other use CPU time."""
    if record.hardware.get('threads') == 1:
        return False
    openmp = record.openmp
    if openmp is None:
        return True
    if openmp.spin_count is not None:
        return not (openmp.spin_count.isdecimal() and int(openmp.spin_count) <= _SHORT_SPIN)
    return (openmp.wait_policy or '').strip().lower() != 'passive'
