"""Times several runners side by side, each in its process, round after round, so that noise meets them alike."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from statistics import median

import torch

from detkit.errors import UserError
from detkit.runtime.memory import tune

Job = Callable[[], object]
WARM_UP = 2
TURN = 0.3  # seconds that a turn lasts at least: what is quicker runs again, see `race`


@dataclass(frozen=True)
class Setting:
    """What every runner runs under."""

    device: str = "cpu"
    threads: int = 2
    rounds: int = 10


@dataclass(frozen=True)
class Runner:
    """One of those that are timed.

    name: as printed. setup: builds the job, in the runner's process; a function of a module.

    tuned: whether its process has detkit's memory settings, as detkit's commands have (see runtime/memory.py).
    """

    name: str
    setup: Callable[[Setting], Job]
    tuned: bool = False


@dataclass(frozen=True)
class Benchmark:
    """What is timed. runners: detkit first; ratios are to it."""

    name: str
    runners: tuple[Runner, ...]


@dataclass(frozen=True)
class Timing:
    """Seconds of one runner."""

    name: str
    best: float
    median: float


def against_torchvision(name: str, ours: Callable[[Setting], Job], theirs: Callable[[Setting], Job]) -> Benchmark:
    """Return a line of detkit beside torchvision, as it is and with detkit's memory settings."""
    return Benchmark(
        name,
        (
            Runner("detkit", ours, True),
            Runner("torchvision", theirs),
            Runner("torchvision, detkit's memory settings", theirs, True),
        ),
    )


def race(benchmark: Benchmark, setting: Setting, progress: Callable[[int], None] | None = None) -> list[Timing]:
    """Run every runner once a round, in turn; return the minima and medians of its rounds, in seconds.

    A turn of less than TURN seconds is repeated for so long, and its fastest counts: threads of the one before still
    spin for a while. progress: called with the number of rounds done.
    """
    context = get_context("spawn")
    pipes: list[Connection] = []
    processes = []
    try:
        for runner in benchmark.runners:
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(runner, setting, theirs), daemon=True)
            process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)
            _answer(ours, runner.name)  # one after the other: building disturbs no one who is being timed
        seconds: list[list[float]] = [[] for _ in pipes]
        for number in range(setting.rounds):
            for pipe, runner, times in zip(pipes, benchmark.runners, seconds):
                pipe.send("go")
                times.append(_answer(pipe, runner.name))
            if progress is not None:
                progress(number + 1)
        return [Timing(runner.name, min(times), median(times)) for runner, times in zip(benchmark.runners, seconds)]
    finally:
        for pipe in pipes:
            pipe.close()
        for process in processes:
            process.terminate()
            process.join()


def _answer(pipe: Connection, name: str) -> float:
    try:
        answer = pipe.recv()
    except EOFError:
        raise UserError(f"{name}: its process died") from None
    if isinstance(answer, str):
        raise UserError(f"{name}: {answer}")
    return answer


def _turn(job: Job, wait: Callable[[], object]) -> float:
    """Return the seconds of the fastest of as many runs as fill a turn."""
    best, begin = float("inf"), time.perf_counter()
    while True:
        start = time.perf_counter()
        job()
        wait()
        end = time.perf_counter()
        best = min(best, end - start)
        if end - begin >= TURN:
            return best


def _serve(runner: Runner, setting: Setting, pipe: Connection) -> None:
    if runner.tuned:
        tune()
    torch.set_num_threads(setting.threads)
    torch.manual_seed(0)
    wait = torch.cuda.synchronize if setting.device.startswith("cuda") else (lambda: None)
    try:
        job = runner.setup(setting)
        for _ in range(WARM_UP):
            job()
        wait()
        pipe.send(0.0)
        while True:
            pipe.recv()
            pipe.send(_turn(job, wait))
    except (EOFError, KeyboardInterrupt):
        return
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {' '.join(str(error).split())}")
