"""The files that pages are made of."""

import json
import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any


def resource(name: str, package: str = "detkit.report") -> str:
    """Return the text of a file of a package's folder."""
    return files(package).joinpath(name).read_text(encoding="utf-8")


def fill(template: str, parts: Mapping[str, str]) -> str:
    """Return a page: the head that all have, and a template's text, with their `{{part}}`s put in."""
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], resource("head.html") + template)


def as_data(values: Any) -> str:
    """Return JSON that can stand in a script element."""
    # no "<" within: what ends the element, or opens a comment, could stand in the name of a class
    return json.dumps(values, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
