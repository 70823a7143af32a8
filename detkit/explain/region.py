"""The region detectors' own stages: proposals, pooled features, and which regions are learnt from."""

from typing import TYPE_CHECKING

import numpy as np

from detkit.explain.canvas import DARK, NEGATIVE, PROPOSAL, TRUTH, Canvas, Key, Panel, Stage
from detkit.explain.naming import assignment_panels, class_legend, final_name, many, truth_legend
from detkit.explain.rpn import rpn_stages
from detkit.viz.draw import colour

if TYPE_CHECKING:
    from detkit.explain.trace import Assignment, Explanation, RegionTrace

TILE = 280  # pixels a side of a region's image
GAP = 6  # between it and its features


def region_stages(explanation: "Explanation", trace: "RegionTrace") -> list[Stage]:
    """Return the RPN's stages or the given proposals, pooled features, what is learnt, and the moved boxes."""
    first = [_proposals(explanation, trace)] if trace.rpn is None else rpn_stages(explanation, trace.rpn)
    learnt = [] if trace.learnt is None else [_learnt(explanation, trace.learnt)]
    return [*first, *learnt, _pooled(explanation, trace), _regression(explanation, trace)]


def _proposals(explanation: "Explanation", trace: "RegionTrace") -> Stage:
    canvas = Canvas(explanation.image, light=DARK)
    count = len(trace.regions)
    canvas.boxes(trace.regions, [PROPOSAL] * count, [min(1.0, max(0.25, 60 / max(count, 1)))] * count)
    text = f"{many(count, 'region', 'regions')} of selective search that may hold an object, whatever its class."
    legend = [Key(PROPOSAL, "solid", "proposal")]
    return Stage("proposals", "Proposals", text, [Panel(canvas.drawing())], legend)


def _learnt(explanation: "Explanation", learnt: "Assignment") -> Stage:
    positive = learnt.owner >= 0
    legend = [
        Key(TRUTH, "dashed", "object"),
        *truth_legend(explanation, "region of"),
        Key(NEGATIVE, "solid", "background"),
    ]
    text = (
        f"What training would learn from this image: {len(learnt.owner)} regions are drawn at random, "
        f"{int(positive.sum())} that overlap an object enough, with the object's class, and {int((~positive).sum())} "
        "of background."
    )
    panels = assignment_panels(explanation, learnt, ("of objects", "of background"))
    return Stage("regions", "Regions drawn (training)", text, panels, legend)


def _pooled(explanation: "Explanation", trace: "RegionTrace") -> Stage:
    work = explanation.work
    panels = []
    for number, region in enumerate(trace.shown.tolist()):
        if trace.crops is not None:
            parts = [_tile(trace.crops[number])]
        else:
            parts = [_tile(explanation.image, trace.regions[region])]
        parts += [_heat(level[number], level) for level in trace.pooled[:2]]
        places = [place for place, row in enumerate(work.final.tolist()) if work.source[row] == region]
        caption = final_name(explanation, places[0]) if places else "not detected"
        if trace.scale is not None:
            caption += f", at {trace.scale[number]} px"
        gap = np.full((TILE, GAP, 3), 255, np.uint8)
        panels.append(Panel(np.concatenate([piece for part in parts for piece in (part, gap)][:-1], 1), caption))
    sides = " and ".join(f"{level.shape[-1]} x {level.shape[-1]}" for level in trace.pooled[:2])
    source = "Left the warped crop that the network saw" if trace.crops is not None else "Left the region, stretched"
    text = (
        f"{source}; beside it what the head reads: its features, pooled to {sides} cells, as the mean over their "
        "channels, the brighter the larger. First the regions of final boxes, then others of high score that led to "
        "no box."
    )
    if not panels:
        panels = [Panel(Canvas(explanation.image, light=DARK).drawing())]
    title = "Warped crops and their features" if trace.crops is not None else "Pooled regions"
    return Stage("pooled", title, text, panels)


def _tile(image: np.ndarray, box: np.ndarray | None = None) -> np.ndarray:
    """An image, or the part of it in a box, stretched to a square as pooling does."""
    from PIL import Image

    drawing = Image.fromarray(np.ascontiguousarray(image))
    x1, y1, x2, y2 = (0, 0, *drawing.size) if box is None else box.tolist()
    # at least a pixel, within the image
    x1, y1 = min(max(x1, 0), drawing.width - 1), min(max(y1, 0), drawing.height - 1)
    part = (x1, y1, min(max(x2, x1 + 1), drawing.width), min(max(y2, y1 + 1), drawing.height))
    return np.asarray(drawing.resize((TILE, TILE), Image.Resampling.BICUBIC, box=part))


def _heat(values: np.ndarray, everything: np.ndarray) -> np.ndarray:
    """A map (n, n) as cells from black to yellow, on the scale of all regions' maps."""
    low, high = np.percentile(everything, (2, 98)).tolist()  # a few cells may be far above all others
    share = ((values - low) / max(high - low, 1e-9)).clip(0, 1)
    side = -(-TILE // len(values)) * len(values)
    cells = np.repeat(np.repeat(share, side // len(values), 0), side // len(values), 1)[:TILE, :TILE]
    bright = np.stack((np.clip(cells * 2, 0, 1), np.clip(cells * 1.6 - 0.3, 0, 1), np.clip(cells * 3 - 2.2, 0, 1)), -1)
    return (bright * 255).astype(np.uint8)


def _regression(explanation: "Explanation", trace: "RegionTrace") -> Stage:
    work = explanation.work
    canvas = Canvas(explanation.image, light=DARK)
    for row in work.final[::-1].tolist():
        shade = colour(int(work.labels[row]))
        canvas.box(trace.regions[work.source[row]], PROPOSAL, 1, dashed=True)
        canvas.box(work.boxes[row], shade, 1.5)
    for place, row in enumerate(work.final.tolist()):
        canvas.name(work.boxes[row], final_name(explanation, place), colour(int(work.labels[row])))
    text = "Each region is moved by the deltas of its class: dashed where it was, solid where the box is."
    legend = [Key(PROPOSAL, "dashed", "region"), *class_legend(explanation)]
    return Stage("regression", "Box regression", text, [Panel(canvas.drawing())], legend)
