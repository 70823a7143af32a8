"""The sections of the page: the first layer, where the network looks, and each layer with its units."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from detkit.data.dataset import DetectionDataset
from detkit.errors import UserError
from detkit.explain.canvas import HEAT, Key, Panel, Section
from detkit.inside.curves import curve_picture
from detkit.inside.deconvnet import check_deconvnet, deconvnet
from detkit.inside.fields import Field, effective_field, receptive_fields, share_of_field
from detkit.inside.grad_cam import grad_cam
from detkit.inside.guided import guided_backpropagation
from detkit.inside.invariance import invariance
from detkit.inside.maximise import maximise
from detkit.inside.network import Network
from detkit.inside.occlusion import occlusion
from detkit.inside.pictures import (
    Picture,
    as_picture,
    coloured,
    filters_picture,
    heat_over,
    maps_picture,
    resized,
    tiled,
)
from detkit.inside.saliency import saliency
from detkit.inside.scores import Asked, class_score, detection_scores, place_scores
from detkit.inside.strongest import Best
from detkit.inside.untrained import similarity, untrained

LAYERS = 4  # of a page, where none is named
UNITS = 4  # of a layer
MAPS = 16  # of a layer and image
TILE = 96  # pixels a side


@dataclass(frozen=True)
class Wanted:
    """What a page shows.

    images: (name, (H, W, 3) uint8), at least one. layers, unit: None for a choice. detection: number of one, from 1.
    of_class: of a classifier, None for the best. dataset, best: where the strongest patches come from.
    """

    images: Sequence[tuple[str, Picture]]
    layers: Sequence[str]
    unit: int | None = None
    detection: int = 1
    of_class: str | None = None
    dataset: DetectionDataset | None = None
    best: dict[str, Best] | None = None


def shown_layers(network: Network) -> list[str]:
    """The layers of a page where none is named: the first, the last, and some between them."""
    along = network.layers
    own = len(network.classes) if network.detector is None else 0
    along = [name for name in along if network.shapes[name][0] != own]
    index = np.linspace(0, len(along) - 1, min(LAYERS, len(along))).round().astype(int)
    return [along[place] for place in dict.fromkeys(index.tolist())]


def draw_sections(
    network: Network, wanted: Wanted, progress: Callable[[str, int, int], None] = lambda text, done, total: None
) -> list[Section]:
    """Return the sections of the page, see `Section`; progress: is told a text, the parts done and all."""
    layers = [*wanted.layers]
    fields = receptive_fields(network, layers)
    inputs = [network.pixels(image) for _, image in wanted.images]
    tasks: list[Callable[[], list[Section]]] = [lambda: _first_layer(network)]
    tasks += [lambda number=number: _looks(network, wanted, number) for number in range(len(wanted.images))]
    tasks += [lambda name=name: _layer(network, wanted, name, fields[name], inputs) for name in layers]
    tasks.append(lambda: _invariance(network, inputs[0], layers))
    sections = []
    for done, task in enumerate(tasks, 1):
        sections += task()
        progress("pictures", done, len(tasks))
    return sections


def _first_layer(network: Network) -> list[Section]:
    first = next((one for one in network.body.modules() if isinstance(one, nn.Conv2d)), None)
    if first is None or first.in_channels != 3:
        return []
    count, side = first.out_channels, first.kernel_size
    lengths = first.weight.flatten(1).norm(dim=1)
    weak = int((lengths < 0.1 * lengths.max()).sum())
    text = (
        f"The {count} filters of {side[1]} x {side[0]} pixels, stride {first.stride[0]}, that the network begins with, "
        "in grey where a weight is 0; "
        f"{weak or 'none'} shorter than a tenth of the longest, which would be as good as dead."
    )
    if not network.trained:
        text += " No weights were loaded: they are as initialised."
    picture = filters_picture(first.weight, max(8 * side[0], 32), 16 if count > 48 else 8)
    return [Section("filters", "First-layer filters", text, [Panel(picture, f"{count} filters")])]


def _looks(network: Network, wanted: Wanted, number: int) -> list[Section]:
    """Where the network looks in one image: for its class, or a detection and its box."""
    name, image = wanted.images[number]
    bare = untrained(network)
    if network.detector is None and not network.classes:
        return []
    if network.detector is None:
        asked, sides = class_score(network, image, wanted.of_class), []
        other = class_score(bare, image)  # the same class may be silent there
        subject = f"the score of the class {asked.title}"
    else:
        (asked, *sides), found = detection_scores(network, image, wanted.detection)
        row, label = int(found.source[wanted.detection - 1]), int(found.labels[wanted.detection - 1])
        other = place_scores(bare, image, row, label, asked.title)[0]  # the same place or region
        subject = f"the score of detection {asked.title} (before NMS)"
    panels = [_heat("saliency", saliency(asked), saliency(other), asked)]
    notes = []
    try:
        own, bares = guided_backpropagation(network, asked), guided_backpropagation(bare, other)
        caption = f"guided backpropagation; untrained {_text(similarity(own, bares))}"
        panels.append(Panel(_stretched(coloured(own), image), caption))
    except UserError as error:
        notes.append(f"Not shown: {error}.")
    heat, layer = grad_cam(network, asked)
    panels.append(_heat(f"Grad-CAM at {layer}", heat, grad_cam(bare, other, layer)[0], asked))
    panels.append(Panel(heat_over(image, occlusion(network, asked), asked.box), "occlusion: where a grey square hurts"))
    panels += [
        Panel(heat_over(image, saliency(one), one.box), f"saliency of the {one.title.split(': ')[1]}") for one in sides
    ]
    text = (
        f"What {subject} depends on in {name}. The number behind “untrained” is the rank correlation with the map of "
        f"the same network with random weights: near 1, and the map says nothing of what was learned. {' '.join(notes)}"
    )
    title = f"Where it looks: {asked.title}" + (f", {name}" if len(wanted.images) > 1 else "")
    return [
        Section(f"look-{number + 1}", title, text.strip(), panels, [Key(HEAT, "fill", "what the number depends on")])
    ]


def _heat(what: str, heat: Tensor, bare: Tensor, asked: Asked) -> Panel:
    return Panel(heat_over(asked.image, heat, asked.box), f"{what}; untrained {_text(similarity(heat, bare))}")


def _text(value: float) -> str:
    return f"{value:.2f}" if value == value else "–"


def _short(value: float) -> str:
    """A unit's value, to three digits."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _stretched(picture: Picture, image: Picture) -> Picture:
    height, width = image.shape[:2]
    factor = 560 / max(height, width)
    return resized(picture, round(width * factor), round(height * factor))


def _layer(network: Network, wanted: Wanted, name: str, field: Field, inputs: Sequence[Tensor]) -> list[Section]:
    maps = [network.record(pixels, [name])[name][0] for pixels in inputs]
    units, rows, columns = maps[0].shape
    strength = maps[0].flatten(1).amax(1)
    best = None if wanted.best is None else wanted.best[name]
    if best is not None:  # beside what each unit responds to at most
        strength = strength.cpu() / best.values[:, 0].clamp(min=1e-9)
    shown = [wanted.unit] if wanted.unit is not None else strength.argsort(descending=True)[:UNITS].tolist()
    panels = [_maps(one, label) for one, (label, _) in zip(maps, wanted.images)] if rows * columns > 1 else []
    if rows * columns > 1:
        weights = effective_field(network, name, inputs[:1])
        panels.append(_field(field, (rows, columns), weights, wanted.images[0][1]))
    notes, projected = "", True
    try:
        check_deconvnet(network)
    except UserError as error:
        projected, notes = False, f"Not shown: {error}."
    for unit in shown:
        if best is not None:
            panels += _patches(network, wanted, name, unit, field, best, projected)
        elif projected:
            panels.append(_projection(network, name, unit, field, inputs[0], maps[0][unit]))
    learned, values = maximise(network, name, shown, field)
    panels += [
        Panel(
            resized(as_picture(image), 288, round(288 * image.shape[-2] / image.shape[-1])),
            f"unit {unit}: what it can learn, value {_short(value)}",
        )
        for unit, image, value in zip(shown, learned, values.tolist())
    ]
    size = "the whole image" if np.isinf(field.size).any() else f"{field.size[1]:g} x {field.size[0]:g} pixels"
    text = (
        f"{units} units of {columns} x {rows} cells, {field.stride[1]:g} pixels apart; each cell sees {size} of the "
        f"input's {inputs[0].shape[-1]} x {inputs[0].shape[-2]}. "
    )
    if wanted.unit is None:
        measure = ", as a share of their largest value in the data set" if best is not None else ""
        text += f"Shown are the units that respond most to {wanted.images[0][0]}{measure}. "
    return [Section(f"layer-{name.replace('.', '-')}", f"Layer {name}", (text + notes).strip(), panels)]


def _maps(maps: Tensor, label: str) -> Panel:
    order = maps.flatten(1).amax(1).argsort(descending=True)[:MAPS]
    first = ", ".join(map(str, order[:4].tolist()))
    caption = f"maps of {label}: the {len(order)} of the largest values, units {first}, ..."
    return Panel(maps_picture(maps[order], TILE, 4), caption)


def _field(field: Field, cells: tuple[int, int], weights: np.ndarray, image: Picture) -> Panel:
    """The true field of the middle one of (rows, columns) of cells, outlined, and the effective one as heat."""
    rows, columns = cells
    box = field.box((rows // 2, columns // 2), weights.shape)
    # from pixels of the input to those of the image
    box = box * np.tile(np.array(image.shape[1::-1]) / np.array(weights.shape[::-1]), 2)
    picture = heat_over(image, torch.from_numpy(weights).sqrt(), box)
    share = share_of_field(weights, field)
    return Panel(picture, f"receptive field: true, outlined; {share:.0%} of it has 95% of the effective one")


def _projection(network: Network, name: str, unit: int, field: Field, pixels: Tensor, values: Tensor) -> Panel:
    """What the deconvnet projects of the unit's largest value in an image."""
    cell = divmod(int(values.argmax()), values.shape[1])
    picture = coloured(_within(deconvnet(network, name, pixels, unit, [cell]), field, cell))
    height = round(288 * picture.shape[0] / picture.shape[1])
    return Panel(resized(picture, 288, height), f"unit {unit}: what the deconvnet projects of its largest value here")


def _within(pixels: Tensor, field: Field, cell: Sequence[int]) -> Tensor:
    """The part (3, ...) of (1, 3, h, w) that a cell sees."""
    left, top, right, bottom = field.box(cell, pixels.shape[-2:]).round().astype(int).tolist()
    return pixels[0, :, top:bottom, left:right]


def _patches(
    network: Network, wanted: Wanted, name: str, unit: int, field: Field, best: Best, projected: bool
) -> list[Panel]:
    """The nine strongest patches of a unit, and beside them what the deconvnet projects of each."""
    assert wanted.dataset is not None
    alive = (best.values[unit] > 0) & (best.images[unit] >= 0)
    images, cells = best.images[unit][alive].tolist(), best.cells[unit][alive].tolist()
    if not images:
        return [Panel(np.full((TILE, TILE, 3), 40, np.uint8), f"unit {unit}: responds to no image")]
    patches, projections = [], []
    for index, cell in zip(images, cells):
        pixels = network.pixels(wanted.dataset.image(index))
        patches.append(as_picture(_within(pixels, field, cell)))
        if projected:
            projections.append(coloured(_within(deconvnet(network, name, pixels, unit, [cell]), field, cell)))
    high, low = best.values[unit][alive][[0, -1]].tolist()
    panels = [Panel(tiled(patches, TILE, 3), f"unit {unit}: strongest patches, {_short(high)} to {_short(low)}")]
    if projected:
        panels.append(Panel(tiled(projections, TILE, 3), f"unit {unit}: what the deconvnet projects of them"))
    return panels


def _invariance(network: Network, pixels: Tensor, layers: Sequence[str]) -> list[Section]:
    ends = [*dict.fromkeys((layers[0], layers[-1]))]
    panels = [Panel(curve_picture(curve), curve.change) for curve in invariance(network, pixels, ends)]
    text = (
        f"How far the features of {' and '.join(ends)} move, as a share of their length, when the first image is "
        "shifted, enlarged and turned."
    )
    return [Section("invariance", "Invariance", text, panels)]
