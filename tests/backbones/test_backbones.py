"""Backbones say what they give, and take the weights that exist."""

import pytest
import torch
from torchvision.models import mobilenet_v2, resnet18, vgg16

from detkit.backbones import create_backbone, list_backbones, load_weights
from detkit.config import BackboneConfig
from detkit.errors import UserError


@pytest.mark.parametrize("name", list_backbones())
@torch.no_grad()
def test_declared_features_are_those_of_a_real_forward(name):
    backbone = create_backbone(BackboneConfig(name)).eval()
    features = backbone(torch.zeros(1, 3, 64, 96))
    assert list(features) == [info.name for info in backbone.info]
    for info in backbone.info:
        assert features[info.name].shape == (1, info.channels, 64 // info.stride, 96 // info.stride)


def test_imagenet_names_are_torchvisions():
    from torchvision.models import get_weight

    for name in list_backbones():
        backbone = create_backbone(BackboneConfig(name))
        assert backbone.imagenet is None or get_weight(backbone.imagenet)


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
    with pytest.raises(UserError, match=r"notes\.txt: not a file of PyTorch weights"):
        load("tiny", str(text))
    with pytest.raises(UserError, match=r"no file .*none\.pth"):
        load("tiny", str(tmp_path / "none.pth"))
    with pytest.raises(UserError, match=r"layer1\.0\.conv1\.weight has shape .* another backbone"):
        load("resnet50", str(tmp_path / "r18.pth"))
    with pytest.raises(UserError, match=r"no tensor has a name of Tiny"):
        load("tiny", str(tmp_path / "r18.pth"))
    with pytest.raises(UserError, match=r"features\.0\.weight holds values that are not finite"):
        load("vgg16_reduced", str(tmp_path / "inf.pth"))
    with pytest.raises(UserError, match=r"Tiny has no published ImageNet weights"):
        load("tiny", "imagenet")
    with pytest.raises(UserError, match=r"unknown backbone 'resnet51'; did you mean 'resnet5?0?1?0?1?8?'"):
        load("resnet51", "null")
