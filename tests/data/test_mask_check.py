"""`check` names what is wrong with masks, each in one line, and says nothing of masks that are right."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from detkit import rle
from detkit.data import coco
from detkit.data.check import check_root
from detkit.data.shapes import draw_shapes
from tests.data.test_masks import coco_root, voc_root

SIZE = (40, 36)  # height and width of the image of `coco_root`, whose boxes go from 2 to 22
BOX = [[2, 2, 22, 2, 22, 22, 2, 22]]
SPIKE = [[2, 2, 10, 2, 10, 11.8, 22, 12, 10, 12.2, 10, 22, 2, 22]]  # which no pixel shows


def mask(left: int, top: int, right: int, bottom: int, size: tuple[int, int] = SIZE) -> dict[str, Any]:
    """A box as compressed run lengths."""
    pixels = np.zeros((1, *size), np.uint8)
    pixels[0, top:bottom, left:right] = 1
    return rle.to_json(rle.encode(pixels)[0])


def problems(root: Path) -> list[tuple[str, int, str, str]]:
    return [(problem.file, problem.object, problem.kind, problem.text) for problem in check_root(root).problems]


@pytest.mark.parametrize(
    ("segmentation", "kind", "words"),
    [
        (None, "no mask", "its segmentation is missing"),
        ([], "no mask", "its segmentation is empty"),
        ([[1, 2, 3, 4]], "broken mask", "its segmentation has the polygon [1, 2, 3, 4], not [x, y, x, y, x, y, ...]"),
        (
            {"size": [36, 40], "counts": [1440]},
            "broken mask",
            "the size [36, 40], not [40, 36], the image's height and",
        ),
        ({"size": [*SIZE], "counts": [90, 1349]}, "broken mask", "no run lengths of 1440 pixels together"),
        (mask(2, 2, 22, 22, (40, 35)) | {"size": [*SIZE]}, "broken mask", "has counts that are no run lengths of 1440"),
        (mask(2, 2, 22, 22, (40, 37)) | {"size": [*SIZE]}, "broken mask", "has counts that are no run lengths of 1440"),
        ([[2, 2, 37, 2, 22, 22]], "mask outside", "reaches from (2, 2) to (37, 22), and its image has 36x40 pixels"),
        ([[-0.6, 2, 22, 2, 22, 22]], "mask outside", "reaches from (-0.6, 2) to (22, 22)"),
        (mask(0, 0, 0, 0), "empty mask", "its segmentation has no pixel"),
        (
            [[4, 2, 22, 2, 22, 22, 4, 22]],
            "mask and box",
            "mask reaches from (4, 2) to (22, 22), its box from (2, 2) to",
        ),
        (
            mask(2, 2, 22, 20),
            "mask and box",
            "its mask reaches from (2, 2) to (22, 20), its box from (2, 2) to (22, 22)",
        ),
    ],
)
def test_what_is_wrong_with_a_mask_of_coco(tmp_path: Path, segmentation: Any, kind: str, words: str) -> None:
    found = problems(coco_root(tmp_path, [BOX, segmentation]))
    # two objects of one box are a problem, too
    (problem,) = (problem for problem in found if problem[2] != "duplicate object")
    assert problem[:3] == ("annotations/train.json: image a.png", 12, kind)
    assert words in problem[3]
    assert "\n" not in problem[3]


@pytest.mark.parametrize(
    "segmentation", [BOX, SPIKE, [[2.9, 1.1, 22.5, 2, 22, 22]], mask(2, 2, 22, 22), mask(3, 1, 22, 23)]
)
def test_masks_of_coco_that_are_right(tmp_path: Path, segmentation: Any) -> None:
    """Also where rounding moves an edge, and a part of the polygon is too thin for a pixel."""
    root = coco_root(tmp_path, [segmentation])
    assert problems(root) == problems(root) == []  # parsed, and from its file


def test_what_is_too_thin_is_not_in_the_pixels() -> None:
    spike = rle.parse(SPIKE, SIZE)
    assert isinstance(spike, dict)
    assert rle.boxes([spike])[0, 2] < 19


def test_where_no_object_has_a_mask_none_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coco, "COCOMasks", None)
    assert problems(coco_root(tmp_path, [[]])) == []
    path = tmp_path / "annotations/train.json"
    content = json.loads(path.read_text())
    del content["annotations"][0]["segmentation"]
    path.write_text(json.dumps(content))
    assert problems(tmp_path) == []


def numbers(second: slice = slice(2, 12), value: int = 2) -> np.ndarray:
    """The numbers of two objects, whose boxes both go from 2 to 12: the upper half, and the lower half."""
    of_pixel = np.zeros((20, 30), np.uint8)
    of_pixel[2:7, 2:12] = 1
    of_pixel[7:12, second] = value
    return of_pixel


@pytest.mark.parametrize(
    ("of_pixel", "number", "kind", "words"),
    [
        (numbers(value=0), 2, "no mask", "no pixel of a.png is 2"),
        (
            numbers(slice(18, 28)),
            2,
            "mask and box",
            "reaches from (18, 7) to (28, 12), its box from (2, 2) to (12, 12)",
        ),
        (numbers(slice(2, 14)), 2, "mask and box", "its mask reaches from (2, 7) to (14, 12)"),
        (numbers()[:, :-1], 0, "broken mask", "a.png: 29x20, but its image is 30x20"),
        (np.zeros((20, 30, 3), np.uint8), 0, "broken mask", "a.png is of colours, not of the numbers of objects"),
        (numbers() + np.eye(20, 30, 15, np.uint8) * 7, 0, "mask of no object", "a.png has pixels of 7, and no such"),
    ],
)
def test_what_is_wrong_with_a_mask_of_voc(
    tmp_path: Path, of_pixel: np.ndarray, number: int, kind: str, words: str
) -> None:
    found = problems(voc_root(tmp_path, of_pixel))
    (problem,) = (problem for problem in found if "mask" in problem[2])
    assert problem[:3] == ("Annotations/a.xml", number, kind)
    assert words in problem[3]


def test_a_file_of_masks_that_cannot_be_read(tmp_path: Path) -> None:
    root = voc_root(tmp_path, numbers())
    (root / "SegmentationObject/a.png").write_bytes(b"none")
    (problem,) = (problem for problem in problems(root) if "mask" in problem[2])
    assert problem[:3] == ("Annotations/a.xml", 0, "broken mask")
    assert problem[3].startswith("a.png: no masks can be read")


def test_which_images_of_voc_need_masks(tmp_path: Path) -> None:
    """Those that ImageSets/Segmentation lists; where it lists none, all."""
    root = voc_root(tmp_path, numbers())
    assert not [problem for problem in problems(root) if "mask" in problem[2]]
    listed = root / "ImageSets/Segmentation/train.txt"
    listed.write_text("a\nb\n")
    missing = ("Annotations/b.xml", 0, "no mask", "b.png is missing, which has its masks")
    assert [problem for problem in problems(root) if "mask" in problem[2]] == [missing]
    listed.unlink()
    assert [problem for problem in problems(root) if "mask" in problem[2]] == [missing]


def test_a_large_object_has_a_border_of_void(tmp_path: Path) -> None:
    """As VOC's have, whose masks end inside their boxes."""
    root = voc_root(tmp_path, np.zeros((200, 300), np.uint8), (200, 300))
    of_pixel = np.zeros((200, 300), np.uint8)
    for number in (1, 2):
        of_pixel[20 * number : 20 * number + 12, 20:280] = 255
        of_pixel[20 * number + 5 : 20 * number + 8, 26:274] = number
    cv2.imwrite(str(root / "SegmentationObject/a.png"), of_pixel)
    boxes = ((21, 21, 280, 32), (21, 41, 280, 52))
    parts = [dict(zip(("xmin", "ymin", "xmax", "ymax"), box)) for box in boxes]
    edges = ["".join(f"<{edge}>{value}</{edge}>" for edge, value in part.items()) for part in parts]
    objects = "".join(f"<object><name>cat</name><bndbox>{part}</bndbox></object>" for part in edges)
    (root / "Annotations/a.xml").write_text(f"<annotation>{objects}</annotation>")
    assert not [problem for problem in problems(root) if "mask" in problem[2]]


def test_the_shapes_are_clean(tmp_path: Path) -> None:
    draw_shapes(tmp_path / "shapes", {"train": 12})
    assert problems(tmp_path / "shapes") == []


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
@pytest.mark.parametrize("size", [(1, 1), (7, 5), (40, 36), (300, 500)])
def test_run_lengths_are_those_of_as_many_pixels(size: tuple[int, int], share: float) -> None:
    pixels = np.random.default_rng(0).random((3, *size)) < share
    for one in rle.encode(pixels):
        assert rle.parse(rle.to_json(one), size) == one
        for other in ((size[0] + 1, size[1]), (size[0], size[1] + 3)):
            assert "are no run lengths of" in str(rle.parse(rle.to_json(one) | {"size": [*other]}))
