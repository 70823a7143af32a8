"""YOLOv2's structure against the paper's figures, its sizes in training, and its anchors."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from detkit.backbones.describe import count_flops, count_parameters
from detkit.cli import run_command
from detkit.experiment import load_config
from detkit.models import build_detector
from detkit.models.yolov2 import VOC_ANCHORS, YOLOv2, YOLOv2Config
from detkit.ops import BACKGROUND
from detkit.structures import Targets
from tests import zoo
from tests.builders import images_of, objects_of, random_image
from tests.data.roots import make_root, xml

CONFIGS = Path(__file__).parents[2] / "configs"


def published(**keys: Any) -> YOLOv2:
    with torch.device("meta"):
        detector = build_detector(YOLOv2Config(**keys), tuple(f"class{number}" for number in range(20)))
    assert isinstance(detector, YOLOv2)
    return detector.eval()


def test_the_papers_network() -> None:
    """845 boxes at 416 pixels, 23 convolutions with the passthrough's, 29.5 billion operations in darknet's count."""
    detector = published()
    raw = detector.network(torch.empty(2, 3, 416, 416, device="meta"))
    assert raw.sides == (13, 13)
    assert raw.raw.shape == (2, 845, 25)
    assert detector.network(torch.empty(1, 3, 608, 608, device="meta")).raw.shape[1] == 19 * 19 * 5
    convolutions = [layer for layer in detector.modules() if isinstance(layer, torch.nn.Conv2d)]
    assert len(convolutions) == 18 + 2 + 1 + 1 + 1
    assert convolutions[-2].in_channels == 4 * 64 + 1024
    # yolov2-voc.weights: 202,704,260 bytes, 16 of them the header, with mean and variance of each norm
    norms = sum(layer.num_features for layer in detector.modules() if isinstance(layer, torch.nn.BatchNorm2d))
    assert (count_parameters(detector) + 2 * norms) * 4 + 16 == 202_704_260
    flops = count_flops(lambda: detector.network(torch.empty(1, 3, 416, 416, device="meta")))
    assert flops / 1e9 == pytest.approx(29.34, abs=0.05)
    # as in the paper, without the convolution that darknet has: 26 x 26 x 512 becomes 13 x 13 x 2048
    assert published(passthrough=None).joined[0][0].in_channels == 2048 + 1024  # pyright: ignore


def test_sizes_in_training_are_multiples_of_32_drawn_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    assert published().train_sizes == list(range(320, 609, 32))
    assert published().train_input.size == (608, 608)
    assert published().input.size == (416, 416)
    detector: Any = zoo.build("yolov2", train_sizes=[96, 160])
    assert detector.train_input.size == (160, 160)
    images, targets = images_of(random_image(160, 160).repeat(2, 1, 1, 1)), objects_of([[40.0, 40, 120, 80]], [])
    seen: list[tuple[tuple[int, int], Tensor]] = []
    assign = detector.assign

    def watch(raw: Any, moved: Targets) -> Any:
        seen.append((raw.size, moved.boxes[0, 0] / raw.size[0]))
        return assign(raw, moved)

    monkeypatch.setattr(detector, "assign", watch)
    for seed in range(12):
        torch.manual_seed(seed)
        losses = detector.train().losses(images, targets)
        assert all(loss.isfinite() for loss in losses.values())
    assert {size for size, _ in seen} == {(96, 96), (128, 128), (160, 160)}
    for _, box in seen:
        torch.testing.assert_close(box, torch.tensor([0.25, 0.25, 0.75, 0.5]))
    torch.manual_seed(0)
    again = detector.losses(images, targets)
    torch.manual_seed(0)
    torch.testing.assert_close(detector.losses(images, targets), again)
    # in testing they stay as they are
    seen.clear()
    detector.eval().losses(images, targets)
    assert seen[0][0] == (160, 160)


def test_boxes_learn_their_anchors_at_first() -> None:
    detector: Any = zoo.build("yolov2", prior_images=4).train()
    images, targets = zoo.sample_images(detector), zoo.some_objects(detector)
    found = [detector.losses(images, targets)["prior"].item() for _ in range(3)]
    assert found[0] > 0
    assert found[1] > 0
    assert found[2] == 0
    assert detector.seen == 6
    other: Any = build_detector(detector.config, detector.classes)
    other.load_state_dict(detector.state_dict())
    assert other.seen == 6
    detector.eval().losses(images, targets)
    assert detector.seen == 6


def test_an_object_is_its_cells_and_its_most_similar_anchors() -> None:
    detector: Any = zoo.build("yolov2", anchors=[[1.0, 1.0], [2.0, 1.0]])
    raw = detector.network(torch.zeros(1, 3, 96, 96))
    assert raw.sides == (3, 3)  # of 32 pixels
    box = torch.tensor([[[40.0, 10, 90, 40]]])
    match = detector.assign(raw, Targets(box, torch.tensor([[1]]), torch.zeros(1, 1, dtype=torch.bool)))
    place = (0 * 3 + 2) * 2 + 1
    assert match.index[0, place] == 0
    assert (match.index[0] == BACKGROUND).sum() == 17


def test_a_score_is_objectness_times_softmax() -> None:
    detector: Any = zoo.build("yolov2").eval()
    raw = detector.network(torch.zeros(1, 3, 96, 96))
    values = torch.zeros_like(raw.raw)
    values[0, 0, 4:] = torch.tensor([1.0, 2.0, 0.0])
    scores = detector.decode(raw._replace(raw=values)).scores[0]
    expected = torch.tensor(1.0).sigmoid() * torch.tensor([2.0, 0.0]).softmax(0)
    torch.testing.assert_close(scores[0], expected)
    torch.testing.assert_close(scores[1], torch.tensor([0.25, 0.25]))


def test_the_recipes() -> None:
    voc = load_config(CONFIGS / "voc/yolov2.yaml")
    assert (voc.model.size, voc.model.train_sizes, voc.model.anchors) == (416, [320, 608], VOC_ANCHORS)
    assert (voc.train.iterations, voc.train.batch, voc.train.milestones) == (80200, 64, [40000, 60000])
    shapes = load_config(CONFIGS / "shapes/yolov2.yaml")
    with torch.device("meta"):
        detector: Any = build_detector(shapes.model, ("a",))
    assert detector.features == ["c3", "c4"]


def test_anchors_of_a_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Images of 60x40 in a stretched input of 120 pixels, cells of 20: the shares of the sides times 6."""
    small, wide = (1, 1, 10, 10), (11, 1, 50, 20)
    both = xml([("a", small), ("a", wide), ("b", (1, 1, 60, 40), 1, 0)])  # the last is difficult
    root = make_root(tmp_path / "set", {"1": both, "2": xml([("a", (1, 31, 10, 40))])}, {"train": ["1", "2"]})
    arguments = ["anchors", "--root", str(root), "--split", "train", "--size", "120", "--stride", "20"]
    assert run_command("dataset", [*arguments, "--count", "2"]) == 0
    first, second = capsys.readouterr().out.splitlines()[:2]
    assert first == "model.anchors=[[1.0,1.5],[4.0,3.0]]"
    assert "3 objects" in second
    assert "1.000 on average" in second
    assert run_command("dataset", [*arguments, "--count", "3"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--count 3: set/train: 2 different shapes are too few for 3 centroids" in line
