"""The file operations of a process: seen one by one, and a stop before one of them.

An operation is an opening for writing, a rename, a removal, a new folder, a change of rights, or an fsync, below a
folder, by the process that began to look. An audit hook sees them, which stays as long as the process.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.link", "os.symlink", "os.truncate")
WRITING, MAKING = os.O_WRONLY | os.O_RDWR, os.O_TRUNC | os.O_CREAT


def watch(folder: str | Path, see: Callable[[str, str], None]) -> None:
    """Call `see(event, path relative to folder)` before each file operation below a folder; for good.

    An opening that empties or makes a file is seen once more, as `opened`, when that is done and nothing is written.
    """
    home, process, fsync = os.path.abspath(folder), os.getpid(), os.fsync
    quiet = False

    def tell(event: str, path: str) -> bool:
        path = os.path.abspath(path)
        below = os.getpid() == process and os.path.commonpath((home, path)) == home
        if below:
            see(event, os.path.relpath(path, home))
        return below

    def hook(event: str, arguments: tuple) -> None:
        nonlocal quiet
        if quiet or event not in EVENTS or not isinstance(arguments[0], str | bytes | os.PathLike):
            return
        # of a rename, where it leads to
        path = os.fsdecode(arguments[1] if event == "os.rename" else arguments[0])
        flags = (arguments[2] or 0) if event == "open" else 0
        if event == "open" and not flags & WRITING:
            return
        if tell(event, path) and flags & MAKING and not flags & os.O_EXCL:
            quiet = True
            with suppress(OSError):
                os.close(os.open(path, flags, 0o666))
            quiet = False
            tell("opened", path)

    def seen_fsync(handle: int) -> None:
        tell("os.fsync", os.readlink(f"/proc/self/fd/{handle if isinstance(handle, int) else handle.fileno()}"))
        fsync(handle)

    os.fsync = seen_fsync
    sys.addaudithook(hook)


@contextmanager
def stopped(event: str, name: str, number: int) -> Iterator[None]:
    """Interrupt what is done inside, as by Ctrl-C, before the operation that is the `number`-th on a file `name`."""
    seen = 0

    def see(seen_event: str, path: str) -> None:
        nonlocal seen
        if seen_event == event and os.path.basename(path) == name:
            seen += 1
            if seen == number:
                raise KeyboardInterrupt

    watch(Path.cwd(), see)
    try:
        yield
    finally:
        seen = number  # from here on nothing is stopped
