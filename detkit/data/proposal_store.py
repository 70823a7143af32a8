"""The proposals of a data set in one file.

A store is an uncompressed .npz, which numpy.load opens too:

    manifest  text of a JSON object, see Manifest
    ids       (n,) names of the images
    first     (n + 1,) int64: image i has the boxes first[i]:first[i + 1]
    boxes     (P, 4) float32 continuous xyxy in pixels of the upright image, of each image the best first
    scores    (P,) float32, only where the method gives any

Opening a store verifies all that is in it, which takes less time than reading it image by image. Boxes and scores are
then mapped into memory rather than read, so processes share the pages.
"""

import hashlib
import json
import math
import os
import shlex
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from detkit.data.dataset import DetectionDataset
from detkit.errors import UserError
from detkit.files import save_atomic
from detkit.verified import verify_zip

FORMAT = "detkit proposals 1"
SLACK = 1.0  # pixels that a box may reach beyond its image: published conventions differ by so much
LOCAL_HEADER = 30  # bytes of a zip member's header before its name (APPNOTE.TXT 4.3.7)


@dataclass(frozen=True)
class Manifest:
    """What a store holds and how that was made.

    method: such as selective_search. parameters: of the method, JSON values. images: how many images; images_hash: of
    their names in order, see `hash_ids`. detkit: the version that made it.
    """

    method: str
    parameters: dict[str, Any]
    images: int
    images_hash: str
    detkit: str
    format: str = FORMAT

    @property
    def recipe(self) -> str:
        """The method with its parameters, as text."""
        return f"{self.method}({', '.join(f'{key}={value}' for key, value in sorted(self.parameters.items()))})"


@dataclass(frozen=True)
class ProposalStore:
    """An open store. Arrays as in the file: first (n + 1,), flat_boxes (P, 4), flat_scores (P,) or None."""

    path: Path
    manifest: Manifest
    ids: tuple[str, ...]
    first: np.ndarray
    flat_boxes: np.ndarray
    flat_scores: np.ndarray | None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def counts(self) -> np.ndarray:
        """(n,) int64 boxes of each image."""
        return np.diff(self.first)

    @property
    def scored(self) -> bool:
        """Whether there are scores."""
        return self.flat_scores is not None

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {name: row for row, name in enumerate(self.ids)}

    def boxes(self, image: str | int, count: int | None = None) -> np.ndarray:
        """Return the boxes (N, 4) float32 of an image, or the first `count` of them, a copy.

        image: its name, or its index in `ids`. UserError where the store has no image of that name.
        """
        return np.array(self.flat_boxes[self._slice(image, count)])

    def scores(self, image: str | int, count: int | None = None) -> np.ndarray | None:
        """Return the scores (N,) float32 that belong to `boxes`, a copy, or None where the store has none."""
        return None if self.flat_scores is None else np.array(self.flat_scores[self._slice(image, count)])

    def reach(self, rows: np.ndarray) -> np.ndarray:
        """Return the box (n, 4) around all boxes of each of the images `rows`, none of which is without boxes."""
        filled = np.flatnonzero(self.counts)
        begins = self.first[filled]
        around = [
            extreme.reduceat(self.flat_boxes[:, sides], begins) if len(begins) else np.zeros((0, 2))
            for extreme, sides in ((np.minimum, slice(2)), (np.maximum, slice(2, 4)))
        ]
        return np.concatenate(around, 1)[np.searchsorted(filled, rows)]

    def _slice(self, image: str | int, count: int | None) -> slice:
        if isinstance(image, str):
            if image not in self._rows:
                raise UserError(f"{self.path}: no proposals of image {image}")
            image = self._rows[image]
        start, stop = int(self.first[image]), int(self.first[image + 1])
        return slice(start, stop if count is None else min(stop, start + count))


def make_manifest(method: str, parameters: dict[str, Any], ids: Sequence[str]) -> Manifest:
    """Return the manifest of a store over `ids`, made by this version of detkit."""
    try:
        made_by = version("detkit")
    except PackageNotFoundError:  # run from a checkout
        made_by = "unknown"
    return Manifest(method, parameters, len(ids), hash_ids(ids), made_by)


def hash_ids(ids: Sequence[str]) -> str:
    """Return a digest of a list of names, which differs for another order."""
    return hashlib.sha256("\n".join(ids).encode(errors="surrogatepass")).hexdigest()[:16]


def write_store(
    path: str | Path,
    ids: Sequence[str],
    boxes: Sequence[np.ndarray],
    scores: Sequence[np.ndarray] | None = None,
    *,
    manifest: Manifest,
) -> None:
    """Write a store, completely or not at all.

    ids: names of the images, each once. boxes: (N_i, 4) xyxy of each image, the best first. scores: (N_i,) of each
    image, or None. Raises UserError for a box or score that is not finite, and for an empty box.
    """
    path = Path(path)
    check_name(path)
    if len(set(ids)) != len(ids) or len(boxes) != len(ids):
        raise ValueError(f"{len(boxes)} lists of boxes for {len(set(ids))} different names of {len(ids)}")
    boxes = [np.asarray(image_boxes, dtype=np.float32) for image_boxes in boxes]
    for name, image_boxes in zip(ids, boxes):
        check_boxes(f"image {name}", image_boxes)
    lengths = [len(image_boxes) for image_boxes in boxes]
    arrays: dict[str, Any] = {
        "manifest": np.array(json.dumps(asdict(manifest))),
        "ids": np.array(ids, dtype=np.str_),
        "first": np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        "boxes": np.concatenate([np.zeros((0, 4), dtype=np.float32), *boxes]),
    }
    if scores is not None:
        if [len(image_scores) for image_scores in scores] != lengths:
            raise ValueError("each box has one score")
        arrays["scores"] = np.concatenate([np.zeros(0), *scores], dtype=np.float32)
        check_scores(path, arrays["scores"])
    save_atomic(path, lambda temporary: np.savez(temporary, **arrays))


def check_name(path: Path) -> None:
    """Raise UserError unless a file can have the name of a store."""
    if path.suffix != ".npz":
        raise UserError(f"{path}: a proposal store's name ends with .npz")


def check_boxes(where: str, boxes: np.ndarray) -> None:
    """Raise UserError, in one line, unless boxes are (N, 4), finite, and none of them is empty."""
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise UserError(f"{where}: boxes of shape {boxes.shape}, expected (N, 4): left, top, right, bottom")
    good = _sound(boxes)
    if not good.all():
        bad = int(good.argmin())
        numbers = ", ".join(f"{value:g}" for value in boxes[bad].tolist())
        raise UserError(f"{where}: box {bad} is [{numbers}], expected left < right and top < bottom")


def check_scores(where: str | Path, scores: np.ndarray | None) -> None:
    """Raise UserError, in one line, unless scores are finite."""
    if scores is not None and not np.isfinite(scores).all():
        raise UserError(f"{where}: a score is not finite")


def _sound(boxes: np.ndarray) -> np.ndarray:
    """Which of boxes (N, 4) are finite and not empty, (N,) bool."""
    with np.errstate(invalid="ignore", over="ignore"):
        width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    # a side with an end that is not finite is infinite or NaN
    return np.logical_and(np.minimum(width, height) > 0, np.maximum(width, height) < np.inf)


def check_inside(where: str | Path, dataset: DetectionDataset, i: int, boxes: np.ndarray) -> None:
    """Raise UserError, in one line, unless boxes (N, 4) reach at most SLACK pixels beyond image `i` of a data set.

    Where the image could not be read when the data set was opened, its size is what the annotation says, which may be
    nothing; where boxes don't fit that, the image's own, if it is there now.
    """
    size = dataset.sizes[i]
    outside = _outside(boxes, size)
    if not outside.any():
        return
    with suppress(UserError):
        size = np.array(dataset.image(i).shape[1::-1])
        outside = _outside(boxes, size)
    if outside.any():
        numbers = ", ".join(f"{value:g}" for value in boxes[outside.argmax()].tolist())
        raise UserError(
            f"{where}: image {dataset.ids[i]}: the box left, top, right, bottom = {numbers} reaches beyond the image "
            f"of {size[0]}x{size[1]}; are x and y exchanged?"
        )


def _outside(boxes: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Which of boxes (N, 4) reach beyond (width, height), of one image or one a box; a side of 0 is not known."""
    size = np.where(size > 0, size, np.inf)
    return np.array((boxes[:, :2] < -SLACK).any(1) | (boxes[:, 2:] > size + SLACK).any(1))


def open_store(path: str | Path) -> ProposalStore:
    """Open a store. Raises UserError, in one line, where the file is missing, damaged or something else, and for what
    `write_store` refuses."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no proposals {path}; make them with: detkit proposals make CONFIG --out {path}")
    try:
        with open(path, "rb") as file:
            verify_zip(file, path, "a proposal store")
            with zipfile.ZipFile(file) as archive:
                manifest = _read_manifest(path, archive)
                names, first = _read(archive, "ids", "U"), _read(archive, "first", "i")
                boxes = _map(path, archive, "boxes")
                scores = _map(path, archive, "scores") if "scores.npy" in archive.namelist() else None
    except (zipfile.BadZipFile, KeyError, ValueError, TypeError, EOFError, OSError, RecursionError) as error:
        raise UserError(f"{path}: damaged, or not a proposal store: {' '.join(str(error).split())}") from None
    fits = names.ndim == 1 and first.shape == (len(names) + 1,) and first[0] == 0 and (np.diff(first) >= 0).all()
    fits = fits and boxes.shape == (first[-1], 4) and (scores is None or scores.shape == (first[-1],))
    ids = tuple(map(str, names.tolist())) if fits else ()
    if not fits or (manifest.images, manifest.images_hash) != (len(ids), hash_ids(ids)):
        raise UserError(f"{path}: damaged: its parts do not belong together; make it again")
    if len(set(ids)) < len(ids):
        raise UserError(f"{path}: damaged: an image is there twice; make it again")
    store = ProposalStore(path, manifest, ids, first, boxes, scores)
    if not (sound := _sound(boxes)).all():
        row = int(np.searchsorted(first, sound.argmin(), "right")) - 1
        check_boxes(f"{path}: image {ids[row]}", store.boxes(row))
    check_scores(path, scores)
    return store


def _read_manifest(path: Path, archive: zipfile.ZipFile) -> Manifest:
    values = json.loads(str(_read(archive, "manifest", "U")))
    format_name = values.get("format") if isinstance(values, dict) else None
    if format_name != FORMAT:
        raise UserError(f"{path}: format is {format_name!r}, expected {FORMAT!r}")
    try:
        manifest = Manifest(**values)
    except TypeError as error:
        raise UserError(f"{path}: its manifest is not one of {FORMAT!r}: {error}") from None
    if not isinstance(manifest.method, str) or not isinstance(manifest.parameters, dict):
        raise UserError(f"{path}: its manifest is not one of {FORMAT!r}: method is no name, or parameters no dict")
    return manifest


def _read(archive: zipfile.ZipFile, name: str, kind: str) -> np.ndarray:
    """Read an array; kind: that of its numpy type."""
    with archive.open(f"{name}.npy") as file:
        array = np.lib.format.read_array(file, allow_pickle=False)
    if array.dtype.kind != kind:
        raise ValueError(f"{name} is {array.dtype}")
    return array


def _map(path: Path, archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """Map a float32 array of an uncompressed archive into memory; numpy can do so only for files of one array."""
    member = archive.getinfo(f"{name}.npy")
    with open(path, "rb") as file:
        file.seek(member.header_offset)
        header = file.read(LOCAL_HEADER)
        # the local header's own lengths of name and extra field: the latter differs from the central directory's
        file.seek(sum(int.from_bytes(header[at : at + 2], "little") for at in (26, 28)), 1)
        begin = file.tell()
        with archive.open(member) as content:  # unpacked, where the file itself is not
            version = np.lib.format.read_magic(content)
            read_header = (
                np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            )
            shape, by_columns, dtype = read_header(content)
            offset = begin + content.tell()
    if dtype != np.float32:
        raise ValueError(f"{name} is {dtype}, expected float32")
    if member.compress_type != zipfile.ZIP_STORED or not math.prod(shape):  # a map cannot be empty
        return _read(archive, name, "f")
    if offset + math.prod(shape) * dtype.itemsize != begin + member.file_size:
        raise ValueError(f"{name} is not as long as it says")
    return np.memmap(path, dtype, "r", offset, shape, "F" if by_columns else "C")


def match_ids(names: Sequence[str], ids: Sequence[str]) -> np.ndarray:
    """Return the index in `ids` of each name, (len(names),) int64, -1 where it is missing.

    A data set of several folders calls its images FOLDER/NAME, one of a single folder NAME. Where only one side has
    the folder the names alone have to agree, and to be unique on both sides.
    """
    row_of = {name: row for row, name in enumerate(ids)}
    bare, asked = _by_bare_name(ids), _by_bare_name(names)

    def find(name: str) -> int:
        if name in row_of:
            return row_of[name]
        folder, _, short = name.rpartition("/")
        row = bare.get(short, -1)
        alike = row < 0 or asked[short] < 0 or bool(folder) == ("/" in ids[row])
        return -1 if alike else row

    return np.array([find(name) for name in names], dtype=np.int64)


def _by_bare_name(ids: Sequence[str]) -> dict[str, int]:
    """Return the index of each name without its folder, -1 where it is not unique."""
    rows: dict[str, int] = {}
    for row, name in enumerate(ids):
        short = name.rpartition("/")[2]
        rows[short] = -1 if short in rows else row
    return rows


def make_command(dataset: DetectionDataset) -> str:
    """Return the command that makes the proposals of a data set."""
    roots = list(dict.fromkeys(root for root, _ in dataset.sources))
    above = roots[0] if len(roots) == 1 else Path(os.path.commonpath(roots))
    splits = [(root.relative_to(above) / split).as_posix() for root, split in dataset.sources]
    options = ["--root", str(above), *(word for split in splits for word in ("--split", split))]
    return shlex.join(["detkit", "proposals", "make", *options])


def check_store(store: ProposalStore, dataset: DetectionDataset) -> None:
    """Raise UserError, in one line, unless the store has proposals of every image of a data set, inside of it."""
    StoredProposals([store], dataset)


class StoredProposals:
    """The proposals of a data set's images, found in one or several stores, the first that knows an image first.

    stores: open ones, or their paths. count: at most so many of an image, the best, or None for all. `scored` says
    whether all stores have scores. Raises UserError, in one line, where images are missing, or a box lies outside.
    """

    def __init__(
        self, stores: Sequence[ProposalStore | str | Path], dataset: DetectionDataset, count: int | None = None
    ) -> None:
        self.stores = [store if isinstance(store, ProposalStore) else open_store(store) for store in stores]
        self.count = count
        self.scored = all(store.scored for store in self.stores)
        self._store = np.full(len(dataset.ids), -1)
        self._row = np.full(len(dataset.ids), -1)
        for number, store in enumerate(self.stores):
            rows = match_ids(dataset.ids, store.ids)
            new = (rows >= 0) & (self._store < 0)
            self._store[new], self._row[new] = number, rows[new]
        missing = np.flatnonzero(self._store < 0)
        if len(missing):
            files = ", ".join(str(store.path) for store in self.stores)
            raise UserError(
                f"{files}: no proposals of image {dataset.ids[missing[0]]} of {dataset.name} "
                f"({len(missing)} of {len(dataset.ids)} are missing); make them with: {make_command(dataset)}"
            )
        for number, store in enumerate(self.stores):
            images = np.flatnonzero(self._store == number)
            images = images[store.counts[self._row[images]] > 0]
            for i in images[_outside(store.reach(self._row[images]), dataset.sizes[images])]:
                check_inside(store.path, dataset, i, store.boxes(int(self._row[i])))

    def boxes(self, i: int) -> np.ndarray:
        """Return the boxes (N, 4) float32 of image `i` of the data set, pixels of the image."""
        return self.stores[self._store[i]].boxes(self._row[i], self.count)

    def scores(self, i: int) -> np.ndarray | None:
        """Return the scores (N,) float32 of image `i`, or None unless all stores have scores."""
        return self.stores[self._store[i]].scores(self._row[i], self.count) if self.scored else None
