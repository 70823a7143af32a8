"""Code and commands of the first page, and of the page of one's own images, run."""

import re
import shutil
from pathlib import Path
from typing import Any

import detkit
from detkit.data.shapes import draw_shapes
from tests.docs.pages import FEW, PAGES, README, bash, commands, run


def test_first_page_is_short() -> None:
    assert README.stat().st_size <= 8192


def test_first_block_of_code_is_the_test_command() -> None:
    text = PAGES["README.md"]
    assert text.split("```")[0].endswith("<!-- test command -->\n")
    (command,) = re.findall(r"<!-- test command -->\n```bash\n(.*)\n```", text)
    assert command.startswith("python3 -m venv .venv && ")
    assert "pytest" in command


def test_first_page_runs(page: Path, data: Path) -> None:
    shapes = data / "shapes"
    images = shapes / "JPEGImages"
    names = {"PATH": shapes, "IMAGES": images, "IMAGE": next(images.glob("*.jpg"))}
    for block in bash(PAGES["README.md"])[1:]:
        for line in commands(block):
            few = [*FEW, f"data.root={shapes}"]
            few += ["data.format=voc"] if "configs/shapes" in line else ["model.backbone.weights=null"]
            run(line, few, names)
    assert {path.name for path in Path("explained").iterdir()} >= {"explain.html"}
    assert Path("evaluated/report.html").is_file()
    (page / "images").symlink_to(images)
    (code,) = re.findall(r"```python\n(.*?)```", PAGES["README.md"], re.DOTALL)
    assert len([line for line in code.splitlines() if line]) <= 5
    result: dict[str, Any] = {}
    exec(code, result)
    assert result["boxes"].shape == (len(result["scores"]), 4)
    assert {path.name for path in Path("drawn").iterdir()} == {path.name for path in images.glob("*.jpg")}
    detecting, _, _ = PAGES["docs/python.md"].partition("## Train")
    code = "".join(re.findall(r"```python\n(.*?)```", detecting, re.DOTALL))
    here = {"image.jpg": names["IMAGE"], "0.4": "0.0", "person": "ring", "stream(0": "stream('images'"}
    for written, value in here.items():
        assert written in code
        code = code.replace(written, str(value))
    exec(code, result)
    assert set(result["people"].names) <= {"ring"}


def test_training_in_python_runs(page: Path, data: Path) -> None:
    """The code of docs/python.md from `Train` on, in few steps on the shapes."""
    (page / "cards").symlink_to(data / "shapes")
    shutil.copy(next((data / "shapes" / "JPEGImages").glob("*.jpg")), "image.jpg")
    _, _, training = PAGES["docs/python.md"].partition("## Train")
    code = "".join(re.findall(r"```python\n(.*?)```", training, re.DOTALL))
    few = '{"iterations": 2, "batch": 2, "workers": 0, "device": "cpu", "amp": "none"}'
    Path("few.yaml").write_text(Path("configs/shapes/ssd.yaml").read_text().replace("cache: true", "cache: false"))
    here = {
        '{"iterations": 2000}': few,
        "configs/custom/ssd_mobilenet_v2.yaml": "few.yaml",
        '"mobilenet_v2"': '"tiny"',
    }
    for written, value in here.items():
        assert written in code
        code = code.replace(written, value)
    result: dict[str, Any] = {"detkit": detkit}
    exec(code, result)
    assert result["run"].metrics["mAP"] is not None
    assert result["curves"].ndim == result["drawn"].ndim == 3
    assert len(list(Path("runs").iterdir())) == 3
    loop = code[code.index("from torch.utils.data import DataLoader") :]
    assert len([line for line in loop.splitlines() if line and not line.startswith(("import", "from"))]) <= 20


def test_own_data_step_by_step(page: Path, data: Path) -> None:
    draw_shapes(page / "mine", {"train": 20})
    shutil.rmtree(page / "mine" / "ImageSets")
    text = PAGES["docs/own_data.md"]
    (steps,) = (block for block in bash(text) if "dataset.py split" in block)
    convert = [line for line in commands(text) if "convert" in line]
    for line in [*commands(steps), *convert]:
        run(line, [*FEW, "model.backbone.weights=null"], {"IMAGES": page / "mine" / "JPEGImages"})
    assert Path("mine_yolo/data.yaml").is_file()
