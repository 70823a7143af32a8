"""Features of overlapping classes, for the linear fits."""

import torch
from torch import Tensor

from detkit import ops


def problem(rows: int, dim: int, classes: int, signal: float = 0.3) -> tuple[Tensor, Tensor]:
    """Features like a network's (not negative, mean norm 20, all pointing much the same way), classes that overlap."""
    label = torch.randint(0, classes + 2, (rows,))
    means = torch.randn(classes + 2, dim) * signal
    features = (means[label] + torch.randn(rows, dim) - 0.3).relu_()
    features *= ops.feature_scale(features)
    label = torch.where(torch.rand(rows) < 0.1, torch.randint(0, classes + 2, (rows,)), label)
    return features, torch.where(label.unsqueeze(1) == torch.arange(classes), 1, -1)
