"""The units of a model: which parameters freeze together, and in which order."""

from dataclasses import dataclass

__all__ = ['Unit']


@dataclass(frozen=True)
class Unit:
    """What freezes together.

    Attributes:
        name (str): Name of the module, the parameter or the pattern of ``layers`` that the unit was made from.
        parameters (tuple[str, ...]): Names of its trainable parameters, as in ``model.named_parameters()``.
        norms (tuple[str, ...]): Names of its modules whose buffers a training pass changes, such as BatchNorm.
    """

    name: str
    parameters: tuple[str, ...]
    norms: tuple[str, ...] = ()
