"""The data sets that detkit draws itself, by their names in `data.format`."""

from detkit.data.hard_shapes import HARD_SHAPES
from detkit.data.shapes import SHAPES

DRAWINGS = {drawing.name: drawing for drawing in (SHAPES, HARD_SHAPES)}


def written_format(name: str) -> str:
    """Return the format of the files behind a `data.format`: those that detkit draws are VOC's."""
    return "voc" if name in DRAWINGS else name
