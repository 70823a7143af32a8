"""Detections and proposals."""

import json
import zipfile
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from scipy.io import savemat

from detkit.data.formats import open_root
from detkit.data.proposal_store import check_boxes, make_manifest, open_store, write_store
from detkit.evaluation import read_comp4, read_detections, score, write_comp4, write_detections
from detkit.structures import DetectionSet
from tests.campaign.commands import Broken, run
from tests.campaign.formats.base import Files, Format, read_file
from tests.campaign.formats.datasets import ROOT, prepare_voc
from tests.campaign.mutations import damage, edit_data, edit_json, edit_text, flip_bit
from tests.evaluation.sets import detection_set
from tests.proposals.matlab import cells

COMP4, DETECTIONS, METRIC = Path("comp4"), Path("detections.json"), Path("metric")
METRICS = ("voc07", "voc", "coco")
STORE, VALID = Path("store.npz"), Path("valid.npz")
BOXES = np.array([[1, 2, 30, 40], [0, 0, 10, 10], [5, 6, 59, 39.5]], np.float32)
MANY = np.tile(BOXES, (16, 1))  # so that most bytes of a store are boxes


def prepare_detections() -> DetectionSet:
    """A VOC data set and detections of it."""
    prepare_voc()
    METRIC.write_text(METRICS[0])
    truth = open_root(ROOT, ["train"]).truth()
    rows = [
        (truth.ids[i % 3], truth.classes[i % len(truth.classes)], 0.9 - i / 20, (2.0 + i, 3.0, 31.25, 39.0))
        for i in range(9)
    ]
    return detection_set(rows, truth.ids, truth.classes)


def evaluate(path: Path) -> None:
    """Score detections by the command, and look at the figure."""
    metric = METRIC.read_text()
    if run("evaluate", "--detections", path, "--dataset", ROOT, "--split", "train", "--metric", metric) == 0:
        truth = open_root(ROOT, ["train"]).truth()
        if path.is_dir():
            detections = read_comp4(path, "train", ids=truth.ids, classes=truth.classes)
        else:
            detections = read_detections(path)
        if not detections.boxes.isfinite().all() or not detections.scores.isfinite().all():
            raise Broken("boxes or scores accepted that are not finite")
        value = score(detections, truth, metric).mAP
        if value is None or not 0 <= value <= 1:
            raise Broken(f"mAP {value}")


def prepare_comp4() -> bytes:
    """A folder of comp4 texts; returns that of one class."""
    paths = write_comp4(COMP4, prepare_detections(), "train")
    return paths[0].read_bytes()


def draw_comp4(random: Random, seed: bytes) -> Files:
    """Damage the text of one class."""
    return {f"{COMP4}/comp4_det_train_cat.txt": edit_text(random, seed), str(METRIC): random.choice(METRICS).encode()}


def prepare_json() -> Any:
    """detections.json; returns what it holds."""
    write_detections(DETECTIONS, prepare_detections())
    return json.loads(DETECTIONS.read_bytes())


def draw_json(random: Random, seed: Any) -> Files:
    """Damage detections.json."""
    return {str(DETECTIONS): edit_json(random, seed), str(METRIC): random.choice(METRICS).encode()}


# proposals


def check_store(path: Path) -> None:
    """Raise Broken unless a store's boxes are boxes."""
    store = open_store(path)
    for row in range(len(store)):
        check_boxes(f"{path}, accepted", store.boxes_at(row))


def prepare_proposals() -> list[Any]:
    """Both forms of a JSON file of proposals."""
    Path("proposals.json").write_text("{}")
    entries = [
        {"image": "a", "boxes": BOXES.tolist(), "scores": [0.5, 0.25, 0.1]},
        {"image": "b", "boxes": [], "scores": []},
    ]
    return [{"a": BOXES.tolist(), "b": []}, entries]


def draw_proposals(random: Random, seeds: list[Any]) -> Files:
    """Damage one of them."""
    return {"proposals.json": edit_json(random, random.choice(seeds))}


def read_proposals() -> None:
    """Convert them to a store."""
    _convert("proposals.json")


def _convert(source: str) -> None:
    out = Path("out/store.npz")
    if run("proposals", "convert", source, out) == 0:
        check_store(out)


def prepare_mat() -> list[bytes]:
    """MATLAB files with and without names, compressed and not, of several kinds of numbers."""
    seeds = []
    names = cells([np.array([name]) for name in ("a", "b", "c")]).T
    for kind in (np.uint16, np.float64, np.float32):
        boxes = cells([np.array([[1, 2, 30, 40], [5, 6, 70, 80]], kind)] * 3)
        for values in ({"boxes": boxes, "images": names}, {"boxes": boxes, "other": np.zeros(3)}):
            for compressed in (False, True):
                buffer = BytesIO()
                savemat(buffer, values, do_compression=compressed)
                seeds.append(buffer.getvalue())
    Path("proposals.mat").write_bytes(seeds[0])
    return seeds


def draw_mat(random: Random, seeds: list[bytes]) -> Files:
    """Damage one of them, below its header of 128 bytes most often."""
    content = random.choice(seeds)
    head = 128 if random.random() < 0.9 else 0
    return {"proposals.mat": content[:head] + damage(random, content[head:])}


def read_mat() -> None:
    """Convert them to a store."""
    _convert("proposals.mat")


# stores


def prepare_store() -> bytes:
    """A store, twice: one is damaged, one stays."""
    prepare_voc()
    names = ["a", "b", "c"]
    manifest = make_manifest("random", {"seed": 7, "mode": "fast"}, names)
    scores = [np.linspace(1, 0, len(MANY))] * 3
    for path in (STORE, VALID):
        write_store(path, names, [MANY] * 3, scores, manifest=manifest)
    return read_file(str(STORE))


def draw_store(random: Random, seed: bytes) -> Files:
    """Damage its bytes; also of a compressed one, as numpy.savez_compressed writes it."""
    if random.random() < 0.25:
        with np.load(BytesIO(seed)) as arrays:
            buffer = BytesIO()
            np.savez_compressed(buffer, **arrays)
            seed = buffer.getvalue()
    return {str(STORE): (flip_bit if random.random() < 0.3 else damage)(random, seed)}


def read_store() -> None:
    """Write it as JSON: a damaged store is refused, or says what it said before."""
    out, valid = Path("out/store.json"), Path("out/valid.json")
    if run("proposals", "convert", STORE, out) == 0:
        run("proposals", "convert", VALID, valid)
        if out.read_bytes() != valid.read_bytes():
            raise Broken("a damaged store is accepted, with other contents")
        if asdict(open_store(STORE).manifest) != asdict(open_store(VALID).manifest):
            raise Broken("a damaged store is accepted, with another manifest")


def prepare_arrays() -> dict[str, np.ndarray]:
    """A store; returns its arrays."""
    with np.load(BytesIO(prepare_store())) as arrays:
        return dict(arrays)


def draw_arrays(random: Random, seed: dict[str, np.ndarray]) -> Files:
    """Damage what a store holds, and write that as a sound archive."""
    arrays = dict(seed)
    for _ in range(random.choice((1, 1, 2))):
        name = random.choice(list(arrays))
        if name == "manifest" and arrays[name].dtype.kind == "U" and arrays[name].ndim == 0 and random.random() < 0.8:
            text = json.dumps(edit_data(random, json.loads(str(seed[name]))), ensure_ascii=False)
            arrays[name] = np.array(text.encode("utf-8", "replace").decode())
        else:
            arrays |= _edit_array(random, name, arrays[name])
        if random.random() < 0.1:
            del arrays[name]
        if not arrays:
            break
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array(file, array, allow_pickle=True)
    return {str(STORE): buffer.getvalue()}


def _edit_array(random: Random, name: str, array: np.ndarray) -> dict[str, np.ndarray]:
    """Another type, shape, order, length or value."""
    way = random.randrange(7)
    try:
        if way == 0:
            kinds = (np.float64, np.int8, np.complex64, np.str_, object, np.float16, bool)
            array = array.astype(random.choice(kinds))
        elif way == 1:
            array = array[:-1]
        elif way == 2:
            array = np.ascontiguousarray(array.reshape(-1)[::-1]).reshape(array.shape)
        elif way == 3:
            array = array.copy()
            array.flat[random.randrange(max(1, array.size))] = random.choice((np.nan, np.inf, -1, 1e30, 0, 5))
        elif way == 4:
            array = np.array(5)
        elif way == 5:
            array = array[None]
        else:
            array = np.asfortranarray(np.concatenate([array, array]))
    except (ValueError, TypeError, IndexError, OverflowError):
        pass  # not of this array
    return {name: array}


def read_arrays() -> None:
    """Measure its recall and write it as JSON: it is refused, or its boxes are boxes."""
    recalled = run("proposals", "recall", STORE, "--dataset", ROOT, "--split", "train", "--out", "out/recall.png") == 0
    converted = run("proposals", "convert", STORE, "out/store.json") == 0
    if recalled or converted:
        check_store(STORE)


RESULT_FORMATS = (
    Format("comp4", prepare_comp4, draw_comp4, lambda: evaluate(COMP4), 2500, 40),
    Format("detections", prepare_json, draw_json, lambda: evaluate(DETECTIONS), 4500, 50),
    Format("proposals", prepare_proposals, draw_proposals, read_proposals, 2000, 60),
    Format("mat", prepare_mat, draw_mat, read_mat, 2000, 160),
    Format("npz", prepare_store, draw_store, read_store, 4500, 50),
    Format("npz_arrays", prepare_arrays, draw_arrays, read_arrays, 2000, 25),
)
