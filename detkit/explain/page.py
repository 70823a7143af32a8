"""explain.html: what each step of a detector did with one image, in one page that needs nothing beside it."""

import base64
import io
from collections.abc import Sequence
from html import escape

import numpy as np
from PIL import Image

from detkit.explain.canvas import Panel, Section
from detkit.explain.explanation import Explanation
from detkit.report.template import as_data, fill, resource
from detkit.viz.figure import hex_code

QUALITY = 85  # of the page's JPEGs
IMAGE = 1280  # pixels of the longer side of the image below the steps
STEPS = 600  # candidates that a page shows in motion, the best


def explain_page(explanation: Explanation, sections: Sequence[Section], title: str, protocol: str) -> str:
    """Return the page's HTML: each section with its text, images and legend, and the suppression step by step."""
    height, width = explanation.image.shape[:2]
    parts = {
        "title": escape(title),
        "protocol": escape(protocol),
        "nav": "".join(f'<a href="#{section.name}">{escape(section.title)}</a>' for section in sections),
        "sections": "\n".join(_section(number, section) for number, section in enumerate(sections, 1)),
        "width": str(width),
        "height": str(height),
        "image": _jpeg(explanation.image, IMAGE),
        "data": as_data(_data(explanation)),
        "style": resource("explain.css", "detkit.explain"),
        "script": resource("explain.js", "detkit.explain"),
    }
    return fill(resource("explain.html", "detkit.explain"), parts)


def _section(number: int, section: Section) -> str:
    size = " one" if len(section.panels) == 1 else " small" if len(section.panels) > 6 else ""
    figures = "".join(map(_figure, section.panels))
    legend = "".join(
        f'<li><i class="{key.kind}" style="--c:{hex_code(key.shade)}"></i>{escape(key.text)}</li>'
        for key in section.legend
    )
    return (
        f'<section id="{section.name}"><h2>{number}. {escape(section.title)}</h2><p>{escape(section.text)}</p>'
        f'<div class="panels{size}">{figures}</div><ul class="legend">{legend}</ul></section>'
    )


def _figure(panel: Panel) -> str:
    height, width = panel.drawing.shape[:2]
    caption = f"<figcaption>{escape(panel.caption)}</figcaption>" if panel.caption else ""
    return (
        f'<figure><img src="{_jpeg(panel.drawing)}" width="{width}" height="{height}" '
        f'alt="{escape(panel.caption or "the image with boxes")}">{caption}</figure>'
    )


def _data(explanation: Explanation) -> dict[str, object]:
    """The suppression as the script reads it: of the best candidates, and of those that stay among them."""
    nms = explanation.nms
    return {
        "boxes": np.round(nms.boxes[:STEPS], 2).tolist(),
        "scores": np.round(nms.scores[:STEPS], 6).tolist(),
        "labels": nms.labels[:STEPS].tolist(),
        "by": nms.by[:STEPS].tolist(),
        "final": nms.kept[nms.kept < STEPS].tolist(),
        "classes": list(explanation.classes),
        "iou": nms.iou,
        "score": explanation.settings.score_threshold,
    }


def _jpeg(drawing: np.ndarray, longest: int | None = None) -> str:
    """An image as a data: address."""
    image = Image.fromarray(np.ascontiguousarray(drawing))
    if longest is not None:
        image.thumbnail((longest, longest))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
