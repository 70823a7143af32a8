"""detkit benchmark: detkit beside its peers, in one run."""

import argparse

SUBJECTS = ("ops", "data", "detect", "train", "evaluate", "proposals")

LINE = "{:2}{:38}{:>12}{:>12}{:>15}"

EPILOG = """Each contender has a process of its own; every round runs each once, in turn. The figure is the fastest
round, the ratio that of the fastest rounds. examples:
  detkit benchmark
  detkit benchmark ops train --rounds 20 --json
"""


def parser() -> argparse.ArgumentParser:
    """Return the command's arguments."""
    parser = argparse.ArgumentParser(
        prog="detkit benchmark",
        description="Time detkit beside torchvision and others.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("subjects", nargs="*", metavar="SUBJECT", help=f"any of {', '.join(SUBJECTS)}; default all")
    parser.add_argument("--rounds", type=int, default=10, help="times that each contender runs (default 10)")
    parser.add_argument("--threads", type=int, help="CPU threads of a contender; default all cores")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default auto)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Race every contender of the subjects asked for."""
    from detkit.errors import UserError, did_you_mean

    for name in arguments.subjects:
        if name not in SUBJECTS:
            raise UserError(f"unknown subject {name!r}{did_you_mean(name, SUBJECTS)}")
    if arguments.rounds < 1 or (arguments.threads is not None and arguments.threads < 1):
        raise UserError("--rounds and --threads are at least 1")

    import json
    import os

    from rich.console import Console

    from detkit.benchmarks.race import Setting, race
    from detkit.engine.device import choose_device

    device = choose_device(arguments.device)
    setting = Setting(str(device), arguments.threads or os.cpu_count() or 1, arguments.rounds)
    console = Console(stderr=arguments.json, highlight=False)
    console.print(_machine(setting))
    console.print(LINE.format("", "contender", "best ms", "median ms", "times detkit"))
    rows = []
    for name in arguments.subjects or SUBJECTS:
        for subject in _subjects(name):
            with console.status(subject.name):
                timings = race(subject, setting)
            console.print(subject.name)
            for timing in timings:
                ratio = timing.best / timings[0].best
                shown = "" if timing is timings[0] else f"{ratio:.2f}"
                # at once: a run that is interrupted leaves what it had
                console.print(
                    LINE.format("", timing.name, f"{timing.best * 1e3:.2f}", f"{timing.middle * 1e3:.2f}", shown)
                )
                rows.append({"subject": subject.name, "contender": timing.name, "best": timing.best})
                rows[-1] |= {"median": timing.middle, "ratio": ratio}
    if arguments.json:
        print(json.dumps({"machine": _machine(setting), "timings": rows}, indent=1))


def _subjects(name: str):
    from importlib import import_module

    if name in ("detect", "train"):
        modules = (import_module(f"detkit.benchmarks.{module}") for module in ("ssd", "faster_rcnn"))
        return [subject for module in modules for subject in getattr(module, name.upper())]
    return import_module(f"detkit.benchmarks.{name}").SUBJECTS


def _machine(setting) -> str:
    import torch
    import torchvision

    on = torch.cuda.get_device_name(setting.device) if setting.device.startswith("cuda") else "CPU"
    return (
        f"{on}, {setting.threads} threads, torch {torch.__version__}, torchvision {torchvision.__version__}, "
        f"best of {setting.rounds} interleaved rounds"
    )
