"""Starts a script in several processes and reads what each of them has written; or has it as a module."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

ROOT = Path(__file__).parent.parent


def launch(processes: int, script: Path, folder: Path, *arguments: str) -> list[dict[str, Any]]:
    """The script gets the folder and the arguments, and writes ``<folder>/rank<r>.pt``."""
    module = '.'.join(script.relative_to(ROOT).with_suffix('').parts)
    subprocess.run(
        [Path(sys.executable).with_name('composer'), '-n', str(processes), '-m', module, str(folder), *arguments],
        check=True,
        cwd=ROOT,
        env={**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'},
        timeout=280,
    )
    return [torch.load(folder / f'rank{rank}.pt', weights_only=False) for rank in range(processes)]


def module_of(script: Path) -> ModuleType:
    """A script that is in no package, imported under its own name."""
    spec = importlib.util.spec_from_file_location(script.stem, script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
