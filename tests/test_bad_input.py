"""Malformed uses of the Python interface: each has one clear error, or a result that is defined.

What a mistake in a YAML file leads to is tested with the runner.
"""

import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from composer import Time
from composer.models import ComposerModel
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from composer_freezeout import FreezeOut, apply_freezeout

from .networks import ResidualNet, chain
from .training import CLASSES, classifier, trainer

IMAGES = torch.zeros(4, 3, 8, 8)


def case(name: str, action: Callable[..., Any], *outcome: Any) -> Any:
    """A use, and either the error and a part of its message, or the result."""
    return pytest.param(action, outcome, id=name)


# --- the ways to use it


def construct(**arguments: Any) -> Callable[[Path], object]:
    return lambda folder: FreezeOut(**arguments)


def fit(
    model: Callable[[], ComposerModel] = classifier,
    optimizer: Callable[[ComposerModel], Any] | None = None,
    freezeout: Callable[[], Any] = lambda: FreezeOut(0.5),
    **arguments: Any,
) -> Callable[[Path], object]:
    """Trains and says which unit froze at which batch."""

    def action(folder: Path) -> object:
        network, algorithm = model(), freezeout()
        algorithms = algorithm if isinstance(algorithm, list) else [algorithm]
        run = trainer(network, algorithms, None if optimizer is None else optimizer(network), **arguments)
        run.fit()
        return [row['frozen_at_batch'] for row in algorithms[0].unit_table()]

    return action


def functional(**arguments: Any) -> Callable[[Path], object]:
    """`apply_freezeout` on a chain; arguments may be functions of it."""

    def action(folder: Path) -> object:
        model = chain()
        given = {'model': lambda m: m, 'optimizer': sgd, 'forward': lambda m: lambda: m(IMAGES), **arguments}
        made = {name: value(model) if callable(value) else value for name, value in given.items()}
        return [row['name'] for row in apply_freezeout(**made).unit_table()]

    return action


def step(progress: Any, warmup: Any = 0.0) -> Callable[[Path], object]:
    def action(folder: Path) -> object:
        model = chain()
        return apply_freezeout(model, sgd(model), lambda: model(IMAGES)).batch_start(progress, warmup)

    return action


def step_alone(folder: Path) -> object:
    model = chain()
    optimizer = sgd(model)
    apply_freezeout(model, optimizer).batch_start(0.0)
    return optimizer.step()


def sgd(model: nn.Module, lr: float = 0.1) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=lr)


def resume(change: Callable[[Path, dict[str, Any]], object], **arguments: Any) -> Callable[[Path], object]:
    """Resumes from a checkpoint that has been changed: the file, or what FreezeOut saved in it."""

    def action(folder: Path) -> object:
        trainer(classifier(), [FreezeOut(0.5)], save_folder=str(folder), save_interval='6ba').fit()
        path = folder / 'ep1-ba6-rank0.pt'
        checkpoint = torch.load(path, weights_only=False)
        if change(path, dict(checkpoint['state']['algorithms'])['FreezeOut']) is None:
            torch.save(checkpoint, path)
        return fit(load_path=str(path), **arguments)(folder)

    return action


# --- models and data


class Bare(ComposerModel):
    """Nothing to train."""

    def forward(self, batch: Any) -> torch.Tensor:
        return batch[0].mean((2, 3))

    def loss(self, outputs: torch.Tensor, batch: Any) -> torch.Tensor:
        return outputs.sum()


class Endless(IterableDataset):
    def __iter__(self) -> Any:
        while True:
            yield torch.zeros(3, 8, 8), torch.tensor(0)


def frozen_beforehand() -> ComposerModel:
    model = classifier()
    model.requires_grad_(False)
    return model


def only_the_head() -> ComposerModel:
    model = frozen_beforehand()
    model.module.head.requires_grad_(True)
    return model


def lazy() -> ComposerModel:
    return classifier(nn.Sequential(nn.LazyConv2d(4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, CLASSES)))


def without_norms() -> ComposerModel:
    torch.manual_seed(0)
    pooled = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, CLASSES)]
    return classifier(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), *pooled))


def loader(samples: int, **arguments: Any) -> DataLoader:
    dataset = TensorDataset(torch.zeros(samples, 3, 8, 8), torch.zeros(samples, dtype=torch.long))
    return DataLoader(dataset, batch_size=4, **arguments)


def shared_parameter(model: ComposerModel) -> torch.optim.Optimizer:
    return torch.optim.SGD([{'params': list(model.parameters())}, {'params': [model.module.head.weight]}], lr=0.1)


ON_TIME = [2, 5, 10, None]  # of 16 batches, with t_0 = 0.5
NO_UNITS = 'contradict themselves, so it is damaged; load another one, or use load_weights_only=True'
WRONG_FIT = "FreezeOut units don't fit the model"


def cut_short(path: Path, saved: Any) -> bool:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return True


def write(content: bytes) -> Callable[[Path, Any], int]:
    return lambda path, saved: path.write_bytes(content)


def save_something_else(path: Path, saved: Any) -> bool:
    torch.save({'weights': torch.zeros(3)}, path)
    return True


def set_saved(key: str, value: Any) -> Callable[[Path, dict[str, Any]], None]:
    return lambda path, saved: saved.update({key: value})


CASES = [
    # Arguments.
    case('t_0 zero', construct(t_0=0), ValueError, r't_0 must be in \(0, 1\], got 0;'),
    case('t_0 negative', construct(t_0=-0.5), ValueError, r't_0 must be in \(0, 1\], got -0.5;'),
    case('t_0 above one', construct(t_0=1.01), ValueError, r't_0 must be in \(0, 1\], got 1.01;'),
    case('t_0 NaN', construct(t_0=math.nan), ValueError, r't_0 must be in \(0, 1\], got nan;'),
    case('t_0 infinite', construct(t_0=math.inf), ValueError, r't_0 must be in \(0, 1\], got inf;'),
    case('t_0 None', construct(t_0=None), TypeError, 't_0 must be a number'),
    case('t_0 string', construct(t_0='0.8'), TypeError, "t_0 must be a number in .*, got '0.8'"),
    case('t_0 boolean', construct(t_0=True), TypeError, 't_0 must be a number'),
    case('t_0 tensor', construct(t_0=torch.tensor(0.8)), TypeError, 't_0 must be a number'),
    case('t_0 vanishes', fit(freezeout=lambda: FreezeOut(1e-200)), ValueError, 'zero in floating point; use a larger'),
    case('how_scale unknown', construct(how_scale='quartic'), ValueError, 'must be one of linear, squared, cubic, got'),
    case('how_scale capital', construct(how_scale='Cubic'), ValueError, "how_scale must be one of .*, got 'Cubic'"),
    case('how_scale None', construct(how_scale=None), ValueError, 'how_scale must be one of .*, got None'),
    case('how_scale list', construct(how_scale=['cubic']), ValueError, 'how_scale must be one of'),
    case('scale_lr number', construct(scale_lr=1), TypeError, 'scale_lr must be True or False, got 1'),
    case('scale_lr None', construct(scale_lr=None), TypeError, 'scale_lr must be True or False, got None'),
    case('anneal unknown', construct(anneal='global'), ValueError, "anneal must be 'shared', .* got 'global'"),
    case('anneal number', construct(anneal=1), ValueError, "anneal must be 'shared', or None for .*, got 1"),
    case('granularity unknown', construct(granularity='layer'), ValueError, 'granularity must be one of module, block'),
    case('batchnorm unknown', construct(batchnorm='train'), ValueError, 'batchnorm must be one of eval, batch, update'),
    case('batchnorm boolean', construct(batchnorm=True), ValueError, 'batchnorm must be one of .*, got True'),
    case('max_stages zero', construct(max_stages=0), ValueError, 'max_stages must be at least 1'),
    case('max_stages fraction', construct(max_stages=2.5), TypeError, 'max_stages must be a whole number'),
    # Costs of units.
    case('unit_costs empty', construct(unit_costs=[]), ValueError, 'a number above 0 before the last one'),
    case('unit_costs one', construct(unit_costs=[1.0]), ValueError, 'a number above 0 before the last one'),
    case('unit_costs of the last alone', construct(unit_costs=[0, 0, 1]), ValueError, 'before the last one, .* leave'),
    case('unit_costs negative', construct(unit_costs=[1, -2, 1]), ValueError, r'in \[0, ∞\), got -2 at position 1;'),
    case('unit_costs NaN', construct(unit_costs=[math.nan, 1]), ValueError, 'got nan at position 0'),
    case('unit_costs infinite', construct(unit_costs=[1, math.inf]), ValueError, 'got inf at position 1'),
    case('unit_costs number', construct(unit_costs=5), TypeError, 'unit_costs must be a list of numbers, .*, got 5'),
    case('unit_costs string', construct(unit_costs='12'), TypeError, "unit_costs must be a list of .*, got '12'"),
    case('unit_costs of None', construct(unit_costs=[None, 1]), TypeError, 'unit_costs must be a list of numbers'),
    case('unit_costs boolean', construct(unit_costs=[True, 1]), TypeError, 'unit_costs must be a list of numbers'),
    case('unit_costs without order', construct(unit_costs={1, 2}), TypeError, 'unit_costs must be a list'),
    case('unit_costs mapping', construct(unit_costs={'a': 1}), TypeError, 'unit_costs must be a list'),
    case('unit_costs used up', construct(unit_costs=(c for c in [1, 2])), TypeError, 'unit_costs must be a list'),
    case(
        'unit_costs too few', fit(freezeout=lambda: FreezeOut(unit_costs=[3, 2, 1])), ValueError, 'has 4 units, got 3'
    ),
    case(
        'unit_costs too many, by layers',
        fit(freezeout=lambda: FreezeOut(layers=['module.[^h].*', 'module.head'], unit_costs=[3, 2, 1])),
        ValueError,
        'unit_costs must hold one number per unit: the model has 2 units, got 3 numbers; `composer-freezeout plan',
    ),
    case('cost_shift zero', construct(unit_costs=[1, 2], cost_shift=0), ValueError, r'must be in \(0, 1\], got 0;'),
    case('cost_shift above one', construct(unit_costs=[1, 2], cost_shift=1.5), ValueError, r'in \(0, 1\], got 1.5;'),
    case('cost_shift NaN', construct(unit_costs=[1, 2], cost_shift=math.nan), ValueError, 'cost_shift must be in'),
    case('cost_shift string', construct(unit_costs=[1, 2], cost_shift='1'), TypeError, 'cost_shift must be a number'),
    case('cost_shift alone', construct(cost_shift=0.5), ValueError, 'cost_shift=0.5 shifts nothing without unit_costs'),
    case('argument unknown', construct(t0=0.8), TypeError, "unexpected keyword argument 't0'"),
    # Warm-up.
    case('t_warmup number', construct(t_warmup=0.1), ValueError, "as '5ep' or '0.05dur', got 0.1"),
    case('t_warmup NaN', construct(t_warmup=Time(math.nan, 'dur')), ValueError, 't_warmup must be'),
    case('t_warmup empty', construct(t_warmup=''), ValueError, "t_warmup must be .*, got ''"),
    case('t_warmup in parts', construct(t_warmup='1.9ep'), ValueError, "a whole number of ep.*, got '1.9ep'"),
    case('t_warmup infinite', construct(t_warmup='infep'), ValueError, "t_warmup must be .*, got 'infep'"),
    case('t_warmup negative', construct(t_warmup='-1ep'), ValueError, "t_warmup must be .*, got '-1ep'"),
    case('t_warmup seconds', construct(t_warmup='30sec'), ValueError, 't_warmup must be'),
    case(
        't_warmup too long',
        fit(freezeout=lambda: FreezeOut(0.8, t_warmup='3ep')),
        ValueError,
        'must end before the first unit freezes, at progress 0.512, but it ends at 0.75; shorten t_warmup or raise t_0',
    ),
    case(
        't_warmup longer than training', fit(freezeout=lambda: FreezeOut(t_warmup='1.5dur')), ValueError, 'ends at 1.5'
    ),
    case(
        't_warmup in tokens of a run in epochs',
        fit(freezeout=lambda: FreezeOut(t_warmup='5tok')),
        ValueError,
        "t_warmup='5tok' cannot be compared with max_duration='4ep'; give it in the same unit or as a fraction",
    ),
    # Layers.
    case('layers empty', construct(layers=[]), ValueError, 'layers must hold at least one regular expression'),
    case('layers string', construct(layers='conv1'), TypeError, 'layers must be a list of regular expressions'),
    case('layers number', construct(layers=5), TypeError, 'layers must be a list of regular expressions, got 5'),
    case('layers of None', construct(layers=[None]), TypeError, 'layers must be a list of regular expressions'),
    case('layers without order', construct(layers={'a', 'b'}), TypeError, 'layers must be a list'),
    case('layers used up', construct(layers=(name for name in ['a'])), TypeError, 'layers must be a list'),
    case('layers mapping', construct(layers={'a': 1}), TypeError, 'layers must be a list'),
    case('layers broken', construct(layers=['(']), ValueError, r"'\(' is not a regular expression"),
    case('layers and granularity', construct(layers=['a'], granularity='block'), ValueError, 'leave out granularity'),
    case(
        'layers twice',
        fit(freezeout=lambda: FreezeOut(layers=['.*', '.*'])),
        ValueError,
        r"layers: '\.\*' stands more than once",
    ),
    case(
        'layers overlap',
        fit(freezeout=lambda: FreezeOut(layers=['module.*', r'module\.head'])),
        ValueError,
        "both match the parameter 'module.head.weight'; make one narrower",
    ),
    case(
        'layers forget a module',
        fit(freezeout=lambda: FreezeOut(layers=[r'module\.conv\d', r'module\.head'])),
        ValueError,
        "no expression matches the trainable parameter 'module.bn1.weight' .* add one, or set its requires_grad",
    ),
    case(
        'layers match nothing',
        fit(freezeout=lambda: FreezeOut(layers=['module.*', 'nope'])),
        ValueError,
        "layers: 'nope' matches no module with trainable parameters; module names are",
    ),
    case('layers all in one', fit(freezeout=lambda: FreezeOut(layers=['.*'])), [None]),
    # Models.
    case(
        'model without parameters',
        fit(Bare, lambda model: torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)),
        ValueError,
        'the model has no trainable parameter, so there is nothing to freeze',
    ),
    case('everything frozen', fit(frozen_beforehand), ValueError, 'the model has no trainable parameter'),
    case('only the head trains', fit(only_the_head), [None]),
    case('one layer', fit(lambda: classifier(nn.Sequential(nn.Flatten(), nn.Linear(192, CLASSES)))), [None]),
    case('no norms', fit(without_norms), [2, 7, None]),
    case('lazy modules', fit(lazy), ValueError, 'module.0.weight is not initialized; run one forward pass'),
    case(
        'FreezeOut twice',
        fit(freezeout=lambda: [FreezeOut(), FreezeOut()]),
        ValueError,
        'FreezeOut stands more than once in `algorithms`; give it once',
    ),
    case('not a model', functional(model=5, optimizer=None), TypeError, 'model must be a module'),
    case('wrapped model', functional(model=nn.DataParallel), TypeError, 'DistributedDataParallel may wrap, got DataP'),
    # Optimizers.
    case(
        'optimizer of another model',
        fit(optimizer=lambda model: sgd(chain())),
        ValueError,
        "the optimizer holds none of the model's trainable parameters; make it from",
    ),
    case('optimizer of the head alone', fit(optimizer=lambda model: sgd(model.module.head)), ON_TIME),
    case('groups share a parameter', fit(optimizer=shared_parameter), ValueError, 'more than one parameter group'),
    case('lr zero', fit(optimizer=lambda model: sgd(model, lr=0.0)), ON_TIME),
    case('lr negative', fit(optimizer=lambda model: sgd(model, lr=-0.1)), ValueError, 'Invalid learning rate: -0.1'),
    case(
        'optimizer without groups',
        fit(optimizer=lambda model: torch.optim.LBFGS(model.parameters())),
        ValueError,
        'LBFGS has one learning rate for all parameters .* use an optimizer with a learning rate per',
    ),
    case(
        'not an optimizer', functional(optimizer='sgd'), TypeError, 'optimizer must be a torch.optim.Optimizer, got str'
    ),
    # Durations; Composer checks most of them itself.
    case('duration None', fit(max_duration=None), ValueError, 'max_duration is a required argument'),
    case('duration NaN', fit(max_duration='nanep'), ValueError, 'cannot convert float NaN'),
    case('duration zero', fit(max_duration='0ep'), ValueError, 'No training would occur'),
    case('duration negative', fit(max_duration='-1ba'), ValueError, 'No training would occur'),
    case('duration fraction', fit(max_duration='1.5ep'), TypeError, 'value 1.5 is not an integer'),
    case('duration in seconds', fit(max_duration='10sec'), ValueError, 'Wall clock time not an allowed time unit'),
    case('duration of itself', fit(max_duration='1dur'), ValueError, 'not allowed as a unit for max_duration'),
    # Data.
    case('no data', fit(train_dataloader=loader(0)), ValueError, 'no batches: .* give it at least one batch'),
    case('no data, in batches', fit(train_dataloader=loader(0), max_duration='4ba'), ValueError, 'no batches'),
    case('less than a batch', fit(train_dataloader=loader(3, drop_last=True)), ValueError, 'no batches'),
    case('subset of zero', fit(train_subset_num_batches=0), ValueError, 'no batches'),
    case(
        'no length, in epochs',
        fit(train_dataloader=DataLoader(Endless(), batch_size=4), max_duration='1ep'),
        ValueError,
        'the train dataloader has no length|max_duration',
    ),
    case(
        'no length, in batches', fit(train_dataloader=DataLoader(Endless(), batch_size=4), max_duration='16ba'), ON_TIME
    ),
    case('one batch', fit(max_duration='1ba'), [None] * 4),
    # Without a Trainer.
    case('costs too few', functional(unit_costs=[2, 1, 0]), ValueError, 'the model has 4 units, got 3 numbers'),
    case('cost_shift too large', functional(unit_costs=[2, 1, 0, 0], cost_shift=2), ValueError, 'cost_shift must be'),
    case('step before the model has run', step_alone, ValueError, 'the model has not been seen to run'),
    case('forward is a batch', functional(forward=IMAGES), TypeError, 'forward must be a function without arguments'),
    case('forward is the model', functional(forward=lambda m: m), TypeError, 'forward must be a function without'),
    case('forward does nothing', functional(forward=lambda m: lambda: 0), ValueError, 'reads none of the trainable'),
    case('scale_lr string', functional(scale_lr='yes'), TypeError, 'scale_lr must be True or False'),
    case(
        'layers and blocks',
        functional(layers=['.*'], granularity='block'),
        ValueError,
        "layers already says what the units are; leave out granularity='block'",
    ),
    case('progress negative', step(-0.1), ValueError, r'progress must be in \[0, 1\), got -0.1'),
    case('progress at the end', step(1.0), ValueError, r'progress must be in \[0, 1\), got 1.0'),
    case('progress NaN', step(math.nan), ValueError, r'progress must be in \[0, 1\), got nan'),
    case('warm-up negative', step(0.0, -0.1), ValueError, 'but it ends at -0.1'),
    case('warm-up NaN', step(0.0, math.nan), ValueError, 'but it ends at nan'),
    # Checkpoints. Files that are none, Composer and torch refuse before FreezeOut sees them.
    case('checkpoint cut short', resume(cut_short), (OSError, RuntimeError), 'Invalid argument|failed'),
    case('checkpoint empty', resume(write(b'')), EOFError, 'Ran out of input'),
    case('checkpoint is text', resume(write(b'no checkpoint')), pickle.UnpicklingError, '.'),
    case('checkpoint of something else', resume(save_something_else), KeyError, 'state'),
    case('checkpoint missing', fit(load_path='nowhere/ep1.pt'), FileNotFoundError, 'nowhere/ep1.pt'),
    case(
        'checkpoint of another model',
        resume(lambda *_: None, model=lambda: classifier(ResidualNet())),
        ValueError,
        WRONG_FIT,
    ),
    case(
        'checkpoint of another width',
        resume(lambda *_: None, model=lambda: classifier(chain(8))),
        RuntimeError,
        'size mismatch',
    ),
    case(
        'checkpoint of other settings',
        resume(lambda *_: None, freezeout=lambda: FreezeOut(0.6)),
        ValueError,
        r'made with FreezeOut\(t_0=0.5\), not t_0=0.6; use the same value, or ',
    ),
    case(
        'checkpoint without costs',
        resume(lambda *_: None, freezeout=lambda: FreezeOut(0.5, unit_costs=[1, 2, 1, 0])),
        ValueError,
        r'made with FreezeOut\(unit_costs=None\), not unit_costs=\[1, 2, 1, 0\]; use the same value, or ',
    ),
    case(
        'checkpoint of another cosine',
        resume(lambda *_: None, freezeout=lambda: FreezeOut(0.5, anneal='shared')),
        ValueError,
        "made with FreezeOut\\(anneal=None\\), not anneal='shared'; use the same value, or ",
    ),
    case(
        'checkpoint from before there were costs, heads and shared cosines',
        resume(lambda _, s: [s['settings'].pop(k) for k in ('unit_costs', 'cost_shift', 'head', 'anneal')] and None),
        ON_TIME,
    ),
    case('checkpoint sound', resume(lambda *_: None), ON_TIME),
    case('unit renamed', resume(lambda _, s: s['units'][0][1].__setitem__(0, 'nope')), ValueError, WRONG_FIT),
    case('norm renamed', resume(lambda _, s: s['units'][0][2].__setitem__(0, 'nope')), ValueError, WRONG_FIT),
    case('unit missing', resume(lambda _, s: s['units'].__delitem__(0)), ValueError, NO_UNITS),
    case('unit twice', resume(lambda _, s: s['units'][1][1].extend(s['units'][0][1])), ValueError, NO_UNITS),
    case('units None', resume(set_saved('units', None)), ValueError, NO_UNITS),
    case('units string', resume(set_saved('units', 'conv1')), ValueError, NO_UNITS),
    case('cuts too few', resume(set_saved('cuts', [0])), ValueError, NO_UNITS),
    case('too many frozen', resume(set_saved('frozen_at', [1] * 9)), ValueError, NO_UNITS),
    case('removed but not frozen', resume(set_saved('units_removed', 3)), ValueError, NO_UNITS),
    case('removed not saved', resume(lambda _, s: s.pop('units_removed') and None), ValueError, NO_UNITS),
]


@pytest.mark.filterwarnings('ignore:No batches were trained:UserWarning')
@pytest.mark.parametrize(('action', 'outcome'), CASES)
def test_bad_input(action, outcome, tmp_path):
    if len(outcome) == 1:
        assert action(tmp_path) == outcome[0]
        return
    error, message = outcome
    with pytest.raises(error, match=message) as raised:
        action(tmp_path)
    if 'composer_freezeout' in str(raised.traceback[-1].path):
        assert '\n' not in str(raised.value)
