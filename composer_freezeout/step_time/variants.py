"""The ways of doing a training step with ``k`` frozen units that ``step_time.py`` compares.

``loop`` is a PyTorch loop in which the first ``k`` units are frozen by hand; ``bound`` is the same loop with all that
needs no gradient as an inference graph; ``freezeout``, ``layer_freezing`` and ``composer`` are Composer's Trainer with
FreezeOut, with the freezing of Composer's ``LayerFreezing``, and without an algorithm.

In one of several processes all of them exchange gradients under DistributedDataParallel: ``loop`` and ``bound`` wrap
their model once it is frozen, as one would by hand, so that frozen parameters are never exchanged.
"""

from composer_freezeout.step_time.in_composer import InComposer, VariantName
from composer_freezeout.step_time.in_loop import InLoop
from composer_freezeout.step_time.workload import Variant, Workload

__all__ = ['VARIANTS', 'make_variant']

VARIANTS: tuple[VariantName, ...] = ('loop', 'bound', 'freezeout', 'layer_freezing', 'composer')


def make_variant(workload: Workload, name: VariantName, units_frozen: int) -> Variant:
    """Makes a variant, with nothing run yet.

    Args:
        workload (Workload): What is trained.
        name (VariantName): One of :data:`VARIANTS`.
        units_frozen (int): In ``[0, n)``.

    Returns:
        Variant: Ready to be visited, any number of times.
    """
    if name in ('loop', 'bound'):
        return InLoop(workload, units_frozen, inference=name == 'bound')
    return InComposer(workload, name, units_frozen)


# --- in a loop


# --- in Composer
