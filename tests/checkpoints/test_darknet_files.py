"""Whole detectors in darknet's files: cfg and weights."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import detkit
from detkit.checkpoints import checkpoint
from detkit.checkpoints.darknet_files import parse_cfg
from detkit.config import BackboneConfig
from detkit.data.voc import VOC_CLASSES
from detkit.errors import UserError
from detkit.models import Detector, build_detector
from detkit.models.yolov1 import YOLOv1Config
from tests.builders import images_of, random_image
from tests.darknet import write_weights

CLASSES = ("cat", "dog")
POOL = "[maxpool]\nsize=2\nstride=2\n\n"
# as darknet's cfgs are written: comments, blanks, keys of training that say nothing about the network
HEAD = """[net]
# Testing
batch=1
height=128
width=128
channels=3
hue = .1

"""


def convolution(filters: int, size: int = 3) -> str:
    # some of the published sections have `filters` last
    return f"[convolutional]\nbatch_normalize=1\nsize={size}\nstride=1\npad=1\nfilters={filters}\nactivation=leaky\n\n"


def tiny_cfg(outputs: int = 48, classes: int = 2) -> str:
    """Fast YOLO for images of 128 pixels: 2 x 2 cells of 2 boxes."""
    body = POOL.join(convolution(channels) for channels in (16, 32, 64, 128, 256, 512, 1024))
    return (
        f"{HEAD}{body}\n#######\n\n{convolution(8)}[local]\nsize=3\nstride=1\npad=1\nfilters=6\nactivation=leaky\n\n"
        f"[dropout]\nprobability=.25\n\n[connected]\noutput= {outputs}\nactivation=linear\n\n"
        f"[detection]\nclasses={classes}\ncoords=4\nrescore=1\nside=2\nnum=2\nsoftmax=0\nsqrt=1\njitter=.2\n\n"
        "object_scale=1\nnoobject_scale=.5\nclass_scale=1\ncoord_scale=5\n"
    )


CONFIG = YOLOv1Config(
    backbone=BackboneConfig("darknet_yolov1_tiny"),
    size=128,
    convolutions=[[8, 3, 1]],
    hidden=[],
    local=6,
    dropout=0.25,
    grid=2,
)


def detector() -> Detector:
    torch.manual_seed(0)
    made = build_detector(CONFIG, CLASSES)
    with torch.no_grad():
        for tensor in made.state_dict().values():
            if tensor.is_floating_point():
                tensor.uniform_(0.01, 0.1)
    return made.eval()


def write_files(detector: Detector, weights: Path) -> None:
    """Write the three files that hold a detector of `CONFIG`."""
    classes = len(detector.classes)
    weights.with_suffix(".cfg").write_text(tiny_cfg(outputs=4 * (10 + classes), classes=classes))
    weights.with_suffix(".names").write_text("".join(f"{name}\n" for name in detector.classes))
    write_weights(weights, detector)


def test_a_cfg_says_the_config() -> None:
    assert parse_cfg(tiny_cfg(), "tiny.cfg") == (CONFIG, 2)


def plain_cfg() -> str:
    """As yolo-tiny.cfg was in November 2015: no batch norm, and a linear layer in front of the connected ones."""
    old = "[local]\nsize=3\nstride=1\npad=1\nfilters=6\nactivation=leaky\n\n"
    new = "[connected]\noutput=7\nactivation=linear\n\n[connected]\noutput=5\nactivation=leaky\n\n"
    return tiny_cfg().replace("batch_normalize=1\n", "").replace(old, new)


PLAIN = replace(CONFIG, backbone=BackboneConfig("darknet_yolov1_tiny_plain"), local=0, bottleneck=7, hidden=[5])


@torch.no_grad()
def test_the_first_fast_yolos_files_are_read(tmp_path: Path) -> None:
    assert parse_cfg(plain_cfg(), "plain.cfg") == (PLAIN, 2)
    ours = build_detector(PLAIN, CLASSES).eval()
    kinds = [(type(layer).__name__, getattr(layer, "out_features", None)) for layer in ours.head]
    assert kinds == [
        *(("Flatten", None), ("Linear", 7), ("Linear", 5), ("LeakyReLU", None), ("Dropout", None), ("Linear", 48)),
    ]
    assert not any(isinstance(layer, torch.nn.BatchNorm2d) for layer in ours.modules())
    write_weights(tmp_path / "a.weights", ours)
    (tmp_path / "a.cfg").write_text(plain_cfg())
    (tmp_path / "a.names").write_text("cat\ndog\n")
    images = images_of(random_image(128, 128))
    read = detkit.load(tmp_path / "a.weights", device="cpu")
    torch.testing.assert_close(read.predict(images).scores, ours.predict(images).scores)


@torch.no_grad()
def test_files_written_are_the_detector_read(tmp_path: Path) -> None:
    ours, path = detector(), tmp_path / "mine.weights"
    write_files(ours, path)
    theirs = detkit.load(path, device="cpu")
    assert theirs.classes == CLASSES
    for key, value in ours.state_dict().items():
        assert torch.equal(theirs.state_dict()[key], value), key
    images = images_of(random_image(128, 128))
    torch.testing.assert_close(theirs.predict(images).scores, ours.predict(images).scores)
    # and from there a checkpoint of detkit's own
    assert theirs.experiment is not None
    checkpoint.save(tmp_path / "mine.pt", theirs, theirs.experiment)
    again = detkit.load(tmp_path / "mine.pt", device="cpu")
    torch.testing.assert_close(again.predict(images).scores, ours.predict(images).scores)


def test_twenty_classes_without_names_are_vocs(tmp_path: Path) -> None:
    write_files(build_detector(CONFIG, VOC_CLASSES), tmp_path / "a.weights")
    (tmp_path / "a.names").unlink()
    read, config = checkpoint.load_detector(tmp_path / "a.weights", overrides=["data.root=elsewhere"])
    assert read.classes == VOC_CLASSES
    assert config.data.root == "elsewhere"
    assert not config.data.difficult


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("[net]", "[nat]", "a.cfg: a darknet cfg begins with [net]"),
        ("height=128", "height=64", "line 1: height=64, width=128, channels=3; read are RGB squares"),
        (
            "batch_normalize=1\nsize=3\nstride=1\npad=1\nfilters=64",
            "batch_normalize=0\nsize=3\nstride=1\npad=1\nfilters=64",
            "[convolutional] with batch_normalize=0; only batch_normalize=1 is read",
        ),
        ("filters=64", "filters=65", "with which no backbone goes on"),
        ("activation=linear", "activation=relu", "[connected] with activation=relu; only activation=linear is read"),
        ("output= 48", "output= 47", "output=47, but [detection] needs 48: side * side * (num * 5 + classes)"),
        ("output= 48", "output= x", "output=x is not a number"),
        ("sqrt=1", "sqrt=0", "[detection] with sqrt=0; only sqrt=1 is read"),
        ("[detection]", "[region]", "[region], where YOLOv1 has [connected] and then [detection]"),
        ("[dropout]", "[crop]", None),
        (
            "[connected]",
            "[connected]\noutput=8\nactivation=leaky\n\n[connected]",
            "[dropout] is read before the last [connected] only",
        ),
        ("jitter=.2", "forced=1", "[detection] with forced=1, which is not read"),
        ("jitter=.2", "jitter", "'jitter' is neither a [section] nor key=value in one"),
        ("num=2", "num=1.5", "num=1.5 is not a whole number"),
    ],
)
def test_another_cfg_is_one_line(old: str, new: str, words: str | None) -> None:
    text = tiny_cfg().replace(old, new)
    assert text != tiny_cfg()
    if words is None:  # a section of the first cfgs that says how to augment
        assert parse_cfg(text, "a.cfg")[0].dropout == 0
        return
    with pytest.raises(UserError) as error:
        parse_cfg(text, "a.cfg")
    assert words in str(error.value)
    assert str(error.value).startswith("a.cfg")
    assert "\n" not in str(error.value)


def test_files_that_do_not_belong_together_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.weights"
    with pytest.raises(UserError, match=r"no file .*a\.weights"):
        detkit.load(path)
    write_files(detector(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-4])
    with pytest.raises(UserError, match="the file is cut short or another network's"):
        detkit.load(path)
    path.write_bytes(whole + bytes(4))
    with pytest.raises(UserError, match="the file is another network's"):
        detkit.load(path)
    path.write_bytes(whole)
    (tmp_path / "a.names").write_text("cat\n")
    with pytest.raises(UserError, match=r"a\.names: 1 classes, but .*a\.cfg has 2"):
        detkit.load(path)
    (tmp_path / "a.names").unlink()
    with pytest.raises(UserError, match=r"no file .*a\.names; the cfg has 2 classes"):
        detkit.load(path)
    shutil.move(tmp_path / "a.cfg", tmp_path / "b.cfg")
    with pytest.raises(UserError, match=r"no file .*a\.cfg; darknet's weights need their cfg beside them"):
        detkit.load(path)
