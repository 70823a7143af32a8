"""Tiny data sets in each format, of which a test changes what it is about."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

FORMATS = ("voc", "coco", "yolo")
SIZE = (48, 32)  # width, height of an image
BOX = (10, 6, 34, 22)  # of an object: continuous xyxy in pixels
ROW = "0 0.458333333333 0.4375 0.5 0.5"  # BOX as YOLO has it, of class 0
CATEGORIES = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
FOLDER = {"voc": "JPEGImages", "coco": "all", "yolo": "images/all"}  # of the images of the split `all`


def photo(path: Path, size: tuple[int, int] = SIZE, seed: int = 0, orientation: int | None = None) -> None:
    """Write an image of (width, height) stored pixels, its left half dark, no two seeds alike."""
    pixels = np.random.default_rng(seed).integers(180, 250, (size[1], size[0], 3), dtype=np.uint8)
    pixels[:, : size[0] // 2] //= 9
    path.parent.mkdir(parents=True, exist_ok=True)
    more: dict[str, Any] = {}
    if orientation is not None:
        more["exif"] = Image.Exif()
        more["exif"][0x0112] = orientation
    Image.fromarray(pixels).save(path, Image.registered_extensions()[path.suffix.lower()], **more)


def voc_object(name: str = "cat", box: Sequence[float] = BOX, more: str = "") -> str:
    """XML of an object. more: other elements of it."""
    corners = zip(("xmin", "ymin", "xmax", "ymax"), (box[0] + 1, box[1] + 1, box[2], box[3]))
    edges = "".join(f"<{edge}>{value}</{edge}>" for edge, value in corners)
    return f"<object><name>{name}</name>{more}<bndbox>{edges}</bndbox></object>"


def voc_xml(*objects: str, size: Sequence[object] | None = SIZE, filename: str = "x.jpg", encoding: str = "") -> str:
    """An annotation. encoding: what its first line declares; nothing by default."""
    head = f'<?xml version="1.0" encoding="{encoding}"?>\n' if encoding else ""
    stated = "" if size is None else f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
    return f"{head}<annotation><filename>{filename}</filename>{stated}{''.join(objects)}</annotation>"


def voc(
    root: Path, xmls: Mapping[str, str | bytes], listed: str | None = None, suffix: str = ".jpg", photos: bool = True
) -> Path:
    """Lay out VOC: id -> XML. listed: the text of ImageSets/Main/all.txt."""
    for seed, (name, xml) in enumerate(xmls.items()):
        path = root / "Annotations" / f"{name}.xml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(xml if isinstance(xml, bytes) else xml.encode())
        if photos:
            photo(root / "JPEGImages" / f"{name}{suffix}", seed=seed)
    lists = root / "ImageSets" / "Main"
    lists.mkdir(parents=True, exist_ok=True)
    text = "".join(f"{name}\n" for name in xmls) if listed is None else listed
    (lists / "all.txt").write_bytes(text.encode("utf-8", "surrogateescape"))
    return root


def coco_image(file: str, key: Any = 1, size: tuple[Any, Any] | None = SIZE) -> dict[str, Any]:
    """An entry of `images`."""
    return {"id": key, "file_name": file} | ({} if size is None else {"width": size[0], "height": size[1]})


def coco_object(image: Any = 1, category: Any = 1, box: Sequence[float] = BOX, **more: Any) -> dict[str, Any]:
    """An entry of `annotations`, without id."""
    return {
        "image_id": image,
        "category_id": category,
        "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
        **more,
    }


def coco(
    root: Path,
    images: Sequence[dict[str, Any]],
    annotations: Sequence[dict[str, Any]],
    categories: Sequence[dict[str, Any]] = CATEGORIES,
    photos: bool = True,
) -> Path:
    """Lay out COCO: annotations/instances_all.json, images in all/; annotations without an id get 1, 2, ..."""
    numbered = [{"id": number, **one} for number, one in enumerate(annotations, 1)]
    content = {"images": [*images], "annotations": numbered, "categories": [*categories]}
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / "annotations" / "instances_all.json").write_text(json.dumps(content))
    for seed, name in enumerate(dict.fromkeys(image["file_name"] for image in images) if photos else ()):
        photo(root / "all" / name, seed=seed)
    return root


def yolo(root: Path, rows: Mapping[str, str | None], yaml: str | bytes | None = "names: [cat, dog]\n") -> Path:
    """Lay out YOLO: image below images/all -> its label file's rows, None for no such file. yaml: of data.yaml, to
    which the split `all` is added unless it says it; None for no data.yaml."""
    for seed, (name, text) in enumerate(rows.items()):
        photo(root / "images" / "all" / name, seed=seed)
        label = (root / "labels" / "all" / name).with_suffix(".txt")
        label.parent.mkdir(parents=True, exist_ok=True)
        if text is not None:
            label.write_text(text)
    if isinstance(yaml, str):
        (root / "data.yaml").write_text(yaml if "all:" in yaml else f"all: images/all\n{yaml}")
    elif yaml is not None:
        (root / "data.yaml").write_bytes(yaml)
    return root


def make(
    kind: str, root: Path, files: Mapping[str, Sequence[tuple[str, Sequence[float]]]], photos: bool = True
) -> Path:
    """Lay out a data set of a format with the split `all`: image file -> (class, box) of its objects."""
    if kind == "voc":
        for seed, file in enumerate(files if photos else ()):
            photo(root / "JPEGImages" / file, seed=seed)
        xmls = {
            str(Path(file).with_suffix("")): voc_xml(*(voc_object(*one) for one in objects), filename=Path(file).name)
            for file, objects in files.items()
        }
        return voc(root, xmls, photos=False)
    if kind == "coco":
        number = {category["name"]: category["id"] for category in CATEGORIES}
        images = [coco_image(file, key) for key, file in enumerate(files, 1)]
        annotations = [
            coco_object(key, number[name], box)
            for key, objects in enumerate(files.values(), 1)
            for name, box in objects
        ]
        return coco(root, images, annotations, photos=photos)
    rows = {file: "".join(f"{yolo_row(name, box)}\n" for name, box in objects) for file, objects in files.items()}
    return yolo(root, rows)


def yolo_row(name: str = "cat", box: Sequence[float] = BOX, size: tuple[int, int] = SIZE) -> str:
    """The row of a cat or a dog."""
    left, top, right, bottom = box
    values = ((left + right) / 2 / size[0], (top + bottom) / 2 / size[1])
    sides = ((right - left) / size[0], (bottom - top) / size[1])
    return " ".join([str(["cat", "dog"].index(name)), *(f"{value:.12f}" for value in (*values, *sides))])
