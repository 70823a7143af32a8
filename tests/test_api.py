"""What `import detkit` offers, and how quick it is."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import detkit
from detkit.checkpoints import checkpoint
from detkit.config import Config, DataConfig, DetectConfig, TrainConfig
from detkit.errors import UserError
from tests.builders import random_image, tiny_ssd_config

CLASSES = ("cat", "dog")
HEAVY = ("torch", "cv2", "numpy", "albumentations", "matplotlib", "omegaconf", "rich")
TINY = {
    "size": 96,
    "l2norm": [],
    "extras": [[32, 64, 3, 2, 1]],
    "min_sizes": [12, 24, 48, 72],
    "max_sizes": [24, 48, 72, 90],
    "aspect_ratios": [[2], [2], [2], [2]],
    "batch_norm": False,
}


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    "code",
    [
        "import detkit; dir(detkit)",
        "import detkit.cli; detkit.cli.main(['--help'])",
        "import contextlib, detkit.cli\nwith contextlib.suppress(SystemExit): detkit.cli.main(['detect', '--help'])",
        "import detkit.cli; detkit.cli.main(['detect', 'best.pt', 'missing.jpg'])",
    ],
)
def test_import_help_and_misspelt_names_load_nothing_heavy(code: str) -> None:
    loaded = python(f"{code}\nimport sys; print([name for name in {HEAVY} if name in sys.modules])").splitlines()[-1]
    # looking for files needs OpenCV, at whose import it is told to be quiet
    assert set(eval(loaded)) <= ({"cv2", "numpy"} if "missing" in code else set())


def test_names() -> None:
    assert set(detkit.__all__) <= set(dir(detkit))
    for name in detkit.__all__:
        assert getattr(detkit, name) is not None
    assert detkit.ops.box_iou(torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([[1.0, 0, 3, 2]])).item() == pytest.approx(
        1 / 3
    )
    assert callable(detkit.ops.nms)
    assert callable(detkit.ops.BoxCoder)
    assert callable(detkit.evaluation.voc_ap)
    assert detkit.list_models("*") == detkit.list_models()
    assert "ssd" in detkit.list_models("s*")
    assert detkit.list_models("nothing*") == []
    assert all(name.startswith("res") for name in detkit.list_backbones("res*"))
    assert {"tiny", "resnet50"} <= set(detkit.list_backbones())
    assert callable(detkit.viz.draw)
    assert re.fullmatch(r"\d+\.\d+\.\d+", detkit.__version__)
    assert Path(detkit.__file__).with_name("py.typed").is_file()
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        detkit.lod  # noqa: B018


def test_create_model() -> None:
    detector = detkit.create_model("ssd", backbone="tiny", classes=["cat", "dog"], **TINY)
    assert detector.classes == CLASSES
    assert detector.input.size == (96, 96)
    assert detector.config.backbone.name == "tiny"
    assert detector.config.min_sizes == [12.0, 24.0, 48.0, 72.0]
    other = detkit.create_model("ssd", backbone={"name": "tiny", "weights": None}, classes=["cat"], **TINY)
    assert other.classes == ("cat",)
    assert len(detector.detect(random_image(40, 50)[0])) == 1


# the deeper ones of a family are like the others of it
DEEP = {"resnet101", "resnet152", *detkit.list_backbones("vgg1[1-9]_bn"), *detkit.list_backbones("vgg1[39]")}


@pytest.mark.parametrize("backbone", [name for name in detkit.list_backbones() if name not in DEEP])
def test_create_model_with_any_backbone(backbone: str) -> None:
    detector = detkit.create_model("ssd", backbone=backbone, classes=["cat"])
    assert len(detector.sides) == len(detector.features) + len(detector.extras)
    assert detector.sides[-1] == 1


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"name": "sdd"}, "'sdd'; did you mean 'ssd'"),
        ({"backbone": "tinny"}, "'tinny'; did you mean 'tiny'"),
        ({"backbone": {"nam": "tiny"}}, "model.backbone.nam'; did you mean 'name'"),
        ({"sise": 300}, "'model.sise'; did you mean 'size'"),
        ({"size": "big"}, "model.size"),
        ({"classes": "cat"}, "classes is a list of names"),
        ({"classes": []}, "classes is a list of names"),
        ({"classes": 20}, "classes is a list of names"),
    ],
)
def test_create_model_says_what_is_wrong(keys: dict, words: str) -> None:
    arguments = {"name": "ssd", "backbone": "tiny", "classes": ["cat"], **TINY, **keys}
    with pytest.raises(UserError) as error:
        detkit.create_model(**arguments)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_load_and_detect(tmp_path: Path) -> None:
    """A loaded detector detects as its checkpoint's config says; a fresh one with the defaults."""
    detector = detkit.create_model("ssd", backbone="tiny", classes=CLASSES, **TINY)
    config = Config(
        tiny_ssd_config(), DataConfig(root=""), TrainConfig(iterations=1), DetectConfig(detections_per_image=3)
    )
    checkpoint.save(tmp_path / "best.pt", detector, config)
    loaded = detkit.load(tmp_path / "best.pt", device="cpu")
    assert not loaded.training
    assert loaded.classes == CLASSES
    image = random_image(40, 50)[0]
    (few,) = loaded.detect(image, score=0.0)
    (many,) = detector.detect(image, score=0.0)
    assert detector.training
    boxes, scores, labels = few.image(0)
    assert boxes.shape == (3, 4)
    assert scores.shape == labels.shape == (3,)
    assert len(many) > 3
    assert torch.equal(many.boxes[:3], few.boxes)
    (none,) = loaded.detect(image, score=0.99)
    assert none.boxes.shape == (0, 4)
    with pytest.raises(UserError, match="no checkpoint"):
        detkit.load(tmp_path / "missing.pt")
