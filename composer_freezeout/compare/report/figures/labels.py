"""Names at the points of a plot, where they hide neither each other nor a point."""

from collections.abc import Sequence
from itertools import product

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox

from composer_freezeout.compare.report.figures.style import MUTED, PAPER, short_label

__all__ = ['label_points']

# Of a marker and of the gap around a label, in points.
_MARKER, _GAP = 4.0, 1.5
# Farther from its point, a label gets a line to it.
_LINE_FROM = 15.0
# Where the bars of a point do not run comes first.
_DIRECTIONS = ((1, 1), (1, -1), (-1, 1), (-1, -1), (1, 0), (-1, 0), (0, 1), (0, -1))
_DISTANCES = (6.0, 15.0, 26.0, 38.0, 52.0, 68.0, 86.0, 106.0)


def label_points(axes: Axes, points: Sequence[tuple[float, float, str, str]], size: float = 8.5) -> None:
    """Writes the name of each point beside it, at the nearest place that is free.

    The axes have their final limits and the figure its final size. A name for which no place is free is left to the
    legend of the figure, if it has one.

    Args:
        axes (Axes): With the points drawn.
        points (Sequence[tuple[float, float, str, str]]): Place in the axes' data, name, and colour of each.
        size (float): Of the letters, in points.
    """
    figure = axes.figure
    canvas = FigureCanvasAgg(figure)  # pyright: ignore[reportArgumentType]
    figure.draw_without_rendering()  # pyright: ignore[reportAttributeAccessIssue]
    renderer, pixels = canvas.get_renderer(), figure.dpi / 72
    frame = axes.get_window_extent(renderer)
    places = axes.transData.transform([(x, y) for x, y, _, _ in points])
    taken = [Bbox.from_bounds(*(place - _MARKER * pixels), *[2 * _MARKER * pixels] * 2) for place in places]
    for place, (x, y, name, colour) in zip(places, points, strict=True):
        text = axes.text(x, y, short_label(name), fontsize=size, color=colour)
        box = text.get_window_extent(renderer)
        width, height = box.width, box.height
        text.remove()
        for distance, (right, up) in product(_DISTANCES, _DIRECTIONS):
            aside = _GAP if up else distance
            centre_x = place[0] + right * (aside * pixels + width / 2)
            centre_y = place[1] + up * (distance * pixels + height / 2)
            label = Bbox.from_bounds(centre_x - width / 2, centre_y - height / 2, width, height)
            padded = label.padded(_GAP * pixels)
            inside = frame.x0 <= label.x0 and label.x1 <= frame.x1 and frame.y0 <= label.y0 and label.y1 <= frame.y1
            if not inside or any(padded.overlaps(other) for other in taken):
                continue
            taken.append(label)
            line = {'arrowstyle': '-', 'color': MUTED, 'linewidth': 0.6, 'shrinkA': 0, 'shrinkB': 4}
            axes.annotate(
                short_label(name),
                xy=(x, y),
                xytext=((centre_x - place[0]) / pixels, (centre_y - place[1]) / pixels),
                textcoords='offset points',
                ha='center',
                va='center',
                fontsize=size,
                color=colour,
                arrowprops=line if distance >= _LINE_FROM else None,
                zorder=4,
                # Across bars and grid it stays legible.
                path_effects=[withStroke(linewidth=2.5, foreground=PAPER)],
            )
            break
