"""YOLOv1 in the files of the authors' program darknet: NAME.cfg, the network, and NAME.weights beside it.

Read are cfgs of the kind of darknet's yolov1.cfg and yolov1-tiny.cfg: the layers of a darknet backbone, convolutions,
perhaps a locally connected layer and a dropout, connected layers, and the detection layer. What they say about training
is not taken over.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from detkit.backbones.darknet import YOLOV1, YOLOV1_TINY, Stages
from detkit.backbones.darknet_file import Header, read_weights, write_weights
from detkit.config import BackboneConfig, Config, DataConfig, DetectConfig, TrainConfig
from detkit.data.voc import VOC_CLASSES
from detkit.errors import UserError
from detkit.experiment import from_plain, to_plain
from detkit.files import read_text, write_atomic
from detkit.models import Detector, build_detector
from detkit.models.yolov1 import LOCAL_KERNEL, UNIT, YOLOv1Config

BACKBONES: dict[str, Stages] = {"darknet_yolov1": YOLOV1, "darknet_yolov1_tiny": YOLOV1_TINY}
POOL = {"size": "2", "stride": "2"}
# a cfg's words for what detkit's layers always are; what a section leaves out is darknet's default
CONVOLUTION = {"batch_normalize": "1", "pad": "1", "activation": "leaky"}
LOCAL = {"size": str(LOCAL_KERNEL), "stride": "1", "pad": "1", "activation": "leaky"}
DETECTION = {"coords": "4", "softmax": "0", "sqrt": "1", "rescore": "1", "object_scale": "1", "class_scale": "1"}
DEFAULTS = {
    "activation": "logistic",
    "probability": ".5",
    "side": "7",
    **dict.fromkeys(("batch_normalize", "pad", "softmax", "sqrt", "rescore"), "0"),
    **dict.fromkeys(("size", "stride", "filters", "output", "coords", "classes", "num"), "1"),
    **dict.fromkeys(("object_scale", "class_scale", "coord_scale", "noobject_scale"), "1"),
}


class Section(NamedTuple):
    """A `[name]` of a cfg and its options; origin: file and line, for errors."""

    name: str
    options: dict[str, str]
    origin: str

    def number(self, key: str) -> float:
        text = self.options.get(key, DEFAULTS[key])
        try:
            return float(text)
        except ValueError:
            raise UserError(f"{self.origin}: {key}={text} is not a number") from None

    def integer(self, key: str) -> int:
        value = self.number(key)
        if not value.is_integer():
            raise UserError(f"{self.origin}: {key}={self.options[key]} is not a whole number")
        return int(value)

    def expect(self, fixed: dict[str, str], free: Iterable[str] = ()) -> None:
        """Raise UserError where an option is not as in `fixed`, or in neither `fixed` nor `free`."""
        for key, expected in fixed.items():
            value = self.options.get(key, DEFAULTS[key])
            if value != expected and (not expected.isdecimal() or self.number(key) != float(expected)):
                raise UserError(f"{self.origin}: [{self.name}] with {key}={value}; only {key}={expected} is read")
        for key in self.options:
            if key not in fixed and key not in free:
                raise UserError(f"{self.origin}: [{self.name}] with {key}={self.options[key]}, which is not read")


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
    detect = DetectConfig(score_threshold=0.001, nms_iou=0.5)  # section 2.3
    config = Config(model, data, TrainConfig(iterations=1), detect)
    config = from_plain(to_plain(config), str(cfg), overrides)
    detector = build_detector(config.model, _classes(weights.with_suffix(".names"), count))
    state, _ = read_weights(weights, detector)
    detector.load_state_dict(state, strict=False)
    return detector, config


def save_darknet(detector: Detector, weights: str | Path, header: Header | None = None) -> None:
    """Write NAME.weights, NAME.cfg and NAME.names, which `load_darknet` and darknet read.

    header: of the weights' file, by default that of version 0.2. Raises UserError for a detector that darknet has no
    layers for.
    """
    weights = Path(weights)
    write_atomic(weights.with_suffix(".cfg"), write_cfg(detector))
    write_atomic(weights.with_suffix(".names"), "".join(f"{name}\n" for name in detector.classes))
    write_weights(weights, detector, header)


def parse_cfg(text: str, source: str) -> tuple[YOLOv1Config, int]:
    """Return the config and the number of classes that a cfg's text describes.

    source: the file, for errors. Raises UserError, naming file and line, for anything that YOLOv1Config can't say.
    """
    sections = [section for section in _sections(text, source) if section.name != "crop"]
    if not sections or sections[0].name not in ("net", "network"):
        raise UserError(f"{source}: a darknet cfg begins with [net]")
    net, *layers = sections
    sizes = [net.options.get(key, "missing") for key in ("height", "width", "channels")]
    if sizes[0] != sizes[1] or not sizes[0].isdecimal() or sizes[2] != "3":
        raise UserError(f"{net.origin}: height={sizes[0]}, width={sizes[1]}, channels={sizes[2]}; read are RGB squares")
    layers.append(Section("end", {}, source))
    name = _take_backbone(layers)
    config = YOLOv1Config(backbone=BackboneConfig(name), size=int(sizes[0]), convolutions=[], hidden=[], dropout=0.0)
    assert config.convolutions is not None
    while layers[0].name == "convolutional":
        config.convolutions.append(list(_convolution(layers.pop(0))))
    if layers[0].name == "local":
        local = layers.pop(0)
        local.expect(LOCAL, ["filters"])
        config.local = local.integer("filters")
    units: list[Section] = []
    while layers[0].name in ("connected", "dropout"):
        layer = layers.pop(0)
        if layer.name == "connected":
            last = layers[0].name not in ("connected", "dropout")
            layer.expect({"activation": "linear" if last else "leaky"}, ["output"])
            units.append(layer)
        else:
            layer.expect({}, ["probability"])
            config.dropout = layer.number("probability")
            if layers[0].name != "connected" or layers[1].name in ("connected", "dropout"):
                raise UserError(f"{layer.origin}: [dropout] is read before the last [connected] only")
    if not units or [layer.name for layer in layers] != ["detection", "end"]:
        raise UserError(f"{layers[0].origin}: [{layers[0].name}], where YOLOv1 has [connected] and then [detection]")
    detection = layers.pop(0)
    detection.expect(DETECTION, ["classes", "side", "num", "jitter", "noobject_scale", "coord_scale"])
    config.hidden = [layer.integer("output") for layer in units[:-1]]
    config.grid, config.boxes = detection.integer("side"), detection.integer("num")
    config.coord, config.noobj = detection.number("coord_scale"), detection.number("noobject_scale")
    classes = detection.integer("classes")
    outputs = config.grid**2 * (config.boxes * 5 + classes)
    if units[-1].integer("output") != outputs:
        raise UserError(
            f"{units[-1].origin}: output={units[-1].integer('output')}, but [detection] needs {outputs}: "
            "side * side * (num * 5 + classes)"
        )
    config.__post_init__()  # the checks of the values
    return config, classes


def write_cfg(detector: Detector) -> str:
    """Return the text of the cfg that describes a detector; UserError where darknet has no layers for it."""
    c = detector.config
    if not isinstance(c, YOLOv1Config):
        raise UserError(f"darknet's files hold a yolov1, not this {c.name}")
    if c.backbone.name not in BACKBONES or detector.feature != "c" + str(_depth(BACKBONES[c.backbone.name])):
        raise UserError(f"darknet's files hold all of {' or '.join(BACKBONES)}, not this {c.backbone.name}")
    if c.head != "fc" or c.batch_norm is False:
        raise UserError("darknet's files hold a YOLOv1 with model.head=fc and batch norm")
    if (tuple(detector.input.mean), tuple(detector.input.std)) != UNIT:
        raise UserError("darknet's files hold a YOLOv1 that sees RGB / 255: model.mean and model.std of 0 and 1")
    parts: list[tuple[str, dict[str, Any]]] = [("net", {"height": c.size, "width": c.size, "channels": 3})]
    for number, stage in enumerate(BACKBONES[c.backbone.name]):
        parts += [("maxpool", POOL)] * (number > 0)
        parts += [_convolution_options(*layer) for layer in stage]
    for conv in detector.get_submodule("convolutions").modules():
        if isinstance(conv, nn.Conv2d):
            parts.append(_convolution_options(conv.out_channels, conv.kernel_size[0], conv.stride[0]))
    if c.local:
        parts.append(("local", {**LOCAL, "filters": c.local}))
    parts += [("connected", {"output": units, "activation": "leaky"}) for units in c.hidden]
    if c.dropout:
        parts.append(("dropout", {"probability": c.dropout}))
    parts.append(("connected", {"output": detector.head.last.out_features, "activation": "linear"}))  # pyright: ignore
    scales = {"coord_scale": c.coord, "noobject_scale": c.noobj}
    shape = {"classes": len(detector.classes), "side": detector.grid, "num": c.boxes}
    parts.append(("detection", {**DETECTION, **shape, **scales}))
    return "\n".join(
        f"[{name}]\n" + "".join(f"{key}={value}\n" for key, value in options.items()) for name, options in parts
    )


def _sections(text: str, source: str) -> list[Section]:
    sections: list[Section] = []
    for number, line in enumerate(text.splitlines(), 1):
        origin, line = f"{source} line {number}", line.strip()
        if not line or line[0] in "#;":
            continue
        if line.startswith("[") and line.endswith("]"):
            sections.append(Section(line[1:-1].strip(), {}, origin))
        elif "=" in line and sections:
            key, _, value = line.partition("=")
            sections[-1].options[key.strip()] = value.strip()
        else:
            raise UserError(f"{origin}: {line!r} is neither a [section] nor key=value in one")
    return sections


def _convolution(section: Section) -> tuple[int, int, int]:
    """Channels, kernel and stride of a [convolutional]."""
    section.expect(CONVOLUTION, ["filters", "size", "stride"])
    return section.integer("filters"), section.integer("size"), section.integer("stride")


def _convolution_options(channels: int, kernel: int, stride: int) -> tuple[str, dict[str, Any]]:
    return "convolutional", {**CONVOLUTION, "filters": channels, "size": kernel, "stride": stride}


def _take_backbone(layers: list[Section]) -> str:
    """Remove the layers of a darknet backbone from the front of `layers`; return its name."""
    furthest = 0
    for name, stages in BACKBONES.items():
        expected = [layer for number, stage in enumerate(stages) for layer in (*[None] * (number > 0), *stage)]
        for number, (section, layer) in enumerate(zip(layers, expected)):
            furthest = max(furthest, number)
            if section.name != ("maxpool" if layer is None else "convolutional"):
                break
            if layer is None:
                section.expect(POOL)
            elif _convolution(section) != layer:
                break
        else:
            if len(layers) > len(expected):
                del layers[: len(expected)]
                return name
    raise UserError(
        f"{layers[furthest].origin}: [{layers[furthest].name}] with which no backbone goes on; "
        f"read are the layers of {' and '.join(BACKBONES)}, then those of YOLOv1's head"
    )


def _depth(stages: Stages) -> int:
    """The power of two that is the stride of the last map."""
    return sum(stride > 1 for stage in stages for _, _, stride in stage) + len(stages) - 1


def _classes(names: Path, count: int) -> tuple[str, ...]:
    if not names.is_file() and count == len(VOC_CLASSES):
        return VOC_CLASSES
    hint = f"; the cfg has {count} classes, whose names it holds, one a line"
    classes = tuple(line.strip() for line in read_text(names, hint).splitlines() if line.strip())
    if len(classes) != count:
        raise UserError(f"{names}: {len(classes)} classes, but {names.with_suffix('.cfg')} has {count}")
    return classes
