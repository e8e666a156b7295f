"""Takes turns with all variants of a step, and times them."""

import gc
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from composer.utils import dist
from rich.console import Console

from composer_freezeout.step_time.counts import (
    Clock,
    compiled_graphs,
    count_memory,
    count_step,
    count_traffic,
    measure_on_gpu,
)
from composer_freezeout.step_time.record import VARIANTS, VariantName
from composer_freezeout.step_time.variants import make_variant
from composer_freezeout.step_time.workload import Variant, Workload

__all__ = ['TIMED', 'UNTIMED', 'WARM_UP_ROUNDS', 'Turns', 'measure']

# Steps of a turn: those thrown away, and those timed.
UNTIMED, TIMED = 1, 2
# Each variant may freeze, compile, and make the optimizer's state; the second round compiles what a freeze made void.
WARM_UP_ROUNDS = 2


@dataclass
class Turns:
    """The steps of one variant with some units frozen.

    Attributes:
        name (VariantName): The variant.
        units_frozen (int): In ``[0, n)``.
        row (dict[str, Any]): What the record says of it.
        variant (Variant, optional): As long as there is one.
    """

    name: VariantName
    units_frozen: int
    row: dict[str, Any]
    variant: Variant | None = None

    def begin(self, workload: Workload) -> None:
        """Makes the variant."""
        self.variant = make_variant(workload, self.name, self.units_frozen)
        self.row['seconds'].append([])

    def visit(self, device: torch.device) -> list[float]:
        """Takes a turn.

        Returns:
            list[float]: Seconds of the timed steps.
        """
        assert self.variant is not None
        clock = Clock(device)
        if dist.get_world_size() > 1:
            # The first to come would wait for the others within its step.
            dist.barrier()
        self.variant.visit(clock)
        return clock.seconds[UNTIMED:]

    def end(self) -> None:
        """Notes what the variant says of itself, and ends it."""
        assert self.variant is not None
        notes = self.variant.notes()
        if 'algorithm_seconds' in notes:
            notes['algorithm_seconds'] = _timed(notes['algorithm_seconds'])
        for key, value in notes.items():
            # Lists go on with each restart.
            self.row[key] = [*self.row.get(key, []), *value] if isinstance(value, list) else value
        self.variant.close()
        self.variant = None


def _timed(steps: Sequence[float]) -> list[float]:
    """Those of all steps of a variant that count."""
    visits = steps[WARM_UP_ROUNDS * (UNTIMED + TIMED) :]
    return [seconds for index, seconds in enumerate(visits) if index % (UNTIMED + TIMED) >= UNTIMED]


def measure(
    workload: Workload, frozen: Sequence[int], restarts: int, repeats: int, seed: int, console: Console
) -> dict[str, Any]:
    """Counts and times all variants.

    Args:
        workload (Workload): What is trained.
        frozen (Sequence[int]): Numbers of frozen units, each in ``[0, n)``.
        restarts (int): How often each variant is made, in ``[1, ∞)``.
        repeats (int): Timed steps of each, in ``[1, ∞)``; more where they don't divide evenly.
        seed (int): Of the order.
        console (Console): Where progress is told.

    Returns:
        dict[str, Any]: ``rows`` and ``graphs_while_timed`` of the record.
    """
    if workload.compile_backend is not None:
        # Every variant compiles the same functions, and torch would soon give up on them.
        torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = 10_000
    turns = _counted(workload, frozen, console)
    rounds = math.ceil(repeats / TIMED / restarts)
    graphs, shuffler = 0, random.Random(seed)
    for restart in range(restarts):
        console.print(f'Warming up, {restart + 1} of {restarts}.', highlight=False)
        # Where a variant lies in memory makes some of its speed.
        for turn in shuffler.sample(turns, len(turns)):
            turn.begin(workload)
        _warm_up(turns, workload)
        before = compiled_graphs()
        for number in range(rounds):
            console.print(f'Round {number + 1} of {rounds}.', highlight=False)
            _round(turns, workload, shuffler)
        graphs += compiled_graphs() - before
        for turn in turns:
            turn.end()
    return {'rows': [turn.row for turn in turns], 'graphs_while_timed': graphs}


def _counted(workload: Workload, frozen: Sequence[int], console: Console) -> list[Turns]:
    """Every variant at every number of frozen units, with what is counted of it."""
    keys: list[tuple[VariantName, int]] = [
        (name, k) for name in VARIANTS for k in ([0] if name == 'composer' else frozen)
    ]
    console.print(f'Counting in {len(keys)} variants of a step.', highlight=False)
    turns = []
    for name, k in keys:
        make = partial(make_variant, name=name, units_frozen=k)
        counts = count_step(make, workload)
        counts |= (measure_on_gpu if workload.device.type == 'cuda' else count_memory)(make, workload)
        if dist.get_world_size() > 1:
            counts |= count_traffic(make, workload)
        turns.append(Turns(name, k, {'variant': name, 'units_frozen': k, 'counts': counts, 'seconds': []}))
    return turns


def _round(turns: Sequence[Turns], workload: Workload, shuffler: random.Random) -> None:
    # Collecting garbage takes long where there are so many objects, and would hit steps at random.
    gc.collect()
    gc.disable()
    try:
        for turn in shuffler.sample(turns, len(turns)):
            turn.row['seconds'][-1].append(turn.visit(workload.device))
    finally:
        gc.enable()


def _warm_up(turns: Sequence[Turns], workload: Workload) -> None:
    for _ in range(WARM_UP_ROUNDS):
        # FreezeOut does so for the whole process when units freeze, which they all have done before the last round.
        torch.compiler.reset()
        for turn in turns:
            before = compiled_graphs()
            turn.visit(workload.device)
            if workload.compile_backend is not None:
                turn.row['counts']['graphs'] = compiled_graphs() - before
