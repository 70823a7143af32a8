"""YOLOv3 in darknet's files: cfg and weights."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import detkit
from detkit.backbones import darknet53
from detkit.checkpoints import checkpoint, darknet_yolov3
from detkit.checkpoints.darknet_files import parse_cfg
from detkit.config import BackboneConfig
from detkit.errors import UserError
from detkit.models import build_detector
from detkit.models.yolov3 import YOLOv3, YOLOv3Config
from detkit.structures import Images
from tests.builders import random_image
from tests.checkpoints.test_darknet_files import HEAD, POOL, convolution
from tests.checkpoints.test_darknet_yolov2 import random_weights
from tests.darknet import write_weights

CLASSES = ("cat", "dog")
LAST = "[convolutional]\nsize=1\nstride=1\npad=1\nfilters={}\nactivation=linear\n\n"
ANCHORS = "10,13,  16,30,  33,23,  30,61,  62,45,  59,119"
SHORTCUT = "[shortcut]\nfrom=-3\nactivation=linear\n\n"


def yolo(mask: str, ignore: str = ".5") -> str:
    return (
        f"[yolo]\nmask = {mask}\nanchors = {ANCHORS}\nclasses=2\nnum=6\njitter=.3\nignore_thresh = {ignore}\n"
        "truth_thresh = 1\nrandom=1\n\n"
    )


def finer(channels: int, layer: int) -> str:
    return (
        f"[route]\nlayers = -4\n\n{convolution(channels, 1)}[upsample]\nstride=2\n\n[route]\nlayers = -1, {layer}\n\n"
    )


def down(channels: int) -> str:
    return convolution(channels).replace("stride=1", "stride=2")


def residual(channels: int) -> str:
    return convolution(channels // 2, 1) + convolution(channels) + SHORTCUT


def cfg() -> str:
    """As yolov3-voc.cfg, for images of 128 pixels, with fewer, narrower layers behind the backbone."""
    body = "# Downsample\n\n".join(
        [convolution(32), *(down(channels) + residual(channels) * count for channels, count in darknet53.STAGES)]
    )
    coarse = (
        convolution(16, 1) + convolution(24) + convolution(12, 1) + convolution(20) + LAST.format(21) + yolo("3,4,5")
    )
    middle = finer(10, 61) + convolution(14, 1) + convolution(18) + LAST.format(14) + yolo("1,2")
    fine = finer(6, 36) + convolution(8, 1) + convolution(10) + LAST.format(7) + yolo("0")
    return f"{HEAD}{body}######\n\n{coarse}{middle}{fine}"


def tiny_cfg() -> str:
    """As yolov3-tiny.cfg, with the masks of its first version."""
    body = (
        POOL.join(convolution(channels) for channels in (16, 32, 64, 128, 256, 512)) + "[maxpool]\nsize=2\nstride=1\n\n"
    )
    coarse = convolution(24) + convolution(12, 1) + convolution(20) + LAST.format(21) + yolo("3,4,5", ".7")
    return f"{HEAD}{body}{coarse}{finer(10, 8)}{convolution(14)}{LAST.format(21)}{yolo('1,2,3', '.7')}"


CONFIG = YOLOv3Config(
    size=128,
    features=["c3", "c4", "c5"],
    convolutions=[
        [[16, 1, 1], [24, 3, 1], [12, 1, 1], [20, 3, 1]],
        [[14, 1, 1], [18, 3, 1]],
        [[8, 1, 1], [10, 3, 1]],
    ],
    reduced=[10, 6],
    anchors=[[10.0, 13.0], [16.0, 30.0], [33.0, 23.0], [30.0, 61.0], [62.0, 45.0], [59.0, 119.0]],
    masks=[[3, 4, 5], [1, 2], [0]],
)
TINY = replace(
    CONFIG,
    backbone=BackboneConfig("darknet_yolov1_tiny"),
    features=["c4", "c5"],
    pool=True,
    convolutions=[[[24, 3, 1], [12, 1, 1], [20, 3, 1]], [[14, 3, 1]]],
    reduced=[10],
    masks=[[3, 4, 5], [1, 2, 3]],
    ignore_iou=0.7,
)


def test_a_cfg_says_the_config() -> None:
    assert parse_cfg(cfg(), "a.cfg") == (CONFIG, 2)
    assert parse_cfg(tiny_cfg(), "a.cfg") == (TINY, 2)
    fixed = (
        cfg()
        .replace("random=1", "random=0")
        .replace("ignore_thresh = .5\n", "")
        .replace("activation=linear\n\n#", "\n#")
    )
    assert parse_cfg(fixed, "a.cfg")[0] == replace(CONFIG, train_sizes=[])


def test_the_published_cfgs_are_the_defaults() -> None:
    """yolov3-voc.cfg, of which the layers behind the backbone are written out here."""
    body = convolution(32) + "".join(down(size) + residual(size) * count for size, count in darknet53.STAGES)
    text, masks = HEAD.replace("128", "416") + body, ("6,7,8", "3,4,5", "0,1,2")
    for number, channels in enumerate((512, 256, 128)):
        text += finer(channels, (0, 61, 36)[number]) if number else ""
        text += (convolution(channels, 1) + convolution(2 * channels)) * 3 + LAST.format(75)
        text += yolo(masks[number]).replace("classes=2", "classes=20").replace("num=6", "num=9")
    text = text.replace(ANCHORS, f"{ANCHORS},  116,90,  156,198,  373,326")
    config, classes = parse_cfg(text, "a.cfg")
    published = [[6, 7, 8], [3, 4, 5], [0, 1, 2]]
    assert classes == 20
    assert config == YOLOv3Config(features=["c3", "c4", "c5"], masks=published)
    with torch.device("meta"):
        ours = YOLOv3(YOLOv3Config(), CLASSES)
    assert ours.features == ["c3", "c4", "c5"]
    assert ours.counts == [3, 3, 3]


def slow_network(path: Path, text: str, pixels: np.ndarray) -> list[np.ndarray]:
    """Run a cfg's layers one by one, as the C code has them on a CPU, on numbers in the order of darknet's parser.c.

    pixels: (3, H, W), 0 to 1. Returns what each yolo layer is given, (A * (5 + C), H, W).
    """
    numbers, at = np.fromfile(path, "<f4", offset=20).astype(np.float64), 0
    outputs: list[np.ndarray] = []
    given: list[np.ndarray] = []
    x = pixels.astype(np.float64)

    def take(*shape: int) -> np.ndarray:
        nonlocal at
        at += int(np.prod(shape))
        return numbers[at - int(np.prod(shape)) : at].reshape(shape)

    for block in text.split("[")[2:]:
        name, _, body = block.partition("]")
        lines = (line.partition("=") for line in body.splitlines() if "=" in line and line[0] != "#")
        options = {key.strip(): value.strip() for key, _, value in lines}
        if name == "convolutional":
            filters, size, stride = (int(options[key]) for key in ("filters", "size", "stride"))
            bias = take(filters)
            normed = [take(filters) for _ in range(3)] if "batch_normalize" in options else []
            weights, pad = take(filters, x.shape[0], size, size), size // 2
            padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad)))
            rows, columns = ((side + 2 * pad - size) // stride + 1 for side in x.shape[1:])
            out = np.zeros((filters, rows, columns))
            for i in range(size):
                for j in range(size):
                    part = padded[:, i : i + stride * rows : stride, j : j + stride * columns : stride]
                    out += np.tensordot(weights[:, :, i, j], part, 1)
            if normed:
                scales, mean, variance = (part[:, None, None] for part in normed)
                out = (out - mean) / (np.sqrt(variance) + 0.000001) * scales
            x = out + bias[:, None, None]
            x = x if options["activation"] == "linear" else np.where(x > 0, x, 0.1 * x)
        elif name == "maxpool":
            size, stride = int(options["size"]), int(options["stride"])
            padding = size - 1
            rows, columns = ((side + padding - size) // stride + 1 for side in x.shape[1:])
            begin, out = -(padding // 2), np.full((x.shape[0], rows, columns), -np.inf)
            for i in range(rows):
                for j in range(columns):
                    for n in range(size):
                        for m in range(size):
                            row, column = begin + i * stride + n, begin + j * stride + m
                            if row < x.shape[1] and column < x.shape[2]:
                                out[:, i, j] = np.maximum(out[:, i, j], x[:, row, column])
            x = out
        elif name == "shortcut":
            x = x + outputs[int(options["from"])]
        elif name == "upsample":
            x = x.repeat(2, 1).repeat(2, 2)
        elif name == "route":
            x = np.concatenate([outputs[int(number)] for number in options["layers"].split(",")])
        elif name == "yolo":
            given.append(x)
        outputs.append(x)
    assert at == len(numbers)
    return given


def slow_letterbox(image: np.ndarray, side: int) -> np.ndarray:
    """(3, h, w), which fits, in the middle of a square of .5."""
    _, height, width = image.shape
    boxed = np.full((3, side, side), 0.5)
    top, left = (side - height) // 2, (side - width) // 2
    boxed[:, top : top + height, left : left + width] = image
    return boxed


@torch.no_grad()
@pytest.mark.parametrize(("config", "text"), [(CONFIG, cfg()), (TINY, tiny_cfg())], ids=["yolov3", "tiny"])
def test_files_are_the_network_that_darknet_runs(config: YOLOv3Config, text: str, tmp_path: Path) -> None:
    ours, path = build_detector(config, CLASSES).eval(), tmp_path / "a.weights"
    random_weights(ours)
    write_weights(path, ours)
    path.with_suffix(".cfg").write_text(text)
    path.with_suffix(".names").write_text("cat\ndog\n")
    read = detkit.load(path, device="cpu")
    assert isinstance(read, YOLOv3)
    assert read.classes == CLASSES
    height, width = 75, 128
    pixels, size = random_image(height, width), torch.tensor([[height, width]])
    expected = slow_network(path, text, slow_letterbox(pixels[0].numpy() / 255, 128))
    raw = read.compute(pixels, size)
    counts = [rows * columns * count for (rows, columns), count in zip(raw.sides, read.counts)]
    found = raw.raw[0].split(counts)
    assert len(found) == len(expected)
    for ours_of_map, (rows, columns), theirs in zip(found, raw.sides, expected):
        cells = ours_of_map.view(rows, columns, -1).permute(2, 0, 1).double().numpy()
        np.testing.assert_allclose(cells, theirs, rtol=1e-3, atol=1e-4 * np.abs(theirs).max())
    # get_yolo_detections of a place of the finest map, and correct_yolo_boxes: row 5, column 3, the last anchor
    assert read.config.masks is not None
    mask, x = read.config.masks[-1], expected[-1].reshape(len(read.config.masks[-1]), 7, *raw.sides[-1])[-1, :, 5, 3]
    rows, columns = raw.sides[-1]
    logistic = 1 / (1 + np.exp(-x))
    centre = np.array([(3 + logistic[0]) / columns, (5 + logistic[1]) / rows])
    share = np.exp(x[2:4]) * read.config.anchors[mask[-1]] / 128
    new = np.array([width, height])  # of the image in the letterbox
    centre = (centre - (128 - new) / 2.0 / 128) / (new / 128)
    share = share * 128 / new
    predictions = read.predict(Images(pixels, size, size, ("a",)))
    place = sum(counts[:-1]) + (5 * columns + 3) * len(mask) + len(mask) - 1
    box = np.concatenate([(centre - share / 2) * new, (centre + share / 2) * new])
    # darknet halves an odd room exactly here, and down where it lays the image
    np.testing.assert_allclose(predictions.boxes[0, place].numpy(), box, rtol=1e-3, atol=0.51)
    np.testing.assert_allclose(predictions.scores[0, place].numpy(), logistic[4] * logistic[5:], rtol=1e-3, atol=1e-4)
    # and from there a checkpoint of detkit's own
    assert read.experiment is not None
    checkpoint.save(tmp_path / "a.pt", read, read.experiment)
    again = detkit.load(tmp_path / "a.pt", device="cpu")
    assert torch.equal(again.predict(Images(pixels, size, size, ("a",))).scores, predictions.scores)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("-1, 61", "-1, 60", "[route] with layers=-1,60; only layers=-1,61 is read"),
        ("layers = -4", "layers = -3", "[route] with layers=-3; only layers=-4 is read"),
        ("from=-3", "from=-4", "[shortcut] with from=-4; only from=-3 is read"),
        ("stride=2\n\n[route]", "stride=4\n\n[route]", "[upsample] with stride=4; only stride=2 is read"),
        ("[upsample]", "[reorg]", "[reorg], where YOLOv3 has [upsample]"),
        ("filters=21", "filters=22", "filters=22, but [yolo] needs 21: numbers in mask * (5 + classes)"),
        ("59,119\n", "59\n", "are not 12 numbers above 0"),
        ("mask = 1,2", "mask = 1,6", "mask=1,6 are not different numbers from 0 to 5"),
        ("mask = 1,2", "mask = 1,1", "mask=1,1 are not different numbers from 0 to 5"),
        ("truth_thresh = 1", "truth_thresh = .9", "[yolo] with truth_thresh=.9; only truth_thresh=1 is read"),
        ("truth_thresh = 1", "map=data/a.map", "[yolo] with map=data/a.map, which is not read"),
        ("mask = 0\nanchors = 10", "mask = 0\nanchors = 11", "anchors=11,13,16,30,33,23,30,61,62,45,59,119, but 10,13"),
        ("filters=512", "filters=500", "with which no backbone goes on"),
        (convolution(24), "[maxpool]\nsize=5\nstride=1\n\n", "[maxpool], where YOLOv3 has [convolutional]"),
    ],
)
def test_another_cfg_is_one_line(old: str, new: str, words: str) -> None:
    text = cfg().replace(old, new)
    assert text != cfg()
    with pytest.raises(UserError) as error:
        parse_cfg(text, "a.cfg")
    assert words in str(error.value)
    assert str(error.value).startswith("a.cfg")
    assert "\n" not in str(error.value)


def test_the_first_layers_are_those_of_the_backbones() -> None:
    """darknet's numbers of them, 74 for Darknet-53's last, as its darknet53.conv.74 is cut off behind it."""
    assert len(darknet_yolov3.DARKNET53) == 75
    assert sum(layer != "shortcut" for layer in darknet_yolov3.DARKNET53) == 52
