"""torchvision's trained detectors in detkit's SSD, Faster R-CNN, Mask R-CNN and RetinaNet: configs, classes, weights.

Known are `ssd300_vgg16`, `fasterrcnn_resnet50_fpn`, `fasterrcnn_resnet50_fpn_v2`, `maskrcnn_resnet50_fpn` and
`retinanet_resnet50_fpn`. What differs is converted:
- Classes: torchvision's 91 columns for COCO hold 10 names of no class, which are left out, and background comes first,
  where detkit has it last. RetinaNet's has a column too, which nothing was trained to, and which is left out.
- SSD: torchvision clips default boxes to the image. The regressors' weights make up for that.
- Faster R-CNN, Mask R-CNN, RetinaNet: batch norms that were trained frozen divide by sqrt(var), where torch's divide by
  sqrt(var + eps). The norms' weights make up for that. Files whose norms count no batches are taken for such ones, as
  the published files are.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchvision.models import get_weight

from detkit.backbones import weights
from detkit.config import BackboneConfig, Config, DataConfig, DetectConfig, EvaluateConfig, TrainConfig
from detkit.errors import UserError, did_you_mean
from detkit.experiment import to_plain
from detkit.models.faster_rcnn import FasterRCNNConfig
from detkit.models.mask_rcnn import MaskRCNNConfig
from detkit.models.retinanet import RetinaNetConfig
from detkit.models.ssd import CODER, SSDConfig
from detkit.ops import default_boxes

PREFIX = "torchvision/"
NO_CLASS = ("__background__", "N/A")
NORM_EPS = 1e-5  # torch's default, which detkit's backbones have
COUNTER = "num_batches_tracked"
SSD_SIZE = 300
SSD_SIDES = [SSD_SIZE * fraction for fraction in (0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05)]
SSD_RATIOS = [[2.0], [2.0, 3.0], [2.0, 3.0], [2.0, 3.0], [2.0], [2.0]]
# the first words of torchvision's names of tensors, and detkit's; the first that fits counts
SSD_KEYS = {
    "backbone.scale_weight": "l2norm.conv4_3.weight",
    "backbone.extra.0.7.1.": "backbone.fc6.",
    "backbone.extra.0.7.3.": "backbone.fc7.",
    **{f"backbone.extra.0.{layer}.": f"backbone.features.{layer + 23}." for layer in (1, 3, 5)},
    **{f"backbone.extra.{number}.": f"extras.{number - 1}." for number in range(1, 5)},
    "head.classification_head.module_list.": "head.classifiers.",
    "head.regression_head.module_list.": "head.regressors.",
}
PYRAMID_KEYS = {"backbone.body.": "backbone.", "backbone.fpn.": "neck.pyramid."}
FASTER_RCNN_KEYS = {
    **PYRAMID_KEYS,
    "rpn.head.conv.0.0.": "rpn.conv.",
    "rpn.head.conv.1.0.": "rpn.deeper.0.",
    "rpn.head.conv.": "rpn.conv.",  # in older files
    "rpn.head.cls_logits.": "rpn.objectness.",
    "rpn.head.bbox_pred.": "rpn.deltas.",
    "roi_heads.box_head.fc6.": "head.tail.1.",
    "roi_heads.box_head.fc7.": "head.tail.3.",
    # v2: four blocks of a convolution (0), a norm (1) and ReLU, and a fully connected layer
    **{f"roi_heads.box_head.{i}.{layer}.": f"head.tail.{3 * i + layer}." for i in range(4) for layer in (0, 1)},
    "roi_heads.box_head.5.": "head.tail.13.",
    "roi_heads.box_predictor.cls_score.": "head.classifier.",
    "roi_heads.box_predictor.bbox_pred.": "head.regressor.",
    **{f"roi_heads.mask_head.{i}.0.": f"mask_head.convs.{i}." for i in range(4)},
    # in older files
    **{f"roi_heads.mask_head.mask_fcn{i + 1}.": f"mask_head.convs.{i}." for i in range(4)},
    "roi_heads.mask_predictor.conv5_mask.": "mask_head.deconv.",
    "roi_heads.mask_predictor.mask_fcn_logits.": "mask_head.predictor.",
}
RETINANET_ANCHORS = 9
RETINANET_HEADS = ("classification_head", "classifier"), ("regression_head", "regressor")
RETINANET_KEYS = {
    **PYRAMID_KEYS,
    **{f"head.{theirs}.conv.{i}.0.": f"{ours}.convs.{i}." for theirs, ours in RETINANET_HEADS for i in range(4)},
    # in older files
    **{f"head.{theirs}.conv.{2 * i}.": f"{ours}.convs.{i}." for theirs, ours in RETINANET_HEADS for i in range(4)},
    "head.classification_head.cls_logits.": "classifier.last.",
    "head.regression_head.bbox_reg.": "regressor.last.",
}


class Network(NamedTuple):
    """A detector of torchvision's.

    weights: torchvision's name of the trained ones. marks: keys that no other network of torchvision's has together.
    predictor: key of the classifier's biases. boxes: how many rows of it a class has, at a place. detect: torchvision's
    own settings. convert: see `_convert_ssd`.
    """

    weights: str
    marks: tuple[str, ...]
    predictor: str
    boxes: int
    model: Callable[[], Any]
    detect: DetectConfig
    convert: Callable[[dict[str, Tensor], list[int]], dict[str, Tensor]]

    def config(self) -> dict[str, Any]:
        """Return the config of a checkpoint, as plain dicts."""
        data = DataConfig(root="data/coco", train=["train2017"], test=["val2017"])
        train = TrainConfig(iterations=1, batch=2)
        return to_plain(Config(self.model(), data, train, self.detect, EvaluateConfig("coco", 4)))


def is_state(content: Any) -> bool:
    """Whether a file's content may be weights of torchvision's: tensors by name, perhaps below a common wrapper."""
    return _find_network(weights.unwrap(content)) is not None


def _find_network(state: Any) -> Network | None:
    known = NETWORKS.values() if isinstance(state, dict) else ()
    return next((network for network in known if all(mark in state for mark in network.marks)), None)


def download(name: str) -> dict[str, Any]:
    """Return the COCO-trained detector `torchvision/NAME` as `from_state` does, from torch's cache or the network."""
    short = name.removeprefix(PREFIX)
    if short not in NETWORKS:
        raise UserError(
            f"{name}: detkit knows {', '.join(PREFIX + one for one in NETWORKS)}{did_you_mean(short, NETWORKS)}"
        )
    try:
        state = weights.download(NETWORKS[short].weights, "its path instead")
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    return from_state(state, name)


def from_state(content: dict[str, Any], source: str) -> dict[str, Any]:
    """Return what a checkpoint of detkit would hold in place of a file's content for which `is_state` is true.

    Raises UserError, naming `source`, where it is damaged.
    """
    state = weights.unwrap(content)
    network = _find_network(state)
    assert network is not None
    categories = get_weight(network.weights).meta["categories"]
    columns = len(state.get(network.predictor, ())) // network.boxes
    if columns < 2:
        raise UserError(f"{source}: weights of another network than {network.weights}, no {network.predictor} in them")
    if columns == len(categories):
        kept = [column for column, name in enumerate(categories) if name not in NO_CLASS]
        classes = [categories[column] for column in kept]
    else:
        kept = list(range(1, columns))
        classes = [f"class{column}" for column in kept]
    try:
        converted = network.convert(state, kept)
    except (KeyError, RuntimeError, AttributeError) as error:
        raise UserError(f"{source}: not the weights of {network.weights} ({' '.join(str(error).split())})") from None
    return {"model": converted, "config": network.config(), "classes": classes, "iteration": 0, "metrics": {}}


def ssd_config() -> SSDConfig:
    """Return the config of `ssd300_vgg16`: sizes of default boxes are those of SSD for COCO."""
    return SSDConfig(
        mean=(0.48235, 0.45882, 0.40784),
        std=(1 / 255, 1 / 255, 1 / 255),
        min_sizes=SSD_SIDES[:-1],
        max_sizes=SSD_SIDES[1:],
    )


def faster_rcnn_config() -> FasterRCNNConfig:
    """Return the config of `fasterrcnn_resnet50_fpn`."""
    return FasterRCNNConfig(
        backbone=BackboneConfig("resnet50"),
        size=[800, 1333],
        neck="fpn",
        size_divisor=32,
        pool="align_v1",
        anchors="torchvision",
        scales=[8.0],
        rpn_width=256,
        allow_border=True,
        pre_nms_top_n=2000,
        post_nms_top_n=2000,
        test_pre_nms_top_n=1000,
        test_post_nms_top_n=1000,
        min_size=0.001,
        batch_size_per_image=512,
        beta=1 / 9,
    )


def mask_rcnn_config() -> MaskRCNNConfig:
    """Return the config of `maskrcnn_resnet50_fpn`."""
    return MaskRCNNConfig(**{**vars(faster_rcnn_config()), "name": "mask_rcnn"})


def faster_rcnn_v2_config() -> FasterRCNNConfig:
    """Return the config of `fasterrcnn_resnet50_fpn_v2` (Li et al., 2021, Benchmarking Detection Transfer Learning)."""
    return replace(faster_rcnn_config(), neck_norm=True, head_convs=4, rpn_convs=2)


def retinanet_config() -> RetinaNetConfig:
    """Return the config of `retinanet_resnet50_fpn`."""
    return RetinaNetConfig(p6="p5", size_divisor=32, anchors="torchvision", beta=0.0)


def _renamed(key: str, names: dict[str, str]) -> str:
    return next((ours + key.removeprefix(theirs) for theirs, ours in names.items() if key.startswith(theirs)), key)


def _convert_ssd(state: dict[str, Tensor], kept: list[int]) -> dict[str, Tensor]:
    """Return torchvision's tensors as detkit has them; `kept`: the columns of the classes."""
    converted = {}
    for key, tensor in state.items():
        name = _renamed(key, SSD_KEYS)
        if name.startswith(("head.classifiers.", "head.regressors.")):
            _, kind, level, part = name.split(".")
            if kind == "regressors":
                tensor = _unclipped(tensor, int(level), part)
            else:
                boxes = 2 + 2 * len(SSD_RATIOS[int(level)])
                tensor = tensor.unflatten(0, (boxes, -1))[:, [*kept, 0]].flatten(0, 1)
        converted[name] = tensor
    return converted


def _unclipped(tensor: Tensor, level: int, kind: str) -> Tensor:
    """Let a regressor's weight or bias refer to default boxes that are not clipped to the image."""
    boxes = default_boxes([(1, 1)], [1], [SSD_SIDES[level]], [SSD_SIDES[level + 1]], [SSD_RATIOS[level]])
    shrunk = (SSD_SIZE / (boxes[:, 2:] - boxes[:, :2])).clamp(max=1)  # share of each side that clipping leaves
    rows = tensor.unflatten(0, (len(boxes), 4)).clone()
    rows[:, :2] *= shrunk.view(-1, 2, *[1] * (tensor.ndim - 1))
    if kind == "bias":
        rows[:, 2:] += shrunk.log() * torch.tensor(CODER.weights[2:])
    return rows.flatten(0, 1)


def _convert_faster_rcnn(state: dict[str, Tensor], kept: list[int]) -> dict[str, Tensor]:
    """Return torchvision's tensors as detkit has them; `kept`: the columns of the classes."""
    converted = {}
    for key, tensor in state.items():
        name = _renamed(key, FASTER_RCNN_KEYS)
        if name.startswith("head.classifier."):
            tensor = tensor[[*kept, 0]]
        elif name.startswith("head.regressor."):
            tensor = tensor.unflatten(0, (-1, 4))[kept].flatten(0, 1)
        elif name.startswith("mask_head.predictor."):
            tensor = tensor[kept]
        converted[name] = tensor
    converted["head.delta_mean"], converted["head.delta_std"] = torch.zeros(len(kept), 4), torch.ones(len(kept), 4)
    return _pyramid_converted(converted)


def _convert_retinanet(state: dict[str, Tensor], kept: list[int]) -> dict[str, Tensor]:
    """Return torchvision's tensors as detkit has them; `kept`: the columns of the classes."""
    converted = {_renamed(key, RETINANET_KEYS): tensor for key, tensor in state.items()}
    for name in ("classifier.last.weight", "classifier.last.bias"):
        converted[name] = converted[name].unflatten(0, (RETINANET_ANCHORS, -1))[:, kept].flatten(0, 1)
    return _pyramid_converted(converted)


def _pyramid_converted(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors by detkit's names with those of a backbone with a pyramid as detkit has them."""
    # older files have one level less
    older = re.compile(r"^(neck\.pyramid\.\w+\.\d+)\.(weight|bias)$")
    converted = {older.sub(r"\1.0.\2", name): tensor for name, tensor in state.items()}
    for norm in [key.removesuffix("running_var") for key in converted if key.endswith(".running_var")]:
        if norm + COUNTER not in converted:
            # frozen, without eps; a variance of 0 could not have been divided by
            variance = converted[norm + "running_var"]
            growth = torch.where(variance > 0, (variance + NORM_EPS) / variance, 1)
            converted[norm + "weight"] = converted[norm + "weight"] * growth.sqrt()
            converted[norm + COUNTER] = torch.tensor(0)
    return converted


SSD_DETECT = DetectConfig(score_threshold=0.01, top_k=400, nms_iou=0.45, detections_per_image=200)
RCNN_DETECT = DetectConfig(score_threshold=0.05, top_k=1000, nms_iou=0.5, detections_per_image=100)
# top_k: of the five maps, 1000 each
RETINANET_DETECT = DetectConfig(score_threshold=0.05, top_k=5000, nms_iou=0.5, detections_per_image=300)
SSD_BIAS, RCNN_BIAS = "head.classification_head.module_list.0.bias", "roi_heads.box_predictor.cls_score.bias"
NETWORKS = {
    "ssd300_vgg16": Network(
        "SSD300_VGG16_Weights.COCO_V1",
        ("backbone.scale_weight", "backbone.extra.0.7.1.weight"),
        SSD_BIAS,
        4,
        ssd_config,
        SSD_DETECT,
        _convert_ssd,
    ),
    "maskrcnn_resnet50_fpn": Network(  # before Faster R-CNN, all of which is in it
        "MaskRCNN_ResNet50_FPN_Weights.COCO_V1",
        ("roi_heads.box_head.fc6.weight", "roi_heads.mask_predictor.conv5_mask.weight"),
        RCNN_BIAS,
        1,
        mask_rcnn_config,
        RCNN_DETECT,
        _convert_faster_rcnn,
    ),
    "fasterrcnn_resnet50_fpn": Network(
        "FasterRCNN_ResNet50_FPN_Weights.COCO_V1",
        ("backbone.body.layer4.2.conv3.weight", "roi_heads.box_head.fc6.weight"),
        RCNN_BIAS,
        1,
        faster_rcnn_config,
        RCNN_DETECT,
        _convert_faster_rcnn,
    ),
    "fasterrcnn_resnet50_fpn_v2": Network(
        "FasterRCNN_ResNet50_FPN_V2_Weights.COCO_V1",
        ("backbone.body.layer4.2.conv3.weight", "roi_heads.box_head.0.0.weight"),
        RCNN_BIAS,
        1,
        faster_rcnn_v2_config,
        RCNN_DETECT,
        _convert_faster_rcnn,
    ),
    "retinanet_resnet50_fpn": Network(
        "RetinaNet_ResNet50_FPN_Weights.COCO_V1",
        ("backbone.body.layer4.2.conv3.weight", "head.regression_head.bbox_reg.weight"),
        "head.classification_head.cls_logits.bias",
        RETINANET_ANCHORS,
        retinanet_config,
        RETINANET_DETECT,
        _convert_retinanet,
    ),
}
