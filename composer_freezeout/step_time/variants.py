"""The ways of doing a training step with ``k`` frozen units that are compared.

``loop`` is a PyTorch loop in which the first ``k`` units are frozen by hand; ``bound`` is the same loop with all that
needs no gradient as an inference graph; ``freezeout``, ``layer_freezing`` and ``composer`` are Composer's Trainer with
FreezeOut, with the freezing of Composer's ``LayerFreezing``, and without an algorithm.

In one of several processes all of them exchange gradients under DistributedDataParallel: ``loop`` and ``bound`` wrap
their model once it is frozen, as one would by hand, so that frozen parameters are never exchanged.

A further variant is an entry of :data:`MAKERS`; its name also stands in ``VARIANTS`` of
:mod:`composer_freezeout.step_time.record`, and how it is drawn in :mod:`composer_freezeout.step_time.report`.
"""

from collections.abc import Callable

from composer_freezeout.step_time.in_composer import InComposer
from composer_freezeout.step_time.in_loop import InLoop
from composer_freezeout.step_time.record import VariantName
from composer_freezeout.step_time.with_freezeout import WithFreezeOut
from composer_freezeout.step_time.with_layer_freezing import WithLayerFreezing
from composer_freezeout.step_time.workload import Variant, Workload

__all__ = ['MAKERS', 'make_variant']

# From what is trained and the number of frozen units.
MAKERS: dict[VariantName, Callable[[Workload, int], Variant]] = {
    'loop': lambda workload, units_frozen: InLoop(workload, units_frozen, inference=False),
    'bound': lambda workload, units_frozen: InLoop(workload, units_frozen, inference=True),
    'freezeout': WithFreezeOut,
    'layer_freezing': WithLayerFreezing,
    'composer': lambda workload, _: InComposer(workload),
}


def make_variant(workload: Workload, name: VariantName, units_frozen: int) -> Variant:
    """Makes a variant, with nothing run yet.

    Args:
        workload (Workload): What is trained.
        name (VariantName): Its name.
        units_frozen (int): In ``[0, n)``; without effect on ``composer``.

    Returns:
        Variant: Ready to be visited, any number of times.
    """
    return MAKERS[name](workload, units_frozen)
