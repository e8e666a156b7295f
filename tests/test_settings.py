"""The settings stand in one place, and all who take them agree on what they are."""

import dataclasses
import inspect
import re
from typing import Any

import pytest

from composer_freezeout import FreezeOut, LayerFreezer, apply_freezeout
from composer_freezeout.method.settings import Settings

FIELDS = {field.name: field.default for field in dataclasses.fields(Settings)}


def described(of: Any) -> dict[str, str]:
    """What the docstring says of each argument."""
    section = re.search(r'Args:\n(.*?)\n\n', inspect.getdoc(of) or '', re.DOTALL)
    assert section is not None
    entries = re.findall(r'^ {4}(\w+) (.*?)(?=^ {4}\w|\Z)', section[1], re.DOTALL | re.MULTILINE)
    return {name: ' '.join(text.split()) for name, text in entries}


@pytest.mark.parametrize('user', [FreezeOut, apply_freezeout])
def test_what_users_read_of_a_setting_is_the_same_everywhere(user):
    assert {name: text for name, text in described(user).items() if name in FIELDS} == described(Settings)


@pytest.mark.parametrize('user', [FreezeOut, apply_freezeout, LayerFreezer])
def test_the_defaults_are_the_same_everywhere(user):
    arguments = inspect.signature(user).parameters
    # That is given the units.
    of_units = {'layers', 'granularity', 'max_stages', 'head'} if user is LayerFreezer else set()
    taken = FIELDS.keys() - of_units
    assert {name: arguments[name].default for name in taken} == {name: FIELDS[name] for name in taken}


def test_every_setting_but_fuse_frozen_stands_in_checkpoints_as_plain_values():
    state = Settings(layers=('a', 'b'), unit_costs=(1, 0), head=('b',)).state_dict()
    assert state.keys() == FIELDS.keys() - {'fuse_frozen'}
    assert (state['layers'], state['unit_costs'], state['head']) == (['a', 'b'], [1, 0], ['b'])


def test_later_changes_to_a_list_change_no_settings():
    layers = ['a']
    settings = Settings(layers=layers)
    layers.append('b')
    assert settings.layers == ('a',)


@pytest.mark.parametrize(
    ('arguments', 'told'),
    [
        ({'t_0': 1.4}, r't_0 must be in \(0, 1\], got 1.4'),
        ({'granularity': 'layer'}, "granularity must be one of module, block, got 'layer'"),
        ({'layers': ['a'], 'granularity': 'block'}, 'layers already says what the units are'),
        ({'max_stages': 0}, 'max_stages must be at least 1'),
    ],
)
def test_settings_check_themselves(arguments, told):
    with pytest.raises(ValueError, match=told):
        Settings(**arguments)
