"""Region proposal network (Ren et al., NIPS 2015), Faster R-CNN, section 3.1: anchors, matching, sampling, losses,
proposals."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from detkit.backbones import FeatureInfo
from detkit.config import Section, one_of, within
from detkit.models.map_anchors import ANCHORS_OF_CELL, MapAnchors, sides_of
from detkit.models.trace import AnchorStep, ObjectnessStep, ProposalNMSStep, SampleStep, Step
from detkit.ops import (
    BACKGROUND,
    BoxCoder,
    Match,
    clip,
    gather_boxes,
    match_rpn,
    nms,
    rpn_loss,
    sample,
)
from detkit.structures import Images, Proposals, Targets

CODER = BoxCoder((1.0, 1.0, 1.0, 1.0))  # section 3.1.2, equation 2: deltas are not scaled


@dataclass
class RPNConfig(Section):
    """The region proposal network; the defaults are those of section 3.1 to 3.3, and of the authors' code."""

    anchors: str = "py_faster_rcnn"
    """How anchors are laid out: as `py_faster_rcnn` does, or as `torchvision`, see ops/anchors.py."""
    ratios: list[float] = within("(0, inf)", [0.5, 1.0, 2.0])
    """Height / width of the anchors."""
    scales: list[float] = within("(0, inf)", [8.0, 16.0, 32.0])
    """Sizes of the anchors, times the map's stride."""
    rpn_width: int = within("[1, 100000]", 512)
    """Channels of the RPN's convolution."""
    rpn_convs: int = within("[1, 100]", 1)
    """How many 3x3 convolutions the RPN has; Li et al. (2021, Benchmarking Detection Transfer Learning) have two."""
    allow_border: bool = False
    """Whether anchors that cross the image's border are trained on, as in FPN (section 5.1)."""
    rpn_fg_iou: float = within("[0, 1]", 0.7)
    """IoU with an object from which an anchor is positive."""
    rpn_bg_iou: float = within("[0, 1]", 0.3)
    """IoU below which an anchor is background."""
    rpn_batch_size_per_image: int = within("[1, inf)", 256)
    """Anchors of an image that training samples."""
    rpn_positive_fraction: float = within("[0, 1]", 0.5)
    """Of these, most that are positive."""
    rpn_nms_iou: float = within("[0, 1]", 0.7)
    """IoU above which the worse of two proposals goes."""
    pre_nms_top_n: int | None = within("[1, inf)", 12000)
    """Training: best candidates of each map that NMS looks at; null: all, as published for alternating training."""
    post_nms_top_n: int = within("[1, inf)", 2000)
    """Training: proposals of an image."""
    test_pre_nms_top_n: int = within("[1, inf)", 6000)
    """Testing: best candidates of each map that NMS looks at."""
    test_post_nms_top_n: int = within("[1, inf)", 300)
    """Testing: proposals of an image."""
    min_size: float = within("[0, inf)", 16.0)
    """Least side of a proposal, pixels of the original image."""

    def check_rpn(self) -> None:
        """Raise UserError for values that cannot be."""
        one_of("model.anchors", self.anchors, tuple(ANCHORS_OF_CELL))


class RPNOutput(NamedTuple):
    """One entry a map. logits: (B, A); deltas: (B, A, 4); anchors: (A, 4), all cell by cell."""

    logits: list[Tensor]
    deltas: list[Tensor]
    anchors: list[Tensor]


class RPN(nn.Module):
    """A 3x3 convolution, then for each anchor of a cell one logit (object or not) and four deltas (section 3.1).

    One network serves all maps of a pyramid. Weights are drawn from N(0, .01). offset: how many pixels the cells lie
    right of and below where `py_faster_rcnn` has its anchors.
    """

    def __init__(self, maps: Sequence[FeatureInfo], config: RPNConfig, offset: float = 0.0) -> None:
        super().__init__()
        self.config = config
        width, anchors = config.rpn_width, len(config.ratios) * len(config.scales)
        self.conv = nn.Conv2d(maps[0].channels, width, 3, padding=1)
        self.deeper = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(config.rpn_convs - 1))
        self.objectness = nn.Conv2d(width, anchors, 1)
        self.deltas = nn.Conv2d(width, anchors * 4, 1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.zeros_(layer.bias)  # pyright: ignore[reportArgumentType]
        self.anchors = MapAnchors(config.anchors, maps, config.ratios, [config.scales] * len(maps), offset)

    def forward(self, maps: list[Tensor]) -> RPNOutput:
        logits, deltas = [], []
        for x in maps:
            x = self.conv(x).relu_()
            for layer in self.deeper:
                x = layer(x).relu_()
            logits.append(self.objectness(x).permute(0, 2, 3, 1).flatten(1))
            deltas.append(self.deltas(x).permute(0, 2, 3, 1).reshape(x.shape[0], -1, 4))
        return RPNOutput(logits, deltas, self.anchors(sides_of(maps)))

    # training

    def match(self, anchors: Tensor, sizes: Tensor, targets: Targets) -> Match:
        """3.1.2: which object each anchor (A, 4) learns; sizes: (B, 2) of the images."""
        c = self.config
        inside = (anchors[:, :2] >= 0).all(-1) & (anchors[:, 2:] <= sizes.flip(-1).unsqueeze(1)).all(-1)
        inside |= c.allow_border
        objects = (targets.boxes, targets.valid, targets.ignore)
        return match_rpn(*objects, anchors, inside, c.rpn_fg_iou, c.rpn_bg_iou)

    def sample(self, match: Match) -> tuple[Tensor, Tensor]:
        """3.1.3: the anchors that training sees, see `ops.sample`."""
        c = self.config
        positive, negative = match.index >= 0, match.index == BACKGROUND
        return sample(positive, negative, c.rpn_batch_size_per_image, c.rpn_positive_fraction)

    def losses(self, output: RPNOutput, sizes: Tensor, targets: Targets) -> dict[str, Tensor]:
        """3.1.2, 3.1.3: the RPN learns from anchors inside the image."""
        anchors = torch.cat(output.anchors)
        match = self.match(anchors, sizes, targets)
        index, sampled = self.sample(match)
        logits, deltas = torch.cat(output.logits, 1), torch.cat(output.deltas, 1)
        return rpn_loss(logits, deltas, match, index, sampled, targets.boxes, anchors, CODER)

    # proposals

    def top_n(self, training: bool) -> tuple[int | None, int]:
        """Return pre_nms_top_n, None for all, and post_nms_top_n."""
        c = self.config
        return (c.pre_nms_top_n, c.post_nms_top_n) if training else (c.test_pre_nms_top_n, c.test_post_nms_top_n)

    def settings(self, training: bool) -> dict[str, Any]:
        """Return what proposals depend on beside the weights and the size of images."""
        pre_nms_top_n, post_nms_top_n = self.top_n(training)
        limits = {"pre_nms_top_n": pre_nms_top_n, "post_nms_top_n": post_nms_top_n}
        return {**limits, "nms_iou": self.config.rpn_nms_iou, "min_size": self.config.min_size}

    @torch.no_grad()
    def candidates(self, output: RPNOutput, images: Images, pre_nms_top_n: int | None) -> tuple[Tensor, ...]:
        """3.3: the best `pre_nms_top_n` boxes of each map, or all; of a single map, of those that are large enough.

        Returns boxes (B, K, 4), clipped; their logits (B, K); levels (B, K), the number of the map that each is from;
        and (B, K) bool, which of them are large enough.
        """
        # in pixels of the input (code)
        min_size = (self.config.min_size * (images.sizes / images.original).amin(1)).view(-1, 1, 1)
        parts = []
        for level, (logits, deltas, anchors) in enumerate(zip(*output)):  # over maps
            score, deltas = logits.float(), deltas.float()
            if len(output.logits) == 1:  # the authors' code drops small boxes first, that of FPN last
                score = score.where(is_large(clip(CODER.decode(deltas, anchors), images.sizes), min_size), -torch.inf)
            count = logits.shape[1] if pre_nms_top_n is None else min(pre_nms_top_n, logits.shape[1])
            score, index = score.topk(count, dim=1)
            boxes = clip(CODER.decode(gather_boxes(deltas, index), anchors[index]), images.sizes)
            parts.append((boxes, score, torch.full_like(index, level)))
        boxes, scores, levels = (torch.cat(part, 1) for part in zip(*parts))
        return boxes, scores, levels, is_large(boxes, min_size)

    @torch.no_grad()
    def propose(self, output: RPNOutput, images: Images, training: bool) -> Proposals:
        """Return `post_nms_top_n` proposals an image, best first, with their probability of being an object (3.3).

        Boxes are clipped, the best `pre_nms_top_n` of each map are suppressed among themselves, and the best
        `post_nms_top_n` of all maps stay. Proposals carry no gradient.
        """
        pre_nms_top_n, post_nms_top_n = self.top_n(training)
        boxes, logits, levels, large = self.candidates(output, images, pre_nms_top_n)
        limits = {"top_k": pre_nms_top_n or boxes.shape[1], "max_out": post_nms_top_n}
        index = nms(boxes, logits, levels, iou=self.config.rpn_nms_iou, **limits, valid=large)
        return Proposals(boxes, large, logits.sigmoid()).take(index)

    def trace(
        self, maps: list[Tensor], output: RPNOutput, images: Images, targets: Targets | None, training: bool
    ) -> list[Step]:
        """Return what the RPN did with one image."""
        shapes = self.anchors.shapes(sides_of(maps))
        trace: list[Step] = [AnchorStep(output.anchors, shapes, "anchors", "they may be larger than the image")]
        if targets is not None:
            trace.append(self.sample_step(torch.cat(output.anchors), images.sizes, targets))
        trace.append(ObjectnessStep([logits[0].float().sigmoid() for logits in output.logits], shapes))
        pre_nms_top_n, post_nms_top_n = self.top_n(training)
        *found, large = (part[0] for part in self.candidates(output, images, pre_nms_top_n))
        boxes, logits, levels = (part[large] for part in found)
        limits = (self.config.rpn_nms_iou, pre_nms_top_n or len(large), post_nms_top_n)
        return [*trace, ProposalNMSStep(boxes, logits, levels, *limits)]

    def sample_step(self, anchors: Tensor, sizes: Tensor, targets: Targets) -> SampleStep:
        """The anchors of one image that training would learn from."""
        match = self.match(anchors, sizes, targets)
        index, sampled = self.sample(match)
        rows = index[0][sampled[0]]
        return SampleStep(
            anchors[rows],
            match.index[0][rows],
            name="anchor-matching",
            title="Sampled anchors (training)",
            text="What the proposal network would learn from this image: {samples} anchors are sampled at random, "
            "{positive} that fit an object, the rest background. Anchors in between are left out.",
            legend=("anchor of", "background"),
        )


def is_large(boxes: Tensor, min_size: Tensor) -> Tensor:
    """Return (B, K) bool, whether both sides of boxes (B, K, 4) are at least `min_size` (B, 1, 1)."""
    return (boxes[..., 2:] - boxes[..., :2] >= min_size).all(-1)
