"""The learning rate as a pure function of the iteration: nothing to save, nothing to restore."""

import math

from detkit.config import TrainConfig


def learning_rate(config: TrainConfig, iteration: int) -> float:
    """Return the rate of the step number `iteration` (0-based).

    Warm-up rises linearly from warmup_lr, just above which it begins, to lr. Then `steps` multiplies by gamma at each
    milestone reached, and `cosine` falls from lr to (just above) 0 at the last iteration.
    """
    if iteration < config.warmup:
        return config.warmup_lr + (config.lr - config.warmup_lr) * (iteration + 1) / config.warmup
    if config.schedule == "steps":
        return config.lr * config.gamma ** sum(iteration >= milestone for milestone in config.milestones)
    progress = (iteration - config.warmup) / max(1, config.iterations - config.warmup)
    return config.lr * 0.5 * (1 + math.cos(math.pi * progress))
