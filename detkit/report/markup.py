"""What pages are made of: their files, and the HTML that they share."""

import base64
import io
import json
import re
from collections.abc import Iterable, Mapping
from html import escape
from importlib.resources import files
from typing import Any

from PIL import Image

from detkit.names import shown
from detkit.viz.draw import hex_colour


def resource(name: str, package: str = "detkit.report") -> str:
    """Return the text of a file of a package's folder."""
    return files(package).joinpath(name).read_text(encoding="utf-8")


def fill(body: str, *, style: str, script: str, data: Any, **parts: str) -> str:
    """Return a page: its body, a template, between the head and foot of all pages, with their `{{part}}`s put in.

    style, script: what it has beside those of all pages. data: what the script reads, as JSON. What names hold that
    would act on a page, such as the direction of text, is shown escaped.
    """
    parts = {name: "\n".join(map(shown, part.split("\n"))) for name, part in parts.items()}
    # no "<" within: what ends the element, or opens a comment, could stand in the name of a class
    content = json.dumps(_shown(data), ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    parts |= {"style": resource("base.css") + style, "script": resource("dom.js") + script, "data": content}
    parts |= {name: resource(f"{name}.html") for name in ("class_filter", "large")}
    template = resource("head.html") + body + resource("foot.html")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


def _shown(data: Any) -> Any:
    """Plain data, its texts as they are shown."""
    if isinstance(data, str):
        return shown(data)
    if isinstance(data, Mapping):
        return {key: _shown(value) for key, value in data.items()}
    return [_shown(value) for value in data] if isinstance(data, list | tuple) else data


def digits(value: float) -> str:
    """Four digits, a dash for NaN."""
    return f"{value:.4f}" if value == value else "–"


def figure(image: str, caption: str) -> str:
    below = f"<figcaption>{caption}</figcaption>" if caption else ""
    return f"<figure>{image}{below}</figure>"


def terms(values: Mapping[str, str]) -> str:
    """What a <dl> holds: HTML of names, and what is said of each."""
    return "".join(f"<div><dt>{name}</dt><dd>{text}</dd></div>" for name, text in values.items())


def legend(names: Iterable[str]) -> str:
    """Return the key of curves that are each of the colour of their number."""
    items = "".join(
        f'<li style="--shade:{hex_colour(number)}"><span class="key"></span>{escape(name)}</li>'
        for number, name in enumerate(names)
    )
    return f'<ul class="legend">{items}</ul>'


def cell(text: object, attributes: str = "") -> str:
    return f"<td{attributes}>{text}</td>"


def row(name: str, cells: Iterable[str], attributes: str = "") -> str:
    return f'<tr{attributes}><th scope="row"><span>{name}</span></th>{"".join(cells)}</tr>'


def table(titles: Iterable[str], rows: Iterable[str], kind: str, foot: str = "") -> str:
    """Return a table of `row`s, with a foot where there is one. kind: its classes; "sortable" by a click on a title."""
    button = '<button type="button" class="sort">{}</button>' if "sortable" in kind else "{}"
    head = "".join(f'<th scope="col">{button.format(title)}</th>' for title in titles)
    foot = f"<tfoot>{foot}</tfoot>" if foot else ""
    return f'<table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody>{foot}</table>'


def scroll(name: str, table: str) -> str:
    """Return a table that may be wider than the page; name: for who can't see it."""
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{name}">{table}</div>'


def jpeg(image: Image.Image, quality: int) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality, optimize=True)
    return file.getvalue()


def data_url(content: bytes) -> str:
    """A JPEG as the address of an image."""
    return "data:image/jpeg;base64," + base64.b64encode(content).decode()
