"""What share of a training freezing saves, in FLOPs."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.compiler import set_stance

from composer_freezeout.costs.first_step import CountingRecorder
from composer_freezeout.costs.flops import step_flops_by_units_frozen
from composer_freezeout.costs.saving import in_stages, predicted_saving
from composer_freezeout.freezing.execution.execution import Execution
from composer_freezeout.freezing.freezer import LayerFreezer

__all__ = ['Saving']


class Saving:
    """Predicts the saving from the step that shows the units, or from a copy of the model.

    Attributes:
        share (float, optional): Share of the FLOPs, in ``[0, 1)``; None as long as it is not known.
    """

    def __init__(self) -> None:
        self.share: float | None = None
        self._recorder: CountingRecorder | None = None

    def recorder(self, execution: Execution) -> CountingRecorder | None:
        """What is to see the operators of the step.

        Args:
            execution (Execution): How the model runs.

        Returns:
            CountingRecorder, optional: None where FLOPs can't be counted.
        """
        self._recorder = CountingRecorder() if execution.counts_flops else None
        return self._recorder

    def from_step(
        self, losses: Sequence[Tensor], parameters: Mapping[str, nn.Parameter], freezer: LayerFreezer
    ) -> None:
        """Takes in what the step has shown.

        Args:
            losses (Sequence[Tensor]): Its losses, before the backward pass.
            parameters (Mapping[str, nn.Parameter]): The trained parameters by name, as they were in it.
            freezer (LayerFreezer): What freezes the units.
        """
        recorder, self._recorder = self._recorder, None
        if recorder is None:
            return
        units = freezer.partition.units
        unit_of = {id(parameters[name]): index for index, unit in enumerate(units) for name in unit.parameters}
        costs = recorder.by_units_frozen(losses, unit_of, len(units))
        if costs is not None:
            self.share = _share(costs, freezer)

    def from_copy(self, execution: Execution, batch: Any, freezer: LayerFreezer) -> float:
        """Counts on a copy of the model.

        Args:
            execution (Execution): How the model runs.
            batch (Any): A batch.
            freezer (LayerFreezer): What freezes the units.

        Returns:
            float: In ``[0, 1)``.

        Raises:
            ValueError: If it can't be counted.
        """
        if not execution.counts_flops:
            raise ValueError(
                'const_time cannot count the FLOPs of a model that is sharded by FSDP; use const_time=False and divide '
                'max_duration by 1 - s, where s is the saving that `composer-freezeout plan` predicts'
            )
        model: Any = execution.module
        with set_stance('force_eager'):
            costs = step_flops_by_units_frozen(model, batch, freezer.partition.units)
        self.share = _share(costs, freezer)
        return self.share


def _share(costs: Sequence[int], freezer: LayerFreezer) -> float:
    return predicted_saving(in_stages(costs, freezer.stages), freezer.freeze_times)
