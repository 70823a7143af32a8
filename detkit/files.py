"""Files: read with an error in one line, written whole or not at all."""

import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detkit.errors import UserError
from detkit.names import fit_name

if TYPE_CHECKING:
    import numpy as np

TEMPORARY = re.compile(r"\..*\.[a-z0-9_]{8}\.tmp(\.[^.]*)?", re.DOTALL)  # of `atomic_path`; a killed process leaves it


def read_text(path: str | os.PathLike[str], hint: str = "") -> str:
    """Return a UTF-8 file's text; UserError, naming it, where that fails, with `hint` where there is no such file."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"no file {path}{hint}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` on success, remove it on any error.

    For writers that want a file name (torch.save, matplotlib, cv2). The suffix is kept, since they read it. The name
    matches TEMPORARY, and is short however long that of `path` is.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    suffix = path.suffix if len(path.suffix) < 16 else ""
    handle, name = tempfile.mkstemp(prefix=f".{fit_name(path.stem, 64)}.", suffix=f".tmp{suffix}", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes files private; give them the rights that open() would have given
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.filename in (None, name):  # a full disk is of no file, and the temporary one is nobody's
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def clear_temporary(folder: Path) -> None:
    """Remove what killed processes left of the files that they were writing in a folder and below."""
    for path in folder.rglob(".*.tmp*"):
        if TEMPORARY.fullmatch(path.name):
            path.unlink(missing_ok=True)


def write_atomic(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write text (UTF-8) or bytes to `path`, whole or not at all.

    What is no text, a name's bytes that are no UTF-8, becomes an escape such as \\udce9, which JSON and YAML read back.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.encode(errors="backslashreplace") if isinstance(content, str) else content)


def save_atomic(path: str | os.PathLike[str], save: Callable[[Path], Any]) -> None:
    """Let `save` write to a temporary path which then becomes `path`."""
    with atomic_path(path) as temporary:
        save(temporary)


def write_file(path: str | os.PathLike[str], content: str | bytes) -> None:
    """`write_atomic` whose errors (no space, no rights) name the file in one line."""
    try:
        write_atomic(path, content)
    except OSError as error:
        kept = "; the earlier file is intact" if Path(path).exists() else ""
        raise UserError(f"{path}: {error.strerror or error}, nothing written{kept}") from None


def write_image(path: Path, image: "np.ndarray") -> None:
    """Write an (H, W, 3) RGB uint8 image in the format of the path's suffix; errors as in `write_file`."""
    try:
        content = encode_image(path.suffix, image)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    write_file(path, content)


def encode_image(suffix: str, image: "np.ndarray") -> bytes:
    """Return the file of an (H, W, 3) RGB uint8 image, in the format of a suffix; UserError where there is no such."""
    import cv2

    try:
        good, content = cv2.imencode(suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    except cv2.error:  # of a suffix that it does not know
        good, content = False, None
    if not good or content is None:
        raise UserError(f"OpenCV cannot write images as {suffix!r}; .jpg and .png it can")
    return content.tobytes()
