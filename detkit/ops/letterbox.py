"""Images of any aspect ratio on square canvases."""

import torch
from torch import Tensor


def letterbox(
    pixels: Tensor, sizes: Tensor, side: int, fill: Tensor, share: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Lay images (B, C, H, W) on canvases; return these (B, C, side, side), and where images begin (B, 2) int64, down
    and right.

    sizes: (B, 2) height and width of each image, which lies at the upper left, at most `side`. fill: (C, 1, 1), the
    canvas. share: (B, 2), 0 to 1, how much of the room is above and left of each image; None for half, rounded down.
    """
    room = side - sizes
    offset = room // 2 if share is None else (room * share).long()
    line = torch.arange(side, device=pixels.device)
    row, column = line - offset[:, :1], line - offset[:, 1:]
    inside = ((row >= 0) & (row < sizes[:, :1])).unsqueeze(2) & ((column >= 0) & (column < sizes[:, 1:])).unsqueeze(1)
    image = torch.arange(len(pixels), device=pixels.device).view(-1, 1, 1)
    row, column = row.clamp(0, pixels.shape[2] - 1), column.clamp(0, pixels.shape[3] - 1)
    canvas = pixels.permute(0, 2, 3, 1)[image, row.unsqueeze(2), column.unsqueeze(1)].permute(0, 3, 1, 2)
    return torch.where(inside.unsqueeze(1), canvas, fill.to(canvas.dtype)), offset
