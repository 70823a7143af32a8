"""What the head of a region detector reads of each region, and how it moves them."""

import math

import numpy as np
import torch
from PIL import Image

from detkit.explain.canvas import DARK, PROPOSAL, Canvas, Key, Panel, Section
from detkit.explain.drawing import class_legend, detection_name, draw
from detkit.explain.explanation import Explanation
from detkit.models.trace import PooledStep, RegressionStep
from detkit.viz.draw import colour

SHOWN = 12  # regions whose features are drawn
LEVELS = 2  # of their pooling
TILE = 280  # pixels a side of a region's image
GAP = 6  # between it and its features


@draw.register
def draw_pooled(step: PooledStep, explanation: Explanation) -> list[Section]:
    """Some regions, each with its features beside it."""
    shown = shown_regions(step, explanation)
    rows = torch.from_numpy(shown).to(step.regions.device)
    levels = [level[rows].cpu().numpy() for level in step.pooled[:LEVELS]]
    crops = step.crop(rows)
    if crops is not None:
        images = [tile(crop) for crop in crops.permute(0, 2, 3, 1).round().clamp(0, 255).byte().cpu().numpy()]
    else:
        images = [tile(explanation.image, box) for box in explanation.in_image(step.regions[rows])]
    gap = np.full((TILE, GAP, 3), 255, np.uint8)
    panels = []
    for number, (region, image) in enumerate(zip(shown.tolist(), images)):
        pieces = [image]
        for level in levels:
            pieces += [gap, heat(level[number], level)]
        detections = np.flatnonzero(explanation.source == region).tolist()
        caption = detection_name(explanation, detections[0]) if detections else "not detected"
        if step.scales is not None:
            caption += f", at {int(step.scales[region])} px"
        panels.append(Panel(np.concatenate(pieces, 1), caption))
    sides = " and ".join(f"{level.shape[-1]} x {level.shape[-1]}" for level in levels)
    left = "Left the region, stretched" if crops is None else "Left the warped crop that the network saw"
    text = (
        f"{left}; beside it what the head reads: its features, pooled to {sides} cells, as the mean over their "
        "channels, the brighter the larger. First the regions of final boxes, then others of high score that led to "
        "no box."
    )
    if not panels:
        panels = [Panel(Canvas(explanation.image, light=DARK).drawing())]
    title = "Pooled regions" if crops is None else "Warped crops and their features"
    return [Section("pooled", title, text, panels)]


def shown_regions(step: PooledStep, explanation: Explanation) -> np.ndarray:
    """Indices of the regions of detections, then of others of high score, which are not those of a removed box."""
    scores = step.scores.cpu().numpy()
    best = (-scores).argsort(kind="stable")
    others = best[np.isfinite(scores[best]) & ~np.isin(best, explanation.nms.source)]
    detected = dict.fromkeys(explanation.source.tolist())
    return np.array([*detected, *others.tolist()][:SHOWN], np.int64)


def tile(image: np.ndarray, box: np.ndarray | None = None) -> np.ndarray:
    """An image, or the part of it in a box, stretched to a square as pooling does."""
    drawing = Image.fromarray(np.ascontiguousarray(image))
    part = None
    if box is not None:  # at least a pixel, within the image
        low = np.clip(box[:2], 0, np.array(drawing.size) - 1)
        part = (*low.tolist(), *np.clip(box[2:], low + 1, drawing.size).tolist())
    return np.asarray(drawing.resize((TILE, TILE), Image.Resampling.BICUBIC, box=part))


def heat(values: np.ndarray, of_all: np.ndarray, side: int | None = None) -> np.ndarray:
    """A map (h, w) as cells from black to yellow, on the scale of all maps.

    side: pixels of a cell, by default as many as fill TILE.
    """
    low, high = np.percentile(of_all, (2, 98)).tolist()  # a few cells may be far above all others
    share = ((values - low) / max(high - low, 1e-9)).clip(0, 1)
    cells = np.kron(share, np.ones((side or math.ceil(TILE / len(values)),) * 2))[..., None]
    cells = cells if side else cells[:TILE, :TILE]
    return (np.clip(cells * (2, 1.6, 3) - (0, 0.3, 2.2), 0, 1) * 255).astype(np.uint8)


@draw.register
def draw_regression(step: RegressionStep, explanation: Explanation) -> list[Section]:
    """The regions of the detections, and where the head moved them."""
    canvas = Canvas(explanation.image, light=DARK)
    regions = explanation.in_image(step.regions)[explanation.source]
    shades = [colour(label) for label in explanation.labels.tolist()]
    for index in reversed(range(len(shades))):
        canvas.box(regions[index], PROPOSAL, 1, dashed=True)
        canvas.box(explanation.boxes[index], shades[index], 1.5)
    for index, shade in enumerate(shades):
        canvas.name(explanation.boxes[index], detection_name(explanation, index), shade)
    text = "Each region is moved by the deltas of its class: dashed where it was, solid where the box is."
    legend = [Key(PROPOSAL, "dashed", "region"), *class_legend(explanation)]
    return [Section("regression", "Box regression", text, [Panel(canvas.drawing())], legend)]
