"""Masks of objects: COCO's polygons and run lengths, VOC's PNGs, and how they follow their boxes to the batch."""

import json
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from scipy.ndimage import minimum_filter

from detkit import rle
from detkit.config import DataConfig, TrainConfig
from detkit.data import loader
from detkit.data.dataset import DetectionDataset
from detkit.data.formats import open_root
from detkit.data.shapes import draw_shapes
from detkit.data.transforms import build_train
from detkit.errors import UserError
from detkit.ops import unpack_masks
from detkit.structures import InputSpec

POLYGONS = [[2.5, 3, 20, 3.2, 20, 18, 4, 19], [25, 25, 30, 25, 30.5, 33]]
AS_THEY_ARE = InputSpec(resize="none")


def coco_root(folder: Path, segmentations: list[Any], size: tuple[int, int] = (40, 36)) -> Path:
    """A data set of one image and an object for each segmentation."""
    height, width = size
    (folder / "annotations").mkdir(parents=True)
    (folder / "train").mkdir()
    cv2.imwrite(str(folder / "train" / "a.png"), np.zeros((height, width, 3), np.uint8))
    box = {"image_id": 7, "category_id": 1, "bbox": [2, 2, 20, 20], "area": 300.0}
    objects = [{"id": at + 11, **box, "segmentation": part, "iscrowd": 0} for at, part in enumerate(segmentations)]
    image = {"id": 7, "file_name": "a.png", "width": width, "height": height}
    content = {"images": [image], "annotations": objects, "categories": [{"id": 1, "name": "cat"}]}
    (folder / "annotations" / "train.json").write_text(json.dumps(content))
    return folder


def run_lengths(size: tuple[int, int]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A mask that is no polygon, not compressed and compressed."""
    mask = np.random.default_rng(0).random(size) < 0.3
    counts = [len([*run]) for _, run in groupby([False, *mask.T.flatten().tolist()])]
    counts[0] -= 1
    return {"size": [*size], "counts": counts}, rle.to_json(rle.encode(mask[None])[0])


def test_cocos_masks_are_those_of_pycocotools(tmp_path: Path) -> None:
    plain, compressed = run_lengths((40, 36))
    root = coco_root(tmp_path, [POLYGONS, plain, compressed, POLYGONS[:1]])
    theirs = COCO(str(root / "annotations" / "train.json"))
    expected = np.stack([theirs.annToMask(theirs.anns[number]) for number in range(11, 15)])
    masks, again = (open_root(root, ["train"]).masks(0) for _ in range(2))  # parsed, and from its file
    assert masks == again
    assert np.array_equal(rle.decode(masks, (40, 36)), expected)
    assert np.array_equal(expected[1], expected[2])
    assert rle.area(masks).tolist() == expected.sum((1, 2)).tolist()
    truth = open_root(root, ["train"]).truth(masks=True)
    assert truth.masks == masks
    assert truth.part(torch.tensor([False, True, False, True])).masks == (masks[1], masks[3])


def test_more_masks_than_a_byte_counts() -> None:
    masks = np.random.default_rng(0).random((300, 6, 5)) < 0.5
    found = rle.encode(masks)
    assert np.array_equal(rle.decode(found, (6, 5)), masks)
    assert rle.area(found).tolist() == masks.sum((1, 2)).tolist()
    assert rle.boxes(found).shape == (300, 4)
    assert (rle.iou(found, found, [False] * 300).diagonal() == 1).all()


@pytest.mark.parametrize(
    ("segmentation", "words"),
    [
        (None, "is missing"),
        ([], "is empty"),
        ([[1, 2, 3, 4]], "has the polygon [1, 2, 3, 4], not [x, y, x, y, x, y, ...]"),
        ([[1, 2, 3, 4, 5, "6"]], "has a polygon with other than finite numbers"),
        ([[1, 2, 3, 4, 5, 1e30]], "has a polygon with other than finite numbers"),
        ({"size": [36, 40], "counts": [1440]}, "has the size [36, 40], not [40, 36], the image's height and width"),
        ({"size": [40, 36], "counts": [1000, 1]}, "no run lengths of 1440 pixels together"),
        ({"size": [40, 36], "counts": [-1, 1441]}, "no run lengths of 1440 pixels together"),
        ({"size": [40, 36], "counts": "never run lengths"}, "no run lengths of 1440 pixels"),
        ({"size": [40, 36], "counts": ""}, "no run lengths of 1440 pixels"),
        ({"size": [40, 36], "counts": 7}, "no run lengths of 1440 pixels"),
        ("polygon", "is neither polygons nor run lengths"),
    ],
)
def test_a_broken_mask_is_one_line_where_masks_are_asked_for(tmp_path: Path, segmentation: Any, words: str) -> None:
    dataset = open_root(coco_root(tmp_path, [POLYGONS, segmentation]), ["train"])
    assert len(dataset.record(0).annotations) == 2
    with pytest.raises(UserError) as error:
        dataset.masks(0)
    assert words in str(error.value)
    assert "train.json: image a.png: annotation 12: its segmentation" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("masks") / "shapes"
    draw_shapes(root, {"train": 24})
    return root


@pytest.fixture
def dataset(shapes: Path) -> DetectionDataset:
    return open_root(shapes, ["train"])


def test_a_box_is_tight_around_the_mask(dataset: DetectionDataset) -> None:
    for i in range(len(dataset)):
        assert np.array_equal(rle.boxes(dataset.masks(i)), dataset.record(i).annotations.boxes)


def voc_root(root: Path, numbers: np.ndarray, size: tuple[int, int] = (20, 30)) -> Path:
    box = "<bndbox><xmin>3</xmin><ymin>3</ymin><xmax>12</xmax><ymax>12</ymax></bndbox>"
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main", "ImageSets/Segmentation", "SegmentationObject"):
        (root / folder).mkdir(parents=True)
    for name in ("a", "b"):
        cv2.imwrite(str(root / f"JPEGImages/{name}.png"), np.zeros((*size, 3), np.uint8))
        objects = "".join(f"<object><name>cat</name>{box}</object>" for _ in range(2))
        (root / f"Annotations/{name}.xml").write_text(f"<annotation>{objects}</annotation>")
    (root / "ImageSets/Main/train.txt").write_text("a\nb\n")
    (root / "ImageSets/Segmentation/train.txt").write_text("a\n")
    cv2.imwrite(str(root / "SegmentationObject/a.png"), numbers)
    return root


def test_vocs_masks_are_numbers_of_objects_without_their_border(tmp_path: Path) -> None:
    numbers = np.zeros((20, 30), np.uint8)
    numbers[2:12, 2:12], numbers[3:11, 3:11] = 255, 1
    numbers[5:8, 15:25] = 2
    root = voc_root(tmp_path, numbers)
    masks = rle.decode(open_root(root, ["segmentation_train"]).masks(0), (20, 30))
    assert np.array_equal(masks, [numbers == 1, numbers == 2])
    with pytest.raises(UserError, match=r"b\.png is missing, which has the masks .* segmentation_train"):
        open_root(root, ["train"]).open_masks()


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        (np.ones((20, 30), np.uint8), r"a\.xml: object 2: no pixel of a\.png is 2"),
        (np.ones((20, 31), np.uint8), r"a\.png: 31x20, but its image is 30x20"),
        (np.ones((20, 30, 3), np.uint8), r"a\.png is of colours, not of the numbers of objects"),
    ],
)
def test_what_is_wrong_with_vocs_masks_is_one_line(tmp_path: Path, numbers: np.ndarray, words: str) -> None:
    dataset = open_root(voc_root(tmp_path, numbers), ["segmentation_train"])
    with pytest.raises(UserError, match=words):
        dataset.masks(0)


def test_a_format_without_masks_says_so(tmp_path: Path) -> None:
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    cv2.imwrite(str(tmp_path / "images/a.png"), np.zeros((9, 9, 3), np.uint8))
    (tmp_path / "labels/a.txt").write_text("0 .5 .5 .5 .5\n")
    (tmp_path / "data.yaml").write_text("train: images\nnames: [cat]\n")
    with pytest.raises(UserError, match="has no masks of objects, which this detector learns"):
        open_root(tmp_path, ["train"]).open_masks()


def painted(dataset: DetectionDataset, i: int) -> tuple[np.ndarray, np.ndarray, int, np.ndarray]:
    """An image whose pixels are the colours of its objects, and what a transform is given with it."""
    boxes, masks = dataset.record(i).annotations.boxes, dataset.masks(i)
    width, height = dataset.sizes[i].tolist()
    decoded = rle.decode(masks, (height, width))
    image = np.zeros((height, width, 3), np.uint8)
    for mask in decoded:
        image[mask > 0] = 255
    return image, boxes, len(boxes), decoded


def another(dataset: DetectionDataset, random: np.random.Generator) -> tuple[Any, ...]:
    return painted(dataset, int(random.integers(len(dataset))))


@pytest.mark.parametrize(
    "augment",
    [
        [{"HorizontalFlip": {"p": 1.0}}],
        [{"Expand": {"fill": [0, 0, 0], "p": 1.0}}],
        [{"IoUCrop": {"min_iou": []}}],
        [{"Expand": {"fill": [0, 0, 0], "p": 1.0}}, {"IoUCrop": {"min_iou": []}}],  # in one step
        [{"Expand": {"fill": [0, 0, 0]}}, "IoUCrop", "RandomInterpolationResize"],
        [{"Mosaic": {"p": 1.0}}],
        [{"HorizontalFlip": {"p": 0.5}}, {"Mosaic": {"p": 0.5}}, {"Rotate": {"limit": 30, "p": 1.0}}],
        [{"RandomScale": {"p": 1.0}}],
    ],
)
def test_masks_follow_the_pixels(dataset: DetectionDataset, augment: list[Any]) -> None:
    """All objects together are what is white in the image, but for pixels between; the same boxes as without masks."""
    resized = "RandomInterpolationResize" in augment
    transform = build_train(augment, InputSpec((97, 121)) if resized else AS_THEY_ARE)
    seen = 0
    for i in range(len(dataset)):
        image, boxes, objects, masks = painted(dataset, i)
        found, kept, rows, moved = transform.run(image, boxes, masks, (0, i), objects, partial(another, dataset))
        plain = transform(image, boxes, (0, i), objects, partial(another, dataset))
        assert all(np.array_equal(one, other) for one, other in zip(plain, (found, kept, rows), strict=True))
        assert moved is not None
        assert moved.shape == (len(kept), *found.shape[:2])
        covered = moved.any(0)
        exact = not resized and all(step.keys() <= {"HorizontalFlip", "Expand", "IoUCrop"} for step in augment)
        # resizing and turning mix the pixels at an edge
        inner = covered if exact else np.asarray(minimum_filter(covered, 5, mode="constant"), bool)
        assert (found[inner] <= 100).sum() <= (0 if exact else 0.05 * inner.sum())
        for box, mask in zip(kept, moved):
            ys, xs = np.nonzero(mask)
            if len(xs) and "Rotate" not in str(augment):
                slack = 0.01 if exact else 2
                assert xs.min() >= box[0] - slack
                assert ys.min() >= box[1] - slack
                assert xs.max() + 1 <= box[2] + slack
                assert ys.max() + 1 <= box[3] + slack
        seen += int(covered.sum())
    assert seen > 10_000


@pytest.mark.parametrize("augment", [[], [{"HorizontalFlip": {"p": 1.0}}]])
def test_batches_have_masks_where_they_are_learned(dataset: DetectionDataset, augment: list[Any]) -> None:
    config = DataConfig(root="", augment=augment)
    recipe = TrainConfig(iterations=2, batch=3, workers=0)
    plain = loader.train_loader(dataset, AS_THEY_ARE, config, recipe, start=0, stop=2)
    batches = loader.train_loader(dataset, AS_THEY_ARE, config, recipe, start=0, stop=2, masks=True)
    for (images, targets), (_, without) in zip(batches, plain, strict=True):
        assert torch.equal(targets.boxes, without.boxes)
        assert "masks" not in without.extra
        masks = unpack_masks(targets.extra["masks"])
        assert masks.shape[:2] == targets.labels.shape
        for row, name in enumerate(images.ids):
            height, width = images.sizes[row].tolist()
            expected = rle.decode(dataset.masks(dataset.ids.index(name)), (height, width))
            expected = expected[:, :, ::-1] if augment else expected
            count = int(targets.valid[row].sum())
            assert np.array_equal(masks[row, :count, :height, :width], expected)
            # continued by a pixel, and then nothing
            assert np.array_equal(masks[row, :count, height, :width], expected[:, -1])
            assert not masks[row, :, height + 1 :].any()
            assert not masks[row, count:].any()
