"""What takes part in non-maximum suppression: pairs of a box and a class, over a batch.

They are held as flat lists, since how many an image or a class has differs by orders of magnitude and padding all to
the largest would cost far more than what it saves: on a GPU, reading the sizes is a handful of host syncs a batch,
marked where they are.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from detkit.ops.sorting import ranked_rows


@dataclass(frozen=True)
class Candidates:
    """M pairs of box and class of a batch, flat, by image, box and class.

    boxes: (M, 4); scores: (M,). image, index, label: (M,) int64, the image that each belongs to, its index among that
    image's boxes, its label. images, classes: how many there are.
    """

    boxes: Tensor
    scores: Tensor
    image: Tensor
    index: Tensor
    label: Tensor
    images: int
    classes: int

    def rows(self, best_first: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
        """Lay them out in rows of `top_k`, one for each class of each image, see `ranked_rows`."""
        return ranked_rows(self.image * self.classes + self.label, self.images * self.classes, best_first, top_k)


@dataclass(frozen=True)
class ScoredBoxes:
    """A batch of boxes, their scores, and which scores take part.

    boxes: (B, A, 4) xyxy, or (B, A, C, 4), one for each class; scores: (B, A, C); takes_part: (B, A, C) bool. labels:
    (B, A) int64, where each box has one class and C is 1; None where the classes are the columns of `scores`.
    """

    boxes: Tensor
    scores: Tensor
    takes_part: Tensor
    labels: Tensor | None = None

    def of(self, images: Tensor) -> "ScoredBoxes":
        """Return some images alone. images: indices, (N,) int64."""
        labels = None if self.labels is None else self.labels[images]
        return ScoredBoxes(self.boxes[images], self.scores[images], self.takes_part[images], labels)

    def best(self, top_k: int) -> "ScoredBoxes":
        """Leave out what can't be among the best `top_k` of its class in its image.

        Sorting is spared to all but the best of a crowded class. What equals the last score stays, since topk promises
        nothing about which of equals it takes; `ranked_rows` cuts it off in order. With labels all stay.
        """
        if self.labels is not None or not 0 < top_k < self.scores.shape[1]:
            return self
        takes_part = self.takes_part.clone()
        image, label = (takes_part.sum(1) > top_k).nonzero(as_tuple=True)  # host sync
        if len(image):
            crowded = takes_part[image, :, label]
            values = self.scores[image, :, label].masked_fill(~crowded, -torch.inf)
            last = values.topk(top_k, sorted=False).values.amin(1, keepdim=True)
            takes_part[image, :, label] = crowded & (values >= last)
        return ScoredBoxes(self.boxes, self.scores, takes_part)

    def candidates(self) -> Candidates:
        """Return all that take part."""
        return self.at(self.takes_part.flatten().nonzero().squeeze(1))  # host sync

    def at(self, indices: Tensor) -> Candidates:
        """Return the candidates at some of the scores. indices: (M,) int64, ascending, into the scores laid flat."""
        images, anchors, classes = self.scores.shape
        # one flat index, since gathering by one is quicker than by three
        box = indices if classes == 1 else indices // max(classes, 1)
        image = box // max(anchors, 1)
        if self.labels is None or len(indices) == 0:
            label = indices - box * classes
        else:
            label = self.labels.flatten()[indices]
            classes = int(label.max()) + 1  # host sync
        return Candidates(
            boxes=self.boxes.reshape(-1, 4)[box if self.boxes.ndim == 3 else indices],
            scores=self.scores.flatten()[indices],
            image=image,
            index=box - image * anchors,
            label=label,
            images=images,
            classes=classes,
        )


def score_boxes(boxes: Tensor, scores: Tensor, score: float | Tensor) -> ScoredBoxes:
    """Return a detector's raw output and which of its scores are above a threshold; ValueError for other shapes.

    boxes: (B, A, 4), or (B, A, C, 4); scores: (B, A, C). score: one for all classes, or (C,), one for each.
    """
    batch, anchors, classes = scores.shape
    if boxes.shape not in ((batch, anchors, 4), (batch, anchors, classes, 4)):
        raise ValueError(
            f"nms_dense: expected boxes ({batch}, {anchors}, 4) or ({batch}, {anchors}, {classes}, 4) for scores "
            f"({batch}, {anchors}, {classes}), got {tuple(boxes.shape)}"
        )
    return ScoredBoxes(boxes, scores, scores > score)
