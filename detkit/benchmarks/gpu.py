"""What a GPU has to say, in one process and a few minutes: operations, detection, training, scoring, loading.

Each row runs detkit and its peers in turn; a row that fails says why and the others go on. Peers are torchvision's
functions, called once an image where they take one, and NVIDIA's published figures.
"""

import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from typing import Any

import cv2
import numpy as np
import torch
import torchvision
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision.models.detection._utils import BoxCoder as TorchvisionCoder
from torchvision.models.detection._utils import SSDMatcher

from detkit.benchmarks.data import AUGMENT, HEIGHT, SIZE, WIDTH, jpegs
from detkit.benchmarks.detectors import (
    FASTER_RCNN,
    SSD,
    Network,
    detect_detkit,
    detect_torchvision,
    train_torchvision,
    training,
    whole_images,
)
from detkit.benchmarks.evaluate import VOC_SIZE, Size, score_detkit
from detkit.benchmarks.ops import compare_boxes, nms_detkit, nms_torchvision, random_boxes
from detkit.config import BackboneConfig, DetectConfig
from detkit.data.transforms import build_train
from detkit.errors import in_a_line
from detkit.models import Detector, build_detector
from detkit.models.ssd import CODER, SSDConfig
from detkit.models.yolov1 import YOLOv1Config
from detkit.ops import box_iou, match_ssd, roi_align
from detkit.runtime.device import autocast, images_to_device, to_device
from detkit.runtime.race import Benchmark, Job, Runner, Setting
from detkit.structures import InputSpec

# DeepLearningExamples, SSD300 v1.1, PyTorch 22.10, mixed precision, one A100 of 80 GB: images a second by batch
PUBLISHED = {"training": {64: 663, 128: 724}, "detection": {1: 143, 16: 887, 64: 1058}}
AMP = "bf16"


@dataclass(frozen=True)
class Sizes:
    """How much is computed. detect, train: images at once. published: the same of NVIDIA's detector."""

    rounds: int = 10
    images: int = 16
    detect: tuple[int, ...] = (1, 16)
    train: int = 16
    published: tuple[tuple[int, ...], tuple[int, ...]] = ((1, 16, 64), (64, 128))
    regions: int = 1000
    voc: Size = VOC_SIZE
    loaded: int = 2048


TINY = Sizes(1, 2, (1,), 2, ((1,), (2,)), 20, Size(40, 100, 1000, 20), 32)


@dataclass(frozen=True)
class Race:
    """A benchmark; images: at once, for images a second; published: those of others on an A100."""

    benchmark: Benchmark
    images: int | None = None
    published: float | None = None


def race_of(name: str, images: int | None, published: float | None, **runners: Callable[[Setting], Job]) -> Race:
    names = {name: name.replace("_", " ") for name in runners}
    return Race(Benchmark(name, tuple(Runner(names[key], setup) for key, setup in runners.items())), images, published)


# detectors


def build(config: Any, classes: int = 20, **detect: Any) -> tuple[Detector, DetectConfig]:
    return build_detector(config, tuple(f"class{i}" for i in range(classes))), DetectConfig(**detect)


def nvidia_config() -> SSDConfig:
    """That of configs/coco/ssd300_resnet50_nvidia.yaml."""
    halving, last = [[256, 512, 3, 2, 1]] * 2 + [[128, 256, 3, 2, 1]], [[128, 256, 3, 1, 0]] * 2
    sides = [21.0, 45.0, 99.0, 153.0, 207.0, 261.0, 315.0]
    backbone = BackboneConfig("resnet50_reduced")
    return SSDConfig(
        backbone=backbone, features=["c4"], extras=[*halving, *last], min_sizes=sides[:-1], max_sizes=sides[1:]
    )


# nn.Module: no peer
MOBILENET = Network(
    partial(build, SSDConfig(backbone=BackboneConfig("mobilenet_v2"))), nn.Module, (300, 300), 3, 1e-4, 5e-4
)
YOLO = Network(partial(build, YOLOv1Config()), nn.Module, (448, 448), 3, 1e-4, 5e-4)
NVIDIA = Network(
    partial(build, nvidia_config(), 80, score_threshold=0.05, nms_iou=0.5), nn.Module, (300, 300), 7, 1e-4, 5e-4
)
NETWORKS = {
    "ssd300_vgg16": SSD,
    "ssd300_mobilenet_v2": MOBILENET,
    "fasterrcnn_resnet50_fpn": FASTER_RCNN,
    "yolov1": YOLO,
}


def train(network: Network, batch: int, amp: str, setting: Setting) -> Job:
    device = torch.device(setting.device)
    detector, _ = network.build()
    to_device(detector.train(), device, channels_last=True)
    images = images_to_device(whole_images(network.pixels(batch, "cpu")), device, channels_last=True)
    targets = network.targets(batch, setting.device)
    return training(lambda: _within(amp, setting, lambda: detector(images, targets)), detector, network, fused=True)


def _within(amp: str, setting: Setting, job: Callable[[], Any]) -> Any:
    with autocast(torch.device(setting.device), amp):
        return job()


def network_alone(form: str, batch: int, setting: Setting) -> Job:
    """The network and decoding of SSD300 on MobileNetV2: as it is, compiled, or as a CUDA graph."""
    detector, _ = MOBILENET.build()
    device = torch.device(setting.device)
    to_device(detector.eval(), device, channels_last=True)
    pixels = MOBILENET.pixels(batch, setting.device).contiguous(memory_format=torch.channels_last)
    part = detector.export_parts()[""].network
    job = torch.no_grad()(lambda: part(pixels))
    if form == "compile":
        detector.compile_network()
    if form != "graph":
        return job
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):  # what is captured has run before
        for _ in range(3):
            job()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        job()
    return graph.replay


# operations


def decode(peer: bool, images: int, setting: Setting) -> Job:
    refs = random_boxes(8732, setting.device)
    deltas = torch.rand(images, 8732, 4, generator=torch.Generator().manual_seed(0)).to(setting.device)
    if not peer:
        return lambda: CODER.decode(deltas, refs)
    coder = TorchvisionCoder((10.0, 10.0, 5.0, 5.0))
    return lambda: [coder.decode_single(one, refs) for one in deltas]


def match(peer: bool, images: int, setting: Setting) -> Job:
    anchors = random_boxes(8732, setting.device)
    boxes = torch.stack([random_boxes(8, setting.device, seed) for seed in range(1, images + 1)])
    valid = torch.ones(boxes.shape[:2], dtype=torch.bool, device=setting.device)
    if not peer:
        return lambda: match_ssd(boxes, valid, ~valid, anchors, 0.5)
    matcher = SSDMatcher(0.5)
    return lambda: [matcher(torchvision.ops.box_iou(one, anchors)) for one in boxes]


def pool(peer: bool, regions: int, setting: Setting) -> Job:
    maps = torch.rand(2, 256, 50, 68, device=setting.device)
    boxes = torch.stack([random_boxes(regions, setting.device, seed) for seed in range(2)])
    if not peer:
        return lambda: roi_align(maps, boxes, 7, 16)
    return lambda: torchvision.ops.roi_align(maps, [*boxes], 7, 1 / 16, 2, aligned=True)


def ops(sizes: Sizes) -> Iterator[Race]:
    yield race_of(
        "box_iou, 1000 x 1000",
        None,
        None,
        detkit=partial(compare_boxes, box_iou),
        torchvision=partial(compare_boxes, torchvision.ops.box_iou),
    )
    for images in {1, sizes.images}:
        yield race_of(
            f"nms, 20 classes, 10000 boxes, {images} images",
            None,
            None,
            detkit=partial(nms_detkit, images),
            torchvision_loop=partial(nms_torchvision, images),
        )
    for name, function, count in (
        (f"decode 8732 boxes, {sizes.images} images", decode, sizes.images),
        (f"match 8732 default boxes, {sizes.images} images", match, sizes.images),
        (f"roi_align, 2 images, {sizes.regions} regions each", pool, sizes.regions),
    ):
        ours, theirs = (partial(function, peer, count) for peer in (False, True))
        yield race_of(name, None, None, detkit=ours, torchvision_loop=theirs)


def detecting(sizes: Sizes) -> Iterator[Race]:
    for name, network in NETWORKS.items():
        for batch in sizes.detect:
            runners = {"detkit": detect_detkit, "torchvision": detect_torchvision}
            if network.build_torchvision is nn.Module:
                del runners["torchvision"]
            forms = {
                f"{runner}{end}": partial(function, network, batch, amp)
                for end, amp in (("", "none"), ("_bf16", AMP))
                for runner, function in runners.items()
            }
            yield race_of(f"{name}, detection of {batch}", batch, None, **forms)


def stepping(sizes: Sizes) -> Iterator[Race]:
    for name, network in NETWORKS.items():
        runners: dict[str, Any] = {
            runner: partial(train, network, sizes.train, amp)
            for runner, amp in (("detkit_bf16", AMP), ("detkit", "none"))
        }
        if network.build_torchvision is not nn.Module:
            runners["torchvision"] = partial(train_torchvision, network, sizes.train)
        yield race_of(f"{name}, training step of {sizes.train}", sizes.train, None, **runners)


def published(sizes: Sizes) -> Iterator[Race]:
    for what, function, batches in zip(("detection", "training"), (detect_detkit, train), sizes.published):
        for batch in batches:
            known = PUBLISHED[what].get(batch)
            runner = partial(function, NVIDIA, batch, AMP)
            yield race_of(f"ssd300_resnet50_nvidia, {what} at {batch}", batch, known, detkit_bf16=runner)


def forms(sizes: Sizes) -> Iterator[Race]:
    for batch in sizes.detect:
        runners = {form: partial(network_alone, form, batch) for form in ("eager", "graph", "compile")}
        yield race_of(f"ssd300_mobilenet_v2, network alone, {batch}", batch, None, **runners)


def scoring(sizes: Sizes) -> Iterator[Race]:
    name = f"VOC AP, {sizes.voc.images} images, {sizes.voc.detections} detections"
    yield race_of(name, None, None, detkit=partial(score_detkit, sizes.voc))


class _Loaded(Dataset):
    def __init__(self, count: int) -> None:
        self.files = [*islice(cycle(jpegs()), count)]
        self.transform = build_train(AUGMENT, InputSpec((SIZE, SIZE)))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> np.ndarray:
        cv2.setNumThreads(0)
        jpeg, boxes = self.files[index]
        image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR_RGB)
        return self.transform(np.asarray(image), boxes, (0, index))[0]


def load(count: int, _: Setting) -> Job:
    loader = DataLoader(_Loaded(count), 16, num_workers=os.cpu_count() or 1, persistent_workers=True)
    return lambda: [None for _ in loader]


def loading(sizes: Sizes) -> Iterator[Race]:
    name = f"decode and augment {WIDTH}x{HEIGHT} to {SIZE}, {os.cpu_count()} workers"
    yield race_of(name, sizes.loaded, None, detkit=partial(load, sizes.loaded))


# in the order of their worth
SECTIONS: dict[str, Callable[[Sizes], Iterator[Race]]] = {
    "ops": ops,
    "published": published,
    "train": stepping,
    "detect": detecting,
    "evaluate": scoring,
    "load": loading,
    "forms": forms,
}


def measure(
    device: str,
    sizes: Sizes,
    budget: float,
    say: Callable[[dict[str, Any]], None],
    sections: Sequence[str] = (*SECTIONS,),
) -> list[dict[str, Any]]:
    """Run all races of the sections until `budget` seconds are over; return and `say` a row for each runner.

    A row has section, name, runner, and seconds (best), images_per_second, syncs (host syncs of a call, on CUDA), or
    why it has not: error.
    """
    rows: list[dict[str, Any]] = []
    end = time.monotonic() + budget
    setting = Setting(device, torch.get_num_threads(), sizes.rounds)
    for section in sections:
        for race in SECTIONS[section](sizes):
            found = _run(race, setting, end) if time.monotonic() < end else {"": {"error": "no time was left"}}
            for runner, values in found.items():
                rows.append({"section": section, "name": race.benchmark.name, "runner": runner, **values})
                say(rows[-1])
    return rows


def _run(race: Race, setting: Setting, end: float) -> dict[str, dict[str, Any]]:
    """Return what is known of each runner, by its name."""
    wait = torch.cuda.synchronize if setting.device.startswith("cuda") else lambda: None
    jobs: dict[str, Job] = {}
    found: dict[str, dict[str, Any]] = {}
    for runner in race.benchmark.runners:
        try:
            torch.manual_seed(0)
            job = runner.setup(setting)
            job()
            found[runner.name] = {"seconds": float("inf")} | _syncs(job, setting)
            jobs[runner.name] = job
        except Exception as error:  # whatever it is: the others have something to say
            found[runner.name] = {"error": in_a_line(error)}
    for number in range(setting.rounds):
        if number and time.monotonic() > end:
            break
        for name, job in jobs.items():
            wait()
            start = time.perf_counter()
            job()
            wait()
            found[name]["seconds"] = min(found[name]["seconds"], time.perf_counter() - start)
    for values in found.values():
        if race.images and "seconds" in values:
            values["images_per_second"] = race.images / values["seconds"]
        if race.published:
            values["published_images_per_second"] = race.published
    del jobs
    if setting.device.startswith("cuda"):
        torch.cuda.empty_cache()
    return found


def _syncs(job: Job, setting: Setting) -> dict[str, int]:
    """Run a job once more; return how often the host waited for the GPU meanwhile, on CUDA."""
    if not setting.device.startswith("cuda"):
        return {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            job()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return {"syncs": sum("synchroniz" in str(warning.message) for warning in caught)}
