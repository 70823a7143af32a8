"""detkit evaluate: what it prints and writes, and the official figures."""

import json
import re
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from detkit.checkpoints import checkpoint
from detkit.cli import command_parser, main
from detkit.cli.evaluate import Scored, _only, _report
from detkit.config import Config, DataConfig, DetectConfig, TrainConfig
from detkit.data.annotations import Annotations
from detkit.data.dataset import Record
from detkit.data.voc import VOCDataset
from detkit.errors import late
from detkit.evaluation import pycocotools_summary, read_comp4, read_detections, voc_ap, write_comp4, write_detections
from detkit.models import build_detector
from tests.builders import tiny_ssd_config
from tests.data.roots import make_root, xml
from tests.evaluation import reference
from tests.evaluation.sets import detection_set, truth_set
from tests.real_data import DATA, needs

IDS, CLASSES = ("1", "2", "3"), ("cat", "dog", "owl")
ROWS = [
    ("1", "cat", 0.9, (0.0, 0.0, 20.0, 20.0)),
    ("2", "cat", 0.8, (5.0, 5.0, 9.0, 9.0)),
    ("2", "dog", 0.7, (9.0, 9.0, 30.0, 30.0)),
]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "100")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a data set without images: a cat in 1, a dog in 2, a difficult owl in 3."""
    annotations = {
        "1": xml([("cat", (1, 1, 20, 20))]),
        "2": xml([("dog", (10, 10, 30, 30))]),
        "3": xml([("owl", (1, 1, 9, 9), 1, 0)]),
    }
    return make_root(tmp_path / "animals", annotations, {"test": ["1", "2", "3"], "cats": ["1"]}, image_files=False)


@pytest.fixture
def found(tmp_path: Path) -> Path:
    """Return a folder of comp4 files with detections.json beside them."""
    detections = detection_set(ROWS, IDS, CLASSES)
    write_comp4(tmp_path / "found", detections)
    write_detections(tmp_path / "found" / "detections.json", detections)
    return tmp_path / "found"


def evaluate(*arguments: object) -> int:
    return main(["evaluate", *map(str, arguments)])


def failure(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run what must fail; return the one line that it says."""
    assert evaluate(*arguments) == 2
    output = capsys.readouterr()
    assert output.err.startswith("error: ")
    assert output.err.count("\n") == 1
    assert "Traceback" not in output.err
    return output.err.strip()


@pytest.mark.parametrize("source", [".", "detections.json"])
def test_stored_detections(source: str, root: Path, found: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "out"
    assert evaluate("--detections", found / source, "--dataset", root, "--split", "test", "--out", out) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics.pop("seconds") > 0
    assert metrics == {
        "metric": "voc07",
        "mAP": pytest.approx(1),
        "AP": {"cat": pytest.approx(1), "dog": pytest.approx(1), "owl": None},
        "iou": 0.5,
        "images": 3,
        "split": "test",
        "dataset": "animals/test",
        "detections": str(found / source),
    }
    assert {path.name for path in out.iterdir()} == {"metrics.json", "detections.json", "pr"}
    assert {path.name for path in (out / "pr").iterdir()} == {"all.png", "cat.png", "dog.png"}
    screen = capsys.readouterr().out
    for part in ("voc07 (11-point AP), IoU >= 0.5", "animals/test: 3 images", "found", "no objects", "1.0000"):
        assert part in screen
    # what was written is scored the same again
    assert evaluate("--detections", out / "detections.json", "--dataset", root, "--out", out) == 0
    assert json.loads((out / "metrics.json").read_text())["AP"] == metrics["AP"]


def test_cocos_numbers(root: Path, found: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ("--detections", found, "--dataset", root, "--metric", "coco", "--reference")
    assert evaluate(*arguments, "--classes", "cat,dog,owl", "--out", tmp_path / "out") == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert {"metric": "coco", "images": 3, "APl": None, "AR100": 1, "split": "test"}.items() <= metrics.items()
    assert [metrics["mAP"], metrics["AP50"]] == pytest.approx([1, 1])
    assert metrics["AP"] == {"cat": pytest.approx(1), "dog": pytest.approx(1), "owl": None}
    assert {path.name for path in (tmp_path / "out" / "pr").iterdir()} == {"all.png", "cat.png", "dog.png"}
    screen = capsys.readouterr().out
    for part in ("IoU 0.50 to 0.95", "pycocotools", "0 of 12 numbers differ"):
        assert part in screen


@pytest.mark.parametrize("other", [{"AP75": 0.999998}, {"ARl": 0.0}, {"AP75": 0.999998, "ARl": 0.0}])
def test_a_difference_from_the_reference_is_told_in_the_status(
    other: dict[str, float],
    root: Path,
    found: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    def wrong(*arguments) -> dict[str, float]:
        return {**pycocotools_summary(*arguments), **other}

    monkeypatch.setattr("detkit.evaluation.pycocotools_summary", wrong)
    assert evaluate("--detections", found, "--dataset", root, "--metric", "coco", "--reference") == 1
    assert f"{len(other)} of 12 numbers differ" in capsys.readouterr().out


def test_without_out_nothing_is_written(root: Path, found: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    assert evaluate("--detections", found, "--dataset", root, "--metric", "voc") == 0
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("source", [".", "detections.json"])
def test_some_classes_alone(source: str, root: Path, found: Path, tmp_path: Path):
    out = tmp_path / "out"
    assert evaluate("--detections", found / source, "--dataset", root, "--classes", "dog, cat", "--out", out) == 0
    assert list(json.loads((out / "metrics.json").read_text())["AP"]) == ["dog", "cat"]
    assert json.loads((out / "detections.json").read_text())["classes"] == ["dog", "cat"]


def test_areas_stay_with_the_objects_of_some_classes():
    truth = truth_set([("a", "cat", (0, 0, 9, 9)), ("a", "dog", (0, 0, 8, 8)), ("b", "dog", (0, 0, 7, 7))])
    assert _only(truth, ("dog",)).area is None
    kept = _only(replace(truth, area=torch.tensor([1.0, 2.0, 3.0])), ("dog",))
    assert kept.area is not None
    assert (kept.area.tolist(), kept.labels.tolist()) == ([2, 3], [0, 0])


def test_detections_of_more_classes_than_the_data_set_has(root: Path, tmp_path: Path):
    path = tmp_path / "detections.json"
    write_detections(path, detection_set([("1", "yak", 0.9, (0, 0, 9, 9))], IDS, ("yak", *CLASSES)))
    assert evaluate("--detections", path, "--dataset", root, "--out", tmp_path) == 0
    assert json.loads((tmp_path / "metrics.json").read_text())["AP"] == {"yak": None, "cat": 0, "dog": 0, "owl": None}


def test_a_class_that_nobody_looked_for_is_not_a_zero(root: Path, found: Path, capsys: pytest.CaptureFixture[str]):
    (found / "comp4_det_test_dog.txt").unlink()
    line = failure(capsys, "--detections", found, "--dataset", root)
    assert line.endswith("has no detections of class 'dog'; known: cat, owl; --classes scores some classes alone")
    assert evaluate("--detections", found, "--dataset", root, "--classes", "cat") == 0


def test_wrong_calls_end_in_one_line(root: Path, found: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    stored = ("--detections", found)
    scored = (*stored, "--dataset", root)
    assert "what to evaluate?" in failure(capsys)
    assert "--detections needs --dataset ROOT" in failure(capsys, *stored)
    assert "did you mean 'voc07'" in failure(capsys, *scored, "--metric", "voc2007")
    assert "not one of voc07, voc, coco" in failure(capsys, *scored, "--metric", "mAP")
    assert "the metric here is voc07" in failure(capsys, *scored, "--reference")
    assert "no data set at" in failure(capsys, *stored, "--dataset", tmp_path / "nowhere")
    assert "no split 'tset'" in failure(capsys, *scored, "--split", "tset")
    assert "image '2' is not in the data set's split" in failure(
        capsys, *stored[:1], _copy(found, tmp_path / "cats", "cats"), *scored[2:], "--split", "cats"
    )
    assert "image '2', which the data set does not have" in failure(
        capsys, "--detections", found / "detections.json", "--dataset", root, "--split", "cats"
    )
    assert "no comp4_det_cats_<class>.txt" in failure(capsys, *scored, "--split", "cats")
    assert "--classes: " in failure(capsys, *scored, "--classes", "cow")
    assert "no file" in failure(capsys, "--detections", tmp_path / "no.json", "--dataset", root)
    assert "leave 'train.lr=1' out" in failure(capsys, *scored, "train.lr=1")
    assert "--dataset goes with --detections" in failure(capsys, "best.pt", "--dataset", root)
    assert "--classes goes with --detections" in failure(capsys, "best.pt", "--classes", "cat")
    assert "is a file" in failure(capsys, *scored, "--out", found / "detections.json")
    assert "best.pt" in failure(capsys, tmp_path / "best.pt")
    broken = found / "comp4_det_test_cat.txt"
    broken.write_text(broken.read_text() + "1 0.5 1 1\n")
    assert "comp4_det_test_cat.txt, line 3" in failure(capsys, *scored, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def _copy(folder: Path, to: Path, split: str) -> Path:
    to.mkdir()
    for path in folder.glob("*.txt"):
        (to / path.name.replace("_test_", f"_{split}_")).write_bytes(path.read_bytes())
    return to


@pytest.fixture
def trained(tmp_path: Path) -> tuple[Path, Path]:
    """Return an untrained detector's checkpoint, and its data set with images."""
    annotations = {str(k): xml([(CLASSES[k % 3], (1 + k, 1, 20 + k, 20))]) for k in range(4)}
    root = make_root(tmp_path / "images", annotations, {"test": ["0", "1", "2"], "val": ["3"]})
    torch.manual_seed(0)
    data = DataConfig(root=str(root), val=["val"])
    train = TrainConfig(iterations=1, workers=0, device="cpu")
    config = Config(tiny_ssd_config(), data, train, DetectConfig(detections_per_image=15))
    checkpoint.save(tmp_path / "best.pt", build_detector(config.model, CLASSES), config)
    return tmp_path / "best.pt", root


def test_a_checkpoint(trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    weights, root = trained
    out = tmp_path / "out"
    # a change to the config may follow options, as the contract has it
    assert evaluate(weights, "--metric", "voc", "--out", out, "detect.detections_per_image=7", "evaluate.batch=2") == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert set(metrics) == {"metric", "mAP", "AP", "iou", "images", "split", "dataset", "checkpoint", "seconds"}
    assert (metrics["metric"], metrics["images"], metrics["split"]) == ("voc", 3, "test")
    assert metrics["checkpoint"] == str(weights)
    stored = json.loads((out / "detections.json").read_text())
    assert len(stored["detections"]) == 3 * 7
    assert "images/test: 3 images" in capsys.readouterr().out
    # scored again without the network: the same to the last bit
    again = tmp_path / "again"
    assert evaluate("--detections", out / "detections.json", "--dataset", root, "--metric", "voc", "--out", again) == 0
    assert json.loads((again / "metrics.json").read_text())["AP"] == metrics["AP"]


def test_a_checkpoint_by_cocos_metric(trained: tuple[Path, Path], capsys: pytest.CaptureFixture[str]):
    weights, _ = trained
    assert evaluate(weights, "evaluate.metric=coco", "--reference") == 0
    assert "0 of 12 numbers differ" in capsys.readouterr().out
    assert "--reference goes with --metric coco" in failure(capsys, weights, "--reference")


def test_a_checkpoint_on_another_split(trained: tuple[Path, Path], capsys: pytest.CaptureFixture[str]):
    weights, _ = trained
    assert evaluate(weights, "--split", "val") == 0
    assert "images/val: 1 images" in capsys.readouterr().out
    assert "no split 'vall' in a config; did you mean 'val'" in failure(capsys, weights, "--split", "vall")
    assert "detect.kep" in failure(capsys, weights, "detect.kep=3")
    weights.write_text("not a checkpoint")
    assert str(weights) in failure(capsys, weights)


def test_scoring_again_loads_no_network(root: Path, found: Path):
    script = (
        "import sys; from detkit.cli import main; "
        f"assert main(['evaluate', '--detections', {str(found)!r}, '--dataset', {str(root)!r}]) == 0; "
        "heavy = {'torchvision', 'albumentations', 'cv2', 'matplotlib', 'detkit.models'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.DEVNULL)


def test_help_is_quick(capsys: pytest.CaptureFixture[str]):
    script = (
        "import sys; from detkit.cli import main\n"
        "try: main(['evaluate', '--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'numpy', 'rich', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.DEVNULL)


needs_voc07 = needs("voc07_test.tar.xz")


@pytest.fixture(scope="module")
def voc07(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return VOC2007 test, annotations alone, with a YOLOv2's 98,023 detections."""
    folder = tmp_path_factory.mktemp("voc07")
    with tarfile.open(DATA / "voc07_test.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder / "voc07"


@needs_voc07
@pytest.mark.parametrize(("metric", "key"), [("voc07", "11point"), ("voc", "area")])
def test_the_official_figures(metric: str, key: str, voc07: Path, tmp_path: Path):
    expected = json.loads((DATA / "voc07_test_expected.json").read_text())
    path = voc07 / "detections"
    assert evaluate("--detections", path, "--dataset", voc07, "--metric", metric, "--out", tmp_path) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["images"] == 4952
    assert metrics["mAP"] == pytest.approx(expected[f"mAP_{key}"], abs=1e-6)
    assert set(metrics["AP"]) == set(expected["AP"])
    # Equal scores come in file order here, as with MATLAB's stable sort. The figures expected were made with numpy's
    # unstable one, which shows in the seventh decimal of the area: 1.7e-6 at "bus", at most 6e-7 elsewhere.
    close = 1e-9 if metric == "voc07" else 2e-6
    for name, ap in metrics["AP"].items():
        assert ap == pytest.approx(expected["AP"][name][key], abs=close), name


@needs_voc07
def test_pycocotools_on_yolos_detections(voc07: Path):
    arguments = ("--detections", voc07 / "detections", "--dataset", voc07, "--metric", "coco", "--reference")
    assert evaluate(*arguments) == 0


@needs_voc07
def test_the_official_figures_lie_between_the_orders_of_equal_scores(voc07: Path):
    """Nothing but the order of equal scores separates our area from the one expected, in any class."""
    expected = json.loads((DATA / "voc07_test_expected.json").read_text())
    truth = VOCDataset([(voc07, "test")]).truth()
    assert int((~truth.ignore).sum()) == 12032
    found = read_comp4(voc07 / "detections", ids=truth.ids)
    assert len(found.scores) == 98_023
    result = voc_ap(found, truth, metric="voc")
    for index, name in enumerate(result.classes):
        recall, _, scores = (part.numpy() for part in result.curve(index))
        right = np.diff(recall, prepend=0) > 0
        least, most = (
            _area_in_order(np.lexsort((wrong_first, -scores)), right, int(result.npos[index]))
            for wrong_first in (right, ~right)
        )
        assert least - 1e-12 <= expected["AP"][name]["area"] <= most + 1e-12
        assert most - least < 2e-5


def _area_in_order(order: np.ndarray, right: np.ndarray, npos: int) -> float:
    hits = np.cumsum(right[order])
    return reference.area(hits / npos, hits / np.arange(1, len(hits) + 1))


@needs_voc07
def test_every_class_by_the_slow_loops(voc07: Path):
    """All 20 areas by the kit's rules as plain loops, file order for equal scores: the same to rounding."""
    truth = VOCDataset([(voc07, "test")]).truth()
    found = read_comp4(voc07 / "detections", ids=truth.ids)
    expected = reference.voc_ap_loops(found, truth, metric="voc")
    assert voc_ap(found, truth, metric="voc").ap.tolist() == pytest.approx(expected, abs=1e-12)


def test_help_names_files_and_metrics():
    _, parser = command_parser("evaluate")
    text = re.sub(r"\s+", " ", parser.format_help())
    for part in ("metrics.json", "detections.json", "pr/*.png", "comp4_det_<split>_<class>.txt", "voc07", "--classes"):
        assert part in text


def test_late_failures_cost_no_results(root, found, tmp_path, capsys, monkeypatch):
    def broken(*_: object, **__: object) -> None:
        raise ValueError("of a\nname")

    monkeypatch.setattr("detkit.viz.pr_plots", broken)
    monkeypatch.setattr("detkit.report.write_report", broken)
    out = tmp_path / "out"
    assert evaluate("--detections", found, "--dataset", root, "--out", out, "--report") == 1
    said = capsys.readouterr()
    reason = "ValueError: of a name"
    assert said.err == f"warning: not written: pr/*.png: {reason}; report.html: {reason}; all else is complete\n"
    assert "mAP" in said.out
    assert {"metrics.json", "detections.json"} == {path.name for path in out.iterdir()}


def test_a_full_disk_still_shows_the_numbers(root, found, tmp_path, capsys, monkeypatch):
    def full(path: Path, _: object) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("detkit.cli.evaluate.write_atomic", full)
    assert evaluate("--detections", found, "--dataset", root, "--out", tmp_path / "out") == 2
    said = capsys.readouterr()
    assert said.err == f"error: No space left on device: {tmp_path}/out/metrics.json\n"
    assert "animals/test: 3 images" in said.out


def test_names_act_neither_on_the_screen_nor_in_a_page(tmp_path, capsys):
    classes = ("\x1b[31mred", "a\nb", "\u202egnp", "$x_$", "a:b", "a/b", "all")
    ids = ("caf\udce9", "i\x1b]0;owned\x07", "\u202ejpg")
    rows = [(name, kind, 0.9, (1.0, 1.0, 9.0, 9.0)) for name in ids for kind in classes]
    truth = truth_set([(name, kind, (1.0, 1.0, 9.0, 9.0), False) for name, kind, _, _ in rows], ids, classes)
    detections = detection_set(rows, ids, classes)
    out = tmp_path / "out"

    class Root:
        name = "d\x1b[2J"

        def record(self, index: int) -> Record:
            return Record(ids[index], Path(f"{ids[index]}.jpg"), Annotations.of(np.zeros((0, 4)), np.zeros(0)), 20, 20)

        def image(self, index: int) -> np.ndarray:
            return np.zeros((20, 20, 3), np.uint8)

    protocol = {"split": "test", "dataset": Root.name, "checkpoint": "\x1b.pt"}
    scored = Scored(voc_ap(detections, truth), detections, truth, Root(), protocol, 1.0)  # pyright: ignore[reportArgumentType]
    arguments = command_parser("evaluate")[1].parse_args(["x.pt", "--out", str(out), "--report"])
    with late() as attempt:
        _report(arguments, scored, attempt)
    page = (out / "report.html").read_text()
    for text in (capsys.readouterr().out, page):
        assert not set(text) & set("\x1b\x07\u202e\udce9")
    assert r"caf\xe9" in page.replace("\\\\", "\\")
    assert read_detections(out / "detections.json").ids == ids
    assert json.loads((out / "metrics.json").read_text())["AP"].keys() == set(classes)
    assert len(list((out / "pr").iterdir())) == len(classes) + 1
