"""Annotations as flat arrays, parsed once and kept in a file, so that later starts are quick."""

import hashlib
import json
import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import numpy as np

from detkit.data.annotations import AnnotatedImage, Annotations
from detkit.files import write_atomic
from detkit.verified import verify_zip

INDEX_NAME = ".detkit-index.npz"
INDEX_VERSION = 5
OBJECTS = "objects."  # begins the names of the objects' arrays in a file


@dataclass(frozen=True)
class Index:
    """The annotations of F images, as written: nothing clipped, nothing refused.

    ids: (F,) what the images are called. files: (F,) names of their files. sizes: (F, 2) int64 width and height, 0
    where unknown. problems: (F,) lines that say what is wrong with an image's annotations, "" where nothing is; a line
    on one object begins as `object 3 (cat): `. first: (F + 1,) int64, image f has the objects first[f]:first[f + 1].
    objects: of all images; labels are indices into `classes`, boxes are float64, an area that the file does not say is
    NaN. classes: (C,) names.
    """

    ids: np.ndarray
    files: np.ndarray
    sizes: np.ndarray
    problems: np.ndarray
    first: np.ndarray
    objects: Annotations
    classes: np.ndarray

    def rows_by_id(self) -> dict[str, int]:
        """Map each id to its row in the index."""
        return {str(name): row for row, name in enumerate(self.ids)}

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
    return kind(
        ids=np.array(shortest_names(files) if ids is None else ids, dtype=np.str_),
        files=np.array(files, dtype=np.str_),
        sizes=np.array([image.size for image in images], dtype=np.int64).reshape(-1, 2),
        problems=np.array(["\n".join(image.problems) for image in images], dtype=np.str_),
        first=np.cumsum([0, *(len(image.objects) for image in images)]),
        objects=Annotations.from_objects([item for image in images for item in image.objects], classes),
        classes=np.array(classes or (), dtype=np.str_),
        **others,
    )


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
    paths = _paths(root, key)
    for path in paths:
        index = _load(path, digest, kind)
        if index is not None:
            return index
    index = build()
    buffer = BytesIO()
    arrays: dict[str, Any] = {name: value for name, value in vars(index).items() if name != "objects"}
    arrays |= {OBJECTS + name: value for name, value in index.objects.arrays().items()}
    np.savez(buffer, **arrays, fingerprint=np.array(digest))
    for path in paths:
        try:
            write_atomic(path, buffer.getvalue())
            break
        except OSError:
            continue  # read-only or full: an index is a convenience, so reading goes on without it
    return index


def _paths(root: Path, key: str) -> list[Path]:
    def digest(text: str) -> str:
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "detkit"
    paths = [cache / f"index-{digest(f'{root.resolve()} {key}')}.npz"]
    # the mode is looked at because root may write anywhere: a folder marked read-only is left as it is
    if root.stat().st_mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH) and os.access(root, os.W_OK):
        paths.insert(0, root / (INDEX_NAME.replace(".npz", f"-{digest(key)}.npz") if key else INDEX_NAME))
    return paths


def _load(path: Path, digest: str, kind: type[AnyIndex]) -> AnyIndex | None:
    try:
        with open(path, "rb") as file:
            verify_zip(file, path, "an index")
            with np.load(file, allow_pickle=False) as stored:
                if str(stored["fingerprint"]) != digest:
                    return None
                objects = {name.removeprefix(OBJECTS): stored[name] for name in stored if name.startswith(OBJECTS)}
                arrays = {name: stored[name] for name in kind.__dataclass_fields__ if name != "objects"}
                return kind(**arrays, objects=Annotations.from_arrays(objects))
    except Exception:
        return None  # missing, damaged, or written by something else: it is simply made anew
