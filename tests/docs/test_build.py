"""The pages that docs/build.py makes."""

import dataclasses
import json
import re
import sys
from importlib.util import module_from_spec, spec_from_file_location
from types import ModuleType
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from detkit.config import Config
from detkit.models import MODELS, list_models, model_config_type
from tests.docs.pages import (
    DOCS,
)


@pytest.fixture(scope="module")
def build() -> ModuleType:
    """docs/build.py"""
    return module_of("build")


def module_of(name: str) -> ModuleType:
    """Return a module of docs."""
    spec = spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def leaves(node: Any, path: str) -> dict[str, Any]:
    """Return the values of a structured config by the paths of their keys."""
    found = {}
    for key in node:
        name = f"{path}.{key}" if path else str(key)
        if OmegaConf.is_missing(node, key):
            found[name] = "required"
        elif OmegaConf.is_dict(node[key]) and dataclasses.is_dataclass(OmegaConf.get_type(node[key])):
            found |= leaves(node[key], name)
        else:
            found[name] = yaml.safe_load(json.dumps(OmegaConf.to_container(node)[key]))  # tuples as lists
    return found


def rows(text: str) -> dict[str, Any]:
    """Return the defaults of a table by key; each row has a type and a meaning."""
    found = {}
    for line in text.splitlines():
        if line.startswith("| `"):
            key, kind, default, meaning = (cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1])
            assert kind, line
            assert len(meaning) > 3, line
            found[key.strip("`")] = "required" if default == "required" else yaml.safe_load(default.strip("`"))
    return found


def test_page_of_config_keys_is_complete(build: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    # without the detectors that other tests in this process have registered
    shipped = {name: MODELS.get(name) for name in list_models() if MODELS.get(name).__module__.startswith("detkit.")}
    monkeypatch.setattr(MODELS, "_entries", shipped)
    general, *models = build.config_page().split("\n## `model: {name: ")
    expected = leaves(OmegaConf.structured(Config), "")
    assert expected.pop("model") == "required"
    assert rows(general) == expected
    assert [text.split("}")[0] for text in models] == list_models()
    for text in models:
        expected = leaves(OmegaConf.structured(model_config_type(text.split("}")[0])), "model")
        assert expected.pop("model.name") == text.split("}")[0]
        assert rows(text) == expected


def test_key_without_a_meaning_ends_the_build(build: ModuleType) -> None:
    with pytest.raises(SystemExit, match=r"Undocumented\.size has no docstring"):
        build.keys(Undocumented, "model")


def test_what_may_not_break_in_a_page(build: ModuleType) -> None:
    page = (
        '<title>R-CNN 5 s</title><article id="a-b"><p>Fast R-CNN in 10.9 s and 3\nmin of 4 models: '
        '<a href="../notebooks/ssd.ipynb">one</a>, <code>tools/x.py a-b --out DIR -map</code></p>'
        "<pre><code>x --fp16</code></pre><td><code>detkit.models.region_head.RegionHead</code></td>"
        "<code>configs/custom/mask_rcnn_coco.yaml</code><code>--a-long-option-of-some-tool</code></article>"
    )
    whole = '<span class="whole">{}</span>'.format
    expected = (
        f'<title>R-CNN 5 s</title><article id="a-b"><p>Fast {whole("R-CNN")} in 10.9\N{NO-BREAK SPACE}s and '
        '3\N{NO-BREAK SPACE}min of 4 models: <a href="../notebooks/ssd.html">one</a>, '
        f"<code>tools/x.py a-b {whole('--out')} DIR {whole('-map')}</code></p>"
        f"<pre><code>x {whole('--fp16')}</code></pre>"
        "<td><code>detkit.<wbr>models.<wbr>region_head.<wbr>RegionHead</code></td>"
        f"<code>configs/<wbr>custom/<wbr>mask_rcnn_coco.yaml</code><code>{whole('--a-long-option-of-some-tool')}</code></article>"
    )
    assert build.finished(page) == expected


def test_notebooks_become_pages(build: ModuleType) -> None:
    for notebook in (DOCS / "notebooks").glob("*.ipynb"):
        page = build.notebook_page(notebook)
        assert page.startswith("# ")
        assert f"[{notebook.name}]({notebook.name})" in page
        cells = json.loads(notebook.read_text())["cells"]
        listings = re.findall(r"```python\n(.*?)\n```\n", page, re.DOTALL)
        assert listings == ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
        for target in re.findall(r"\]\(([^)#:\s]+)\)", page):
            assert (notebook.parent / target).is_file(), target


def test_docstrings_become_pages() -> None:
    pytest.importorskip("griffe")
    docstrings = module_of("docstrings")
    text = docstrings.with_lists(
        "Cut boxes (B, 4); sizes: (B, 2).\n\n    a: b\n\n"
        "map, index: (B,);\n*rest: of a kind: two. Raises UserError for none.",
        ["sizes", "map", "index", "rest", "a"],
    )
    assert text == (
        "Cut boxes (B, 4).\n\n- `sizes`: (B, 2).\n\n    a: b\n\n- `map`, `index`: (B,)\n- `*rest`: of a kind: two.\n\n"
        "Raises UserError for none."
    )
    assert docstrings.named("a and b, **keys") == "`a` and `b`, `**keys`"
    assert docstrings.with_room("What:\n- a\n  b\n- c\n\n- d\n") == "What:\n\n- a\n  b\n- c\n\n- d\n"
    code = docstrings.with_code("As in\n\n    x = 1\n\n    y = 2\n\n- x\n\n>>> f()\n1")
    assert code == "As in\n\n```python\nx = 1\n\ny = 2\n```\n\n- x\n\n```python\n>>> f()\n1\n```"


@dataclasses.dataclass
class Undocumented:
    """A config."""

    size: int = 1
