"""Versions, hardware and code that a measurement was made with."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

__all__ = ['checkout', 'environment']

_PACKAGE = Path(__file__).resolve().parents[1]
_VERSIONS = {
    'composer': 'mosaicml',
    'composer_freezeout': 'composer-freezeout',
    'torch': 'torch',
    'torchvision': 'torchvision',
    'numpy': 'numpy',
}


def environment() -> dict[str, Any]:
    """Versions, hardware and code of this process.

    Returns:
        dict[str, Any]: ``versions``, ``hardware``, ``git`` (null if the package is not installed from a checkout) and
        ``openmp``, how threads on a CPU wait for each other.
    """
    # Imported here: whoever reads a record needs no torch.
    import torch

    return {
        'versions': {'python': platform.python_version()}
        | {name: metadata.version(package) for name, package in _VERSIONS.items()},
        'hardware': {
            'cpu': _cpu_model(),
            'logical_cores': os.cpu_count(),
            'usable_cores': len(psutil.Process().cpu_affinity() or []) if hasattr(os, 'sched_getaffinity') else None,
            'threads': torch.get_num_threads(),
            'memory_bytes': psutil.virtual_memory().total,
            'gpu': torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        'git': checkout(_PACKAGE),
        'openmp': {
            'wait_policy': os.environ.get('OMP_WAIT_POLICY'),
            'spin_count': os.environ.get('GOMP_SPINCOUNT'),
        },
    }


def _cpu_model() -> str:
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.processor() or platform.machine()


def checkout(package: Path) -> dict[str, Any] | None:
    """The commit that a package's code is at.

    Args:
        package (Path): Folder of the package.

    Returns:
        dict[str, Any], optional: ``commit``, and ``dirty``, whether files differ from it; None if the folder is not
        part of a git repository, as that of an installed wheel.
    """
    # These name another repository than that of the folder; in a git hook they are set.
    variables = {key: value for key, value in os.environ.items() if key not in ('GIT_DIR', 'GIT_WORK_TREE')}

    def output(*arguments: str) -> str:
        command = ['git', '-C', str(package), *arguments]
        return subprocess.run(command, env=variables, capture_output=True, text=True, check=True).stdout.strip()

    try:
        # A virtual environment may lie in somebody's repository, which knows nothing of the packages in it.
        output('ls-files', '--error-unmatch', '__init__.py')
        return {'commit': output('rev-parse', 'HEAD'), 'dirty': bool(output('status', '--porcelain'))}
    except (OSError, subprocess.CalledProcessError):
        return None
