"""Options of the test suite."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from .compatibility import FAILS, NEEDS_GPU, SKIPPED, Table, expected_verdict


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption('--compatibility-table', metavar='PATH', help='write the table of what FreezeOut works with')


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption('--compatibility-table')
    if path is not None:
        config.pluginmanager.register(CompatibilityTable(Path(str(path))))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker('gpu') and not torch.cuda.is_available():
        pytest.skip('needs a GPU')


@pytest.fixture
def refusal() -> Callable[..., contextlib.AbstractContextManager[None]]:
    """Expects a refusal: an error with one line that says what to do."""

    @contextlib.contextmanager
    def expect(message: str, error: type[Exception] = ValueError) -> Iterator[None]:
        with pytest.raises(error, match=message) as raised:
            yield
        assert '\n' not in str(raised.value)

    return expect


class CompatibilityTable:
    """Collects what came of the tests that are marked with `compatibility`, and writes it at the end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.table = Table()

    def pytest_deselected(self, items: list[pytest.Item]) -> None:
        for item in items:
            self._add(item, NEEDS_GPU if item.get_closest_marker('gpu') else SKIPPED)

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
        report = (yield).get_result()
        gpu = item.get_closest_marker('gpu') is not None
        if report.skipped:
            self._add(item, NEEDS_GPU if gpu else SKIPPED)
        elif report.failed:
            self._add(item, FAILS)
        elif report.when == 'call':
            self._add(item, None)

    def _add(self, item: Any, verdict: str | None) -> None:
        for mark in item.iter_markers('compatibility'):
            note = mark.kwargs.get('note', '')
            self.table.add(mark.args[0], verdict or expected_verdict(item.function, note, gpu=False), note)

    def pytest_sessionfinish(self) -> None:
        self.table.write(self.path)
