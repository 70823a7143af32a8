"""What the detectors tell of their networks that are exported."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from detkit.models.region_features import CropFeatures
from tests import zoo
from tests.models.cases import CASES, FPN, build


@pytest.mark.parametrize("case", [case for case in CASES if case != "torchvision_ssd"])
def test_exported_networks_take_their_inputs_and_give_what_they_name(case: str) -> None:
    detector = build(case)
    parts = detector.export_parts()
    crops = isinstance(getattr(detector, "features", None), CropFeatures)
    assert len(parts) == (1 if detector.kind == "dense" or crops else 2) + detector.takes_masks
    for part in parts.values():
        for inputs in part.inputs.values():
            assert inputs.example.dtype == inputs.probe.dtype
            free = {
                axis for axis in range(inputs.example.ndim) if inputs.example.shape[axis] != inputs.probe.shape[axis]
            }
            assert free <= set(inputs.axes)
            assert 0 in free
        for kind in ("example", "probe"):
            with torch.inference_mode():
                outputs = part.network(*(getattr(inputs, kind) for inputs in part.inputs.values()))
            outputs = [outputs] if isinstance(outputs, Tensor) else outputs
            assert len(outputs) == len(part.outputs)
            assert all(x.isfinite().all() for x in outputs)
        # each weight once, since their size is what a file's limit is compared with
        weights = [x.data_ptr() for x in part.network.state_dict().values() if x.numel()]
        assert len(set(weights)) == len(weights)


def test_dense_parts_give_the_predictions() -> None:
    for name in ("retinanet", "ssd", "yolov1", "yolov2", "yolov3"):
        detector = build(name)
        images = zoo.sample_images(detector)
        (part,) = detector.export_parts().values()
        given = [getattr(images, key) for key in part.inputs]
        assert list(part.inputs) == (["pixels", "sizes"] if name in ("retinanet", "yolov3") else ["pixels"])
        with torch.inference_mode():
            boxes, scores = part.network(*given)
            expected = detector.predict(images)
        assert torch.equal(boxes, expected.boxes)
        assert torch.equal(scores, expected.scores)


def coder(*weights: float) -> dict[str, Any]:
    return {"weights": weights, "largest": pytest.approx(math.log(1000 / 16))}


HEAD_FACTS = {"coder": coder(10.0, 10.0, 5.0, 5.0)}
RPN_FACTS = {
    "pre_nms_top_n": 61,
    "post_nms_top_n": 12,
    "nms_iou": 0.6,
    "min_size": 3.0,
    "deltas": coder(1.0, 1.0, 1.0, 1.0),
}
RPN_KEYS = {"test_pre_nms_top_n": 61, "rpn_nms_iou": 0.6, "min_size": 3.0}
FACTS: list[tuple[str, dict[str, Any], dict[str, dict[str, Any]]]] = [
    (
        "faster_rcnn",
        RPN_KEYS,
        {
            "-rpn": {"proposals": RPN_FACTS, "pooling": {"kind": "pool", "size": 4, "strides": [8]}},
            "-head": HEAD_FACTS,
        },
    ),
    (
        "faster_rcnn",
        {**FPN, **RPN_KEYS, "pool": "align", "canonical_scale": 112.0},
        {
            "-rpn": {
                "proposals": RPN_FACTS,
                "pooling": {"kind": "align", "size": 4, "strides": [8, 16, 32], "canonical_scale": 112.0},
            },
            "-head": HEAD_FACTS,
        },
    ),
    (
        "rfcn",
        RPN_KEYS,
        {
            "-rpn": {
                "proposals": RPN_FACTS,
                "pooling": {"kind": "psroi", "size": 3, "strides": [8], "offset": -3.5},
            },
            "-head": HEAD_FACTS,
        },
    ),
    (
        "fast_rcnn",
        {"scales": [64, 96], "longest": 150},
        {
            "-map": {"pooling": {"kind": "pool", "size": 4, "strides": [8]}, "scales": [64, 96], "longest": 150},
            "-head": HEAD_FACTS,
        },
    ),
    ("rcnn", {}, {"": {"crops": {"side": 96, "context": 8}, "coder": coder(1.0, 1.0, 1.0, 1.0)}}),
]


@pytest.mark.parametrize(("name", "keys", "expected"), FACTS)
def test_the_facts_of_exported_networks(name: str, keys: dict[str, Any], expected: dict[str, Any]) -> None:
    """What the metadata of a file say beside its inputs and outputs."""
    found = {end: part.facts for end, part in zoo.build(name, **keys).eval().export_parts().items()}
    assert found == expected
