"""What each step of a detector did with one image: explained, drawn, as a page.

`Detector.trace` tells the steps; a step of a new kind registers its drawing with `draw`.
"""

from detkit.explain.canvas import Canvas, Key, Panel, Section
from detkit.explain.drawing import draw
from detkit.explain.explanation import Explanation, Suppression, explain
from detkit.explain.page import explain_page
from detkit.explain.sections import draw_sections

__all__ = [
    "Canvas",
    "Explanation",
    "Key",
    "Panel",
    "Section",
    "Suppression",
    "draw",
    "draw_sections",
    "explain",
    "explain_page",
]
