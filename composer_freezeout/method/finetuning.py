"""The setting for fine-tuning: what to give FreezeOut where a model starts from trained weights."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

__all__ = ['FINE_TUNING']

# Early, and unscaled: scaling gives the first layers the largest rates, and theirs are the weights to keep.
FINE_TUNING: Mapping[str, Any] = MappingProxyType({'t_0': 0.3, 'how_scale': 'cubic', 'scale_lr': False})
