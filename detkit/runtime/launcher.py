"""Under torchrun: the end of the launcher is the end of its processes, also where it was killed."""

import os
import signal
import threading
import time

POLL = 1.0  # seconds
GRACE = 60.0  # seconds to save in, and leave


def follow() -> None:
    """End this process, as SIGTERM does, where torchrun has started it and ends before it."""
    if "RANK" in os.environ:
        threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()


def _watch(launcher: int) -> None:
    while os.getppid() == launcher:
        time.sleep(POLL)
    os.kill(os.getpid(), signal.SIGTERM)  # training saves its state
    time.sleep(GRACE)
    os.kill(os.getpid(), signal.SIGKILL)  # it waits for a process that is gone
