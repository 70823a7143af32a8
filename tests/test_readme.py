"""The README's page on code of one's own, run as it stands there: its files, its commands, with fewer steps."""

import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import detkit
from detkit import extensions
from detkit.backbones import BACKBONES
from detkit.cli import run_command
from detkit.data.formats import DATASETS, SPLITS, open_root
from detkit.data.shapes import draw_shapes
from detkit.errors import UserError
from detkit.models import MODELS
from tests import zoo

REPOSITORY = Path(__file__).parents[1]
TITLE = "### Your own backbone, head, data set\n"
PAGE = (REPOSITORY / "README.md").read_text().split(TITLE)[1].split("\n## ")[0]
FILES = dict(re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", PAGE, re.DOTALL))
COMMANDS = dict(zip(("small", "dots", "lines"), re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL), strict=True))
FEW = ["train.iterations=2", "train.batch=2", "train.workers=0", "train.device=cpu", "train.amp=none"]


@contextmanager
def new_process() -> Iterator[None]:
    """What is registered inside is forgotten behind, as by a process that ends."""
    tables = (MODELS._entries, BACKBONES._entries, DATASETS, SPLITS, extensions.imported, sys.path)
    before = [table.copy() for table in tables]
    try:
        yield
    finally:
        for table, content in zip(tables, before):
            table.clear()
            table.extend(content) if isinstance(table, list) else table.update(content)
        for name in FILES:
            sys.modules.pop(name.removesuffix(".py"), None)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shapes in VOC's format at `shapes`, the same in that of the page at `lines`."""
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
    """A folder with the page's files, and detkit's configs."""
    for name, code in FILES.items():
        (tmp_path / name).write_text(code)
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def commands(name: str, data: Path) -> None:
    """Run the commands below a file of the page."""
    random_image = next((data / "shapes" / "JPEGImages").glob("*.jpg"))
    for line in COMMANDS[name].splitlines():
        words = [
            word.replace("PATH", str(data / "lines")).replace("PHOTO", str(random_image)) for word in shlex.split(line)
        ]
        with new_process():
            if words[1] == "-c":
                sys.path.append(".")
                exec(words[2], {})
                continue
            (tool,) = re.fullmatch(r"tools/(\w+)\.py", words[1]).groups()  # pyright: ignore
            assert (REPOSITORY / words[1]).is_file()
            own = any(word.startswith("data.root=") for word in words)
            few = [] if tool != "train" else FEW + ([] if own else ["data.format=voc", f"data.root={data / 'shapes'}"])
            assert run_command(tool, [*words[2:], *few]) == 0, line


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    with new_process():
        assert run_command(arguments[0], list(arguments[1:])) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_the_page_is_whole_and_short() -> None:
    assert list(FILES) == ["small.py", "dots.py", "dots.yaml", "lines.py"]
    assert all(len(code.splitlines()) < 40 for code in FILES.values())


def test_backbone(page: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands("small", data)
    assert "small" in capsys.readouterr().out
    line = refused(capsys, "evaluate", "runs/small/best.pt")
    assert line == (
        "error: runs/small/best.pt: model.backbone.name is 'small', of code that is not loaded: "
        "add --import small.py (in Python, import it first)"
    )
    # the run knows what it needs
    with new_process():
        assert run_command("train", ["--resume", "runs/small"]) == 0
    with new_process():
        sys.path.append(".")
        import small  # noqa: F401  # pyright: ignore

        assert detkit.load("runs/small/best.pt").config.backbone.name == "small"
        for model in zoo.MODELS:
            if model == "torchvision_ssd":
                continue  # at 300 pixels
            detector = zoo.build(model, "small").train()
            objects = zoo.some_objects(detector)
            losses = detector(zoo.sample_images(detector, around=objects), objects)
            assert all(loss.isfinite() for loss in losses.values()), model


def test_detector(page: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands("dots", data)
    assert len(list(Path("detections").iterdir())) == 1
    assert "model.name is 'dots', of code that is not loaded: add --import dots.py" in refused(
        capsys, "detect", "runs/dots/best.pt", str(data / "shapes" / "JPEGImages")
    )


def test_data_set(page: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands("lines", data)
    expected, found = {}, {}
    with new_process():
        extensions.import_code(["lines.py"])
        for root, kind, boxes in ((data / "shapes", "voc", expected), (data / "lines", "lines", found)):
            truth = open_root(root, ["train", "test"], kind).truth()
            for image, label, box in zip(truth.image.tolist(), truth.labels.tolist(), truth.boxes.tolist()):
                boxes.setdefault((truth.ids[image], truth.classes[label]), []).append(box)
    assert found == expected
    line = refused(capsys, "evaluate", "runs/lines/best.pt", "--import", "dots.py")
    assert "data.format is 'lines', of code that is not loaded: add --import dots.py --import lines.py" in line
    line = refused(capsys, "dataset", "stats", "--root", str(data / "lines"), "--format", "line")
    assert "no format 'line' of a data set" in line


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("none.py", None, "imports: no file none.py; give the path of a Python file, or the name of a module"),
        ("nonesuch", None, "imports: no module 'nonesuch'; a file is named with .py, as in nonesuch.py"),
        ("broken.py", "x = (", "broken.py:1: SyntaxError"),
        ("failing.py", "\n\n1 / 0\n", "failing.py:3: ZeroDivisionError: division by zero"),
        ("needy.py", "import nonesuch\n", "needy.py imports 'nonesuch', which is not installed"),
        ("json.py", "", "there is another module 'json'"),
        ("twice.py", "from detkit.models import MODELS\nMODELS.register('ssd')(int)", "'ssd' is registered twice"),
    ],
)
def test_code_that_cannot_be_imported_is_one_line(
    name: str, code: str | None, words: str, page: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if code is not None:
        Path(name).write_text(code)
    assert words in refused(capsys, "models", "ssd", "--import", name)
    with new_process(), pytest.raises(UserError):
        extensions.import_code([name])
