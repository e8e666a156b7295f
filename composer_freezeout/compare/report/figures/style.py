"""Plots of a comparison, as SVG that follows the reader's light or dark scheme and repeats to the byte.

Functions that draw return a figure, of which :func:`svg` makes the text of a file. The same matplotlib makes the same
bytes.
"""

import functools
import io
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import matplotlib
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from composer_freezeout.compare.arms.known import BASELINE_SHORT, KNOWN, length_of

__all__ = [
    'HEIGHT',
    'INK',
    'MUTED',
    'PAPER',
    'STYLES',
    'WIDTH',
    'add_legend',
    'marker_style',
    'plain',
    'short_label',
    'styled',
    'styles_of',
    'svg',
]

_P = ParamSpec('_P')
_T = TypeVar('_T')
# Colours of one meaning each, for which an SVG has variables. Others read well on light and on dark ground.
INK, PAPER, MUTED, _GRID = '#1f2328', '#fffffe', '#59636e', '#d1d9e0'
_VARIABLES = {INK: '--ink', PAPER: '--paper', MUTED: '--muted', _GRID: '--grid'}
_CSS = (
    f'svg{{--ink:{INK};--paper:{PAPER};--muted:{MUTED};--grid:{_GRID}}}'
    '@media (prefers-color-scheme:dark){svg{--ink:#e6edf3;--paper:#161b22;--muted:#9aa4af;--grid:#30363d}}'
)
_NAMED = {'ink': INK, 'muted': MUTED}
# Colour, marker, and whether the marker is filled.
STYLES = {name: (_NAMED.get(arm.colour, arm.colour), arm.marker, arm.filled) for name, arm in KNOWN.items()}
# Arms of other names, as in a sweep: four at a time differ in both colour and marker.
_OTHERS = [
    (colour, 'X*ph'[(index + shift) % 4], filled)
    for filled in (True, False)
    for shift in range(4)
    for index, colour in enumerate(('#a87900', '#6a8f1f', '#b35c44', '#5c7cb3'))
]
_SETTINGS: dict[Any, Any] = {
    'font.family': 'DejaVu Sans',
    'font.size': 10,
    'axes.titlesize': 11,
    'axes.titlelocation': 'left',
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.grid': True,
    'axes.axisbelow': True,
    'grid.color': _GRID,
    'grid.linewidth': 0.7,
    'legend.frameon': False,
    'legend.fontsize': 9,
    'svg.fonttype': 'path',
    'figure.facecolor': PAPER,
    'axes.facecolor': PAPER,
    'savefig.facecolor': PAPER,
    'text.color': INK,
    'axes.labelcolor': INK,
    'axes.edgecolor': MUTED,
    'xtick.color': MUTED,
    'ytick.color': MUTED,
    'xtick.labelcolor': INK,
    'ytick.labelcolor': INK,
}
WIDTH, HEIGHT = 7.5, 5.6


def styled(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Runs a function with the settings of this module, whatever the user's are."""

    @functools.wraps(function)
    def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(_SETTINGS)
            return function(*args, **kwargs)

    return wrapper


@styled
def svg(figure: Figure, title: str) -> str:
    """A figure as a file: with the title for those who cannot see it, and without date and version.

    Args:
        figure (Figure): The figure.
        title (str): What it shows.

    Returns:
        str: An SVG document.
    """
    # Ids are made from the salt, so that several figures can stand in one document.
    matplotlib.rcParams['svg.hashsalt'] = title
    stream = io.StringIO()
    figure.savefig(stream, format='svg', metadata={'Date': None, 'Creator': None, 'Title': title})
    text = stream.getvalue()
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f'var({variable}, {colour})')
    return text.replace('<style type="text/css">', f'<style type="text/css">{_CSS}', 1)


def styles_of(labels: Sequence[str]) -> dict[str, tuple[str, str, bool]]:
    """Colour, marker and whether it is filled, of arms and of what else is compared."""
    shortened = {label: STYLES[BASELINE_SHORT] for label in labels if length_of(label) is not None}
    unknown = [label for label in labels if label not in STYLES and label not in shortened]
    return STYLES | shortened | {label: _OTHERS[index % len(_OTHERS)] for index, label in enumerate(unknown)}


def marker_style(style: tuple[str, str, bool]) -> dict[str, Any]:
    """A style as arguments of ``errorbar``."""
    colour, marker, filled = style
    return {
        'color': colour,
        'marker': marker,
        'markersize': 7,
        'markerfacecolor': colour if filled else PAPER,
        'markeredgewidth': 1.4,
        'linestyle': 'none',
        'elinewidth': 1.0,
        'capsize': 2.5,
    }


def plain(text: str) -> str:
    """Text that matplotlib takes as it is."""
    # Dollar signs would start a formula.
    return text.replace('$', r'\$')


def short_label(text: str, length: int = 40) -> str:
    """Text that fits beside an axis or in a legend."""
    return plain(text if len(text) <= length else f'{text[: length - 1]}…')


def add_legend(figure: Figure, axes: Axes) -> None:
    """A legend below the axes, in as many columns as fit."""
    handles, labels = axes.get_legend_handles_labels()
    if not labels:
        return
    # Without the bars, the markers can be told apart.
    handles = [handle[0] if isinstance(handle, ErrorbarContainer) else handle for handle in handles]
    shown = [short_label(label) for label in labels]
    columns = max(1, min(len(shown), 96 // (max(map(len, shown)) + 7)))
    figure.legend(handles, shown, loc='outside lower left', ncols=columns)
