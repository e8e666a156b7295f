import io
from typing import Any

import matplotlib.image
import pytest
from rich.console import Console

from composer_freezeout.report import comparison_table, plot_learning_rates, results


def record(seconds: float, accuracy: float | None = 0.9, predicted: float | None = 0.0) -> dict[str, Any]:
    return {
        'training_seconds': seconds,
        'final': {} if accuracy is None else {'MulticlassAccuracy': accuracy},
        'predicted_saving': predicted,
    }


def shown(rows: Any, title: str = 'title') -> str:
    console = Console(file=io.StringIO(), width=100)
    console.print(comparison_table(rows, title))
    return console.file.getvalue()


def test_savings_are_relative_to_the_baseline():
    records = {'baseline': record(20.0), 'freezeout': record(15.0, 0.88, 0.2), 'slower': record(25.0, None, None)}
    baseline, freezeout, slower = results(records)
    assert (baseline.measured_saving, baseline.predicted_saving) == (None, None)
    assert (freezeout.measured_saving, freezeout.predicted_saving) == (0.25, 0.2)
    assert (slower.measured_saving, slower.predicted_saving, slower.accuracy) == (-0.25, None, None)


def test_without_a_baseline_there_is_nothing_to_compare_with():
    with pytest.raises(ValueError, match="no record of the arm 'baseline'"):
        results({'freezeout': record(15.0)})


def test_the_table_shows_losses_as_well():
    text = shown(results({'baseline': record(20.0), 'freezeout': record(25.0, 0.5, 0.2)}))
    (line,) = [line for line in text.splitlines() if 'freezeout' in line]
    assert [cell.strip() for cell in line.strip('│').split('│')] == ['freezeout', '50.00%', '25.0', '-25.0%', '20.0%']


def test_names_are_not_markup():
    assert '[red]arm[/red]' in shown(results({'baseline': record(1.0), '[red]arm[/red]': record(1.0)}), '[b]title')
    assert '[b]title' in shown(results({'baseline': record(1.0)}), '[b]title')


def test_the_plot(tmp_path):
    units = [
        {'name': 'module.a', 't_i': 0.5, 'frozen_at_batch': 5},
        {'name': 'module.b', 't_i': 1.0, 'frozen_at_batch': None},
    ]
    trace = {'batch': list(range(10)), 'lr': {'module.a': [0.2] * 5 + [None] * 5, 'module.b': [0.1] * 10}}
    run = {'run_name': 'a run', 'units': units, 'lr_trace': trace, 'effective': {'total_batches': 10}}
    plot_learning_rates(run, tmp_path / 'plot.png')
    image = matplotlib.image.imread(tmp_path / 'plot.png')
    # Dark violet for the first unit and yellow-green for the last, as lines and as bars.
    for colour in ((0.267, 0.005, 0.329), (0.79, 0.88, 0.12)):
        assert (abs(image[:, :, :3] - colour).max(axis=2) < 0.06).sum() > 1000
    with pytest.raises(ValueError, match="'a run' has no FreezeOut units"):
        plot_learning_rates(run | {'units': []}, tmp_path / 'other.png')
