"""RetinaNet's structure and its choice of predictions, against the paper's figures and slow loops."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import detkit
from detkit.checkpoints import checkpoint
from detkit.experiment import load_config
from detkit.models import build_detector
from detkit.models.retinanet import RetinaNet, best_pairs
from detkit.ops import BACKGROUND, IGNORED
from detkit.structures import Targets
from tests import zoo
from tests.builders import images_of, random_image, save_checkpoint


def published(**keys: Any) -> RetinaNet:
    """The paper's network for COCO, without values."""
    with torch.device("meta"):
        detector = detkit.create_model("retinanet", classes=[f"class{number}" for number in range(80)], **keys)
    assert isinstance(detector, RetinaNet)
    return detector


def test_the_papers_network() -> None:
    """Nine anchors a place on P3 to P7, areas of 32^2 to 512^2 and up to 813^2, about 100,000 at 600 pixels."""
    detector = published()
    assert [info.name for info in detector.neck.info] == ["p3", "p4", "p5", "p6", "p7"]
    assert [info.stride for info in detector.neck.info] == [8, 16, 32, 64, 128]
    raw = detector.network(torch.empty(2, 3, 600, 1000, device="meta"))
    assert raw.sides == [(80, 128), (40, 64), (20, 32), (10, 16), (5, 8)]
    assert [x.shape for x in raw.logits] == [(2, rows * columns * 9, 80) for rows, columns in raw.sides]
    assert sum(x.shape[1] for x in raw.deltas) == 122_760
    # 4.1: the classification subnet's last layer has K A filters, the other subnet's 4 A
    assert (detector.classifier.last.out_channels, detector.regressor.last.out_channels) == (720, 36)
    assert len(detector.classifier.convs) == len(detector.regressor.convs) == 4
    assert detector.neck.pyramid.extra_blocks.p6.in_channels == 2048  # pyright: ignore
    assert published(p6="p5").neck.pyramid.extra_blocks.p6.in_channels == 256  # pyright: ignore


def test_anchors_are_those_of_the_authors_code() -> None:
    """As Detectron's generate_anchors gives them for stride 8, sizes 32, 40.3, 50.8; edges there count pixels."""
    detector = zoo.build("retinanet")
    (cell, *_) = detector.anchors([(1, 1), (1, 1), (1, 1), (1, 1), (1, 1)])  # pyright: ignore
    first, middle, last = cell.tolist()[0], cell.tolist()[4], cell.tolist()[8]
    # 8^2 at ratio .5 is rounded to 11 x 6, at 2 to 6 x 12
    assert first == [4 - 22, 4 - 12, 4 + 22, 4 + 12]
    assert middle == pytest.approx([4 - 16 * 2 ** (1 / 3), *[4 - 16 * 2 ** (1 / 3)], *[4 + 16 * 2 ** (1 / 3)] * 2])
    sides = 12 * 2 ** (2 / 3), 24 * 2 ** (2 / 3)
    assert last == pytest.approx([4 - sides[0], 4 - sides[1], 4 + sides[0], 4 + sides[1]])
    areas = [float(box) for box in (cell[3:6, 2] - cell[3:6, 0])]
    assert areas == pytest.approx([32, 32 * 2 ** (1 / 3), 32 * 2 ** (2 / 3)])


def test_torchvisions_anchors_have_whole_sizes() -> None:
    detector = zoo.build("retinanet", anchors="torchvision")
    (cell, *_) = detector.anchors([(1, 1), (1, 1), (1, 1), (1, 1), (1, 1)])  # pyright: ignore
    assert cell[3:6].tolist() == [[-16, -16, 16, 16], [-20, -20, 20, 20], [-25, -25, 25, 25]]
    assert cell[1].tolist() == [-28, -14, 28, 14]  # of 40, not of 40.3


def test_training_begins_with_the_prior() -> None:
    detector = zoo.build("retinanet", prior=0.02).eval()
    with torch.inference_mode():
        scores = detector.predict(zoo.sample_images(detector)).scores
    torch.testing.assert_close(scores, torch.full_like(scores, 0.02), rtol=0.05, atol=0)


def test_a_place_is_positive_background_or_left_out_by_its_iou() -> None:
    detector: Any = zoo.build("retinanet")
    raw = detector.network(torch.zeros(1, 3, 96, 128))
    box = torch.tensor([[[20.0, 20, 70, 80]]])
    match = detector.assign(raw, Targets(box, torch.tensor([[1]]), torch.zeros(1, 1, dtype=torch.bool)))
    index, iou = match.index[0], match.iou[0]
    assert iou.max() > 0.5
    assert torch.equal(index == 0, iou >= 0.5)
    assert torch.equal(index == BACKGROUND, iou < 0.4)
    assert (index == IGNORED).any()


@given(st.integers(0, 10**6), st.integers(1, 30), st.integers(1, 4), st.integers(1, 40), st.booleans())
@settings(max_examples=60)
def test_the_best_pairs_of_a_map_equal_the_loop(seed: int, anchors: int, classes: int, count: int, tied: bool) -> None:
    torch.manual_seed(seed)
    logits = torch.randn(2, anchors, classes)
    logits = logits.round() if tied else logits
    index, best = best_pairs(logits, count)
    assert (index.diff(dim=1) > 0).all()
    for row in range(2):
        values: list[float] = sorted(logits[row].flatten().tolist(), reverse=True)
        last = values[min(count, len(values)) - 1]
        found = best[row].flatten()
        kept = found[found > -torch.inf].tolist()
        if tied:  # equals of the last one may stay or go, as their anchors are chosen or not
            assert sorted(kept, reverse=True)[: min(count, len(values))] == values[:count]
            assert min(kept) == last
        else:
            assert sorted(kept, reverse=True) == values[:count]
        of_anchor = logits[row][index[row]]
        assert torch.equal(torch.where(best[row] > -torch.inf, of_anchor, -torch.inf), best[row])


def test_scores_and_boxes_of_the_selected_are_those_of_all() -> None:
    detector: Any = zoo.build("retinanet", pre_nms_top_n=30).eval()
    liven(detector)
    images = images_of(random_image(96, 112))
    with torch.inference_mode():
        raw = detector.network(detector.normalise(images.pixels, images.sizes))
        selected, index = detector.select(raw)
        every, some = detector.decode(raw), detector.decode(selected)
    assert some.scores.shape[1] == index.shape[1] < every.scores.shape[1]
    torch.testing.assert_close(some.boxes, every.boxes[:, index[0]])
    kept = some.scores > 0
    torch.testing.assert_close(some.scores[kept], every.scores[:, index[0]][kept])
    first = 0
    for x in raw.logits:
        of_map = (index[0] >= first) & (index[0] < first + x.shape[1])
        assert kept[0, of_map].sum() == min(30, x[0].numel())
        first += x.shape[1]


@torch.no_grad()
def liven(detector: Any) -> None:
    for layer in (detector.classifier.last, detector.regressor.last):
        layer.weight.normal_(0, 1 / math.sqrt(layer.weight[0].numel()))


def test_other_classes_begin_with_all_but_the_last_layer(tmp_path: Path) -> None:
    one = zoo.build("retinanet")
    path = save_checkpoint(tmp_path / "best.pt", one)
    other = build_detector(one.config, ("a", "b", "c"))
    before: dict[str, Tensor] = {key: tensor.clone() for key, tensor in other.state_dict().items()}
    checkpoint.start_from(other, path)
    for key, tensor in other.state_dict().items():
        source = before if key.startswith("classifier.last.") else one.state_dict()
        assert torch.equal(tensor, source[key]), key


def test_the_configs_to_read_beside_the_paper() -> None:
    configs = Path(__file__).parents[2] / "configs"
    voc = load_config(configs / "voc/retinanet_resnet50.yaml")
    assert (voc.model.alpha, voc.model.gamma, voc.model.prior, voc.model.p6) == (0.25, 2.0, 0.01, "c5")
    assert (voc.detect.score_threshold, voc.detect.nms_iou, voc.detect.detections_per_image) == (0.05, 0.5, 100)
