"""How the C library deals with the memory of tensors."""

import ctypes

__all__ = ['keep_memory']

# Of malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_memory() -> bool:
    """Has the C library keep the memory of freed tensors, instead of returning it to the system and asking for it anew.

    When it does so depends on what happens to lie behind them: variants that do the same would differ by a tenth.

    Returns:
        bool: Whether it can be told so; only GNU's can.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
