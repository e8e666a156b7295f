"""Threads wait for each other for a short time only, unless the user wants them to do otherwise."""

import os
import subprocess
import sys

import pytest

NAMES = ('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT')


def spin_count_after(code: str, **variables: str) -> str | None:
    """What a child of a process that has run some code finds in its environment."""
    variables = {key: value for key, value in os.environ.items() if key not in NAMES} | variables
    tell = 'import os, sys; print(os.environ.get("GOMP_SPINCOUNT"))'
    command = [
        sys.executable,
        '-c',
        f'{code}\nimport subprocess, sys; subprocess.run([sys.executable, "-c", {tell!r}])',
    ]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1]


SETTLE = 'from composer_freezeout.run.threads import settle_threads; settle_threads()'


@pytest.mark.parametrize(
    ('code', 'variables', 'expected'),
    [
        (SETTLE, {}, '1000'),
        (SETTLE, {'GOMP_SPINCOUNT': '7'}, '7'),
        (SETTLE, {'OMP_WAIT_POLICY': 'ACTIVE'}, 'None'),
        # It has read the variables already, and a record that tells of them would be wrong.
        (f'import torch; {SETTLE}', {}, 'None'),
    ],
)
def test_settled(code, variables, expected):
    assert spin_count_after(code, **variables) == expected


@pytest.mark.parametrize('command', ['run', 'plan', 'compare', 'sweep', 'step-time'])
def test_every_command_settles_it_before_it_imports_torch(command):
    code = f"""
from composer_freezeout import cli
try:
    cli.main([{command!r}, '--help'])
except SystemExit:
    pass
"""
    assert spin_count_after(code) == '1000'
