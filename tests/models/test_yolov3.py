"""YOLOv3's structure against the published figures, its letterbox, its sizes in training, and its anchors."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from detkit.backbones import describe_backbone
from detkit.backbones.describe import count_flops, count_parameters
from detkit.backbones.registry import build
from detkit.cli import run_command
from detkit.data.augment import Chain
from detkit.errors import UserError
from detkit.experiment import load_config
from detkit.models import build_detector
from detkit.models.yolov1 import UNIT
from detkit.models.yolov3 import COCO_ANCHORS, YOLOv3, YOLOv3Config, shared_out
from detkit.ops import BACKGROUND
from detkit.structures import Images, InputSpec, Targets
from tests import zoo
from tests.builders import images_of, objects_of, random_image
from tests.data.roots import make_root, xml

CONFIGS = Path(__file__).parents[2] / "configs"
HEADER = 20  # bytes


def published(config: YOLOv3Config, classes: int = 80) -> YOLOv3:
    with torch.device("meta"):
        detector = build_detector(config, tuple(f"class{number}" for number in range(classes)))
    assert isinstance(detector, YOLOv3)
    return detector.eval()


def bytes_of(network: torch.nn.Module) -> int:
    """Size of the network's file of darknet's, with mean and variance of each norm."""
    norms = sum(layer.num_features for layer in network.modules() if isinstance(layer, torch.nn.BatchNorm2d))
    return (count_parameters(network) + 2 * norms) * 4 + HEADER


def test_the_papers_network() -> None:
    """10,647 boxes at 416 pixels; billions of operations, and bytes of yolov3.weights, as on the authors' page."""
    detector = published(YOLOv3Config())
    assert bytes_of(detector) == 248_007_048
    convolutions = [layer for layer in detector.modules() if isinstance(layer, torch.nn.Conv2d)]
    assert len(convolutions) == 75
    for size, boxes, operations in ((320, 6300, 38.97), (416, 10_647, 65.86), (608, 22_743, 140.69)):
        pixels = torch.empty(1, 3, size, size, device="meta")
        raw = detector.network(pixels)
        assert raw.raw.shape == (1, boxes, 85)
        assert raw.sides == [(size // stride,) * 2 for stride in (32, 16, 8)]
        assert count_flops(lambda pixels=pixels: detector.network(pixels)) / 1e9 == pytest.approx(operations, abs=0.01)
    assert detector.counts == [3, 3, 3]
    flops = detector.flops(300, 500)
    assert flops is not None
    assert flops.image / 1e9 == pytest.approx(65.86, abs=0.01)


def test_the_tiny_network() -> None:
    config = load_config(CONFIGS / "voc/yolov3_tiny.yaml")
    detector = published(config.model)
    assert bytes_of(detector) == 35_434_956
    raw = detector.network(torch.empty(1, 3, 416, 416, device="meta"))
    assert (raw.sides, raw.raw.shape[1]) == ([(13, 13), (26, 26)], 2535)
    assert count_flops(lambda: detector.network(torch.empty(1, 3, 416, 416, device="meta"))) / 1e9 == pytest.approx(
        5.56, abs=0.01
    )


def test_darknet53() -> None:
    """Tables 1 and 2: 53 layers, the last of which is left out here, 18.7 billion operations at 256 pixels; the numbers
    of 52 convolutions in darknet53.conv.74."""
    with torch.device("meta"):
        backbone = build("darknet53")
    assert bytes_of(backbone) == 162_482_580
    summary = describe_backbone("darknet53", 256)
    assert summary.flops / 1e9 == pytest.approx(18.57, abs=0.01)  # and 2 million of the last
    assert [(info.name, info.channels, info.stride) for info in summary.features] == [
        *(("c2", 128, 4), ("c3", 256, 8), ("c4", 512, 16), ("c5", 1024, 32)),
    ]
    assert len(backbone.layer_groups()) == 6


def test_a_letterbox_is_the_input() -> None:
    """Images are as large as fits, rounded down, in the middle of grey; boxes are in the image's pixels."""
    spec = published(YOLOv3Config()).input
    assert str(spec) == "416x416, letterboxed"
    sides = ((375, 500), (500, 375), (416, 416), (333, 500), (1, 5000), (100, 77))
    assert [spec.fit(*pair) for pair in sides] == [(312, 416), (416, 312), (416, 416), (277, 416), (1, 416), (416, 320)]
    detector: Any = zoo.build("yolov3").eval()
    pixels = random_image(60, 96)
    canvas = torch.full((1, 3, 96, 96), 127.5)
    canvas[:, :, 18:78] = pixels
    seen: list[Tensor] = []
    network = detector.network
    detector.network = lambda pixels: (seen.append(pixels), network(pixels))[1]
    size, whole = torch.tensor([[60, 96]]), torch.tensor([[96, 96]])
    with torch.inference_mode():
        found = detector.predict(Images(pixels, size, size, ("a",)))
        expected = detector.predict(Images(canvas.round().to(torch.uint8), whole, whole, ("a",)))
    torch.testing.assert_close(seen[0], detector.normalise(canvas))
    torch.testing.assert_close(found.boxes + torch.tensor([0.0, 18, 0, 18]), expected.boxes, rtol=0, atol=0.1)
    torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=0.01)
    # larger ones, as of another scale, get a larger canvas
    with torch.inference_mode():
        large = detector.predict(images_of(random_image(100, 128)))
    assert seen[-1].shape[-2:] == (128, 128)
    assert large.boxes.shape[1] == sum((128 // stride) ** 2 for stride in (32, 16, 8))


def test_sizes_and_places_in_training_are_drawn_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    defaults = published(YOLOv3Config())
    assert defaults.train_sizes == list(range(320, 609, 32))
    assert defaults.train_input == InputSpec((608, 608), *UNIT, resize="letterbox")
    detector: Any = zoo.build("yolov3", train_sizes=[96, 160])
    pixels = torch.full((2, 3, 80, 160), 200, dtype=torch.uint8)
    size = torch.tensor([[80, 160], [80, 100]])
    images, targets = Images(pixels, size, size, ("a", "b")), objects_of([[40.0, 20, 120, 60]], [[0.0, 0, 100, 80]])
    seen: list[tuple[tuple[int, int], Tensor, Tensor]] = []
    assign, network = detector.assign, detector.network

    def watch(raw: Any, moved: Targets) -> Any:
        seen.append((raw.size, canvases[-1], moved.boxes[:, 0]))
        return assign(raw, moved)

    canvases: list[Tensor] = []
    monkeypatch.setattr(detector, "network", lambda pixels: (canvases.append(pixels), network(pixels))[1])
    monkeypatch.setattr(detector, "assign", watch)
    for seed in range(12):
        torch.manual_seed(seed)
        losses = detector.train().losses(images, targets)
        assert all(loss.isfinite() for loss in losses.values())
    assert {size for size, _, _ in seen} == {(96, 96), (128, 128), (160, 160)}
    light = detector.normalise(torch.full((1, 3, 1, 1), 200))[0, 0, 0, 0]
    for (height, _), canvas, boxes in seen:
        factor = height / 160
        torch.testing.assert_close(boxes[0, 2:] - boxes[0, :2], torch.tensor([80.0, 40]) * factor)
        # the second image's object is the whole of it: what is light of the canvas
        rows, columns = ((canvas[1, 0] - light).abs() < 0.01).nonzero(as_tuple=True)
        lit = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        torch.testing.assert_close(boxes[1], lit.float(), rtol=0, atol=1.01)
    begins = torch.stack([boxes[1, :2] / height for (height, _), _, boxes in seen])
    assert (begins.std(0) > 0.05).all()
    # in testing the canvas is as large as the images, and these in the middle
    seen.clear()
    losses = detector.eval().losses(images, targets)
    assert (seen[0][0], seen[0][2][0].tolist()) == ((160, 160), [40, 20, 120, 60])
    assert (canvases[-1][0, 0, 40:120] == canvases[-1][0, 0, 60, 80]).all()
    assert losses["centre"] > 0


def test_an_object_is_learned_on_the_map_of_its_anchor() -> None:
    detector: Any = zoo.build("yolov3").eval()
    raw = detector.compute(torch.zeros(1, 3, 60, 96), torch.tensor([[60, 96]]))
    assert raw.sides == [(3, 3), (6, 6), (12, 12)]
    # of 16 x 20, 32 x 30 and 50 x 60, finest first
    boxes = torch.tensor([[[40.0, 10, 90, 55], [2, 2, 20, 22], [60, 30, 92, 58]]])
    match = detector.assign(raw, Targets(boxes, torch.tensor([[1, 0, 1]]), torch.zeros(1, 3, dtype=torch.bool)))
    # the image begins 18 pixels down
    first = 1 * 3 + 2
    third = 9 + 3 * 6 + 4
    second = 9 + 36 + 3 * 12 + 1
    assert match.place[0].tolist() == [[first, -1, -1], [-1, -1, third], [-1, second, -1]]
    assert match.index[0, [first, second, third]].tolist() == [0, 1, 2]
    assert (match.index[0] == BACKGROUND).sum() == 9 + 36 + 144 - 3


def test_a_score_is_objectness_times_each_classs_probability() -> None:
    detector: Any = zoo.build("yolov3").eval()
    raw = detector.network(torch.zeros(1, 3, 96, 96))
    values = torch.zeros_like(raw.raw)
    values[0, 0, 4:] = torch.tensor([1.0, 2.0, 0.0])
    scores = detector.decode(raw._replace(raw=values)).scores[0]
    torch.testing.assert_close(scores[0], torch.tensor(1.0).sigmoid() * torch.tensor([2.0, 0.0]).sigmoid())
    torch.testing.assert_close(scores[1], torch.tensor([0.25, 0.25]))


def test_anchors_are_shared_out() -> None:
    assert shared_out(9, 3) == [[6, 7, 8], [3, 4, 5], [0, 1, 2]]
    assert shared_out(5, 2) == [[3, 4], [0, 1, 2]]
    assert shared_out(1, 2) == [[], [0]]
    overlapping: Any = zoo.build("yolov3", masks=[[1, 2], [1], [0, 1]])
    assert overlapping.counts == [2, 1, 2]
    assert overlapping.slots.tolist() == [[-1, 0, 1], [-1, 0, -1], [0, 1, -1]]
    assert overlapping.predict(zoo.sample_images(overlapping)).scores.shape[1] == 2 * 9 + 36 + 2 * 144


def test_a_backbone_of_fewer_maps_has_fewer_scales() -> None:
    with torch.device("meta"):
        detector: Any = zoo.build("yolov3", "alexnet")
    assert len(detector.scales) == 1
    assert detector.counts == [3]
    assert detector.class_layers == ("scales.0.head.",)


def test_the_recipes() -> None:
    voc = load_config(CONFIGS / "voc/yolov3.yaml")
    assert (voc.model.size, voc.model.train_sizes, voc.model.anchors) == (416, [320, 608], COCO_ANCHORS)
    assert (voc.train.iterations, voc.train.batch, voc.train.milestones) == (50200, 64, [40000, 45000])
    for name in ("shapes/yolov3", "custom/yolov3_mobilenet_v2"):
        config = load_config(CONFIGS / f"{name}.yaml", ["data.root=a", "model.backbone.weights=null"])
        with torch.device("meta"):
            detector: Any = build_detector(config.model, ("a",))
        assert detector.features[0] in ("c3", "stride8")
        assert sum(detector.counts) == len(config.model.anchors)


def test_jitter_is_darknets() -> None:
    """Each side of the image changes by a factor of U(.7, 1.3), by itself; nothing is cut off."""
    config = load_config(CONFIGS / "voc/yolov3.yaml")
    jitter = Chain(list(config.data.augment)[:1], published(YOLOv3Config()).train_input)
    image, box, factors = np.full((240, 400, 3), 200, np.uint8), np.array([(0.2, 0.1, 0.7, 0.9)]), []
    for seed in range(200):
        out, boxes, _ = jitter(image, box, (0, seed), 1)
        factors.append((out.shape[1] / 400, out.shape[0] / 240))
        np.testing.assert_allclose(boxes, box, atol=0.015)  # in whole pixels
        assert (out == 200).all()
    factors = np.array(factors)
    assert factors.min() > 0.67
    assert factors.max() < 1.33
    np.testing.assert_allclose(factors.mean(0), 1, atol=0.04)
    np.testing.assert_allclose(factors.std(0), 0.6 / 12**0.5, atol=0.03)
    assert abs(np.corrcoef(factors.T)[0, 1]) < 0.25


def test_anchors_of_a_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Images of 60x40 are 120x80 in an input of 120 pixels."""
    both = xml([("a", (1, 1, 10, 10)), ("a", (11, 1, 50, 20))])
    root = make_root(tmp_path / "set", {"1": both, "2": xml([("a", (1, 31, 10, 40))])}, {"train": ["1", "2"]})
    arguments = ["anchors", "--root", str(root), "--split", "train", "--size", "120", "--letterbox", "--count", "2"]
    assert run_command("dataset", arguments) == 0
    first, second = capsys.readouterr().out.splitlines()[:2]
    assert first == "model.anchors=[[20.0,20.0],[80.0,40.0]]"
    assert "in pixels, at 120x120" in second


def test_a_file_takes_no_larger_images() -> None:
    detector: Any = zoo.build("yolov3").eval()
    part = detector.export_parts()[""]
    detector.use_parts({"": lambda **inputs: part.network(**inputs)})
    assert detector.predict(zoo.sample_images(detector)).scores.shape[:2] == (2, 9 + 36 + 144)
    with pytest.raises(UserError, match="images of 128x100, but the exported network takes 96x96, letterboxed"):
        detector.predict(images_of(random_image(100, 128)))
