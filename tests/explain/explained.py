"""Detectors' explanations of one image, for the tests."""

from typing import Any

import numpy as np

from detkit.config import Config, DataConfig, DetectConfig, TrainConfig
from detkit.data.image_truth import Truth
from detkit.data.index import texts
from detkit.explain import Explanation, explain
from detkit.rle import RLE, encode
from tests import zoo
from tests.builders import random_image

MODELS = (
    *("fast_rcnn", "faster_rcnn", "mask_rcnn", "rcnn", "retinanet", "rfcn", "sppnet", "ssd"),
    *("yolov1", "yolov2", "yolov3"),
)
BOXES = ((8.0, 10.0, 60.0, 70.0), (50.0, 20.0, 110.0, 90.0))


def left_halves() -> tuple[RLE, ...]:
    """The masks of the objects: the left halves of their boxes."""
    masks = np.zeros((len(BOXES), 100, 130), bool)
    for mask, (left, top, right, bottom) in zip(masks, BOXES):
        mask[int(top) : int(bottom), int(left) : int(left + right) // 2] = True
    return encode(masks)


TRUTH = Truth.of(
    np.array(BOXES, np.float32), np.array([0, 1]), size=(130, 100), origin="a test", masks=texts(left_halves())
)
SCORES = {"ssd": 0.34, "torchvision_ssd": 0.35}
FACTORS = np.array([130, 100] * 2) / 96  # from pixels of SSD's and YOLO's input to those of the image


def image() -> np.ndarray:
    return np.ascontiguousarray(random_image(100, 130)[0].permute(1, 2, 0).numpy())


def config_of(detector: Any, score_threshold: float) -> Config:
    data = DataConfig(root="", proposal_count=30)
    settings = DetectConfig(score_threshold=score_threshold, detections_per_image=20, proposals="single")
    return Config(detector.config, data, TrainConfig(iterations=1), settings)


def build(name: str, **keys: Any) -> tuple[Any, Config]:
    detector = zoo.build(name, **keys).eval()
    detector.experiment = config_of(detector, SCORES.get(name, 0.0))
    return detector, detector.experiment


def explained(name: str, truth: Truth | None = TRUTH, **keys: Any) -> tuple[Any, Explanation]:
    detector, config = build(name, **keys)
    return detector, explain(detector, image(), config, truth)


def step_of(explanation: Explanation, kind: type, name: str = "") -> Any:
    """Return the one step of a kind."""
    (step,) = (step for step in explanation.steps if isinstance(step, kind) and getattr(step, "name", "") == name)
    return step
