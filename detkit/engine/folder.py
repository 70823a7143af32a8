"""The folder of a run: made, locked, and found again."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from detkit.errors import UserError
from detkit.files import TEMPORARY, clear_temporary
from detkit.runtime import lock

SPLITS = "splits.json"  # of `train --data`, before all else
BEGUN = {"env.txt", "config.yaml"}  # what a run holds before its first last.pt, written in this order


def begun(folder: Path) -> bool:
    """Whether nothing is in a folder but what a run leaves that is killed before its first last.pt."""
    names = {path.name for path in folder.iterdir() if not TEMPORARY.fullmatch(path.name)} - {lock.NAME, SPLITS}
    return names <= BEGUN and (not names or "env.txt" in names)  # a config.yaml alone is the user's own


def check_folder(out: str | None) -> None:
    """Raise UserError where `out` is not new, empty, or of a run that was killed as it began."""
    if out is not None and Path(out).exists() and not (Path(out).is_dir() and begun(Path(out))):
        resume = f"; --resume {out} goes on with the run in it" if (Path(out) / "last.pt").exists() else ""
        raise UserError(f"--out {out} exists and is not an empty folder{resume}")


def create_folder(out: str | None, name: str) -> Path:
    """Make the folder of a new run: `out`, or the first of runs/NAME-1, -2, ... that does not exist."""
    for number in count(1):
        folder = Path("runs") / f"{name}-{number}" if out is None else Path(out)
        try:
            folder.mkdir(parents=True, exist_ok=out is not None)
            return folder
        except FileExistsError:
            if out is not None:
                raise UserError(f"--out {out} is a file") from None
        except OSError as error:
            raise UserError(f"cannot make the folder {error.filename}: {error.strerror}") from None
    raise AssertionError


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep other processes from writing a run's folder, and clear what killed ones left of files."""
    with lock.locked(folder / lock.NAME, str(folder)):
        clear_temporary(folder)
        yield
