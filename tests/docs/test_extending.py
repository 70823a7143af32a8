"""Code and commands of docs/extending.md run."""

import sys
from pathlib import Path

import pytest

import detkit
from detkit import extensions
from detkit.cli import run_command
from detkit.data.formats import open_root
from detkit.errors import UserError
from tests import zoo
from tests.docs.pages import COMMANDS, FEW, FILES, new_process, run


def run_extension(name: str, data: Path) -> None:
    """Run the commands below a file of docs/extending.md."""
    images = data / "shapes" / "JPEGImages"
    names = {"PATH": data / "lines", "IMAGE": next(images.glob("*.jpg"))}
    for line in COMMANDS[name].splitlines():
        own = "data.root=" in line
        few = FEW + ([] if own else ["data.format=voc", f"data.root={data / 'shapes'}"])
        run(line.removeprefix("python "), few, names)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    with new_process():
        assert run_command(arguments[0], list(arguments[1:])) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_listings_are_complete_and_short() -> None:
    assert list(FILES) == ["small.py", "dots.py", "dots.yaml", "windows.py", "lines.py"]
    assert all(len(code.splitlines()) <= 60 for code in FILES.values())


def test_backbone(page: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_extension("small", data)
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
    run_extension("dots", data)
    assert len(list(Path("detections").iterdir())) == 1
    assert Path("dots.onnx").is_file()
    assert "model.name is 'dots', of code that is not loaded: add --import dots.py" in refused(
        capsys, "detect", "runs/dots/best.pt", str(data / "shapes" / "JPEGImages")
    )


def test_region_detector(page: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_extension("windows", data)
    assert "mAP" in capsys.readouterr().out


def test_data_set(page: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_extension("lines", data)
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
