"""The pages say what is there: examples run, commands and options exist, the drawing of the rooms is the house."""

import ast
import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt

from composer_freezeout import cli

from .test_imports import PACKAGE, ROOMS, modules, source

ROOT = Path(__file__).parent.parent
DOCS = ROOT / 'docs'
PAGES = [*sorted(DOCS.glob('*.md')), ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', ROOT / 'benchmarks' / 'README.md']
PAGES += sorted((ROOT / 'examples').glob('*/README.md'))


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    """Contents of the code blocks of a language; those of none hold commands."""
    tokens = MarkdownIt().parse(page.read_text(encoding='utf-8'))
    return [token.content for token in tokens if token.type == 'fence' and token.info.strip() == language]


def commands(page: Path) -> list[list[str]]:
    """The command lines of a page that call ours, as words."""
    lines = [line for block in blocks(page, '') for line in block.replace('\\\n', ' ').splitlines()]
    words = [shlex.split(line, comments=True) for line in lines if line.startswith('composer-freezeout ')]
    return [line for line in words if line[1:]]


# --- examples and commands


@pytest.mark.parametrize('page', [page for page in PAGES if blocks(page, 'python')], ids=name)
def test_the_examples_of_a_page_run_in_order(page):
    namespace: dict[str, Any] = {}
    for example in blocks(page, 'python'):
        exec(compile(example, name(page), 'exec'), namespace)


@pytest.mark.parametrize('page', [page for page in PAGES if commands(page)], ids=name)
def test_the_commands_of_a_page_and_their_options_exist(page, capsys):
    for _, command, *arguments in commands(page):
        assert command in cli.COMMANDS
        with pytest.raises(SystemExit):
            cli.main([command, '--help'])
        described = capsys.readouterr().out
        for option in re.findall(r'--[a-z-]+', ' '.join(arguments)):
            assert re.search(rf'{option}\b', described), f'{command} {option}'


def test_the_families_that_pages_name_exist():
    for page in PAGES:
        for _, command, *arguments in commands(page):
            if command in ('run', 'plan', 'compare', 'sweep') and not arguments[0].startswith('my'):
                # Of an example in its own folder.
                places = (ROOT / 'yamls', page.parent)
                assert any((at / arguments[0]).exists() for at in places), f'{name(page)}: {arguments[0]}'


# --- links


def links(page: Path) -> list[str]:
    tokens = MarkdownIt('commonmark').enable('table').parse(page.read_text(encoding='utf-8'))
    inner = [child for token in tokens for child in token.children or ()]
    found = [str(child.attrs.get('href') or child.attrs.get('src') or '') for child in inner]
    return [link for link in found if link and not link.startswith(('http:', 'https:', '#'))]


@pytest.mark.parametrize('page', PAGES, ids=name)
def test_relative_links_lead_somewhere(page):
    for link in links(page):
        assert (page.parent / link.partition('#')[0]).exists(), link


def test_each_page_is_in_the_contents():
    lines = [line for block in blocks(DOCS / 'index.md', '{toctree}') for line in block.splitlines()]
    listed = [line for line in lines if line and not line.startswith(':')]
    assert sorted(['index', *listed]) == sorted(page.stem for page in DOCS.glob('*.md'))


def test_the_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, '-m', 'sphinx', '-n', '-W', '--keep-going', '-q', str(DOCS), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr


def named(module: str) -> set[str]:
    """All names that a module's code mentions."""
    nodes = list(ast.walk(ast.parse(source(module))))
    names = {node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    names |= {node.id for node in nodes if isinstance(node, ast.Name)}
    return names | {node.attr for node in nodes if isinstance(node, ast.Attribute)}


def test_what_docstrings_refer_to_is_there():
    names = {module: named(module) for module in modules()}
    short = set().union(*names.values()) | {module.rpartition('.')[2] for module in modules()}
    lost = []
    for module in modules():
        for target in re.findall(r':(?:mod|func|class|data|meth|attr):`[~.]?([\w.]+)`', source(module)):
            home, _, last = target.rpartition('.')
            is_there = target in names or last in (names.get(home, set()) if home.startswith('composer_f') else short)
            lost += [] if is_there else [f'{module}: {target}']
    assert lost == []


# --- architecture

ARCHITECTURE = DOCS / 'architecture.md'


def drawn() -> dict[str, set[str]]:
    """The rooms of the drawing, each with those below it."""
    (drawing,) = blocks(ARCHITECTURE, 'mermaid')
    arrows = re.findall(r'(\w+) --> (\w+)', drawing)
    rooms: dict[str, set[str]] = {room: set() for arrow in arrows for room in arrow}
    for _ in rooms:
        for below, above in arrows:
            rooms[above] |= {below, *rooms[below]}
    return rooms


def test_the_drawing_is_the_house():
    rooms = drawn()
    assert rooms.pop('cli') == set(ROOMS)
    assert rooms == ROOMS


def test_each_room_is_described():
    text = ARCHITECTURE.read_text(encoding='utf-8')
    assert set(re.findall(r'^\| `(\w+)` \|', text, re.MULTILINE)) == {*ROOMS, 'cli'}
    for folder in (PACKAGE / 'freezing').iterdir():
        assert not (folder / '__init__.py').exists() or f'`{folder.name}`' in text


def test_each_file_that_the_architecture_names_exists():
    found = re.findall(r'`([\w/.]+(?:/|\.py|\.yaml))`', ARCHITECTURE.read_text(encoding='utf-8'))
    assert len(found) > 40
    missing = [path for path in found if not (PACKAGE / path).exists() and not (ROOT / path).exists()]
    assert sorted({*missing} - {'baseline.yaml'}) == []


def test_names_that_the_architecture_gives_are_in_the_file_beside_them():
    for path, names in re.findall(
        r'`(\w[\w/]+\.py)`: ((?:`\w+`(?: and |, )?)+)', ARCHITECTURE.read_text(encoding='utf-8')
    ):
        module = importlib.import_module('composer_freezeout.' + path.removesuffix('.py').replace('/', '.'))
        assert [found for found in re.findall(r'`(\w+)`', names) if not hasattr(module, found)] == []
