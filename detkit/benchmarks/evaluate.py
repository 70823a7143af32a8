"""VOC AP and COCO's numbers of random detections, beside the COCO evaluators where installed.

VOC AP is that of 500,000 detections on a data set of VOC07-test's size; the COCO evaluators compute COCO's AP at IoU .5
there: the same work, though not the same number. COCO's twelve numbers are those of a fifth of its val2017.
"""

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch

from detkit.evaluation import coco_ap, voc_ap
from detkit.evaluation.pycoco import coco_sets
from detkit.runtime.race import Benchmark, Job, Runner, Setting
from detkit.structures import DetectionSet, TruthSet


@dataclass(frozen=True)
class Size:
    """How large a data set is."""

    images: int
    objects: int
    detections: int
    classes: int


VOC_SIZE, COCO_SIZE = Size(4952, 12032, 500_000, 20), Size(1000, 7356, 100_000, 80)


def sets(size: Size, device: str) -> tuple[DetectionSet, TruthSet]:
    """Return detections and truth: a third of the detections lie near an object."""
    generator = torch.Generator().manual_seed(0)

    def boxes(count: int) -> torch.Tensor:
        corner = torch.rand(count, 2, generator=generator) * 300
        return torch.cat((corner, corner + 10 + torch.rand(count, 2, generator=generator) * 150), 1)

    ids, classes = tuple(f"{i:06d}" for i in range(size.images)), tuple(f"class{i}" for i in range(size.classes))
    truth = TruthSet(
        boxes(size.objects),
        torch.randint(size.classes, (size.objects,), generator=generator),
        torch.rand(size.objects, generator=generator) < 0.1,
        torch.randint(size.images, (size.objects,), generator=generator),
        ids,
        classes,
    )
    found, image = boxes(size.detections), torch.randint(size.images, (size.detections,), generator=generator)
    labels = torch.randint(size.classes, (size.detections,), generator=generator)
    near = torch.rand(size.detections, generator=generator) < 1 / 3
    origin = torch.randint(size.objects, (size.detections,), generator=generator)
    jitter = torch.randn(size.detections, 4, generator=generator) * 8
    found = torch.where(near.unsqueeze(1), truth.boxes[origin] + jitter, found)
    image, labels = torch.where(near, truth.image[origin], image), torch.where(near, truth.labels[origin], labels)
    scores = torch.rand(size.detections, generator=generator)
    return DetectionSet(found, scores, labels, image, ids, classes).to(device), truth.to(device)


def score_detkit(size: Size, setting: Setting) -> Job:
    detections, truth = sets(size, setting.device)
    return lambda: voc_ap(detections, truth) if size == VOC_SIZE else coco_ap(detections, truth).summary


def pycocotools() -> tuple[Any, Any]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    return COCO, COCOeval


def faster_coco_eval() -> tuple[Any, Any]:
    from faster_coco_eval import COCO, COCOeval_faster  # pyright: ignore[reportMissingImports]

    return COCO, COCOeval_faster


def score_peer(size: Size, types: Callable[[], tuple[Any, Any]], setting: Setting) -> Job:
    """Let a COCO evaluator work: on VOC's size at IoU .5 alone, on COCO's in full. Reading is not timed."""
    coco_type, evaluator_type = types()
    loaded = coco_sets(*sets(size, "cpu"), coco_type)

    def job() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            evaluator = evaluator_type(*loaded, "bbox")
            if size == VOC_SIZE:
                evaluator.params.iouThrs = evaluator.params.iouThrs[:1]
                evaluator.params.areaRng, evaluator.params.areaRngLbl = [[0, 1e10]], ["all"]
                evaluator.params.maxDets = [1, 10, 10_000]
            evaluator.evaluate()
            evaluator.accumulate()
            if size == COCO_SIZE:
                evaluator.summarize()

    return job


PEERS = {"pycocotools": pycocotools} | ({"faster-coco-eval": faster_coco_eval} if find_spec("faster_coco_eval") else {})
BENCHMARKS = tuple(
    Benchmark(
        f"{name}, {size.images} images, {size.detections} detections",
        (
            Runner("detkit", partial(score_detkit, size), True),
            *(Runner(peer, partial(score_peer, size, types)) for peer, types in PEERS.items()),
        ),
    )
    for name, size in (("VOC AP", VOC_SIZE), ("COCO's 12 numbers", COCO_SIZE))
)
