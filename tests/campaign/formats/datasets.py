"""Annotations of data sets. Each is read by `check`, `stats` and `convert`, which must agree."""

import json
import shutil
from pathlib import Path
from random import Random
from typing import Any

import yaml

from detkit.data.convert import convert
from detkit.data.dataset import DetectionDataset
from detkit.data.formats import find_splits, open_root
from detkit.data.voc_writer import NOT_XML
from tests.campaign.commands import Broken, run
from tests.campaign.formats.base import Files, Format, check_objects, read_file
from tests.campaign.mutations import VALUES, edit_json, edit_lines, edit_several, edit_text
from tests.data.roots import make_root, xml

ROOT, TARGET = Path("root"), Path("target")
FORMATS = ("voc", "coco", "yolo")
NAMES = ("cat", "dog", "bird")
RICH = """<?xml version="1.0" encoding="utf-8"?>
<annotation verified="yes"><folder>JPEGImages</folder><filename>b.jpg</filename><path>C:\\photos\\b.jpg</path>
<source><database>Unknown</database></source><size><width>60</width><height>40</height><depth>3</depth></size>
<segmented>0</segmented><object><name>cat</name><pose>Left</pose><truncated>1</truncated><occluded>0</occluded>
<difficult>Unspecified</difficult><bndbox><xmin>3.5</xmin><ymin>4</ymin><xmax>30</xmax><ymax>39.5</ymax></bndbox>
<part><name>head</name><bndbox><xmin>5</xmin><ymin>5</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></part></object>
<object><name>dog</name><bndbox><xmax>60</xmax><xmin>1</xmin><ymax>40</ymax><ymin>1</ymin></bndbox></object>
</annotation>"""
ENCODINGS = ("utf-16", "foo", "utf-7", "rot13", "idna", "cp037", "latin-1", "gb18030", "shift_jis", "hex", "utf-8")


def draw_target(random: Random) -> Files:
    """Draw what the data set is converted to."""
    return {str(TARGET): random.choice(FORMATS).encode()}


def read_root() -> None:
    """Check, count and convert: what `check` finds no fault with is opened, and is whole after conversion."""
    clean = run("dataset", "check", "--root", ROOT) == 0
    opened = run("dataset", "stats", "--root", ROOT) == 0
    if clean and not opened:
        raise Broken("`check` finds nothing, and `stats` refuses")
    if opened:
        datasets = [open_root(ROOT, [split]) for split in find_splits(ROOT)]
        for dataset in datasets:
            check_objects(dataset)
    out, target = Path("out"), TARGET.read_text()
    converted = run("dataset", "convert", ROOT, "--to", target, "--out", out) == 0
    unwritable = target == "voc" and opened and any(NOT_XML.search(name) for name in datasets[0].classes)
    if not converted and clean and not unwritable:
        raise Broken("`check` finds nothing, and `convert` refuses")
    if converted and not opened:
        raise Broken("`stats` refuses, and `convert` does not")
    if converted:
        before = sorted(map(_counts, datasets))
        after = sorted(_counts(open_root(out, [split])) for split in find_splits(out))
        if before != after:
            raise Broken(f"images and objects {before} became {after}")


def _counts(dataset: DetectionDataset) -> tuple[int, int]:
    return len(dataset), len(dataset.truth().boxes)


def prepare_voc() -> list[bytes]:
    """Three images in VOC layout; returns what `b.xml` may hold."""
    annotations = {
        "a": xml([("dog", (5, 5, 40, 40))]),
        "b": RICH,
        "c": xml([("cat", (1, 2, 20, 30), 1, 0), ("bird", (30, 2, 60, 30), 0, 1)], filename="c.jpg"),
    }
    make_root(ROOT, annotations, {"train": list(annotations)})
    TARGET.write_text(FORMATS[0])
    return [text.encode() for text in annotations.values()]


def draw_voc(random: Random, seeds: list[bytes]) -> Files:
    """Damage an XML, or say another encoding in it."""
    content = random.choice(seeds)
    if random.random() < 0.1:
        head = f'<?xml version="1.0" encoding="{random.choice(ENCODINGS)}"?>'.encode()
        content = head + content.partition(b"?>\n")[2] if content.startswith(b"<?xml") else head + content
    return {f"{ROOT}/Annotations/b.xml": edit_text(random, content), **draw_target(random)}


def draw_voc_list(random: Random, seeds: list[bytes]) -> Files:
    """Damage the list of a split."""
    edit = random.choice((edit_text, edit_lines))
    return {f"{ROOT}/ImageSets/Main/train.txt": edit(random, b"a\nb\nc\n"), **draw_target(random)}


def _prepare_from_voc(to: str) -> None:
    prepare_voc()
    convert(ROOT, "converted", to, images="copy")
    shutil.rmtree(ROOT)
    Path("converted").rename(ROOT)


def prepare_coco() -> Any:
    """The same in COCO's format, with a crowd and a polygon; returns the content of its file."""
    _prepare_from_voc("coco")
    (path,) = ROOT.glob("annotations/*.json")
    content = json.loads(path.read_text())
    content["info"], content["licenses"] = {"year": 2026}, [{"id": 1, "name": "none"}]
    content["annotations"][0]["iscrowd"] = 1
    content["annotations"][1]["segmentation"] = [[3, 4, 30, 4, 30, 39, 3, 39]]
    path.write_text(json.dumps(content))
    return path.as_posix(), content


def draw_coco(random: Random, seed: tuple[str, Any]) -> Files:
    """Damage the JSON."""
    path, content = seed
    return {path: edit_json(random, content), **draw_target(random)}


def prepare_yolo() -> None:
    """The same in YOLO layout, with a polygon."""
    _prepare_from_voc("yolo")
    label = ROOT / "labels/train/a.txt"
    label.write_text(label.read_text() + "1 .1 .1 .3 .1 .3 .4 .1 .4\n")


def draw_yolo(random: Random, seed: None) -> Files:
    """Damage a label file."""
    rows = b"0 0.5 0.5 0.2 0.2\n1 .1 .1 .3 .1 .3 .4 .1 .4\n2 0.25 0.3 0.1 0.125\n"
    return {f"{ROOT}/labels/train/b.txt": edit_text(random, rows), **draw_target(random)}


def prepare_data_yaml() -> bytes:
    """A YOLO data set; returns its data.yaml."""
    prepare_yolo()
    path = ROOT / "data.yaml"
    path.write_text("path: .\nnc: 3\n" + path.read_text())
    return path.read_bytes()


def draw_data_yaml(random: Random, seed: bytes) -> Files:
    """Damage data.yaml."""
    values = (*VALUES, *NAMES, "images\\train", "../images/train", "train.txt", {0: "cat", 2: "dog"}, "7", "1.50")
    if random.random() < 0.5:
        data = edit_several(random, yaml.safe_load(seed), values)
        content = yaml.safe_dump(data, allow_unicode=True).encode("utf-8", "surrogatepass")
    else:
        content = edit_text(random, seed)
    # no walk through the whole disk, which `path: /` asks for: it takes minutes where it is not refused
    content = content.replace(b": /", b": ./").replace(b"- /", b"- ./")
    return {f"{ROOT}/data.yaml": content, **draw_target(random)}


def prepare_flags() -> dict[str, Any]:
    """A YOLO data set; returns its flags.json."""
    prepare_yolo()
    entry = {"rows": 2, "difficult": [1], "crowd": [2], "truncated": [1, 2], "area": {"1": 30.5}}
    return {"labels/train/a.txt": entry, **json.loads((ROOT / "flags.json").read_bytes())}


def draw_flags(random: Random, seed: dict[str, Any]) -> Files:
    """Damage flags.json."""
    return {f"{ROOT}/flags.json": edit_json(random, seed), **draw_target(random)}


def prepare_classes() -> None:
    """A YOLO data set whose classes stand in text files."""
    prepare_yolo()
    (ROOT / "data.yaml").unlink()
    (ROOT / "classes.txt").write_text("\n".join(NAMES) + "\n")


def draw_classes(random: Random, seed: None) -> Files:
    """Damage classes.txt, here or as labelImg writes it."""
    place = random.choice(("classes.txt", "classes.txt", "labels/classes.txt"))
    return {f"{ROOT}/{place}": edit_text(random, "\n".join(NAMES).encode()), **draw_target(random)}


def prepare_index() -> bytes:
    """A VOC data set; returns the index that detkit keeps of it."""
    prepare_voc()
    open_root(ROOT, ["train"])
    return read_file(f"{ROOT}/.detkit-index.npz")


def draw_index(random: Random, seed: bytes) -> Files:
    """Damage the index."""
    return {f"{ROOT}/.detkit-index.npz": edit_text(random, seed)}


def read_index() -> None:
    """Open the data set: a damaged index is made anew."""
    check_objects(open_root(ROOT, ["train"]))
    if _counts(open_root(ROOT, ["train"])) != (3, 5):
        raise Broken("other objects than the annotations have")


DATASET_FORMATS = (
    Format("voc", prepare_voc, draw_voc, read_root, 4000, 60),
    Format("voc_list", prepare_voc, draw_voc_list, read_root, 500, 15),
    Format("coco", prepare_coco, draw_coco, read_root, 5500, 60),
    Format("yolo", prepare_yolo, draw_yolo, read_root, 4000, 60),
    Format("data_yaml", prepare_data_yaml, draw_data_yaml, read_root, 1500, 30),
    Format("flags", prepare_flags, draw_flags, read_root, 1200, 20),
    Format("classes", prepare_classes, draw_classes, read_root, 500, 30),
    Format("index", prepare_index, draw_index, read_index, 1000, 20),
)
