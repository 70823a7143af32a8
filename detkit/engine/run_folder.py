"""The folder of a new run."""

from itertools import count
from pathlib import Path

from detkit.errors import UserError


def check_folder(out: str | None) -> None:
    """Raise UserError where `out` is not a new or empty folder."""
    if out is not None and Path(out).exists() and (not Path(out).is_dir() or any(Path(out).iterdir())):
        resume = f"; --resume {out} goes on with the run in it" if (Path(out) / "last.pt").exists() else ""
        raise UserError(f"--out {out} exists and is not an empty folder{resume}")


def create_folder(out: str | None, name: str) -> Path:
    """Make the folder of a new run: `out`, or the first of runs/NAME-1, -2, ... that does not exist."""
    numbered = (Path("runs") / f"{name}-{number}" for number in count(1))
    folder = next(folder for folder in numbered if not folder.exists()) if out is None else Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {error.filename}: {error.strerror}") from None
    return folder
