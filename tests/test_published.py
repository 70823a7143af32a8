"""What the published recipes of region detectors say, against the authors' code."""

from pathlib import Path

import pytest
import torch

from detkit.config import Config
from detkit.experiment import load_config
from detkit.models import postprocess
from detkit.ops import box_iou
from detkit.structures import Predictions
from tests.builders import images_of

CONFIGS = Path(__file__).parents[1] / "configs" / "voc"


def recipe(name: str) -> Config:
    return load_config(CONFIGS / f"{name}.yaml")


@pytest.mark.parametrize("name", ["fast_rcnn_vgg16", "fast_rcnn_alexnet"])
def test_fast_rcnn_detects_the_best_100_of_each_class(name: str) -> None:
    """Before NMS, however low their scores; afterwards nothing is cut."""
    settings = recipe(name).detect
    generator = torch.Generator().manual_seed(0)
    low = torch.rand(1, 150, 20, 2, generator=generator) * 400
    boxes = torch.cat((low, low + 40), -1)
    scores = (torch.randn(1, 150, 21, generator=generator) * 4).softmax(-1)[..., :20]
    images = images_of(torch.zeros(1, 3, 500, 500, dtype=torch.uint8))
    found, _ = postprocess(Predictions(boxes, scores), images, settings)
    expected = set()
    for label in range(20):
        kept: list[int] = []
        for row in scores[0, :, label].argsort(descending=True)[:100].tolist():
            others = boxes[0, kept, label]
            if not kept or box_iou(boxes[0, row, label].unsqueeze(0), others).max() <= 0.3:
                kept.append(row)
        expected |= {(label, float(scores[0, row, label])) for row in kept}
    assert len(expected) > 1000
    assert min(score for _, score in expected) < 1e-4
    assert set(zip(found.labels[found.valid].tolist(), found.scores[found.valid].tolist())) == expected


@pytest.mark.parametrize("name", ["fast_rcnn_vgg16", "fast_rcnn_alexnet"])
def test_fast_rcnn_uses_all_regions(name: str) -> None:
    config = recipe(name)
    assert config.data.proposal_count is None
    assert (config.train.batch, config.model.batch_size_per_image, config.model.bg_iou) == (2, 64, [0.1, 0.5])
    assert (config.train.weight_decay, config.train.bias_decay, config.train.bias_lr) == (5e-4, 0, 2)


@pytest.mark.parametrize("name", ["faster_rcnn_vgg16_alternating", "faster_rcnn_zf"])
def test_alternating_training(name: str) -> None:
    config = recipe(name)
    assert config.model.training == "alternating"
    assert (config.model.batch_size_per_image, config.model.bg_iou) == (64, [0, 0.5])
    assert (config.model.pre_nms_top_n, config.model.post_nms_top_n) == (None, 2000)
    assert (config.model.test_pre_nms_top_n, config.model.test_post_nms_top_n) == (6000, 300)
    assert (config.train.batch, config.train.iterations, config.train.milestones) == (2, 40000, [30000])


@pytest.mark.parametrize("name", ["vgg16", "vgg16_0712", "vgg16_alternating", "zf"])
def test_faster_rcnn_decays_biases(name: str) -> None:
    assert recipe(f"faster_rcnn_{name}").train.bias_decay == recipe(f"faster_rcnn_{name}").train.weight_decay == 5e-4


@pytest.mark.parametrize("name", ["fast_rcnn_vgg16", *(f"faster_rcnn_{net}" for net in ("vgg16", "vgg16_0712", "zf"))])
def test_networks_whose_geometry_is_caffes_are_pooled_as_published(name: str) -> None:
    assert recipe(name).model.geometry == "published"
