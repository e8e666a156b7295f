"""The plugin for Composer: events in, calls of :mod:`composer_freezeout.freezing` out."""

from composer_freezeout.algorithm.freezeout import FreezeOut

__all__ = ['FreezeOut']
