"""What a record of step times says, with the spread of what it says."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from composer_freezeout.costs.saving import in_stages, interpolated, predicted_saving
from composer_freezeout.method.schedule import freeze_stages, freeze_times
from composer_freezeout.run.faults import Refused
from composer_freezeout.run.validation import faults_of
from composer_freezeout.step_time.record import Measurement

__all__ = ['RECORD', 'Result', 'load_result']

RECORD = 'step_time.json'
_RESAMPLES = 1000


class Result:
    """A record, with the questions that are asked of it.

    Spreads are by bootstrap: restarts are drawn with replacement, and of each of them rounds, in which all variants had
    their turn, the same for all variants. So what made a round slow for all of them is no spread of a ratio.

    Args:
        record (Measurement): The record.

    Attributes:
        record (Measurement): The same.
        units (int): Number of units ``n``, in ``[1, ∞)``.
        measured (list[int]): Numbers of frozen units at which steps were measured, ascending.
    """

    def __init__(self, record: Measurement) -> None:
        self.record = record
        self.units = len(record.units)
        self.rows = {(row.variant, row.units_frozen): row for row in record.rows}
        # Composer alone is measured with none frozen, whatever was asked for.
        self.measured = sorted({frozen for variant, frozen in self.rows if variant != 'composer'})
        self.seconds = {key: np.asarray(row.seconds) for key, row in self.rows.items()}
        restarts, rounds, _ = record.rows[0].shape
        generator = np.random.default_rng(0)
        # The sample itself comes first.
        drawn = np.vstack([np.arange(restarts), generator.integers(restarts, size=(_RESAMPLES, restarts))])
        within = generator.integers(rounds, size=(_RESAMPLES, restarts, rounds))
        within = np.concatenate([np.broadcast_to(np.arange(rounds), (1, restarts, rounds)), within])
        self._medians = {
            key: np.median(seconds[drawn[:, :, None], within].reshape(len(drawn), -1), axis=1)
            for key, seconds in self.seconds.items()
        }

    @property
    def on_gpu(self) -> bool:
        """Whether it ran on a GPU."""
        return self.record.settings.device == 'gpu'

    @property
    def processes(self) -> int:
        """How many processes trained together, in ``[1, ∞)``."""
        return self.record.settings.processes

    @property
    def ends(self) -> bool:
        """Whether steps with none and with all but the last unit frozen were measured."""
        return {0, self.units - 1} <= set(self.measured)

    def step(self, variant: str, frozen: int = 0) -> np.ndarray:
        """Median seconds of a step, shape ``(1 + resamples,)``: of the sample, then of what was drawn from it."""
        return self._medians[variant, frozen]

    def mean_step(self, variant: str, max_stages: int | None = None) -> np.ndarray:
        """Seconds of a step, averaged over a run with the default schedule, shape ``(1 + resamples,)``.

        Args:
            variant (str): The variant.
            max_stages (int, optional): How often units freeze, in ``[1, ∞)``. Default: ``None``, each by itself.

        Returns:
            np.ndarray: Of the sample, then of what was drawn from it.
        """
        times, stages = freeze_times(self.units), freeze_stages(self.units, max_stages)
        steps = np.stack([self.step(variant, frozen) for frozen in self.measured], axis=1)

        def mean(sample: np.ndarray) -> float:
            costs = interpolated(dict(zip(self.measured, sample.tolist(), strict=True)), self.units)
            return costs[0] * (1 - predicted_saving(in_stages(costs, stages), times))

        return np.array([mean(sample) for sample in steps])

    def saving(self, variant: str, max_stages: int | None = None) -> np.ndarray:
        """Share of the time that a variant saves over a run, against Composer or the loop without freezing.

        Args:
            variant (str): The variant.
            max_stages (int, optional): How often units freeze, in ``[1, ∞)``. Default: ``None``, each by itself.

        Returns:
            np.ndarray: Of the sample, then of what was drawn from it, shape ``(1 + resamples,)``.
        """
        whole = self.step('loop') if variant in ('loop', 'bound') else self.step('composer')
        return 1 - self.mean_step(variant, max_stages) / whole

    def counts(self, variant: str, frozen: int) -> Mapping[str, int]:
        """What was counted of a step."""
        return self.rows[variant, frozen].counts


def load_result(folder: Path) -> Result:
    """Reads a record.

    Args:
        folder (Path): Where it is.

    Returns:
        Result: Its content.

    Raises:
        Refused: If it cannot be read, or is damaged; names the file.
    """
    path = folder / RECORD
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except OSError as error:
        raise _refused(path, str(error.strerror)) from None
    except (ValueError, RecursionError) as error:
        raise _refused(path, f'damaged JSON: {error}') from None
    try:
        return Result(Measurement.model_validate(content))
    except ValidationError as error:
        key, message = faults_of(error, Measurement, content)[0]
        raise _refused(path, f'{key}: {message}' if key else message) from None


def _refused(path: Path, reason: str) -> Refused:
    return Refused(f'{path}: not a record of step times ({reason}); give the folder of a measurement, or measure anew')
