"""Models that users have registered: called with the arguments of a YAML file, and made ready for a Trainer."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from composer.models import ComposerClassifier, ComposerModel
from torch import nn

from composer_freezeout.run.config import ModelConfig
from composer_freezeout.run.faults import ConfigError, Fault
from composer_freezeout.run.registered import MODELS
from composer_freezeout.run.registry import constructed
from composer_freezeout.run.signatures import check_arguments

__all__ = ['build_own_model', 'called', 'resolved_model']

# Keys that models of this package have, and others may.
_SHARED = ('num_classes', 'in_channels')


@contextmanager
def called(path: str, arguments: Mapping[str, Any]) -> Iterator[None]:
    """Tells what a user's function refuses as a fault: wrong values, and files that it does not find.

    Other errors are mistakes in its code, which a traceback explains.

    Args:
        path (str): Key path of the section.
        arguments (Mapping[str, Any]): The section's arguments.
    """
    try:
        with constructed(path, arguments):
            yield
    except ConfigError as error:
        if isinstance(error.__cause__, TypeError):
            raise error.__cause__ from None
        raise
    except OSError as error:
        raise ConfigError([Fault(path, ' '.join(str(error).split())[:400])]) from error


def build_own_model(config: ModelConfig, path: str) -> ComposerModel:
    """Builds a registered model.

    Args:
        config (ModelConfig): Its name and arguments.
        path (str): Key path of the section, for errors.

    Returns:
        ComposerModel: The model; a plain module as a classifier, with cross entropy and accuracy.

    Raises:
        ConfigError: If an argument is unknown, missing or refused, or it is no model.
    """
    arguments, resolved = _checked(config, path)
    with called(path, arguments):
        model = MODELS[config.name].make(**arguments)
    if isinstance(model, ComposerModel):
        if config.num_classes is not None and 'num_classes' not in arguments:
            fault = f'{config.name} has no argument of this name, and has metrics of its own; remove it'
            raise ConfigError([Fault(f'{path}.num_classes', fault)])
        return model
    if not isinstance(model, nn.Module):
        fault = f'{config.name} returned {type(model).__name__}; let it return a torch.nn.Module or a ComposerModel'
        raise ConfigError([Fault(f'{path}.name', fault)])
    classes = config.num_classes or resolved.get('num_classes')
    if not isinstance(classes, int):
        fault = (
            f'is missing: {config.name} returned a plain module, which is trained as a classifier; '
            'give it, or let it return a ComposerModel, which has its own loss'
        )
        raise ConfigError([Fault(f'{path}.num_classes', fault)])
    return ComposerClassifier(model, num_classes=classes)


def resolved_model(config: ModelConfig) -> dict[str, Any]:
    """The section as a record holds it: that of a registered model with its function's defaults.

    Args:
        config (ModelConfig): The section.

    Returns:
        dict[str, Any]: As JSON can hold it.

    Raises:
        ConfigError: If an argument is at fault.
    """
    if not config.registered:
        return config.model_dump(mode='json')
    _, resolved = _checked(config, 'model')
    shared = {} if config.num_classes is None else {'num_classes': config.num_classes}
    return {'name': config.name, **shared, **resolved, 'weights': config.weights, 'freeze': config.freeze}


def _checked(config: ModelConfig, path: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments for the call, and all of them with the defaults."""
    registered = MODELS[config.name]
    given = {key: getattr(config, key) for key in _SHARED if key in config.model_fields_set}
    # A plain module may leave the number of classes to what it is trained as.
    if given.get('num_classes') is None or 'num_classes' not in registered.parameters:
        given.pop('num_classes', None)
    return check_arguments(registered.make, {**given, **config.arguments}, path)
