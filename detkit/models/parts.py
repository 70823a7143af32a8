"""The networks of a detector that become files for other programs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkit.errors import UserError
from detkit.ops import BoxCoder
from detkit.ops.coders import MAX_LOG_SCALE
from detkit.structures import InputSpec

SEED = 0


class PartInput(NamedTuple):
    """What a network takes.

    example: the input that it is traced with. probe: one of another size, that outputs are compared on. axes: names of
    the dimensions that may vary. text: what it is, for people.
    """

    example: Tensor
    probe: Tensor
    axes: dict[int, str]
    text: str


class Function(nn.Module):
    """A function of a module's weights as a network: torch exports nothing else."""

    def __init__(self, owner: nn.Module, function: Callable[..., Any]) -> None:
        super().__init__()
        self.owner, self.forward = owner, function  # so that the inputs have the names of the function's arguments


@dataclass(frozen=True)
class ExportPart:
    """One network that becomes a file.

    inputs: by the names of the network's arguments. outputs: what they are, by name, in their order. facts: what else
    it takes to go on from the outputs, for the file's metadata. run: how detkit runs the file, where that is not as the
    detector has it.
    """

    network: nn.Module
    inputs: Mapping[str, PartInput]
    outputs: Mapping[str, str]
    facts: dict[str, Any] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)


class PartRun(Protocol):
    """An ExportPart that runs elsewhere: takes its inputs by name, returns its outputs in their order."""

    def __call__(self, **inputs: Tensor) -> Sequence[Tensor]: ...


def stretched_images(spec: InputSpec) -> dict[str, PartInput]:
    """Return the input of a network that takes images of one size."""
    height, width = spec.size
    text = f"(batch, 3, {height}, {width}) uint8, RGB images, each stretched to this size"
    example, probe = (_pixels(batch, height, width) for batch in (2, 3))
    return {"pixels": PartInput(example, probe, {0: "batch"}, text)}


def letterboxed_images(spec: InputSpec) -> dict[str, PartInput]:
    """Return the inputs of a network that takes images of any aspect ratio, padded to one size, and their sizes."""
    height, width = spec.size
    text = f"(batch, 3, {height}, {width}) uint8, RGB images, resized to fit, at the upper left, padded with anything"
    example, probe = (_pixels(batch, height, width) for batch in (2, 3))
    sizes = torch.tensor([spec.fit(*sides) for sides in ((3, 4), (4, 3), (1, 1))])
    return {
        "pixels": PartInput(example, probe, {0: "batch"}, text),
        "sizes": PartInput(sizes[:2], sizes, {0: "batch"}, "(batch, 2) int64, height and width of each image"),
    }


def pad_to_canvas(pixels: Tensor, spec: InputSpec) -> Tensor:
    """Pad a batch (B, 3, H, W) at the right and bottom to the size of `letterboxed_images`; UserError if larger."""
    height, width = (canvas - side for canvas, side in zip(spec.size, pixels.shape[-2:]))
    if min(height, width) < 0:
        raise UserError(f"images of {pixels.shape[-1]}x{pixels.shape[-2]}, but the exported network takes {spec}")
    return F.pad(pixels, (0, width, 0, height))


def resized_images(spec: InputSpec) -> dict[str, PartInput]:
    """Return the inputs of a network that takes images of any size, padded to one, and their sizes."""
    # where the detector, and so whoever runs the file, rescales images, values are no whole numbers
    dtype, kind = (torch.uint8, "uint8") if spec.resize == "shortest" else (torch.float32, "float32")
    # a map of a single cell would be one in the file, whatever the image: large enough that RetinaNet's P7 has more
    height, width = (max(sides) for sides in zip(spec.fit(300, 400), (300, 400)))
    shapes = (2, height, width), (1, width, height)
    example, probe = (_pixels(*shape).to(dtype) for shape in shapes)
    sizes = [torch.tensor([sides] * batch) for batch, *sides in shapes]
    sizes[1] -= torch.tensor([0, 5])  # a padded image, too
    axes = {0: "batch", 2: "height", 3: "width"}
    text = f"(batch, 3, height, width) {kind}, RGB images, 0 to 255, at the upper left, padded with anything"
    return {
        "pixels": PartInput(example, probe, axes, text),
        "sizes": PartInput(sizes[0], sizes[1], {0: "batch"}, "(batch, 2) int64, height and width of each image"),
    }


def regions_input(shape: tuple[int, ...], text: str, scale: float = 1.0) -> PartInput:
    """Return the input of a network that takes what was pooled or cut out of regions, (regions, *shape)."""
    example, probe = (torch.rand(count, *shape, generator=_random()) * scale for count in (2, 5))
    return PartInput(example, probe, {0: "regions"}, f"(regions, {', '.join(map(str, shape))}) float32, {text}")


def coder_facts(coder: BoxCoder) -> dict[str, Any]:
    """Return what decodes a box: weights of the deltas (dx, dy, dw, dh), and the largest logarithm of dw and dh."""
    return {"weights": coder.weights, "largest": MAX_LOG_SCALE}


def _pixels(batch: int, height: int, width: int) -> Tensor:
    return torch.randint(256, (batch, 3, height, width), generator=_random(), dtype=torch.uint8)


def _random() -> torch.Generator:
    return torch.Generator().manual_seed(SEED)
