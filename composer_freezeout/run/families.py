"""The families of configurations that come with the package, by name."""

from pathlib import Path

import composer_freezeout
from composer_freezeout.run.faults import ConfigError, Fault, Refused, suggest

__all__ = ['PRETRAIN', 'find_config', 'find_family', 'names']

# The file of a family that is no arm: what trains the weights that its arms begin with.
PRETRAIN = 'pretrain'
# The configuration of a family that its name alone stands for.
_DEFAULT = 'freezeout'
_SUFFIXES = ('.yaml', '.yml')


def _root() -> Path:
    package = Path(composer_freezeout.__file__).parent
    # Inside the package where it is installed from a wheel, beside it in a checkout.
    installed = package / 'yamls'
    root = installed if installed.is_dir() else package.parent / 'yamls'
    # Records name files as whoever stands in the checkout would.
    return root.relative_to(Path.cwd()) if root.is_relative_to(Path.cwd()) else root


def _installed() -> dict[str, Path]:
    return {path.name: path for path in sorted(_root().glob('*')) if (path / 'baseline.yaml').is_file()}


def names() -> list[str]:
    """Names of the families.

    Returns:
        list[str]: Sorted.
    """
    return list(_installed())


def find_config(name: str) -> Path:
    """The configuration that an argument of a command line means.

    Args:
        name (str): Path of a YAML file; or a family's name (``quickstart``), for its configuration with FreezeOut; or
            one of its configurations (``quickstart/baseline``).

    Returns:
        Path: The file. A path to where nothing is is returned as it is, for whoever reads it to say so.

    Raises:
        ConfigError: If it is no file, and neither a family nor one of its configurations has that name.
    """
    path = Path(name)
    if path.is_file():
        return path
    family, _, arm = name.removesuffix('.yaml').partition('/')
    folder = _installed().get(family)
    if folder is not None:
        arms = {file.stem: file for file in folder.glob('*.yaml')}
        arm = arm or _DEFAULT
        if arm not in arms:
            fault = f'the family {family!r} has no {arm}; {suggest(arm, arms)}'
            raise ConfigError([Fault('', fault)])
        return arms[arm]
    if path.suffix in _SUFFIXES or path.exists() or '/' in name:
        return path
    raise ConfigError([Fault('', _unknown(name, 'file'))])


def find_family(name: str) -> Path:
    """The folder of a family that an argument of a command line means.

    Args:
        name (str): Path of a folder with a YAML file per arm, or the name of a family that comes with the package.

    Returns:
        Path: The folder.

    Raises:
        Refused: If it is neither.
    """
    path = Path(name)
    known = _installed().get(name)
    # A folder of results may be called as the family that they are of.
    if path.is_dir() and (known is None or any(path.glob('*.yaml'))):
        return path
    if known is None:
        raise Refused(f'{name}: {_unknown(name, "folder")}')
    return known


def _unknown(name: str, kind: str) -> str:
    known = names()
    near = suggest(name, known)
    hint = f'{near} ' if near.startswith('did you mean') else ''
    return f'no such {kind}, and no family of that name; {hint}families: {", ".join(known)}'
