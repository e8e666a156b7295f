"""What never trains runs with the operators of inference while the rest trains, as what FreezeOut freezes does."""

from composer.core import Callback, State
from composer.loggers import Logger

from composer_freezeout.freezing.execution.find import execution_of
from composer_freezeout.freezing.prefix.prefix import FrozenPrefix

__all__ = ['FusedPart']


class FusedPart(Callback):
    """Fuses what is frozen from the start, for runs without FreezeOut, which would do it.

    The rival that is frozen by hand is to have the same operators as FreezeOut, or times would not be comparable.
    """

    def __init__(self) -> None:
        self.prefix: FrozenPrefix | None = None

    def fit_start(self, state: State, logger: Logger) -> None:
        """Fuses, once algorithms have put their modules into the model, and before the first pass."""
        self.prefix = FrozenPrefix(execution_of(state.model).module, ())
        self.prefix.set_frozen(0)

    def fit_end(self, state: State, logger: Logger) -> None:
        """Leaves the model as it is without."""
        if self.prefix is not None:
            self.prefix.release()
