"""FreezeOut with every optimizer: the same bits as a loop in which all is done by hand, whatever is saved or copied."""

import copy
import io
import itertools
import logging
import pickle
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from composer import Callback, Trainer
from composer.core import State
from composer.loggers import Logger
from composer.models import ComposerClassifier
from torch import nn
from torch.distributed import HashStore  # pyright: ignore[reportPrivateImportUsage]
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR

from composer_freezeout import FreezeOut, FreezeOutLoop, apply_freezeout
from composer_freezeout.freezing.observing.partition import Partition
from composer_freezeout.method.schedule import freeze_times, lr_factors, units_frozen

from .comparing import assert_equal
from .networks import chain
from .optimizers import ENTRIES, Entry, entries, missing, nested, torch_classes
from .training import StepTrace, classifier, images, trainer

# --- networks: three units that freeze, and a head


class Scale(nn.Module):
    """Owns one number."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale.exp()


class Layers(nn.Module):
    """A small network that makes its own batches; its scale comes first among its parameters, as in CLIP."""

    def __init__(self, *layers: nn.Module, scaled: bool = False) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(0.5)) if scaled else None
        self.layers = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.layers(x)
        return logits if self.logit_scale is None else logits * self.logit_scale.exp()

    def loss(self, seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        inputs = torch.randn(4, 1, 4, 4, generator=generator).to(next(self.parameters()).dtype)
        targets = torch.randint(0, 3, (4,), generator=generator)
        return nn.functional.cross_entropy(self(inputs), targets)


class Sparse(nn.Module):
    """Embeddings whose gradients are sparse; each depends on the one before."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(5, 3, sparse=True) for _ in range(4))

    def loss(self, seed: int) -> torch.Tensor:
        tokens = torch.randint(0, 5, (4,), generator=torch.Generator().manual_seed(seed))
        x = torch.ones(4, 3)
        for table in self.tables:
            x = (x * table(tokens)).tanh()
        return x.sum(1).square().mean()


def network(kind: str) -> Any:
    torch.manual_seed(0)
    if kind == 'sparse':
        return Sparse()
    hidden = [nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)]
    if kind == 'scalar':  # one number leaves first, another stays to the end
        layers = [Scale(), nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), *hidden]
    else:
        layers = [nn.Conv2d(1, 2, 3).requires_grad_(kind != 'thawed by the user'), nn.Tanh(), nn.Flatten(), *hidden]
    model = Layers(*layers, scaled=kind == 'scalar')
    return model.bfloat16() if kind == 'bf16' else model


def original_groups(entry: Entry, kind: str, model: nn.Module) -> list[dict[str, Any]]:
    """All parameters in one group, or vectors in a second one with hyperparameters of their own."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if kind != 'groups':
        return [{'params': parameters}]
    vectors = {'params': [p for p in parameters if p.ndim < 2]}
    defaults = entry.of([dict(vectors)]).param_groups[0]
    vectors |= {'lr': defaults['lr'] / 2}
    if 'weight_decay' in defaults:
        vectors |= {'weight_decay': 0.0}
    return [{'params': [p for p in parameters if p.ndim > 1]}, vectors]


# --- a run with FreezeOut, and the same by hand

T_0 = 0.5
# Nothing comes before an embedding, so they would all train to the end.
LAYERS = {'sparse': [rf'tables\.{index}' for index in range(4)]}
END = None  # of an epoch
# Freeze times are 1/2, 2/3, 5/6 and 1.
FREEZING = [0.0, 0.2, END, 0.4, 0.55, END, 0.6, 0.7, 0.75, END]
THAWING = [0.86, 0.78, END, 0.3, 0.45, END, 0.48, 0.6, END]
EVENTS: list[float | None] = [*FREEZING, *THAWING]


def step(entry: Entry, model: Any, optimizer: Any, batch: int) -> None:
    torch.manual_seed(batch)  # some optimizers draw random numbers

    def closure(**_: Any) -> torch.Tensor:
        optimizer.zero_grad()
        loss = model.loss(batch)
        loss.backward(create_graph=entry.needs_graph)
        return loss

    if entry.needs_closure:
        optimizer.step(closure)
    else:
        closure()
        optimizer.step()


def states(model: nn.Module, optimizer: Optimizer) -> list[dict[str, Any]]:
    """What an optimizer, and those that it wraps, keep of each parameter that they keep something of."""
    names: dict[Any, str] = {p: name for name, p in model.named_parameters()}
    return [{names.get(p, str(p)): kept for p, kept in o.state.items() if kept} for o in nested(optimizer)]


class Run:
    """A run with FreezeOut."""

    def __init__(self, entry: Entry, kind: str) -> None:
        self.entry, self.kind = entry, kind
        self.warmup = 0.0
        self.model = network(kind)
        self.optimizer = entry.of(original_groups(entry, kind, self.model))
        self.start()

    def start(self) -> FreezeOutLoop:
        settings: Any = {'t_0': T_0, 'how_scale': 'linear', 'layers': LAYERS.get(self.kind)}
        self.freezer = apply_freezeout(self.model, self.optimizer, lambda: self.model.loss(0), **settings)
        return self.freezer

    @property
    def partition(self) -> Partition:
        assert self.freezer.partition is not None
        return self.freezer.partition

    def do(self, batch: int, progress: float | None) -> None:
        """The event at this position of ``EVENTS``: a batch, or the end of an epoch."""
        if progress is None:
            self.freezer.epoch_end()
        else:
            self.freezer.batch_start(progress, self.warmup)
            step(self.entry, self.model, self.optimizer, batch)

    def through(self, events: list[float | None], start: int = 0) -> Any:
        for batch, progress in enumerate(events[start:], start):
            self.do(batch, progress)
        return self

    def kept(self) -> list[dict[str, Any]]:
        """The optimizer's state, of what trains only where a wrapper would move the rest."""
        found = states(self.model, self.optimizer)
        if not self.entry.moves_frozen:
            return found
        trained = {name for name, p in self.model.named_parameters() if p.requires_grad}
        return [{name: kept for name, kept in of_one.items() if name in trained} for of_one in found]

    def end(self) -> dict[str, Any]:
        return copy.deepcopy({'model': self.model.state_dict(), 'state': self.kept()})

    def saved(self) -> dict[str, Any]:
        """A checkpoint, as it comes back from a file."""
        state = {'model': self.model.state_dict(), 'optimizer': self.optimizer.state_dict()}
        return through_file({**state, 'freezer': self.freezer.state_dict()})

    def load(self, state: dict[str, Any]) -> Any:
        self.model.load_state_dict(state['model'])
        self.optimizer.load_state_dict(state['optimizer'])
        self.freezer.load_state_dict(state['freezer'])
        return self


class ByHand(Run):
    """The same without FreezeOut: groups are split, annealed, frozen, removed and put back by hand.

    Args:
        entry (Entry): The optimizer.
        kind (str): The kind of network.
        partition (Partition): Its units.
    """

    def __init__(self, entry: Entry, kind: str, partition: Partition) -> None:
        self.entry, self.kind = entry, kind
        self.warmup = 0.0
        self.model = network(kind)
        self.times = freeze_times(len(partition.units), T_0, 'linear', heads=partition.heads)
        self.units = [[self.model.get_parameter(name) for name in unit.parameters] for unit in partition.units]
        self.originals = original_groups(entry, kind, self.model)
        self.frozen = self.removed = 0
        self.places: list[tuple[int, int]] = []  # unit and original group of each group
        groups = []
        for unit in reversed(range(len(self.units))):
            own = set(map(id, self.units[unit]))
            for origin, group in enumerate(self.originals):
                members = [p for p in group['params'] if id(p) in own]
                if members:
                    self.places.append((unit, origin))
                    groups.append(
                        copy.deepcopy({k: v for k, v in group.items() if k != 'params'}) | {'params': members}
                    )
        self.optimizer = entry.of(groups)
        self.groups = list(self.optimizer.param_groups)
        self.base_rates = [float(group['lr']) for group in self.groups]
        first = lr_factors(0.0, self.times)
        for (unit, _), group, rate in zip(self.places, self.groups, self.base_rates, strict=True):
            group['initial_lr'] = rate * first[unit]

    def do(self, batch: int, progress: float | None) -> None:
        if progress is None:
            self.remove()
            return
        self.frozen = units_frozen(progress, self.times)
        for index, unit in enumerate(self.units):
            for parameter in unit:
                parameter.requires_grad_(index >= self.frozen)
                if index < self.frozen:
                    parameter.grad = None
        if self.frozen < self.removed:
            self.put_back()
        self.set_rates(lr_factors(progress, self.times, warmup=self.warmup))
        self.show_groups(from_unit=self.removed)
        if self.entry.moves_frozen:
            self.keep_from_wrappers()
        step(self.entry, self.model, self.optimizer, batch)
        self.show_groups(from_unit=self.removed)

    def set_rates(self, factors: list[float]) -> None:
        for (unit, _), group, base in zip(self.places, self.groups, self.base_rates, strict=True):
            rate = base * factors[unit]
            group['lr'] = torch.tensor(rate) if isinstance(group['lr'], torch.Tensor) else rate

    def show_groups(self, from_unit: int) -> None:
        shown = [group for (unit, _), group in zip(self.places, self.groups, strict=True) if unit >= from_unit]
        for optimizer in nested(self.optimizer):
            optimizer.param_groups[:] = shown

    def keep_from_wrappers(self) -> None:
        self.show_groups(from_unit=self.frozen)
        for parameter in (p for unit in self.units[: self.frozen] for p in unit):
            for optimizer in nested(self.optimizer)[:-1]:
                optimizer.state.pop(parameter, None)

    def remove(self) -> None:
        self.removed = self.frozen
        self.show_groups(from_unit=self.removed)
        for parameter in (p for unit in self.units[: self.removed] for p in unit):
            for optimizer in nested(self.optimizer):
                optimizer.state.pop(parameter, None)

    def put_back(self) -> None:
        """Thawed groups have no state, or what the constructor makes; what is counted by group has gone on."""
        for (unit, origin), group in zip(self.places, self.groups, strict=True):
            if self.frozen <= unit < self.removed:
                group.update(self.running_values(origin))
                for optimizer, made in zip(nested(self.optimizer), nested(self.entry.of([group])), strict=True):
                    optimizer.state.update({p: made.state[p] for p in group['params'] if made.state.get(p)})
        self.removed = self.frozen

    def running_values(self, origin: int) -> dict[str, Any]:
        """Hyperparameters, and what some optimizers count, of the groups of an original group that train on."""
        places = zip(self.places, self.groups, strict=True)
        found = [group for (unit, of), group in places if of == origin and unit >= self.removed]
        return {key: value for key, value in found[0].items() if key not in ('params', 'lr', 'initial_lr')}

    def joined(self) -> Optimizer:
        """An optimizer of the original groups, in which what has left is as in a fresh one."""
        plain = self.entry.of(self.originals)
        for origin, group in enumerate(plain.param_groups):
            group.update(self.running_values(origin))
        for optimizer, kept in zip(nested(plain), nested(self.optimizer), strict=True):
            optimizer.state.update({p: copy.deepcopy(state) for p, state in kept.state.items()})
        if self.entry.fresh is not None:
            gone = [p for unit in self.units[: self.removed] for p in unit]
            plain.state.update({p: self.entry.fresh(p) for p in gone})
        return plain


def through_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def assert_same(ours: Run, by_hand: Run, at: str, exactly: bool = True) -> None:
    compare = assert_equal if exactly else assert_close
    compare(dict(ours.model.state_dict()), dict(by_hand.model.state_dict()), f'{at}: weights')
    compare(ours.kept(), by_hand.kept(), f'{at}: state')


def assert_close(a: Any, b: Any, at: str = '') -> None:
    """Equal to rounding."""
    torch.testing.assert_close(a, b, msg=lambda message: f'{at}: {message}')


def follow(ours: Run, by_hand: Run, events: list[float | None], start: int = 0, exactly: bool = True) -> None:
    """Both runs, event by event."""
    for batch, progress in enumerate(events[start:], start):
        ours.do(batch, progress)
        by_hand.do(batch, progress)
        assert_same(ours, by_hand, f'event {batch} ({"epoch end" if progress is END else progress})', exactly)


# --- which optimizers, on which networks

# They have dozens, of which one network each has to do where time is short.
COLLECTIONS = ('torch_optimizer', 'pytorch_optimizer')


def in_the_table(name: str) -> list[Any]:
    """Marks with which an optimizer stands in the table of what FreezeOut works with."""
    entry = ENTRIES[name]
    title = name.split(' ')[0].split('.')[-1]
    note = (
        f'To rounding when it goes on from a checkpoint or thaws: {entry.counts_by_group}.'
        if entry.counts_by_group
        else ''
    )
    if entry.lost_in_state_dict:
        note = f'Not exact when it goes on from a checkpoint, which leaves out {entry.lost_in_state_dict}.'
    if name.islower():  # made for these tests
        return []
    return [pytest.mark.compatibility(f'optimizer: {title} ({entry.package})', note=note)]


def cases(kinds: tuple[str, ...] | None = None, **conditions: Any) -> Any:
    """Parametrizes a test by optimizer and network.

    Args:
        kinds (tuple[str, ...], optional): Kinds of networks; of others an optimizer's first one takes their place.
        **conditions (Any): What the entries' attributes have to be.
    """
    found = []
    for name, entry in entries().items():
        if all(getattr(entry, attribute) == value for attribute, value in conditions.items()):
            usable = [kind for kind in kinds or entry.networks if kind in entry.networks] or entry.networks[:1]
            for kind in usable:
                marks = [pytest.mark.filterwarnings(warning) for warning in entry.warnings]
                if entry.package in COLLECTIONS and kind != 'groups':
                    marks.append(pytest.mark.slow)
                marks += in_the_table(name)
                found.append(pytest.param(entry, kind, id=f'{name}-{kind}', marks=marks))
    return pytest.mark.parametrize(('entry', 'kind'), found)


def some(*names: str) -> Any:
    return pytest.mark.parametrize('entry', [ENTRIES[name] for name in names], ids=names)


def test_every_optimizer_of_torch_is_here():
    ours = [entry for name, entry in ENTRIES.items() if entry.package == 'torch' and name != 'ZeroRedundancyOptimizer']
    classes = {type(entry.of([{'params': [nn.Parameter(torch.ones(2))]}])) for entry in ours}
    assert torch_classes() <= classes


def test_all_packages_are_installed():
    if missing():
        pytest.skip(f'optimizers of {", ".join(missing())} are not tried')


# --- the same as by hand


@cases()
def test_a_run_is_what_it_is_by_hand(entry, kind):
    """Units freeze, leave at the end of an epoch, thaw with or without having left, and freeze again."""
    run = Run(entry, kind)
    assert run.freezer.freeze_times[:4] == pytest.approx([1 / 2, 2 / 3, 5 / 6, 1])
    by_hand = ByHand(entry, kind, run.partition)
    follow(run, by_hand, FREEZING)
    # What a wrapper knows of a unit that is frozen for less than an epoch is its own affair.
    events = [0.86 if progress == 0.78 and entry.moves_frozen else progress for progress in EVENTS]
    follow(run, by_hand, events, len(FREEZING), not entry.counts_by_group)


@cases(('plain',), package='schedulefree')
def test_what_is_counted_by_group_stays_with_its_unit(entry, kind):
    """Shows while rates rise: then each unit has a highest rate of its own, by which its average is weighted."""
    run = Run(entry, kind)
    by_hand = ByHand(entry, kind, run.partition)
    run.warmup = by_hand.warmup = 0.49
    follow(run, by_hand, [0.1, 0.2, 0.55, END, 0.58, 0.6, 0.7, END, 0.72, 0.75])


# --- the state dict


def train_on(entry: Entry, kind: str, weights: Any, state: Any) -> Any:
    """Opens a checkpoint without FreezeOut, and takes two steps with everything trainable."""
    model = network(kind)
    model.load_state_dict(weights)
    optimizer = entry.of(original_groups(entry, kind, model))
    optimizer.load_state_dict(state)
    return two_steps(entry, model, optimizer)


def two_steps(entry: Entry, model: Any, optimizer: Optimizer) -> Any:
    for batch in (100, 101):
        step(entry, model, optimizer, batch)
    return {'model': dict(model.state_dict()), 'state': states(model, optimizer)}


def after_two_steps(by_hand: ByHand) -> Any:
    """What comes of the original groups where what has left is as in a fresh optimizer."""
    state = through_file(by_hand.joined().state_dict())
    return train_on(by_hand.entry, by_hand.kind, by_hand.model.state_dict(), state)


@cases(('groups', 'scalar', 'bf16'), saves=True, lost_in_state_dict='')
def test_a_state_opens_without_freezeout(entry, kind):
    run = Run(entry, kind).through(FREEZING)
    by_hand = ByHand(entry, kind, run.partition).through(FREEZING)
    saved = run.saved()
    if 'param_groups' in saved['optimizer']:
        keys = [sorted(group) for group in saved['optimizer']['param_groups']]
        assert keys == [sorted(group) for group in by_hand.joined().state_dict()['param_groups']]
    compare = assert_close if entry.counts_by_group else assert_equal
    compare(train_on(entry, kind, saved['model'], saved['optimizer']), after_two_steps(by_hand))


# Before anything is frozen, with a unit frozen that hasn't left, with units gone, with some thawed.
RESUMED = [1, 8, len(FREEZING), len(FREEZING) + 4]


@cases(('groups',), saves=True, lost_in_state_dict='')
def test_a_resumed_run_ends_with_the_same_bits(entry, kind):
    expected = Run(entry, kind).through(EVENTS).end()
    compare = assert_close if entry.counts_by_group else assert_equal
    interrupted, done = Run(entry, kind), 0
    for stop in RESUMED:
        saved = interrupted.through(EVENTS[:stop], done).saved()
        done = stop
        compare(Run(entry, kind).load(saved).through(EVENTS, done).end(), expected, f'saved after event {done}')


class Asked(Run):
    """A run whose optimizer is asked for its state dict at all times."""

    def ask(self, times: int = 1) -> None:
        for _ in range(times):
            self.optimizer.state_dict()
            kept = {name for of_one in states(self.model, self.optimizer) for name in of_one}
            units = self.partition.units[: self.freezer.groups.units_removed]
            left = [name for unit in units for name in unit.parameters if name in kept]
            assert not left, 'there is a state of what has left'

    def do(self, batch: int, progress: float | None) -> None:
        if progress is None:
            self.freezer.epoch_end()
            self.ask(2)
        else:
            self.freezer.batch_start(progress)
            self.ask()
            step(self.entry, self.model, self.optimizer, batch)
            self.ask()


@cases(('groups',), saves=True)
def test_asking_for_the_state_dict_changes_nothing(entry, kind):
    asked, run = Asked(entry, kind), Run(entry, kind)
    for batch, progress in enumerate(EVENTS):
        asked.do(batch, progress)
        run.do(batch, progress)
        assert_same(asked, run, f'event {batch} ({progress})')


# --- refused


@pytest.fixture
def one_process() -> Iterator[None]:
    """A process group, as one that shards an optimizer needs."""
    made = not torch.distributed.is_initialized()
    if made:
        torch.distributed.init_process_group('gloo', store=HashStore(), rank=0, world_size=1)
    yield
    if made:
        torch.distributed.destroy_process_group()


def refused(without: str = '') -> Any:
    """Parametrizes a test by the optimizers that are to be refused."""
    named = {name: entry for name, entry in entries(refused=True).items() if name != without}
    return pytest.mark.parametrize(
        'entry', [pytest.param(entry, id=name, marks=in_the_table(name)) for name, entry in named.items()]
    )


def reason(entry: Entry, optimizer: Optimizer) -> str:
    """A regular expression for a message that names the optimizer and says what the matter is."""
    return rf'(?i)^(?=.*{type(optimizer).__name__})(?=.*({entry.refused}))'


@refused()
@pytest.mark.usefixtures('one_process')
@pytest.mark.parametrize('forward', [True, False], ids=['forward', 'first batch'])
def test_optimizers_without_a_rate_per_group_are_refused(entry, forward, refusal):
    model = network('plain')
    optimizer = entry.of(original_groups(entry, 'plain', model))
    before = copy.deepcopy(model.state_dict())
    with refusal(reason(entry, optimizer)):
        freezer = apply_freezeout(model, optimizer, (lambda: model.loss(0)) if forward else None)
        freezer.batch_start(0.0)
        step(entry, model, optimizer, 0)
    assert_equal(dict(model.state_dict()), dict(before))


@refused(without='ZeroRedundancyOptimizer')  # it needs a process group, and Composer makes its own
def test_a_trainer_refuses_them_too(entry, refusal):
    model = classifier()
    optimizer = entry.of([{'params': list(model.parameters())}])
    with refusal(reason(entry, optimizer)):
        trainer(model, [FreezeOut(0.5)], optimizer, max_duration='1ba').fit()


# --- through Composer


class Kept(Callback):
    """What the optimizer holds when the second epoch is saved."""

    def __init__(self) -> None:
        self.states: list[dict[str, Any]] = []
        self.removed: list[str] = []

    def epoch_end(self, state: State, logger: Logger) -> None:  # callbacks come after algorithms
        if state.timestamp.epoch == 2:
            optimizer = state.optimizers[0]
            self.states = copy.deepcopy(states(state.model, optimizer))
            listed = {id(p) for group in optimizer.param_groups for p in group['params']}
            self.removed = [name for name, p in state.model.named_parameters() if id(p) not in listed]


def scaled_classifier() -> ComposerClassifier:
    torch.manual_seed(0)
    hidden = [nn.Linear(192, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh()]
    return ComposerClassifier(Layers(Scale(), nn.Flatten(), *hidden, nn.Linear(5, 4), scaled=True), num_classes=4)


@pytest.mark.filterwarnings('ignore:(Watch|Kept|FreezeOut) is not in the state_dict:UserWarning')
@pytest.mark.parametrize(
    ('name', 'make_model'),
    [
        ('SGD', classifier),
        ('SGD dampened', classifier),
        ('Adagrad', classifier),
        ('NAdam', classifier),
        ('Adafactor', classifier),
        ('DecoupledAdamW', classifier),
        ('AdamW', scaled_classifier),
    ],
)
def test_a_checkpoint_of_composer_opens_with_and_without_freezeout(name, make_model, tmp_path):
    entry = ENTRIES[name]

    def run(algorithms: list[FreezeOut], weights: Any = None, state: Any = None, **arguments: Any) -> Trainer:
        model = make_model()
        if weights is not None:
            model.load_state_dict(weights)
        optimizer = entry.of([{'params': list(model.parameters())}])
        if state is not None:
            optimizer.state.update({model.get_parameter(of): kept for of, kept in state.items()})
        made = trainer(model, algorithms, optimizer, train_dataloader=images(8), **arguments)
        made.fit()
        return made

    kept = Kept()
    run([FreezeOut(0.3)], max_duration='3ep', callbacks=[kept], save_folder=str(tmp_path), save_interval='1ep')
    (path,) = tmp_path.glob('ep2-*')
    assert len(kept.removed) > 4
    # Without it, all train on, those that had left as if the optimizer had not stepped them yet.
    alone = run([], load_path=str(path), max_duration='3ep')
    weights = torch.load(path, weights_only=False)['state']['model']
    by_hand = run([], weights, kept.states[0], max_duration='1ep')
    assert_equal(dict(alone.state.model.state_dict()), dict(by_hand.state.model.state_dict()))
    # With it and a longer training, two of three units thaw.
    freezeout, frozen = FreezeOut(0.3), []
    watch = Watch(lambda: frozen.append(sum(row['frozen'] for row in freezeout.unit_table())))
    run([freezeout], load_path=str(path), max_duration='8ep', callbacks=[watch])
    assert frozen[0] == 2 and frozen[-1] == 3


class Watch(Callback):
    """Calls a function at the end of each batch."""

    def __init__(self, look: Callable[[], object]) -> None:
        self.look = look

    def batch_end(self, state: State, logger: Logger) -> None:
        self.look()


# --- groups that are added while training

ADDED_RATE = 0.02


class Finetuned(Run):
    """The user has frozen the first layer, and adds it to the optimizer when the second epoch begins.

    Args:
        entry (Entry): The optimizer.
        asked (bool): Whether the optimizer is asked for its state dict before and after the group is added, and after
            each event.
        scheduled (bool): Whether the optimizer has a scheduler, which knows nothing of the group. What it sets is never
            the rate of a step: FreezeOut sets all others anew.
    """

    def __init__(self, entry: Entry, asked: bool = False, scheduled: bool = False) -> None:
        self.asked, self.scheduled = asked, scheduled
        self.rates: list[float] = []
        super().__init__(entry, 'thawed by the user')

    def start(self) -> FreezeOutLoop:
        if not self.scheduled:
            return super().start()
        scheduler = LambdaLR(self.optimizer, lambda steps: 0.5**steps)
        super().start()
        self.optimizer.register_step_post_hook(lambda *_: scheduler.step())
        return self.freezer

    def do(self, batch: int, progress: float | None) -> None:
        if batch == FREEZING.index(END) + 1:
            self.add()
        super().do(batch, progress)
        if self.asked:
            self.optimizer.state_dict()

    def add(self) -> None:
        if self.asked:
            self.optimizer.state_dict()
        backbone = self.model.layers[0].requires_grad_(True)
        self.optimizer.add_param_group({'params': list(backbone.parameters()), 'lr': ADDED_RATE})
        self.optimizer.register_step_pre_hook(lambda optimizer, *_: self.note(optimizer))
        if self.asked:
            self.optimizer.state_dict()

    def note(self, optimizer: Optimizer) -> None:
        weight = self.model.layers[0].weight
        found = [group for group in optimizer.param_groups if any(p is weight for p in group['params'])]
        assert len(found) == 1, f'{len(found)} groups hold what has been added'
        self.rates.append(float(found[0]['lr']))


class FinetunedByHand(ByHand):
    def __init__(self, entry: Entry, partition: Partition) -> None:
        super().__init__(entry, 'thawed by the user', partition)
        self.added: list[dict[str, Any]] = []

    def do(self, batch: int, progress: float | None) -> None:
        if batch == FREEZING.index(END) + 1:
            backbone = self.model.layers[0].requires_grad_(True)
            self.optimizer.add_param_group({'params': list(backbone.parameters()), 'lr': ADDED_RATE})
            self.added = self.optimizer.param_groups[-1:]
        super().do(batch, progress)

    def show_groups(self, from_unit: int) -> None:
        super().show_groups(from_unit)
        self.optimizer.param_groups += self.added


FINETUNED = some('SGD dampened', 'AdamW', 'RMSprop')
BATCHES_AFTER = sum(progress is not END for progress in EVENTS[FREEZING.index(END) + 1 :])


@FINETUNED
@pytest.mark.parametrize('asked', [False, True], ids=['split', 'joined'])
@pytest.mark.parametrize('scheduled', [False, True], ids=['alone', 'scheduled'])
def test_a_group_that_is_added_trains_at_its_own_rate(entry, asked, scheduled):
    run = Finetuned(entry, asked, scheduled)
    by_hand = FinetunedByHand(entry, run.partition)
    names = [unit.name for unit in run.partition.units]
    for batch, progress in enumerate(EVENTS):
        follow(run, by_hand, EVENTS[: batch + 1], batch)
        if progress is not None and not scheduled:
            rates = run.freezer.learning_rates()
            factors = lr_factors(progress, by_hand.times)
            assert [rates.pop(name) for name in names] == [by_hand.base_rates[0] * factor for factor in factors]
            assert list(rates.values()) in ([], [ADDED_RATE])
    assert run.rates == [ADDED_RATE] * BATCHES_AFTER


@FINETUNED
@pytest.mark.parametrize('asked', [False, True], ids=['split', 'joined'])
@pytest.mark.parametrize('done', [5, 8, len(FREEZING), len(FREEZING) + 4])
def test_a_run_with_an_added_group_is_resumed(entry, asked, done):
    whole = Finetuned(entry).through(EVENTS)
    saved = Finetuned(entry).through(EVENTS[:done]).saved()
    resumed = Finetuned(entry, asked)
    resumed.add()
    resumed.load(saved).through(EVENTS, done)
    assert_equal(resumed.end(), whole.end())
    assert set(resumed.rates) == {ADDED_RATE}


class AddsBackbone(Callback):
    def epoch_start(self, state: State, logger: Logger) -> None:
        if state.timestamp.epoch == 1:
            backbone = state.model.get_submodule('module.conv1').requires_grad_(True)
            state.optimizers[0].add_param_group({'params': list(backbone.parameters()), 'lr': ADDED_RATE})


def test_a_group_is_added_in_a_trainer(tmp_path):
    network = chain()
    network.conv1.requires_grad_(False)
    optimizer = SGD([p for p in network.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    scheduler = LambdaLR(optimizer, lambda batches: 0.9**batches)
    trace, algorithm = StepTrace(), FreezeOut(0.5)
    made = trainer(
        ComposerClassifier(network, num_classes=4),
        [algorithm],
        optimizer,
        schedulers=scheduler,
        callbacks=[AddsBackbone(), trace],
        save_folder=str(tmp_path),
    )
    made.fit()
    assert [rates['module.conv1.weight'] for rates in trace.steps] == [None] * 4 + [ADDED_RATE] * 12
    assert trace.steps[-1]['module.conv2.weight'] is None
    assert trace.steps[-1]['module.head.weight'] == pytest.approx(0.1 * lr_factors(15 / 16, (1.0,))[0])


# --- names


@pytest.mark.parametrize('grouped', [False, True], ids=['one group', 'two groups'])
def test_names_stand_beside_their_parameters(grouped):
    run = Run(ENTRIES['AdamW'], 'plain')
    run.freezer.groups.detach()
    named = list(run.model.named_parameters())
    parts = [[pair for pair in named if pair[1].ndim > 1], [pair for pair in named if pair[1].ndim == 1]]
    groups: list[dict[str, Any]] = [{'params': part} for part in (parts if grouped else [named])]
    saved = [[name for name, _ in group['params']] for group in groups]
    run.optimizer = torch.optim.AdamW(groups, lr=0.01)
    run.start()
    names = {id(p): name for name, p in named}

    def check() -> None:
        for group in run.optimizer.param_groups:
            assert [names[id(p)] for p in group['params']] == list(group['param_names'])

    for batch, progress in enumerate(EVENTS):
        run.do(batch, progress)
        check()
        state = run.optimizer.state_dict()
        assert [group['param_names'] for group in state['param_groups']] == saved
        check()


# --- learning rates


def test_learning_rates_have_the_same_names_throughout():
    run = Run(ENTRIES['SGD'], 'groups')
    names = sorted(run.freezer.learning_rates())
    assert len(names) == 8  # two of each unit
    for batch, progress in enumerate(EVENTS):
        run.do(batch, progress)
        rates = run.freezer.learning_rates()
        assert sorted(rates) == names
        if progress is None:
            gone = [unit.name for unit in run.partition.units[: run.freezer.units_frozen]]
            assert {name for name, rate in rates.items() if rate == 0} == {
                name for name in names if name.rpartition('/')[0] in gone
            }


def two_layers() -> Any:
    return nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))


def assert_told(model: nn.Module, optimizer: Optimizer, caplog: Any, peak: float, *numbers: str) -> None:
    """Fails unless training begins at the peak, and one message names the numbers."""
    with caplog.at_level(logging.WARNING, logger='composer_freezeout'):
        freezer = apply_freezeout(model, optimizer, lambda: model(torch.ones(2, 4)), scale_lr=False)
    freezer.batch_start(0.0)
    assert set(freezer.learning_rates().values()) == {peak}
    (record,) = [record for record in caplog.records if record.name.startswith('composer_freezeout')]
    assert all(number in record.getMessage() for number in numbers)


def test_a_rate_above_the_initial_one_is_the_peak(caplog):
    """What a scheduler of an earlier phase has left doesn't count for more than what the user has set since."""
    model = two_layers()
    optimizer = SGD(model.parameters(), lr=0.1)
    scheduler = OneCycleLR(optimizer, max_lr=0.1, total_steps=5, cycle_momentum=False)
    for _ in range(4):
        optimizer.step()
        scheduler.step()
    optimizer.param_groups[0]['lr'] = 0.05
    assert_told(model, optimizer, caplog, 0.05, '0.05', '0.004')


def test_a_rate_that_a_scheduler_has_brought_down_is_told(caplog):
    """As by a warm-up that has just begun."""
    model = two_layers()
    optimizer = SGD(model.parameters(), lr=0.1)
    optimizer.param_groups[0] |= {'initial_lr': 0.1, 'lr': 0.05}
    assert_told(model, optimizer, caplog, 0.1, 'lr=0.05', 'initial_lr=0.1')


def test_equal_rates_are_no_matter(caplog):
    model = two_layers()
    optimizer = SGD([{'params': model.parameters(), 'initial_lr': 0.1}], lr=0.1)
    with caplog.at_level(logging.WARNING, logger='composer_freezeout'):
        apply_freezeout(model, optimizer, lambda: model(torch.ones(2, 4)))
    assert not caplog.records


# --- started twice, copied, pickled

SOME = some('SGD dampened', 'SGD tensor lr', 'AdamW', 'Adagrad', 'NAdam', 'DecoupledAdamW')


@SOME
def test_the_second_start_begins_where_the_first_one_has_come_to(entry, refusal):
    run = Run(entry, 'groups')
    first = run.freezer
    by_hand = ByHand(entry, 'groups', run.partition).through(FREEZING)
    run.through(FREEZING)
    run.model.requires_grad_(True)
    run.start()
    again = ByHand(entry, 'groups', run.partition)
    again.model.load_state_dict(by_hand.model.state_dict())
    for name, kept in states(by_hand.model, by_hand.optimizer)[0].items():
        again.optimizer.state[again.model.get_parameter(name)] = copy.deepcopy(kept)
    follow(run, again, EVENTS)
    for use in (lambda: first.batch_start(0.5), first.epoch_end):
        with refusal('.{20}'):
            use()


def pickled(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


COPIED = pytest.mark.parametrize('copied', [copy.deepcopy, pickled])
JOINED = pytest.mark.parametrize('joined', [False, True], ids=['split', 'joined'])


@SOME
@COPIED
@JOINED
def test_a_copied_optimizer_goes_on_by_itself(entry, copied, joined):
    """With its model; and the original run doesn't notice."""
    run = Run(entry, 'groups').through(FREEZING)
    by_hand = ByHand(entry, 'groups', run.partition).through(FREEZING)
    if joined:
        run.optimizer.state_dict()
    model, optimizer = copied((run.model, run.optimizer))
    model.requires_grad_(True)
    assert_equal(two_steps(entry, model, optimizer), after_two_steps(by_hand))
    follow(run, by_hand, EVENTS, len(FREEZING))


@SOME
@COPIED
@JOINED
def test_an_optimizer_copied_alone_has_the_original_groups(entry, copied, joined):
    run = Run(entry, 'groups').through(FREEZING)
    by_hand = ByHand(entry, 'groups', run.partition).through(FREEZING)
    if joined:
        run.optimizer.state_dict()
    optimizer = copied(run.optimizer)
    plain = by_hand.joined()
    for ours, theirs in zip(optimizer.param_groups, plain.param_groups, strict=True):
        assert_equal(dict(sorted(ours.items())), dict(sorted(theirs.items())))
    for ours, theirs in zip(*(members(o) for o in (optimizer, plain)), strict=True):
        ours.grad = torch.ones_like(ours)
        theirs.grad = torch.ones_like(theirs)
    before = run.end()
    optimizer.step()
    plain.step()
    assert_equal([p.data for p in members(optimizer)], [p.data for p in members(plain)])
    assert_equal(run.end(), before)


def members(optimizer: Optimizer) -> list[nn.Parameter]:
    return list(itertools.chain(*(group['params'] for group in optimizer.param_groups)))


@COPIED
def test_a_copied_algorithm_has_not_begun(copied):
    algorithm = FreezeOut(0.5, 'linear', scale_lr=False, t_warmup='2ba', max_stages=2)
    copies: list[FreezeOut] = []
    watch = Watch(lambda: copies.append(copied(algorithm)))
    watched, plain = trainer(classifier(), [algorithm], callbacks=[watch]), classifier()
    watched.fit()
    trainer(plain, [FreezeOut(0.5, 'linear', scale_lr=False, t_warmup='2ba', max_stages=2)]).fit()
    assert_equal(dict(watched.state.model.state_dict()), dict(plain.state_dict()))
    for again in copies:
        assert repr(again) == repr(algorithm)
        assert algorithm.unit_table() and again.unit_table() == []
    model = classifier()
    trainer(model, [copies[-3]]).fit()
    assert_equal(dict(model.state_dict()), dict(plain.state_dict()))


@COPIED
def test_a_loop_is_not_copied(copied, refusal):
    run = Run(ENTRIES['AdamW'], 'plain').through(FREEZING)
    with refusal(r'^(?=.*model)(?=.*optimizer)(?=.*state_dict\(\))', TypeError):
        copied(run.freezer)
    with refusal('state_dict', TypeError):
        copied((run.model, run.optimizer, run.freezer))


# --- what users do in between


class Counting(Optimizer):
    """Keeps numbers beside the parameters' state, and a tensor and a list in each group."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, {'lr': lr, 'norm': torch.zeros(()), 'coefficients': [1.0]})
        self.state['steps'] = 0  # pyright: ignore[reportArgumentType]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        self.state['steps'] += 1  # pyright: ignore[reportArgumentType]
        for group in self.param_groups:
            gradients = [p.grad for p in group['params'] if p.grad is not None]
            group['norm'] = 0.9 * group['norm'] + sum(gradient.abs().sum() for gradient in gradients)
            for parameter in group['params']:
                if parameter.grad is not None:
                    parameter.sub_(group['coefficients'][0] * group['lr'] / (1 + group['norm']) * parameter.grad)


def small_run(model: nn.Module, optimizer: Optimizer, freezer: Any, batches: range) -> None:
    for batch in batches:
        freezer.batch_start(batch / 16)
        optimizer.zero_grad()
        generator = torch.Generator().manual_seed(batch)
        model(torch.randn(3, 4, generator=generator)).square().sum().backward()
        optimizer.step()
        if batch % 4 == 3:
            freezer.epoch_end()


def small_parts(make: Any) -> tuple[nn.Module, Optimizer, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 2))
    optimizer = make(model.parameters())
    return model, optimizer, apply_freezeout(model, optimizer, lambda: model(torch.ones(3, 4)), t_0=0.5)


def test_asking_for_the_state_within_a_step_changes_nothing():
    ends = []
    for asks in (False, True):
        model, optimizer, freezer = small_parts(partial(SGD, lr=0.1, momentum=0.9))
        if asks:
            optimizer.register_step_pre_hook(lambda optimizer, *_: optimizer.state_dict() and None)
        small_run(model, optimizer, freezer, range(16))
        ends.append(model.state_dict())
    assert_equal(*ends)


@pytest.mark.parametrize('saved', [3, 8, 13])
def test_what_an_optimizer_counts_in_its_groups_is_resumed(saved):
    model, optimizer, freezer = small_parts(Counting)
    small_run(model, optimizer, freezer, range(saved))
    state = copy.deepcopy((model.state_dict(), optimizer.state_dict(), freezer.state_dict()))
    small_run(model, optimizer, freezer, range(saved, 16))
    other, other_optimizer, other_freezer = small_parts(Counting)
    for part, of_it in zip((other, other_optimizer, other_freezer), state, strict=True):
        part.load_state_dict(of_it)
    small_run(other, other_optimizer, other_freezer, range(saved, 16))
    assert_equal(other.state_dict(), model.state_dict())


def test_state_beside_that_of_parameters_is_copied():
    model, optimizer, freezer = small_parts(Counting)
    small_run(model, optimizer, freezer, range(10))
    assert copy.deepcopy(optimizer).state['steps'] == 10


def test_a_list_that_is_written_to_after_saving_is_taken_over():
    model, optimizer, freezer = small_parts(Counting)
    small_run(model, optimizer, freezer, range(4))
    optimizer.state_dict()
    optimizer.param_groups[0]['coefficients'][0] = 0.5
    small_run(model, optimizer, freezer, range(4, 6))
    assert {group['coefficients'][0] for group in optimizer.param_groups} == {0.5}


def test_copies_of_model_and_optimizer_go_on_with_the_state_of_the_run():
    model, optimizer, freezer = small_parts(partial(SGD, lr=0.1, momentum=0.9))
    small_run(model, optimizer, freezer, range(13))
    assert freezer.units_frozen
    copied, copied_optimizer = copy.deepcopy((model, optimizer))
    again = apply_freezeout(copied, copied_optimizer, t_0=0.5)
    again.load_state_dict(freezer.state_dict())
    small_run(model, optimizer, freezer, range(13, 16))
    small_run(copied, copied_optimizer, again, range(13, 16))
    assert_equal(copied.state_dict(), model.state_dict())
