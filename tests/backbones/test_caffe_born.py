"""Weights that were born in Caffe: the layouts that files have, and networks that read BGR in Caffe's scale."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import detkit
from detkit.backbones import Backbone, create_backbone
from detkit.backbones.caffe_file import read_caffemodel
from detkit.checkpoints.content import FORMAT
from detkit.config import BackboneConfig
from detkit.errors import UserError
from tests.caffe import Layers, message, write_caffemodel

BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
SSD_MEAN, FASTER_MEAN = (104.0, 117.0, 123.0), (102.9801, 115.9465, 122.7717)  # BGR, 0 to 255


@pytest.fixture(scope="module")
def layers() -> Layers:
    """VGG16's thirteen convolutions by Caffe's names, and the reduced fc6 and fc7."""
    generator, made, inputs = torch.Generator().manual_seed(0), {}, 3
    shapes = {}
    for block, channels in enumerate(BLOCKS, 1):
        for number, outputs in enumerate(channels, 1):
            shapes[f"conv{block}_{number}"] = (outputs, inputs, 3, 3)
            inputs = outputs
    shapes |= {"fc6": (1024, 512, 3, 3), "fc7": (1024, 1024, 1, 1)}
    for name, shape in shapes.items():
        weight = torch.empty(shape).normal_(0, (2 / (shape[1] * shape[2] * shape[3])) ** 0.5, generator=generator)
        made[name] = weight, torch.empty(shape[0]).uniform_(-0.1, 0.1, generator=generator)
    return made


def caffes_maps(layers: Layers, rgb: Tensor, mean: tuple[float, ...]) -> dict[str, Tensor]:
    """What Caffe computes of images (B, 3, H, W), RGB, 0 to 255: the convolutions, and fc7 of the reduced network."""
    x = rgb[:, [2, 1, 0]].double() - torch.tensor(mean, dtype=torch.float64).view(3, 1, 1)
    maps = {}
    for block, channels in enumerate(BLOCKS, 1):
        for number in range(1, len(channels) + 1):
            weight, bias = layers[f"conv{block}_{number}"]
            x = maps[f"conv{block}_{number}"] = F.relu(F.conv2d(x, weight.double(), bias.double(), padding=1))
        x = F.max_pool2d(x, 2, ceil_mode=True) if block < 5 else F.max_pool2d(x, 3, 1, 1)
    (fc6, bias6), (fc7, bias7) = layers["fc6"], layers["fc7"]
    x = F.relu(F.conv2d(x, fc6.double(), bias6.double(), padding=6, dilation=6))
    return maps | {"fc7": F.relu(F.conv2d(x, fc7.double(), bias7.double()))}


def numbered(prefix: str) -> list[str]:
    """Names of the thirteen convolutions where layers are numbered: a ReLU follows each, and a pool each block."""
    numbers, number = [], 0
    for channels in BLOCKS:
        numbers += [number + 2 * place for place in range(len(channels))]
        number += 2 * len(channels) + 1
    return [f"{prefix}{number}" for number in numbers]


def stored(names: list[str], layers: Layers) -> dict[str, Tensor]:
    return {
        f"{name}.{part}": tensor
        for name, pair in zip(names, layers.values())
        for part, tensor in zip(("weight", "bias"), pair)
    }


LAYOUTS = {
    "ssd.pytorch's vgg16_reducedfc.pth": [*numbered(""), "31", "33"],
    "a detector of ssd.pytorch's": [*numbered("vgg."), "vgg.31", "vgg.33"],
    "numbers behind features": [*numbered("features."), "features.31", "features.33"],
    "Caffe's": [
        *(f"conv{block}_{n}" for block, row in enumerate(BLOCKS, 1) for n in range(1, len(row) + 1)),
        "fc6",
        "fc7",
    ],
}


def skeleton(name: str) -> Backbone:
    """A backbone without values."""
    with torch.device("meta"):
        return create_backbone(BackboneConfig(name), tail=True)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layers_are_found_in_every_layout(layout: str, layers: Layers) -> None:
    state = stored(LAYOUTS[layout], layers)
    read = skeleton("vgg16_reduced").convert(state | {"loc.0.bias": torch.zeros(1)})
    for name, pair in zip([*numbered("features."), "fc6", "fc7"], layers.values(), strict=True):
        assert (read[f"{name}.weight"], read[f"{name}.bias"]) == pair
    read = skeleton("vgg16").convert(state)
    assert {f"{name}.{part}" for name in numbered("features.") for part in ("weight", "bias")} <= set(read)


@pytest.mark.parametrize(
    ("fc6", "fc7"), [("classifier.1", "classifier.4"), ("classifier.0", "classifier.3"), ("fc6", "fc7")]
)
def test_fully_connected_layers_are_found_in_every_layout(fc6: str, fc7: str) -> None:
    """jcjohnson's vgg16-00b39a1b.pth numbers them 1 and 4, what others made of it 0 and 3."""
    unit = torch.arange(4096.0)
    weights = unit.unsqueeze(1).expand(4096, 25088), unit.expand(4096, 4096)
    state = {f"{fc6}.weight": weights[0], f"{fc6}.bias": unit, f"{fc7}.weight": weights[1], f"{fc7}.bias": unit}
    read = skeleton("vgg16").convert(state)
    assert set(read) == {f"classifier.{layer}.{part}" for layer in (0, 3) for part in ("weight", "bias")}
    assert torch.equal(read["classifier.0.weight"][:, 7], unit)
    assert torch.equal(read["classifier.3.weight"][7], unit)
    reduced = skeleton("vgg16_reduced").convert(state)
    assert reduced["fc6.weight"].shape == (1024, 512, 3, 3)
    assert torch.equal(reduced["fc6.weight"][:, 0, 0, 0], unit[::4])
    assert torch.equal(reduced["fc7.weight"][0, :, 0, 0], unit[::4])
    if fc6 == "fc6":
        assert set(skeleton("zfnet").convert(state)) == set(read)


@torch.no_grad()
def test_ssd_on_a_file_of_caffes_sees_what_caffe_sees(layers: Layers, tmp_path: Path, capsys) -> None:
    write_caffemodel(path := tmp_path / "VGG_ILSVRC_16_layers_fc_reduced.caffemodel", layers, first_form=True)
    source = {"name": "vgg16_reduced", "weights": str(path)}  # Caffe's own files are BGR where nothing else is said
    mean, std = [value / 255 for value in reversed(SSD_MEAN)], [1 / 255] * 3
    detector = detkit.create_model("ssd", backbone=source, classes=("a",), mean=mean, std=std).eval()
    line = capsys.readouterr().err
    assert "30 of 30 tensors" in line
    assert "first layer turned from BGR to RGB" in line
    pixels = torch.randint(0, 256, (1, 3, 75, 75), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    wanted = caffes_maps(layers, pixels, SSD_MEAN)
    for name, seen in detector.backbone(detector.normalise(pixels)).items():
        assert seen.shape == wanted[name].shape
        torch.testing.assert_close(seen.double(), wanted[name], rtol=1e-4, atol=1e-4 * float(wanted[name].std()))


@torch.no_grad()
def test_faster_rcnn_on_caffes_vgg16_sees_what_caffe_sees(layers: Layers, tmp_path: Path, capsys) -> None:
    state = stored(numbered("features."), layers)
    for name, inputs, value in (("classifier.1", 25088, 0.5), ("classifier.4", 4096, 0.25)):
        state[f"{name}.weight"] = torch.tensor(value).expand(4096, inputs)  # the file holds one number of each
        state[f"{name}.bias"] = torch.tensor(value).expand(4096)
    torch.save(state, tmp_path / "w.pth")
    source = {"name": "vgg16", "weights": str(tmp_path / "w.pth"), "channels": "bgr"}
    mean, std = [value / 255 for value in reversed(FASTER_MEAN)], [1 / 255] * 3
    detector = detkit.create_model("faster_rcnn", backbone=source, classes=("a",), mean=mean, std=std).eval()
    assert "left as initialised" not in capsys.readouterr().err
    linear = [layer for layer in detector.head.tail.modules() if isinstance(layer, nn.Linear)]
    assert [float(layer.weight[3, 5]) for layer in linear] == [0.5, 0.25]
    pixels = torch.randint(0, 256, (1, 3, 60, 90), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    wanted = caffes_maps(layers, pixels, FASTER_MEAN)["conv5_3"]
    (seen,) = detector.maps(pixels, torch.tensor([[60, 90]]))
    torch.testing.assert_close(seen.double(), wanted, rtol=1e-4, atol=1e-4 * float(wanted.std()))


@torch.no_grad()
def test_zf_on_caffes_file_sees_what_caffe_sees(tmp_path: Path) -> None:
    """Layer by layer as the authors' prototxt has it: 7/2 and 5/2 kernels, response norm within channels, 3/2 pools."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"conv1": (96, 3, 7, 7), "conv2": (256, 96, 5, 5), "conv3": (384, 256, 3, 3), "conv4": (384, 384, 3, 3)}
    shapes |= {"conv5": (256, 384, 3, 3)}
    layers: Layers = {}
    for name, shape in shapes.items():
        weight = torch.empty(shape)
        weight.normal_(0, (2 / weight[0].numel()) ** 0.5, generator=generator)
        layers[name] = weight, torch.empty(shape[0]).uniform_(-0.1, 0.1, generator=generator)
    write_caffemodel(path := tmp_path / "ZF.v2.caffemodel", layers, first_form=False)
    pixels = torch.randint(0, 256, (1, 3, 75, 110), generator=generator, dtype=torch.uint8)
    x = pixels[:, [2, 1, 0]].double() - torch.tensor(FASTER_MEAN, dtype=torch.float64).view(3, 1, 1)
    for number, (stride, padding) in enumerate(((2, 3), (2, 2), (1, 1), (1, 1), (1, 1)), 1):
        weight, bias = layers[f"conv{number}"]
        x = F.relu(F.conv2d(x, weight.double(), bias.double(), stride, padding))
        if number <= 2:
            x = x / (1 + 5e-5 * F.avg_pool2d(x**2, 3, 1, 1)) ** 0.75
            x = F.max_pool2d(x, 3, 2, 1, ceil_mode=True)
    backbone = create_backbone(BackboneConfig("zfnet", str(path)))
    seen = backbone(pixels - torch.tensor(FASTER_MEAN[::-1]).view(3, 1, 1))["conv5"]
    torch.testing.assert_close(seen.double(), x, rtol=1e-4, atol=1e-4 * float(x.std()))


def test_only_files_of_unknown_order_are_turned(tmp_path: Path) -> None:
    backbone: Backbone = create_backbone(BackboneConfig("tiny"))
    torch.save({"format": FORMAT, "model": backbone.state_dict()}, tmp_path / "best.pt")
    for weights in ("imagenet", str(tmp_path / "best.pt"), str(tmp_path / "a.weights"), str(tmp_path / "a.conv.23")):
        with pytest.raises(
            UserError, match=r"model\.backbone\.channels: bgr, but .* reads RGB; take rgb, and the model\.mean"
        ):
            create_backbone(BackboneConfig("tiny", weights, "bgr"))
    with pytest.raises(UserError, match=r"model\.backbone\.channels: 'grb' is not one of rgb, bgr"):
        BackboneConfig("tiny", None, "grb")


@pytest.mark.parametrize("first_form", [True, False])
def test_a_caffemodel_gives_its_layers_by_name(first_form: bool, tmp_path: Path) -> None:
    layers = {
        "conv1_1": (torch.randn(2, 3, 3, 3), torch.randn(2)),
        "fc6": (torch.randn(200, 5), torch.randn(200)),
    }
    path = tmp_path / "a.caffemodel"
    write_caffemodel(path, layers, first_form)
    state = read_caffemodel(path)
    assert set(state) == {f"{name}.{part}" for name in layers for part in ("weight", "bias")}
    for name, (weight, bias) in layers.items():
        assert torch.equal(state[f"{name}.weight"], weight)
        assert torch.equal(state[f"{name}.bias"], bias)


def test_what_is_no_caffemodel_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.caffemodel"
    write_caffemodel(path, {"conv1_1": (torch.randn(2, 3, 3, 3), torch.randn(2))}, first_form=False)
    whole, messages = path.read_bytes(), set()
    contents = [b"", b"hello", bytes([255] * 40), message((1, b"VGG")), *(whole[:end] for end in range(1, len(whole)))]
    contents += [whole.replace(message((1, bytes([2, 3, 3, 3]))), message((1, bytes([2, 3, 3, 4]))))]
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(UserError) as error:
            read_caffemodel(path)
        source, reason = str(error.value).split(": ", 1)
        assert source == str(path)
        assert "\n" not in reason
        messages.add(reason)
    assert "damaged, or not a file of Caffe's weights: 54 numbers in a blob of shape (2, 3, 3, 4)" in messages
    assert "not a file of Caffe's weights: no layer has any" in messages
