"""Backbones say what they give, and take the weights that exist."""

import itertools

import pytest
import torch
from torchvision.models import alexnet, mobilenet_v2, resnet18, vgg16

from detkit.backbones import create_backbone, fully_connected, load_weights
from detkit.backbones.zfnet import ResponseNorm
from detkit.config import BackboneConfig
from detkit.errors import UserError


@pytest.mark.parametrize(("name", "build"), [("mobilenet_v2", mobilenet_v2), ("resnet18", resnet18)])
@torch.no_grad()
def test_a_classifiers_file_loads_and_gives_its_features(name, build, tmp_path, capsys):
    torch.manual_seed(1)
    theirs = build(weights=None).eval()
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    ours = create_backbone(BackboneConfig(name, str(tmp_path / "w.pth"))).eval()
    x = torch.randn(1, 3, 64, 64)
    body = theirs.features if name == "mobilenet_v2" else torch.nn.Sequential(*list(theirs.children())[:-2])
    torch.testing.assert_close(list(ours(x).values())[-1], body(x), rtol=1e-4, atol=1e-5)
    line = capsys.readouterr().err
    assert "in the file but not used: " in line
    assert "left as initialised" not in line


@torch.no_grad()
def test_vgg16s_classifier_becomes_fc6_and_fc7():
    theirs = vgg16(weights=None)
    ours = create_backbone(BackboneConfig("vgg16_reduced"))
    ours.load_state_dict(ours.convert(theirs.state_dict()), strict=False)
    fc6 = theirs.classifier[0].weight.view(4096, 512, 7, 7)
    fc7 = theirs.classifier[3].weight
    # unit 5 of the smaller layer is unit 20 of the published one, pixel (1, 2) its pixel (3, 6)
    torch.testing.assert_close(ours.fc6.weight[5, 7, 1, 2], fc6[20, 7, 3, 6])
    torch.testing.assert_close(ours.fc7.weight[5, 9, 0, 0], fc7[20, 36])
    torch.testing.assert_close(ours.fc6.bias[5], theirs.classifier[0].bias[20])
    torch.testing.assert_close(ours.features[0].weight, theirs.features[0].weight)


@pytest.mark.parametrize(("name", "build", "size"), [("alexnet", alexnet, 6), ("vgg16", vgg16, 7)])
@torch.no_grad()
def test_a_classifiers_fully_connected_layers_are_the_tail(name, build, size, tmp_path, capsys):
    theirs = build(weights=None).eval()
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    ours = create_backbone(BackboneConfig(name, str(tmp_path / "w.pth")), tail=True).eval()
    assert "left as initialised" not in capsys.readouterr().err
    tail = ours.tail(size).eval()
    x = torch.randn(1, 3, 224, 224)
    # a whole image, pooled to the tail's size, is what the classifier sees
    pooled = torch.nn.functional.adaptive_max_pool2d(list(ours(x).values())[-1], size)
    torch.testing.assert_close(theirs.classifier[-1](tail(pooled)), theirs(x), rtol=1e-4, atol=1e-5)


def test_response_norm_is_caffes_within_channel():
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64) * 300
    y = ResponseNorm()(x)
    for n, c, row, column in itertools.product(*map(range, x.shape)):
        window = x[n, c, max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
        expected = x[n, c, row, column] / (1 + 5e-5 / 9 * window.square().sum()) ** 0.75
        torch.testing.assert_close(y[n, c, row, column], expected, rtol=1e-5, atol=1e-5)
    assert ResponseNorm()(torch.full((1, 1, 3, 3), 3e4).half()).isfinite().all()


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        # with the classifier of 1024 x 1000 (and 1000 biases) 7.6 million, a file of 30 MB
        ("nin", 7_595_176 - 1_025_000),
        # 20.8 million with the classifier
        ("darknet19", 20_842_376 - 1_025_000),
        # 41.6 million with the classifier
        ("darknet53", 41_609_928 - 1_025_000),
        # 4.65 million with the classifier of 1280 x 1000 and 1000 biases
        ("efficientnet_lite0", 4_652_008 - 1_281_000),
    ],
)
def test_networks_written_here_have_the_published_size(name, parameters):
    with torch.device("meta"):
        backbone = create_backbone(BackboneConfig(name), tail=True)
    assert sum(p.numel() for p in backbone.parameters()) == parameters


def test_zf5_has_the_published_size():
    backbone = create_backbone(BackboneConfig("zfnet"), tail=True)
    tail = backbone.tail(6)
    convolutions = sum(p.numel() for p in backbone.parameters() if p.ndim == 4)
    # 7x7x3x96, 5x5x96x256, 3x3x256x384, 3x3x384x384, 3x3x384x256
    assert convolutions == 14112 + 614400 + 884736 + 1327104 + 884736
    assert [p.shape for p in tail.parameters() if p.ndim == 2] == [(4096, 9216), (4096, 4096)]


def test_fully_connected_layers_read_maps_and_vectors():
    layers = fully_connected(8 * 9, 16, dropout=0.5)
    assert layers(torch.zeros(5, 8, 3, 3)).shape == layers(torch.zeros(5, 72)).shape == (5, 16)
    torch.manual_seed(3)
    dropped = (fully_connected(4, 1000, dropout=0.5)[:4](torch.ones(1, 4)) == 0).float().mean()
    undropped = (fully_connected(4, 1000)[:3](torch.ones(1, 4)) == 0).float().mean()
    assert dropped > undropped + 0.1


def test_a_file_of_features_only_leaves_fc6_and_fc7(tmp_path, capsys):
    state = {k: torch.full_like(v, torch.nan) if "classifier" in k else v for k, v in vgg16().state_dict().items()}
    torch.save(state, tmp_path / "features.pth")
    load_weights(create_backbone(BackboneConfig("vgg16_reduced")), str(tmp_path / "features.pth"))
    assert "26 of 30 tensors" in (line := capsys.readouterr().err)
    assert "left as initialised: fc6.weight, fc6.bias, fc7.weight, fc7.bias" in line


def test_a_detectors_checkpoint_lends_its_backbone(tmp_path):
    source = create_backbone(BackboneConfig("tiny"))
    state = {f"backbone.{key}": value for key, value in source.state_dict().items()} | {"head.weight": torch.ones(1)}
    torch.save({"model": state}, tmp_path / "best.pt")
    copy = create_backbone(BackboneConfig("tiny", str(tmp_path / "best.pt")))
    for key, value in source.state_dict().items():
        torch.testing.assert_close(copy.state_dict()[key], value)


def test_weights_that_do_not_fit_are_one_line(tmp_path):
    def load(name: str, weights: str) -> None:
        create_backbone(BackboneConfig(name, weights))

    text = tmp_path / "notes.txt"
    text.write_text("hello")
    torch.save(resnet18().state_dict(), tmp_path / "r18.pth")
    torch.save({"features.0.weight": torch.full((64, 3, 3, 3), torch.inf)}, tmp_path / "inf.pth")
    with pytest.raises(UserError, match=r"notes\.txt: damaged, or not a file of PyTorch weights"):
        load("tiny", str(text))
    for number, content in enumerate([torch.zeros(3), ["a"], {"a": 1}, {}]):
        torch.save(content, tmp_path / f"{number}.pth")
        with pytest.raises(UserError, match=rf"{number}\.pth: holds no named tensors"):
            load("tiny", str(tmp_path / f"{number}.pth"))
    with pytest.raises(UserError, match=r"no file .*none\.pth"):
        load("tiny", str(tmp_path / "none.pth"))
    with pytest.raises(UserError, match=r"layer1\.0\.conv1\.weight has shape .* the file belongs to resnet18$"):
        load("resnet50", str(tmp_path / "r18.pth"))
    with pytest.raises(UserError, match=r"no tensor has a name of Tiny"):
        load("tiny", str(tmp_path / "r18.pth"))
    with pytest.raises(UserError, match=r"features\.0\.weight holds values that are not finite"):
        load("vgg16_reduced", str(tmp_path / "inf.pth"))
    with pytest.raises(UserError, match=r"Tiny has no published ImageNet weights"):
        load("tiny", "imagenet")
    with pytest.raises(UserError, match=r"unknown backbone 'resnet51'; did you mean 'resnet5?0?1?0?1?8?'"):
        load("resnet51", "null")
