"""What the parts of a region find in position-sensitive maps, and how they vote (R-FCN, figures 3 and 4)."""

import numpy as np
import torch

from detkit.explain.canvas import DARK, SIDE, Canvas, Key, Panel, Section
from detkit.explain.drawing import draw
from detkit.explain.explanation import Explanation
from detkit.explain.regions import heat
from detkit.models.trace import PositionStep
from detkit.ops import box_iou
from detkit.viz.draw import colour

BESIDE = (0.1, 0.5)  # IoU of a region that is beside another


@draw.register
def draw_positions(step: PositionStep, explanation: Explanation) -> list[Section]:
    """The maps of one class, with the parts of a region that lies well, and of one that lies beside it."""
    scores = step.scores.cpu().numpy()
    if len(explanation.source):
        region, label = int(explanation.source[0]), int(explanation.labels[0])
    else:
        region, label = divmod(int(scores.argmax()), scores.shape[1])
    name, shade = explanation.classes[label], colour(label)
    iou = box_iou(step.regions[region : region + 1], step.regions)[0].cpu().numpy()
    near = (iou > BESIDE[0]) & (iou < BESIDE[1]) & np.isfinite(scores[:, label])
    beside = [int(np.where(near, iou, -1).argmax())] if near.any() else []
    panels: list[Panel] = []
    of_all = step.parts(region, label)[0].cpu().numpy()
    k = len(of_all)
    for index in (region, *beside):
        pooled = step.parts(index, label)[1].cpu().numpy()
        box = explanation.in_image(step.regions[index])
        canvas = Canvas(explanation.image, SIDE // 2, DARK)
        canvas.box(box, shade, 2)
        canvas.grid(k, k, box, 1.0)
        vote = f"{name}: the parts' mean is {pooled.mean():.2f}, with the other classes' {scores[index, label]:.2f}"
        panels += [
            Panel(canvas.drawing(), "a region that was detected" if index in explanation.source else "a region"),
            Panel(_maps(of_all, step.regions[index] / step.cell), "the class's maps, with the part that each is for"),
            Panel(heat(pooled, of_all), vote),
        ]
    text = (
        f"{k} x {k} maps a class, of which each is for one part of a region: the upper left map says where the upper "
        f"left of a {name} is. A region takes from each map the mean of its part there (framed), and the parts vote."
    )
    if beside:
        text += " Above a region on its object; below one beside it, whose parts look in the wrong places."
    return [Section("positions", "Position-sensitive maps", text, panels, [Key(shade, "solid", name)])]


def _maps(maps: np.ndarray, region: torch.Tensor) -> np.ndarray:
    """All maps (k, k, H, W) in their order, with the parts of a region (4,) in cells framed; (H, W, 3) uint8."""
    k, _, rows, columns = maps.shape
    zoom = max(2, SIDE // (k * max(rows, columns)))
    pieces = [[heat(maps[i, j], maps, zoom) for j in range(k)] for i in range(k)]
    left, top, right, bottom = (int(value + 0.5) for value in region.clamp(min=0).tolist())
    wide, high = max(right - left, 1), max(bottom - top, 1)
    for i in range(k):
        for j in range(k):
            x = zoom * np.array((left + j * wide // k, left - (-(j + 1) * wide // k)))
            y = zoom * np.array((top + i * high // k, top - (-(i + 1) * high // k)))
            part = pieces[i][j][y[0] : y[1], x[0] : x[1]]
            part[:1] = part[-1:] = 255
            part[:, :1] = part[:, -1:] = 255
    gap = 2
    padded = [[np.pad(piece, ((0, gap), (0, gap), (0, 0)), constant_values=255) for piece in row] for row in pieces]
    return np.concatenate([np.concatenate(row, 1) for row in padded], 0)
