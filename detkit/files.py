"""Files: read with an error in one line, written whole or not at all."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detkit.errors import UserError

if TYPE_CHECKING:
    import numpy as np


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

    For writers that want a file name (torch.save, matplotlib, cv2). The suffix is kept, since they read it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=path.suffix, dir=path.parent)
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
    finally:
        temporary.unlink(missing_ok=True)


def write_atomic(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write text (UTF-8) or bytes to `path`, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


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
    import cv2

    good, content = cv2.imencode(path.suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    if not good:
        raise UserError(f"{path}: OpenCV cannot write {path.suffix} images")
    write_file(path, content.tobytes())
