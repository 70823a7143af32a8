"""A detector and a data set small enough for thousands of steps."""

import os
import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from detkit.config import BackboneConfig
from detkit.models import Detector
from detkit.models.registry import MODELS
from detkit.ops import BoxCoder, default_boxes, match_ssd, multibox_loss
from detkit.structures import Images, InputSpec, Predictions, Targets

CODER = BoxCoder((10.0, 10.0, 5.0, 5.0))
CLASSES = ("circle", "square")


@dataclass
class ToyConfig:
    """dropout: shows whether random numbers are resumed. norm: batch norm, whose statistics are buffers."""

    name: str = "toy"
    backbone: BackboneConfig = field(default_factory=lambda: BackboneConfig("none"))
    width: int = 8
    dropout: float = 0.0
    norm: bool = False


@MODELS.register("toy")
class Toy(Detector):
    """Two strided convolutions and an SSD head on one map. Attributes of the class let tests disturb it."""

    config_type = ToyConfig
    class_layers = ("out.",)
    anchors: Tensor
    calls = 0
    signal_at: tuple[int, int] | None = None  # (call, signal) of `losses`
    nan_at: int | None = None
    pause = 0.0  # seconds that `losses` waits

    def __init__(self, config: Any, classes: tuple[str, ...]) -> None:
        super().__init__(config, classes, InputSpec((32, 32)))
        width = config.width
        norm = nn.BatchNorm2d(width) if config.norm else nn.Identity()
        self.backbone = nn.Sequential(nn.Conv2d(3, width, 3, 4, 1), norm, nn.ReLU())
        self.head = nn.Sequential(nn.Conv2d(width, 16, 3, 2, 1), nn.ReLU(), nn.Dropout(config.dropout))
        self.out = nn.Conv2d(16, 2 * (len(classes) + 1 + 4), 3, padding=1)
        boxes = default_boxes([(4, 4)], [8.0], [10.0], [20.0], [[]])
        self.register_buffer("anchors", boxes, persistent=False)

    def network(self, pixels: Tensor) -> Tensor:
        out = self.out(self.head(self.backbone(pixels)))
        return out.permute(0, 2, 3, 1).reshape(len(pixels), len(self.anchors), -1)

    def compile_network(self) -> None:
        self.network = torch.compile(self.network)

    def losses(self, images: Images, targets: Targets) -> dict[str, Tensor]:
        Toy.calls += 1
        time.sleep(Toy.pause)
        if Toy.signal_at is not None and Toy.calls == Toy.signal_at[0]:
            os.kill(os.getpid(), Toy.signal_at[1])
        raw = self.network(self.normalise(images.pixels, images.sizes))
        match = match_ssd(targets.boxes, targets.valid, targets.ignore, self.anchors, 0.3)
        losses = multibox_loss(
            raw[..., :-4], raw[..., -4:], match, targets.boxes, targets.labels, self.anchors, CODER, ratio=3.0
        )
        if Toy.calls == Toy.nan_at:
            losses["box"] = losses["box"] * float("nan")
        return losses

    def predict(self, images: Images) -> Predictions:
        raw = self.network(self.normalise(images.pixels, images.sizes))
        boxes = CODER.decode(raw[..., -4:].float(), self.anchors)
        return Predictions(boxes, raw[..., :-4].float().softmax(-1)[..., :-1])


def draw_toys(root: Path) -> None:
    """Write a VOC-layout data set of 24 + 9 + 9 images of 40 x 36 with 0 to 2 coloured squares.

    The split `one` is one of them, with two objects.
    """
    import cv2
    import numpy as np

    chance = random.Random(0)
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    (root / "ImageSets/Main/one.txt").write_text("train000\n")
    for split, count in (("train", 24), ("val", 9), ("test", 9)):
        names = [f"{split}{number:03}" for number in range(count)]
        (root / f"ImageSets/Main/{split}.txt").write_text("".join(f"{name}\n" for name in names))
        for name in names:
            image = np.full((36, 40, 3), 90, np.uint8)
            objects = ""
            for _ in range(chance.choice([1, 1, 2, 2, 0])):
                x, y, side, kind = (
                    chance.randrange(24),
                    chance.randrange(20),
                    chance.randrange(10, 16),
                    chance.randrange(2),
                )
                image[y : y + side, x : x + side] = (240, 40, 40) if kind else (40, 240, 40)
                objects += (
                    f"<object><name>{CLASSES[kind]}</name><difficult>0</difficult><bndbox><xmin>{x + 1}</xmin>"
                    f"<ymin>{y + 1}</ymin><xmax>{x + side}</xmax><ymax>{y + side}</ymax></bndbox></object>"
                )
            cv2.imwrite(str(root / f"JPEGImages/{name}.jpg"), image)
            (root / f"Annotations/{name}.xml").write_text(
                f"<annotation><filename>{name}.jpg</filename><size><width>40</width><height>36</height>"
                f"<depth>3</depth></size>{objects}</annotation>"
            )
