"""Proposals of a whole data set, made by several processes, which can be interrupted and gone on with."""

import shutil
import signal
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from detkit.engine.signals import Interrupt
from detkit.errors import UserError
from detkit.proposals.methods import Method, find_method
from detkit.proposals.store import Manifest, ProposalStore, check_name, make_manifest, open_store, write_store

if TYPE_CHECKING:
    from detkit.data.dataset import DetectionDataset

PART = 64  # photos whose boxes are written together while the work goes on


def make_store(
    path: str | Path,
    dataset: "DetectionDataset",
    method: str,
    parameters: dict[str, Any],
    *,
    workers: int,
    progress: Callable[[int, int], None] | None = None,
) -> ProposalStore:
    """Make the proposals of every image of a data set and write them to the store `path`; return it, open.

    Where that store is there already, nothing is done. What an interrupted run over the same images left in the folder
    beside it, PATH.parts-HASH, is taken over. progress: called with (done, total), first when a photo is done: by
    then the processes are there, which threads of a progress bar might harm. Raises UserError: a photo cannot be read
    (it is named), or the store or its parts were made in another way. Raises KeyboardInterrupt on Ctrl-C and
    SIGTERM, once what is done is written.
    """
    path = Path(path)
    check_name(path)
    manifest = make_manifest(method, parameters, dataset.ids)
    if path.exists():
        _check_same(open_store(path), manifest, path)
        return open_store(path)
    find_method(method, parameters)  # an unknown one is refused before any work
    parts = _Parts(path.with_name(f"{path.name}.parts-{manifest.images_hash}"), manifest)
    done = parts.read()
    left = [i for i, name in enumerate(dataset.ids) if name not in done]
    total = len(dataset.ids)
    with parts, Interrupt() as interrupt:
        for count, (i, boxes) in enumerate(_run(dataset, left, method, parameters, workers), total - len(left) + 1):
            parts.add(dataset.ids[i], boxes)
            if progress is not None:
                progress(count, total)
            if interrupt.received:
                raise KeyboardInterrupt
    done = parts.read()
    write_store(path, dataset.ids, [done[name] for name in dataset.ids], manifest=manifest)
    shutil.rmtree(parts.folder, ignore_errors=True)
    return open_store(path)


def _check_same(store: ProposalStore, manifest: Manifest, remove: Path) -> None:
    """Raise UserError unless a store was made, or begun, as the manifest says."""
    found = store.manifest
    if found.recipe != manifest.recipe:
        difference = f"{found.recipe}, not {manifest.recipe}"
    elif remove == store.path and found.images_hash != manifest.images_hash:
        difference = f"{found.images} other images, not these {manifest.images}"
    else:
        return
    raise UserError(f"{store.path} holds {difference}; remove {remove}, or give another --out")


class _Parts:
    """The folder of finished photos: each file is a store of some of them. Leaving the context writes what is left."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder, self.manifest = folder, manifest
        self._begun: dict[str, np.ndarray] = {}

    def __enter__(self) -> "_Parts":
        return self

    def __exit__(self, *_: object) -> None:
        self._write()

    def read(self) -> dict[str, np.ndarray]:
        """Return the boxes of every finished photo; UserError where a part was made with other parameters."""
        done: dict[str, np.ndarray] = {}
        for path in sorted(self.folder.glob("[0-9]*.npz")):
            store = open_store(path)
            _check_same(store, self.manifest, self.folder)
            done |= {name: store.boxes_at(row) for row, name in enumerate(store.ids)}
        return done

    def add(self, name: str, boxes: np.ndarray) -> None:
        """Take over a finished photo."""
        self._begun[name] = boxes
        if len(self._begun) == PART:
            self._write()

    def _write(self) -> None:
        if not self._begun:
            return
        last = max((int(path.stem) for path in self.folder.glob("[0-9]*.npz")), default=-1)
        ids = list(self._begun)
        manifest = make_manifest(self.manifest.method, self.manifest.parameters, ids)
        write_store(self.folder / f"{last + 1:05d}.npz", ids, list(self._begun.values()), manifest=manifest)
        self._begun = {}


def _run(
    dataset: "DetectionDataset", images: list[int], method: str, parameters: dict[str, Any], workers: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (image number, boxes) in the order of `images`."""
    if not images:
        return
    pool = ProcessPoolExecutor(
        min(workers, len(images)), initializer=_init_worker, initargs=(dataset, method, parameters)
    )
    try:
        futures = deque(pool.submit(_make, i) for i in images)
        while futures:
            yield futures.popleft().result()
    except BrokenProcessPool:
        raise UserError(
            "a process that made proposals was killed, perhaps for want of memory; start the same command again, "
            "perhaps with fewer --workers: it goes on where it was"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


_work: "tuple[DetectionDataset, Method] | None" = None  # of a worker process


def _init_worker(dataset: "DetectionDataset", method: str, parameters: dict[str, Any]) -> None:
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


def _make(i: int) -> tuple[int, np.ndarray]:
    assert _work is not None
    dataset, function = _work
    return i, function(dataset.image(i))
