"""torchvision's detectors in detkit's own: at equal weights they find, lose and learn the same."""

from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from urllib.error import URLError

import cv2
import pytest
import torch
from matplotlib.cbook import get_sample_data
from torch import Tensor, nn
from torchvision.models.detection import (
    SSD300_VGG16_Weights,
    fasterrcnn_resnet50_fpn,
    fasterrcnn_resnet50_fpn_v2,
    ssd300_vgg16,
)
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import _resize_image_and_masks
from torchvision.ops.misc import FrozenBatchNorm2d

import detkit
from detkit.checkpoints import checkpoint
from detkit.checkpoints.torchvision_files import (
    NO_CLASS,
    download,
    faster_rcnn_config,
    from_state,
    is_state,
    mask_rcnn_config,
    retinanet_config,
    ssd_config,
)
from detkit.cli import run_command
from detkit.config import Config, DetectConfig
from detkit.data.image_file import decode_image
from detkit.data.transforms import resize
from detkit.errors import UserError
from detkit.experiment import load_config
from detkit.models import Detector, build_detector, postprocess
from detkit.models.faster_rcnn import FasterRCNN
from detkit.models.rpn import RPNOutput
from detkit.models.ssd import SSDConfig
from detkit.ops import box_iou
from detkit.structures import Targets
from tests.builders import images_of, random_image
from tests.matching import assert_same_detections
from tests.real_data import DATA

HEIGHT, WIDTH = 192, 240  # the first a multiple of 32, the second not


@torch.no_grad()
def lively(model: nn.Module, seed: int = 0) -> None:
    """Move an untrained Faster R-CNN's norms, and spread its scores and boxes, as training does."""
    random = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=random))
        elif name.endswith("running_mean"):
            tensor.copy_(torch.randn(tensor.shape, generator=random) * 0.05)
    images, maps = their_maps(model.eval(), random_image(HEIGHT, WIDTH))
    logits, deltas = model.rpn.head(list(maps.values()))
    spread(model.rpn.head.cls_logits, torch.cat([x.flatten() for x in logits]), 2.0)
    spread(model.rpn.head.bbox_pred, torch.cat([x.flatten() for x in deltas]), 0.3)
    boxes, _ = model.rpn(images, maps)
    heads = model.roi_heads
    logits, deltas = heads.box_predictor(heads.box_head(heads.box_roi_pool(maps, boxes, images.image_sizes)))
    spread(heads.box_predictor.cls_score, logits, 2.0)
    spread(heads.box_predictor.bbox_pred, deltas, 1.0)


def spread(layer: nn.Module, results: Tensor, expected: float) -> None:
    """Scale a layer so that its results have a standard deviation of `expected` about 0."""
    layer.weight *= expected / results.std()
    layer.bias -= results.mean() * expected / results.std()


def converted(theirs: nn.Module, *overrides: str) -> Detector:
    """The detector that detkit makes of a file of these weights."""
    return checkpoint.build(from_state(theirs.state_dict(), "test"), "test", list(overrides))[0]


@pytest.fixture(scope="module", params=[fasterrcnn_resnet50_fpn, fasterrcnn_resnet50_fpn_v2])
def pair(request) -> tuple[nn.Module, FasterRCNN]:
    torch.manual_seed(0)
    keys = {"rpn_pre_nms_top_n_test": 300, "rpn_post_nms_top_n_test": 60, "min_size": HEIGHT}
    theirs = request.param(weights=None, weights_backbone=None, num_classes=6, **keys)
    lively(theirs)
    ours = converted(
        theirs, "model.test_pre_nms_top_n=300", "model.test_post_nms_top_n=60", "model.size=[192,1333]"
    ).eval()
    assert isinstance(ours, FasterRCNN)
    return theirs, ours


def their_maps(theirs: nn.Module, pixels: Tensor) -> tuple[ImageList, dict[str, Tensor]]:
    images, _ = theirs.transform(list(pixels / 255))  # pyright: ignore[reportCallIssue]
    return images, theirs.backbone(images.tensors)  # pyright: ignore[reportCallIssue]


def near(ours: Tensor, theirs: Tensor) -> None:
    """Equal up to the order of sums."""
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


@torch.no_grad()
def test_proposals_equal_torchvision(pair):
    theirs, ours = pair
    pixels = torch.cat([random_image(HEIGHT, WIDTH, seed) for seed in range(2)])
    images, maps = their_maps(theirs, pixels)
    our_maps = ours.features.prepare(images_of(pixels), ours)
    for one, other in zip(our_maps, maps.values(), strict=True):
        near(one, other)
    logits, deltas, our_anchors = ours.rpn(our_maps)
    their_logits, their_deltas = theirs.rpn.head(list(maps.values()))
    for one, other in zip(logits, their_logits, strict=True):
        near(one, other.permute(0, 2, 3, 1).flatten(1))
    for one, other in zip(deltas, their_deltas, strict=True):
        near(one, other.permute(0, 2, 3, 1).reshape(one.shape))
    anchors = theirs.rpn.anchor_generator(images, list(maps.values()))[0]
    assert torch.equal(torch.cat(our_anchors), anchors)
    # from the same numbers, lest rounding decide which anchors are among the best
    logits = [x.permute(0, 2, 3, 1).flatten(1) for x in their_logits]
    deltas = [x.permute(0, 2, 3, 1).reshape(one.shape) for one, x in zip(deltas, their_deltas)]
    found = ours.rpn.propose(RPNOutput(logits, deltas, our_anchors), images_of(pixels), training=False)
    assert found.scores is not None
    boxes = theirs.rpn.box_coder.decode(torch.cat(deltas, 1).flatten(0, 1), [anchors] * 2)
    counts = [x.shape[1] for x in logits]
    expected = theirs.rpn.filter_proposals(boxes.view(2, -1, 4), torch.cat(logits, 1), images.image_sizes, counts)
    for row, (box, score) in enumerate(zip(*expected)):
        assert found.valid[row].all()
        assert len(box) == 60
        labels = torch.zeros(60, dtype=torch.int64)
        assert_same_detections(
            (found.boxes[row], found.scores[row], labels), (box, score, labels), score=0.0, iou=0.7, keep=60
        )


@torch.no_grad()
def test_regions_equal_torchvision(pair):
    """Logits and deltas of the same proposals."""
    theirs, ours = pair
    pixels = random_image(HEIGHT, WIDTH)
    images, maps = their_maps(theirs, pixels)
    boxes, _ = theirs.rpn(images, maps)
    heads = theirs.roi_heads
    expected, shifts = heads.box_predictor(heads.box_head(heads.box_roi_pool(maps, boxes, images.image_sizes)))
    maps = ours.features.prepare(images_of(pixels), ours)
    logits, deltas = ours.head(ours.features.pool(maps, torch.stack(boxes)))
    near(logits[0], torch.cat((expected[:, 1:], expected[:, :1]), 1))
    near(deltas[0], shifts.view(len(shifts), -1, 4)[:, 1:])


@torch.no_grad()
@pytest.mark.parametrize("seed", [0, 3])
def test_detections_equal_torchvision(pair, seed):
    """Of the same proposals: one that rounding changes would change detections anywhere."""
    theirs, ours = pair
    pixels = random_image(HEIGHT, WIDTH, seed)
    images = images_of(pixels)
    proposals = ours.propose_regions(images)
    hook = theirs.rpn.register_forward_hook(lambda *_: ([proposals.boxes[0][proposals.valid[0]]], {}))
    expected = theirs([pixels[0] / 255])[0]
    hook.remove()
    settings = DetectConfig(score_threshold=0.05, top_k=1000, nms_iou=0.5, detections_per_image=100)
    detections, _ = postprocess(ours.predict(images), images, settings)
    found = detections.image(0)
    assert len(found[2]) > 20
    assert len(found[2].unique()) > 2
    expected = (expected["boxes"], expected["scores"], expected["labels"] - 1)
    assert_same_detections(found, expected, score=0.05, iou=0.5, keep=100)


def real_photos() -> list[Path]:
    """An image that comes with matplotlib, and two of VOC's where they are at hand."""
    with get_sample_data("grace_hopper.jpg") as file:
        own = Path(file.name)
    others = [DATA / "voc2012_sample" / "JPEGImages" / f"{name}.jpg" for name in ("2007_000033", "2007_000039")]
    return [own, *(random_image for random_image in others if random_image.exists())]


def test_photos_get_torchvisions_sides(pair):
    theirs, ours = pair
    (short,), longest = theirs.transform.min_size, theirs.transform.max_size
    sides = torch.randint(20, 2000, (300, 2), generator=torch.Generator().manual_seed(0)).tolist()
    for height, width in [*sides, (375, 500), (480, 640), (600, 800)]:
        resized, _ = _resize_image_and_masks(torch.empty(3, height, width, device="meta"), short, longest)
        assert ours.input.fit(height, width) == resized.shape[1:]


@torch.no_grad()
@pytest.mark.parametrize("path", real_photos(), ids=lambda path: path.stem)
def test_photos_equal_torchvision_with_its_own_resize(pair, path, monkeypatch):
    """From file to detections, each resizing the image itself.

    OpenCV's bilinear resize rounds to whole levels of 255, with weights of 11 bits; torch's does neither. That is less
    than a level a pixel, .3 on average, which moves the scores of the same regions by less than .02 and their boxes by
    less than .005 of their sides. NMS takes another one of two boxes whose scores are nearly equal, or that overlap
    nearly by its threshold: weights that are random have many such, so that a few detections may be others.
    """
    theirs, ours = pair
    image = decode_image(path)
    pixels = torch.from_numpy(image).permute(2, 0, 1).contiguous() / 255
    images, maps = their_maps(theirs, pixels.unsqueeze(0) * 255)
    resized = torch.from_numpy(resize(image, ours.input.fit(*image.shape[:2]))).permute(2, 0, 1)
    height, width = images.image_sizes[0]
    assert resized.shape[1:] == (height, width)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (ours.config.mean, ours.config.std))
    difference = (resized - (images.tensors[0, :, :height, :width] * std + mean) * 255).abs()
    assert difference.max() <= 0.8
    assert difference.mean() <= 0.3

    heads, (boxes, _) = theirs.roi_heads, theirs.rpn(images, maps)
    expected, shifts = heads.box_predictor(heads.box_head(heads.box_roi_pool(maps, boxes, images.image_sizes)))
    our_maps = ours.features.prepare(images_of(resized.unsqueeze(0)), ours)
    logits, deltas = ours.head(ours.features.pool(our_maps, torch.stack(boxes)))
    assert (logits[0].softmax(-1)[:, :-1] - expected.softmax(-1)[:, 1:]).abs().max() <= 0.02
    assert (deltas[0] - shifts.view(len(shifts), -1, 4)[:, 1:]).abs().max() / 10 <= 0.005  # the coder's weights are 10

    settings = Config(
        model=ours.config, detect=DetectConfig(score_threshold=0.05, top_k=1000, nms_iou=0.5, detections_per_image=100)
    )
    monkeypatch.setattr(ours, "experiment", settings)
    found, scores, labels = ours.detect(image, score=0.05)[0].image(0)
    expected = theirs([pixels])[0]
    sure = expected["scores"] >= 0.1
    assert sure.sum() >= 20
    near = box_iou(expected["boxes"][sure], found) >= 0.9
    alike = (scores - expected["scores"][sure].unsqueeze(1)).abs() <= 0.05
    both = near & alike & (labels + 1 == expected["labels"][sure].unsqueeze(1))
    assert both.any(1).float().mean() >= 0.8


def test_losses_and_gradients_equal_torchvision(pair):
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
    boxes = torch.tensor([[[20.0, 30, 100, 120], [5, 5, 60, 40]], [[100, 50, 230, 180], [0, 0, 0, 0]]])
    targets = Targets(boxes, torch.tensor([[1, 0], [4, -1]]), torch.zeros(2, 2, dtype=torch.bool))
    expected = theirs(
        list(pixels / 255),
        [
            {"boxes": box[real], "labels": label[real] + 1}
            for box, label, real in zip(boxes, targets.labels, targets.valid)
        ],
    )
    found = ours.losses(images_of(pixels), targets)
    names = {"objectness": "loss_objectness", "rpn_box": "loss_rpn_box_reg"}
    names |= {"classification": "loss_classifier", "box": "loss_box_reg"}
    for name, their_name in names.items():
        assert found[name] > 0
        torch.testing.assert_close(found[name], expected[their_name], rtol=1e-3, atol=1e-4)
    sum(found.values()).backward()
    sum(expected.values()).backward()
    state = theirs.state_dict() | {name: parameter.grad for name, parameter in theirs.named_parameters()}
    expected = from_state(state, "gradients")["model"]
    trained = {name: parameter.grad for name, parameter in ours.named_parameters() if parameter.requires_grad}
    assert {"backbone.layer2.0.conv1.weight", "neck.pyramid.inner_blocks.0.0.weight"} < set(trained)
    for name, gradient in trained.items():
        assert (gradient - expected[name]).norm() <= 1e-2 * expected[name].norm(), name


def test_frozen_norms_of_the_published_file_divide_by_the_variance_alone():
    torch.manual_seed(0)
    frozen, own = FrozenBatchNorm2d(4, eps=0.0), nn.BatchNorm2d(4).eval()
    for tensor in frozen.state_dict().values():
        tensor.copy_(torch.rand(4) * torch.tensor([1e-6, 1e-3, 1, 10]))
    state = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=3).state_dict()
    state = {key: tensor for key, tensor in state.items() if not key.endswith("num_batches_tracked")}
    state |= {f"backbone.body.bn1.{key}": tensor for key, tensor in frozen.state_dict().items()}
    weights = from_state(state, "test")["model"]
    own.load_state_dict({key: weights[f"backbone.bn1.{key}"] for key in own.state_dict()})
    x = torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(own(x), frozen(x), rtol=1e-4, atol=1e-5)


def test_older_files_have_other_names():
    """Those of the published fasterrcnn_resnet50_fpn, from before convolutions were wrapped."""
    state = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=3).state_dict()
    older = {
        key.replace("conv.0.0.", "conv.").replace(".0.weight", ".weight").replace(".0.bias", ".bias")
        if key.startswith(("rpn.head.conv", "backbone.fpn"))
        else key: tensor
        for key, tensor in state.items()
    }
    assert "rpn.head.conv.weight" in older
    assert "backbone.fpn.inner_blocks.0.weight" in older
    assert set(from_state(older, "older")["model"]) == set(from_state(state, "newer")["model"])


@pytest.fixture(scope="module")
def ssd() -> nn.Module:
    """torchvision's ssd300 with COCO's 91 columns, and scores and boxes that vary."""
    torch.manual_seed(0)
    theirs = ssd300_vgg16(weights=None, weights_backbone=None, num_classes=91).eval()
    random = torch.Generator().manual_seed(0)
    head = theirs.head
    for layer in [*head.classification_head.module_list, *head.regression_head.module_list]:
        torch.nn.init.normal_(layer.weight, std=0.03, generator=random)
        torch.nn.init.normal_(layer.bias, std=0.3, generator=random)
    return theirs


@torch.no_grad()
def test_ssd300_equals_torchvision(ssd):
    """With COCO's 91 columns, of which the 10 without a class have no say, and default boxes cut to the image."""
    theirs = ssd
    published = from_state(theirs.state_dict(), "test")
    assert len(published["classes"]) == 80
    assert published["classes"][:2] == ["person", "bicycle"]
    assert published["classes"][-1] == "toothbrush"
    assert published["config"]["model"]["size"] == 300
    ours = converted(theirs).eval()
    names = SSD300_VGG16_Weights.COCO_V1.meta["categories"]
    columns = [names.index(name) for name in published["classes"]]
    assert not set(NO_CLASS) & set(published["classes"])
    pixels = random_image(300, 300)
    images, maps = their_maps(theirs, pixels)
    raw = theirs.head(list(maps.values()))
    logits, _ = ours.network(ours.normalise(pixels))
    near(logits, raw["cls_logits"][..., [*columns, 0]])
    anchors = theirs.anchor_generator(images, list(maps.values()))[0]
    boxes = theirs.box_coder.decode_single(raw["bbox_regression"][0], anchors)
    near(ours.predict(images_of(pixels)).boxes[0], boxes)
    assert ((ours.anchors[:, 2:] - ours.anchors[:, :2]) > 300).any()


@torch.no_grad()
@pytest.mark.parametrize("path", real_photos(), ids=lambda path: path.stem)
def test_ssd300_sees_photos_as_torchvision_does(ssd, path):
    """Each resizes the image itself, as for Faster R-CNN; all scores, and boxes in default boxes' sides."""
    ours = converted(ssd).eval()
    image = decode_image(path)
    images, maps = their_maps(ssd, torch.from_numpy(image).permute(2, 0, 1).unsqueeze(0).contiguous())
    raw = ssd.head(list(maps.values()))
    names = SSD300_VGG16_Weights.COCO_V1.meta["categories"]
    columns = [*(names.index(name) for name in ours.classes), 0]
    expected = raw["cls_logits"][..., columns].softmax(-1)[..., :-1]
    anchors = ssd.anchor_generator(images, list(maps.values()))[0]
    resized = torch.from_numpy(resize(image, (300, 300))).permute(2, 0, 1).unsqueeze(0)
    found = ours.predict(images_of(resized))
    assert expected.std() > 0.01
    difference = (found.scores - expected).abs()
    assert difference.max() <= 0.05
    assert difference.mean() <= 2e-4
    boxes = ssd.box_coder.decode_single(raw["bbox_regression"][0], anchors)
    difference = (found.boxes[0] - boxes).abs() / (anchors[:, 2:] - anchors[:, :2]).repeat(1, 2)
    assert difference.max() <= 1.0  # random weights make boxes many times as large as these
    assert difference.mean() <= 5e-3


def test_coco_has_eighty_classes():
    state = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91).state_dict()
    bias = state["roi_heads.box_predictor.cls_score.bias"]
    bias.copy_(torch.arange(91.0))
    published = from_state({"model": state}, "test")
    assert len(published["classes"]) == len(set(published["classes"])) == 80
    assert published["model"]["head.classifier.bias"][[0, -2, -1]].tolist() == [1.0, 90.0, 0.0]
    assert published["model"]["head.regressor.weight"].shape == (320, 1024)


CONFIGS = Path(__file__).parents[2] / "configs/custom"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ssd300_coco", ssd_config()),
        ("faster_rcnn_coco", faster_rcnn_config()),
        ("mask_rcnn_coco", mask_rcnn_config()),
        ("retinanet_coco", retinanet_config()),
    ],
)
def test_configs_to_fine_tune_describe_the_published_networks(name, expected):
    config = load_config(CONFIGS / f"{name}.yaml", ["data.root=x"])
    ours, theirs = asdict(config.model), asdict(expected)
    for key in ("min_sizes", "max_sizes"):
        if ours.get(key):
            assert ours.pop(key) == pytest.approx(theirs.pop(key))
    assert ours == theirs


@pytest.fixture(scope="module")
def ssd_file(tmp_path_factory) -> Path:
    """What torchvision publishes for ssd300_vgg16, untrained."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "ssd300.pth"
    torch.save(ssd300_vgg16(weights=None, weights_backbone=None, num_classes=91).state_dict(), path)
    return path


def test_a_file_is_detected_with_and_fine_tuned(ssd_file, tmp_path, capsys):
    detector = detkit.load(ssd_file, device="cpu")
    assert len(detector.classes) == 80
    cv2.imwrite(str(tmp_path / "image.png"), random_image(60, 80)[0].permute(1, 2, 0).numpy())
    arguments = [str(ssd_file), str(tmp_path / "image.png"), "--out", str(tmp_path / "out"), "--score", "0.0"]
    assert run_command("detect", [*arguments, "--device", "cpu"]) == 0
    assert (tmp_path / "out/image.png").exists()
    new = build_detector(ssd_config(), ("mug", "pen"))
    before = {name: tensor.clone() for name, tensor in new.state_dict().items()}
    checkpoint.start_from(new, ssd_file)
    assert "47 of 71" in capsys.readouterr().err
    for name, tensor in new.state_dict().items():
        if name.startswith("head."):
            assert torch.equal(tensor, before[name]), name
        else:
            assert torch.equal(tensor, detector.state_dict()[name]), name
    same = build_detector(ssd_config(), detector.classes)
    checkpoint.start_from(same, ssd_file)
    assert all(torch.equal(tensor, detector.state_dict()[name]) for name, tensor in same.state_dict().items())


def test_what_is_wrong_is_one_line(ssd_file, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"^torchvision/ssd300: detkit knows torchvision/ssd300_vgg16, .*did you mean"):
        detkit.load("torchvision/ssd300")

    def offline(*_, **__):
        raise URLError("no route")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(UserError, match=r"^torchvision/ssd300_vgg16: can't download https://\S+ .*no route"):
        download("torchvision/ssd300_vgg16")
    state = torch.load(ssd_file)
    assert is_state({"model": state})
    other = {key: tensor for key, tensor in state.items() if "classification" not in key}
    torch.save(other, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"other\.pth: weights of another network than SSD300_VGG16"):
        detkit.load(tmp_path / "other.pth")
    torch.save({"fc.weight": torch.zeros(2)}, tmp_path / "classifier.pth")
    with pytest.raises(UserError, match=r"classifier\.pth: not a detkit checkpoint"):
        detkit.load(tmp_path / "classifier.pth")
    with pytest.raises(UserError, match="checkpoint of another architecture"):
        checkpoint.start_from(build_detector(SSDConfig(extras=[], l2norm=[]), ("a",)), ssd_file)
