"""Configs that come with detkit: found by name from any folder, from a checkout as from a wheel."""

import tomllib
from pathlib import Path

import pytest

from detkit import known_configs
from detkit.cli import main
from detkit.comparison.entries import find_entries
from detkit.errors import UserError
from detkit.experiment import load_config
from detkit.known_configs import find_config

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", ["shapes/ssd", "shapes/ssd.yaml", "configs/shapes/ssd.yaml", "configs/shapes/ssd"])
def test_a_name_is_found_from_any_folder(name: str) -> None:
    assert find_config(name) == REPOSITORY / "configs/shapes/ssd.yaml"
    assert load_config(name, ["train.lr=0.5"]).train.lr == 0.5


def test_a_file_that_is_here_comes_first(tmp_path: Path) -> None:
    Path("shapes").mkdir()
    Path("shapes/ssd").write_text("model: {name: yolov1}\ndata: {root: x}\ntrain: {iterations: 1}\n")
    assert load_config("shapes/ssd").model.name == "yolov1"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("custom/ssd_mobilnet_v2", "no config custom/ssd_mobilnet_v2; did you mean 'custom/ssd_mobilenet_v2'?"),
        ("configs/shapes/sdd.yaml", "no config configs/shapes/sdd.yaml; did you mean 'shapes/ssd'?"),
        ("zzzzzzzz", "no config zzzzzzzz; detkit configs lists those of detkit"),
    ],
)
def test_an_unknown_name_is_one_line(name: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", name, "data.root=x"]) == 2
    assert capsys.readouterr().err == f"error: {words}\n"
    assert list(Path().iterdir()) == []
    with pytest.raises(UserError):
        find_entries([name], [], Path("out"))


def test_a_folder_of_them_is_compared() -> None:
    names = [entry.name for entry in find_entries(["shapes"], [], Path("out"))]
    assert {"ssd", "yolov1", "faster_rcnn"} <= set(names)
    (one,) = find_entries(["shapes/ssd"], [], Path("out"))
    assert one.source == REPOSITORY / "configs/shapes/ssd.yaml"


def test_the_command_lists_and_prints_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configs", "shapes/*"]) == 0
    lines = capsys.readouterr().out.splitlines()
    files = list((REPOSITORY / "configs/shapes").glob("*.yaml"))
    assert {line.split()[0] for line in lines[1:]} == {f"shapes/{path.stem}" for path in files}
    assert "SSD on the shapes that detkit draws itself" in next(line for line in lines if "shapes/ssd " in line)
    assert main(["configs", "shapes/ssd"]) == 0
    assert capsys.readouterr().out == (REPOSITORY / "configs/shapes/ssd.yaml").read_text()
    assert main(["configs", "shape/ss*"]) == 2
    assert "no config matches 'shape/ss*'; did you mean 'shapes/ssd'?" in capsys.readouterr().err


def test_each_says_what_it_is_and_is_whole() -> None:
    for name, path in known_configs.known_configs().items():
        assert path.read_text().startswith("# "), name
        assert load_config(name, ["data.root=x"]).train.batch > 0


def test_a_wheel_has_them_where_they_are_looked_for() -> None:
    built = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    ((source, target),) = built["force-include"].items()
    assert REPOSITORY / source == known_configs.FOLDER
    assert REPOSITORY / target in known_configs._PLACES
