"""One step of gradient descent: losses and gradients of a batch, then the update of the weights."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn.parallel import DistributedDataParallel

from detkit.config import TrainConfig
from detkit.engine.ema import ModelEMA
from detkit.engine.optimizer import build_optimizer
from detkit.engine.run import Batch
from detkit.models import Detector
from detkit.runtime.depthwise import mark_strided_depthwise
from detkit.runtime.device import autocast, images_to_device, to_device
from detkit.structures import Images, Targets


class Step:
    """What every step takes: the optimiser, the number format, the average of the weights.

    The detector goes to the device, into training mode.
    """

    def __init__(self, detector: Detector, recipe: TrainConfig, device: torch.device) -> None:
        self.recipe, self.device = recipe, device
        to_device(detector, device, recipe.channels_last)
        mark_strided_depthwise(detector)
        detector.train()
        self.optimizer = build_optimizer(detector, recipe)
        self.scaler = GradScaler(device.type, enabled=recipe.amp == "fp16")
        self.average = ModelEMA(detector, recipe.ema) if recipe.ema else None
        self._trained = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def backward(self, model: nn.Module, images: Images, targets: Targets) -> list[dict[str, Tensor]]:
        """Add up the gradients of a batch; return the losses of each of its `accumulate` parts.

        model: the detector, or the DDP module around it.
        """
        recipe, parts = self.recipe, []
        for some_images, some_targets in micro_batches(images, targets, recipe.accumulate):
            some_images = images_to_device(some_images, self.device, recipe.channels_last)
            with synchronised(model, len(parts) + 1 == recipe.accumulate), autocast(self.device, recipe.amp):
                parts.append(model(some_images, some_targets.to(self.device)))
                self.scaler.scale(total(parts[-1]) / recipe.accumulate).backward()
        return parts

    def update(self, iteration: int) -> None:
        """Take the step number `iteration` (0-based), clipped, and clear the gradients."""
        if self.recipe.clip is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self._trained, self.recipe.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update(iteration)


def total(losses: dict[str, Tensor]) -> Tensor:
    """The sum that training minimises."""
    return torch.stack(list(losses.values())).sum()


def micro_batches(images: Images, targets: Targets, count: int) -> Iterator[Batch]:
    """Cut a batch into `count` equal parts; the loss of each is normalised by the objects in it alone."""
    size = len(images) // count
    for first in range(0, len(images), size):
        rows = slice(first, first + size)
        yield images.part(rows), targets.part(rows)


def synchronised(model: nn.Module, last: bool) -> AbstractContextManager:
    """Let DDP average gradients with the last micro-batch only."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) and not last else nullcontext()
