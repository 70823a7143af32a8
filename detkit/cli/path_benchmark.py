"""The whole of `detkit detect` on a folder of images, beside its network alone."""

import os
import tempfile
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path

import torch

from detkit.benchmarks.backends import batch
from detkit.cli import main
from detkit.cli.detect import FORMATS
from detkit.errors import UserError
from detkit.inference.backends import open_detector
from detkit.inference.evaluate import detect_batch
from detkit.inference.predict import BATCH
from detkit.inference.sources import find_sources, quiet
from detkit.runtime.race import Benchmark, Job, Runner, Setting


def path_benchmarks(checkpoint: str, images: str) -> list[Benchmark]:
    """Return a benchmark whose times are of all images of a folder; UserError where there are none."""
    count = sum(isinstance(source, Path) for source in find_sources([images]))
    if not count:
        raise UserError(f"--images {images}: no images")
    nothing, everything = ["--no-images"], ["--format", ",".join(FORMATS)]
    runners = (
        Runner("detect, nothing written", partial(whole_path, checkpoint, images, nothing), True),
        Runner("detect, all formats and images", partial(whole_path, checkpoint, images, everything), True),
        Runner("network and NMS alone", partial(network, checkpoint, images), True),
    )
    return [Benchmark(f"{checkpoint}, {count} images", runners)]


def whole_path(checkpoint: str, images: str, options: list[str], setting: Setting) -> Job:
    """Return the job of the whole command, reading the checkpoint included."""

    def job() -> None:
        with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
            status = main(["detect", checkpoint, images, "--device", setting.device, "--out", folder, *options])
        if status:
            raise UserError(f"detkit detect {checkpoint} {images}: exit status {status}")

    return job


def network(checkpoint: str, images: str, setting: Setting) -> Job:
    """Return the job of as many images that are ready, from pixels in memory to detections."""
    quiet()
    detector, config = open_detector(checkpoint, setting.device)
    paths = [source for source in find_sources([images]) if isinstance(source, Path)]
    ready = batch(detector, paths, min(BATCH, len(paths)))

    @torch.inference_mode()
    def job() -> None:
        for first in range(0, len(paths), BATCH):
            part = ready.part(slice(min(BATCH, len(paths) - first)))
            detect_batch(detector, part, config, torch.device(setting.device)).to("cpu")

    return job
