"""The long campaign: `python -m tests.campaign fuzz | kill | points`, see docs/campaign.md."""

import argparse
import signal
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from tests.campaign.children import Children
from tests.campaign.formats import FORMATS
from tests.campaign.fuzz import fuzz
from tests.campaign.kill import kill_at_random
from tests.campaign.points import Points
from tests.campaign.runs import KINDS, Trial

LONG = [name for name in KINDS if name != "tiny"]


def parser() -> argparse.ArgumentParser:
    """Return the command's arguments."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description="Try to break detkit.")
    actions = parser.add_subparsers(dest="action", required=True)
    fuzzing = actions.add_parser("fuzz", help="damaged files of every format")
    fuzzing.add_argument(
        "--formats", nargs="+", default=list(FORMATS), metavar="NAME[:CASES]", help=f"of {', '.join(FORMATS)}"
    )
    fuzzing.add_argument("--scale", type=float, default=1.0, help="factor on the cases of each format (default 1)")
    killing = actions.add_parser("kill", help="signals to training processes at random moments")
    killing.add_argument("--seconds", type=float, default=600.0, help="for each kind (default 600)")
    pointing = actions.add_parser("points", help="SIGKILL before the file operations of a training run")
    pointing.add_argument("--step", type=int, default=1, help="before every so many-th operation (default 1)")
    for action in (killing, pointing):
        action.add_argument("kinds", nargs="*", default=LONG, metavar="KIND", help=f"of {', '.join(KINDS)}")
        action.add_argument("--workers", type=int, default=0, help="of the loader (default 0)")
    for action in (fuzzing, killing):
        action.add_argument("--seed", default="0")
    for action in (fuzzing, killing, pointing):
        action.add_argument("--jobs", type=int, default=1, help="formats or kinds at once (default 1)")
        action.add_argument("--out", type=Path, default=Path("campaign-out"), help="a new folder for what failed")
    return parser


def main() -> int:
    """Do what was asked for; return 1 where anything failed."""
    arguments = parser().parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # so that no process is started with it ignored
    arguments.out = arguments.out.resolve()
    arguments.out.mkdir(parents=True)
    action = {"fuzz": fuzz_all, "kill": kill_all, "points": kill_points}[arguments.action]
    failures = action(arguments)
    print(f"{failures} failures, kept in {arguments.out}" if failures else "no failures")
    return 1 if failures else 0


def fuzz_all(arguments: argparse.Namespace) -> int:
    """Print a table of formats; return how many cases failed."""
    cases = {}
    for text in arguments.formats:
        name, _, number = text.partition(":")
        if name not in FORMATS:
            raise SystemExit(f"no format {name}; known: {', '.join(FORMATS)}")
        cases[name] = round((int(number) if number else FORMATS[name].cases) * arguments.scale)

    def show(name: str) -> int:
        with Children() as children:
            tally = fuzz(children, name, cases[name], arguments.seed, arguments.out)
        print(tally, flush=True)
        return tally.failures

    print("| format | cases | failures | kinds | time |")
    return _sum(show, cases, arguments.jobs)


def kill_all(arguments: argparse.Namespace) -> int:
    """Print a table of kinds of runs; return how many trials failed."""
    run = partial(kill_at_random, out=arguments.out, seconds=arguments.seconds, seed=arguments.seed)
    return _table(lambda kind: run(kind, workers=arguments.workers), arguments)


def kill_points(arguments: argparse.Namespace) -> int:
    """Print a table of kinds of runs; return how many trials failed."""

    def trials(kind: str) -> Iterable[Trial]:
        with Children() as children:
            points = Points(children, kind, arguments.out / f"points-{kind}", arguments.workers)
            for number in range(0, len(points.operations), arguments.step):
                yield points.kill(number)

    return _table(trials, arguments)


def _table(trials: Callable[[str], Iterable[Trial]], arguments: argparse.Namespace) -> int:
    def show(kind: str) -> int:
        done = []
        for trial in trials(kind):
            done.append(trial)
            if trial.differs or trial.left:
                print(f"    {trial}", flush=True)
        signals, equal, left = (sum(numbers) for numbers in zip(*((t.signals, t.equal, bool(t.left)) for t in done)))
        print(f"| {kind} | {len(done)} | {signals} | {equal} | {left} |", flush=True)
        return sum(bool(trial.differs or trial.left) for trial in done)

    for kind in arguments.kinds:
        if kind not in KINDS:
            raise SystemExit(f"no kind {kind} of run; known: {', '.join(KINDS)}")
    print("| kind | trials | signals | bit-equal | with files left behind |")
    return _sum(show, arguments.kinds, arguments.jobs)


def _sum(work: Callable[[str], int], names: Iterable[str], jobs: int) -> int:
    with ThreadPoolExecutor(jobs) as pool:
        return sum(pool.map(work, names))


if __name__ == "__main__":
    sys.exit(main())
