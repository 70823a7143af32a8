"""detkit benchmark: detkit beside its peers, in one run."""

import argparse
import json
import os
from dataclasses import asdict
from functools import partial
from importlib import import_module
from pathlib import Path
from statistics import median
from time import monotonic
from typing import TYPE_CHECKING, Any

from detkit.cli.arguments import whole
from detkit.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from rich.console import Console

BENCHMARKS = ("ops", "data", "detect", "path", "backends", "regions", "train", "steps", "svm", "evaluate", "proposals")
# what each cannot do without
NEEDS = {
    "path": ("images", "path is of a folder of images: give --images DIR"),
    "backends": ("images", "backends detect on images: give --images DIR"),
    "steps": ("config", "steps are those of a config: give --config CONFIG"),
}

GPU = "gpu"  # by its own name alone

LINE = "{:2}{:36}{:>12}{:>12}{:>17}"
GPU_LINE = "{:2}{:24}{:>12}{:>12}{:>12}{:>12}"
ROW = "{:2}{:30}{:>7}{:>9}{:>9}{:>9}{:>9}"

DESCRIPTION = "Time detkit beside torchvision and others."
EPILOG = """Each runner has a process of its own; every round runs each once, in turn, or several times where that takes
less than .3 s. The figure is the fastest round, the ratio that of the fastest rounds. examples:
  detkit benchmark
  detkit benchmark ops train --rounds 20 --json
  detkit benchmark path --checkpoint best.pt --images data/VOCdevkit/VOC2007/JPEGImages --rounds 3
  detkit benchmark backends --checkpoint best.pt --images images
  detkit benchmark steps --config voc07/ssd_mobilenet_v2 data.root=data/VOCdevkit/VOC2007
  detkit benchmark gpu --out gpu.json
  detkit benchmark proposals --contrib contrib/bin/python --root data/VOCdevkit/VOC2007 --split test

gpu is one process, for CUDA: all of these, NVIDIA's SSD300 beside its published figures, CUDA graphs, and how often the
host waits for the GPU; it ends after --budget seconds with what it has. --device cpu --tiny tries the command.

opencv-contrib replaces cv2, so it has an environment of its own:
  python3 -m venv contrib && contrib/bin/pip install opencv-contrib-python-headless
With --root its selective search and ours take turns on each image; best so many boxes of each, as by `detkit proposals
recall`; "equal": of each image, both have as many boxes as the one with fewer. Seconds are the processors', one thread.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"any of {', '.join(BENCHMARKS)}; or gpu; default all that need no path",
    )
    parser.add_argument("--rounds", type=whole(), default=10, help="times that each runs (default 10)")
    parser.add_argument("--threads", type=whole(), help="CPU threads of each; default all cores")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default auto)")
    parser.add_argument("--images", metavar="DIR", help="of path and backends: the folder to detect on")
    parser.add_argument(
        "--checkpoint",
        metavar="CHECKPOINT",
        help="of path and backends: what detects, an .onnx file of backends, too (default voc)",
    )
    parser.add_argument("--config", metavar="CONFIG", help="of steps: as of `detkit train`, key=value among the names")
    parser.add_argument(
        "--contrib", metavar="PYTHON", help="of proposals: beside opencv-contrib, which this Python has"
    )
    parser.add_argument("--mode", help="of proposals: single, fast or quality (default fast)")
    parser.add_argument("--root", metavar="DIR", help="with --contrib: compare boxes on this data set, too")
    parser.add_argument("--split", action="append", metavar="SPLIT", help="of --root (default test), repeatable")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--out", metavar="FILE.json", type=Path, help="of gpu: write its figures, row after row")
    parser.add_argument("--budget", metavar="SECONDS", type=whole(1), help="of gpu: stop after these (default 220)")
    parser.add_argument("--tiny", action="store_true", help="of gpu: few and small inputs, to try the command")


def run(arguments: argparse.Namespace) -> None:
    """Time every runner of the benchmarks asked for."""
    gpu = {"--out": arguments.out, "--budget": arguments.budget, "--tiny": arguments.tiny}
    if arguments.names == [GPU]:
        _gpu(arguments)
        return
    if GPU in arguments.names or any(gpu.values()):
        wrong = ", ".join(name for name, value in gpu.items() if value) or f"{GPU} beside others"
        raise UserError(f"{wrong}: goes with `benchmark gpu` alone")
    arguments.overrides = [name for name in arguments.names if "=" in name]
    arguments.names = [name for name in arguments.names if "=" not in name]
    if arguments.overrides and arguments.config is None:
        raise UserError(f"{arguments.overrides[0]} changes a config: give --config CONFIG")
    for name in arguments.names:
        if name not in BENCHMARKS:
            raise UserError(f"unknown benchmark {name!r}{did_you_mean(name, BENCHMARKS)}")
    if arguments.rounds < 1 or (arguments.threads is not None and arguments.threads < 1):
        raise UserError("--rounds and --threads are at least 1")
    _check_proposals(arguments)
    for name, (option, text) in NEEDS.items():
        if name in arguments.names and getattr(arguments, option) is None:
            raise UserError(text)

    from rich.console import Console

    from detkit.runtime.device import choose_device
    from detkit.runtime.race import Setting, race

    device = choose_device(arguments.device)
    setting = Setting(str(device), arguments.threads or os.cpu_count() or 1, arguments.rounds)
    console = Console(stderr=arguments.json, highlight=False)
    console.print(_machine(setting))
    console.print(LINE.format("", "runner", "best ms", "median ms", "times the first"))
    rows = []
    default = [name for name in BENCHMARKS if name not in NEEDS or getattr(arguments, NEEDS[name][0]) is not None]
    for name in arguments.names or default:
        for benchmark in _benchmarks(name, arguments):
            with console.status(benchmark.name):
                timings = race(benchmark, setting)
            console.print(benchmark.name)
            for timing in timings:
                ratio = timing.best / timings[0].best
                best, middle = (f"{seconds * 1e3:.2f}" for seconds in (timing.best, timing.median))
                shown = "" if timing is timings[0] else f"{ratio:.2f}"
                # at once: a run that is interrupted leaves what it had
                console.print(LINE.format("", timing.name, best, middle, shown))
                figures = {"best": timing.best, "median": timing.median, "ratio": ratio}
                rows.append({"benchmark": benchmark.name, "runner": timing.name, **figures})
    result: dict[str, Any] = {"machine": _machine(setting), "timings": rows}
    if arguments.root is not None:
        result["proposals"] = _compare(arguments, console)
    if arguments.json:
        print(json.dumps(result, indent=1))


def _gpu(arguments: argparse.Namespace) -> None:
    """Run and print what benchmarks/gpu.py has; write it after each row: an interrupted run leaves something."""
    from rich.console import Console

    from detkit.benchmarks.gpu import TINY, Sizes, measure
    from detkit.files import write_atomic
    from detkit.runtime.device import choose_device
    from detkit.runtime.race import Setting

    device, sizes = str(choose_device(arguments.device)), TINY if arguments.tiny else Sizes(arguments.rounds)
    budget = arguments.budget or 220
    console = Console(stderr=arguments.json, highlight=False)
    machine, start, rows = (
        _machine(Setting(device, arguments.threads or os.cpu_count() or 1, sizes.rounds)),
        monotonic(),
        [],
    )
    console.print(f"{machine}; {budget} s")
    console.print(GPU_LINE.format("", "runner", "best ms", "images/s", "published", "host syncs"))

    def say(row: dict[str, Any]) -> None:
        if not rows or rows[-1]["name"] != row["name"]:
            console.print(f"{row['name']}    ({monotonic() - start:.0f} s)")
        rows.append(row)
        if "error" in row:
            console.print(f"  {row['runner']}: {row['error']}", markup=False)
        else:
            rates = (
                f"{row[key]:.0f}" if key in row else "" for key in ("images_per_second", "published_images_per_second")
            )
            console.print(
                GPU_LINE.format("", row["runner"], f"{row['seconds'] * 1e3:.2f}", *rates, row.get("syncs", ""))
            )
        if arguments.out is not None:
            write_atomic(arguments.out, json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")

    measure(device, sizes, budget, say)
    console.print(f"{monotonic() - start:.0f} of {budget} s")
    if arguments.json:
        print(json.dumps({"machine": machine, "rows": rows}, indent=1))


def _check_proposals(arguments: argparse.Namespace) -> None:
    """Check, and fill in, the options of `proposals` alone."""
    asked = "proposals" in (arguments.names or BENCHMARKS)
    for name in ("contrib", "mode", "root", "split"):
        if getattr(arguments, name) is not None and not asked:
            raise UserError(f"--{name} goes with the benchmark proposals")
    if arguments.root is not None and arguments.contrib is None:
        raise UserError(f"--root {arguments.root} is to compare with opencv-contrib: give --contrib PYTHON, too")
    if arguments.split is not None and arguments.root is None:
        raise UserError(f"--split {arguments.split[0]} goes with --root DIR")
    arguments.mode = arguments.mode or "fast"
    if asked:
        from detkit.proposals.selective_search import MODES

        if arguments.mode not in MODES:
            raise UserError(f"unknown mode of selective search {arguments.mode!r}{did_you_mean(arguments.mode, MODES)}")


def _compare(arguments: argparse.Namespace, console: "Console") -> dict[str, Any]:
    """Print, and return, what selective search and OpenCV's find on the images of --root."""
    from detkit.benchmarks.search_recall import IOUS, compare
    from detkit.data.formats import open_root
    from detkit.runtime.progress import Progress

    dataset = open_root(arguments.root, arguments.split or ["test"])
    with Progress() as bars:
        shown = partial(bars.update, "images")
        found = compare(dataset, arguments.mode, arguments.contrib, shown)
    console.print(f"selective search, {arguments.mode}, on {dataset.name}: {len(dataset)} images")
    for name, seconds in found.seconds.items():
        console.print(f"  {name:38}{median(seconds):>10.3f} s an image (median)")
    console.print(ROW.format("", "method", "best", "boxes", *(f"R@{iou:g}" for iou in IOUS), "MABO"))
    for row in found.rows:
        figures = (f"{value:.4f}" for value in (*row.recall, row.mabo))
        console.print(ROW.format("", row.method, row.best, f"{row.boxes:.1f}", *figures))
    return asdict(found)


def _benchmarks(name: str, arguments: argparse.Namespace):
    if name == "proposals":
        from detkit.benchmarks.proposals import benchmarks

        return benchmarks(arguments.mode, arguments.contrib)
    if name == "path":
        from detkit.cli.path_benchmark import path_benchmarks

        return path_benchmarks(arguments.checkpoint or "voc", arguments.images)
    if name == "backends":
        from detkit.benchmarks.backends import backend_benchmarks

        return backend_benchmarks(arguments.checkpoint or "voc", arguments.images)
    if name == "steps":
        from detkit.benchmarks.steps import step_benchmarks

        return step_benchmarks(arguments.config, arguments.overrides)
    if name in ("detect", "train"):
        return getattr(import_module("detkit.benchmarks.detectors"), name.upper())
    return import_module(f"detkit.benchmarks.{name}").BENCHMARKS


def _machine(setting) -> str:
    import torch
    import torchvision

    on = torch.cuda.get_device_name(setting.device) if setting.device.startswith("cuda") else "CPU"
    return (
        f"{on}, {setting.threads} threads, torch {torch.__version__}, torchvision {torchvision.__version__}, "
        f"best of {setting.rounds} interleaved rounds"
    )
