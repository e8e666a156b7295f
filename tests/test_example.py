"""The example that fine-tunes a language model, with a tiny model and a text that are made here."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from composer_freezeout import cli
from composer_freezeout.compare.arms.family import family_arms, read_arms
from composer_freezeout.run import plugins
from composer_freezeout.run.plugins import load_plugins
from composer_freezeout.run.registered import DATA_SETS, MODELS

from .launching import ROOT

transformers = pytest.importorskip('transformers')

EXAMPLE = ROOT / 'examples' / 'finetune_language_model'
MODULE = 'my_project.freezing'
TINY = [
    *('model.pretrained=tiny', 'train_data.tokenizer=tiny', 'eval_data.tokenizer=tiny'),
    *('train_data.length=16', 'eval_data.length=16', 'eval_data.batch_size=1', 'optimizer.lr=1e-3'),
    'progress_bar=false',
]


@pytest.fixture(scope='module')
def made(tmp_path_factory) -> Path:
    """The example with a model, its tokenizer and a text in its folder."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    folder = tmp_path_factory.mktemp('example')
    shutil.copytree(EXAMPLE, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns('__pycache__', 'runs'))
    text = '\n'.join(f'{a} times {b} is {a * b}.' for a in range(20) for b in range(10))
    (folder / 'text.txt').write_text(text, encoding='utf-8')
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore
    tokenizer.train_from_iterator([text], trainers.BpeTrainer(vocab_size=300, show_progress=False))
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder / 'tiny')
    torch.manual_seed(0)
    size = {'n_positions': 16, 'n_embd': 16, 'n_layer': 2, 'n_head': 2}
    config = transformers.GPT2Config(vocab_size=tokenizer.get_vocab_size(), **size)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder / 'tiny')
    return folder


@pytest.fixture
def example(made, monkeypatch, tmp_path) -> Iterator[Path]:
    monkeypatch.chdir(made)
    monkeypatch.setattr(sys, 'path', list(sys.path))
    monkeypatch.setattr(plugins, '_PLUGINS', {})
    monkeypatch.setattr(plugins, '_NAMED', [])
    yield tmp_path
    for table, name in ((MODELS, 'causal_language_model'), (DATA_SETS, 'text_file')):
        table.pop(name, None)
    for name in (MODULE, 'my_project'):
        sys.modules.pop(name, None)


def test_it_fine_tunes_and_freezes(example, capfd):
    out = example / 'out'
    command = ['run', 'arms/freezeout.yaml', '--import', MODULE, *TINY, 'max_duration=8ba', f'output={out}']
    assert cli.main(command) == 0
    record = json.loads((out / 'record.json').read_text())
    loss = record['final']['LanguageCrossEntropy']
    assert record['metric'] == {'name': 'LanguageCrossEntropy', 'higher_is_better': False}
    assert f'LanguageCrossEntropy {loss:.4f}' in capfd.readouterr().out
    # Untied: all but the head freeze, and the backward pass gets shorter.
    assert [unit['frozen'] for unit in record['units']] == [True] * 10 + [False]
    assert record['predicted_saving'] > 0.2 and min(record['backward_left'].values()) < 0.5


def test_what_a_tied_head_costs_is_told_before(example, capsys):
    plan = ['plan', 'arms/freezeout.yaml', '--import', MODULE, '--no-profile', *TINY]
    assert cli.main([*plan, '--out', str(example / 'untied')]) == 0
    assert 'still runs through frozen' not in ' '.join(capsys.readouterr().out.split())
    assert cli.main([*plan, '--out', str(example / 'tied'), 'model.untie=false']) == 0
    assert 'the backward pass still runs through frozen units' in ' '.join(capsys.readouterr().out.split())


def test_its_arms_can_be_compared(example):
    load_plugins([MODULE])
    names = [*family_arms(Path('arms')), 'static_0.25']
    overrides = [*TINY, r'model.freeze=[model\.transformer\.wpe]', 'max_duration=4ep']
    # Of GPT-2's twelve blocks there are two here.
    arms, data = read_arms(Path('arms'), [n for n in names if n != 'half_frozen'], overrides, 1.0)
    notes = {arm.name: arm.note for arm in arms}
    assert {'layer_freezing_matched', 'static', 'head_only', 'static_0.25'} <= set(notes)
    assert 'model.transformer.wte' in notes['static'] and 'nearest to 25.0%' in notes['static_0.25']
    assert data.batch['input_ids'].shape == (2, 16)


def test_its_files_tell_what_is_wrong(example, capsys):
    command = ['run', 'arms/freezeout.yaml', '--import', MODULE, *TINY]
    assert cli.main([*command, 'train_data.file=nowhere.txt']) == 2
    assert 'train_data: ' in (message := capsys.readouterr().err) and "'nowhere.txt'" in message
    assert cli.main([*command, 'eval_data.length=9000']) == 2
    assert 'eval_data.file: file has' in (message := capsys.readouterr().err) and 'take a smaller length' in message
    assert len(message.splitlines()) == 1


@pytest.mark.slow
def test_it_is_compared_by_its_loss(example, capsys):
    out = example / 'compared'
    few = ['--arms', 'baseline,baseline_short,freezeout,half_frozen', '--out', str(out), 'max_duration=4ba']
    assert cli.main(['compare', 'arms', '--import', MODULE, *few, *TINY]) == 0
    assert '(lower' in capsys.readouterr().out
    report = (out / 'report.md').read_text(encoding='utf-8')
    assert 'LanguageCrossEntropy (lower is better)' in report and f'plugin {MODULE}' in report
