"""The file operations of a process: counted, and a stop before one of them.

An operation is an opening for writing, a rename, a removal, a new folder, a change of rights, or an fsync, below a
folder, by the process that began to count. They are seen by an audit hook, which stays as long as the process.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.link", "os.symlink", "os.truncate")
WRITING = os.O_WRONLY | os.O_RDWR


def watch(folder: str | Path, see: Callable[[str, str], None]) -> None:
    """Call `see(event, path relative to folder)` before each file operation below a folder; for good."""
    home, process, fsync = os.path.abspath(folder), os.getpid(), os.fsync

    def tell(event: str, path: str) -> None:
        path = os.path.abspath(path)
        if os.getpid() == process and os.path.commonpath((home, path)) == home:
            see(event, os.path.relpath(path, home))

    def hook(event: str, arguments: tuple) -> None:
        if event not in EVENTS or not isinstance(arguments[0], str | bytes | os.PathLike):
            return
        if event == "open" and not (arguments[2] or 0) & WRITING:
            return
        # of a rename, where it leads to
        tell(event, os.fsdecode(arguments[1] if event == "os.rename" else arguments[0]))

    def counted_fsync(handle: int) -> None:
        tell("os.fsync", os.readlink(f"/proc/self/fd/{handle if isinstance(handle, int) else handle.fileno()}"))
        fsync(handle)

    os.fsync = counted_fsync
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
