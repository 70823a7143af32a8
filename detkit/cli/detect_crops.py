"""Each detection cut out as an image."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from detkit.cli.detect_report import Seen

if TYPE_CHECKING:
    import numpy as np


def crops(folder: Path, seen: Seen, classes: Sequence[str]) -> "list[tuple[Path, np.ndarray]]":
    """Return a file name, FOLDER/CLASS/IMAGE-NUMBER, and the pixels, a copy, of each detection that has any.

    All pixels that the box touches belong to it; numbers count the image's detections, from 1.
    """
    stem, suffix = Path(seen.drawn).stem, Path(seen.drawn).suffix
    if seen.frame is not None:
        stem, suffix = f"{stem}-{seen.frame:06d}", ".jpg"
    width, height = seen.size
    cuts = []
    for number, (label, _, (left, top, right, bottom)) in enumerate(seen.rows(), 1):
        columns = slice(max(0, int(left)), min(width, math.ceil(right)))
        lines = slice(max(0, int(top)), min(height, math.ceil(bottom)))
        pixels = seen.image[lines, columns].copy()  # lest a crop that waits to be written keep the image in memory
        if pixels.size:
            cuts.append((folder / folder_name(classes[label]) / f"{stem}-{number}{suffix}", pixels))
    return cuts


def folder_name(name: str) -> str:
    """Return a class's name as a folder can be called."""
    name = "".join("_" if character in '/\\:*?"<>|' or ord(character) < 32 else character for character in name)
    return name.strip(" .") or "_"
