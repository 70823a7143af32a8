"""YOLOv3's cfg: the kind of yolov3.cfg, yolov3-voc.cfg and yolov3-tiny.cfg.

The layers of Darknet-53, or the first ones of Fast YOLO and a pool; then for each scale convolutions, a linear one and
the yolo layer, and in front of each scale but the first a 1x1 convolution of what the one before it found, upsampled
beside the backbone's map.
"""

from detkit.backbones.darknet import YOLOV1_TINY
from detkit.backbones.darknet53 import FIRST, STAGES
from detkit.checkpoints.darknet_cfg import (
    Layer,
    Section,
    convolution_of,
    pairs_of,
    pooled,
    take,
    take_backbone,
    take_convolutions,
    take_linear,
)
from detkit.config import BackboneConfig
from detkit.errors import UserError
from detkit.models.yolov3 import YOLOv3Config

NETWORK = "YOLOv3"
DARKNET53: list[Layer] = [(FIRST, 3, 1)]
for _channels, _blocks in STAGES:
    _block: list[Layer] = [(_channels // 2, 1, 1), (_channels, 3, 1), "shortcut"]
    DARKNET53 += [(_channels, 3, 2), *_block * _blocks]
BACKBONES = {"darknet53": DARKNET53, "darknet_yolov1_tiny": pooled(YOLOV1_TINY[:6])}
COARSEST = 5  # c5, of stride 32
YOLO = {"truth_thresh": "1"}
YOLO_FREE = ("mask", "anchors", "classes", "num", "jitter", "ignore_thresh", "random", "max")
SHARED = ("anchors", "classes", "num", "ignore_thresh")  # by all yolo layers of a network


def parse_yolov3(layers: list[Section], size: int) -> tuple[YOLOv3Config, int]:
    """Return the config and the number of classes of what follows [net]. size: side of the input."""
    name = take_backbone(layers, "1", BACKBONES)
    before = BACKBONES[name]
    # darknet's numbers of the layers in front of those that halve a map, the coarsest map's first
    numbers = [number for number in range(len(before) - 1) if _halves(before[number + 1])][::-1]
    pool = layers[0].name == "maxpool"
    if pool:
        layers.pop(0).expect({"size": "2", "stride": "1"})
    scales, reduced, yolos = [_take_scale(layers)], [], []
    yolos.append(take(layers, "yolo", NETWORK))
    while layers[0].name == "route" and len(reduced) < len(numbers):
        layers.pop(0).expect({"layers": "-4"})
        section = take(layers, "convolutional", NETWORK)
        channels, *shape = convolution_of(section, "1")
        if shape != [1, 1]:
            raise UserError(
                f"{section.origin}: [convolutional] in front of [upsample]; read is one of size=1, stride=1"
            )
        take(layers, "upsample", NETWORK).expect({"stride": "2"})
        take(layers, "route", NETWORK).expect({"layers": f"-1,{numbers[len(reduced)]}"})
        reduced.append(channels)
        scales.append(_take_scale(layers))
        yolos.append(take(layers, "yolo", NETWORK))
    take(layers, "end", NETWORK)
    first = yolos[0]
    classes, count = first.integer("classes"), first.integer("num")
    anchors, masks = pairs_of(first, count), []
    for yolo, (_, last) in zip(yolos, scales):
        yolo.expect(YOLO, YOLO_FREE)
        for key in SHARED:
            if yolo.options.get(key) != first.options.get(key):
                raise UserError(f"{yolo.origin}: {key}={yolo.options.get(key)}, but {first.options.get(key)} before")
        masks.append(_mask(yolo, count))
        outputs = len(masks[-1]) * (5 + classes)
        if last.integer("filters") != outputs:
            needs = f"but [yolo] needs {outputs}: numbers in mask * (5 + classes)"
            raise UserError(f"{last.origin}: filters={last.integer('filters')}, {needs}")
    config = YOLOv3Config(
        backbone=BackboneConfig(name),
        size=size,
        train_sizes=[320, 608] if yolos[-1].integer("random") else [],
        features=[f"c{number}" for number in range(COARSEST + 1 - len(scales), COARSEST + 1)],
        pool=pool,
        convolutions=[convolutions for convolutions, _ in scales],
        reduced=reduced,
        anchors=anchors,
        masks=masks,
        ignore_iou=first.number("ignore_thresh"),
    )
    return config, classes


def _halves(layer: Layer) -> bool:
    return layer == "maxpool" or (isinstance(layer, tuple) and layer[2] == 2)


def _take_scale(layers: list[Section]) -> tuple[list[list[int]], Section]:
    """Remove a scale's layers in front of [yolo]: its convolutions, and the linear one."""
    origin, convolutions = layers[0].origin, take_convolutions(layers)
    if not convolutions:
        raise UserError(f"{origin}: [{layers[0].name}], where {NETWORK} has [convolutional] with activation=leaky")
    return convolutions, take_linear(layers, NETWORK)


def _mask(section: Section, count: int) -> list[int]:
    """Return the numbers of a yolo layer's anchors; all where it names none."""
    text = section.options.get("mask", ",".join(map(str, range(count))))
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) < count for part in parts) or len(set(parts)) < len(parts):
        raise UserError(f"{section.origin}: mask={text} are not different numbers from 0 to {count - 1}")
    return [int(part) for part in parts]
