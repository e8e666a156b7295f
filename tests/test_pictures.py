"""The pictures of README and docs are what the code and the records draw today."""

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import pytest

from .launching import module_of
from .test_results import DRAWN_BY

DOCS = Path(__file__).parent.parent / 'docs'


pictures: Any = module_of(DOCS / 'pictures.py')


def committed(name: str) -> str:
    return (DOCS / 'pictures' / f'{name}.svg').read_text(encoding='utf-8')


def test_each_committed_picture_is_drawn_by_the_command():
    assert {path.stem for path in (DOCS / 'pictures').iterdir()} == set(pictures.PICTURES)


@pytest.mark.parametrize('name', pictures.PICTURES)
@pytest.mark.skipif(not matplotlib.__version__.startswith(DRAWN_BY), reason='another matplotlib places other glyphs')
def test_a_picture_regenerates_to_the_byte(name):
    assert pictures.draw(name) == committed(name)


@pytest.mark.parametrize('name', pictures.PICTURES)
def test_a_picture_is_legible_in_light_and_dark(name):
    text = committed(name)
    ElementTree.fromstring(text)
    assert 'prefers-color-scheme:dark' in text
    # What is nearly black or nearly white follows the scheme.
    fixed = set(re.findall(r'(?:fill|stroke): (#[0-9a-f]{6})', text))
    assert [colour for colour in fixed if not 40 < max(bytes.fromhex(colour[1:])) < 252] == []


@pytest.mark.parametrize('name', pictures.PICTURES)
def test_a_picture_says_what_it_shows(name):
    assert f'<dc:title>{pictures.PICTURES[name][0]}</dc:title>' in committed(name)
