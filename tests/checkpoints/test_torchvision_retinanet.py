"""torchvision's RetinaNet in detkit's own: at equal weights they find, lose and learn the same."""

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import (
    RetinaNet_ResNet50_FPN_Weights,
    retinanet_resnet50_fpn,
    retinanet_resnet50_fpn_v2,
)

from detkit.backbones.describe import count_flops, count_parameters
from detkit.checkpoints import checkpoint
from detkit.checkpoints.torchvision_files import RETINANET_DETECT, from_state, retinanet_config
from detkit.errors import UserError
from detkit.models import build_detector, postprocess
from detkit.models.retinanet import RetinaNet, RetinaNetConfig, RetinaNetOutput
from detkit.structures import Targets
from tests.builders import images_of, random_image
from tests.checkpoints.test_torchvision_files import converted, near, spread, their_maps
from tests.matching import assert_same_detections

HEIGHT, WIDTH = 192, 240  # the first a multiple of 32, the second not
CLASSES = 6


@pytest.fixture(scope="module")
def pair() -> tuple[nn.Module, RetinaNet]:
    """Both, with norms that moved, and scores and boxes that vary, as training makes them."""
    torch.manual_seed(0)
    keys = {"min_size": HEIGHT, "topk_candidates": 200}
    theirs = retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=CLASSES + 1, **keys).eval()
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in theirs.state_dict().items():
            if name.endswith("running_var"):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=random))
            elif name.endswith("running_mean"):
                tensor.copy_(torch.randn(tensor.shape, generator=random) * 0.05)
        raw = theirs.head(list(their_maps(theirs, random_image(HEIGHT, WIDTH))[1].values()))
        spread(theirs.head.classification_head.cls_logits, raw["cls_logits"], 2.0)
        theirs.head.classification_head.cls_logits.bias -= 3  # most of it is background
        spread(theirs.head.regression_head.bbox_reg, raw["bbox_regression"], 0.3)
    ours = converted(theirs, f"model.size=[{HEIGHT},1333]", "model.pre_nms_top_n=200").eval()
    assert isinstance(ours, RetinaNet)
    return theirs, ours


def their_raw(theirs: nn.Module, pixels: Tensor) -> tuple[dict[str, Tensor], list[Tensor], list[int]]:
    """Their logits and deltas of all maps, the anchors of each image, and how many anchors each map has."""
    images, maps = their_maps(theirs, pixels)
    levels = list(maps.values())
    return theirs.head(levels), theirs.anchor_generator(images, levels), [9 * x[0, 0].numel() for x in levels]


@torch.no_grad()
def test_raw_outputs_and_anchors_equal_torchvision(pair: tuple[nn.Module, RetinaNet]) -> None:
    theirs, ours = pair
    pixels = torch.cat([random_image(HEIGHT, WIDTH, seed) for seed in range(2)])
    raw, anchors, counts = their_raw(theirs, pixels)
    images = images_of(pixels)
    found = ours.network(ours.normalise(images.pixels, images.sizes))
    assert [len(x) for x in found.anchors] == counts == [9 * rows * columns for rows, columns in found.sides]
    assert torch.equal(torch.cat(found.anchors), anchors[0])
    near(torch.cat(found.logits, 1), raw["cls_logits"][..., 1:])
    near(torch.cat(found.deltas, 1), raw["bbox_regression"])
    assert found.logits[0].std() > 1


@torch.no_grad()
@pytest.mark.parametrize("seed", [0, 3])
def test_detections_equal_torchvision(pair: tuple[nn.Module, RetinaNet], seed: int) -> None:
    """From the same random numbers, lest rounding decide which are among the best of a map."""
    theirs, ours = pair
    pixels = random_image(HEIGHT, WIDTH, seed)
    raw, anchors, counts = their_raw(theirs, pixels)
    random = torch.Generator().manual_seed(seed)
    raw["cls_logits"] = torch.randn(raw["cls_logits"].shape, generator=random) * 1.5 - 3
    raw["cls_logits"][..., 0] = -20.0  # of no class
    split = {key: list(value.split(counts, 1)) for key, value in raw.items()}
    levels = list(anchors[0].split(counts))
    expected = theirs.postprocess_detections(split, [levels], [(HEIGHT, WIDTH)])[0]
    logits = [x[..., 1:] for x in split["cls_logits"]]
    selected, index = ours.select(RetinaNetOutput(logits, split["bbox_regression"], levels, []))
    assert index.shape == selected.logits[0].shape[:1] + (sum(min(200, count) for count in counts),)
    assert any((x.sigmoid() > 0.05).sum() > 200 for x in logits), "the limit of a map cuts nothing off"
    found, _ = postprocess(ours.decode(selected), images_of(pixels), RETINANET_DETECT)
    expected = (expected["boxes"], expected["scores"], expected["labels"] - 1)
    assert len(expected[2]) > 50
    assert len(expected[2].unique()) > 2
    assert_same_detections(found.image(0), expected, score=0.05, iou=0.5, keep=300)


def test_losses_and_gradients_equal_torchvision(pair: tuple[nn.Module, RetinaNet]) -> None:
    """With an image without objects, and an object that is too small for any anchor's IoU of .5."""
    theirs, ours = (deepcopy(one).train() for one in pair)
    for norm in theirs.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.eval()
    pixels = torch.cat([random_image(HEIGHT, WIDTH, seed) for seed in range(3)])
    boxes = torch.tensor([[[20.0, 30, 100, 120], [5, 5, 15, 17]], [[100, 50, 230, 180], [0] * 4], [[0] * 4, [0] * 4]])
    targets = Targets(boxes, torch.tensor([[1, 0], [4, -1], [-1, -1]]), torch.zeros(3, 2, dtype=torch.bool))
    objects = [
        {"boxes": box[real], "labels": label[real] + 1}
        for box, label, real in zip(boxes, targets.labels, targets.valid)
    ]
    expected = theirs(list(pixels / 255), objects)
    found = ours.losses(images_of(pixels), targets)
    # the column of no class learns of the background, too
    images, maps = their_maps(theirs, pixels)
    logits = theirs.head.classification_head(list(maps.values()))
    without = {"cls_logits": logits.clone(), "bbox_regression": theirs.head.regression_head(list(maps.values()))}
    without["cls_logits"][..., 0] = -100.0
    anchors = theirs.anchor_generator(images, list(maps.values()))
    expected["classification"] = theirs.compute_loss(objects, without, anchors)["classification"]
    for name, their_name in {"classification": "classification", "box": "bbox_regression"}.items():
        assert found[name] > 0
        torch.testing.assert_close(found[name], expected[their_name], rtol=1e-4, atol=1e-5)
    sum(found.values()).backward()
    sum(expected.values()).backward()
    state = theirs.state_dict() | {name: parameter.grad for name, parameter in theirs.named_parameters()}
    gradients = from_state(state, "gradients")["model"]
    trained = {name: parameter.grad for name, parameter in ours.named_parameters() if parameter.requires_grad}
    assert {"backbone.layer2.0.conv1.weight", "neck.pyramid.extra_blocks.p7.weight", "regressor.last.bias"} < set(
        trained
    )
    for name, gradient in trained.items():
        assert gradient is not None
        assert (gradient - gradients[name]).norm() <= 1e-3 * gradients[name].norm(), name


def test_as_many_parameters_and_operations_as_torchvision() -> None:
    """Of equally many columns, on the same images."""
    with torch.device("meta"):
        theirs = retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=CLASSES)
        ours = build_detector(retinanet_config(), tuple("abcdef"))
        pixels = torch.empty(1, 3, 256, 320)
        assert isinstance(ours, RetinaNet)
        assert count_parameters(ours) == sum(parameter.numel() for parameter in theirs.parameters())
        flops = count_flops(lambda: ours.network(pixels))
        assert flops == count_flops(lambda: theirs.head(list(theirs.backbone(pixels).values()))) > 1e10
    # the published network has 91 columns, 11 of them of no class, and frozen norms, which count as no parameters
    published = RetinaNet_ResNet50_FPN_Weights.COCO_V1.meta["num_params"]
    classes = tuple(f"class{number}" for number in range(80))
    with torch.device("meta"):
        ours, of_paper = build_detector(retinanet_config(), classes), build_detector(RetinaNetConfig(), classes)
    norms = sum(count_parameters(layer) for layer in ours.modules() if isinstance(layer, nn.BatchNorm2d))
    assert count_parameters(ours) == published - 11 * 9 * (256 * 9 + 1) + norms
    # what detectron2's tests say of its own
    assert count_parameters(of_paper) == 37_915_572 + norms


def test_columns_of_no_class_are_left_out_and_older_files_have_other_names() -> None:
    state = retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91).state_dict()
    state["head.classification_head.cls_logits.bias"].copy_(torch.arange(9 * 91.0))
    published = from_state(state, "test")
    assert len(published["classes"]) == 80
    bias = published["model"]["classifier.last.bias"].view(9, 80)
    assert bias[:, [0, 79]].tolist() == [[91 * anchor + 1, 91 * anchor + 90] for anchor in range(9)]
    older = {}
    for key, tensor in state.items():
        head, _, rest = key.rpartition(".conv.")
        if head.startswith("head."):
            number, _, part = rest.split(".")
            key = f"{head}.conv.{2 * int(number)}.{part}"
        elif key.startswith("backbone.fpn.") and ".extra_blocks." not in key:
            key = key.replace(".0.weight", ".weight").replace(".0.bias", ".bias")
        if not key.endswith("num_batches_tracked"):
            older[key] = tensor
    assert "head.classification_head.conv.6.bias" in older
    again = from_state(older, "older")["model"]
    assert set(again) == set(published["model"])
    for name in (f"{subnet}.convs.{number}.weight" for subnet in ("classifier", "regressor") for number in range(4)):
        assert torch.equal(again[name], published["model"][name])


def test_another_network_of_torchvisions_is_one_line() -> None:
    state = retinanet_resnet50_fpn_v2(weights=None, weights_backbone=None, num_classes=6).state_dict()
    with pytest.raises(UserError, match=r"v2\.pth: checkpoint of another architecture") as error:
        checkpoint.build(from_state(state, "v2.pth"), "v2.pth", [])
    assert "\n" not in str(error.value)
