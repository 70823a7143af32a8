"""Region proposal network (Ren et al., NIPS 2015): Faster R-CNN, section 3.1."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from detkit.ops import BoxCoder, clip, nms
from detkit.structures import Proposals

CODER = BoxCoder((1.0, 1.0, 1.0, 1.0))  # section 3.1.2, equation 2: deltas are not scaled


class RPNHead(nn.Module):
    """A 3x3 convolution, then for each anchor of a cell one logit (object or not) and four deltas (section 3.1).

    One head serves all maps of a pyramid. Weights are drawn from N(0, .01). depth: how many 3x3 convolutions; the
    paper has one, Li et al. (2021, Benchmarking Detection Transfer Learning, section 3) two.
    """

    def __init__(self, channels: int, width: int, anchors: int, depth: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, padding=1)
        self.deeper = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(depth - 1))
        self.objectness = nn.Conv2d(width, anchors, 1)
        self.deltas = nn.Conv2d(width, anchors * 4, 1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.zeros_(layer.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, maps: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Maps (B, C, H, W) -> for each, logits (B, H * W * A) and deltas (B, H * W * A, 4), cell by cell."""
        logits, deltas = [], []
        for x in maps:
            x = self.conv(x).relu_()
            for layer in self.deeper:
                x = layer(x).relu_()
            logits.append(self.objectness(x).permute(0, 2, 3, 1).flatten(1))
            deltas.append(self.deltas(x).permute(0, 2, 3, 1).reshape(x.shape[0], -1, 4))
        return logits, deltas


class RPNCandidates(NamedTuple):
    """Boxes of the RPN before suppression.

    boxes: (B, K, 4), clipped. logits, levels: (B, K), levels the number of the map that each box is from. valid: (B, K)
    bool, True for those that are large enough.
    """

    boxes: Tensor
    logits: Tensor
    levels: Tensor
    valid: Tensor


@torch.no_grad()
def rpn_candidates(
    logits: list[Tensor],
    deltas: list[Tensor],
    anchors: list[Tensor],
    sizes: Tensor,
    min_size: Tensor,
    pre_nms_top_n: int,
) -> RPNCandidates:
    """Return the best `pre_nms_top_n` boxes of each map; arguments as in `propose`."""
    boxes, scores, levels = [], [], []
    for level, (score, delta, refs) in enumerate(zip(logits, deltas, anchors)):  # over maps
        score, index = score.float().topk(min(pre_nms_top_n, score.shape[1]), dim=1)
        delta = delta.float().gather(1, index.unsqueeze(-1).expand(-1, -1, 4))
        boxes.append(clip(CODER.decode(delta, refs[index]), sizes))
        scores.append(score)
        levels.append(torch.full_like(index, level))
    box = torch.cat(boxes, 1)
    large = ((box[..., 2:] - box[..., :2]) >= min_size.view(-1, 1, 1)).all(-1)
    return RPNCandidates(box, torch.cat(scores, 1), torch.cat(levels, 1), large)


@torch.no_grad()
def propose(
    logits: list[Tensor],
    deltas: list[Tensor],
    anchors: list[Tensor],
    sizes: Tensor,
    min_size: Tensor,
    *,
    pre_nms_top_n: int,
    post_nms_top_n: int,
    nms_iou: float = 0.7,
) -> Proposals:
    """Return `post_nms_top_n` proposals an image, best first, with their probability of being an object (section 3.3).

    One entry a map: logits (B, A), deltas (B, A, 4), anchors (A, 4). sizes: (B, 2), height and width of each image.
    min_size: (B,), pixels that both sides of a proposal have. Boxes are clipped, the best
    `pre_nms_top_n` of each map are suppressed at `nms_iou` among themselves, and the best `post_nms_top_n` of all maps
    stay. Proposals carry no gradient.
    """
    box, score, level, large = rpn_candidates(logits, deltas, anchors, sizes, min_size, pre_nms_top_n)
    index = nms(box, score, level, iou=nms_iou, top_k=pre_nms_top_n, max_out=post_nms_top_n, valid=large)
    there = index >= 0
    chosen = box.gather(1, index.clamp(min=0).unsqueeze(-1).expand(-1, -1, 4))
    return Proposals(chosen * there.unsqueeze(-1), there, score.gather(1, index.clamp(min=0)).sigmoid() * there)
