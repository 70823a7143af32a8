"""Every detector learns eight images by heart, through the whole path: store, loader, stages, evaluation.

A wrong target, a coordinate off by a stride, a loss of the wrong sign or a decoder that is not the coder's inverse all
keep it from that. The training is that of `configs/shapes`, shorter and on smaller images.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from detkit.data.proposal_store import make_manifest, write_store
from detkit.data.shapes import draw_shapes
from detkit.data.voc import VOCDataset
from detkit.engine.session import train
from detkit.models.registry import MODELS as MODEL_TYPES
from detkit.models.svm_detector import SVMDetector

IMAGES, SEED = 8, 0
SHORT, LONG = 96, 144  # of images of 128 to 160 pixels
REGIONS = {"freeze_stages": 0, "freeze_norms": False, "batch_size_per_image": 32, "size": [SHORT, LONG], "pool_size": 4}
RPN = {
    "scales": [2.0, 4.0, 7.0],
    "rpn_width": 64,
    "min_size": 4.0,
    "pre_nms_top_n": 200,
    "post_nms_top_n": 60,
    "test_pre_nms_top_n": 200,
    "test_post_nms_top_n": 60,
}
# SVMs: the published C is for thousands of windows; two stars among 400 would stay on the wrong side of the margin
MODELS: dict[str, dict[str, Any]] = {
    "rcnn": {"crop": 48, "context": 4, "pool_size": 3, "batch_size_per_image": 8, "svm_c": 0.1},
    "sppnet": {"scales": [SHORT], "frozen": False, "pyramid": [3, 2, 1], "batch_size_per_image": 32, "svm_c": 0.1},
    "fast_rcnn": REGIONS,
    "faster_rcnn": {**REGIONS, **RPN},
    "mask_rcnn": {**REGIONS, **RPN, "neck": "none", "mask_pool_size": 7, "mask_convs": 1, "mask_channels": 32},
    "rfcn": {**REGIONS, **RPN, "batch_size_per_image": 48, "pool_size": 3, "reduced": 256},
    "retinanet": {
        "size": [SHORT, LONG],
        "freeze_stages": 0,
        "freeze_norms": False,
        "channels": 48,
        "convs": 1,
        "size_divisor": 32,
        "scales": [2.0, 2.8],
    },
    "yolov1": {"size": 128, "feature": "c4", "convolutions": [[96, 3, 1]], "head": "conv"},
    "yolov2": {
        "size": 128,
        "train_sizes": [112, 144],
        "feature": "c4",
        "convolutions": [[64, 3, 1]],
        "passthrough": 16,
        "joined": [[64, 3, 1]],
        "anchors": [[1.6, 1.5], [2.8, 2.8], [4.4, 4.4]],
        "prior_images": 160,
    },
    "yolov3": {
        "size": 128,
        "train_sizes": [128, 160],
        "features": ["c3", "c4"],
        "convolutions": [[[64, 3, 1], [32, 1, 1], [64, 3, 1]], [[64, 3, 1]]],
        "reduced": [32],
        "anchors": [[23.0, 23.0], [31.0, 31.0], [41.0, 40.0], [48.0, 52.0], [62.0, 56.0], [71.0, 73.0]],
    },
    "ssd": {
        "size": 128,
        "extras": [[64, 128, 3, 2, 1]],
        "min_sizes": [18.0, 30.0, 50.0, 76.0],
        "max_sizes": [30.0, 50.0, 76.0, 100.0],
        "aspect_ratios": [[2.0]] * 4,
    },
}
RECIPE = {
    "iterations": 200,
    "batch": IMAGES,
    "optimizer": "adamw",
    "lr": 0.002,
    "weight_decay": 0.0,
    "schedule": "cosine",
    "warmup": 20,
    "clip": 10.0,
    "workers": 0,
    "device": "cpu",
}
DETECT = {"score_threshold": 0.01, "nms_iou": 0.45, "detections_per_image": 50}
MARGINS = {"score_threshold": -2.0, "nms_iou": 0.3, "detections_per_image": 50}  # of SVMs


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the images and a store of regions near their objects and anywhere."""
    folder = tmp_path_factory.mktemp("overfit")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        draw_shapes(folder / "shapes", {"train": IMAGES}, SEED)
        dataset = VOCDataset([(folder / "shapes", "train")])
    random = np.random.default_rng(0)
    boxes = []
    for row in range(len(dataset)):
        record = dataset.record(row)
        height, width = record.height, record.width
        objects = record.annotations.boxes
        sides = np.tile(objects[:, 2:] - objects[:, :2], 2)
        near = [objects + random.uniform(-0.15, 0.15, objects.shape) * sides for _ in range(6)]
        low = random.uniform(0, 0.8, (30, 2))
        anywhere = np.concatenate([low, low + random.uniform(0.1, 0.6, (30, 2))], 1) * np.array([width, height] * 2)
        boxes.append(np.concatenate([*near, anywhere]).clip(0, (width, height) * 2).astype(np.float32))
    ids = [dataset.record(row).id for row in range(len(dataset))]
    write_store(folder / "regions.npz", ids, boxes, manifest=make_manifest("near_objects", {}, ids))
    return folder


@pytest.mark.parametrize("model", MODELS)
def test_eight_images_are_learnt_by_heart(model: str, root: Path, tmp_path: Path) -> None:
    detector_type = MODEL_TYPES.get(model)
    config = {
        "model": {"name": model, "backbone": {"name": "tiny"}, **MODELS[model]},
        "data": {
            "format": "voc",
            "root": str(root / "shapes"),
            "train": ["train"],
            "test": ["train"],
            "difficult": False,
            "cache": True,
            "proposals": [str(root / "regions.npz")] if detector_type.takes_proposals else [],
        },
        "train": RECIPE,
        "detect": MARGINS if issubclass(detector_type, SVMDetector) else DETECT,
        "evaluate": {"metric": "voc07", "batch": IMAGES},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    folder = train(str(tmp_path / "config.yaml"), [], str(tmp_path / "run"))
    losses = [
        line["loss"] for line in map(json.loads, (folder / "log.jsonl").read_text().splitlines()) if "loss" in line
    ]
    assert losses[-1] < 0.3 * losses[0], losses
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["images"] == IMAGES
    assert metrics["mAP"] >= 0.95, metrics["AP"]
    if detector_type.takes_masks:
        assert metrics["masks"]["AP50"] >= 0.9, metrics["masks"]
