"""The server behind `Children`: it imports detkit once, and forks.

Its children do one piece of work after the other until one of them ends: so a piece of work costs no start of Python,
and a crash costs a fork.
"""

import faulthandler
import os
import pickle
import resource
import signal
import tempfile
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import cv2
import torch

# what the work needs, so that no child has to import it
import detkit.cli.dataset
import detkit.cli.detect
import detkit.cli.evaluate
import detkit.cli.proposals
import detkit.cli.train
import detkit.engine.session  # noqa: F401
from tests.campaign.children import HEADER, Outcome
from tests.campaign.commands import Broken, origin

CPU_SECONDS = 60.0  # that a piece of work may take
WAITING = 10  # as many times as that on the clock
GROWTH = 1 << 30  # bytes that a piece of work may add to the memory that is in use
ADDRESS_SPACE = 6 << 30  # bytes beyond what the server has mapped
FILE_SIZE = 1 << 30
FRESH = 3  # exit status of a child that makes room for a new one
ENDS = {signal.SIGPROF: f"more than {CPU_SECONDS:.0f} s of a CPU", signal.SIGALRM: "no end"}


def serve() -> None:
    """Fork children that read requests from stdin and write outcomes to stdout, until there are no more."""
    requests, replies = os.dup(0), os.dup(1)
    with tempfile.TemporaryFile() as crash:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(crash.fileno(), 1)
        os.dup2(crash.fileno(), 2)
        while True:
            child = os.fork()
            if child == 0:
                os._exit(_work(requests, replies, crash))
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            if status == 0:
                return
            if status != FRESH:
                crash.seek(0)
                details = crash.read()[-5000:].decode(errors="replace")
                fault = f"exit status {status}" if status > 0 else ENDS.get(-status) or signal.Signals(-status).name
                _reply(replies, Outcome(None, f"the process ended: {fault}", "", details, max(-status, 0)))


def _work(requests: int, replies: int, crash: IO[bytes]) -> int:
    """Do what is asked for, one after the other; return an exit status."""
    _limit(crash)
    while head := _read(requests, HEADER.size):
        alone, work, arguments = pickle.loads(_read(requests, HEADER.unpack(head)[0]))
        crash.seek(0)
        crash.truncate()
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        signal.setitimer(signal.ITIMER_REAL, CPU_SECONDS * WAITING)
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        outcome = _outcome(work, arguments)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - used) << 10
        if grown > GROWTH and not outcome.fault:
            outcome = Outcome(None, f"took {grown / 2**30:.1f} GiB of memory")
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        _reply(replies, outcome)
        if alone or grown > GROWTH:
            return FRESH
    return 0


def _limit(crash: IO[bytes]) -> None:
    """Bound this process, and have it say where it is when it crashes or takes too long."""
    faulthandler.enable(crash)
    for number in ENDS:
        signal.signal(number, signal.SIG_DFL)
        faulthandler.register(number, crash, chain=True)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = {resource.RLIMIT_AS: mapped + ADDRESS_SPACE, resource.RLIMIT_FSIZE: FILE_SIZE, resource.RLIMIT_CORE: 0}
    for kind, limit in limits.items():
        resource.setrlimit(kind, (limit, limit))


def _outcome(work: Callable[..., Any], arguments: tuple[Any, ...]) -> Outcome:
    try:
        return Outcome(work(*arguments))
    except Broken as broken:
        return Outcome(None, str(broken), "rule", traceback.format_exc())
    except BaseException as error:
        fault = " ".join(f"{type(error).__name__}: {error}".split())
        return Outcome(None, fault, origin(error), traceback.format_exc())


def _read(handle: int, count: int) -> bytes:
    parts = []
    while count and (part := os.read(handle, count)):
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def _reply(handle: int, outcome: Outcome) -> None:
    message = pickle.dumps(outcome)
    message = HEADER.pack(len(message)) + message
    while message:
        message = message[os.write(handle, message) :]


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    serve()
    os._exit(0)  # there is nothing to finish, which takes seconds after such imports
