"""Pages as a browser would see them: strictly parsed, and alive in one where this machine has one."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
VOID = {"meta", "input", "br", "img", "link", "hr"}

needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium here")


class Page(HTMLParser):
    """Checks that every element is closed in turn, and that no two have one id; collects elements and visible text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.stack == []
        self.ids = [attributes["id"] for _, attributes in self.elements if "id" in attributes]
        assert len(self.ids) == len(set(self.ids))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.stack[-1:] not in (["script"], ["style"]):
            self.text += data


def data_of(text: str) -> dict[str, Any]:
    """Return the data that a page's scripts work on."""
    match = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert match
    return json.loads(match[1])


def check_alone(text: str) -> Page:
    """Check that a page needs no other file, and that its links lead to one place each; return it, parsed."""
    page = Page(text)
    assert not {tag for tag, _ in page.elements} & {"link", "iframe", "img"}
    assert "http:" not in text.replace("http-equiv", "")
    assert "https:" not in text
    assert not any("src" in attributes for _, attributes in page.elements)
    links = {str(attributes["href"]).lstrip("#") for tag, attributes in page.elements if tag == "a"}
    assert links <= set(page.ids)
    assert "{{" not in text
    return page


def run_in_browser(text: str, script: str, folder: Path) -> dict[str, Any]:
    """Open a page in a window as narrow as headless Chromium has; run a script at its end.

    Return what the script leaves, as JSON, in `document.body.dataset.seen`.
    """
    page = folder / "page.html"
    page.write_text(text.replace("</body>", f"<script>{script}</script></body>"))
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"]
    command += ["--disable-background-networking", "--disable-component-update", f"--user-data-dir={folder / 'user'}"]
    command += ["--window-size=400,800", "--dump-dom", page.as_uri()]
    output = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    seen = next(attributes["data-seen"] for _, attributes in Page(output).elements if "data-seen" in attributes)
    return json.loads(seen or "")
