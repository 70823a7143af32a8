"""detkit proposals: what it makes, prints and refuses."""

import json
import re
import signal
import subprocess
import sys
import types
from pathlib import Path

import cv2
import numpy as np
import pytest

from detkit.checkpoints import checkpoint
from detkit.cli import main
from detkit.config import Config, DataConfig, TrainConfig
from detkit.data.proposal_store import make_manifest, open_store, write_store
from detkit.models import build_detector
from tests.builders import tiny_faster_rcnn_config, tiny_ssd_config
from tests.data.roots import make_root, random_image, xml
from tests.locks import held_by_another
from tests.proposals.matlab import PUBLISHED, mat

TOOL = Path(__file__).parents[2] / "tools" / "proposals.py"
CONFIG = "model: {name: ssd}\ndata: {root: ROOT, train: [train], test: [test]}\ntrain: {iterations: 10}\n"


@pytest.fixture(autouse=True)
def _settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "140")
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _quick_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put boxes that any image has in the place of selective search."""

    def search(image: np.ndarray, mode: str = "single", seed: int = 0, max_side: int | None = None) -> np.ndarray:
        assert max_side in (None, 500)
        assert image.shape == (40, 60, 3)
        return np.array([[0, 0, 60, 40], [0, 0, 10, 10]][: {"single": 1, "fast": 2}[mode]], np.float32)

    module = types.ModuleType("detkit.proposals.selective_search")
    module.selective_search = search  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, module.__name__, module)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a data set whose objects two boxes of every image find with IoU 1 and 0.64, and one that is difficult."""
    annotations = {
        "1": xml([("cat", (1, 1, 60, 40))]),
        "2": xml([("dog", (1, 1, 8, 8)), ("dog", (30, 30, 31, 31), 1, 0)]),
        "3": xml([]),
    }
    return make_root(tmp_path / "animals", annotations, {"train": ["1", "2"], "test": ["1", "2", "3"]})


def failure(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(["proposals", *argv]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_make_from_a_folder(root, capsys):
    options = ["--root", str(root), "--split", "test", "--workers", "2"]
    assert main(["proposals", "make", *options]) == 0
    out = Path("proposals/animals-test-selective_search-fast.npz")
    text = capsys.readouterr().out
    assert text == f"{out}: 6 boxes of 3 images, 2 each; selective_search(mode=fast, seed=0)\n"
    store = open_store(out)
    assert store.ids == ("1", "2", "3")
    assert store.boxes("3").tolist() == [[0, 0, 60, 40], [0, 0, 10, 10]]
    for other, recipe in (
        (["--mode", "single"], "selective_search(mode=single, seed=0)"),
        (["--max-side", "500"], "selective_search(max_side=500, mode=fast, seed=0)"),
    ):
        expected = f"holds selective_search(mode=fast, seed=0), not {recipe}"
        assert expected in failure(capsys, "make", *options, *other, "--out", str(out))


def test_one_process_makes_a_store(root, capsys):
    Path("proposals").mkdir()
    with held_by_another(Path("proposals/.a.npz.lock")) as number:
        said = failure(capsys, "make", "--root", str(root), "--split", "test", "--out", "proposals/a.npz")
    assert f"proposals/a.npz is being written by process {number} on " in said


def test_who_interrupts_it_learns_how_to_go_on(root, capsys, monkeypatch):
    def interrupted(*_: object, **keys: object) -> None:
        signal.raise_signal(signal.SIGTERM)

    command = ["proposals", "make", "--root", str(root), "--split", "test", "--workers", "1"]
    with monkeypatch.context() as patch:  # whose end leaves the folder as it is
        patch.setattr("detkit.runtime.progress.Progress.update", interrupted)
        assert main([*command, "--out", "a.npz"]) == 130
    assert capsys.readouterr().err == "interrupted; 1 of 3 images are done; the same command goes on from there\n"
    assert main([*command, "--out", "a.npz"]) == 0
    assert Path("a.npz").is_file()


def test_what_a_process_leaves_that_is_killed_at_its_end_is_cleared(root):
    command = ["proposals", "make", "--root", str(root), "--split", "test", "--out", "proposals/a.npz"]
    assert main(command) == 0
    content = Path("proposals/a.npz").read_bytes()
    parts = Path(f"proposals/a.npz.parts-{open_store('proposals/a.npz').manifest.images_hash}")
    parts.mkdir()
    (parts / "00000.npz").write_bytes(content)
    Path("proposals/.a.npz.lock").touch()
    assert main(command) == 0
    assert [path.name for path in Path("proposals").iterdir()] == ["a.npz"]
    assert Path("proposals/a.npz").read_bytes() == content


def test_make_from_a_config(root, tmp_path):
    (tmp_path / "a.yaml").write_text(CONFIG.replace("ROOT", str(root)))
    assert main(["proposals", "make", "a.yaml", "--out", "x/a.npz", "--workers", "1"]) == 0
    assert open_store("x/a.npz").ids == ("1", "2")
    assert main(["proposals", "make", "a.yaml", "data.test=[train]", "--split", "test", "--mode", "single"]) == 0
    assert open_store("proposals/animals-train-selective_search-single.npz").counts.tolist() == [1, 1]


def test_refusals_of_make(root, tmp_path, capsys):
    (tmp_path / "a.yaml").write_text(CONFIG.replace("ROOT", str(root)))
    folder = ["--root", str(root), "--split", "test"]
    for argv, text in (
        ([], r"which data set\? an example: detkit proposals make --root"),
        (["--root", str(root)], r"which images of .*animals\? an example: --split trainval"),
        (["a.yaml", *folder], "either a config or --root, not both"),
        (["a.yaml", "--split", "train", "--split", "test"], "--split train --split test: of a config, one at a time"),
        (["a.yaml", "--split", "tests"], "no split 'tests' in a config; did you mean 'test'"),
        ([*folder, "--workers", "0"], "--workers 0: at least one process"),
        ([*folder, "--method", "edge_boxes"], "no method 'edge_boxes' of making proposals; known: selective_search"),
        ([*folder, "--out", "a.pkl"], r"a\.pkl: a proposal store's name ends with \.npz"),
    ):
        assert re.search(text, failure(capsys, "make", *argv))
    (root / "JPEGImages" / "2.jpg").write_bytes(b"no image")
    assert main(["proposals", "make", *folder, "--workers", "1"]) == 2
    assert "2.jpg: corrupt or truncated image" in capsys.readouterr().err.splitlines()[-1]


def test_key_value_stands_anywhere(root, tmp_path):
    (tmp_path / "a.yaml").write_text(CONFIG.replace("ROOT", str(root)))
    for number, argv in enumerate(
        (
            ["a.yaml", "--split", "test", "data.test=[train]", "train.seed=3"],
            ["--split", "test", "a.yaml", "data.test=[train]"],
            [
                "a.yaml",
                "data.root=nowhere",
                "--split",
                "test",
                "data.test=[train]",
                "--workers",
                "1",
                f"data.root={root}",
            ],
        )
    ):
        assert main(["proposals", "make", *argv, "--out", f"{number}.npz"]) == 0
        assert open_store(f"{number}.npz").ids == ("1", "2")


def test_refusals_of_rpn(root, tmp_path, capsys):
    model = tiny_ssd_config()
    ssd = Config(model, DataConfig(root=str(root)), TrainConfig(iterations=1))
    checkpoint.save("ssd.pt", build_detector(model, ("cat", "dog")), ssd)
    for argv, text in (
        (["--checkpoint", "none.pt"], "no checkpoint none.pt"),
        (["--checkpoint", "ssd.pt"], "ssd.pt: ssd proposes no regions; name a checkpoint of faster_rcnn"),
        (["--method", "rpn"], "--method rpn needs a trained Faster R-CNN: --checkpoint FILE"),
        (
            ["--checkpoint", "ssd.pt", "--method", "selective_search"],
            "--checkpoint means --method rpn, not selective_se",
        ),
        (["--checkpoint", "ssd.pt", "--mode", "fast"], "--mode fast is one of selective search"),
        (["--checkpoint", "ssd.pt", "--max-side", "500"], "--max-side 500 is of selective search"),
        (["--checkpoint", "ssd.pt", "--count", "0"], "--count 0: at least one region an image"),
        (["--count", "3"], "--count 3 goes with --checkpoint"),
        (["data.test=[x]"], "'data.test=[x]' changes a config, and there is none"),
    ):
        assert text in failure(capsys, "make", *argv, "--root", str(root), "--split", "test")


def test_rpn(root, tmp_path, capsys):
    model = tiny_faster_rcnn_config()
    whole = Config(model, DataConfig(root=str(root), test=["test"]), TrainConfig(iterations=1, workers=0))
    (tmp_path / "run").mkdir()
    checkpoint.save("run/best.pt", build_detector(model, ("cat", "dog")), whole)
    assert main(["proposals", "make", "--checkpoint", "run/best.pt", "--split", "test", "--count", "5"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("proposals/animals-test-rpn.npz: 15 boxes of 3 images, 5 each; rpn(checkpoint=run/best.pt, ")
    assert "post_nms_top_n=5, pre_nms_top_n=60" in text
    store = open_store("proposals/animals-test-rpn.npz")
    assert store.scored
    (tmp_path / "a.yaml").write_text(CONFIG.replace("ROOT", str(root)))
    options = ["--checkpoint", "run/best.pt", "--split", "train", "--out", "b.npz", "--workers", "1"]
    assert main(["proposals", "make", "a.yaml", *options]) == 0
    assert open_store("b.npz").ids == ("1", "2")
    options = ["--checkpoint", "run/best.pt", "--split", "test", "--out", "c.npz"]
    assert main(["proposals", "make", "data.test=[train]", *options, "model.test_post_nms_top_n=4"]) == 0
    assert open_store("c.npz").counts.tolist() == [4, 4]
    assert main(["proposals", "recall", "c.npz", "--dataset", str(root), "--split", "train"]) == 0
    recipe = "rpn(checkpoint=run/best.pt, min_size=2.0, nms_iou=0.7, post_nms_top_n=4, pre_nms_top_n=60, size=[64, 96]"
    assert recipe in capsys.readouterr().out


def rows(text: str) -> list[list[str]]:
    return [re.findall(r"[\w.]+", line) for line in text.splitlines() if line.lstrip().startswith(("│", "|"))]


def test_recall(root, capsys):
    assert main(["proposals", "make", "--root", str(root), "--split", "test", "--out", "a.npz"]) == 0
    capsys.readouterr()
    assert main(["proposals", "recall", "a.npz", "--dataset", str(root)]) == 0
    text = capsys.readouterr().out
    # cat: IoU 1; dog: 64 of 100 square pixels
    assert rows(text) == [["all", "2.0", "0.8200", "1.0000", "1.0000", "0.5000", "0.5000", "0.5000"]]
    assert "selective_search(mode=fast, seed=0) on animals/test: 3 images, 2 objects, difficult ones left out" in text
    assert "curves: a-recall.png" in text
    sample_image = cv2.imread("a-recall.png")
    assert sample_image is not None
    assert sample_image.std() > 5


def test_curves_that_cannot_be_drawn_cost_no_numbers(root, capsys):
    ids = ["1", "2", "3"]
    write_store("a.npz", ids, [np.zeros((0, 4))] * 3, manifest=make_manifest("m", {}, ids))
    assert main(["proposals", "recall", "a.npz", "--dataset", str(root), "--out", "a.npz/b.png"]) == 1
    said = capsys.readouterr()
    assert said.err.startswith("warning: not written: a.npz/b.png: ")
    assert said.err.count("\n") == 1
    assert rows(said.out)


@pytest.mark.parametrize("name", ["n" * 251, "caf\udce9", "a\x1b[31m\nb"])
def test_images_of_odd_names(tmp_path, capsys, name):
    for folder in ("images/test", "labels/test"):
        (tmp_path / "root" / folder).mkdir(parents=True)
    random_image(tmp_path / "root" / "images" / "test" / "a.jpg")
    (tmp_path / "root" / "images" / "test" / "a.jpg").rename(tmp_path / "root" / "images" / "test" / f"{name}.jpg")
    (tmp_path / "root" / "labels" / "test" / f"{name}.txt").write_text("0 .5 .5 1 1\n")
    assert main(["proposals", "make", "--root", "root", "--split", "test", "--out", "a.npz"]) == 0
    assert main(["proposals", "recall", "a.npz", "--dataset", "root"]) == 0
    assert main(["proposals", "convert", "a.npz", "a.json"]) == 0
    assert main(["proposals", "convert", "a.json", "b.npz", "--dataset", "root"]) == 0
    assert open_store("b.npz").ids == open_store("a.npz").ids == (name,)
    assert "\x1b" not in "".join(capsys.readouterr())


def test_recall_takes_the_best_boxes_first(root, capsys):
    draw = np.random.default_rng(0)
    low = draw.random((40, 2)) * 28 + 10
    ids = ["1", "2", "3"]
    boxes = np.concatenate([np.concatenate([low, low + 2], 1), [[0, 0, 60, 40], [0, 0, 10, 10]]])
    write_store("a.npz", ids, [boxes, boxes, boxes[:0]], manifest=make_manifest("m", {}, ids))
    assert main(["proposals", "recall", "a.npz", "--dataset", str(root), "--split", "train", "--out", "b.png"]) == 0
    table = rows(capsys.readouterr().out)
    assert [row[:2] for row in table] == [["10", "10.0"], ["30", "30.0"], ["all", "42.0"]]
    assert [row[3] for row in table] == ["0.0000", "0.0000", "1.0000"]
    assert Path("b.png").exists()


def test_refusals_of_recall(root, capsys):
    write_store("a.npz", ["1"], [np.zeros((0, 4))], manifest=make_manifest("m", {}, ["1"]))
    folder = ["--dataset", str(root)]
    text = failure(capsys, "recall", "a.npz", *folder)
    assert "a.npz: no proposals of image 2 of animals/test (2 of 3 are missing); make them with: " in text
    assert f"detkit proposals make --root {root} --split test" in text
    assert "no proposals b.npz" in failure(capsys, "recall", "b.npz", *folder)
    (root / "ImageSets/Main/none.txt").write_text("3\n")
    write_store("c.npz", ["3"], [np.zeros((0, 4))], manifest=make_manifest("m", {}, ["3"]))
    assert "animals/none has no objects to find" in failure(capsys, "recall", "c.npz", *folder, "--split", "none")


def test_convert(root, capsys):
    mat(Path("voc.mat"), [PUBLISHED] * 3)
    assert main(["proposals", "convert", "voc.mat", "a.npz", "--dataset", str(root)]) == 0
    assert capsys.readouterr().out == "a.npz: 9 boxes of 3 images\n"
    assert main(["proposals", "convert", "a.npz", "a.json"]) == 0
    assert json.loads(Path("a.json").read_text())[0] == {
        "image": "1",
        "boxes": [[0, 0, 60, 40], [0, 0, 1, 1], [10, 5, 20, 8]],
    }
    assert main(["proposals", "convert", "a.json", "b.npz"]) == 0
    assert open_store("b.npz").boxes("2").tolist() == open_store("a.npz").boxes("2").tolist()
    for argv, text in (
        (["a.npz", "b.npz"], "b.npz: a store becomes a .json file"),
        (["a.json", "b.json"], "b.json: a proposal store's name ends with .npz"),
        (["a.txt", "b.npz"], "a.txt: boxes are read from files that end with .mat or .json"),
        (["a.json", "b.npz", "--split", "test"], "--split test goes with --dataset ROOT"),
    ):
        assert text in failure(capsys, "convert", *argv)


def test_the_tool_is_the_command():
    out = subprocess.run([sys.executable, TOOL, "--help"], capture_output=True, text=True, check=True).stdout
    assert "make|recall|convert" in out
