"""Masks of the detections, and what the mask branch would learn (Mask R-CNN, section 3)."""

from collections.abc import Sequence

import numpy as np
import torch

from detkit.explain.canvas import DARK, TRUTH, Canvas, Key, Panel, Section, square_around
from detkit.explain.drawing import class_legend, detection_name, draw, object_name, plural
from detkit.explain.explanation import Explanation
from detkit.explain.regions import GAP, TILE, heat, tile
from detkit.models.trace import MaskStep, MaskTargetStep
from detkit.ops import box_iou, object_masks, scale
from detkit.rle import decode
from detkit.viz.draw import colour, tint

SHOWN = 4  # detections and objects whose masks are drawn
OTHERS = 2  # classes whose masks are not taken
RANGE = np.array([0.0, 1.0])  # of a probability
MARGIN = 0.12  # around a box, in shares of its side


@draw.register
def draw_masks(step: MaskStep, explanation: Explanation) -> list[Section]:
    """The best detections: the image, the masks of the class and of those that scored next, and what becomes of it."""
    if not len(explanation.boxes):
        text = "No detection, and so no mask: the mask branch reads the boxes that NMS leaves, and no others."
        return [Section("masks", "Masks", text, _plain(explanation))]
    boxes, labels = torch.from_numpy(explanation.boxes[:SHOWN]).float(), explanation.labels[:SHOWN]
    masks = step.of_boxes(scale(boxes.to(explanation.factors.device), 1 / explanation.factors)).float().cpu()
    scores, panels = step.scores.cpu().numpy()[explanation.source], []
    for index, (label, box) in enumerate(zip(labels.tolist(), explanation.boxes)):
        others = [other for other in (-scores[index]).argsort(kind="stable").tolist() if other != label][:OTHERS]
        of_object = object_masks(masks[index, label, None], boxes[index, None], explanation.image.shape[:2])[0]
        of_classes = [heat(masks[index, one].numpy(), RANGE) for one in (label, *others)]
        drawing = _in_image(explanation, of_object.numpy(), box, box[None], label)
        name, *names = (explanation.classes[one] for one in (label, *others))
        not_taken = f"; of {' and '.join(names)}, not taken" if names else ""
        pixels = plural(int(of_object.sum()), "pixel", "pixels")
        caption = f"{detection_name(explanation, index)}: mask of {name}{not_taken}; {pixels} above {step.threshold:g}"
        panels.append(Panel(_strip([tile(explanation.image, box), *of_classes, drawing]), caption))
    rows, columns = masks.shape[2:]
    text = (
        f"For the box of every detection the mask branch gives a mask of {columns} x {rows} cells for each of the "
        f"{masks.shape[1]} classes, how probable it is that a cell is the object's. Classes do not compete: the mask "
        "of the detection's class is taken, whatever the others say. From the left: the box's part of the image, "
        "stretched to a square; the mask of its class; those of the classes that scored next, which are there and "
        f"are not taken; the taken mask, resized to the box, and the object where it is above {step.threshold:g}."
    )
    if len(explanation.boxes) > SHOWN:
        text += f" The best {SHOWN} of {len(explanation.boxes)} detections are shown."
    legend = [*class_legend(explanation, labels, "fill", "mask of "), *HEAT_KEYS]
    return [Section("masks", "Masks", text, panels, legend, wide=True)]


@draw.register
def draw_mask_targets(step: MaskTargetStep, explanation: Explanation) -> list[Section]:
    """Of each object the sampled region that lies worst on it, and its mask there."""
    assert explanation.truth is not None
    title, panels, truth = "What masks are learned (training)", [], explanation.truth
    regions, matched = explanation.in_image(step.regions), step.matched_gt_index.cpu().numpy()
    if step.masks is None or truth.masks is None:
        text = "The objects' masks are not known here: what the mask branch would learn is not shown."
        return [Section("mask-targets", title, text, _plain(explanation))]
    objects = np.unique(matched)[:SHOWN]
    for index in objects.tolist():
        iou = box_iou(torch.from_numpy(regions), torch.from_numpy(truth.boxes[index : index + 1]))[:, 0].numpy()
        worst = int(np.where(matched == index, iou, np.inf).argmin())
        of_object = decode(truth.masks[[index]].tolist(), explanation.image.shape[:2])[0].astype(bool)
        both = np.stack((regions[worst], truth.boxes[index]))
        drawing = _in_image(explanation, of_object, regions[worst], both, int(truth.labels[index]), truth.boxes[index])
        target = heat(step.masks[worst].cpu().numpy(), RANGE)
        caption = f"{object_name(explanation, index)}: a region of IoU {iou[worst]:.2f}"
        panels.append(Panel(_strip([drawing, tile(explanation.image, regions[worst]), target]), caption))
    text = (
        f"Of the sampled regions the {len(matched)} that overlap an object enough learn a mask, that of its class "
        "alone: the object's mask where the region is, and nothing where the object reaches beyond it. From the left: "
        "the object, dashed, with a region of it; the region, stretched to a square; what its mask is to be."
    )
    regions_of = class_legend(explanation, truth.labels[objects], what="region of ")
    legend = [Key(TRUTH, "dashed", "object"), *regions_of, *HEAT_KEYS]
    return [Section("mask-targets", title, text, panels or _plain(explanation), legend, wide=True)]


def _in_image(
    explanation: Explanation,
    mask: np.ndarray,
    box: np.ndarray,
    around: np.ndarray,
    label: int,
    dashed: np.ndarray | None = None,
) -> np.ndarray:
    """Lay a mask (H, W) bool and its box over the image around boxes (N, 4); dashed: the object's box."""
    image = tint(explanation.image, mask[None], [colour(label)])
    canvas = Canvas(image, TILE, window=square_around(around, MARGIN, 1.0))
    if dashed is not None:
        canvas.truth(dashed)
    canvas.box(box, colour(label))
    return tile(canvas.drawing())


def _plain(explanation: Explanation) -> list[Panel]:
    """The image alone, of a section that has nothing to draw."""
    return [Panel(Canvas(explanation.image, light=DARK).drawing())]


def _strip(tiles: Sequence[np.ndarray]) -> np.ndarray:
    """Tiles beside each other."""
    gap = np.full((TILE, GAP, 3), 255, np.uint8)
    return np.concatenate([piece for one in tiles for piece in (gap, one)][1:], 1)


def _heat_key(value: float, text: str) -> Key:
    red, green, blue = heat(np.array([[value]]), RANGE, 1)[0, 0].tolist()
    return Key((red, green, blue), "fill", text)


HEAT_KEYS = [_heat_key(0.0, "0"), _heat_key(0.5, "0.5"), _heat_key(1.0, "1, surely the object's")]
