"""Sanity check (Adebayo et al., 2018): does a map say something of what was learned, or would any weights give it?"""

from copy import deepcopy
from dataclasses import replace

import torch
from scipy.stats import spearmanr
from torch import Tensor

from detkit.inside.network import Network


def untrained(network: Network, seed: int = 0) -> Network:
    """Return a copy of a network whose every weight is drawn anew, by torch's own rules."""
    whole = deepcopy(network.body if network.detector is None else network.detector)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in whole.modules():
            if hasattr(module, "reset_parameters"):  # torch's layers
                module.reset_parameters()  # pyright: ignore[reportCallIssue]
    if network.detector is None:
        return replace(network, body=whole, trained=False)
    return replace(network, body=whole.backbone, detector=whole, trained=False)  # pyright: ignore


def similarity(one: Tensor, other: Tensor) -> float:
    """Return Spearman's rank correlation of two maps' absolute values: 1 for the same order, about 0 for none.

    NaN where one of them is the same everywhere.
    """
    first, second = (values.detach().abs().flatten().cpu().numpy() for values in (one, other))
    if first.min() == first.max() or second.min() == second.max():
        return float("nan")
    return float(spearmanr(first, second).statistic)  # pyright: ignore
