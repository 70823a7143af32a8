"""torchvision's trained detectors in detkit's SSD and Faster R-CNN: their configs, classes and weights.

Known are `ssd300_vgg16`, `fasterrcnn_resnet50_fpn` and `fasterrcnn_resnet50_fpn_v2`. What differs is converted:
- Classes: torchvision's 91 columns for COCO hold 10 names of no class, which are left out, and background comes first,
  where detkit has it last.
- SSD: torchvision clips default boxes to the image. The regressors' weights make up for that.
- Faster R-CNN: batch norms that were trained frozen divide by sqrt(var), where torch's divide by sqrt(var + eps). The
  norms' weights make up for that. Files whose norms count no batches are taken for such ones, as the published file is.
"""

from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.error import URLError

import torch
from torch import Tensor
from torchvision.models import get_weight

from detkit.config import BackboneConfig, Config, DataConfig, DetectConfig, EvaluateConfig, TrainConfig
from detkit.errors import UserError, did_you_mean
from detkit.models.faster_rcnn import FasterRCNNConfig
from detkit.models.ssd import CODER, SSDConfig
from detkit.ops import default_boxes

PREFIX = "torchvision/"
WRAPPERS = ("model", "state_dict")  # under which training scripts keep the weights
NO_CLASS = ("__background__", "N/A")
NORM_EPS = 1e-5  # torch's default, which detkit's backbones have
COUNTER = "num_batches_tracked"
SSD_SIDES = [300 * fraction for fraction in (0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05)]


class Published(NamedTuple):
    """What a file of torchvision's holds, in detkit's terms; see checkpoints/checkpoint.py."""

    config: Config
    classes: tuple[str, ...]
    weights: dict[str, Tensor]


class Network(NamedTuple):
    """A detector of torchvision's.

    weights: torchvision's name of the trained ones. marks: keys that no other network of torchvision's has together.
    predictor: key of the classifier's biases. boxes: how many rows of it a class has, for SSD.
    """

    weights: str
    marks: tuple[str, ...]
    predictor: str
    boxes: int
    config: Callable[[], Config]
    convert: Callable[[dict[str, Tensor], list[int]], dict[str, Tensor]]


def is_state(content: Any) -> bool:
    """Whether a file's content may be weights of torchvision's: tensors by name, perhaps below a common wrapper."""
    state = _unwrap(content)
    return isinstance(state, dict) and any(all(mark in state for mark in one.marks) for one in NETWORKS.values())


def download(name: str) -> Published:
    """Return the COCO-trained detector `torchvision/NAME`, from torch's cache or the network; UserError without."""
    short = name.removeprefix(PREFIX)
    if short not in NETWORKS:
        raise UserError(
            f"{name}: detkit knows {', '.join(PREFIX + one for one in NETWORKS)}{did_you_mean(short, NETWORKS)}"
        )
    weights = get_weight(NETWORKS[short].weights)
    try:
        state = dict(weights.get_state_dict(progress=True, check_hash=True))
    except (URLError, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{name}: can't download {weights.url} ({reason}); fetch it elsewhere and give its path instead"
        ) from None
    return from_state(state, name)


def from_state(content: dict[str, Any], source: str) -> Published:
    """Convert a file's content for which `is_state` is true; UserError, naming `source`, where it is damaged."""
    state = _unwrap(content)
    network = next(one for one in NETWORKS.values() if all(mark in state for mark in one.marks))
    categories = get_weight(network.weights).meta["categories"]
    columns = len(state.get(network.predictor, ())) // network.boxes
    if columns < 2:
        raise UserError(f"{source}: weights of another network than {network.weights}, no {network.predictor} in them")
    if columns == len(categories):
        kept = [column for column, name in enumerate(categories) if name not in NO_CLASS]
        classes = tuple(categories[column] for column in kept)
    else:
        kept = list(range(1, columns))
        classes = tuple(f"class{column}" for column in kept)
    try:
        weights = network.convert(state, kept)
    except (KeyError, RuntimeError, AttributeError) as error:
        raise UserError(f"{source}: not the weights of {network.weights} ({' '.join(str(error).split())})") from None
    return Published(network.config(), classes, weights)


def _unwrap(content: Any) -> Any:
    for wrapper in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict) and "format" not in content:
            content = content[wrapper]
    return content


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


def faster_rcnn_v2_config() -> FasterRCNNConfig:
    """Return the config of `fasterrcnn_resnet50_fpn_v2` (Li et al., 2021, Benchmarking Detection Transfer Learning)."""
    config = faster_rcnn_config()
    config.neck_norm, config.head_convs, config.rpn_convs = True, 4, 2
    return config


def _experiment(model: Any, detect: DetectConfig) -> Config:
    data = DataConfig(root="data/coco", train=["train2017"], test=["val2017"])
    return Config(model, data, TrainConfig(iterations=1, batch=2), detect, EvaluateConfig("coco", 4))


def _ssd() -> Config:
    return _experiment(
        ssd_config(), DetectConfig(score_threshold=0.01, top_k=400, nms_iou=0.45, detections_per_image=200)
    )


def _faster_rcnn() -> Config:
    return _experiment(
        faster_rcnn_config(), DetectConfig(score_threshold=0.05, top_k=1000, nms_iou=0.5, detections_per_image=100)
    )


def _faster_rcnn_v2() -> Config:
    return _experiment(
        faster_rcnn_v2_config(), DetectConfig(score_threshold=0.05, top_k=1000, nms_iou=0.5, detections_per_image=100)
    )


def _convert_ssd(state: dict[str, Tensor], kept: list[int]) -> dict[str, Tensor]:
    """Rename; `kept`: the columns of the classes."""
    config = ssd_config()
    converted = {}
    for key, tensor in state.items():
        parts = key.split(".")
        if key == "backbone.scale_weight":
            converted["l2norm.conv4_3.weight"] = tensor
        elif key.startswith("backbone.features."):
            converted[key] = tensor
        elif key.startswith("backbone.extra.0.7."):
            converted[f"backbone.{'fc6' if parts[4] == '1' else 'fc7'}.{parts[5]}"] = tensor
        elif key.startswith("backbone.extra.0."):
            converted[f"backbone.features.{int(parts[3]) + 23}.{parts[4]}"] = tensor
        elif key.startswith("backbone.extra."):
            converted[f"extras.{int(parts[2]) - 1}.{parts[3]}.{parts[4]}"] = tensor
        elif key.startswith("head.classification_head."):
            boxes = (4, 6, 6, 6, 4, 4)[int(parts[3])]
            rows = tensor.unflatten(0, (boxes, -1))
            converted[f"head.classifiers.{parts[3]}.{parts[4]}"] = rows[:, [*kept, 0]].flatten(0, 1)
        elif key.startswith("head.regression_head."):
            converted[f"head.regressors.{parts[3]}.{parts[4]}"] = _unclipped(tensor, int(parts[3]), parts[4], config)
        else:
            converted[key] = tensor
    return converted


def _unclipped(tensor: Tensor, level: int, kind: str, config: SSDConfig) -> Tensor:
    """Let a regressor's weight or bias refer to default boxes that are not clipped to the image."""
    assert config.min_sizes is not None
    assert config.max_sizes is not None
    ratios = [2.0] if level in (0, 4, 5) else [2.0, 3.0]
    boxes = default_boxes([(1, 1)], [1], [config.min_sizes[level]], [config.max_sizes[level]], [ratios])
    shrunk = (config.size / (boxes[:, 2:] - boxes[:, :2])).clamp(max=1)  # share of each side that clipping leaves
    rows = tensor.unflatten(0, (len(boxes), 4)).clone()
    rows[:, :2] *= shrunk.view(-1, 2, *[1] * (tensor.ndim - 1))
    if kind == "bias":
        rows[:, 2:] += shrunk.log() * torch.tensor(CODER.weights[2:])
    return rows.flatten(0, 1)


def _convert_faster_rcnn(state: dict[str, Tensor], kept: list[int]) -> dict[str, Tensor]:
    """Rename; `kept`: the columns of the classes."""
    converted = {}
    for key, tensor in state.items():
        if key.startswith("roi_heads.box_predictor.cls_score."):
            tensor = tensor[[*kept, 0]]
        elif key.startswith("roi_heads.box_predictor.bbox_pred."):
            tensor = tensor.unflatten(0, (-1, 4))[kept].flatten(0, 1)
        converted[_faster_rcnn_key(key)] = tensor
    converted["head.delta_mean"], converted["head.delta_std"] = torch.zeros(len(kept), 4), torch.ones(len(kept), 4)
    for key, variance in list(converted.items()):
        if not key.endswith(".running_var"):
            continue
        norm = key.removesuffix("running_var")
        if norm + COUNTER not in converted:
            # frozen, without eps; a variance of 0 could not have been divided by
            growth = torch.where(variance > 0, (variance + NORM_EPS) / variance, 1)
            converted[norm + "weight"] = converted[norm + "weight"] * growth.sqrt()
            converted[norm + COUNTER] = torch.tensor(0)
    return converted


def _faster_rcnn_key(key: str) -> str:
    """Return detkit's name of a tensor of either Faster R-CNN, new or, with fewer levels, as older files have it."""
    parts = key.split(".")
    if key.startswith("backbone.fpn."):
        return ".".join(["neck.pyramid", *parts[2:4], "0" if len(parts) == 5 else parts[4], parts[-1]])
    if key.startswith("rpn.head.conv."):
        number = int(parts[3]) if len(parts) == 6 else 0
        return f"rpn.conv.{parts[-1]}" if number == 0 else f"rpn.deeper.{number - 1}.{parts[-1]}"
    for theirs, ours in FASTER_RCNN_KEYS.items():
        if key.startswith(theirs):
            return ours + key.removeprefix(theirs)
    if key.startswith("roi_heads.box_head.") and len(parts) == 5:  # a convolution (0), norm (1) and ReLU each
        return f"head.tail.{3 * int(parts[2]) + int(parts[3])}.{parts[4]}"
    return key


FASTER_RCNN_KEYS = {
    "backbone.body.": "backbone.",
    "rpn.head.cls_logits.": "rpn.objectness.",
    "rpn.head.bbox_pred.": "rpn.deltas.",
    "roi_heads.box_head.fc6.": "head.tail.1.",
    "roi_heads.box_head.fc7.": "head.tail.3.",
    "roi_heads.box_head.5.": "head.tail.13.",
    "roi_heads.box_predictor.cls_score.": "head.classifier.",
    "roi_heads.box_predictor.bbox_pred.": "head.regressor.",
}

SSD_BIAS, RCNN_BIAS = "head.classification_head.module_list.0.bias", "roi_heads.box_predictor.cls_score.bias"
NETWORKS = {
    "ssd300_vgg16": Network(
        "SSD300_VGG16_Weights.COCO_V1",
        ("backbone.scale_weight", "backbone.extra.0.7.1.weight"),
        SSD_BIAS,
        4,
        _ssd,
        _convert_ssd,
    ),
    "fasterrcnn_resnet50_fpn": Network(
        "FasterRCNN_ResNet50_FPN_Weights.COCO_V1",
        ("backbone.body.layer4.2.conv3.weight", "roi_heads.box_head.fc6.weight"),
        RCNN_BIAS,
        1,
        _faster_rcnn,
        _convert_faster_rcnn,
    ),
    "fasterrcnn_resnet50_fpn_v2": Network(
        "FasterRCNN_ResNet50_FPN_V2_Weights.COCO_V1",
        ("backbone.body.layer4.2.conv3.weight", "roi_heads.box_head.0.0.weight"),
        RCNN_BIAS,
        1,
        _faster_rcnn_v2,
        _convert_faster_rcnn,
    ),
}
