"""What the dense detectors share: one pass of a network gives scores and boxes for fixed places of the image."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from detkit.backbones.describe import count_flops
from detkit.config import Section, within
from detkit.errors import UserError
from detkit.models.base import Detector, Flops
from detkit.models.parts import (
    ExportPart,
    Function,
    PartRun,
    letterboxed_images,
    pad_to_canvas,
    resized_images,
    stretched_images,
)
from detkit.models.shape_checks import output_of
from detkit.models.trace import AnchorStep, MapStep, SampleStep, Step, Trace
from detkit.ops import Match
from detkit.structures import Images, Predictions, Targets


@dataclass
class DenseConfig(Section):
    """What the dense detectors' configs share."""

    freeze_stages: int = within("[0, inf)", 0)
    """How many first layer groups of the backbone stay as they are."""
    freeze_norms: bool = False
    """Whether the backbone's batch norms stay as they are."""


class DenseDetector(Detector):
    """A detector in four parts: network, assign, loss, decode. Losses and predictions are these, one after the other.

    Raw, Assignment: whatever the network gives, and whatever `assign` gives; only the detector's own parts read them.
    assigns_before_network: whether `assign` reads no raw outputs. Then it comes first: its host syncs are short while
    nothing is queued on the GPU.
    single_cell_norm: whether a map of one cell goes through batch norm; a constructor sets it.
    """

    kind: ClassVar[str] = "dense"
    compiled: ClassVar[str | None] = "network"
    assigns_before_network: ClassVar[bool] = False
    single_cell_norm: bool = False

    def network(self, pixels: Tensor) -> Any:
        """Normalised images (B, 3, H, W) -> raw outputs, tensors or tuples of them: what is compiled and exported."""
        raise NotImplementedError(f"{type(self).__name__}.network")

    def assign(self, raw: Any, targets: Targets) -> Any:
        """Return which object each place learns. raw: None where `assigns_before_network`."""
        raise NotImplementedError(f"{type(self).__name__}.assign")

    def loss(self, raw: Any, assignment: Any, targets: Targets) -> dict[str, Tensor]:
        """Return named scalar losses, weighted."""
        raise NotImplementedError(f"{type(self).__name__}.loss")

    def decode(self, raw: Any) -> Predictions:
        """Raw outputs -> boxes in pixels of the input, and scores."""
        raise NotImplementedError(f"{type(self).__name__}.decode")

    def select(self, raw: Any) -> tuple[Any, Tensor | None]:
        """Return the raw outputs that are worth decoding, and (B, K) which places' they are; by default all, None."""
        return raw, None

    def compute(self, pixels: Tensor, sizes: Tensor | None) -> Any:
        """Pixels (B, 3, H, W), 0 to 255, and the images' sizes (B, 2) -> raw outputs."""
        return self.network(self.normalise(pixels, sizes))

    def losses(self, images: Images, targets: Targets) -> dict[str, Tensor]:
        self.check_batch(len(images))
        assignment = self.assign(None, targets) if self.assigns_before_network else None
        raw = self.compute(images.pixels, images.sizes)
        if not self.assigns_before_network:
            assignment = self.assign(raw, targets)
        return self.loss(raw, assignment, targets)

    def predict(self, images: Images) -> Predictions:
        selected, _ = self.select(self.compute(images.pixels, images.sizes))
        return self.decode(selected)

    def follow(self, images: Images, row: int) -> Callable[[Images], Predictions]:
        with torch.no_grad():
            _, index = self.select(self.compute(images.pixels, images.sizes))
        place = row if index is None else int(index[0, row])
        return lambda changed: self.decode(self.compute(changed.pixels, changed.sizes)).row(place)

    # what the constructors need

    def feature_maps(self, pixels: Tensor) -> list[Tensor]:
        """Normalised images -> the feature maps that the output is computed from, finest first."""
        raise NotImplementedError(f"{type(self).__name__}.feature_maps")

    def dry_run(self) -> list[int]:
        """Return the cells along a side of each of `feature_maps` so far, by a pass through the network."""
        maps = output_of(Function(self, self.feature_maps), 3, *self.input.size)
        sides = [x.shape[-1] for x in maps]
        if min(sides) < 1:
            raise UserError(f"model.size: {self.input.size[0]} pixels leave no cell of the backbone's map")
        return sides

    def check_batch(self, images: int) -> None:
        """Raise UserError where a batch norm in training would see a single value of each channel."""
        if self.training and images == 1 and self.single_cell_norm:
            raise UserError(
                "train.batch: one image a step (of a process and micro-batch) gives the batch norm of the single cell "
                "of the last map nothing to average; take 2 or more, or model.batch_norm=false"
            )

    # what it tells of itself

    def raw_outputs(self, images: Images) -> list[Tensor]:
        raw = self.compute(images.pixels, images.sizes)
        return [raw] if isinstance(raw, Tensor) else list(raw)

    def flops(self, height: int, width: int) -> Flops | None:
        device = next(self.parameters()).device
        size = self.input.fit(height, width)
        pixels, sizes = torch.empty(1, 3, *size, device=device), torch.tensor([size], device=device)
        return Flops(count_flops(lambda: self.compute(pixels, sizes)))

    def export_parts(self) -> dict[str, ExportPart]:
        outputs = {
            "boxes": "(batch, boxes, 4) float32, x1, y1, x2, y2 in pixels of the input, neither clipped nor suppressed",
            "scores": f"(batch, boxes, {len(self.classes)}) float32, of each class",
        }
        kinds = {"stretch": stretched_images, "letterbox": letterboxed_images}
        inputs = kinds.get(self.input.resize, resized_images)(self.input)
        return {"": ExportPart(Function(self, self.boxes_and_scores), inputs, outputs)}

    def boxes_and_scores(self, pixels: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Pixels (B, 3, H, W), 0 to 255 -> boxes and scores of all places, before NMS: what is exported.

        sizes: (B, 2) of images that are padded.
        """
        predictions = self.decode(self.compute(pixels, sizes))
        return predictions.boxes, predictions.scores

    def use_parts(self, parts: Mapping[str, PartRun]) -> None:
        def predict(images: Images) -> Predictions:
            sizes = {} if self.input.resize == "stretch" else {"sizes": images.sizes}
            pixels = pad_to_canvas(images.pixels, self.input) if self.input.resize == "letterbox" else images.pixels
            return Predictions(*parts[""](pixels=pixels, **sizes))

        self.predict = predict

    def anchor_step(self, raw: Any) -> AnchorStep | None:
        """Return the boxes that predictions are made for, in their order; None where there are no such boxes."""
        return None

    def sample_step(self, raw: Any, targets: Targets, level: Tensor) -> SampleStep | None:
        """Return which of the boxes of `anchor_step` training would learn objects from, for one image.

        level: (A,) the map of each box. By default those that `assign` matches, where it gives a Match.
        """
        match, anchors = self.assign(raw, targets), self.anchor_step(raw)
        if anchors is None or not isinstance(match, Match):
            return None
        positive = match.index[0] >= 0
        return SampleStep(
            torch.cat(anchors.boxes)[positive],
            match.index[0][positive],
            level=level[positive],
            name="matching",
            title="Matches to the objects (training)",
            text="What training would learn from this image ({levels}).",
            captions=("matched", "background"),
            legend=("matched to", "background"),
        )

    def trace(self, images: Images, targets: Targets | None = None) -> Trace:
        raw = self.compute(images.pixels, images.sizes)
        anchors = self.anchor_step(raw)
        if anchors is None:
            return Trace(self.decode(raw), [])
        maps = enumerate(anchors.boxes)
        level = torch.cat([torch.full((len(boxes),), number, device=boxes.device) for number, boxes in maps])
        learned = [] if targets is None else self.learned_steps(raw, targets, level)
        selected, index = self.select(raw)
        predicted = level if index is None else level[index[0]]
        return Trace(self.decode(selected), [anchors, *learned, MapStep(predicted, anchors.maps)])

    def learned_steps(self, raw: Any, targets: Targets, level: Tensor) -> list[Step]:
        """Return what training would learn, see `sample_step`."""
        sample = self.sample_step(raw, targets, level)
        return [] if sample is None else [sample]


def has_batch_norm(module: nn.Module) -> bool:
    """Whether a module contains batch norm: layers that are added to it then have it, too, by default."""
    return any(isinstance(layer, nn.BatchNorm2d) for layer in module.modules())
