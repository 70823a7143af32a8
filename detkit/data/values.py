"""Values as annotation files have them, whatever the format: each kind is read by one function, which never raises."""

import math
import os
from pathlib import Path
from typing import Any


def as_number(value: Any) -> float | None:
    """Return a number, or text that is one, if it is finite; else None."""
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def as_area(value: Any) -> float:
    """Return an object's square pixels, NaN where the file says nothing."""
    number = as_number(value)
    return math.nan if number is None else number


def as_flag(value: Any) -> bool:
    """Return whether a flag is set, as text or as JSON's value; a missing one (None) is not."""
    return value.strip() not in ("0", "") if isinstance(value, str) else bool(value)


def as_size(width: Any, height: Any) -> tuple[int, int]:
    """Return (width, height) in whole pixels, 0 for a side that is missing or none."""
    return int(max(as_number(width) or 0, 0)), int(max(as_number(height) or 0, 0))


def as_name(value: Any) -> str:
    """Return the name of a class or file, "" where it is missing (None)."""
    return "" if value is None else str(value).strip()


def as_path(value: Any) -> str:
    """Return the path of an image with / between its parts, "" where it is missing (None)."""
    return "" if value is None else str(value).replace("\\", "/")


def path_below(path: Path, root: Path) -> str:
    """Return a path relative to the root if it is below that, else absolute."""
    path, root = Path(os.path.abspath(path)), Path(os.path.abspath(root))
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()
