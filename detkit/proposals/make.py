"""Proposals of a data set: made by several processes, interrupted and gone on with."""

import shutil
import signal
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from detkit.data.dataset import DetectionDataset
from detkit.data.proposal_store import Manifest, ProposalStore, check_name, make_manifest, open_store, write_store
from detkit.errors import UserError
from detkit.proposals.methods import Method, find_method
from detkit.runtime.lock import NAME, locked
from detkit.runtime.signals import Interrupt

PART = 64  # images whose boxes are written together while the work goes on

Progress = Callable[[int, int], None]
Scores = np.ndarray | None
Made = tuple[int, np.ndarray, Scores]  # number of an image, its boxes (N, 4) and their scores (N,), the best first


def make_store(
    path: str | Path,
    dataset: DetectionDataset,
    method: str,
    parameters: dict[str, Any],
    *,
    workers: int,
    progress: Progress | None = None,
) -> ProposalStore:
    """Make the proposals of every image of a data set from its image, in `workers` processes: see `fill_store`.

    progress: the processes are there before it is called, which threads of a progress bar might harm. Raises UserError
    for an unknown method or an image that cannot be read, too.
    """

    check_name(Path(path))
    find_method(method, parameters)  # an unknown one is refused before any work

    def make(images: list[int]) -> Generator[Made]:
        return _run(dataset, images, method, parameters, workers)

    return fill_store(path, dataset.ids, make_manifest(method, parameters, dataset.ids), make, progress)


def fill_store(
    path: str | Path,
    ids: Sequence[str],
    manifest: Manifest,
    make: Callable[[list[int]], Generator[Made]],
    progress: Progress | None = None,
) -> ProposalStore:
    """Write the store `path` of the images `ids`; return it, open.

    make: called with indices in `ids`, yields (index, boxes, scores or None) of these images in any order. progress:
    called with (done, total), first when an image is done. Where that store exists already, nothing is done. What an
    interrupted run over the same images left in the folder beside it, PATH.parts-HASH, is taken over.
    Raises UserError where the store or its parts were made in another way, or another process is making it. Raises
    KeyboardInterrupt on Ctrl-C and SIGTERM, once what is done is written.
    """
    path = Path(path)
    check_name(path)
    lock = path.with_name(f".{path.name}{NAME}")
    parts = _Parts(path.with_name(f"{path.name}.parts-{manifest.images_hash}"), manifest)
    if not path.exists() or lock.exists() or parts.folder.exists():  # of a process that was killed
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(lock, str(path)):
            if not path.exists():
                _write_from_parts(path, ids, parts, make, progress)
            shutil.rmtree(parts.folder, ignore_errors=True)
    store = open_store(path)
    _check_same(store, manifest, path)
    return store


def _write_from_parts(
    path: Path,
    ids: Sequence[str],
    parts: "_Parts",
    make: Callable[[list[int]], Generator[Made]],
    progress: Progress | None,
) -> None:
    done = parts.read()
    left = [i for i, name in enumerate(ids) if name not in done]
    count = len(ids) - len(left)
    try:
        with parts, Interrupt() as interrupt, closing(make(left)) as made:
            for i, boxes, scores in made:
                parts.add(ids[i], boxes, scores)
                count += 1
                if progress is not None:
                    progress(count, len(ids))
                if interrupt.received:
                    raise KeyboardInterrupt
    except KeyboardInterrupt:  # also of a second Ctrl-C, which waits for no image
        said = f"{count} of {len(ids)} images are done; the same command goes on from there"
        raise KeyboardInterrupt(said) from None
    done = parts.read()
    write_store(path, ids, *_columns([done[name] for name in ids]), manifest=parts.manifest)


def _check_same(store: ProposalStore, manifest: Manifest, remove: Path) -> None:
    """Raise UserError unless a store was made, or begun, as the manifest says."""
    made = store.manifest
    if made.recipe != manifest.recipe:
        difference = f"{made.recipe}, not {manifest.recipe}"
    elif remove == store.path and made.images_hash != manifest.images_hash:
        difference = f"{made.images} other images, not these {manifest.images}"
    else:
        return
    raise UserError(f"{store.path} holds {difference}; remove {remove}, or give another --out")


class _Parts:
    """The folder of finished images: each file is a store of some of them. Leaving the context writes what is left."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder, self.manifest = folder, manifest
        self._begun: dict[str, tuple[np.ndarray, Scores]] = {}

    def __enter__(self) -> "_Parts":
        return self

    def __exit__(self, *_: object) -> None:
        self._write()

    def read(self) -> dict[str, tuple[np.ndarray, Scores]]:
        """Return boxes and scores of every finished image; UserError where a part was made with other parameters."""
        done: dict[str, tuple[np.ndarray, Scores]] = {}
        for path in sorted(self.folder.glob("[0-9]*.npz")):
            store = open_store(path)
            _check_same(store, self.manifest, self.folder)
            done |= {name: (store.boxes(row), store.scores(row)) for row, name in enumerate(store.ids)}
        return done

    def add(self, name: str, boxes: np.ndarray, scores: Scores) -> None:
        """Take over a finished image."""
        self._begun[name] = boxes, scores
        if len(self._begun) == PART:
            self._write()

    def _write(self) -> None:
        if not self._begun:
            return
        last = max((int(path.stem) for path in self.folder.glob("[0-9]*.npz")), default=-1)
        ids = list(self._begun)
        manifest = make_manifest(self.manifest.method, self.manifest.parameters, ids)
        write_store(self.folder / f"{last + 1:05d}.npz", ids, *_columns(self._begun.values()), manifest=manifest)
        self._begun = {}


def _columns(images: Iterable[tuple[np.ndarray, Scores]]) -> tuple[list[np.ndarray], list[np.ndarray] | None]:
    """Return the boxes, and the scores where there are any, of images given as pairs of them."""
    boxes, scores = zip(*images)
    return list(boxes), None if scores[0] is None else list(scores)


def _run(
    dataset: DetectionDataset, images: list[int], method: str, parameters: dict[str, Any], workers: int
) -> Generator[Made]:
    """Yield what is made of `images`, in their order."""
    if not images:
        return
    pool = ProcessPoolExecutor(
        min(workers, len(images)), initializer=_init_worker, initargs=(dataset, method, parameters)
    )
    try:
        yield from pool.map(_make, images)
    except BrokenProcessPool:
        raise UserError(
            "a process that made proposals was killed, perhaps for want of memory; start the same command again, "
            "perhaps with fewer --workers: it goes on where it was"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


_work: tuple[DetectionDataset, Method] | None = None  # of a worker process


def _init_worker(dataset: DetectionDataset, method: str, parameters: dict[str, Any]) -> None:
    import cv2
    import torch

    global _work
    # one thread each, or they would stand in each other's way
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    # the main process decides what happens on Ctrl-C, which a terminal sends to all
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _work = dataset, find_method(method, parameters)


def _make(i: int) -> Made:
    assert _work is not None
    dataset, function = _work
    return i, function(dataset.image(i)), None
