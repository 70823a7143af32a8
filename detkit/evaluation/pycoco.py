"""pycocotools as the reference of the COCO metric."""

import contextlib
import io
from typing import Any

import torch
from torch import Tensor

from detkit import rle
from detkit.evaluation.coco import NUMBERS
from detkit.evaluation.flat import join
from detkit.structures import DetectionSet, TruthSet


def pycocotools_summary(detections: DetectionSet, truth: TruthSet, masks: bool = False) -> dict[str, float]:
    """Return COCO's twelve numbers, of boxes or `masks`, as pycocotools computes them; NaN where it has -1.

    Takes what `detkit.evaluation.coco_ap` takes; it is some fifty times as slow.
    """
    stats = pycocotools_eval(detections, truth, masks).stats
    return {name: float("nan") if value == -1 else float(value) for name, value in zip(NUMBERS, stats)}


def pycocotools_eval(detections: DetectionSet, truth: TruthSet, masks: bool = False) -> Any:
    """Return pycocotools' COCOeval of boxes, or `masks`, after all of its work: see its `stats` and `eval`."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        objects, found = coco_sets(detections, truth, COCO)
        for dataset, masks_of in ((objects, truth.masks), (found, detections.masks)):
            for annotation, mask in zip(dataset.dataset["annotations"], masks_of or ()):
                annotation["segmentation"] = mask
                dataset.imgs[annotation["image_id"]] |= dict(zip(("height", "width"), mask["size"]))
                if masks and dataset is found:  # as loadRes does
                    annotation["area"] = float(rle.area([mask])[0])
        evaluator = COCOeval(objects, found, "segm" if masks else "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator


def coco_sets(detections: DetectionSet, truth: TruthSet, coco_type: Any) -> list[Any]:
    """Return the truth and the detections as two of pycocotools' COCO, or another evaluator's `coco_type`."""
    sets = [coco_type(), coco_type()]
    with contextlib.redirect_stdout(io.StringIO()):
        for one, content in zip(sets, coco_dicts(detections, truth)):
            one.dataset = content
            one.createIndex()
    return sets


def coco_dicts(detections: DetectionSet, truth: TruthSet) -> tuple[dict, dict]:
    """Return the truth, and the detections as `COCO.loadRes` would make them, as the content of COCO files.

    Images and categories are numbered from 1 in the order of `truth`. `ignore` becomes iscrowd.
    """
    images = [{"id": number} for number in range(1, len(truth.ids) + 1)]
    categories = [{"id": number, "name": name} for number, name in enumerate(truth.classes, 1)]
    labels, image = join(detections, truth)
    area = _area(truth.boxes) if truth.area is None else truth.area.double()
    objects = _annotations(truth, truth.image + 1, truth.labels + 1, area)
    for annotation, crowd in zip(objects, truth.ignore.tolist()):
        annotation["iscrowd"] = int(crowd)
    found = _annotations(detections, image + 1, labels + 1, _area(detections.boxes))
    for annotation, score in zip(found, detections.scores.tolist()):
        annotation["score"] = score
    head = {"info": {}, "images": images, "categories": categories}
    return {**head, "annotations": objects}, {**head, "annotations": found}


def _annotations(objects: DetectionSet | TruthSet, image: Tensor, labels: Tensor, area: Tensor) -> list[dict]:
    """Numbered from 1: pycocotools takes the number 0 for no match."""
    boxes = objects.boxes.double()
    boxes = torch.cat((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]), 1)
    columns = zip(*(column.tolist() for column in (image, labels, boxes, area)))
    return [
        {"id": number, "image_id": image_id, "category_id": category, "bbox": box, "area": size, "iscrowd": 0}
        for number, (image_id, category, box, size) in enumerate(columns, 1)
    ]


def _area(boxes: Tensor) -> Tensor:
    return (boxes.double()[:, 2:] - boxes.double()[:, :2]).prod(1)
