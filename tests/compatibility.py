"""The table of what FreezeOut has been tried with, out of the tests that tried it.

A test declares its feature with `@pytest.mark.compatibility('EMA', note='…')`. The verdict is what came of it.
"""

import inspect
from collections.abc import Iterable
from pathlib import Path
from typing import Any

WORKS, NOTED, REFUSED, NEEDS_GPU = 'works', 'works with a note', 'refused with a message', 'not run here: needs a GPU'
FAILS, SKIPPED = 'fails', 'not run here'
# Of several tests of one feature the first of these that occurs is the verdict.
ORDER = (FAILS, SKIPPED, REFUSED, NOTED, WORKS, NEEDS_GPU)

COMMAND = (
    "python -m pytest tests/test_{company,observation,wild,loop,optimizers}.py -m 'not gpu' --compatibility-table "
    'docs/compatibility.md'
)
HEAD = f"""# Compatibility

What FreezeOut has been tried with, and what came of it: Composer's other algorithms, habits and models as they are met
in the wild, training loops without a trainer, and optimizers. Each row is the result of tests that compare with the
expected behaviour and not only that nothing is raised. Written by

```
{COMMAND}
```

| feature | verdict | note |
|---|---|---|
"""


def expected_verdict(function: Any, note: str, gpu: bool) -> str:
    """The verdict that a passing test stands for; one that takes the `refusal` fixture is about a refusal."""
    if gpu:
        return NEEDS_GPU
    if 'refusal' in inspect.signature(function).parameters:
        return REFUSED
    return NOTED if note else WORKS


class Table:
    """Verdicts and notes by feature."""

    def __init__(self) -> None:
        self.verdicts: dict[str, set[str]] = {}
        self.notes: dict[str, list[str]] = {}

    def add(self, feature: str, verdict: str, note: str) -> None:
        self.verdicts.setdefault(feature, set()).add(verdict)
        notes = self.notes.setdefault(feature, [])
        if note and note not in notes:
            notes.append(note)

    def rows(self) -> list[tuple[str, str, str]]:
        return [
            (feature, next(verdict for verdict in ORDER if verdict in self.verdicts[feature]), ' '.join(notes))
            for feature, notes in sorted(self.notes.items(), key=lambda item: item[0].lower())
        ]

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(HEAD + ''.join(f'| {" | ".join(row)} |\n' for row in self.rows()), encoding='utf-8')


def read_rows(path: Path) -> list[tuple[str, ...]]:
    """The rows of a written table."""
    lines = path.read_text(encoding='utf-8').removeprefix(HEAD).splitlines()
    return [tuple(cell.strip() for cell in line.strip('|').split('|')) for line in lines]


def expected_rows(functions: Iterable[Any]) -> list[tuple[str, str, str]]:
    """The rows that a run would write in which all these test functions pass."""
    table = Table()
    for function in functions:
        marks = getattr(function, 'pytestmark', [])
        gpu = any(mark.name == 'gpu' for mark in marks)
        cases = [case for mark in marks if mark.name == 'parametrize' for case in mark.args[1]]
        for mark in (*marks, *(mark for case in cases for mark in getattr(case, 'marks', ()))):
            if mark.name == 'compatibility':
                note = mark.kwargs.get('note', '')
                table.add(mark.args[0], expected_verdict(function, note, gpu), note)
    return table.rows()
