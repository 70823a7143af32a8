"""Strategies one by one: boxes and MABO of each colour space and k, as in table 3 of the IJCV paper."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch

from detkit.data.shapes import CLASSES, draw_image
from detkit.data.voc import VOCDataset
from detkit.evaluation.recall import ProposalRecall, proposal_recall
from detkit.proposals.colours import COLOURS
from detkit.proposals.selective_search import MODES, Mode, hierarchies, selective_search
from detkit.structures import TruthSet
from tests.real_data import DATA

IMAGES = DATA / "voc2012_sample"
KS = (50, 100, 150, 300)
DRAWN, REAL = 40, 20

# boxes and MABO of the images that `drawn` has, measured; no paper has them
DRAWN_COLOURS = {"HSV": (37, 0.89), "Lab": (30, 0.89), "rgI": (29, 0.88), "H": (29, 0.90), "I": (35, 0.86)}
DRAWN_KS = {50: (37, 0.89), 100: (20, 0.88), 150: (15, 0.86), 300: (10, 0.83)}
# Table 3, VOC2007 trainval: of k = 50; and, in RGB, the share that is left of the boxes of k = 50
PAPER_COLOURS = {"HSV": (463, 0.693), "Lab": (328, 0.690), "rgI": (362, 0.693), "H": (322, 0.644), "I": (399, 0.670)}
PAPER_KS = {100: 239 / 395, 150: 168 / 395}

Images = tuple[Sequence[np.ndarray], TruthSet]


@pytest.fixture(scope="module")
def drawn() -> Images:
    """Images of the shapes data set, about 150 pixels a side."""
    sample_images, objects = zip(*(draw_image((0, i)) for i in range(DRAWN)))
    flat = [(i, item) for i, own in enumerate(objects) for item in own]
    truth = TruthSet(
        torch.tensor([item.box for _, item in flat], dtype=torch.float32),
        torch.tensor([CLASSES.index(item.name) for _, item in flat]),
        torch.tensor([item.difficult for _, item in flat]),
        torch.tensor([i for i, _ in flat]),
        tuple(str(i) for i in range(DRAWN)),
        CLASSES,
    )
    return [np.ascontiguousarray(sample_image) for sample_image in sample_images], truth


@pytest.fixture(scope="module")
def real() -> Images:
    """The first images of VOC2012."""
    if not IMAGES.is_dir():
        pytest.skip("no images")
    image_files = VOCDataset([(IMAGES, "all")])
    return [image_files.image(i) for i in range(REAL)], first(image_files.truth(), REAL)


def first(truth: TruthSet, images: int) -> TruthSet:
    mine = truth.image < images
    columns = (truth.boxes[mine], truth.labels[mine], truth.ignore[mine], truth.image[mine])
    return TruthSet(*columns, truth.ids[:images], truth.classes)


def measure(image_files: Images, colour: str, k: int) -> tuple[float, float]:
    """Mean boxes an image, and MABO, of one strategy with all similarities."""
    boxes = [distinct(hierarchies(image, Mode((colour,), (k,), ("CTSF",)))[0]) for image in image_files[0]]
    return figures(proposal_recall(boxes, image_files[1], (None,)))


def distinct(boxes: np.ndarray) -> np.ndarray:
    boxes = np.unique(boxes, axis=0)
    return boxes[(boxes[:, 2:] - boxes[:, :2] >= 20).all(1)].astype(np.float32)


def figures(result: ProposalRecall) -> tuple[float, float]:
    return float(result.boxes[0]), float(result.mabo[0])


@pytest.mark.parametrize("colour", COLOURS)
def test_drawn_colours(drawn: Images, colour: str) -> None:
    boxes, mabo = measure(drawn, colour, 50)
    assert boxes == pytest.approx(DRAWN_COLOURS[colour][0], rel=0.08)
    assert mabo == pytest.approx(DRAWN_COLOURS[colour][1], abs=0.02)


@pytest.mark.parametrize("k", KS)
def test_drawn_ks(drawn: Images, k: int) -> None:
    boxes, mabo = measure(drawn, "HSV", k)
    assert boxes == pytest.approx(DRAWN_KS[k][0], rel=0.08)
    assert mabo == pytest.approx(DRAWN_KS[k][1], abs=0.02)


@pytest.mark.parametrize("colour", COLOURS)
def test_a_larger_k_has_fewer_boxes_that_fit_worse(drawn: Images, colour: str) -> None:
    boxes, mabo = zip(*(measure(drawn, colour, k) for k in KS))
    assert all(more > fewer for more, fewer in pairwise(boxes))
    assert mabo[0] > mabo[-1] + 0.02


def check_modes(image_files: Images) -> None:
    found = [
        figures(proposal_recall([selective_search(image, mode) for image in image_files[0]], image_files[1], (None,)))
        for mode in ("single", "fast", "quality")
    ]
    for (few, worse), (many, better) in pairwise(found):
        assert many > 3 * few
        assert better > worse + 0.01


def test_more_strategies_find_more(drawn: Images) -> None:
    assert list(MODES) == ["single", "fast", "quality"]
    check_modes(drawn)


def test_more_strategies_find_more_in_images(real: Images) -> None:
    check_modes((real[0][:8], first(real[1], 8)))


@pytest.mark.parametrize("colour", COLOURS)
def test_colours_are_those_of_the_paper(real: Images, colour: str) -> None:
    boxes, mabo = measure(real, colour, 50)
    assert boxes == pytest.approx(PAPER_COLOURS[colour][0], rel=0.25)
    assert mabo == pytest.approx(PAPER_COLOURS[colour][1], abs=0.08)


def test_ks_are_those_of_the_paper(real: Images) -> None:
    most = measure(real, "HSV", 50)[0]
    for k, share in PAPER_KS.items():
        assert measure(real, "HSV", k)[0] / most == pytest.approx(share, abs=0.1)
