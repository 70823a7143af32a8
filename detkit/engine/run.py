"""The folder of a run, and what its stages share.

config.yaml  env.txt  log.jsonl  last.pt (all that a resume needs)  best.pt (all that inference needs)
"""

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from detkit.checkpoints import checkpoint
from detkit.config import Config
from detkit.engine.dataset_pass import dataset_pass
from detkit.engine.log import Log
from detkit.errors import UserError
from detkit.experiment import save_config
from detkit.inference.evaluate import evaluate
from detkit.runtime import distributed
from detkit.runtime.device import autocast, resolve_amp
from detkit.structures import Images, InputSpec, Proposals, Targets

if TYPE_CHECKING:
    from detkit.data.dataset import DetectionDataset
    from detkit.models import SGD, Detector


Batch = tuple[Images, Targets]


@dataclass
class Run:
    """What the stages of a training run share.

    before: iterations of the stages that are done. store: in the folder, proposals that come with the images.
    val, test: None where the config names no split; without val best.pt holds the last weights. resumed: the content
    of last.pt, until the stage that it belongs to has taken it. best: the highest mAP on val so far.
    """

    config: Config
    folder: Path
    device: torch.device
    train: "DetectionDataset"
    val: "DetectionDataset | None"
    test: "DetectionDataset | None"
    resumed: dict[str, Any] | None = None
    stage: str = ""
    before: int = 0
    store: str | None = None
    best: float | None = None
    metrics: dict[str, Any] = field(default_factory=dict)

    @property
    def writes(self) -> bool:
        """Whether this process writes the run's files."""
        return distributed.rank() == 0

    def say(self, text: str) -> None:
        """Print a line, once for all processes."""
        if self.writes:
            print(text, flush=True)

    @property
    def last(self) -> Path:
        """The checkpoint to resume from."""
        return self.folder / "last.pt"

    def batches(self, spec: InputSpec, start: int, stop: int, workers: int | None = None) -> Iterable[Batch]:
        """This process's share of the batches of iterations start..stop-1, for a network with that input."""
        from detkit.data.loader import train_loader

        recipe = self.config.train
        recipe = recipe if workers is None else replace(recipe, workers=workers)
        data = self.config.data
        if self.store is not None:
            data = replace(data, proposals=[str(self.folder / self.store)], proposal_count=0)
        rank, world = distributed.rank(), distributed.world_size()
        return train_loader(self.train, spec, data, recipe, start=start, stop=stop, rank=rank, world=world)

    def train_count(self) -> int:
        """Return how many training images there are."""
        return len(self.train)

    def fit(self, detector: "Detector", stage: "SGD") -> None:
        """Train by gradient descent; see `fit`."""
        from detkit.engine.train import fit

        self.store = stage.store
        fit(detector, self, stage)

    def propose(self, detector: "Detector", store: str) -> None:
        """Write the detector's proposals of the training images to a store in the run's folder."""
        from detkit.inference.propose import make_rpn_store

        bar = Progress(
            "proposals",
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=Console(quiet=not self.writes),
        )
        with distributed.main_first(), bar:  # the first process makes it, the others find it made
            task = bar.add_task("proposals", total=len(self.train))
            path = self.folder / store
            make_rpn_store(
                path, self.train, detector, self.config, self.last, lambda done, _: bar.update(task, completed=done)
            )

    def dataset_pass(
        self,
        detector: "Detector",
        rows: Sequence[int],
        text: str,
        *,
        done: int = 0,
        save: Callable[[int], None],
    ) -> Iterator[Batch]:
        """Yield the training images `rows` from place `done` on, unaugmented, on the device; see `sweep`."""
        return dataset_pass(self, detector, rows, text, done, save)

    @contextmanager
    def inference(self) -> Iterator[None]:
        """Compute without gradients, in the number format of the network."""
        with torch.no_grad(), autocast(self.device, self.config.train.amp):
            yield

    def regions(self, images: int = 64) -> Iterator[tuple[Targets, Proposals]]:
        """Yield the objects and proposals of the training images, in their pixels, so many images at once."""
        from detkit.data.loader import open_proposals

        stored = open_proposals(self.train, self.config.data)
        assert stored is not None, "check_proposals comes first"
        for first in range(0, len(self.train), images):
            rows = range(first, min(first + images, len(self.train)))
            records = [self.train.record(row).annotations for row in rows]
            use = self.config.data.difficult
            targets = Targets.pad(
                (
                    torch.from_numpy(record.boxes),
                    torch.from_numpy(record.labels),
                    torch.from_numpy(record.crowd if use else record.ignore),
                )
                for record in records
            )
            yield targets, Proposals.pad([torch.from_numpy(stored.boxes(row).copy()) for row in rows])

    def begin(self) -> None:
        """Write config.yaml, and add to env.txt what this run, or this part of it, runs on.

        A stage calls this once it is ready to work: a resume that fails has then changed nothing.
        """
        if self.writes:
            try:
                save_config(self.folder / "config.yaml", self.config)
            except OSError as error:
                raise UserError(f"{self.folder / 'config.yaml'}: {error.strerror or error}") from None
            path = self.folder / "env.txt"
            earlier = path.read_text() + "\n" if path.exists() else ""
            checkpoint.write_file(path, earlier + environment(self.device, self.config.train.amp))

    def take_resumed(self) -> dict[str, Any] | None:
        """Return, once, the content of last.pt that this stage goes on from."""
        resumed, self.resumed = self.resumed, None
        if resumed is not None:
            self.best, self.metrics = resumed["training"]["best"], resumed["metrics"]
        return resumed

    def restore(self, detector: "Detector") -> dict[str, Any]:
        """Give the detector its weights, where inference's lie in last.pt; return what the stage saved, or {}."""
        resumed = self.take_resumed()
        if resumed is None:
            return {}
        checkpoint.load_weights(detector, resumed["model"], self.last)
        return resumed["training"]

    def save_last(self, detector: "Detector", state: dict[str, Any], iteration: int | None = None) -> None:
        """Write last.pt: `detector` is what inference uses, `state` what the stage needs to go on.

        iteration: steps of gradient descent done, all of them by default.
        """
        if self.writes:
            iteration = self.before if iteration is None else iteration
            training = {"stage": self.stage, "best": self.best, **state}
            checkpoint.save(
                self.last, detector, self.config, iteration=iteration, metrics=self.metrics, training=training
            )

    def conclude(self, detector: "Detector") -> None:
        """Evaluate and keep what a stage without steps made.

        It becomes best.pt whatever earlier stages reached: those only lead to it.
        """
        iterations = self.before
        self.best = None
        with Log(self.folder, iterations, iterations, writes=self.writes) as log:
            self.evaluate(detector, iterations, log)
        self.save_last(detector, {"finished": True})

    def evaluate(self, detector: "Detector", iteration: int, log: Log) -> None:
        """Evaluate on val and keep the best as best.pt; without val, or objects in it, the latest is best.pt."""
        better = True
        if self.val is not None:
            evaluation = evaluate(detector, self.val, self.config, self.device)
            self.metrics = {"iteration": iteration, "stage": self.stage, **evaluation.metrics(split="val")}
            value = self.metrics["mAP"]
            better = self.best is None or (value is not None and value > self.best)
            self.best = value if better else self.best
            log.evaluation(iteration, self.metrics, better and value is not None)
        if better and self.writes:
            path = self.folder / "best.pt"
            checkpoint.save(path, detector, self.config, iteration=iteration, metrics=self.metrics)


def check_folder(out: str | None) -> None:
    """Raise UserError where `out` is not a new or empty folder."""
    if out is not None and Path(out).exists() and (not Path(out).is_dir() or any(Path(out).iterdir())):
        resume = f"; --resume {out} goes on with the run in it" if (Path(out) / "last.pt").exists() else ""
        raise UserError(f"--out {out} exists and is not an empty folder{resume}")


def create_folder(out: str | None, name: str) -> Path:
    """Make the folder of a new run: `out`, or the first of runs/NAME-1, -2, ... that is not there yet."""
    number = 1
    while out is None and (Path("runs") / f"{name}-{number}").exists():
        number += 1
    folder = Path("runs") / f"{name}-{number}" if out is None else Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {error.filename}: {error.strerror}") from None
    return folder


def environment(device: torch.device, amp: str) -> str:
    """Return versions, device, number format, git state and command, one `name: value` a line."""
    from datetime import datetime
    from importlib.metadata import PackageNotFoundError, version

    lines = {
        "time": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": shlex.join(sys.argv),
        "folder": os.getcwd(),
        "git": _git_state(),
        "python": platform.python_version(),
    }
    for package in ("detkit", "torch", "torchvision", "numpy", "opencv-python-headless", "albumentations"):
        try:
            lines[package] = version(package)
        except PackageNotFoundError:
            lines[package] = "not installed"
    lines["system"] = platform.platform()
    if device.type == "cuda":
        lines["device"] = f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    else:
        lines["device"] = f"cpu, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    lines["amp"] = resolve_amp(device, amp)
    lines["processes"] = str(distributed.world_size())
    return "".join(f"{name}: {value}\n" for name, value in lines.items())


def _git_state() -> str:
    """The commit of detkit's own checkout, `none` where it is installed from a package."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return "none"
    try:
        commit = subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
        dirty = subprocess.run(["git", "-C", root, "status", "--porcelain"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return "none"
    return commit.stdout.strip() + (" with changes" if dirty.stdout.strip() else "")
