"""The gradient of RoIAlign on a CPU, as matrix products: torchvision's kernel adds up sample after sample."""

from typing import Any

import torch
from torch import Tensor

# Of a map. The products grow with it, the kernel's sums don't: at 27 x 27 cells they take a fifth of the kernel's time,
# at 50 x 50 nearly as long.
MOST_CELLS = 2500


def pays(features: Tensor, sampling: int) -> bool:
    """Whether the gradient of these features (B, C, H, W) will be asked for, and products give it sooner."""
    asked = torch.is_grad_enabled() and features.requires_grad and features.device.type == "cpu"
    return asked and sampling > 0 and features.shape[2] * features.shape[3] <= MOST_CELLS


class RoIAlignOnCPU(torch.autograd.Function):
    """torchvision's RoIAlign with a gradient of its own.

    A bilinear sample is a product of a row's weights and a column's, so a bin's mean is, too. With the weights
    (R, size, H) and (R, size, W) of R regions, the gradient of the map is rows' * gradient * columns.
    """

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, rois: Tensor, size: int, scale: float, sampling: int, aligned: bool
    ) -> Tensor:
        """features (B, C, H, W), rois (B * R, 5) in the order of the images -> (B * R, C, size, size)."""
        from torchvision.ops import roi_align  # as in roi.py

        ctx.save_for_backward(rois)
        layout = torch.channels_last if features.is_contiguous(memory_format=torch.channels_last) else None
        ctx.options = features.shape, layout or torch.contiguous_format, size, scale, sampling, aligned
        return roi_align(features, rois, size, scale, sampling, aligned)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (rois,) = ctx.saved_tensors
        shape, layout, size, scale, sampling, aligned = ctx.options
        images, channels, height, width = shape
        count = len(rois) // max(images, 1)
        low, high = (rois[:, 1:] * scale - (0.5 if aligned else 0.0)).split(2, -1)
        length = high - low if aligned else (high - low).clamp(min=1)
        columns = bin_weights(low[:, 0], length[:, 0], size, sampling, width).view(images, count, size, width)
        rows = bin_weights(low[:, 1], length[:, 1], size, sampling, height).view(images, count * size, height)
        gradient = grad_outputs[0].view(images, count, channels, size, size).transpose(2, 3)
        result = gradient.new_empty(shape).contiguous(memory_format=layout)
        # Backward runs within the autocast of the training step. An image at a time: `wide` is many times the map.
        with torch.autocast("cpu", enabled=False):
            for image in range(images):
                wide = gradient[image].reshape(count, size * channels, size) @ columns[image]
                tall = rows[image].T @ wide.view(count * size, channels * width)
                result[image] = tall.view(height, channels, width).transpose(0, 1)
        return result, None, None, None, None, None


def bin_weights(low: Tensor, length: Tensor, size: int, sampling: int, cells: int) -> Tensor:
    """Return (R, size, cells): what each cell of an axis weighs in the mean of each bin's samples.

    low, length: (R,), of the regions, in cells. A sample up to one cell off the map reads its border, one beyond reads
    zero (Mask R-CNN's code).
    """
    places = (torch.arange(size * sampling).to(low) + 0.5) / sampling
    places = low[:, None] + places * (length / size)[:, None]
    inside = ((places >= -1) & (places <= cells)).unsqueeze(-1)
    distance = (places.clamp(0, cells - 1).unsqueeze(-1) - torch.arange(cells).to(low)).abs()
    weights = (1 - distance).clamp(min=0) * inside
    return weights.view(-1, size, sampling, cells).mean(2)
