"""YOLOv2 in darknet's files: cfg and weights."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import detkit
from detkit.checkpoints import checkpoint
from detkit.checkpoints.darknet_files import BACKBONES_V2, parse_cfg
from detkit.config import BackboneConfig
from detkit.errors import UserError
from detkit.models import build_detector
from detkit.models.yolov2 import YOLOv2, YOLOv2Config
from tests.builders import images_of, random_image
from tests.checkpoints.test_darknet_files import HEAD, POOL, convolution
from tests.darknet import write_weights
from tests.ops.test_yolov2 import slow_reorg

CLASSES = ("cat", "dog")
LAST = "[convolutional]\nsize=1\nstride=1\npad=1\nfilters=14\nactivation=linear\n\n"
REGION = """[region]
anchors = 1.5, 2.0,  .5,1
bias_match=1
classes=2
coords=4
num=2
softmax=1
jitter=.3
rescore=1

object_scale=5
noobject_scale=1
class_scale=1
coord_scale=1

absolute=1
thresh = .6
random=1
"""
PASSTHROUGH = f"[route]\nlayers=-9\n\n{convolution(8, 1)}[reorg]\nstride=2\n\n[route]\nlayers=-1,-4\n\n"


def layers(name: str) -> str:
    return "".join(POOL if isinstance(layer, str) else convolution(*layer[:2]) for layer in BACKBONES_V2[name])


def cfg() -> str:
    """As yolov2-voc.cfg, for images of 128 pixels, with narrower layers behind the backbone."""
    head = convolution(16) + convolution(12)
    return f"{HEAD}{layers('darknet19')}#######\n\n{head}{PASSTHROUGH}{convolution(20)}{LAST}{REGION}"


def tiny_cfg() -> str:
    """As yolov2-tiny-voc.cfg."""
    pool = "[maxpool]\nsize=2\nstride=1\n\n"
    body = f"{layers('darknet_yolov1_tiny')}{pool}{convolution(16)}#####\n\n{convolution(12)}"
    return f"{HEAD}{body}{LAST}{REGION}"


CONFIG = YOLOv2Config(
    size=128,
    convolutions=[[16, 3, 1], [12, 3, 1]],
    passthrough=8,
    joined=[[20, 3, 1]],
    anchors=[[1.5, 2.0], [0.5, 1.0]],
)
TINY = replace(
    CONFIG,
    backbone=BackboneConfig("darknet_yolov1_tiny"),
    feature="c5",
    pool=True,
    passthrough=0,
    joined=[],
)
FIRST = cfg().replace(convolution(8, 1), "").replace("-1,-4", "-1, -3")  # yolo-voc.cfg of November 2016, as the paper's


def test_a_cfg_says_the_config() -> None:
    assert parse_cfg(cfg(), "a.cfg") == (CONFIG, 2)
    assert parse_cfg(tiny_cfg(), "a.cfg") == (TINY, 2)
    assert parse_cfg(FIRST, "a.cfg") == (replace(CONFIG, passthrough=None), 2)
    fixed = cfg().replace("random=1", "random=0").replace("thresh = .6", "thresh=.7").replace("object_scale=5", "")
    expected = replace(CONFIG, train_sizes=[], ignore_iou=0.7, object=1.0)
    assert parse_cfg(fixed.replace("no\n", "noobject_scale=1\n"), "a.cfg")[0] == expected


def random_weights(detector: torch.nn.Module) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        for name, tensor in detector.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif tensor.is_floating_point() and tensor.ndim > 1:
                tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5)
            elif tensor.is_floating_point():
                tensor.uniform_(0.5, 1.0)


def slow_network(path: Path, text: str, pixels: Tensor) -> Tensor:
    """Run a cfg's layers one by one on numbers in the order of darknet's parser.c; RGB / 255 in, the last layer out."""
    numbers = torch.frombuffer(bytearray(path.read_bytes()[20:]), dtype=torch.float32).double()
    at, outputs, x = 0, [], pixels.double() / 255

    def take(*shape: int) -> Tensor:
        nonlocal at
        count = torch.Size(shape).numel()
        at += count
        return numbers[at - count : at].view(shape)

    for block in text.split("[")[2:]:
        name, _, body = block.partition("]")
        lines = (line.partition("=") for line in body.splitlines() if "=" in line and line[0] != "#")
        options = {key.strip(): value.strip() for key, _, value in lines}
        if name == "convolutional":
            filters, kernel = int(options["filters"]), int(options["size"])
            bias = take(filters)
            normed = "batch_normalize" in options
            scale, mean, variance = (take(filters) for _ in range(3)) if normed else (None, None, None)
            x = F.conv2d(x, take(filters, x.shape[1], kernel, kernel), padding=kernel // 2)
            if scale is not None and mean is not None and variance is not None:
                x = (x - mean.view(-1, 1, 1)) / (variance.view(-1, 1, 1) + 1e-5).sqrt() * scale.view(-1, 1, 1)
            x = x + bias.view(-1, 1, 1)
            x = x if options["activation"] == "linear" else torch.where(x > 0, x, 0.1 * x)
        elif name == "maxpool" and options["stride"] == "2":
            x = F.max_pool2d(x, 2)
        elif name == "maxpool":
            x = F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=-torch.inf), 2, 1)
        elif name == "route":
            x = torch.cat([outputs[int(number)] for number in options["layers"].split(",")], 1)
        elif name == "reorg":
            _, c, h, w = x.shape
            x = torch.stack([torch.tensor(slow_reorg(one.flatten().tolist(), w, h, c)) for one in x])
            x = x.view(-1, 4 * c, h // 2, w // 2).double()
        elif name == "region":
            break
        outputs.append(x)
    assert at == len(numbers)
    return x


@torch.no_grad()
@pytest.mark.parametrize(("config", "text"), [(CONFIG, cfg()), (TINY, tiny_cfg())], ids=["yolov2", "tiny"])
def test_files_are_the_network_that_darknet_runs(config: YOLOv2Config, text: str, tmp_path: Path) -> None:
    ours, path = build_detector(config, CLASSES).eval(), tmp_path / "a.weights"
    random_weights(ours)
    write_weights(path, ours)
    path.with_suffix(".cfg").write_text(text)
    path.with_suffix(".names").write_text("cat\ndog\n")
    read = detkit.load(path, device="cpu")
    assert isinstance(read, YOLOv2)
    assert read.classes == CLASSES
    pixels = random_image(128, 128)
    expected = slow_network(path, text, pixels)  # (1, 2 * 7, 4, 4): anchor after anchor, in each x y w h o and classes
    raw = read.network(read.normalise(pixels))
    assert raw.sides == (4, 4)
    found = raw.raw.view(1, 4, 4, 14).permute(0, 3, 1, 2).double()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    # and the region layer's boxes and scores of a place: row 2, column 1, second anchor
    x = expected[0, 7:, 2, 1]
    centre = ((1 + x[0].sigmoid()) * 32, (2 + x[1].sigmoid()) * 32)
    half = (0.5 * x[2].exp() * 16, 1.0 * x[3].exp() * 16)
    box = torch.stack((centre[0] - half[0], centre[1] - half[1], centre[0] + half[0], centre[1] + half[1]))
    predictions = read.predict(images_of(pixels))
    place = (2 * 4 + 1) * 2 + 1
    torch.testing.assert_close(predictions.boxes[0, place].double(), box, rtol=1e-3, atol=1e-2)
    scores = x[4].sigmoid() * x[5:].softmax(0)
    torch.testing.assert_close(predictions.scores[0, place].double(), scores, rtol=1e-3, atol=1e-4)
    # and from there a checkpoint of detkit's own
    assert read.experiment is not None
    checkpoint.save(tmp_path / "a.pt", read, read.experiment)
    again = detkit.load(tmp_path / "a.pt", device="cpu")
    assert torch.equal(again.predict(images_of(pixels)).scores, predictions.scores)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("layers=-9", "layers=-8", "[route] with layers=-8; only layers=-9 is read"),
        ("layers=-1,-4", "layers=-1,-3", "[route] with layers=-1,-3; only layers=-1,-4 is read"),
        ("[reorg]\nstride=2", "[reorg]\nstride=4", "[reorg] with stride=4; only stride=2 is read"),
        ("[reorg]", "[maxpool]", "[maxpool], where YOLOv2 has [reorg]"),
        ("filters=14", "filters=15", "filters=15, but [region] needs 14: num * (5 + classes)"),
        ("anchors = 1.5, 2.0,  .5,1", "anchors = 1.5, 2.0,  .5", "are not 4 numbers above 0"),
        ("anchors = 1.5, 2.0,  .5,1", "anchors = 1.5, 2.0,  .5,x", "are not 4 numbers above 0"),
        ("softmax=1", "softmax=0", "[region] with softmax=0; only softmax=1 is read"),
        ("softmax=1", "softmax=1\ntree=data/9k.tree", "with tree=data/9k.tree, which is not read"),
        ("filters=512", "filters=500", "with which no backbone goes on"),
        ("activation=linear", "activation=leaky", "[convolutional] with batch_normalize=0; only batch"),
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
