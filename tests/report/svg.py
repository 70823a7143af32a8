"""Reads the plots of a page back, in the units of their axes."""

from itertools import pairwise
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import numpy as np


class Plot:
    """A plot with linear axes, which run as the numbers at its grid lines say. lines: the curves, in order."""

    def __init__(self, text: str) -> None:
        # HTML knows attributes without a value, XML does not
        root = ElementTree.fromstring(text.replace(" hidden ", ' hidden="" '))
        self.lines = root.findall("polyline")
        children = list(root)
        ticks = [
            (line, float(label.text or "nan"))
            for line, label in pairwise(children)
            if line.tag == "line" and line.get("class") == "grid"
        ]
        self._across = _axis([(float(line.attrib["x1"]), value) for line, value in ticks if _upright(line)])
        self._up = _axis([(float(line.attrib["y1"]), value) for line, value in ticks if not _upright(line)])

    def points(self, line: Element) -> np.ndarray:
        """Return (N, 2) float64: a curve's points."""
        pixels = np.array([pair.split(",") for pair in line.attrib["points"].split()], float)
        return np.stack([np.polyval(self._across, pixels[:, 0]), np.polyval(self._up, pixels[:, 1])], 1)


def shade_of(element: Element) -> str:
    """Return the colour that an element is drawn in, as #rrggbb."""
    name, value = element.attrib["style"].split(":")
    assert name == "--shade"
    return value


def _upright(line: Element) -> bool:
    return line.attrib["x1"] == line.attrib["x2"]


def _axis(ticks: list[tuple[float, float]]) -> np.ndarray:
    """Return (2,): slope and offset from pixels to values."""
    pixels, values = zip(*ticks)
    return np.polyfit(pixels, values, 1)
