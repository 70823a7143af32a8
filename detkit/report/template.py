"""The files that pages are made of."""

import json
import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any


def resource(name: str) -> str:
    """Return the text of a file of this folder."""
    return files("detkit.report").joinpath(name).read_text(encoding="utf-8")


def fill(name: str, parts: Mapping[str, str]) -> str:
    """Return a page: the head that all have, and a template's body, with their `{{part}}`s put in."""
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], resource("head.html") + resource(name))


def as_data(values: Any) -> str:
    """Return JSON that can stand in a script element."""
    # no "<" within: what ends the element, or opens a comment, could stand in the name of a class
    return json.dumps(values, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
