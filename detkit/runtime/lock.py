"""One process at a time writes a folder or a file."""

import errno
import fcntl
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from detkit.errors import UserError

NAME = ".lock"  # in a folder that is locked


@contextmanager
def locked(path: str | os.PathLike[str], what: str) -> Iterator[None]:
    """Hold the lock file `path`, in a folder that exists; UserError where another process has it, which is named.

    what: is locked, for that line. The system lets go of the lock when the process ends, however it ends; child
    processes do not hold it.
    """
    path = Path(path)
    handle = _take(path, what)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is held, so that it is nobody else's
        os.close(handle)


def _take(path: Path, what: str) -> int:
    """Return the descriptor of the lock file, locked."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                holder = os.read(handle, 200).decode(errors="replace").strip() or "another process"
                os.close(handle)
                raise UserError(f"{what} is being written by {holder}; wait for it, or stop it") from None
            print(f"warning: {path}: no locks here ({error.strerror}); let no second process write", file=sys.stderr)
            return handle
        try:
            if os.path.samestat(os.fstat(handle), os.stat(path)):
                os.ftruncate(handle, 0)
                os.write(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
                return handle
        except FileNotFoundError:
            pass
        os.close(handle)  # the one before has let go, and removed the file, since it was opened
