"""Batches for training and testing.

The training stream is addressed by position: position p = iteration * batch + j is image order(seed, p // n)[p % n],
augmented with the seed (seed, p). So it is the same for any number of workers, from any resume point and for any
number of processes, and the loader has no state to save.
"""

import dataclasses
import mmap
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from detkit import rle
from detkit.config import DataConfig, TrainConfig
from detkit.data.annotations import Annotations
from detkit.data.batch import make_batch, make_targets
from detkit.data.dataset import DetectionDataset, Record
from detkit.data.proposal_store import StoredProposals
from detkit.data.transforms import Transform, build_test, build_train
from detkit.errors import UserError
from detkit.ops import pack_masks
from detkit.runtime.signals import held_back, let_through
from detkit.structures import Images, InputSpec, Targets

# Seconds that a worker outlives SIGTERM: the main process, which may have got it too, finishes its step and saves. It
# may need longer, for a batch of R-CNN's; a worker that ends by itself, not by a signal, does not disturb it.
GRACE = 20

Batch = tuple[Images, Targets]


@lru_cache(maxsize=2)  # a batch may be of two epochs
def image_order(seed: int, epoch: int, count: int) -> np.ndarray:
    """Return the permutation of range(count) in which an epoch visits the images."""
    return np.random.default_rng((seed, epoch)).permutation(count)


class ImageCache:
    """Decoded images in one buffer that forked workers share, each written by whoever needs it first.

    An image that could not be read when the data set was opened has no room and is decoded each time.
    """

    def __init__(self, dataset: DetectionDataset) -> None:
        self.dataset = dataset
        width, height = dataset.sizes.T
        self.offsets = np.concatenate([[0], np.cumsum(width * height * 3)])
        total = int(self.offsets[-1]) + len(dataset)
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if total > free:
            raise UserError(
                f"data.cache: the decoded images of {dataset.name} take {total / 1e9:.1f} GB and {free / 1e9:.1f} GB "
                "of memory are free; set data.cache=false"
            )
        # an anonymous map is shared with forked workers and, unlike torch's shared tensors, needs no room in /dev/shm
        buffer = np.frombuffer(mmap.mmap(-1, max(total, 1)), np.uint8)
        self.pixels, self.ready = buffer[: self.offsets[-1]], buffer[self.offsets[-1] :]

    def load(self, i: int, seed: Sequence[int]) -> tuple[Record, np.ndarray]:
        """See `DetectionDataset.load`."""
        return self.dataset.record(i), self.image(i)

    def image(self, i: int) -> np.ndarray:
        """Return image `i` as (H, W, 3) RGB uint8, which must not be written to."""
        width, height = self.dataset.sizes[i].tolist()
        cached = self.pixels[self.offsets[i] : self.offsets[i + 1]].reshape(height, width, 3)
        if not self.ready[i]:
            image = self.dataset.image(i)
            if image.shape != cached.shape:
                return image
            # two workers may do this at once: they write the same bytes, and only then say that they are there
            cached[:] = image
            self.ready[i] = 1
        return cached


@dataclass(frozen=True)
class _Failure:
    """A user's error on its way out of a worker, where torch would wrap it into a traceback."""

    message: str


class _Part(NamedTuple):
    """An image of a sample. boxes: its objects', then its proposals'; scores: of these, where there are any; masks:
    (N, H, W) uint8 of the objects, where they are learned."""

    record: Record
    image: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray | None
    masks: np.ndarray | None

    @property
    def given(self) -> tuple[np.ndarray, np.ndarray, int, np.ndarray | None]:
        """What a `Transform` is given."""
        return self.image, self.boxes, len(self.record.annotations), self.masks


@dataclass(eq=False)
class _Samples(Dataset):
    """Makes whole batches: of positions in the training stream, or of image numbers for testing."""

    dataset: DetectionDataset
    transform: Transform
    seed: int | None = None
    use_difficult: bool = False
    cache: bool = False
    proposals: StoredProposals | None = None
    masks: bool = False

    def __post_init__(self) -> None:
        self.source = ImageCache(self.dataset) if self.cache else self.dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, positions: Sequence[int]) -> Batch | _Failure:
        try:
            return self._batch(positions)
        except UserError as error:
            return _Failure(str(error))

    def _batch(self, positions: Sequence[int]) -> Batch:
        pixels, original, ids, annotations, regions, scores = zip(*map(self._sample, positions))
        stored = self.proposals
        proposals: dict[str, Any] = {}
        if stored is not None:
            proposals = {"regions": regions, "count": stored.count, "region_scores": scores if stored.scored else None}
        return make_batch(pixels, original, ids, **proposals), make_targets(annotations, self.use_difficult)

    def _sample(
        self, position: int
    ) -> tuple[np.ndarray, tuple[int, int], str, Annotations, np.ndarray, np.ndarray | None]:
        """Return an image as the network's input, its (height, width) before, its id, what is on it, and what remains
        of its proposals and their scores."""
        seed = self.seed or 0, position
        parts = [self._part(self._image_at(position), seed)]

        def other(random: np.random.Generator) -> tuple[Any, ...]:
            """Read another image, any of the data set."""
            parts.append(self._part(int(random.integers(len(self.dataset))), (*seed, len(parts))))
            return parts[-1].given

        image, boxes, objects, masks = parts[0].given
        pixels, boxes, kept, masks = self.transform.run(image, boxes, masks, seed, objects, other)
        # of all boxes of all parts: which are objects, and the number of each among its kind
        is_object = np.concatenate([np.arange(len(part.boxes)) < len(part.record.annotations) for part in parts])
        number = np.where(is_object, np.cumsum(is_object), np.cumsum(~is_object))[kept] - 1
        remaining = np.count_nonzero(is_object[kept])  # they come first
        known = [part.record.annotations for part in parts]
        objects_of_all = known[0] if len(known) == 1 else Annotations.concatenate(known)
        annotations = dataclasses.replace(objects_of_all.take(number[:remaining]), boxes=boxes[:remaining])
        if masks is not None:
            annotations = dataclasses.replace(annotations, extra={**annotations.extra, "masks": pack_masks(masks)})
        ranked = [part.scores for part in parts if part.scores is not None]
        scores = np.concatenate(ranked)[number[remaining:]] if ranked else None
        height, width = image.shape[:2]
        return pixels, (height, width), parts[0].record.id, annotations, boxes[remaining:], scores

    def _part(self, i: int, seed: Sequence[int]) -> "_Part":
        """Read an image, and what is known of it. seed: of the data set's own random numbers."""
        record, image = self.source.load(i, seed)
        boxes, scores = record.annotations.boxes, None
        if self.proposals is not None:
            boxes, scores = np.concatenate([boxes, self.proposals.boxes(i)]), self.proposals.scores(i)
        masks = rle.decode(self.dataset.masks(i), image.shape[:2]) if self.masks else None
        return _Part(record, image, boxes, scores, masks)

    def _image_at(self, position: int) -> int:
        if self.seed is None:
            return position
        epoch, index = divmod(position, len(self.dataset))
        return int(image_order(self.seed, epoch, len(self.dataset))[index])


class _Loader:
    """An iterable over batches that can be gone through any number of times."""

    def __init__(self, samples: _Samples, batches: Sequence[Sequence[int]], workers: int) -> None:
        self._batches = batches
        self._loader = DataLoader(
            samples,
            sampler=batches,  # pyright: ignore[reportArgumentType]
            batch_size=None,  # the data set makes the batches itself, so that their memory is allocated once
            num_workers=workers,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_init_worker if workers else None,
            generator=torch.Generator(),  # its own, or starting workers would draw from the global one
        )

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        with held_back():
            batches = iter(self._loader)  # starts the workers
        for batch in batches:
            if isinstance(batch, _Failure):
                raise UserError(batch.message)
            images, targets = batch
            yield images, targets


def _init_worker(_: int) -> None:
    import cv2

    cv2.setNumThreads(0)  # or every worker would start a thread for each core
    # The main process decides what happens on Ctrl-C and SIGTERM, which a terminal or a scheduler sends to all.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, lambda *_: os._exit(0))
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE))
    let_through()


def train_loader(
    dataset: DetectionDataset,
    spec: InputSpec,
    data_config: DataConfig,
    train_config: TrainConfig,
    *,
    start: int,
    stop: int,
    rank: int = 0,
    world: int = 1,
    masks: bool = False,
) -> _Loader:
    """Return an iterable of (Images, Targets), one for each iteration start..stop-1.

    Each process of `world` gets the `rank`-th contiguous share of an iteration's batch. Crowds come with
    ignore = True, and so do difficult objects where `data.difficult` is false. Where `data.proposals` names
    stores, Images have proposals: they move with the image, and images and objects are the same as without them.
    masks: whether objects have theirs, in `Targets.extra`; UserError for a data set that has none.
    """
    if masks:
        dataset.open_masks()
    if train_config.batch % world:
        raise UserError(f"train.batch: {train_config.batch} is not a multiple of the {world} processes")
    proposals = open_proposals(dataset, data_config)
    samples = _Samples(
        dataset,
        build_train(data_config.augment, spec, proposals is not None),
        seed=train_config.seed,
        use_difficult=data_config.difficult,
        cache=data_config.cache,
        proposals=proposals,
        masks=masks,
    )
    batch, share = train_config.batch, train_config.batch // world
    batches = [range(first, first + share) for first in range(start * batch + rank * share, stop * batch, batch)]
    return _Loader(samples, batches, train_config.workers)


def test_loader(
    dataset: DetectionDataset,
    spec: InputSpec,
    *,
    batch: int,
    workers: int,
    rank: int = 0,  # noqa: PT028 (this is not a test)
    world: int = 1,  # noqa: PT028
    proposals: StoredProposals | None = None,  # noqa: PT028
    skip: frozenset[int] = frozenset(),  # noqa: PT028
) -> _Loader:
    """Return an iterable of (Images, Targets) over every image once, in order; `ignore` marks crowds and difficult
    objects.

    Each process of `world` gets the `rank`-th contiguous share of the images; shares may differ by one image. With
    `proposals`, see `open_proposals`, Images have them. Batches all of whose images, by number, are in `skip` are left
    out; the others are what they are without it.
    """
    count = len(dataset)
    first, last = (count * rank) // world, (count * (rank + 1)) // world
    batches = [range(at, min(at + batch, last)) for at in range(first, last, batch)]
    batches = [numbers for numbers in batches if not skip.issuperset(numbers)]
    return _Loader(_Samples(dataset, build_test(spec), proposals=proposals), batches, workers)


def dataset_pass_loader(
    dataset: DetectionDataset,
    spec: InputSpec,
    data_config: DataConfig,
    rows: Sequence[int],
    *,
    batch: int,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
) -> _Loader:
    """Return an iterable of (Images, Targets) over the images `rows`, in that order, as in training but unaugmented.

    Each process of `world` gets every `world`-th batch, from the `rank`-th on.
    """
    samples = _Samples(
        dataset,
        build_test(spec),
        use_difficult=data_config.difficult,
        proposals=open_proposals(dataset, data_config),
    )
    batches = [rows[at : at + batch] for at in range(0, len(rows), batch)]
    return _Loader(samples, batches[rank::world], workers)


def open_proposals(dataset: DetectionDataset, data_config: DataConfig) -> StoredProposals | None:
    """Open the stores of `data.proposals`, None where it is empty.

    Raises UserError, in one line, for a store that is missing or damaged and for an image that is in none of them.
    """
    if not data_config.proposals:
        return None
    return StoredProposals(data_config.proposals, dataset, data_config.proposal_count)
