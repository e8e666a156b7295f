"""Records and folders of comparisons, as small as the report takes them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FREEZEOUT = {'name': 'freezeout', 't_0': 0.8, 'how_scale': 'cubic', 'scale_lr': True}
LAYER_FREEZING = {'name': 'layer_freezing', 'freeze_start': 0.5, 'freeze_level': 1.0}


def record(
    arm: str, seed: int, accuracy: float | None = 0.9, seconds: float = 100.0, cpu: float | None = None
) -> dict[str, Any]:
    """Two epochs of ten batches; with FreezeOut, the first of two units freezes after half of them.

    Old records have no CPU seconds. A batch with nothing frozen takes the same with FreezeOut, in nine tenths of the
    baseline's CPU seconds, as in the baseline.
    """
    freezeout, layer_freezing = arm.startswith('freezeout'), arm.startswith('layer_freezing')
    units = [('module.a', 0.5, 10), ('module.b', 1.0, None)] if freezeout else []
    freezes = freezeout or layer_freezing
    rows = [(0.3, 0.6), (accuracy, 0.4)]
    segments = [(1, 9, 0.5, 0, 1000), (10, 10, 0.4, 1, 600)] if freezes else [(1, 19, 0.95, 0, 1000)]
    content = {
        'format': 1,
        'run_name': f'family-{arm}',
        'config_file': f'yamls/family/{arm}.yaml',
        'command': f'composer run yamls/family/{arm}.yaml',
        'config': {
            'run_name': f'family-{arm}',
            'output': f'runs/{arm}/seed{seed}',
            'model': {'name': 'resnet8', 'num_classes': 10},
            'optimizer': {'name': 'sgd', 'lr': 0.1},
            'scheduler': None if freezeout else {'name': 'cosine_annealing'},
            'algorithms': [FREEZEOUT] if freezeout else [LAYER_FREEZING] if layer_freezing else [],
            'max_duration': '2ep',
            'seed': seed,
            'overwrite': False,
            'progress_bar': False,
        },
        'seed': seed,
        'started_at': '2026-01-02T03:04:05+00:00',
        'finished_at': '2026-01-02T03:06:05+00:00',
        'effective': {
            'optimizer': {'name': 'SGD', 'groups': []},
            'algorithms': [],
            'device': 'cpu',
            'world_size': 1,
            'precision': 'fp32',
            'batches_per_epoch': 10,
            'total_batches': 20,
            'parameters_total': 1000,
            'global_batch_size': 10,
            'train_samples': 100,
            'eval_samples': 50,
        },
        'units': [
            {'name': name, 'parameters': 400, 't_i': t, 'frozen': batch is not None, 'frozen_at_batch': batch}
            for name, t, batch in units
        ],
        'epochs': [
            {
                'epoch': epoch,
                'batch': 10 * epoch,
                'train': {'loss': 0.5},
                'eval': {} if value is None else {'MulticlassAccuracy': value},
                'training_seconds': seconds * share,
                'data_wait_seconds': 0.04 * seconds * share,
                'trainable_parameters': 1000,
            }
            for epoch, (value, share) in enumerate(rows, start=1)
        ],
        'lr_trace': {
            'batch': list(range(20)),
            'lr': {'module.a': [0.2] * 10 + [None] * 10, 'module.b': [0.1] * 20}
            if freezeout
            else {'group0': [0.1] * 20},
        },
        'segments': [
            {
                'batch': batch,
                'batches': batches,
                'seconds': seconds * share,
                'units_frozen': frozen if freezeout else None,
                'trainable_parameters': trainable,
            }
            for batch, batches, share, frozen, trainable in segments
        ],
        'training_seconds': seconds,
        'first_batch_seconds': 0.25,
        'evaluation_seconds': 3.0,
        'data_wait_seconds': 0.04 * seconds,
        'data_wait_share': 0.04,
        'peak_memory_bytes': 700 * 2**20,
        'resumed_at_batch': [],
        'predicted_saving': 0.2 if freezes else 0.0,
        'final': {} if accuracy is None else {'MulticlassAccuracy': accuracy},
        'versions': {'python': '3.12.1', 'torch': '2.7.0'},
        'hardware': {'cpu': 'a CPU', 'threads': 2, 'gpu': None, 'memory_bytes': 2**34},
        'git': {'commit': 'abc123', 'dirty': False},
    }
    return content if cpu is None else _with_cpu_seconds(content, cpu)


def _with_cpu_seconds(content: dict[str, Any], cpu: float) -> dict[str, Any]:
    share = cpu / content['training_seconds']
    return content | {
        'training_cpu_seconds': cpu,
        'epochs': [row | {'training_cpu_seconds': row['training_seconds'] * share} for row in content['epochs']],
        'segments': [row | {'cpu_seconds': row['seconds'] * share} for row in content['segments']],
        'openmp': {'wait_policy': None, 'spin_count': '1000'},
    }


def manifest(arms: Sequence[str], seeds: Sequence[int], **changes: Any) -> dict[str, Any]:
    return {
        'format': 1,
        'family': 'family',
        'command': 'python benchmarks/compare.py yamls/family --out out',
        'arms': list(arms),
        'seeds': list(seeds),
        'scale': 1.0,
        'overrides': [],
        'failures': [],
    } | changes


def folder(
    out: Path,
    accuracies: Mapping[str, Sequence[float | None]],
    seconds: Mapping[str, float] | None = None,
    cpu: Mapping[str, float] | None = None,
    **changes: Any,
) -> Path:
    """A comparison with seeds 0, 1, …; an arm with fewer accuracies lacks the last seeds."""
    seeds = range(max(map(len, accuracies.values())))
    for arm, values in accuracies.items():
        for seed, accuracy in enumerate(values):
            # The times of an arm spread by 1 %.
            spread = 1 + 0.01 * (seed - (len(values) - 1) / 2)
            time = (seconds or {}).get(arm, 100.0) * spread
            one = record(arm, seed, accuracy, time, None if cpu is None else cpu[arm] * spread)
            write(out / arm / f'seed{seed}' / 'record.json', one)
    write(out / 'comparison.json', manifest(list(accuracies), list(seeds), **changes))
    return out


def write(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding='utf-8')


def edit(path: Path, *keys: str, value: Any) -> None:
    """Changes one value in a JSON file."""
    content = json.loads(path.read_text())
    place = content
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    write(path, content)
