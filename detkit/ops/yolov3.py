"""YOLOv3's loss (Redmon and Farhadi, YOLOv3: An incremental improvement, 2018). Places: see ops/places.py."""

import torch
import torch.nn.functional as F
from torch import Tensor

from detkit.ops.boxes import xyxy_to_cxcywh
from detkit.ops.coders import MIN_SIDE
from detkit.ops.matching import IGNORED
from detkit.ops.places import PlaceMatch, Places


def yolov3_loss(
    raw: Tensor, match: PlaceMatch, boxes: Tensor, labels: Tensor, places: Places, ignore_iou: float = 0.5
) -> dict[str, Tensor]:
    """Return the terms of the authors' yolo layers as scalars to be added (sections 2.1 and 2.2).

    raw: (B, P, 5 + C); match: of `assign_places`; boxes: (B, N, 4); labels: (B, N). Of the objects that have a place:
    "centre", the cross-entropy of its position in the cell; "side", half the squared error of the sides in logarithms,
    both times 2 - the object's share of the input's area; "object", the cross-entropy of the objectness against 1;
    "class", that of each class by itself, of which all objects at the place have theirs. "no_object": the objectness of
    places without one against 0, but for those whose box overlaps an object more than `ignore_iou`, and IGNORED ones.
    Each is a mean over images of sums.
    """
    raw = raw.float()
    (_, maps, count), place = match.place.shape, match.place.flatten(1)
    # by objects, of which there are far fewer than places
    at = place.clamp(min=0)
    number = torch.arange(count, device=raw.device).repeat(maps)
    learned = (place >= 0) & (match.index.gather(1, at) == number)
    values = raw.gather(1, at.unsqueeze(-1).expand(-1, -1, raw.shape[-1]))
    parts = xyxy_to_cxcywh(boxes).repeat(1, maps, 1)
    target_centre = parts[..., :2] / places.cell[at] - places.corner[at]
    target_side = (parts[..., 2:].clamp(min=MIN_SIDE) / places.anchor[at]).log()
    rows, columns, (width, height), *_ = places.maps[0]
    weight = 2 - parts[..., 2:].prod(-1) / (rows * height * columns * width)
    together = (match.place.unsqueeze(-1) == match.place.unsqueeze(-2)) & (match.place >= 0).unsqueeze(-2)
    one_hot = labels.unsqueeze(-1) == torch.arange(raw.shape[-1] - 5, device=raw.device)
    target_classes = (together.float() @ one_hot.float().unsqueeze(1) > 0).flatten(1, 2).float()
    found = match.index >= 0
    empty = ~found & (match.index != IGNORED) & (match.iou <= ignore_iou)
    terms = {
        "centre": torch.where(learned, weight * _entropy(values[..., :2], target_centre).sum(-1), 0),
        "side": torch.where(learned, weight / 2 * (values[..., 2:4] - target_side).square().sum(-1), 0),
        "object": torch.where(found, F.softplus(-raw[..., 4]), 0),
        "no_object": torch.where(empty, F.softplus(raw[..., 4]), 0),
        "class": torch.where(learned, _entropy(values[..., 5:], target_classes).sum(-1), 0),
    }
    return {name: term.sum() / len(raw) for name, term in terms.items()}


def _entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """The cross-entropy of each probability by itself."""
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
