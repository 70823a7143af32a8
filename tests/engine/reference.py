"""Gradient descent in its plainest form, to compare the engine's with."""

from dataclasses import dataclass

import torch
from torch import Tensor

from detkit.config import Config, TrainConfig
from detkit.data.loader import train_loader
from detkit.data.opening import open_dataset
from detkit.engine.optimizer import learning_rate
from detkit.models import Detector, build_detector
from detkit.structures import Images, Targets

TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Descent:
    """State dicts after the last step; average: None without `train.ema`. loss_scale: 1 unless fp16."""

    weights: dict[str, Tensor]
    average: dict[str, Tensor] | None
    loss_scale: float


def descend(settings: Config) -> Descent:
    """Train the toy detector, which must be without dropout, from its initial weights."""
    recipe = settings.train
    dataset = open_dataset(settings.data, "train")
    torch.manual_seed(recipe.seed)
    detector = build_detector(settings.model, dataset.classes).train()
    detector.to(memory_format=torch.channels_last if recipe.channels_last else torch.contiguous_format)
    optimizer, factors = build_optimizer(detector, recipe)
    average = copy_state(detector) if recipe.ema else None
    loss_scale = 65536.0 if recipe.amp == "fp16" else 1.0
    batches = train_loader(dataset, detector.input, settings.data, recipe, start=0, stop=recipe.iterations)
    for iteration, (images, targets) in enumerate(batches):
        gradients = compute_gradients(detector, images, targets, recipe, loss_scale)
        norm = float(torch.cat([gradient.flatten() for gradient in gradients]).norm())
        if recipe.clip is not None and norm > recipe.clip:
            for gradient in gradients:
                gradient.mul_(recipe.clip / norm)
        for group, factor in zip(optimizer.param_groups, factors):
            group["lr"] = learning_rate(recipe, iteration) * factor
        if norm < float("inf"):
            optimizer.step()
        else:  # a gradient too large for fp16: no step, and a smaller loss from now on
            loss_scale /= 2
        if average is not None:
            move(average, copy_state(detector), min(recipe.ema, (1 + iteration) / (10 + iteration)))
    return Descent(copy_state(detector), average, loss_scale)


def compute_gradients(
    detector: Detector, images: Images, targets: Targets, recipe: TrainConfig, loss_scale: float
) -> list[Tensor]:
    """Return the gradients of the mean loss over the micro-batches, one for each parameter."""
    detector.zero_grad()
    size = recipe.batch // recipe.accumulate
    for first in range(0, recipe.batch, size):
        part = slice(first, first + size)
        objects = Targets(targets.boxes[part], targets.labels[part], targets.ignore[part])
        with torch.autocast("cpu", TYPES.get(recipe.amp), enabled=recipe.amp in TYPES):
            losses = detector.losses(images.part(part), objects)
            (sum(losses.values(), torch.zeros(())) / recipe.accumulate * loss_scale).backward()
    gradients = [parameter.grad for parameter in detector.parameters() if parameter.grad is not None]
    for gradient in gradients:
        gradient.div_(loss_scale)
    return gradients


def build_optimizer(detector: Detector, recipe: TrainConfig) -> tuple[torch.optim.Optimizer, list[float]]:
    """Return an optimiser with a group for each parameter, and the factors of the groups on the learning rate.

    fused as the engine's is, since bf16 and fp16 make much of a difference in the last bit.
    """
    groups, factors = [], []
    for name, parameter in detector.named_parameters():
        norm, bias = name.startswith("backbone.1."), name.endswith(".bias")  # backbone.1 is the batch norm
        decay = 0.0 if norm else recipe.bias_decay if bias else recipe.weight_decay
        groups.append({"params": [parameter], "weight_decay": decay})
        factor = recipe.backbone_lr if name.startswith("backbone.") else 1.0
        factor *= recipe.class_lr if name.startswith("out.") else 1.0
        factors.append(factor * (recipe.bias_lr if bias and not norm else 1.0))
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.lr, betas=(recipe.momentum, 0.999), fused=True), factors
    return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, fused=recipe.amp != "fp16"), factors


def copy_state(detector: Detector) -> dict[str, Tensor]:
    """Return a state dict that further steps do not change."""
    return {name: value.detach().clone() for name, value in detector.state_dict().items()}


def move(average: dict[str, Tensor], weights: dict[str, Tensor], decay: float) -> None:
    """Move the exponential moving average towards the weights; counters are copied."""
    for name, value in weights.items():
        average[name] = decay * average[name] + (1 - decay) * value if value.is_floating_point() else value
