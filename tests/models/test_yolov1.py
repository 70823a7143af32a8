"""YOLOv1: the paper's shapes, both heads on any backbone, and what its outputs mean."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from detkit.config import BackboneConfig, DetectConfig
from detkit.errors import UserError
from detkit.experiment import load_config
from detkit.models import build_detector, postprocess
from detkit.models.yolov1 import YOLOv1, YOLOv1Config, published_convolutions
from detkit.structures import Images, Targets
from tests.builders import images_of, random_image

CONFIGS = Path(__file__).parents[2] / "configs"
CONV = YOLOv1Config(
    backbone=BackboneConfig("tiny"), size=96, feature="c4", convolutions=[[32, 3, 1], [32, 3, 1]], head="conv"
)
FC = replace(CONV, head="fc", hidden=[64], grid=5)
LOCAL = replace(CONV, head="fc", hidden=[], local=8, boxes=3)


def build(config: YOLOv1Config, classes: tuple[str, ...] = ("a", "b")) -> YOLOv1:
    torch.manual_seed(0)
    detector = build_detector(config, classes)
    assert isinstance(detector, YOLOv1)
    return detector


def objects() -> tuple[Images, Targets]:
    images = images_of(random_image(96, 96).repeat(2, 1, 1, 1))
    box = torch.tensor([[[10.0, 20, 60, 80], [50, 10, 90, 40]], [[0.0, 0, 0, 0], [0, 0, 0, 0]]])
    labels = torch.tensor([[1, 0], [-1, -1]])
    return images, Targets(box, labels, torch.zeros(2, 2, dtype=torch.bool))


def test_the_papers_network_has_its_layers_and_its_7_x_7_x_30_numbers() -> None:
    config = load_config(CONFIGS / "voc/yolov1.yaml", ["model.backbone.weights=null"])
    # the fully connected layers alone have 210 million weights; the shape of their output needs a few
    detector = build(replace(config.model, hidden=[8]), tuple(map(str, range(20))))
    convolutions = [layer for layer in detector.modules() if isinstance(layer, nn.Conv2d)]
    assert len(convolutions) == 24
    assert config.model.hidden == [4096]
    assert detector.input.size == (448, 448)
    assert (detector.input.mean, detector.input.std) == ((0, 0, 0), (1, 1, 1))
    assert detector.grid == 7
    assert detector.head.last.out_features == 7 * 7 * 30
    assert detector.head[1].in_features == 7 * 7 * 1024


def test_the_published_recipes_have_no_batch_norm_and_no_cap() -> None:
    for name in ("yolov1", "yolov1_fast"):
        config = load_config(CONFIGS / f"voc/{name}.yaml", ["model.backbone.weights=null"])
        detector = build(replace(config.model, hidden=[8]), tuple(map(str, range(20))))
        assert not any(isinstance(layer, nn.BatchNorm2d) for layer in detector.modules())
        linear = [layer.out_features for layer in detector.head.modules() if isinstance(layer, nn.Linear)]
        assert linear == [*([256] if name == "yolov1_fast" else []), 8, 1470]
        if name == "yolov1_fast":  # linear, as in yolo-tiny.cfg of November 2015
            assert [type(layer) for layer in detector.head][1:3] == [nn.Linear, nn.Linear]
        assert config.detect.top_k >= 98
        assert config.detect.detections_per_image >= 98 * 20


@pytest.mark.parametrize(("name", "grid"), [("yolov1_vgg16", 7), ("yolov1_resnet50", 14)])
def test_yolo_on_other_networks(name: str, grid: int) -> None:
    config = load_config(CONFIGS / f"voc/{name}.yaml", ["model.backbone.weights=null"])
    detector = build(replace(config.model, hidden=[8]), tuple(map(str, range(20))))
    assert detector.grid == grid
    assert config.detect.top_k >= 2 * grid**2
    assert config.detect.detections_per_image >= 20 * 2 * grid**2


def test_the_recipes_are_the_papers() -> None:
    for name, layers in (("yolov1", 24), ("yolov1_fast", 9)):
        config = load_config(CONFIGS / f"voc/{name}.yaml", ["model.backbone.weights=null"])
        detector = build(replace(config.model, hidden=[8]), tuple(map(str, range(20))))
        assert sum(isinstance(layer, nn.Conv2d) for layer in detector.modules()) == layers
        assert detector.grid == 7
        epoch = 16551 / config.train.batch
        lengths = [config.train.milestones[0] - config.train.warmup, 27754 - 19996, config.train.iterations - 27754]
        assert [round(length / epoch, 2) for length in lengths] == [75, 30, 30]
        assert not config.data.difficult
    shapes = load_config(CONFIGS / "shapes/yolov1.yaml")
    assert build(shapes.model).grid == 8


def test_four_convolutions_lead_to_about_seven_cells() -> None:
    assert published_convolutions(14) == [[1024, 3, 1], [1024, 3, 2], [1024, 3, 1], [1024, 3, 1]]
    for side in range(1, 113):
        strides = [stride for _, _, stride in published_convolutions(side)]
        for stride in strides:
            side = (side + stride - 1) // stride
        assert side < 14
        assert side >= 7 or strides == [1, 1, 1, 1]


@pytest.mark.parametrize("config", [CONV, FC, LOCAL], ids=["conv", "fc", "local"])
@pytest.mark.parametrize("backbone", ["tiny", "resnet18", "vgg16", "darknet_yolov1_tiny"])
def test_both_heads_on_other_backbones(config: YOLOv1Config, backbone: str) -> None:
    feature = {"vgg16": "conv5_3"}.get(backbone, "c4")
    detector = build(replace(config, backbone=BackboneConfig(backbone), feature=feature))
    assert detector.grid == (5 if config is FC else 6)
    images, targets = objects()
    losses = detector(images, targets)
    assert set(losses) == {"centre", "side", "object", "no_object", "class"}
    sum(losses.values()).backward()
    for name, parameter in detector.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    predictions = detector.eval()(images)
    count = detector.grid**2 * detector.config.boxes
    assert predictions.boxes.shape == (2, count, 4)
    assert predictions.scores.shape == (2, count, 2)
    assert (predictions.scores >= 0).all()
    postprocess(predictions, images, DetectConfig())


def test_backbones_bring_their_normalisation() -> None:
    assert build(replace(CONV, backbone=BackboneConfig("darknet_yolov1_tiny"))).input.mean == (0, 0, 0)
    assert build(CONV).input.mean == (0.485, 0.456, 0.406)
    assert build(replace(CONV, mean=(0.5, 0.5, 0.5))).input.mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("config", [CONV, replace(FC, grid=6)], ids=["conv", "fc"])
def test_an_output_set_by_hand_is_the_detection_that_it_says(config: YOLOv1Config) -> None:
    """Cell of row 4 and column 1, second box: centre (1.5, 4.25) / 6, sides .25 and .36, confidence .9, class b."""
    detector = build(config).eval()
    last = detector.head if config.head == "conv" else detector.head.last
    assert isinstance(last, nn.Conv2d | nn.Linear)
    assert last.bias is not None
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    cell = 4 * 6 + 1
    box = torch.tensor([0.5, 0.25, 0.5, 0.6])
    with torch.no_grad():
        if config.head == "conv":  # 2 class scores, 2 confidences, 2 boxes: alike in all cells
            last.bias.copy_(torch.tensor([0.2, 0.5, 0, 0.9, 0, 0, 0, 0, *box]))
        else:  # the class scores of all cells, then all confidences, then all boxes
            last.bias[cell * 2 : cell * 2 + 2] = torch.tensor([0.2, 0.5])
            last.bias[36 * 2 + cell * 2 + 1] = 0.9
            start = 36 * 4 + (cell * 2 + 1) * 4
            last.bias[start : start + 4] = box
    predictions = detector.predict(images_of(random_image(96, 96)))
    index = cell * 2 + 1
    x, y, w, h = 24.0, 68.0, 24.0, 34.56
    expected = torch.tensor([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
    torch.testing.assert_close(predictions.boxes[0, index], expected)
    torch.testing.assert_close(predictions.scores[0, index], torch.tensor([0.18, 0.45]))
    assert (predictions.scores[0, index - 1] == 0).all()


def test_two_negative_numbers_are_no_detection() -> None:
    detector = build(CONV).eval()
    assert isinstance(detector.head, nn.Conv2d)
    nn.init.zeros_(detector.head.weight)
    nn.init.constant_(detector.head.bias, -0.9)  # pyright: ignore[reportArgumentType]
    assert (detector.predict(images_of(random_image(96, 96))).scores == 0).all()


def test_images_without_objects_teach_only_that_nothing_is_there() -> None:
    detector = build(CONV)
    images = images_of(random_image(96, 96))
    none = Targets(torch.zeros(1, 0, 4), torch.zeros(1, 0, dtype=torch.int64), torch.zeros(1, 0, dtype=torch.bool))
    losses = detector(images, none)
    assert losses["no_object"] > 0
    assert sum(losses.values()).item() == losses["no_object"].item()
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in detector.parameters())


def test_difficult_objects_are_neither_learnt_nor_unlearnt() -> None:
    detector = build(CONV).eval()
    images, targets = objects()
    ignored = replace(targets, ignore=torch.ones(2, 2, dtype=torch.bool))
    losses = detector.losses(images, ignored)
    assert all(loss == 0 for name, loss in losses.items() if name != "no_object")
    none = replace(targets, labels=torch.full((2, 2), -1))
    # two cells of 72 have no loss
    confidence = detector.network(detector.normalise(images.pixels, images.sizes)).confidence
    cells = [3 * 6 + 2, 1 * 6 + 4]
    left_out = 0.25 * confidence[0, cells].square().sum() / 2
    torch.testing.assert_close(detector.losses(images, none)["no_object"] - losses["no_object"], left_out)


def test_objects_that_share_a_cell_take_turns() -> None:
    detector = build(replace(CONV, size=32)).eval()
    box = torch.tensor([[[2.0, 2, 14, 14], [4, 4, 12, 12]]])
    targets = Targets(box, torch.tensor([[0, 1]]), torch.zeros(1, 2, dtype=torch.bool))
    images = images_of(random_image(32, 32))
    seen = {round(detector.losses(images, targets)["side"].item(), 6) for _ in range(20)}
    assert len(seen) == 2


def test_dropout_is_in_front_of_the_last_layer_while_training() -> None:
    """Section 2.2: the share that the config says of what the last layer reads, and the rest scaled up for it."""
    images = images_of(random_image(96, 96))
    for share in (0.5, 0.2):
        detector = build(replace(FC, batch_norm=False, hidden=[2000], dropout=share))
        seen = []
        last = detector.head.last
        last.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0].detach()))
        detector.eval().predict(images)
        detector.train()
        detector.head.requires_grad_(False)
        for module in detector.backbone.modules():
            module.eval()  # its norms are those of the pass before
        detector.predict(images)
        calm, trained = seen
        dropped = (trained == 0) & (calm != 0)
        assert dropped.float().mean().item() == pytest.approx(share, abs=0.05)
        torch.testing.assert_close(trained[~dropped], calm[~dropped] / (1 - share))


def test_it_learns_an_image_by_heart() -> None:
    detector = build(replace(CONV, dropout=0.0)).train()
    images, targets = objects()
    optimizer = torch.optim.Adam(detector.parameters(), lr=0.003)
    for _ in range(120):
        optimizer.zero_grad()
        sum(detector(images, targets).values()).backward()
        optimizer.step()
    detector.train()  # two images are too few for the norms' averages
    settings = DetectConfig(score_threshold=0.5, nms_iou=0.5)
    boxes, scores, labels = postprocess(detector.predict(images), images, settings)[0].image(0)
    assert sorted(labels.tolist()) == [0, 1]
    order = labels.argsort(descending=True)
    torch.testing.assert_close(boxes[order], targets.boxes[0], rtol=0, atol=0.5)
    # the same image has objects once and once none: squares least at 1 / (1 + noobj)
    torch.testing.assert_close(scores, torch.full((2,), 1 / 1.5), rtol=0, atol=0.02)


def test_a_single_cell_and_one_image_do_not_go_together() -> None:
    config = replace(CONV, size=16)
    images, none = images_of(random_image(16, 16)), torch.zeros(1, 0, dtype=torch.int64)
    targets = Targets(torch.zeros(1, 0, 4), none, none.bool())
    with pytest.raises(UserError, match=r"train\.batch: one image a step"):
        build(config)(images, targets)
    assert build(config).eval().predict(images).scores.shape == (1, 2, 2)


def test_a_misfit_is_named() -> None:
    with pytest.raises(UserError, match=r"model\.grid: 7, but the convolutions lead to a map of 6 x 6"):
        build(replace(CONV, grid=7))
    with pytest.raises(UserError, match=r"model\.feature: tiny gives the maps c3, c4, c5, not 'c6'"):
        build(replace(CONV, feature="c6"))
    for keys, words in [
        ({"head": "dense"}, r"model\.head: 'dense' is not one of fc, conv"),
        ({"boxes": 0}, r"model\.boxes: 0 is not in \[1, 1000\]"),
        ({"convolutions": [[8, 3]]}, r"model\.convolutions: \[8, 3\] is not \[channels, odd kernel, stride\]"),
        ({"convolutions": [[8, 2, 1]]}, "odd kernel"),
        ({"dropout": 1.0}, r"model\.dropout: 1\.0 is not in"),
        ({"hidden": [0]}, r"model\.hidden: 0 is not in \[1, 100000\]"),
        ({"local": -1}, r"model\.local: -1 is not in \[0, 100000\]"),
    ]:
        with pytest.raises(UserError, match=words):
            replace(CONV, **keys)
