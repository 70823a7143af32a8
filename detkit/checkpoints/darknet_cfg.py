"""darknet's cfg files: their sections, and what networks of several kinds have in common."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from detkit.backbones.darknet import Stages
from detkit.errors import UserError

Layer = tuple[int, int, int] | str  # channels, kernel and stride of a convolution, or another layer's name
POOL = {"size": "2", "stride": "2"}
SHORTCUT = {"from": "-3", "activation": "linear"}
# a cfg's words for what detkit's layers always are; what a section leaves out is darknet's default
CONVOLUTION = {"pad": "1", "activation": "leaky"}
DEFAULTS = {
    "activation": "logistic",
    "probability": ".5",
    "side": "7",
    "thresh": ".5",
    "layers": "none",
    "from": "none",
    "ignore_thresh": ".5",
    "truth_thresh": "1",
    **dict.fromkeys(("batch_normalize", "pad", "softmax", "sqrt", "rescore", "bias_match", "absolute", "random"), "0"),
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


def read_sections(text: str, source: str) -> list[Section]:
    sections: list[Section] = []
    for number, line in enumerate(text.splitlines(), 1):
        origin, line = f"{source} line {number}", line.strip()
        if not line or line[0] in "#;":
            continue
        if line.startswith("[") and line.endswith("]"):
            sections.append(Section(line[1:-1].strip(), {}, origin))
        elif "=" in line and sections:
            key, _, value = line.partition("=")
            sections[-1].options[key.strip()] = ",".join(part.strip() for part in value.split(","))
        else:
            raise UserError(f"{origin}: {line!r} is neither a [section] nor key=value in one")
    return sections


def convolution_of(section: Section, norm: str) -> tuple[int, int, int]:
    """Channels, kernel and stride of a [convolutional]; norm: its batch_normalize."""
    section.expect({"batch_normalize": norm, **CONVOLUTION}, ["filters", "size", "stride"])
    return section.integer("filters"), section.integer("size"), section.integer("stride")


def take(layers: list[Section], name: str, network: str) -> Section:
    """Remove the first section; UserError where it has another name. network: what has one of this name there."""
    if layers[0].name != name:
        raise UserError(f"{layers[0].origin}: [{layers[0].name}], where {network} has [{name}]")
    return layers.pop(0)


def take_convolutions(layers: list[Section]) -> list[list[int]]:
    """Remove the convolutions at the front but for a linear one, all with batch norm; return [channels, kernel, stride]
    of each."""
    taken = []
    while layers[0].name == "convolutional" and layers[0].options.get("activation") != "linear":
        taken.append(list(convolution_of(layers.pop(0), "1")))
    return taken


def take_linear(layers: list[Section], network: str) -> Section:
    """Remove the 1x1 convolution without batch norm and rectifier that gives the raw outputs."""
    last = take(layers, "convolutional", network)
    last.expect({"size": "1", "stride": "1", "activation": "linear", "batch_normalize": "0"}, ["filters", "pad"])
    return last


def pairs_of(section: Section, count: int) -> list[list[float]]:
    """Return the anchors of a section, `count` pairs of numbers."""
    try:
        numbers = [float(number) for number in section.options.get("anchors", "").split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != 2 * count or min(numbers) <= 0:
        text = f"anchors={section.options.get('anchors')} are not {2 * count} numbers above 0"
        raise UserError(f"{section.origin}: {text}")
    return [list(pair) for pair in zip(numbers[::2], numbers[1::2])]


def pooled(stages: Stages) -> list[Layer]:
    """Return the layers of stages between which there are pools."""
    return [layer for number, stage in enumerate(stages) for layer in (*["maxpool"] * (number > 0), *stage)]


def take_backbone(layers: list[Section], norm: str, backbones: Mapping[str, Sequence[Layer]]) -> str:
    """Remove the layers of a darknet backbone from the front of `layers`; return its name."""
    furthest = 0
    for name, expected in backbones.items():
        for number, (section, layer) in enumerate(zip(layers, expected)):
            furthest = max(furthest, number)
            if section.name != (layer if isinstance(layer, str) else "convolutional"):
                break
            if layer == "maxpool":
                section.expect(POOL)
            elif layer == "shortcut":
                section.expect({key: value for key, value in SHORTCUT.items() if key in ("from", *section.options)})
            elif convolution_of(section, norm) != layer:
                break
        else:
            if len(layers) > len(expected):
                del layers[: len(expected)]
                return name
    raise UserError(
        f"{layers[furthest].origin}: [{layers[furthest].name}] with which no backbone goes on; "
        f"read are the layers of {' and '.join(backbones)}, then those of the detector's head"
    )
