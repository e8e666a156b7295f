"""Equality to the bit, of whatever checkpoints and records hold."""

from typing import Any

import numpy as np
import torch


def assert_equal(a: Any, b: Any, at: str = '') -> None:
    """Fails where two nested structures differ, and says where."""
    assert type(a) is type(b), at
    if isinstance(a, dict):
        assert a.keys() == b.keys(), at
        for key in a:
            assert_equal(a[key], b[key], f'{at}.{key}')
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), at
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f'{at}[{index}]')
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), at
    elif isinstance(a, np.ndarray):
        assert np.array_equal(a, b), at
    else:
        assert a == b, at
