"""How long training takes, and how often it is evaluated, in steps."""

import math
from dataclasses import replace

from detkit.config import TrainConfig, parse_every


def in_steps(recipe: TrainConfig, images: int) -> TrainConfig:
    """Return a recipe whose length is in iterations. images: in `data.train`.

    A run that is resumed has the same images and batch, and so the same iterations.
    """
    if not recipe.epochs:
        return recipe
    return replace(recipe, iterations=max(1, math.ceil(recipe.epochs * images / recipe.batch)), epochs=0.0)


def evaluation_interval(recipe: TrainConfig, images: int) -> float:
    """Return the steps between evaluations, 0 for none before the end. recipe: in steps, those of a stage."""
    number, unit = parse_every(recipe.evaluate_every)
    factor = {"iterations": 1, "shares": recipe.iterations, "epochs": images / recipe.batch}[unit]
    return number * factor


def due(done: int, every: float, iterations: int) -> bool:
    """Whether something happens after `done` steps: each `every` (0 = never), and always at the end."""
    # the margin: a share of the steps, such as .7 of 10, may come out just beyond a whole number
    return done == iterations or (every > 0 and int(done / every + 1e-9) > int((done - 1) / every + 1e-9))
