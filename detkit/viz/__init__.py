"""Images: boxes on images, mosaics, loss curves, precision and recall, recall of proposals, accuracy against speed.

Images are (H, W, 3) uint8 RGB arrays and are never changed in place. Boxes are continuous xyxy in pixels.
"""

from detkit.viz.draw import colour, draw
from detkit.viz.plots import loss_image, loss_plot, pr_plot, pr_plots, recall_plot, speed_plot
from detkit.viz.sheet import draw_pair, mosaic

__all__ = [
    "colour",
    "draw",
    "draw_pair",
    "loss_image",
    "loss_plot",
    "mosaic",
    "pr_plot",
    "pr_plots",
    "recall_plot",
    "speed_plot",
]
