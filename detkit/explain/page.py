"""explain.html: what each step of a detector did with one image, in one page that needs nothing beside it."""

from collections.abc import Sequence
from html import escape

import numpy as np
from PIL import Image

from detkit.explain.canvas import Panel, Section
from detkit.explain.explanation import Explanation
from detkit.report.markup import data_url, figure, fill, jpeg, resource
from detkit.viz.draw import hex_code

QUALITY = 85  # of the page's JPEGs
IMAGE = 1280  # pixels of the longer side of the image below the steps
STEPS = 600  # candidates that a page shows in motion, the best


def explain_page(
    explanation: Explanation, sections: Sequence[Section], title: str, protocol: str, inside: str | None = None
) -> str:
    """Return the page's HTML: each section with its text, images and legend, and the suppression step by step.

    inside: the address of the page of the network below, where there is one.
    """
    height, width = explanation.image.shape[:2]
    body, style, script = (resource(f"explain.{kind}", "detkit.explain") for kind in ("html", "css", "js"))
    parts = {section.name: section_html(number, section) for number, section in enumerate(sections, 1)}
    stage = [*parts].index("nms") + 1  # where the player is
    return fill(
        body,
        style=style,
        script=script,
        data=_data(explanation),
        title=escape(title),
        protocol=escape(protocol),
        note=f"<p class=note>{escape(explanation.note)}</p>" if explanation.note else "",
        inside=f'<p><a href="{escape(inside)}">Inside the network below</a></p>' if inside else "",
        nav="".join(f'<a href="#{section.name}">{escape(section.title)}</a>' for section in sections),
        until_nms="\n".join([*parts.values()][:stage]),
        after_nms="\n".join([*parts.values()][stage:]),
        width=str(width),
        height=str(height),
        image=_url(explanation.image, IMAGE),
    )


def section_html(number: int, section: Section) -> str:
    """Return a section's HTML: its text, images and legend."""
    size = " one" if section.wide or len(section.panels) == 1 else " small" if len(section.panels) > 6 else ""
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
    alt = escape(panel.caption or "the image with boxes")
    image = f'<img src="{_url(panel.drawing)}" width="{width}" height="{height}" alt="{alt}">'
    return figure(image, escape(panel.caption))


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


def _url(drawing: np.ndarray, longest: int | None = None) -> str:
    image = Image.fromarray(np.ascontiguousarray(drawing))
    if longest is not None:
        image.thumbnail((longest, longest))
    return data_url(jpeg(image, QUALITY))
