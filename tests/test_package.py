"""What is installed: metadata, the wheel in an empty folder, and the source distribution with its own tests."""

import importlib.metadata
import importlib.util
import json
import os
import pydoc
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

import composer_freezeout

from .launching import module_of
from .test_imports import PACKAGE

ROOT = Path(__file__).parent.parent
SETTINGS = ROOT / 'setup.cfg'


# --- names and metadata


def test_dir_and_help_list_what_is_imported_on_first_use():
    assert set(composer_freezeout.__all__) <= set(dir(composer_freezeout))
    text = pydoc.plain(pydoc.render_doc(composer_freezeout))
    for name in ('class FreezeOut(', 'class FreezeOutLoop(', 'class LayerFreezer(', 'apply_freezeout('):
        assert name in text


def test_importing_the_package_imports_no_torch():
    code = 'import sys, composer_freezeout; dir(composer_freezeout); sys.exit("torch" in sys.modules)'
    subprocess.run([sys.executable, '-c', code], check=True, timeout=60)


def test_the_version_stands_in_one_place():
    version = composer_freezeout.__version__
    assert importlib.metadata.version('composer-freezeout') == version
    assert 'version = attr: composer_freezeout.__version__' in SETTINGS.read_text(encoding='utf-8')
    assert [path.name for path in PACKAGE.rglob('*.py') if f"'{version}'" in path.read_text('utf-8')] == ['__init__.py']


@pytest.mark.parametrize(
    ('source', 'expected'),
    [
        (None, 'See the docs.  [paper](https://a.b) [below](#c)'),
        (
            'https://host/owner/name',
            'See [the docs](https://host/owner/name/blob/HEAD/docs/x.md). '
            '![picture](https://host/owner/name/raw/HEAD/p.svg) [paper](https://a.b) [below](#c)',
        ),
    ],
)
def test_an_index_gets_no_links_that_lead_nowhere(source, expected):
    text = 'See [the docs](docs/x.md). ![picture](p.svg) [paper](https://a.b) [below](#c)'
    assert module_of(ROOT / 'setup.py').long_description(text, source) == expected


def test_nothing_of_the_readme_leads_nowhere_on_an_index():
    script = module_of(ROOT / 'setup.py')
    readme = (ROOT / 'README.md').read_text(encoding='utf-8')
    assert script.RELATIVE.search(readme)
    assert not script.RELATIVE.search(script.long_description(readme, None))
    assert not script.RELATIVE.search(script.long_description(readme, 'https://host/owner/name'))


def test_project_urls_are_addresses():
    urls = module_of(ROOT / 'setup.py').project_urls()
    assert urls
    assert all(address.startswith('https://') for address in urls.values())


# --- distributions


def quietly(*command: object, cwd: Path, code: int = 0) -> str:
    """Runs a command as a user would, without this checkout's settings, and returns what it prints."""
    environment = {key: value for key, value in os.environ.items() if key not in ('PYTHONPATH', 'PYTEST_ADDOPTS')}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**environment, 'OMP_NUM_THREADS': '1'},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    assert done.returncode == code, done.stdout
    return done.stdout


@pytest.fixture(scope='module')
def distributions(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('dist')
    quietly(sys.executable, '-m', 'build', '--outdir', folder, ROOT, cwd=folder)
    return folder


@pytest.fixture(scope='module')
def installed(distributions, tmp_path_factory) -> Path:
    """Folder of the commands of an environment that has the wheel, and of this one only what the wheel needs."""
    folder = tmp_path_factory.mktemp('installed')
    quietly(sys.executable, '-m', 'venv', '--without-pip', folder, cwd=folder)
    (wheel,) = distributions.glob('*.whl')
    python = folder / 'bin' / 'python'
    quietly(sys.executable, '-m', 'pip', '--python', python, 'install', '--no-deps', '--no-index', wheel, cwd=folder)
    # Only a path: the file that makes this checkout importable is not read from there.
    (site,) = folder.glob('lib/*/site-packages')
    (site / 'needed.pth').write_text(sysconfig.get_path('purelib') + '\n', encoding='utf-8')
    return folder / 'bin'


@pytest.mark.slow
def test_the_distributions_are_sound(distributions):
    assert 'WARNING' not in quietly(
        sys.executable, '-m', 'twine', 'check', '--strict', *distributions.iterdir(), cwd=ROOT
    )
    (wheel,) = distributions.glob('*.whl')
    files = set(zipfile.ZipFile(wheel).namelist())
    # Links stand in the wheel as files.
    yamls = {f'composer_freezeout/{path.relative_to(ROOT)}' for path in (ROOT / 'yamls').rglob('*.yaml')}
    package = {str(path.relative_to(ROOT)) for path in PACKAGE.rglob('*') if path.suffix in ('.py', '.jinja', '.typed')}
    assert {file for file in files if '.dist-info/' not in file} == yamls | package
    quickstart = zipfile.ZipFile(wheel).read('composer_freezeout/yamls/quickstart.yaml')
    assert quickstart == (ROOT / 'yamls' / 'quickstart' / 'freezeout.yaml').read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_wheel_runs_in_an_empty_folder(installed, tmp_path):
    command = installed / 'composer-freezeout'
    assert str(installed.parent) in quietly(
        installed / 'python', '-c', 'import composer_freezeout; print(composer_freezeout.__file__)', cwd=tmp_path
    )
    assert 'compare' in quietly(command, '--help', cwd=tmp_path)
    quietly(command, 'run', 'quickstart', 'max_duration=2ba', cwd=tmp_path)
    record = json.loads((tmp_path / 'runs' / 'quickstart' / 'freezeout' / 'record.json').read_text(encoding='utf-8'))
    assert record['effective']['total_batches'] == 2
    assert 'flops' in quietly(command, 'plan', 'quickstart', '--no-profile', cwd=tmp_path)
    quietly(command, 'compare', 'quickstart', '--arms', 'baseline,freezeout', 'max_duration=2ba', cwd=tmp_path)
    report = tmp_path / 'runs' / 'quickstart-comparison' / 'report.md'
    written = report.read_bytes()
    report.unlink()
    quietly(command, 'report', report.parent, cwd=tmp_path)
    assert report.read_bytes() == written


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_source_distribution_runs_its_own_tests(distributions, tmp_path):
    (archive,) = distributions.glob('*.tar.gz')
    with tarfile.open(archive) as file:
        file.extractall(tmp_path, filter='data')
    (folder,) = tmp_path.iterdir()
    quietly(sys.executable, '-m', 'pytest', '-q', '--collect-only', cwd=folder)
    some = ['schedule', 'readme', 'docs', 'results', 'pictures', 'families']
    quietly(sys.executable, '-m', 'pytest', '-q', '-x', *(f'tests/test_{name}.py' for name in some), cwd=folder)
