"""Imports go one way: from the edge (run, build) to the core (schedule)."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import composer_freezeout

PACKAGE = Path(composer_freezeout.__file__).parent

# Each module may import those before it, never those after.
ORDER = [
    'allocation',
    'schedule',
    'cost',
    'stats',
    'config',
    'graph',
    'hooks',
    'observation',
    'snapshot',
    'rehearsal',
    'units',
    'partition',
    'multi_tensor',
    'scheduler_lists',
    'trial',
    'groups',
    'compilation',
    'distributed',
    'activation_checkpoints',
    'folding',
    'freezing',
    'starvation',
    'buffers',
    'checkpoint',
    'freezer',
    'loop',
    'progress',
    'flops',
    'algorithm',
    'predict',
    'registry',
    'models',
    'mds',
    'data',
    'record',
    'build',
    'run',
    'comparison',
    'comparison_plots',
    'report',
    'profile',
    'plan',
    'plan_plots',
    'cli',
]
WITHOUT_TORCH = ['allocation', 'schedule', 'cost', 'stats', 'config', 'comparison', 'comparison_plots', 'report']
CORE = [*ORDER[: ORDER.index('progress')]]


def imported(source: str) -> set[str]:
    """Full names of the modules that some source imports, wherever it does so."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, 'imports are absolute'
            names |= {f'{node.module}.{alias.name}' for alias in node.names} | {str(node.module)}
    return names


def upward(module: str, source: str) -> set[str]:
    later = ORDER[ORDER.index(module) :]
    return {name for name in imported(source) for other in later if name == f'composer_freezeout.{other}'}


def packages(source: str) -> set[str]:
    return {name.split('.')[0] for name in imported(source)}


def test_every_module_has_its_place():
    assert {path.stem for path in PACKAGE.glob('*.py')} - {'__init__'} == set(ORDER)


@pytest.mark.parametrize('module', ORDER)
def test_no_module_imports_upward(module):
    assert upward(module, (PACKAGE / f'{module}.py').read_text()) == set()


@pytest.mark.parametrize('module', CORE)
def test_the_core_knows_no_composer(module):
    assert 'composer' not in packages((PACKAGE / f'{module}.py').read_text())


@pytest.mark.parametrize('module', WITHOUT_TORCH)
def test_imports_without_torch(module):
    code = f'import sys, composer_freezeout.{module}; sys.exit(sorted({{"torch", "composer"}} & set(sys.modules)) or 0)'
    subprocess.run([sys.executable, '-c', code], check=True, timeout=60)


def test_these_tests_can_fail():
    assert upward('schedule', 'from composer_freezeout.algorithm import FreezeOut')
    assert upward('freezing', 'from composer_freezeout import build')
    assert 'composer' in packages('from composer.core import Event')
