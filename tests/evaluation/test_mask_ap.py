"""Mask AP: all of COCO's numbers are pycocotools' own, crowds included; stores and results keep the masks."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from detkit import rle
from detkit.errors import UserError
from detkit.evaluation import coco_ap, parse_coco_results, pycocotools_summary, read_detections, write_detections
from detkit.structures import DetectionSet, TruthSet

SIZE = (140, 180)
CLASSES = ("a", "b", "c")


def blobs(random: np.random.Generator, count: int) -> np.ndarray:
    """Ellipses, some of them large: (count, H, W) bool."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    centre, radius = (
        random.random((2, count, 1, 1)) * np.array(SIZE).reshape(2, 1, 1, 1),
        4 + 60 * random.random((2, count, 1, 1)) ** 2,
    )
    return ((y - centre[0]) / radius[0]) ** 2 + ((x - centre[1]) / radius[1]) ** 2 < 1


def sets(seed: int) -> tuple[DetectionSet, TruthSet]:
    """Objects, a fifth of them crowds, and detections near them and anywhere, with equal scores among them."""
    random = np.random.default_rng(seed)
    images, truth_masks, found_masks, owner, of = 12, [], [], [], []
    labels: list[list[int]] = [[], []]
    for image in range(images):
        objects = blobs(random, int(random.integers(1, 8)))
        kinds = random.integers(0, 3, len(objects))
        moved = [np.roll(mask, random.integers(-6, 7, 2), (0, 1)) for mask in objects for _ in range(2)]
        others = blobs(random, 3)
        truth_masks += rle.encode(objects)
        found_masks += rle.encode(np.stack([*moved, *others]))
        labels[0] += kinds.tolist()
        labels[1] += [*np.repeat(kinds, 2).tolist(), *random.integers(0, 3, 3).tolist()]
        owner += [image] * len(objects)
        of += [image] * (len(moved) + 3)
    ids = tuple(f"i{image}" for image in range(images))
    boxes = torch.from_numpy(rle.boxes(truth_masks))
    ignore = torch.from_numpy(random.random(len(owner)) < 0.2)
    area = torch.from_numpy(rle.area(truth_masks))
    truth = TruthSet(
        boxes, torch.tensor(labels[0]), ignore, torch.tensor(owner), ids, CLASSES, area, masks=tuple(truth_masks)
    )
    scores = torch.from_numpy(random.integers(1, 30, len(of)) / 30)
    found = DetectionSet(
        torch.from_numpy(rle.boxes(found_masks)),
        scores,
        torch.tensor(labels[1]),
        torch.tensor(of),
        ids,
        CLASSES,
        tuple(found_masks),
    )
    return found, truth


@pytest.mark.parametrize("seed", range(4))
def test_all_numbers_are_those_of_pycocotools(seed: int) -> None:
    found, truth = sets(seed)
    ours, theirs = coco_ap(found, truth, masks=True).summary, pycocotools_summary(found, truth, masks=True)
    assert ours == pytest.approx(theirs, abs=1e-12, nan_ok=True)
    assert 0.1 < ours["AP"] < 0.9
    assert ours != pytest.approx(coco_ap(found, truth).summary, abs=1e-3, nan_ok=True)
    # the detections of some images, in another order
    shuffled = found.part(torch.randperm(len(found.scores))[:60])
    ours, theirs = coco_ap(shuffled, truth, masks=True).summary, pycocotools_summary(shuffled, truth, masks=True)
    assert ours == pytest.approx(theirs, abs=1e-12, nan_ok=True)


def test_nothing_is_found() -> None:
    found, truth = sets(0)
    none = found.part(slice(0, 0))
    assert coco_ap(none, truth, masks=True).mAP == 0
    assert np.isnan(coco_ap(none, truth.part(slice(0, 0)), masks=True).mAP)


def test_a_store_keeps_masks(tmp_path: Path) -> None:
    found, _ = sets(1)
    write_detections(tmp_path / "detections.json", found)
    assert read_detections(tmp_path / "detections.json") == found
    write_detections(tmp_path / "plain.json", replace(found, masks=None))
    assert read_detections(tmp_path / "plain.json").masks is None
    content = json.loads((tmp_path / "detections.json").read_text())
    content["masks"][3]["counts"] = "nothing of the kind"
    (tmp_path / "broken.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"broken\.json: the mask of detection 3 has counts that are no run lengths of"):
        read_detections(tmp_path / "broken.json")
    content["masks"].pop()
    (tmp_path / "broken.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"'masks' is not a list of \d+ masks, one for each detection"):
        read_detections(tmp_path / "broken.json")


def test_cocos_results_may_have_masks() -> None:
    found, _ = sets(2)
    assert found.masks is not None
    entry = {"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}
    entries = [{**entry, "segmentation": rle.to_json(mask)} for mask in found.masks[:3]]
    assert parse_coco_results(Path("r.json"), entries).masks == found.masks[:3]
    assert parse_coco_results(Path("r.json"), [*entries, entry]).masks is None
    entries[1]["segmentation"] = {"size": [9, 9], "counts": [80]}
    with pytest.raises(UserError, match=r"r\.json: entry 1: its segmentation has counts that are no run lengths of 81"):
        parse_coco_results(Path("r.json"), entries)
