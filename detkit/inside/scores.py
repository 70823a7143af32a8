"""What is asked of a network, as one number of the pixels: the score of a class or detection, or a side of its box."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from detkit.errors import UserError, did_you_mean
from detkit.explain.explanation import Explanation, batch_of, explain
from detkit.inside.network import Network
from detkit.structures import Images, Predictions

Score = Callable[[Tensor], Tensor]
"""Pixels (B, 3, h, w), 0 to 255 -> (B,), with gradients."""
SIDES = ("left", "top", "right", "bottom")


@dataclass(frozen=True)
class Asked:
    """One number that a network says of an image.

    title: what it is. pixels: (1, 3, h, w), 0 to 255, as the network sees the image. score: the number of such pixels.
    box: (4,) of a detection, in pixels of the image, or None.
    """

    title: str
    image: np.ndarray
    pixels: Tensor
    score: Score
    box: np.ndarray | None = None


class _Smooth(Images):
    """Images with float pixels, which have gradients."""

    def __post_init__(self) -> None:
        pass


def class_score(network: Network, image: np.ndarray, name: str | None = None) -> Asked:
    """Ask a classifier for a class's score, before the softmax (Simonyan et al., 2014); by default its best one's."""
    if not network.classes or network.detector is not None:
        raise UserError(
            f"{network.name}: its weights have no classifier, so no class has a score; give --weights of all of it, or "
            "a detector"
        )
    pixels = network.pixels(image)
    if name is None:
        with torch.no_grad():
            index = int(network.run(pixels)[0].argmax())
    elif name in network.classes:
        index = network.classes.index(name)
    else:
        raise UserError(f"{network.name}: no class {name!r}{did_you_mean(name, network.classes)}")
    title = f"{network.classes[index]} ({index})"
    return Asked(title, image, pixels, lambda changed: network.run(changed)[:, index])


def detection_scores(network: Network, image: np.ndarray, number: int = 1) -> tuple[list[Asked], Explanation]:
    """Ask a detector for the score and the four box sides of one of its detections, from 1, the best.

    Before NMS: what is followed is the one anchor, place or region that gave the detection. Returns these five, the
    score first, and all that it detects.
    """
    detector, config = network.detector, network.config
    assert detector is not None
    assert config is not None
    found = explain(detector, image, config)
    if not 1 <= number <= len(found.boxes):
        there = f"there are {len(found.boxes)}, 1 to {len(found.boxes)}" if len(found.boxes) else "nothing is detected"
        raise UserError(f"--detection {number}: {there} with a score above {found.settings.score_threshold:g}")
    row, label = int(found.source[number - 1]), int(found.labels[number - 1])
    title = f"{number} {detector.classes[label]} {found.scores[number - 1]:.2f}"
    return place_scores(network, image, row, label, title, found.boxes[number - 1]), found


def place_scores(
    network: Network, image: np.ndarray, row: int, label: int, title: str, box: np.ndarray | None = None
) -> list[Asked]:
    """Ask a detector for the score of a class, and the four box sides, of what it predicts in one row; see `follow`."""
    detector, config = network.detector, network.config
    assert detector is not None
    assert config is not None
    images = batch_of(detector, image, config).to(network.device)
    follow = detector.follow(images, row)

    def predict(pixels: Tensor) -> Predictions:
        count = len(pixels)
        sizes, original = (size.expand(count, -1) for size in (images.sizes, images.original))
        return follow(_Smooth(pixels, sizes, original, images.ids * count))

    def side(index: int) -> Score:
        def of_box(pixels: Tensor) -> Tensor:
            boxes = predict(pixels).boxes[:, 0]
            return (boxes if boxes.ndim == 2 else boxes[:, label])[:, index]

        return of_box

    def score(pixels: Tensor) -> Tensor:
        return predict(pixels).scores[:, 0, label]

    whole = Asked(title, image, images.pixels.float(), score, box)
    return [whole, *(replace(whole, title=f"{title}: {text} side", score=side(i)) for i, text in enumerate(SIDES))]
