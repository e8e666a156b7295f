"""What can be told before training: all surgery is done, and the duration may be known."""

from composer.core import State, Time

from composer_freezeout.algorithm.progress import as_progress
from composer_freezeout.freezing.execution.find import execution_of
from composer_freezeout.freezing.observing.head import check_head
from composer_freezeout.freezing.observing.partition import partition_model
from composer_freezeout.method.schedule import check_warmup
from composer_freezeout.method.settings import Settings

__all__ = ['check_batches', 'check_early']


def check_early(state: State, settings: Settings, t_warmup: Time | None) -> None:
    """Checks the settings against the model and the duration.

    Args:
        state (State): The trainer's state, after loading.
        settings (Settings): What the user has chosen.
        t_warmup (Time, optional): How long all units warm up.

    Raises:
        ValueError: If they don't fit.
    """
    model = execution_of(state.model).module
    if settings.layers is not None:
        partition = partition_model(model, layers=settings.layers, head=settings.head)
        settings.freeze_times(len(partition.units), partition.heads)
    elif settings.head is not None:
        check_head(model, settings.head)
    if t_warmup is not None and state.max_duration is not None and state.dataloader_len is not None:
        holders = sum(any(p.requires_grad for p in m.parameters(recurse=False)) for m in model.modules())
        num_units = max(1, holders) if settings.unit_costs is None else len(settings.unit_costs)
        # With costs and a head the first batch alone shows how many units freeze, and with it when the first one does.
        if settings.unit_costs is None or settings.head is None:
            check_warmup(as_progress(t_warmup, state), settings.freeze_times(num_units)[0])


def check_batches(state: State) -> None:
    """Checks that there is something to train on.

    Raises:
        ValueError: If there is not.
    """
    if state.dataloader_len is not None and state.dataloader_len.value == 0:
        raise ValueError(
            'the train dataloader has no batches: its data set is empty, or smaller than a batch with '
            'drop_last=True, or train_subset_num_batches is 0; give it at least one batch'
        )
