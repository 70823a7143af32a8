"""torchvision's Mask R-CNN in detkit's own: at equal weights they find, lose and learn the same."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights, maskrcnn_resnet50_fpn
from torchvision.models.detection.roi_heads import maskrcnn_inference

from detkit.backbones.describe import count_flops, count_parameters
from detkit.checkpoints.torchvision_files import from_state, mask_rcnn_config
from detkit.models import build_detector
from detkit.models.mask_rcnn import MaskRCNN
from detkit.ops import pack_masks, paste_masks
from detkit.structures import Detections, Images, Targets
from tests.builders import images_of, random_image
from tests.checkpoints.test_torchvision_files import HEIGHT, WIDTH, converted, lively, near, spread, their_maps
from tests.ops.test_masks import pasted_one_by_one

CLASSES = 6


@pytest.fixture(scope="module")
def pair() -> tuple[nn.Module, MaskRCNN]:
    torch.manual_seed(0)
    keys = {"rpn_pre_nms_top_n_test": 300, "rpn_post_nms_top_n_test": 60, "min_size": HEIGHT}
    theirs = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=CLASSES, **keys)
    lively(theirs)
    heads = theirs.roi_heads
    with torch.no_grad():
        images, maps = their_maps(theirs, random_image(HEIGHT, WIDTH))
        boxes, _ = theirs.rpn(images, maps)
        pooled = heads.mask_roi_pool(maps, boxes, images.image_sizes)
        spread(heads.mask_predictor.mask_fcn_logits, heads.mask_predictor(heads.mask_head(pooled)), 2.0)
    ours = converted(
        theirs, "model.test_pre_nms_top_n=300", "model.test_post_nms_top_n=60", "model.size=[192,1333]"
    ).eval()
    assert isinstance(ours, MaskRCNN)
    return theirs.eval(), ours


def some_detections(seed: int, batch: int, count: int) -> Detections:
    random = torch.Generator().manual_seed(seed)
    low = torch.rand(batch, count, 2, generator=random) * torch.tensor([WIDTH - 60.0, HEIGHT - 60])
    boxes = torch.cat((low, low + 5 + torch.rand(batch, count, 2, generator=random) * 200), -1)
    boxes = boxes.minimum(torch.tensor([WIDTH, HEIGHT] * 2))
    labels = torch.randint(CLASSES - 1, (batch, count), generator=random)
    labels[-1, count // 2 :] = -1
    return Detections(boxes * (labels >= 0).unsqueeze(-1), torch.rand(batch, count, generator=random), labels)


@torch.no_grad()
def test_masks_of_detections_equal_torchvision(pair: tuple[nn.Module, MaskRCNN]) -> None:
    """Those that `refine` adds, and what they are in images twice as large."""
    theirs, ours = pair
    pixels = torch.cat([random_image(HEIGHT, WIDTH, seed) for seed in range(2)])
    found = some_detections(0, 2, 9)
    images = images_of(pixels)
    large = Images(pixels, images.sizes, images.sizes * 2, images.ids)
    doubled = Detections(found.boxes * 2, found.scores, found.labels)
    features = ours.predict(images).features
    refined = ours.refine(large, doubled, features)
    image_list, maps = their_maps(theirs, pixels)
    heads = theirs.roi_heads
    boxes = [box[label >= 0] for box, label in zip(found.boxes, found.labels)]
    logits = heads.mask_predictor(heads.mask_head(heads.mask_roi_pool(maps, boxes, image_list.image_sizes)))
    expected = maskrcnn_inference(logits, [label[label >= 0] + 1 for label in found.labels])
    for row, masks in enumerate(expected):
        mine = refined.extra["masks"][row]
        near(mine[: len(masks)], masks[:, 0])
        assert not mine[len(masks) :].any()
        ours_pasted = paste_masks(mine[: len(masks)], boxes[row] * 2, (2 * HEIGHT, 2 * WIDTH))
        near(ours_pasted, pasted_one_by_one(masks, boxes[row] * 2, (2 * HEIGHT, 2 * WIDTH)))
    assert refined.extra["masks"].std() > 0.2


def their_targets(targets: Targets, masks: list[np.ndarray]) -> list[dict[str, Tensor]]:
    return [
        {"boxes": box[real], "labels": label[real] + 1, "masks": torch.from_numpy(mask)}
        for box, label, real, mask in zip(targets.boxes, targets.labels, targets.valid, masks)
    ]


def test_losses_and_gradients_equal_torchvision(pair: tuple[nn.Module, MaskRCNN]) -> None:
    """With every anchor and every region sampled, so that chance plays no part."""
    theirs, ours = (deepcopy(one).train() for one in pair)
    for norm in theirs.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.eval()
    theirs.rpn._post_nms_top_n["training"] = ours.config.post_nms_top_n = 40
    for sampler in (theirs.rpn.fg_bg_sampler, theirs.roi_heads.fg_bg_sampler):
        sampler.batch_size_per_image = 10**6
    ours.config.rpn_batch_size_per_image = ours.config.batch_size_per_image = 10**6
    pixels = torch.cat([random_image(HEIGHT, WIDTH, seed) for seed in range(2)])
    # at the edges of the image, too
    boxes = torch.tensor([[[20.0, 30, 100, 120], [5, 5, 60, 40]], [[100, 50, 240, 192], [0, 0, 0, 0]]])
    random = np.random.default_rng(0)
    masks = [(random.random((count, HEIGHT, WIDTH)) < 0.6).astype(np.uint8) for count in (2, 1)]
    labels = torch.tensor([[1, 0], [4, -1]])
    packed = [torch.from_numpy(pack_masks(mask)) for mask in masks]
    objects = [
        (box[label >= 0], label[label >= 0], torch.zeros(int((label >= 0).sum())) > 0)
        for box, label in zip(boxes, labels)
    ]
    targets = Targets.pad(objects, [{"masks": mask} for mask in packed])
    expected = theirs(list(pixels / 255), their_targets(targets, masks))
    found = ours.losses(images_of(pixels), targets)
    names = {"objectness": "loss_objectness", "rpn_box": "loss_rpn_box_reg", "mask": "loss_mask"}
    names |= {"classification": "loss_classifier", "box": "loss_box_reg"}
    assert set(names) == set(found)
    for name, their_name in names.items():
        assert found[name] > 0
        torch.testing.assert_close(found[name], expected[their_name], rtol=1e-3, atol=1e-4)
    sum(found.values()).backward()
    sum(expected.values()).backward()
    state = theirs.state_dict() | {name: parameter.grad for name, parameter in theirs.named_parameters()}
    expected = from_state(state, "gradients")["model"]
    trained = {name: parameter.grad for name, parameter in ours.named_parameters() if parameter.requires_grad}
    assert {"mask_head.convs.0.weight", "mask_head.deconv.weight", "mask_head.predictor.bias"} < set(trained)
    for name, gradient in trained.items():
        assert gradient is not None
        assert (gradient - expected[name]).norm() <= 1e-2 * expected[name].norm(), name


def test_as_many_operations_as_published() -> None:
    """In multiply-adds of an image of 800x800 and 1000 regions, and of the masks of a detection."""
    with torch.device("meta"):
        ours = build_detector(mask_rcnn_config(), tuple(f"class{number}" for number in range(90)))
        assert isinstance(ours, MaskRCNN)
        flops = ours.flops(800, 800)
        masks = count_flops(lambda: ours.mask_head(torch.empty(1, 256, 14, 14)))
    assert flops is not None
    assert flops.region is not None
    published = MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["_ops"]
    assert (flops.image + 1000 * flops.region) / 2e9 == pytest.approx(published, abs=0.01)
    assert masks / 2e9 == pytest.approx(0.53, abs=0.005)


def test_as_many_parameters_as_published_and_eighty_classes() -> None:
    published = MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["num_params"]
    with torch.device("meta"):
        ours = build_detector(mask_rcnn_config(), tuple(f"class{number}" for number in range(80)))
        # 10 names of no class have scores, boxes and masks there, background boxes and a mask, and norms are frozen
        norms = sum(count_parameters(layer) for layer in ours.modules() if isinstance(layer, nn.BatchNorm2d))
        more = 10 * (1024 + 1) + 11 * 4 * (1024 + 1) + 11 * (256 + 1)
    assert count_parameters(ours) == published - more + norms
    with torch.device("meta"):
        state = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91).state_dict()
    state = {key: torch.zeros(tensor.shape) for key, tensor in state.items()}
    state["roi_heads.mask_predictor.mask_fcn_logits.bias"] = torch.arange(91.0)
    content = from_state(state, "test")
    assert len(content["classes"]) == 80
    assert content["model"]["mask_head.predictor.bias"][[0, 79]].tolist() == [1, 90]
    older = {
        key.replace(".0.weight", ".weight").replace(".0.bias", ".bias") if ".mask_head." in key else key: value
        for key, value in state.items()
    }
    older = {
        key.replace(f"mask_head.{i}.", f"mask_head.mask_fcn{i + 1}.") if f"mask_head.{i}." in key else key: value
        for i in range(4)
        for key, value in older.items()
        if not (".mask_head." in key and f"mask_head.{i}." not in key)
    }
    assert "roi_heads.mask_head.mask_fcn4.weight" in older
    assert set(from_state(older, "older")["model"]) == set(content["model"])
