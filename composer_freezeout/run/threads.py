"""How OpenMP's threads wait for each other on a CPU. To be settled before torch is imported, which reads it then."""

import os
import sys

__all__ = ['SPIN_COUNT', 'settle_threads']

# How often a thread looks before it sleeps. By default it looks for milliseconds, and takes the CPU from the very
# thread that it waits for as soon as the machine has other work: training then takes many times as long. Sleeping at
# once (OMP_WAIT_POLICY=PASSIVE) doubles the time on a quiet machine.
SPIN_COUNT = 1000
_VARIABLES = ('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT')


def settle_threads() -> None:
    """Makes threads of this process, and of those that it starts, wait for a short time only before they sleep.

    Does nothing where the user has said how they are to wait, or torch is there already.
    """
    if not any(name in os.environ for name in _VARIABLES) and 'torch' not in sys.modules:
        os.environ['GOMP_SPINCOUNT'] = str(SPIN_COUNT)
