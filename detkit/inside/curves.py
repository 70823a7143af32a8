"""Curves of invariance, drawn."""

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from detkit.inside.invariance import Curve
from detkit.inside.pictures import Picture
from detkit.viz.draw import hex_colour

GROUND, INK = "#24282d", "#e8eaed"  # of panels, on light pages and dark ones


def curve_picture(curve: Curve) -> Picture:
    """One change: a line a layer, (H, W, 3) uint8."""
    figure = Figure(figsize=(5.6, 4), dpi=100, facecolor=GROUND, layout="constrained")
    axes = figure.add_subplot(facecolor=GROUND)
    for number, (layer, distances) in enumerate(curve.distances.items()):
        axes.plot(curve.amounts, distances, "o-", color=hex_colour(2 + number), label=layer)
    axes.set_xlabel(curve.change, color=INK)
    axes.set_ylabel("distance", color=INK)
    axes.set_ylim(bottom=0)
    axes.tick_params(colors=INK)
    axes.legend(facecolor=GROUND, labelcolor=INK)
    for spine in axes.spines.values():
        spine.set_color(INK)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
