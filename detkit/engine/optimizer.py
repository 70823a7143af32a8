"""The optimiser, its parameter groups and their learning rate."""

import math
from collections.abc import Iterator

from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from detkit.config import TrainConfig
from detkit.models import Detector


def build_optimizer(detector: Detector, config: TrainConfig) -> Optimizer:
    """Return SGD or AdamW over the trainable parameters.

    Each group carries `scale`, its factor on the learning rate: biases have `bias_lr` (2 in the Caffe recipes),
    those of the pretrained network (`backbone_parameters`) also `backbone_lr`, those that depend on the classes
    (`class_layers`) `class_lr` (10 in R-CNN's). Biases have the weight decay `bias_decay`, norms none.
    """
    inside = {id(parameter) for parameter in detector.backbone_parameters()}
    groups: dict[tuple[bool, bool, str], list[nn.Parameter]] = {}
    for name, kind, parameter in kinds(detector):
        by_class = config.class_lr != 1 and name.startswith(detector.class_layers)
        groups.setdefault((id(parameter) in inside, by_class, kind), []).append(parameter)
    options = [
        {
            "params": parameters,
            "scale": (config.backbone_lr if backbone else 1.0)
            * (config.class_lr if by_class else 1.0)
            * (config.bias_lr if kind == "bias" else 1.0),
            "weight_decay": {"weight": config.weight_decay, "bias": config.bias_decay, "norm": 0.0}[kind],
        }
        for (backbone, by_class, kind), parameters in sorted(groups.items())
    ]
    if config.optimizer == "adamw":
        return AdamW(options, lr=config.lr, betas=(config.momentum, 0.999), fused=True)
    # torch's fused SGD lets the steps that GradScaler skips into its momentum. The plain one costs fp16 a wait for the
    # GPU at every step, to learn whether to skip; bf16 has none.
    return SGD(options, lr=config.lr, momentum=config.momentum, fused=config.amp != "fp16")


def kinds(detector: nn.Module) -> Iterator[tuple[str, str, nn.Parameter]]:
    """Yield (name, "weight" | "bias" | "norm", parameter) of every trainable parameter once.

    A module whose weight has one dimension is a norm (batch, group, layer, L2), its bias included.
    """
    seen: set[int] = set()
    for prefix, module in detector.named_modules():
        weight = getattr(module, "weight", None)
        norm = isinstance(weight, nn.Parameter) and weight.ndim <= 1
        for name, parameter in module.named_parameters(prefix, recurse=False):
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                kind = "bias" if name.endswith("bias") else "weight"
                yield name, "norm" if norm else kind, parameter


def learning_rate(config: TrainConfig, iteration: int) -> float:
    """Return the rate of the step number `iteration` (0-based), a function of it alone: nothing to save or restore.

    Warm-up rises linearly from warmup_lr, just above which it begins, to lr. Then `steps` multiplies by gamma at each
    milestone reached, and `cosine` falls from lr to (just above) 0 at the last iteration.
    """
    if iteration < config.warmup:
        return config.warmup_lr + (config.lr - config.warmup_lr) * (iteration + 1) / config.warmup
    if config.schedule == "steps":
        return config.lr * config.gamma ** sum(iteration >= milestone for milestone in config.milestones)
    progress = (iteration - config.warmup) / max(1, config.iterations - config.warmup)
    return config.lr * 0.5 * (1 + math.cos(math.pi * progress))


def set_rate(optimizer: Optimizer, rate: float) -> None:
    """Give every group `rate` times its scale."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]
