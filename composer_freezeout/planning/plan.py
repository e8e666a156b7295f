"""A plan that shows itself: as a table, in a notebook, and as a picture."""

import html
import io
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any

from rich.console import Console

from composer_freezeout.planning.content import PlanContent
from composer_freezeout.planning.terminal import describe_schedule, print_plan

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ['Plan']


@dataclass(frozen=True, repr=False)
class Plan(PlanContent):
    """FreezeOut for a training that has not begun; what :func:`.plan` gives.

    ``print(plan)`` prints the units and what freezing them saves as tables, and a notebook shows them. Attributes are
    those of :class:`~composer_freezeout.planning.content.PlanContent`.
    """

    def __repr__(self) -> str:
        return (
            f'<Plan for {self.run_name}: {len(self.units)} units, {describe_schedule(self)}, saves {self.saving:.1%} '
            f'({self.relied_on})>'
        )

    def __str__(self) -> str:
        text = io.StringIO()
        # Plain text, wherever it is going to be shown; as wide as the terminal, if there is one.
        print_plan(self, Console(file=text, force_terminal=False, force_jupyter=False, color_system=None))
        return '\n'.join(line.rstrip() for line in text.getvalue().splitlines()).rstrip()

    def _repr_html_(self) -> str:
        return f'<pre>{html.escape(str(self))}</pre>'

    def plot(self, to: 'str | PathLike[str] | Axes | None' = None) -> 'Figure':
        """Draws the learning rate of each unit over the training, and below what is frozen and what a step saves.

        Args:
            to (str | PathLike | Axes, optional): A file to write the picture to, in the format that its name ends in;
                or axes, into which the lower part alone is drawn. Default: ``None``, neither.

        Returns:
            Figure: To be shown or changed.
        """
        # Imported here: a plan is mostly printed, and matplotlib takes its time.
        from composer_freezeout.planning.plots import draw_frozen, figure_of

        if to is None or isinstance(to, (str, PathLike)):
            figure = figure_of(self)
            if to is not None:
                figure.savefig(to, dpi=150)
            return figure
        draw_frozen(self, to)
        figure: Any = to.get_figure()
        return figure
