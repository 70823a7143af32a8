"""Dividing a data set into splits, in its own format."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import yaml

from detkit.data.alike import group_alike
from detkit.data.coco import PREFIX, COCOSource, coco_splits
from detkit.data.coco_index import from_json, load_coco
from detkit.data.dataset import EVERYTHING
from detkit.data.formats import find_format
from detkit.data.index import Index
from detkit.data.stratify import stratify
from detkit.data.values import path_below
from detkit.data.voc import VOCRoot
from detkit.data.yolo import YOLOSource, find_config, read_layout, yolo_splits
from detkit.errors import UserError
from detkit.files import write_atomic

Write = Callable[[dict[str, np.ndarray]], None]  # rows of the index for each split


def split_dataset(
    root: str | Path, shares: Mapping[str, float], seed: int = 0, format_name: str = "auto", source: str | None = None
) -> tuple[dict[str, int], int]:
    """Divide all annotated images of a root into new splits, see `divide`.

    Returns how many images each split has, and how many images are copies or have some.

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
    index, paths, existing, write = kinds[kind](root, source)
    for name in shares:
        if name in existing:
            raise UserError(f"{root} has a split {name} already, which is left as it is; remove it first")
    parts, copies = divide(root, index, paths, np.arange(len(index.ids)), shares, seed)
    write(parts)
    return {name: len(members) for name, members in parts.items()}, copies


def divide(
    root: Path, index: Index, paths: Sequence[str], rows: np.ndarray, shares: Mapping[str, float], seed: int
) -> tuple[dict[str, np.ndarray], int]:
    """Share out rows of an index at random, see `stratify`; copies and images that are nearly the same stay together.

    paths: of all images of the index. Returns the rows of each part, and how many images are such copies or have some.
    UserError where a part would be empty.
    """
    presence = np.zeros((len(rows), len(index.classes)), dtype=bool)
    objects, image = index.objects_of(rows)
    presence[image, index.objects.labels[objects]] = True
    groups = group_alike([paths[int(row)] for row in rows])
    copies = int((np.bincount(groups)[groups] > 1).sum())
    part = stratify(presence, list(shares.values()), seed, groups)
    parts = {name: rows[part == number] for number, name in enumerate(shares)}
    for name, members in parts.items():
        if not len(members):
            together = f", of which {copies} are copies, or nearly, that stay together" if copies else ""
            raise UserError(f"{root} has too few images for that, {len(rows)}{together}: {name} would be empty")
    return parts, copies


def _voc(root: Path, _: str | None) -> tuple[Index, Sequence[str], list[str], Write]:
    opened = VOCRoot(root)

    def write(parts: dict[str, np.ndarray]) -> None:
        for name, rows in parts.items():
            text = "".join(f"{one}\n" for one in opened.index.ids[rows].tolist())
            write_atomic(root / "ImageSets" / "Main" / f"{name}.txt", text)

    _refuse_line_ends(root, opened.index.ids.tolist())
    return opened.index, opened.paths, opened.layout.splits(), write


def _coco(root: Path, source: str | None) -> tuple[Index, Sequence[str], list[str], Write]:
    existing = coco_splits(root)
    if source is None:
        if len(existing) != 1:
            raise UserError(f"{root} has {', '.join(existing)}; say which to divide, as in --from {existing[0]}")
        source = existing[0]
    opened = COCOSource(root, source)

    def write(parts: dict[str, np.ndarray]) -> None:
        content = load_coco(opened.path)
        for name, rows in parts.items():
            keys = set(from_json(opened.index.image_ids[rows]))
            members = {
                "images": [image for image in content["images"] if image["id"] in keys],
                "annotations": [one for one in content["annotations"] if one.get("image_id") in keys],
            }
            # as ASCII: a name may be none that UTF-8 can hold
            write_atomic(root / "annotations" / f"{PREFIX}{name}.json", json.dumps({**content, **members}) + "\n")

    return opened.index, opened.paths, existing, write


def _yolo(root: Path, _: str | None) -> tuple[Index, Sequence[str], list[str], Write]:
    opened = YOLOSource(root, EVERYTHING)
    names = [path_below(path, root) for path in opened.paths]
    _refuse_line_ends(root, names)
    config = find_config(root)

    def write(parts: dict[str, np.ndarray]) -> None:
        for name, rows in parts.items():
            write_atomic(root / f"{name}.txt", "".join(f"./{names[row]}\n" for row in rows.tolist()))
        entries = yaml.safe_dump({name: f"{name}.txt" for name in parts}, sort_keys=False)
        if config is None:
            if len(opened.index.classes):
                names_of = dict(enumerate(opened.index.classes.tolist()))
                entries += yaml.safe_dump({"names": names_of}, sort_keys=False, allow_unicode=True)
            write_atomic(root / "data.yaml", entries)
        else:
            write_atomic(config, config.read_text(encoding="utf-8-sig").rstrip("\n") + "\n" + entries)

    return opened.index, opened.paths, [*yolo_splits(root), *read_layout(root).splits], write


def _refuse_line_ends(root: Path, names: Sequence[str]) -> None:
    """Raise UserError for the name of an image that cannot stand in a list, a line each in UTF-8."""
    for name in names:
        if re.search("[\n\r\ud800-\udfff]", name):
            raise UserError(f"{root}: the image {name!r} cannot stand in a list of names; rename it first")
