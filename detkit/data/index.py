"""Annotations as flat arrays, parsed once and kept in a file, so that later starts are quick."""

import hashlib
import json
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import numpy as np

from detkit.data.annotations import AnnotatedImage, Annotations, Fault
from detkit.files import write_atomic
from detkit.verified import verify_zip

INDEX_NAME = ".detkit-index.npz"
INDEX_VERSION = 7
ENDS = ".ends"  # ends the name of where the texts of an array end in a file
OBJECTS = "objects."  # begins the names of the objects' arrays in a file


@dataclass(frozen=True)
class Index:
    """The annotations of F images, as written: nothing clipped, nothing refused.

    ids: (F,) what the images are called. files: (F,) names of their files, as written. stated: (F,) `WIDTHxHEIGHT` as
    the annotation says, "" where it says nothing. first: (F + 1,) int64, image f has the objects first[f]:first[f + 1].
    objects: of all images; labels are indices into `classes`, boxes are float64, an area that the file does not say is
    NaN. classes: (C,) names. fault_image, fault_number: (P,) int64, fault_text: (P,), what is wrong, see Fault, in the
    order of the images. All texts are arrays of Python's texts, which take the room that they need.
    """

    ids: np.ndarray
    files: np.ndarray
    stated: np.ndarray
    first: np.ndarray
    objects: Annotations
    classes: np.ndarray
    fault_image: np.ndarray
    fault_number: np.ndarray
    fault_text: np.ndarray

    def rows_by_id(self) -> dict[str, int]:
        """Map each id to its row in the index."""
        return {name: row for row, name in enumerate(self.ids.tolist())}

    def faults(self, row: int) -> list[Fault]:
        """Return what is wrong with the annotations of an image."""
        low, high = np.searchsorted(self.fault_image, (row, row + 1))
        return [*map(Fault, self.fault_number[low:high].tolist(), self.fault_text[low:high].tolist())]

    def objects_of(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return which objects the images at `rows` have, image by image, and which of the rows each is of."""
        counts = np.diff(self.first)[rows]
        image = np.repeat(np.arange(len(rows)), counts)
        # the objects of an image follow one another: that of its first, and how many objects after it
        before = np.cumsum(counts) - counts  # objects of all images before, (n,)
        position = np.arange(len(image)) - before[image]
        return self.first[rows][image] + position, image


AnyIndex = TypeVar("AnyIndex", bound=Index)


def make_index(
    images: Sequence[AnnotatedImage],
    classes: Sequence[str] | None = None,
    ids: Sequence[str] | None = None,
    kind: type[AnyIndex] = Index,
    **others: Any,
) -> AnyIndex:
    """Turn what was read of images into arrays.

    classes: what objects are called, None where they have numbers, which then are the labels. ids: by default the
    shortest names of the files. others: further fields of this kind of index.
    """
    files = [image.file for image in images]
    faults = [(row, *fault) for row, image in enumerate(images) for fault in image.faults]
    return kind(
        ids=texts(shortest_names(files) if ids is None else ids),
        files=texts(files),
        stated=texts([f"{width}x{height}" if width and height else "" for width, height in (i.size for i in images)]),
        first=np.cumsum([0, *(len(image.objects) for image in images)]),
        objects=Annotations.from_objects([item for image in images for item in image.objects], classes),
        classes=texts(classes or ()),
        fault_image=np.array([row for row, _, _ in faults], dtype=np.int64),
        fault_number=np.array([number for _, number, _ in faults], dtype=np.int64),
        fault_text=texts([text for _, _, text in faults]),
        **others,
    )


def texts(values: Sequence[Any]) -> np.ndarray:
    """Return an array of objects, such as texts."""
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def shortest_names(files: Sequence[str]) -> list[str]:
    """What to call images: the bare names of their files; their paths where that is not unique, with the suffix if
    need be."""
    paths = [PurePosixPath(name) for name in files]
    for names in ([path.stem for path in paths], [str(path.with_suffix("")) if path.name else "" for path in paths]):
        if len(set(names)) == len(names):
            return names
    return list(files)


def fingerprint(state: Any) -> str:
    """Return a digest of what an index was made from, such as names, times and sizes of files."""
    return hashlib.blake2b(json.dumps([INDEX_VERSION, state]).encode(), digest_size=16).hexdigest()


def cached_index(root: Path, key: str, digest: str, kind: type[AnyIndex], build: Callable[[], AnyIndex]) -> AnyIndex:
    """Return an index from its file where that has this digest, else build it and write the file.

    key: tells several indices of a root apart, "" for the only one. The file is written into `root`, or into the
    user's cache folder where `root` is read-only.
    """
    known = load_arrays(root, key, digest)
    if known is not None:
        with suppress(KeyError):  # written by something else
            objects = {name.removeprefix(OBJECTS): value for name, value in known.items() if name.startswith(OBJECTS)}
            arrays = {name: known[name] for name in kind.__dataclass_fields__ if name != "objects"}
            return kind(**arrays, objects=Annotations.from_arrays(objects))
    index = build()
    arrays = {name: value for name, value in vars(index).items() if name != "objects"}
    save_arrays(root, key, digest, arrays | {OBJECTS + name: value for name, value in index.objects.arrays().items()})
    return index


def load_arrays(root: Path, key: str, digest: str) -> dict[str, np.ndarray] | None:
    """Return the arrays of the file of a key if it was written with this digest, else None."""
    for path in _paths(root, key):
        try:
            with open(path, "rb") as file:
                verify_zip(file, path, "an index")
                with np.load(file, allow_pickle=False) as stored:
                    if str(stored["fingerprint"]) == digest:
                        names = {name.removesuffix(ENDS) for name in stored}
                        return {name: _unpack(stored, name) for name in names}
        except Exception:
            continue  # missing, damaged, or written by something else: it is simply made anew
    return None


def save_arrays(root: Path, key: str, digest: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays into the file of a key, if that can be written; of objects, only texts."""
    buffer = BytesIO()
    packed: dict[str, Any] = {}
    for name, value in arrays.items():
        packed |= _pack(name, value) if value.dtype == object else {name: value}
    np.savez(buffer, **packed, fingerprint=np.array(digest))
    for path in _paths(root, key):
        try:
            write_atomic(path, buffer.getvalue())
            break
        except OSError:
            continue  # read-only or full: an index is a convenience, so reading goes on without it


def _pack(name: str, values: np.ndarray) -> dict[str, np.ndarray]:
    """Texts as the bytes of all and where each ends; names of files may be no UTF-8."""
    parts = [value.encode("utf-8", "surrogatepass") for value in values.tolist()]
    ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
    return {name: np.frombuffer(b"".join(parts), np.uint8), name + ENDS: ends}


def _unpack(stored: Any, name: str) -> np.ndarray:
    if name + ENDS not in stored:
        return stored[name]
    content, ends = stored[name].tobytes(), stored[name + ENDS].tolist()
    return texts([content[low:high].decode("utf-8", "surrogatepass") for low, high in zip([0, *ends], ends)])


def _paths(root: Path, key: str) -> list[Path]:
    def digest(text: str) -> str:
        return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()

    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "detkit"
    paths = [cache / f"index-{digest(f'{root.resolve()} {key}')}.npz"]
    # the mode is looked at because root may write anywhere: a folder marked read-only is left as it is
    if root.stat().st_mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH) and os.access(root, os.W_OK):
        paths.insert(0, root / (INDEX_NAME.replace(".npz", f"-{digest(key)}.npz") if key else INDEX_NAME))
    return paths
