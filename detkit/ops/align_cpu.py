"""RoIAlign on a CPU as weighted sums of cells, each over all channels at once; torchvision's kernel takes channel by
channel.

A bin's mean of bilinear samples is a sum of a few cells' values, of weights that the region alone decides. Sums of
chosen rows of a table are what `embedding_bag` computes, and the gradient is another: of each cell, over the bins that
have read it.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

# a row of fewer numbers takes longer to find than to add
FEWEST_CHANNELS = 8


def suits(features: Tensor, sampling: int) -> bool:
    """Whether features (B, C, H, W) are pooled sooner so; not with `sampling` 0, of no fixed number."""
    return features.device.type == "cpu" and sampling > 0 and features.shape[1] >= FEWEST_CHANNELS


class RoIAlignOnCPU(torch.autograd.Function):
    """features (B, C, H, W), rois (K, 5) -> (K, C, size, size), with channels last in memory."""

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, rois: Tensor, size: int, scale: float, sampling: int, aligned: bool
    ) -> Tensor:
        _, channels, height, width = features.shape
        table = features.permute(0, 2, 3, 1).reshape(-1, channels).contiguous()
        cells, weights = bin_cells(rois, (height, width), size, scale, sampling, aligned)
        ctx.shape = features.shape
        ctx.last = features.is_contiguous(memory_format=torch.channels_last)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(cells, weights)
        bins = embedding_bag(cells, table, per_sample_weights=weights, mode="sum")
        return bins.view(len(rois), size, size, channels).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        cells, weights = ctx.saved_tensors
        images, channels, height, width = ctx.shape
        bins = grad_outputs[0].permute(0, 2, 3, 1).reshape(-1, channels).contiguous()
        count, order = images * height * width, cells.flatten().argsort(stable=True)
        ends = torch.bincount(cells.flatten(), minlength=count).cumsum(0)
        readers = (order // cells.shape[1]).to(cells.dtype)
        starts = torch.cat((ends.new_zeros(1), ends))[:count].to(cells.dtype)
        table = embedding_bag(readers, bins, starts, per_sample_weights=weights.flatten()[order], mode="sum")
        gradient = table.view(images, height, width, channels).permute(0, 3, 1, 2)
        return gradient if ctx.last else gradient.contiguous(), None, None, None, None, None


def bin_cells(
    rois: Tensor, shape: tuple[int, int], size: int, scale: float, sampling: int, aligned: bool
) -> tuple[Tensor, Tensor]:
    """Return the cells that each bin reads, (K * size ** 2, n) int32, counted over all images' maps, and their weights.

    rois: (K, 5). shape: rows and columns of a map. scale, sampling, aligned: as `ops.roi_align`; n = 4 * sampling ** 2.
    """
    low, high = (rois[:, 1:] * scale - (0.5 if aligned else 0.0)).split(2, -1)
    length = high - low if aligned else (high - low).clamp(min=1)
    column, across = _axis(low[:, 0], length[:, 0], size, sampling, shape[1])
    row, down = _axis(low[:, 1], length[:, 1], size, sampling, shape[0])
    row = (rois[:, :1].int() * shape[0]).unsqueeze(-1) + row
    cells = (row * shape[1])[:, :, None, :, None] + column[:, None, :, None, :]
    weights = down[:, :, None, :, None] * across[:, None, :, None, :]
    bins = len(rois) * size**2, 4 * sampling**2
    return cells.reshape(bins), weights.reshape(bins)


def _axis(low: Tensor, length: Tensor, size: int, sampling: int, cells: int) -> tuple[Tensor, Tensor]:
    """Along one axis, the cells that each bin reads and their weights, (K, size, 2 * sampling) each.

    A sample lies between two cells. Up to one cell off the map it reads the border, beyond it nothing (Mask R-CNN's
    code). low, length: (K,), of the regions, in cells.
    """
    side = (length / size)[:, None, None]
    number = torch.arange(size).to(low)[:, None]
    place = low[:, None, None] + number * side + (torch.arange(sampling).to(low) + 0.5) * side / sampling
    inside = ((place >= -1) & (place <= cells)).to(low) / sampling
    place = place.clamp(0, cells - 1)
    first = place.floor()
    second = (place - first) * inside
    cell = torch.stack((first, (first + 1).clamp(max=cells - 1)), -1).int()
    return cell.flatten(2), torch.stack((inside - second, second), -1).flatten(2)
