"""The folder of the results."""

import json
from pathlib import Path
from typing import Any

from composer_freezeout.compare.arms.family import Refused
from composer_freezeout.compare.judging.manifest import merged
from composer_freezeout.results.files import MANIFEST

__all__ = ['prepare_folder']


def prepare_folder(out: Path, manifest: dict[str, Any], overwrite: bool) -> dict[str, Any]:
    """Finds out what the folder of the results holds.

    Args:
        out (Path): The folder. Nothing in it is changed.
        manifest (dict[str, Any]): That of this command.
        overwrite (bool): Whether to begin anew.

    Returns:
        dict[str, Any]: The manifest to go on with.

    Raises:
        Refused: If the folder holds something else, or another comparison.
    """
    if out.exists() and not out.is_dir():
        raise Refused([f'--out: {out} is a file; give a folder'])
    if overwrite or not out.exists():
        return manifest
    path = out / MANIFEST
    try:
        earlier = json.loads(path.read_text(encoding='utf-8'))
        return merged(earlier, manifest, path)
    except FileNotFoundError:
        if any(out.iterdir()):
            line = f'--out: {out} is not empty and holds no {MANIFEST}; choose another folder, or use --overwrite'
            raise Refused([line]) from None
        return manifest
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        line = f'{path}: not a manifest of a comparison ({error}); choose another --out, or use --overwrite'
        raise Refused([line]) from None
