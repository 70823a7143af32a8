"""`train --data FOLDER`: any layout, split and checked, a recipe by its size, gone on with by the same command."""

import json
import math
import re
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import detkit
from detkit.checkpoints import checkpoint
from detkit.cli import main
from detkit.config import Config, DataConfig, TrainConfig
from detkit.data.convert import convert
from detkit.data.given import as_dataset
from detkit.data.opening import open_dataset
from detkit.engine import own_data
from detkit.engine.recipe import CUT_OR_PAD, Size, choose_recipe
from detkit.errors import UserError
from detkit.experiment import load_config
from tests.engine.test_resume import assert_same_run
from tests.toys.toy import Toy

CONFIG = """
model: {name: toy}
data: {root: "???", train: [trainval], test: [test], cache: true, augment: [D4]}
train: {iterations: 24, batch: 4, lr: 0.05, warmup: 3, workers: 0, device: cpu}
evaluate: {batch: 4}
"""


@pytest.fixture
def here(toys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with `mine`, a data set in VOC layout without splits; the model `ssd` is a toy."""
    (tmp_path / "toy.yaml").write_text(CONFIG)
    models = {"ssd": "toy.yaml", "rcnn": "custom/rcnn_mobilenet_v2"}
    monkeypatch.setattr(own_data, "own_models", lambda: models)
    monkeypatch.chdir(tmp_path)
    for name in ("JPEGImages", "Annotations"):
        shutil.copytree(toys / name, tmp_path / "mine" / name)
    return tmp_path


class Hearing(detkit.Callback):
    def __init__(self, heard: list[int]) -> None:
        self.heard = heard

    def on_step(self, iteration: int, values: Mapping[str, float]) -> None:
        self.heard.append(iteration)


def files(root: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in root.rglob("*") if path.is_file() and "index" not in path.name}


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert main(["train", *arguments]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


def test_a_folder_becomes_a_detector(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(here / "mine")
    assert main(["train", "--data", "mine", "train.lr=0.02"]) == 0
    said, run = capsys.readouterr().out, here / "runs" / "mine-ssd-1"
    assert "mine: voc, no splits: 42 images, divided at random, every class alike (seed 0): train " in said
    assert said.endswith("next: detkit detect runs/mine-ssd-1/best.pt IMAGE --score best\n")
    assert files(here / "mine") == before
    names = {path.name for path in run.iterdir()}
    assert {"config.yaml", "best.pt", "metrics.json", "report.html", "splits.json"} <= names
    # an ordinary config, of which the splits are shared out
    config = load_config(run / "config.yaml")
    assert config.data.split_file == "runs/mine-ssd-1/splits.json"
    assert (config.train.lr, config.train.evaluate_every, config.data.train) == (0.02, 0.1, None)
    assert config.data.augment == ["PhotometricDistort", "HorizontalFlip"]  # of objects that are all as large
    parts = json.loads((run / "splits.json").read_text())
    ids = {use: open_dataset(config.data, use).ids for use in ("train", "val", "test")}
    assert {use: list(names) for use, names in ids.items()} == {use: parts[use] for use in ids}
    assert sorted(name for names in ids.values() for name in names) == sorted(
        path.stem for path in (here / "mine/Annotations").iterdir()
    )
    # it is evaluated, detects and resumes as any other
    assert main(["evaluate", str(run / "best.pt")]) == 0
    assert f"mine/test: {len(ids['test'])} images" in capsys.readouterr().out
    image = str(next((here / "mine/JPEGImages").iterdir()))
    assert main(["detect", str(run / "best.pt"), image, "--score", "best"]) == 0
    assert main(["train", "--resume", str(run)]) == 0
    # once more it is a new run, by the same split
    heard: list[int] = []
    own = detkit.train(data="mine", callbacks=[Hearing(heard)], **{"train.lr": 0.02})
    assert heard
    with pytest.raises(UserError, match="nowhere"):
        detkit.train(resume=own.folder, data="nowhere")
    assert own.folder == Path("runs/mine-ssd-2")
    assert json.loads((own.folder / "splits.json").read_text()) == parts
    assert own.metrics["mAP"] == json.loads((run / "metrics.json").read_text())["mAP"]


@pytest.mark.parametrize("out", [[], ["--out", "there"]])
def test_the_same_command_goes_on(here: Path, out: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", "--data", "mine", "model.dropout=0.2", *out]
    folder = Path(out[1] if out else "runs/mine-ssd-1")
    Toy.signal_at = Toy.calls + 7, signal.SIGTERM
    assert main(command) == 143
    Toy.signal_at = None
    capsys.readouterr()
    assert main(command) == 0
    assert capsys.readouterr().out.startswith(f"{folder}: a run of this command was interrupted, and goes on\n")
    whole = detkit.train(data="mine", out="whole", **{"model.dropout": 0.2})
    for run in (folder, whole.folder):  # which differ in the place of their list
        for name in ("last.pt", "best.pt"):
            content = checkpoint.load(run / name)
            content["config"]["data"]["split_file"] = ""
            checkpoint.write(run / name, content)
    assert_same_run(folder, whole.folder)


def test_another_command_is_another_run(here: Path) -> None:
    Toy.signal_at = Toy.calls + 3, signal.SIGTERM
    assert main(["train", "--data", "mine"]) == 143
    Toy.signal_at = None
    assert main(["train", "--data", "mine", "train.lr=0.5"]) == 0
    assert load_config("runs/mine-ssd-2/config.yaml").train.lr == 0.5
    Toy.signal_at = Toy.calls + 3, signal.SIGTERM
    assert main(["train", "--data", "mine", "train.iterations=9"]) == 143
    Toy.signal_at = None
    assert main(["train", "--data", "mine"]) == 0  # of the command before it nothing is left
    assert load_config("runs/mine-ssd-4/config.yaml").train.iterations == 12


@pytest.mark.parametrize("layout", ["coco", "yolo"])
def test_other_layouts(layout: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One split of COCO is divided, as is a YOLO folder without any; splits that are there stay."""
    (here / "mine/ImageSets/Main").mkdir(parents=True)
    names = sorted(path.stem for path in (here / "mine/Annotations").iterdir())
    (here / "mine/ImageSets/Main/default.txt").write_text("\n".join(names) + "\n")
    convert(here / "mine", here / "other", layout)
    before = files(here / "other")
    assert main(["train", "--data", "other"]) == 0
    assert f"other: {layout}, the one split, default, of 42 images, divided at random" in capsys.readouterr().out
    assert files(here / "other") == before
    for use, ids in (("train", names[:20]), ("valid", names[20:30])):
        (here / f"mine/ImageSets/Main/{use}.txt").write_text("\n".join(ids) + "\n")
    (here / "mine/ImageSets/Main/default.txt").unlink()
    convert(here / "mine", here / "split", layout)
    assert main(["train", "--data", "split", "--out", "run"]) == 0
    said = capsys.readouterr().out
    assert f"split: {layout}, train 20 images, val 10 images, test 10 images\n" in said
    assert "note: there is no test split: the test at the end is on val" in said
    assert load_config("run/config.yaml").data.test == ["valid"]
    assert not Path("run/splits.json").exists()


def test_problems_are_said_in_short_and_fatal_ones_stop(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    xml = here / "mine/Annotations/train000.xml"
    xml.write_text(xml.read_text().replace("<width>40<", "<width>41<"))
    shutil.copy(here / "mine/JPEGImages/val000.jpg", here / "mine/JPEGImages/val001.jpg")
    assert main(["train", "--data", "mine", "train.iterations=1"]) == 0
    said = capsys.readouterr().out
    assert re.search(
        r"note: \d+ duplicate image, 1 size, such as .*; detkit dataset check --root mine names each\n", said
    )
    assert re.search(r"test \d+; \d+ copies, or nearly, stay together", said)
    parts = json.loads(Path("runs/mine-ssd-1/splits.json").read_text())
    assert any({"val000", "val001"} <= set(ids) for use, ids in parts.items() if use != "of")
    (here / "mine/JPEGImages/val000.jpg").write_bytes(b"")
    (here / "mine/JPEGImages/val002.jpg").unlink()
    shutil.rmtree("runs")
    line = refused(capsys, "--data", "mine")
    assert line.startswith("error: mine: 2 images cannot be read, such as JPEGImages/val00")
    assert not Path("runs").exists()


def test_images_that_are_in_two_splits_are_said(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "mine/ImageSets/Main").mkdir(parents=True)
    for use, ids in (("train", ["train000", "train001"]), ("test", ["train001", "test000"])):
        (here / f"mine/ImageSets/Main/{use}.txt").write_text("\n".join(ids) + "\n")
    assert main(["train", "--data", "mine", "train.iterations=1"]) == 0
    assert "note: 1 of 2 images of test are trained on, too; its figures say little\n" in capsys.readouterr().out


def test_what_cannot_be_is_one_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty").mkdir()
    assert "empty is no data set; looked for" in refused(capsys, "--data", "empty")
    assert "no data set at nowhere" in refused(capsys, "--data", "nowhere")
    assert "no model 'sdd' for one's own images; did you mean 'ssd'?" in refused(
        capsys, "--data", "mine", "--model", "sdd"
    )
    assert "rcnn classifies regions that are made before" in refused(capsys, "--data", "mine", "--model", "rcnn")
    assert "leave toy.yaml out, or name the folder as data.root=FOLDER" in refused(capsys, "toy.yaml", "--data", "mine")
    assert "leave --resume x out" in refused(capsys, "--data", "mine", "--resume", "x")
    assert "--model goes with --data" in refused(capsys, "toy.yaml", "--model", "ssd")
    assert "on what? examples: detkit train --data FOLDER" in refused(capsys)
    assert "unknown key 'train.lrr'" in refused(capsys, "--data", "mine", "train.lrr=1")
    assert not Path("runs").exists() or not list(Path("runs").iterdir())
    for path in sorted((here / "mine/Annotations").iterdir())[2:]:
        path.unlink()
    assert "mine has too few images for that, 2: " in refused(capsys, "--data", "mine", "--out", "new")
    assert not Path("new").exists()


@pytest.mark.parametrize(
    "text",
    ["[]", "{}", '{"of": ""}', '{"of": 1, "train": []}', '{"of": "", "train": [1]}', '{"of": "", "all": []}', "x"],
)
def test_a_damaged_list_is_one_line(text: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("list.json").write_text(text)
    changes = ("data.root=mine", "data.split_file=list.json", "data.train=null", "data.test=null")
    assert "list.json: not of the form" in refused(capsys, "toy.yaml", *changes)
    Path("list.json").write_text('{"of": "", "train": ["train000", "bird"]}')
    assert "mine has no image bird, which its list names" in refused(capsys, "toy.yaml", *changes)


# the recipe


def recipe(
    images: int,
    objects: int,
    *,
    classes: tuple[str, ...] = ("cat",),
    side: int = 500,
    spread: float = 0.5,
    **asked: bool,
) -> dict:
    size = Size(images, objects, images * side**2, classes, spread)
    base = Config(model=None, data=DataConfig(root="", cache=True), train=TrainConfig(iterations=600, batch=16))
    return choose_recipe(size, base, **{"has_val": True, "has_length": False, **asked})


def test_what_the_configs_are_for_stays_as_it_is() -> None:
    assert recipe(300, 750)["train.iterations"] == 600
    assert recipe(296, 700)["train.iterations"] == 592


def test_larger_sets_are_trained_on_longer_and_each_image_is_seen_less_often() -> None:
    sizes = [20, 100, 300, 1000, 5000, 100_000]
    steps = [recipe(images, 2 * images)["train.iterations"] for images in sizes]
    assert steps == sorted(steps)
    assert steps[0] == 300  # of a few images, too
    seen = [16 * number / images for number, images in zip(steps, sizes)]
    assert seen == sorted(seen, reverse=True)
    assert recipe(300, 5000)["train.iterations"] < 400  # many objects in each image


def test_what_goes_with_the_length() -> None:
    short, long = recipe(20, 20), recipe(100_000, 300_000)
    assert short["train.warmup"] == 15
    assert long["train.warmup"] == 500
    assert short["train.ema"] < long["train.ema"] == 0.9998
    kept = recipe(100_000, 300_000, has_length=True)
    assert "train.iterations" not in kept
    assert kept["train.warmup"] == 30
    assert recipe(20, 20, has_val=False)["train.evaluate_every"] == 0
    assert recipe(20, 20)["data.cache"] is True
    assert recipe(2000, 20)["data.cache"] is False


@pytest.mark.parametrize(("name", "flips"), [("turn-left", False), ("Right arrow", False), ("bright", True)])
def test_sides_are_not_exchanged(name: str, flips: bool) -> None:
    assert ("HorizontalFlip" in recipe(20, 20, classes=("a", name))["data.augment"]) == flips


def test_sizes_are_varied_where_they_vary() -> None:
    same, varied = (recipe(20, 20, spread=spread)["data.augment"] for spread in (0.1, 0.3))
    assert same == ["PhotometricDistort", "HorizontalFlip"]
    assert varied == [CUT_OR_PAD, *same]


def test_how_sizes_vary() -> None:
    """Within a class, as shares of the image, by factors; of what is trained on."""
    images = (  # side; sides of objects, their classes, which are crowds
        (100, [10, 20, 80], [0, 0, 1], [False, False, True]),
        (200, [40, 4, 8], [0, 1, 1], [False, False, False]),
    )
    mine = []
    for side, sides, labels, crowds in images:
        boxes = torch.tensor([[0.0, 0, size, size] for size in sides])
        target = {"boxes": boxes, "labels": torch.tensor(labels), "iscrowd": torch.tensor(crowds)}
        mine.append((torch.zeros(3, side, side, dtype=torch.uint8), target))
    size = Size.of(as_dataset(mine, "data", ("a", "b")), use_difficult=False)
    logs = [math.log(share) for share in (0.1, 0.2, 0.2, 0.02, 0.04)]
    a, b = sum(logs[:3]) / 3, sum(logs[3:]) / 2
    expected = (sum((one - a) ** 2 for one in logs[:3]) + sum((one - b) ** 2 for one in logs[3:])) / 5
    assert size.spread == pytest.approx(expected**0.5, rel=1e-6)
    assert (size.images, size.objects, size.pixels) == (2, 5, 50_000)


def test_models_are_the_configs_for_own_images() -> None:
    models = own_data.own_models()
    assert models["ssd"] == "custom/ssd_mobilenet_v2"
    assert {"ssd_lite", "yolov1", "yolov2", "faster_rcnn", "retinanet", "ssd300_coco"} <= models.keys()


def test_the_backbone_starts_from_the_detector_in_the_box(tmp_path: Path) -> None:
    """Nothing is downloaded, but where a user asks for other weights, or for a backbone that it does not have."""

    def weights_of(model: str, *overrides: str) -> Any:
        config: Any = own_data._config(own_data.own_models()[model], tmp_path, {}, overrides)
        return config.model.backbone.weights

    assert [weights_of(model) for model in ("ssd", "yolov1", "faster_rcnn", "retinanet")] == ["voc"] * 4
    assert weights_of("ssd", "model.backbone.weights=imagenet") == "imagenet"
    assert weights_of("ssd", "model.backbone.weights=null") is None
    assert weights_of("ssd", "model.backbone.name=resnet18") == "imagenet"
    assert weights_of("ssd_lite") is weights_of("ssd300_coco") is None  # of a whole detector
