"""FreezeOut for MosaicML Composer.

`FreezeOut <https://arxiv.org/abs/1706.04983>`_ (Brock et al., 2017) anneals the learning rate of each layer to zero,
the first layers first, and stops training the layers that have reached it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from composer_freezeout.algorithm.freezeout import FreezeOut
    from composer_freezeout.freezing.freezer import LayerFreezer
    from composer_freezeout.freezing.functional import apply_freezeout
    from composer_freezeout.freezing.loop import FreezeOutLoop
    from composer_freezeout.planning.functional import plan
    from composer_freezeout.run.registered import register_data, register_model

__all__ = [
    'FreezeOut',
    'FreezeOutLoop',
    'LayerFreezer',
    '__version__',
    'apply_freezeout',
    'plan',
    'register_data',
    'register_model',
]
__version__ = '0.1.0'

# Looked up on first use, so that `method` and `results` can be had without waiting for torch.
_HOME = {
    'FreezeOut': 'algorithm.freezeout',
    'FreezeOutLoop': 'freezing.loop',
    'LayerFreezer': 'freezing.freezer',
    'apply_freezeout': 'freezing.functional',
    'plan': 'planning.functional',
    'register_data': 'run.registered',
    'register_model': 'run.registered',
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(f'{__name__}.{_HOME[name]}'), name)


def __dir__() -> list[str]:
    # Or `dir` and `help` would tell nothing of what is looked up on first use.
    return sorted({*globals(), *__all__})
