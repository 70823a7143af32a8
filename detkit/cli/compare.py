"""detkit compare: several detectors side by side on the same data."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from detkit.cli.arguments import add_backend, whole
from detkit.cli.listing import print_table
from detkit.errors import UserError, late
from detkit.names import shown
from detkit.runtime.screen import complain

if TYPE_CHECKING:
    from detkit.comparison.job import Comparison

FAILED = 1  # exit status where a detector failed, and the others were compared

DESCRIPTION = (
    "Train what is not trained yet, and put all side by side on the same data: mAP, speed, memory, "
    "size, training time, kinds of errors."
)
EPILOG = """examples:
  detkit compare configs/shapes
  detkit compare configs/shapes/ssd.yaml configs/shapes/yolov1.yaml train.iterations=500 --out runs/quick
  detkit compare runs/ssd-1 runs/faster_rcnn-1 data.root=data/mine --out runs/both
  detkit compare configs/custom data.root=data/mine
  detkit compare runs/ssd-1/best.pt ssd.onnx ssd8.onnx --split val

A config is trained into DIR/NAME, with what it prints in DIR/NAME.log, by `detkit train` in a process of its own, in
the order of the papers; proposals that it names and that do not exist are made first. A run is taken as it is: its
best.pt, the best on val. The same command again goes on where it was stopped, and leaves alone what is done. DIR then
holds report.html, compare.csv, compare.json and speed.png.

All are evaluated here, on the one test split by the one metric. Speed is measured of all in turn, each in a process of
its own, on the same 16 images, from pixels to detections in the image: the fastest round counts. Detectors of stored
regions get them from their stores; the time that making them takes has a column of its own.

With .onnx files, behind their checkpoint, it is what torch, ONNX Runtime and OpenVINO find with each: mAP, and the
largest differences from the checkpoint's detections on torch; --out DIR then writes outputs.json alone.

exit status: 0; 1 where a detector failed and the others are compared, or a plot or the report is not written; 2 after
an error; 130 after Ctrl-C.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what",
        nargs="+",
        metavar="CONFIG|RUN|FOLDER|FILE|key=value",
        help="YAML configs, folders of runs, folders that hold either; or a checkpoint and .onnx files of it; "
        "key=value changes all configs",
    )
    parser.add_argument("--out", metavar="DIR", type=Path, help="the comparison's folder (default runs/compare-NAME)")
    parser.add_argument(
        "--rounds", type=whole(), default=10, help="times that each detector runs for its speed (default %(default)s)"
    )
    parser.add_argument("--split", help="with .onnx files: what to detect on, train, val or test (default test)")
    add_backend(parser)


def run(arguments: argparse.Namespace) -> int:
    """Train, evaluate, measure, write; return 1 where a detector failed."""
    names = [name for name in arguments.what if "=" not in name or Path(name).exists()]
    overrides = [name for name in arguments.what if name not in names] + ["detect.compile=true"] * arguments.compile
    if not names:
        raise UserError("what to compare? an example: detkit compare configs/shapes")
    if arguments.rounds < 1:
        raise UserError(f"--rounds {arguments.rounds}: at least one")
    out: Path = arguments.out or Path("runs") / f"compare-{Path(names[0]).resolve().stem}"
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; name a folder")

    if arguments.backend is not None or any(name.endswith(".onnx") for name in names):
        _outputs(names, overrides, arguments)
        return 0
    if arguments.split is not None:
        raise UserError(f"--split {arguments.split} goes with .onnx files; data.test=[SPLIT] changes configs and runs")

    from detkit.comparison.entries import find_entries, open_same
    from detkit.comparison.job import Comparison
    from detkit.comparison.training import Interrupted
    from detkit.engine.session import check_proposals
    from detkit.runtime.lock import NAME, locked

    entries = find_entries(names, overrides, out)
    for entry in entries:
        check_proposals(entry.config, [])
    dataset = open_same(entries)
    out.mkdir(parents=True, exist_ok=True)
    job = Comparison(entries, overrides, dataset, out, arguments.rounds)
    try:
        with locked(out / NAME, str(out)):
            return _work(job)
    except (Interrupted, KeyboardInterrupt) as stop:
        print("interrupted; the same command goes on where it was stopped", file=sys.stderr)
        return 128 + (stop.number if isinstance(stop, Interrupted) else 2)


def _outputs(names: list[str], overrides: list[str], arguments: argparse.Namespace) -> None:
    """Compare backends, see comparison/outputs.py."""
    from detkit.comparison.outputs import IOU, SCORE, compare_outputs
    from detkit.files import write_atomic
    from detkit.runtime.progress import Progress
    from detkit.runtime.screen import say

    split = arguments.split or "test"
    names = [str(Path(name, "best.pt")) if Path(name).is_dir() else name for name in names]  # of a run
    with Progress(transient=True) as bars:
        found, dataset = compare_outputs(
            names, overrides, split, arguments.backend, lambda done, total: bars.update("backends", done, total)
        )
    if arguments.out is not None:
        content = {"dataset": dataset.name, "images": len(dataset), "outputs": [one.to_dict() for one in found]}
        write_atomic(arguments.out / "outputs.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    rows = []
    for one in found:
        figures = (f"{one.mAP:.4f}", f"{one.images_per_second:.1f}", f"{one.boxes:.2g}", f"{one.scores:.2g}")
        rows.append((one.file, one.backend, *figures, f"{one.missing} of {one.count}"))
    print_table(("file", "backend", "mAP", "images/s", "boxes, pixels", "scores", "not found"), rows, texts=2)
    say(
        f"{dataset.name}, {len(dataset)} images; largest differences from the first line's detections of scores >= "
        f"{SCORE}, paired by class and IoU >= {IOU}"
    )


def _work(job: "Comparison") -> int:
    from rich.console import Console

    from detkit.runtime.progress import Progress

    console = Console(highlight=False, soft_wrap=True)

    def say(text: str) -> None:
        console.print(shown(text), markup=False)

    with Progress() as bars:
        job.make_proposals(say, bars.update)
        job.train(say, bars.update)
        rows = job.measure(say, bars.update)
    for message in job.failures.values():
        complain(message)
    if not rows:
        raise UserError("no detector is left to compare")
    with late() as attempt:
        try:
            files = job.write(rows, attempt)
        finally:  # a full disk costs the files, and not what the screen shows
            console = Console(highlight=False)
            console.print(*job.tables(rows, console.width))
        say(f"{job.out}: {', '.join(files)}")
        return FAILED if job.failures else 0
