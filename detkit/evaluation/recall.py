"""How well proposals cover the objects of a data set: recall, and mean average best overlap."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from detkit.errors import UserError
from detkit.ops.boxes import box_iou
from detkit.structures import TruthSet


@dataclass(frozen=True)
class ProposalRecall:
    """What `proposal_recall` found; K numbers of boxes, T IoUs, C classes.

    numbers: boxes taken of each image, best first; None is all. ious: thresholds. boxes: (K,) float64, mean boxes an
    image there were. objects: (C,) int64, without difficult ones. recall: (K, T) float64, share of all objects that a
    box overlaps by at least the IoU, NaN where there are no objects. abo: (K, C) float64, average best overlap of each
    class, NaN where it has no objects.
    """

    numbers: tuple[int | None, ...]
    ious: tuple[float, ...]
    boxes: Tensor
    objects: Tensor
    recall: Tensor
    abo: Tensor

    @property
    def mabo(self) -> Tensor:
        """(K,) float64: mean over the classes that have objects of their average best overlap."""
        return self.abo.nanmean(1)


def proposal_recall(
    proposals: Sequence[Tensor | np.ndarray],
    truth: TruthSet,
    numbers: Sequence[int | None] = (100, 300, 1000, 2000, None),
    ious: Sequence[float] = (0.5, 0.7),
) -> ProposalRecall:
    """Measure proposals as Uijlings et al. do (IJCV 2013, section 5, equation 7).

    proposals: for each of truth.ids, (N, 4) continuous xyxy boxes in pixels, best first; N may be 0. numbers: how many
    of them to take, in any order; None is all. Difficult objects are left out. Recall is that of all objects, MABO the
    mean over classes. An object of an image without boxes has overlap 0. IoU is computed in float64.

    Raises UserError for numbers below 1 or IoUs outside (0, 1], ValueError where there is not one entry an image.
    """
    if len(proposals) != len(truth.ids):
        raise ValueError(f"proposals: expected one entry for each of {len(truth.ids)} images, got {len(proposals)}")
    for number in numbers:
        if number is not None and number < 1:
            raise UserError(f"recall of {number} proposals: expected at least 1")
    for iou in ious:
        if not 0 < iou <= 1:
            raise UserError(f"iou {iou:g} is not above 0 and up to 1")
    counts = torch.tensor([len(boxes) for boxes in proposals], dtype=torch.int64)
    longest = int(counts.max()) if len(counts) else 0
    limits = torch.tensor([longest if number is None else number for number in numbers], dtype=torch.int64)
    to_find = (~truth.ignore).nonzero().squeeze(1)
    labels = truth.labels[to_find]
    best = _best_overlaps(proposals, truth, to_find, limits)

    objects = torch.bincount(labels, minlength=len(truth.classes))
    total = best.new_zeros(len(limits), len(objects)).index_add(1, labels, best)
    reached = best.unsqueeze(1) >= best.new_tensor(list(ious)).unsqueeze(1)
    return ProposalRecall(
        numbers=tuple(numbers),
        ious=tuple(ious),
        boxes=torch.minimum(counts, limits.unsqueeze(1)).double().mean(1),
        objects=objects,
        recall=reached.double().mean(2),
        abo=total / objects,
    )


def _best_overlaps(
    proposals: Sequence[Tensor | np.ndarray], truth: TruthSet, to_find: Tensor, limits: Tensor
) -> Tensor:
    """Return (K, G) float64, the largest IoU of each object to find with the first limits[k] boxes of its image."""
    best = torch.zeros(len(limits), len(to_find), dtype=torch.float64, device=to_find.device)
    image = truth.image[to_find]
    by_image = image.argsort()
    images, counts = image[by_image].unique_consecutive(return_counts=True)
    # Ragged lists, a loop over images: to pad 5000 images to 10,000 boxes would take gigabytes.
    for index, rows in zip(images.tolist(), by_image.split(counts.tolist())):
        boxes = torch.as_tensor(proposals[index]).to(to_find.device)
        if len(boxes):
            overlap = box_iou(truth.boxes[to_find[rows]].double(), boxes.double())
            running = overlap.cummax(1).values
            best[:, rows] = running[:, (limits - 1).clamp(max=len(boxes) - 1)].T
    return best
