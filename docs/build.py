"""Build the documentation into build/docs: `python docs/build.py`, with detkit's extra `docs`.

Writes docs/config.md from the config's dataclasses and a page of each notebook, then runs Zensical, strictly: a page,
an anchor or a name of the API that a link leads to and that does not exist ends the build with status 1. Then says in
each page where lines may break.
"""

import ast
import dataclasses
import inspect
import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from detkit.config import Config
from detkit.models import list_models, model_config_type

REPOSITORY = Path(__file__).parents[1]
CONFIG_PAGE = REPOSITORY / "docs" / "config.md"
NOTEBOOKS = REPOSITORY / "docs" / "notebooks"
SITE = REPOSITORY / "build" / "docs"
INTRODUCTION = """# Config keys

A config is a YAML file of these keys; the files in `configs/` are examples. Any key can be
changed on the command line, as in `train.lr=0.01`. A wrong key or value ends with one line that says which.
"""
UNITS = "ms|s|min|h|M|MB|GB|MiB|GiB|GFLOPs|%|points|pixels|images/s"


@dataclasses.dataclass(frozen=True)
class Key:
    """One key of a config: its path, its type and default as a config writes them, and what it means."""

    path: str
    type: str
    default: str
    meaning: str


def attribute_docstrings(cls: type) -> dict[str, tuple[str, str]]:
    """Return the annotation and the docstring of each attribute that a class defines, those of its bases apart."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for statement, following in zip(definition.body, [*definition.body[1:], None]):
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        text = ""
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            text = " ".join(str(following.value.value).split())
        found[statement.target.id] = ast.unparse(statement.annotation), text
    return found


def keys(cls: type, path: str) -> list[Key]:
    """Return the keys of a dataclass, inherited ones first; a section within it gives its own keys."""
    documented: dict[str, tuple[str, str]] = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base):
            documented |= attribute_docstrings(base)
    found = []
    for field in dataclasses.fields(cls):
        annotation, meaning = documented[field.name]
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if dataclasses.is_dataclass(default):
            values = dataclasses.asdict(default)  # pyright: ignore[reportArgumentType]
            for key in keys(type(default), f"{path}.{field.name}"):
                name = key.path.rpartition(".")[2]
                found.append(dataclasses.replace(key, default=written(values[name])))
            continue
        if path == "model" and field.name == "name":  # the table's title
            continue
        if not meaning:
            raise SystemExit(f"{cls.__module__}.{cls.__qualname__}.{field.name} has no docstring below it")
        interval = field.metadata.get("interval")
        meaning += f" In {interval}." if interval else ""
        found.append(Key(f"{path}.{field.name}", annotation, written(default), meaning))
    return found


def written(value: Any) -> str:
    """Return a default as a config has it."""
    if isinstance(value, str):
        return "required" if value == MISSING else f"`{value}`"
    return f"`{json.dumps(value)}`"


def table(title: str, introduction: str, rows: list[Key]) -> str:
    lines = [f"## {title}", "", introduction, "", '<div class="config-keys" markdown>', ""]
    lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
    for key in rows:
        kind = " or ".join("null" if part == "None" else f"`{part}`" for part in key.type.split(" | "))
        lines.append(f"| `{key.path}` | {kind} | {key.default} | {key.meaning} |")
    return "\n".join([*lines, "", "</div>", ""])


def config_page() -> str:
    """Return the page of all keys."""
    page = [INTRODUCTION]
    documented = attribute_docstrings(Config)
    plain = []
    for field in dataclasses.fields(Config):
        section = field.default_factory
        if dataclasses.is_dataclass(section):
            page.append(table(f"`{field.name}`", documented[field.name][1], keys(section, field.name)))  # pyright: ignore
        elif field.name != "model":
            annotation, meaning = documented[field.name]
            plain.append(Key(field.name, annotation, written(section()), meaning))  # pyright: ignore[reportCallIssue]
    page.append(table("Beside the sections", "Keys of the config itself.", plain))
    for name in list_models():
        cls = model_config_type(name)
        first = (inspect.getdoc(cls) or "").split("\n\n")[0]
        page.append(table(f"`model: {{name: {name}}}`", " ".join(first.split()), keys(cls, "model")))
    return "\n".join(page)


def notebook_page(notebook: Path) -> str:
    """Return a notebook's text and code as a page."""
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(notebook.read_text())["cells"]]
    title, *parts = [text if kind == "markdown" else f"```python\n{text}\n```" for kind, text in cells]
    note = f"This is [{notebook.name}]({notebook.name}), a notebook: run it to see what its cells show."
    return "\n\n".join([title, note, *parts]) + "\n"


def finished(page: str) -> str:
    """Return a page in which names, options, and figures with their units break nowhere else than they should.

    Links to notebooks lead to their pages.
    """
    before, start, article = page.partition("<article")
    pieces = re.split(r"(<pre.*?</pre>|<code.*?</code>|<[^>]*>)", article, flags=re.DOTALL)
    for index, piece in enumerate(pieces):
        if piece.startswith(("<code", "<pre")):
            piece = re.sub(r"(?<![\w.&;-])(--?[a-z][\w-]*)", r'<span class="whole">\1</span>', piece)
            if re.fullmatch(r"<code>[\w./]{25,}</code>", piece):
                piece = re.sub(r"(?<=\w[./])(?=\w)(?!(?:yaml|json|py|caffemodel)<)", "<wbr>", piece)
        elif not piece.startswith("<"):
            piece = re.sub(rf"(?<=\d)\s(?=(?:{UNITS})(?!\w))", "\N{NO-BREAK SPACE}", piece)
            piece = piece.replace("R-CNN", '<span class="whole">R-CNN</span>')
        pieces[index] = re.sub(r'(href="[^":]*notebooks/\w+)\.ipynb"', r'\1.html"', piece)
    return before + start + "".join(pieces)


def main() -> int:
    CONFIG_PAGE.write_text(config_page())
    for notebook in NOTEBOOKS.glob("*.ipynb"):
        notebook.with_suffix(".md").write_text(notebook_page(notebook))
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    status = subprocess.run(command, cwd=REPOSITORY, check=False).returncode
    for page in SITE.rglob("*.html") if status == 0 else ():
        page.write_text(finished(page.read_text()))
    return status


if __name__ == "__main__":
    sys.exit(main())
