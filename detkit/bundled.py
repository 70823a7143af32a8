"""Trained detectors that are part of detkit, by name: small ones, in half precision (`detkit export --half`)."""

from pathlib import Path

FOLDER = Path(__file__).parent / "checkpoints" / "weights"
BUNDLED = {"voc": "ssd"}
"""Name, which is that of its file, to model. docs/voc.md says how each was trained, and what it cannot do."""


def find_bundled(name: str | Path) -> Path | None:
    """Return the file of a detector of detkit's own; None where there is none, or a file of that name lies here."""
    if str(name) not in BUNDLED or Path(name).is_file():
        return None
    return FOLDER / f"{name}.pt"
