"""What a detector takes, each measured in a process of its own: memory, operations, seconds.

All detectors get the same images of the test split, decoded; measured is all from there to the detections in the
images' coordinates: resizing, network, post-processing. Detectors of stored regions get those of their stores.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from detkit.backbones.describe import count_flops, count_parameters
from detkit.checkpoints.checkpoint import build, load
from detkit.config import Config
from detkit.data.batch import make_batch
from detkit.data.dataset import DetectionDataset
from detkit.data.loader import open_proposals
from detkit.data.opening import open_dataset
from detkit.data.proposal_store import match_ids, open_store
from detkit.data.transforms import build_test
from detkit.errors import UserError
from detkit.experiment import to_plain
from detkit.extensions import import_code
from detkit.inference.evaluate import detect_batch
from detkit.inference.fast import Fast
from detkit.models import Detector
from detkit.proposals.methods import METHODS, find_method
from detkit.runtime.device import choose_device, images_to_device, to_device
from detkit.runtime.race import Job, Setting
from detkit.structures import Detections, Images

IMAGES = 16  # the larger of the two batches
BATCHES = (1, IMAGES)


@dataclass(frozen=True)
class Cost:
    """What a detector takes.

    parameters: numbers that are trained or could be. flops: of `predict` for one image of the test split, see
    `count_flops`. memory: bytes at most while detecting IMAGES images at once: on CUDA those allocated there, on the
    CPU what the process had beyond torch, detkit and the images; None where the system does not tell.
    """

    parameters: int
    flops: int
    memory: int | None


def load_best(config: Config, best: Path) -> Detector:
    """Read a checkpoint as `config` says, which may differ from its own in what is not a weight; in eval mode."""
    import_code(config.imports)  # this may be a new process
    detector = build({**load(best), "config": to_plain(config)}, best)[0].eval()
    detector.fast = Fast(detector, config.detect.compile)
    return detector


class ComparedImages:
    """IMAGES decoded images, spread over the test split, and their stored regions (R, 4) where the config names stores.

    Some are repeated where the split has fewer.
    """

    def __init__(self, config: Config) -> None:
        import cv2

        cv2.setNumThreads(1)  # as `detkit detect` does: torch wants the cores
        import_code(config.imports)  # this may be a new process
        dataset = open_dataset(config.data, "test")
        stored = open_proposals(dataset, config.data)
        indices = torch.linspace(0, len(dataset) - 1, IMAGES).round().int().tolist()
        self.images = [dataset.image(index) for index in indices]
        none = np.zeros((0, 4), np.float32)
        self.regions = [none if stored is None else stored.boxes(index) for index in indices]


class Detecting:
    """A detector on its device, in its number format and memory layout, and images."""

    def __init__(self, config: Config, best: Path, device: str, compared: ComparedImages) -> None:
        self.config, self.compared = config, compared
        self.detector = load_best(config, best)
        self.transform = build_test(self.detector.input)
        self.device = choose_device(device)  # only now: it lets the process keep memory, that of reading the file too
        to_device(self.detector, self.device, self.config.train.channels_last)

    def images(self, indices: Sequence[int]) -> Images:
        """Return images of the sample, by their index in it, as a batch on the CPU."""
        sample = [(self.compared.images[index], self.compared.regions[index]) for index in indices]
        pixels, regions, _ = zip(*(self.transform(image, stored, objects=0) for image, stored in sample))
        original = [image.shape[:2] for image, _ in sample]
        return make_batch(pixels, original, regions=regions if self.detector.takes_proposals else None)

    def detect(self, indices: Sequence[int]) -> Detections:
        """Detect on images of the sample; the detections are on the CPU, where they are read."""
        with torch.inference_mode():
            return detect_batch(self.detector, self.images(indices), self.config, self.device).to("cpu")


def detecting(setting: Setting, *, config: Config, best: Path, batch: int) -> Job:
    """Set up a race's job: all the images, `batch` at once."""
    work = Detecting(config, best, setting.device, ComparedImages(config))

    def job() -> None:
        for first in range(0, IMAGES, batch):
            work.detect(range(first, first + batch))

    return job


def proposing(_: Setting, *, config: Config, method: str, parameters: dict[str, object]) -> Job:
    """Set up a race's job: the proposals of all the images, from their pixels, in one thread."""
    images, function = ComparedImages(config).images, find_method(method, parameters)

    def job() -> None:
        for image in images:
            function(image)

    return job


def measure_cost(config: Config, best: Path, device: str) -> Cost:
    """Measure in a new process. UserError, in one line, where that fails, as for want of memory."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        try:
            return pool.submit(_cost, config, best, device).result()
        except BrokenProcessPool:
            raise UserError(f"{best}: the process that detected {IMAGES} images at once was killed") from None


def _cost(config: Config, best: Path, device: str) -> Cost:
    images = ComparedImages(config)
    before = _status("VmRSS")
    work = Detecting(config, best, device, images)
    cuda = work.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(work.device)
    else:
        clear = Path("/proc/self/clear_refs")
        if os.access(clear, os.W_OK):
            clear.write_text("5")  # the process's VmHWM begins anew (Linux, proc(5))
    for batch in BATCHES:
        work.detect(range(batch))
    peak = _status("VmHWM")
    memory = None if before is None or peak is None else max(0, peak - before)
    if cuda:
        memory = torch.cuda.max_memory_allocated(work.device)
    one = images_to_device(work.images([0]), work.device, work.config.train.channels_last)
    return Cost(count_parameters(work.detector), count_flops(lambda: work.detector.predict(one)), memory)


def _status(name: str) -> int | None:
    """Return a size of /proc/self/status in bytes, None where there is none."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)


def method_of(config: Config, dataset: DetectionDataset) -> tuple[str, dict[str, object]] | None:
    """How the proposals of the test split were made, None where they are another program's or a detector's."""
    for path in config.data.proposals:
        store = open_store(path)
        if (match_ids(dataset.ids, store.ids) >= 0).any():
            known = store.manifest.method in METHODS
            return (store.manifest.method, store.manifest.parameters) if known else None
    return None
