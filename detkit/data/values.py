"""Values as annotation files have them, whatever the format: each kind is read by one function, which never raises."""

import math
import os
import re
from typing import Any

NO, YES = ("", "0", "0.0", "no", "none", "false", "unspecified"), ("1", "1.0", "yes", "true")
MAX_SIDE = 1 << 30  # of an image, in pixels


def as_number(value: Any) -> float | None:
    """Return a number, or text that is one, if it is finite; else None."""
    if isinstance(value, bool) or (isinstance(value, str) and "_" in value):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def as_whole(value: Any) -> int | None:
    """Return a whole number of any size, exactly, or text that is one, if it is there; else None."""
    if type(value) is int or (isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]{1,4000}", value.strip())):
        return int(value)
    number = as_number(value)
    return int(number) if number is not None and number == int(number) else None


def as_area(value: Any) -> float | None:
    """Return an object's square pixels, NaN where the file says none (None); None for what is no number from 0 on."""
    number = math.nan if value is None else as_number(value)
    return None if number is not None and number < 0 else number


def as_flag(value: Any) -> bool | None:
    """Return whether a flag is set, in words (NO and YES, in any case), or as JSON's value; a missing one (None) is
    not. None where it is another word."""
    if value is None:
        return False
    word = str(value).strip().lower() if isinstance(value, (str, int, float)) else "?"
    return word in YES if word in YES or word in NO else None


def as_size(width: Any, height: Any) -> tuple[int, int]:
    """Return (width, height) in whole pixels, exactly, 0 for a side that is missing or none."""
    sides = (as_whole(side) or int(as_number(side) or 0) for side in (width, height))
    width, height = (max(side, 0) for side in sides)
    return width, height


def as_name(value: Any) -> str:
    """Return the name of a class, a text or a number, without blanks around it; "" where there is none."""
    return str(value).strip() if isinstance(value, (str, int, float)) and not isinstance(value, bool) else ""


def as_path(value: Any) -> str:
    """Return the path of an image with / between its parts, "" where it is missing (None)."""
    return "" if value is None else str(value).replace("\\", "/")


def lines_of(text: str) -> list[str]:
    """Return the lines of a list of names, which may have blanks and any other characters."""
    return [line for line in (line.removesuffix("\r") for line in text.split("\n")) if line.strip()]


def path_below(path: str | os.PathLike[str], root: str | os.PathLike[str]) -> str:
    """Return a path relative to the root if it is below that, else absolute."""
    path, root = os.path.abspath(path), os.path.abspath(root)
    below = path.removeprefix(root.rstrip("/") + "/")
    return below if below != path else "." if path == root else path
