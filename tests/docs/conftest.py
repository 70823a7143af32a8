"""Data for the commands of the pages."""

from pathlib import Path

import pytest

from detkit.data.formats import open_root
from detkit.data.shapes import draw_shapes
from tests.docs.pages import FILES, REPOSITORY


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shapes in VOC's format at `shapes`, the same in that of docs/extending.md at `lines`."""
    root = tmp_path_factory.mktemp("data")
    draw_shapes(root / "shapes", {"train": 4, "val": 2, "test": 2})
    (root / "lines").symlink_to(root / "shapes" / "JPEGImages")
    for split in ("train", "val", "test"):
        dataset = open_root(root / "shapes", [split])
        lines = []
        for record in map(dataset.record, range(len(dataset))):
            boxes = zip(record.annotations.labels.tolist(), record.annotations.boxes.tolist())
            words = [text for label, box in boxes for text in (dataset.classes[label], *map(str, box))]
            lines.append(" ".join((record.path.name, *words)))
        (root / "lines" / f"{split}.txt").write_text("".join(f"{line}\n" for line in lines))
    return root


@pytest.fixture
def page(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files of docs/extending.md, and detkit's configs."""
    for name, code in FILES.items():
        (tmp_path / name).write_text(code)
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    monkeypatch.chdir(tmp_path)
    return tmp_path
