"""What each part of a comparison took, in DIR/times.json, over all its attempts."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from detkit.errors import UserError
from detkit.files import write_atomic

NAME = "times.json"


def read_times(out: Path) -> dict[str, float]:
    """Return seconds by part: `train NAME`, `proposals PATH`; empty where nothing was done yet."""
    path = out / NAME
    try:
        return {str(name): float(seconds) for name, seconds in json.loads(path.read_text(encoding="utf-8")).items()}
    except FileNotFoundError:
        return {}
    except (ValueError, AttributeError):
        raise UserError(f"{path}: damaged; remove it, and training times are taken from the runs' logs") from None


@contextmanager
def timed(out: Path, part: str) -> Iterator[None]:
    """Add the seconds of what is done within to those of `part`, also where it is interrupted."""
    start = time.monotonic()
    try:
        yield
    finally:
        seconds = read_times(out)
        _write(out, {**seconds, part: round(seconds.get(part, 0.0) + time.monotonic() - start, 2)})


def forget(out: Path, part: str) -> None:
    """Begin a part anew."""
    seconds = read_times(out)
    if seconds.pop(part, None) is not None:
        _write(out, seconds)


def _write(out: Path, seconds: dict[str, float]) -> None:
    write_atomic(out / NAME, json.dumps(seconds, indent=1) + "\n")
