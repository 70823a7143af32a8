"""VOC AP of 500,000 detections on a data set of VOC07-test's size, beside the COCO evaluators where installed.

These compute COCO's AP at IoU .5 rather than the devkit's: the same work, though not the same number.
"""

import contextlib
import io
from importlib.util import find_spec

import numpy as np
import torch

from detkit.benchmarks.race import Contender, Job, Setting, Subject
from detkit.structures import DetectionSet, TruthSet

IMAGES, OBJECTS, DETECTIONS, CLASSES = 4952, 12032, 500_000, 20


def sets(device: str) -> tuple[DetectionSet, TruthSet]:
    """Return detections and truth: a third of the detections lie near an object."""
    generator = torch.Generator().manual_seed(0)

    def boxes(count: int) -> torch.Tensor:
        corner = torch.rand(count, 2, generator=generator) * 300
        return torch.cat((corner, corner + 10 + torch.rand(count, 2, generator=generator) * 150), 1)

    ids, classes = tuple(f"{i:06d}" for i in range(IMAGES)), tuple(f"class{i}" for i in range(CLASSES))
    truth = TruthSet(
        boxes(OBJECTS),
        torch.randint(CLASSES, (OBJECTS,), generator=generator),
        torch.rand(OBJECTS, generator=generator) < 0.1,
        torch.randint(IMAGES, (OBJECTS,), generator=generator),
        ids,
        classes,
    )
    found, image = boxes(DETECTIONS), torch.randint(IMAGES, (DETECTIONS,), generator=generator)
    labels = torch.randint(CLASSES, (DETECTIONS,), generator=generator)
    near = torch.rand(DETECTIONS, generator=generator) < 1 / 3
    origin = torch.randint(OBJECTS, (DETECTIONS,), generator=generator)
    jitter = torch.randn(DETECTIONS, 4, generator=generator) * 8
    found = torch.where(near.unsqueeze(1), truth.boxes[origin] + jitter, found)
    image, labels = torch.where(near, truth.image[origin], image), torch.where(near, truth.labels[origin], labels)
    scores = torch.rand(DETECTIONS, generator=generator)
    return DetectionSet(found, scores, labels, image, ids, classes).to(device), truth.to(device)


def ap_detkit(setting: Setting) -> Job:
    from detkit.evaluation import voc_ap

    detections, truth = sets(setting.device)
    return lambda: voc_ap(detections, truth)


def coco_lists() -> tuple[dict, np.ndarray]:
    """Return the truth as a COCO data set and the detections as rows of (image, x, y, w, h, score, class)."""
    detections, truth = sets("cpu")

    def xywh(boxes: torch.Tensor) -> np.ndarray:
        return torch.cat((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]), 1).double().numpy()

    annotations = [
        {"id": i + 1, "image_id": image, "category_id": label + 1, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        for i, (image, label, box) in enumerate(
            zip(truth.image.tolist(), truth.labels.tolist(), xywh(truth.boxes).tolist())
        )
    ]
    dataset = {
        "info": {},
        "images": [{"id": i, "width": 500, "height": 500} for i in range(IMAGES)],
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(truth.classes)],
        "annotations": annotations,
    }
    columns = (detections.image, xywh(detections.boxes), detections.scores, detections.labels + 1)
    return dataset, np.column_stack([np.asarray(column, dtype=np.float64) for column in columns])


def _coco(coco_type, evaluator_type) -> Job:
    dataset, rows = coco_lists()
    with contextlib.redirect_stdout(io.StringIO()):
        coco = coco_type()
        coco.dataset = dataset
        coco.createIndex()
        results = coco.loadRes(rows)

    def job() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            evaluator = evaluator_type(coco, results, "bbox")
            evaluator.params.iouThrs = np.array([0.5])
            evaluator.params.areaRng, evaluator.params.areaRngLbl = [[0, 1e10]], ["all"]
            evaluator.params.maxDets = [1, 10, 10_000]
            evaluator.evaluate()
            evaluator.accumulate()

    return job


def ap_pycocotools(setting: Setting) -> Job:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    return _coco(COCO, COCOeval)


def ap_faster_coco_eval(setting: Setting) -> Job:
    from faster_coco_eval import COCO, COCOeval_faster  # pyright: ignore[reportMissingImports]

    return _coco(COCO, COCOeval_faster)


_peers = [Contender("pycocotools", ap_pycocotools)]
if find_spec("faster_coco_eval"):
    _peers.append(Contender("faster-coco-eval", ap_faster_coco_eval))
SUBJECTS = (
    Subject(f"VOC AP, {IMAGES} images, {DETECTIONS} detections", (Contender("detkit", ap_detkit, True), *_peers)),
)
