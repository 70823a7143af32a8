"""What the region detectors share that find their own proposals, with an RPN on the image's maps."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor

from detkit.backbones import FeatureInfo
from detkit.models.parts import ExportPart, PartRun, coder_facts
from detkit.models.region import RegionDetector
from detkit.models.rpn import CODER, RPN, RPNOutput
from detkit.models.trace import Step
from detkit.structures import Images, Predictions, Proposals, Targets


class RPNDetector(RegionDetector):
    """A region detector whose proposals are its own RPN's.

    map_info: the maps that the RPN reads. rpn_maps, pooled_maps: which of `backbone_maps` these are, and which regions
    are pooled from. pooled_names: of the latter, for export.
    """

    takes_proposals: ClassVar[bool] = False
    rpn: RPN
    map_info: Sequence[FeatureInfo]
    rpn_maps = slice(None)
    pooled_maps = slice(None)
    pooled_names: Sequence[str]

    def losses(self, images: Images, targets: Targets) -> dict[str, Tensor]:
        maps = self.features.prepare(images, self)
        output = self.rpn(maps[self.rpn_maps])
        losses = self.rpn.losses(output, images.sizes, targets)
        return losses | self.region_losses(maps, self.rpn.propose(output, images, self.training), targets)

    def propose(self, images: Images, prepared: list[Tensor]) -> Proposals:
        return self.rpn.propose(self.rpn(prepared[self.rpn_maps]), images, self.many_proposals)

    @property
    def many_proposals(self) -> bool:
        """Whether images get as many proposals as in training."""
        return self.training

    def propose_regions(self, images: Images) -> Proposals:
        return self.propose(images, self.features.prepare(images, self))

    def proposal_settings(self) -> dict[str, Any]:
        return {"size": list(self.config.size), **self.rpn.settings(self.many_proposals)}

    def limit_proposals(self, count: int) -> None:
        self.config.test_post_nms_top_n = count

    # what it tells of itself

    def raw_outputs(self, images: Images) -> list[Tensor]:
        maps = self.features.prepare(images, self)
        output = self.rpn(maps[self.rpn_maps])
        # any regions will do, and proposals need values, which a network on the meta device has not
        boxes = output.anchors[0][:5].expand(len(images), -1, -1)
        return [*output.logits, *output.deltas, *self.head(self.features.pool(maps, boxes))]

    def image_network(self, pixels: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        """Return logits, deltas and anchors of each map, then the maps that are pooled."""
        maps = self.maps(pixels, sizes)
        logits, deltas, anchors = self.rpn(maps[self.rpn_maps])
        return (*logits, *deltas, *anchors, *maps[self.pooled_maps])

    def export_image_parts(self) -> dict[str, ExportPart]:
        of_map = {
            "logits": "(batch, anchors) float32, object or not; a sigmoid makes it a score",
            "deltas": "(batch, anchors, 4) float32, from the anchors, see proposals",
            "anchors": "(anchors, 4) float32, x1, y1, x2, y2 in pixels of the input",
        }
        names = [info.name for info in self.map_info]
        outputs = {f"{kind}_{name}": text for kind, text in of_map.items() for name in names}
        for name in self.pooled_names:
            outputs[f"map_{name}"] = "(batch, channels, rows, columns) float32, pooled from, see pooling"
        proposals = {**self.rpn.settings(training=False), "deltas": coder_facts(CODER)}
        return {"-rpn": self.image_part(outputs, {"proposals": proposals, **self.features.facts()})}

    def use_parts(self, parts: Mapping[str, PartRun]) -> None:
        super().use_parts(parts)
        count = len(self.map_info)

        def predict(images: Images) -> Predictions:
            outputs = [*parts["-rpn"](pixels=images.pixels, sizes=images.sizes)]
            output = RPNOutput(*(outputs[kind * count : (kind + 1) * count] for kind in range(3)))
            proposals = self.rpn.propose(output, images, training=False)
            maps = outputs[3 * count :]
            return replace(self.predict_regions(maps, proposals), features=self.kept_features(images, maps))

        self.predict = predict

    def trace_proposals(
        self, images: Images, prepared: list[Tensor], targets: Targets | None
    ) -> tuple[Proposals, list[Step]]:
        output = self.rpn(prepared[self.rpn_maps])
        steps = self.rpn.trace(prepared[self.rpn_maps], output, images, targets, self.many_proposals)
        return self.rpn.propose(output, images, self.many_proposals), steps
