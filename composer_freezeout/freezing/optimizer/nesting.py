"""Optimizers that are wrapped around others."""

from torch.optim import Optimizer

__all__ = ['chain_of']


def chain_of(optimizer: Optimizer) -> list[Optimizer]:
    """An optimizer and those that it wraps, outermost first."""
    chain = [optimizer]
    for outer in chain:
        inner = next((value for value in vars(outer).values() if isinstance(value, Optimizer)), None)
        if inner is not None and inner not in chain:
            chain.append(inner)
    return chain
