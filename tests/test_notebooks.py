"""The notebooks of the documentation run, small, and hold no outputs."""

import json
from pathlib import Path
from typing import Any

import pytest

from detkit.data.shapes import draw_shapes

REPOSITORY = Path(__file__).parents[1]
NOTEBOOKS = sorted((REPOSITORY / "docs" / "notebooks").glob("*.ipynb"))
# another value of the parameters, in the first cell, that keep a test short
SMALL = {
    "ssd": "",
    "own_data": """
ROOT, CONFIG = Path("shapes"), CONFIG_FOLDER + "/shapes/ssd.yaml"
TRAIN = {"iterations": 2, "batch": 2, "workers": 0, "device": "cpu", "amp": "none"}
""",
}


def cells(path: Path) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_nothing_of_a_run_is_kept(path: Path) -> None:
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells(path))
    assert cells(path)[0]["metadata"]["tags"] == ["parameters"]


def test_own_data_takes_ten_cells() -> None:
    assert len(cells(REPOSITORY / "docs" / "notebooks" / "own_data.ipynb")) == 10


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    draw_shapes(tmp_path / "shapes", {"train": 4, "val": 2, "test": 4})
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(path, 4)
    first = next(number for number, cell in enumerate(notebook.cells) if cell.cell_type == "code")
    small = SMALL[path.stem].replace("CONFIG_FOLDER", repr(str(REPOSITORY / "configs")))
    notebook.cells.insert(first + 1, nbformat.v4.new_code_cell(small))
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": tmp_path}}).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert all(output.output_type != "error" for output in shown)
    pictures = [output for output in shown if "image/png" in output.get("data", ())]
    assert len(pictures) >= {"ssd": 8, "own_data": 1}[path.stem]
    assert "data:image" in str(shown[-1] if path.stem == "ssd" else shown)
