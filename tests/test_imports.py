"""The picture of the house: rooms import downwards, and modules of a room in the order that stands here."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import composer_freezeout

PACKAGE = Path(composer_freezeout.__file__).parent

# What the rooms may import, besides themselves.
ROOMS: dict[str, set[str]] = {
    'method': set(),
    'freezing': {'method'},
    'costs': {'freezing', 'method'},
    'algorithm': {'costs', 'freezing', 'method'},
    'results': set(),
    'run': {'results', 'algorithm', 'costs', 'freezing', 'method'},
    'planning': {'run', 'results', 'algorithm', 'costs', 'freezing', 'method'},
    'compare': {'run', 'results', 'algorithm', 'costs', 'freezing', 'method'},
    'step_time': {'run', 'results', 'algorithm', 'costs', 'freezing', 'method'},
}
# Rooms that other loops than Composer's use, and those that need no torch.
WITHOUT_COMPOSER = ['method', 'freezing', 'results']
WITHOUT_TORCH = ['method', 'results']


def modules(room: str = '') -> list[str]:
    """Full names of the modules of a room, or of the package."""
    found = sorted((PACKAGE / room).rglob('*.py'))
    names = ['.'.join(('composer_freezeout', *path.relative_to(PACKAGE).with_suffix('').parts)) for path in found]
    return [name.removesuffix('.__init__') for name in names]


def source(module: str) -> str:
    path = PACKAGE.joinpath(*module.split('.')[1:])
    return (path / '__init__.py' if path.is_dir() else path.with_suffix('.py')).read_text(encoding='utf-8')


def room_of(module: str) -> str:
    """``freezing`` for ``composer_freezeout.freezing.optimizer.groups``; empty for what is in no room."""
    return next(iter([part for part in module.split('.')[1:2] if part in ROOMS]), '')


def imported(text: str) -> set[str]:
    """Full names of the modules that some source imports, wherever it does so."""
    names = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, 'imports are absolute'
            names |= {f'{node.module}.{alias.name}' for alias in node.names} | {str(node.module)}
    return names


def upward(room: str, text: str) -> set[str]:
    """What a module of a room imports of rooms that it may not know."""
    ours = {name for name in imported(text) if name.startswith('composer_freezeout.')}
    return {name for name in ours if room_of(name) not in {room, *ROOMS[room]}}


def packages(text: str) -> set[str]:
    return {name.split('.')[0] for name in imported(text)}


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in turn, if there are such."""
    done: set[str] = set()

    def visit(module: str, way: list[str]) -> list[str]:
        if module in way:
            return way[way.index(module) :]
        if module in done:
            return []
        for other in sorted(graph.get(module, ())):
            if found := visit(other, [*way, module]):
                return found
        done.add(module)
        return []

    for module in sorted(graph):
        if found := visit(module, []):
            return found
    return []


def test_every_module_has_its_room():
    assert {module.split('.')[1] for module in modules() if '.' in module} == {*ROOMS, 'cli'}


@pytest.mark.parametrize('room', ROOMS)
def test_no_room_imports_upward(room):
    assert {module: found for module in modules(room) if (found := upward(room, source(module)))} == {}


@pytest.mark.parametrize('room', WITHOUT_COMPOSER)
def test_the_core_knows_no_composer(room):
    assert [module for module in modules(room) if 'composer' in packages(source(module))] == []


def test_no_modules_import_each_other_in_a_circle():
    known = set(modules())
    assert circle({module: imported(source(module)) & known - {module} for module in known}) == []


@pytest.mark.parametrize('module', [name for room in WITHOUT_TORCH for name in modules(room)])
def test_imports_without_torch(module):
    code = f'import sys, {module}; sys.exit(sorted({{"torch", "composer"}} & set(sys.modules)) or 0)'
    subprocess.run([sys.executable, '-c', code], check=True, timeout=60)


def test_these_tests_can_fail():
    assert upward('method', 'from composer_freezeout.algorithm.freezeout import FreezeOut')
    assert upward('freezing', 'from composer_freezeout.run import build')
    assert upward('planning', 'from composer_freezeout.compare.report import page')
    assert not upward('planning', 'from composer_freezeout.run import build')
    assert 'composer' in packages('from composer.core import Event')
    assert circle({'a': {'b'}, 'b': {'c'}, 'c': {'b'}}) == ['b', 'c']
