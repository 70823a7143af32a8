"""YOLOv1, v2 and v3 in the files of the authors' program darknet: NAME.cfg, the network, and NAME.weights beside it.

Read are cfgs of the kind of yolov1.cfg, yolov1-tiny.cfg and the first ones without batch norm: the layers of a darknet
backbone, convolutions, perhaps a locally connected layer and a dropout, connected layers, the first of which may be
linear, and the detection layer. And those of the kind of yolov2.cfg and yolov2-tiny.cfg: the layers of Darknet-19, or
the first ones of Fast YOLO and a pool, convolutions, perhaps the passthrough layer, and the region layer. YOLOv3's: see
checkpoints/darknet_yolov3.py. Of what they say about training the scales of the losses, the threshold and whether sizes
are random are taken over.
"""

from itertools import takewhile
from pathlib import Path

from detkit.backbones.darknet import YOLOV1, YOLOV1_TINY
from detkit.backbones.darknet19 import BLOCKS
from detkit.backbones.darknet_file import read_weights
from detkit.checkpoints.darknet_cfg import (
    Section,
    convolution_of,
    pairs_of,
    pooled,
    read_sections,
    take,
    take_backbone,
    take_convolutions,
    take_linear,
)
from detkit.checkpoints.darknet_yolov3 import parse_yolov3
from detkit.config import BackboneConfig, Config, DataConfig, DetectConfig, TrainConfig
from detkit.data.voc import VOC_CLASSES
from detkit.errors import UserError
from detkit.experiment import from_plain, to_plain
from detkit.files import read_text
from detkit.models import Detector, build_detector
from detkit.models.yolov1 import LOCAL_KERNEL, YOLOv1Config
from detkit.models.yolov2 import YOLOv2Config
from detkit.models.yolov3 import YOLOv3Config

BACKBONES = {"darknet_yolov1": pooled(YOLOV1), "darknet_yolov1_tiny": pooled(YOLOV1_TINY)}
# Tiny YOLOv2 begins as Fast YOLO does, up to the map of stride 32
TINY_MAP = "c5"
BACKBONES_V2 = {
    "darknet19": pooled([[(size, 1 if number % 2 else 3, 1) for number, size in enumerate(block)] for block in BLOCKS]),
    "darknet_yolov1_tiny": pooled(YOLOV1_TINY[:6]),
}
LOCAL = {"size": str(LOCAL_KERNEL), "stride": "1", "pad": "1", "activation": "leaky"}
DETECTION = {"coords": "4", "softmax": "0", "sqrt": "1", "rescore": "1", "object_scale": "1", "class_scale": "1"}
REGION = {"coords": "4", "softmax": "1", "rescore": "1", "bias_match": "1", "absolute": "1"}
REGION_FREE = (
    *("classes", "num", "jitter", "random", "thresh"),
    *("object_scale", "noobject_scale", "class_scale", "coord_scale"),
)


def load_darknet(weights: str | Path, overrides: list[str] | None = None) -> tuple[Detector, Config]:
    """Return the detector of NAME.weights and NAME.cfg, and a config as its checkpoint would carry.

    Its classes are the lines of NAME.names; without that file, 20 classes are VOC's. overrides: `key=value` arguments.
    Raises UserError for files that are missing, damaged, do not belong together, or hold another kind of network.
    """
    weights = Path(weights)
    if not weights.is_file():
        raise UserError(f"no file {weights}")
    cfg = weights.with_suffix(".cfg")
    hint = f"; darknet's weights need their cfg beside them: for {weights.name}, {cfg.name}"
    model, count = parse_cfg(read_text(cfg, hint), str(cfg))
    data = DataConfig(root="data/VOCdevkit", test=["VOC2007/test"], difficult=False)
    if isinstance(model, YOLOv1Config):
        detect = DetectConfig(score_threshold=0.001, nms_iou=0.5)  # section 2.3
    else:
        detect = DetectConfig(score_threshold=0.005, top_k=1000, nms_iou=0.45)  # the authors' code
    config = Config(model, data, TrainConfig(iterations=1), detect)
    config = from_plain(to_plain(config), str(cfg), overrides)
    detector = build_detector(config.model, _classes(weights.with_suffix(".names"), count))
    detector.load_state_dict(read_weights(weights, detector), strict=False)
    return detector, config


def parse_cfg(text: str, source: str) -> tuple[YOLOv1Config | YOLOv2Config | YOLOv3Config, int]:
    """Return the config and the number of classes that a cfg's text describes.

    source: the file, for errors. Raises UserError, naming file and line, for anything that the config can't say.
    """
    sections = [section for section in read_sections(text, source) if section.name != "crop"]
    if not sections or sections[0].name not in ("net", "network"):
        raise UserError(f"{source}: a darknet cfg begins with [net]")
    net, *layers = sections
    sizes = [net.options.get(key, "missing") for key in ("height", "width", "channels")]
    if sizes[0] != sizes[1] or not sizes[0].isdecimal() or sizes[2] != "3":
        raise UserError(f"{net.origin}: height={sizes[0]}, width={sizes[1]}, channels={sizes[2]}; read are RGB squares")
    layers.append(Section("end", {}, source))
    # all convolutions have batch norm, or none has
    norm = "1" if layers[0].name == "convolutional" and layers[0].number("batch_normalize") else "0"
    kinds = {layer.name for layer in layers}
    if "yolo" in kinds:
        return parse_yolov3(layers, int(sizes[0]))
    if "region" in kinds and "connected" not in kinds:
        return _parse_yolov2(layers, int(sizes[0]))
    return _parse_yolov1(layers, norm, int(sizes[0]))


def _parse_yolov1(layers: list[Section], norm: str, size: int) -> tuple[YOLOv1Config, int]:
    """Parse what follows [net]. norm: batch_normalize of the convolutions; size: side of the input."""
    name = take_backbone(layers, norm, BACKBONES)
    convolutions = []
    while layers[0].name == "convolutional":
        convolutions.append(list(convolution_of(layers.pop(0), norm)))
    local = 0
    if layers[0].name == "local":
        layers[0].expect(LOCAL, ["filters"])
        local = layers.pop(0).integer("filters")
    head = list(takewhile(lambda layer: layer.name in ("connected", "dropout"), layers))
    units, dropout, bottleneck = [], 0.0, 0
    for number, layer in enumerate(head, 1):
        if layer.name == "connected" and 1 == number < len(head) and layer.options.get("activation") == "linear":
            layer.expect({}, ["output", "activation"])
            bottleneck = layer.integer("output")
        elif layer.name == "connected":
            layer.expect({"activation": "linear" if number == len(head) else "leaky"}, ["output"])
            units.append(layer.integer("output"))
        else:
            layer.expect({}, ["probability"])
            dropout = layer.number("probability")
            if [behind.name for behind in head[number:]] != ["connected"]:
                raise UserError(f"{layer.origin}: [dropout] is read before the last [connected] only")
    rest = layers[len(head) :]
    detection = rest[0]
    if not units or [layer.name for layer in rest] != ["detection", "end"]:
        raise UserError(f"{detection.origin}: [{detection.name}], where YOLOv1 has [connected] and then [detection]")
    detection.expect(DETECTION, ["classes", "side", "num", "jitter", "noobject_scale", "coord_scale"])
    grid, boxes, classes = (detection.integer(key) for key in ("side", "num", "classes"))
    outputs = grid**2 * (boxes * 5 + classes)
    if units[-1] != outputs:
        raise UserError(
            f"{head[-1].origin}: output={units[-1]}, but [detection] needs {outputs}: side * side * (num * 5 + classes)"
        )
    config = YOLOv1Config(
        backbone=BackboneConfig(name if norm == "1" else f"{name}_plain"),
        size=size,
        convolutions=convolutions,
        local=local,
        bottleneck=bottleneck,
        hidden=units[:-1],
        dropout=dropout,
        grid=grid,
        boxes=boxes,
        coord=detection.number("coord_scale"),
        noobj=detection.number("noobject_scale"),
    )
    return config, classes


def _parse_yolov2(layers: list[Section], size: int) -> tuple[YOLOv2Config, int]:
    """The same: the network's convolutions, perhaps the passthrough layer, a linear convolution and [region]."""
    name = take_backbone(layers, "1", BACKBONES_V2)
    pool = layers[0].name == "maxpool"
    if pool:
        layers.pop(0).expect({"size": "2", "stride": "1"})
    convolutions, joined, passthrough = take_convolutions(layers), [], 0
    if name == "darknet19" and layers[0].name == "route":
        # the map in front of the last pool, from which the last block of Darknet-19 leads here
        layers.pop(0).expect({"layers": f"-{len(convolutions) + len(BLOCKS[-1]) + 2}"})
        reduced = take_convolutions(layers)
        passthrough = reduced[0][0] if reduced else None
        reorg = take(layers, "reorg", "YOLOv2")
        reorg.expect({"stride": "2"})
        if reduced and (len(reduced) > 1 or reduced[0][1:] != [1, 1]):
            raise UserError(f"{reorg.origin}: [reorg] behind {reduced}; read is one 1x1 convolution, or none")
        take(layers, "route", "YOLOv2").expect({"layers": f"-1,-{len(reduced) + 3}"})
        joined = take_convolutions(layers)
    last, region = take_linear(layers, "YOLOv2"), take(layers, "region", "YOLOv2")
    region.expect(REGION, [*REGION_FREE, "anchors"])
    take(layers, "end", "YOLOv2")
    classes, count = region.integer("classes"), region.integer("num")
    anchors = pairs_of(region, count)
    if last.integer("filters") != count * (5 + classes):
        outputs = f"filters={last.integer('filters')}, but [region] needs {count * (5 + classes)}"
        raise UserError(f"{last.origin}: {outputs}: num * (5 + classes)")
    config = YOLOv2Config(
        backbone=BackboneConfig(name),
        size=size,
        train_sizes=[320, 608] if region.integer("random") else [],
        feature=None if name == "darknet19" else TINY_MAP,
        pool=pool,
        convolutions=convolutions,
        passthrough=passthrough,
        joined=joined,
        anchors=anchors,
        coord=region.number("coord_scale"),
        object=region.number("object_scale"),
        noobj=region.number("noobject_scale"),
        class_weight=region.number("class_scale"),
        ignore_iou=region.number("thresh"),
    )
    return config, classes


def _classes(names: Path, count: int) -> tuple[str, ...]:
    if not names.is_file() and count == len(VOC_CLASSES):
        return VOC_CLASSES
    hint = f"; the cfg has {count} classes, whose names it holds, one a line"
    classes = tuple(line.strip() for line in read_text(names, hint).splitlines() if line.strip())
    if len(classes) != count:
        raise UserError(f"{names}: {len(classes)} classes, but {names.with_suffix('.cfg')} has {count}")
    return classes
