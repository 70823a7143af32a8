"""What the plots share."""

from pathlib import Path
from typing import TYPE_CHECKING

from detkit.files import save_atomic
from detkit.viz.draw import Colour, colour

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> "Figure":
    """Return a matplotlib figure without pyplot, which keeps figures alive and may want a display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def tidy(axes: "Axes") -> None:
    """Give axes a light grid and no frame."""
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def save(figure: "Figure", path: str | Path) -> None:
    """Write the image, whole or not at all."""
    save_atomic(path, figure.savefig)


def hex_code(shade: Colour) -> str:
    """RGB -> #rrggbb."""
    return "#{:02x}{:02x}{:02x}".format(*shade)


def hex_colour(index: int) -> str:
    """Return the colour of class `index` as #rrggbb, in images, plots and pages alike."""
    return hex_code(colour(index))
