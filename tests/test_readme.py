"""The README's Python runs as it stands there, and its commands exist."""

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
README = (ROOT / 'README.md').read_text(encoding='utf-8')


def test_examples_run():
    examples = re.findall(r'```python\n(.*?)```', README, re.DOTALL)
    assert len(examples) == 3
    assert 'algorithms=[FreezeOut()]' in examples[0]
    namespace: dict[str, Any] = {}
    for example in examples:
        exec(compile(example, 'README.md', 'exec'), namespace)
    units = namespace['trainer'].state.algorithms[0].unit_table()
    assert [unit['frozen'] for unit in units] == [True, True, False]
    assert namespace['freezer'].units_frozen == 0  # one unit is left, and it trains to the end


def test_commands_and_files_exist():
    targets = re.findall(r'^(\w[\w-]*):', (ROOT / 'Makefile').read_text(), re.MULTILINE)
    for command in re.findall(r'make ([\w-]+)  ', README):
        assert command in targets
    for path in re.findall(r'\]\(((?!http)[^)]+)\)', README) + re.findall(r'run (yamls/\S+\.yaml)', README):
        assert (ROOT / path).exists(), path
    assert 'make test' in (ROOT / '.ci' / 'run').read_text()


def test_every_argument_is_described():
    from inspect import signature

    from composer_freezeout import FreezeOut

    for name, parameter in signature(FreezeOut).parameters.items():
        assert f'| `{name}` | `{parameter.default!r}` |' in README
