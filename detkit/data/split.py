"""Dividing a data set into splits, in its own format."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import yaml

from detkit.data.coco import PREFIX, coco_splits, find_annotations
from detkit.data.coco_index import load_coco, read_coco_index
from detkit.data.formats import find_format
from detkit.data.index import Index
from detkit.data.stratify import stratify
from detkit.data.voc_index import read_index
from detkit.data.yolo import YOLOSource, find_config, images_below, read_layout, yolo_splits
from detkit.errors import UserError
from detkit.files import write_atomic

Write = Callable[[dict[str, np.ndarray]], None]  # rows of the index for each split


def split_dataset(
    root: str | Path, shares: Mapping[str, float], seed: int = 0, format_name: str = "auto", source: str | None = None
) -> dict[str, int]:
    """Divide all annotated images of a root into new splits, see `stratify`; return how many images each has.

    shares: split -> fraction; they sum to 1, and a split of 0 is left out. source: of a COCO root with several files,
    the split to divide. Writes ImageSets/Main/SPLIT.txt, annotations/instances_SPLIT.json, or SPLIT.txt and data.yaml.
    Raises UserError where such a split is there already, or an image is too few.
    """
    root = Path(root)
    if any(share < 0 for share in shares.values()) or abs(sum(shares.values()) - 1) > 1e-6:
        text = ", ".join(f"{name} {share:g}" for name, share in shares.items())
        raise UserError(f"the shares {text} do not sum to 1")
    shares = {name: share for name, share in shares.items() if share > 0}
    kind = find_format(root, format_name)
    if source is not None and kind != "coco":
        raise UserError(f"{root} is {kind}, of which all images are divided; leave --from {source} out")
    kinds = {"voc": _voc, "coco": _coco, "yolo": _yolo}
    if kind not in kinds:
        raise UserError(f"{root} is {kind}, whose lists detkit can't write; `convert` it to voc, coco or yolo first")
    index, existing, write = kinds[kind](root, source)
    for name in shares:
        if name in existing:
            raise UserError(f"{root} has a split {name} already, which is left as it is; remove it first")
    rows = np.arange(len(index.ids))
    presence = np.zeros((len(rows), len(index.classes)), dtype=bool)
    objects, image = index.objects_of(rows)
    presence[image, index.objects.labels[objects]] = True
    part = stratify(presence, list(shares.values()), seed)
    parts = {name: rows[part == number] for number, name in enumerate(shares)}
    for name, members in parts.items():
        if not len(members):
            raise UserError(f"{root} has too few images for that, {len(rows)}: {name} would be empty")
    write(parts)
    return {name: len(members) for name, members in parts.items()}


def _voc(root: Path, _: str | None) -> tuple[Index, list[str], Write]:
    index = read_index(root)
    folder = root / "ImageSets" / "Main"

    def write(parts: dict[str, np.ndarray]) -> None:
        for name, rows in parts.items():
            write_atomic(folder / f"{name}.txt", "".join(f"{one}\n" for one in index.ids[rows].tolist()))

    return index, [path.stem for path in folder.glob("*.txt")], write


def _coco(root: Path, source: str | None) -> tuple[Index, list[str], Write]:
    existing = coco_splits(root)
    if source is None:
        if len(existing) != 1:
            raise UserError(f"{root} has {', '.join(existing)}; say which to divide, as in --from {existing[0]}")
        source = existing[0]
    path = find_annotations(root, source)
    index = read_coco_index(root, path)

    def write(parts: dict[str, np.ndarray]) -> None:
        content = load_coco(path)
        for name, rows in parts.items():
            keys = set(index.image_ids[rows].tolist())
            members = {
                "images": [image for image in content["images"] if image["id"] in keys],
                "annotations": [one for one in content["annotations"] if one.get("image_id") in keys],
            }
            text = json.dumps({**content, **members}, ensure_ascii=False)
            write_atomic(root / "annotations" / f"{PREFIX}{name}.json", text + "\n")

    return index, existing, write


def _yolo(root: Path, _: str | None) -> tuple[Index, list[str], Write]:
    images = images_below(root, root)
    if not images:
        raise UserError(f"{root} holds no image")
    index = YOLOSource(root, "", images).index
    config = find_config(root)

    def write(parts: dict[str, np.ndarray]) -> None:
        for name, rows in parts.items():
            write_atomic(root / f"{name}.txt", "".join(f"./{image}\n" for image in index.files[rows].tolist()))
        entries = yaml.safe_dump({name: f"{name}.txt" for name in parts}, sort_keys=False)
        if config is None:
            names = dict(enumerate(index.classes.tolist()))
            entries += yaml.safe_dump({"names": names}, sort_keys=False, allow_unicode=True)
            write_atomic(root / "data.yaml", entries)
        else:
            write_atomic(config, config.read_text(encoding="utf-8-sig").rstrip("\n") + "\n" + entries)

    return index, [*yolo_splits(root), *read_layout(root).splits], write
