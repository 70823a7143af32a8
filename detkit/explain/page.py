"""explain.html: what each stage of a detector did with one image, in one page that needs nothing beside it."""

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from detkit.explain.canvas import Panel, Stage
from detkit.report.template import as_data, fill, resource
from detkit.viz.figure import hex_code

if TYPE_CHECKING:
    from detkit.explain.trace import Explanation

QUALITY = 85  # of the page's JPEGs
IMAGE = 1280  # pixels of the longer side of the image below the steps
STEPS = 600  # candidates that a page shows in motion, the best


def explain_page(explanation: "Explanation", stages: Sequence[Stage], title: str, protocol: str) -> str:
    """Return the page's HTML: each stage with its words, images and legend, and the suppression step by step."""
    height, width = explanation.image.shape[:2]
    parts = {
        "title": escape(title),
        "protocol": escape(protocol),
        "nav": "".join(f'<a href="#{stage.name}">{escape(stage.title)}</a>' for stage in stages),
        "stages": "\n".join(_section(number, stage) for number, stage in enumerate(stages, 1)),
        "width": str(width),
        "height": str(height),
        "image": _jpeg(explanation.image, IMAGE),
        "data": as_data(_data(explanation)),
        "style": resource("explain.css", "detkit.explain"),
        "script": resource("explain.js", "detkit.explain"),
    }
    return fill(resource("explain.html", "detkit.explain"), parts)


def _section(number: int, stage: Stage) -> str:
    one = " one" if len(stage.panels) == 1 else " small" if len(stage.panels) > 6 else ""
    drawings = "".join(map(_figure, stage.panels))
    legend = "".join(
        f'<li><i class="{key.kind}" style="--c:{hex_code(key.shade)}"></i>{escape(key.text)}</li>'
        for key in stage.legend
    )
    return (
        f'<section id="{stage.name}"><h2>{number}. {escape(stage.title)}</h2><p>{escape(stage.text)}</p>'
        f'<div class="panels{one}">{drawings}</div><ul class="legend">{legend}</ul></section>'
    )


def _figure(panel: Panel) -> str:
    height, width = panel.drawing.shape[:2]
    caption = f"<figcaption>{escape(panel.caption)}</figcaption>" if panel.caption else ""
    return (
        f'<figure><img src="{_jpeg(panel.drawing)}" width="{width}" height="{height}" '
        f'alt="{escape(panel.caption or "the image with boxes")}">{caption}</figure>'
    )


def _data(explanation: "Explanation") -> dict[str, object]:
    """The suppression as the script wants it: of the best candidates, and of those that stay among them."""
    work = explanation.work
    return {
        "boxes": np.round(work.boxes[:STEPS], 2).tolist(),
        "scores": np.round(work.scores[:STEPS], 6).tolist(),
        "labels": work.labels[:STEPS].tolist(),
        "by": work.by[:STEPS].tolist(),
        "final": work.final[work.final < STEPS].tolist(),
        "classes": list(explanation.classes),
        "iou": work.iou,
        "score": explanation.settings.score_threshold,
    }


def _jpeg(drawing: np.ndarray, longest: int | None = None) -> str:
    """An image as a data: address."""
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(drawing))
    if longest is not None:
        image.thumbnail((longest, longest))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
