"""SSD against torchvision's `ssd300_vgg16` at equal weights, and against the paper's numbers."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torchvision.models.detection import ssd300_vgg16
from torchvision.models.detection.ssdlite import SSDLiteHead

from detkit.checkpoints.torchvision_files import from_state, ssd_config
from detkit.config import BackboneConfig, DetectConfig
from detkit.errors import UserError
from detkit.experiment import load_config
from detkit.models import build_detector, postprocess
from detkit.models.ssd import SSD, L2Norm, SSDConfig, SSDHead, published_extras, published_sizes, published_steps
from detkit.ops import default_boxes
from detkit.structures import InputSpec, Targets
from tests.builders import SSD300, SSD512, images_of, random_image, tiny_ssd_config
from tests.matching import assert_same_detections

CONFIGS = Path(__file__).parents[2] / "configs"


def copy_weights(theirs: torch.nn.Module, ours: SSD) -> None:
    """Give our SSD300 the weights of torchvision's."""
    state = from_state(theirs.state_dict(), "test")["model"]
    # which makes up for default boxes that are clipped, as these are not
    regressors = theirs.head.regression_head.module_list.state_dict()
    ours.load_state_dict(state | {f"head.regressors.{key}": tensor for key, tensor in regressors.items()})


@pytest.fixture(scope="module")
def pair() -> tuple[torch.nn.Module, SSD]:
    torch.manual_seed(0)
    theirs = ssd300_vgg16(weights=None, weights_backbone=None, num_classes=21).eval()
    theirs.anchor_generator.clip = False  # detkit's default boxes are not clipped, as published
    for module in theirs.head.classification_head.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.normal_(module.weight, std=0.03)  # spread the scores, as training does
    ours = build_detector(ssd_config(), tuple(f"class{i}" for i in range(20))).eval()
    assert isinstance(ours, SSD)
    copy_weights(theirs, ours)
    return theirs, ours


@torch.no_grad()
def test_raw_outputs_equal_torchvision(pair):
    theirs, ours = pair
    pixels = random_image(300, 300)
    images, _ = theirs.transform([pixels[0] / 255])
    features = list(theirs.backbone(images.tensors).values())
    raw = theirs.head(features)
    logits, deltas = ours.network(ours.normalise(pixels))
    torch.testing.assert_close(logits[..., :-1], raw["cls_logits"][..., 1:], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits[..., -1], raw["cls_logits"][..., 0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(deltas, raw["bbox_regression"], rtol=1e-4, atol=1e-4)
    anchors = theirs.anchor_generator(images, features)[0]
    torch.testing.assert_close(ours.anchors, anchors, rtol=0, atol=1e-3)


@torch.no_grad()
def test_detections_equal_torchvision(pair):
    theirs, ours = pair
    pixels = random_image(300, 300)
    theirs_found = theirs([pixels[0] / 255])[0]
    settings = DetectConfig(score_threshold=theirs.score_thresh, top_k=400, nms_iou=0.45, detections_per_image=200)
    images = images_of(pixels)
    found = postprocess(ours.predict(images), images, settings)[0].image(0)
    assert len(found[2]) > 20
    expected = (theirs_found["boxes"], theirs_found["scores"], theirs_found["labels"] - 1)
    close = {"score_atol": 1e-5, "box_atol": 1e-2, "box_rtol": 1e-4}
    assert_same_detections(
        found,
        expected,
        score=settings.score_threshold,
        iou=settings.nms_iou,
        keep=settings.detections_per_image,
        **close,
    )


def test_ssd300_and_ssd512_have_the_papers_boxes():
    ssd300 = build_detector(SSDConfig(), ("a",))
    assert isinstance(ssd300, SSD)
    assert ssd300.sides == [38, 19, 10, 5, 3, 1]
    ssd512 = build_detector(
        load_config(CONFIGS / "voc/ssd512_vgg16.yaml", ["model.backbone.weights=null"]).model, ("a",)
    )
    assert isinstance(ssd512, SSD)
    assert ssd512.sides == [64, 32, 16, 8, 4, 2, 1]
    assert torch.equal(ssd300.anchors, default_boxes(**SSD300))
    assert torch.equal(ssd512.anchors, default_boxes(**SSD512))
    assert len(ssd300.anchors) == 8732
    assert len(ssd512.anchors) == 24564


def test_layers_and_boxes_that_follow_the_paper():
    assert published_extras(19) == [[256, 512, 3, 2, 1], [128, 256, 3, 2, 1], *[[128, 256, 3, 1, 0]] * 2]
    assert published_extras(32) == [[256, 512, 3, 2, 1], *[[128, 256, 3, 2, 1]] * 3, [128, 256, 4, 1, 1]]
    for side in range(1, 100):
        for _, _, kernel, stride, padding in published_extras(side):
            side = (side + 2 * padding - kernel) // stride + 1
        assert side == 1
    assert published_sizes(300, 6) == (SSD300["min_sizes"], SSD300["max_sizes"])
    for maps in range(1, 12):
        min_sizes, max_sizes = published_sizes(300, maps)
        assert len(min_sizes) == len(max_sizes) == maps
        assert min_sizes[1:] == max_sizes[:-1]
        assert min_sizes == sorted(min_sizes)
    assert published_steps(300, [8, 16, 32, 64, 64, 64], [38, 19, 10, 5, 3, 1]) == SSD300["steps"]


@pytest.mark.parametrize("backbone", ["tiny", "mobilenet_v2", "resnet18"])
def test_the_same_head_on_other_backbones(backbone):
    torch.manual_seed(0)
    config = replace(tiny_ssd_config(), backbone=BackboneConfig(backbone))
    detector = build_detector(config, ("a", "b"))
    images = images_of(random_image(96, 96).repeat(2, 1, 1, 1))
    box = torch.tensor([[[10.0, 20, 60, 80]], [[0.0, 0, 0, 0]]])
    targets = Targets(box, torch.tensor([[1], [-1]]), torch.zeros(2, 1, dtype=torch.bool))
    losses = detector(images, targets)
    assert isinstance(losses, dict)
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    for name, parameter in detector.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_a_lite_head_equals_torchvisions_ssdlite():
    torch.manual_seed(0)
    channels, boxes, classes = [8, 12], [4, 6], 3
    theirs = SSDLiteHead(channels, boxes, classes + 1, torch.nn.BatchNorm2d).eval()
    ours = SSDHead(channels, boxes, classes, lite=True).eval()
    pairs = (theirs.classification_head, ours.classifiers), (theirs.regression_head, ours.regressors)
    for source, copy in pairs:
        copy.load_state_dict(dict(zip(copy.state_dict(), source.state_dict().values(), strict=True)))
    maps = [torch.randn(2, channels[0], 5, 5), torch.randn(2, channels[1], 1, 1)]
    logits, deltas = ours(maps)
    expected = theirs(maps)
    torch.testing.assert_close(logits, expected["cls_logits"])
    torch.testing.assert_close(deltas, expected["bbox_regression"])


def test_a_lite_detector_has_no_dense_convolution_of_space_outside_its_backbone():
    config = replace(tiny_ssd_config(), lite=True)
    detector = build_detector(config, ("a", "b"))
    layers = [layer for part in (detector.extras, detector.head) for layer in part.modules()]
    spatial = [layer for layer in layers if isinstance(layer, torch.nn.Conv2d) and layer.kernel_size != (1, 1)]
    assert spatial
    assert all(layer.groups == layer.in_channels for layer in spatial)


def test_one_image_and_the_norm_of_a_lite_head_do_not_go_together():
    config = SSDConfig(backbone=BackboneConfig("tiny"), size=64, batch_norm=False, lite=True)
    none = Targets(torch.zeros(1, 0, 4), torch.zeros(1, 0, dtype=torch.int64), torch.zeros(1, 0, dtype=torch.bool))
    detector, images = build_detector(config, ("a",)), images_of(random_image(64, 64))
    with pytest.raises(UserError, match=r"train\.batch: one image a step"):
        detector(images, none)


@pytest.mark.parametrize("name", ["ssd300_mobilenet_v2", "ssd300_resnet50"])
def test_ssd300_on_other_networks_has_six_maps(name):
    config = load_config(CONFIGS / f"voc/{name}.yaml", ["model.backbone.weights=null"])
    detector = build_detector(config.model, tuple("ab"))
    assert detector.sides == [38, 19, 10, 5, 3, 1]
    assert len(detector.anchors) == 8732


def test_the_published_recipes_read_caffes_weights_in_caffes_scale():
    for name in ("ssd300_vgg16", "ssd512_vgg16"):
        config = load_config(CONFIGS / f"voc/{name}.yaml").model
        assert config.backbone.channels == "bgr"
        spec = InputSpec((300, 300), config.mean, config.std)
        assert [round(mean * spec.divisor, 3) for mean in spec.mean] == [123, 117, 104]
        assert [round(std * spec.divisor, 5) for std in spec.std] == [1, 1, 1]


def test_new_layers_begin_with_xaviers_weights_and_no_bias():
    """As in Caffe: uniform up to sqrt(3 / inputs) of a kernel."""
    torch.manual_seed(0)
    detector = build_detector(tiny_ssd_config(), ("a", "b"))
    new = {
        name: layer
        for name, layer in detector.named_modules()
        if isinstance(layer, torch.nn.Conv2d) and not name.startswith("backbone.")
    }
    assert {name.split(".")[0] for name in new} == {"extras", "head"}
    assert {name.split(".")[1] for name in new if name.startswith("head")} == {"classifiers", "regressors"}
    for name, layer in new.items():
        assert layer.bias is not None
        assert not layer.bias.any(), name
        bound = (3 / layer.weight[0].numel()) ** 0.5
        assert 0.95 * bound < layer.weight.abs().max() <= bound, name
        assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05), name


def test_losses_without_objects_are_zero_and_connected():
    detector = build_detector(tiny_ssd_config(), ("a", "b"))
    images = images_of(random_image(96, 96))
    none = Targets(torch.zeros(1, 0, 4), torch.zeros(1, 0, dtype=torch.int64), torch.zeros(1, 0, dtype=torch.bool))
    ignored = Targets(torch.tensor([[[10.0, 20, 60, 80]]]), torch.tensor([[0]]), torch.tensor([[True]]))
    for targets in (none, ignored):
        total = sum(detector(images, targets).values())
        total.backward()
        assert total.item() == 0


def test_l2norm_scales_each_position_to_twenty():
    x = torch.randn(2, 8, 3, 3)
    torch.testing.assert_close(L2Norm(8)(x).norm(dim=1), torch.full((2, 3, 3), 20.0))
    assert L2Norm(8)(torch.zeros(1, 8, 1, 1)).isfinite().all()


def test_one_image_and_a_norm_of_one_cell_do_not_go_together():
    config = SSDConfig(backbone=BackboneConfig("tiny"), size=64)
    none = Targets(torch.zeros(1, 0, 4), torch.zeros(1, 0, dtype=torch.int64), torch.zeros(1, 0, dtype=torch.bool))
    with pytest.raises(UserError, match=r"train\.batch: one image a step"):
        build_detector(config, ("a",))(images_of(random_image(64, 64)), none)
    build_detector(replace(config, batch_norm=False), ("a",))(images_of(random_image(64, 64)), none)
    assert build_detector(config, ("a",)).eval().predict(images_of(random_image(64, 64))).scores.shape[0] == 1


def test_a_misfit_is_named():
    with pytest.raises(UserError, match=r"model\.min_sizes: 1 entries for 4 feature maps"):
        build_detector(replace(tiny_ssd_config(), min_sizes=[10.0]), ("a",))
    with pytest.raises(UserError, match=r"model\.l2norm: 'conv4_3' is not one of the maps c3, c4, c5"):
        build_detector(replace(tiny_ssd_config(), l2norm=["conv4_3"]), ("a",))
