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

from detkit.files import write_atomic

INDEX_NAME = ".detkit-index.npz"
INDEX_VERSION = 3


@dataclass(frozen=True)
class Index:
    """The annotations of F images with O objects, as written: nothing clipped, nothing refused.

    ids: (F,) what the images are called. files: (F,) names of their files. sizes: (F, 2) int64 width and height, 0
    where unknown. problems: (F,) lines that say what is wrong with an image's annotations, "" where nothing is; a line
    on one object begins as `object 3 (cat): `. first: (F + 1,) int64, image f owns the objects first[f]:first[f + 1].
    boxes: (O, 4) float64 continuous xyxy in pixels. number: (O,) what the file calls the object: its place from 1, its
    line, or its id. names: (O,) index into classes. difficult, crowd, truncated: (O,) bool. area: (O,) float64 pixels,
    NaN where the file says nothing.
    """

    ids: np.ndarray
    files: np.ndarray
    sizes: np.ndarray
    problems: np.ndarray
    first: np.ndarray
    boxes: np.ndarray
    number: np.ndarray
    names: np.ndarray
    difficult: np.ndarray
    crowd: np.ndarray
    truncated: np.ndarray
    area: np.ndarray
    classes: np.ndarray

    def rows(self) -> dict[str, int]:
        """Map each id to its place in the index."""
        return {str(name): row for row, name in enumerate(self.ids)}


AnyIndex = TypeVar("AnyIndex", bound=Index)


def object_arrays(objects: list[tuple[int, int, tuple[float, ...], bool, bool, bool, float]]) -> dict[str, np.ndarray]:
    """Turn (number, class, box, difficult, crowd, truncated, area) of all objects into the arrays of an index."""
    number, names, boxes, difficult, crowd, truncated, area = zip(*objects) if objects else [()] * 7
    return {
        "number": np.array(number, dtype=np.int64),
        "names": np.array(names, dtype=np.int64),
        "boxes": np.array(boxes, dtype=np.float64).reshape(-1, 4),
        "difficult": np.array(difficult, dtype=bool),
        "crowd": np.array(crowd, dtype=bool),
        "truncated": np.array(truncated, dtype=bool),
        "area": np.array(area, dtype=np.float64),
    }


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
    places = _places(root, key)
    for place in places:
        index = _load(place, digest, kind)
        if index is not None:
            return index
    index = build()
    buffer = BytesIO()
    np.savez(buffer, fingerprint=np.array(digest), **vars(index))
    for place in places:
        try:
            write_atomic(place, buffer.getvalue())
            break
        except OSError:
            continue  # read-only or full: an index is a convenience, so reading goes on without it
    return index


def _places(root: Path, key: str) -> list[Path]:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "detkit"
    name = hashlib.blake2b(f"{root.resolve()}{key and ' ' + key}".encode(), digest_size=8).hexdigest()
    places = [cache / f"index-{name}.npz"]
    # the mode is looked at because root may write anywhere: a folder marked read-only is left as it is
    if root.stat().st_mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH) and os.access(root, os.W_OK):
        own = hashlib.blake2b(key.encode(), digest_size=8).hexdigest()
        places.insert(0, root / (f"{INDEX_NAME.removesuffix('.npz')}-{own}.npz" if key else INDEX_NAME))
    return places


def _load(path: Path, digest: str, kind: type[AnyIndex]) -> AnyIndex | None:
    try:
        with np.load(path, allow_pickle=False) as stored:
            if str(stored["fingerprint"]) != digest:
                return None
            return kind(**{name: stored[name] for name in kind.__dataclass_fields__})
    except Exception:
        return None  # missing, or written by something else: it is simply made anew
