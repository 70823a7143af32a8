"""From JPEG to network input with SSD's augmentation, one core, beside torchvision's v2 transforms."""

import io

import cv2
import numpy as np
import torch

from detkit.data.transforms import build_train
from detkit.runtime.race import Benchmark, Job, Runner, Setting
from detkit.structures import InputSpec

IMAGES, HEIGHT, WIDTH, SIZE = 16, 375, 500, 300
AUGMENT = ["PhotometricDistort", "Expand", "IoUCrop", "RandomInterpolationResize", "HorizontalFlip"]


def jpegs() -> list[tuple[bytes, np.ndarray]]:
    """Return IMAGES images with structure of all sizes, JPEG-coded, and three boxes each, always the same."""
    random = np.random.default_rng(0)
    made = []
    for _ in range(IMAGES):
        layers = [
            cv2.resize(random.random((side, side, 3), np.float32), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
            for side in (3, 9, 27, 81, 243)
        ]
        image = np.clip(np.mean(layers, 0) * 255, 0, 255).astype(np.uint8)
        corner = random.random((3, 2)) * (WIDTH / 2, HEIGHT / 2)
        boxes = np.concatenate([corner, corner + 30 + random.random((3, 2)) * (WIDTH / 3, HEIGHT / 3)], 1)
        boxes = np.minimum(boxes, (WIDTH, HEIGHT, WIDTH, HEIGHT)).astype(np.float32)
        made.append((cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes(), boxes))
    return made


def load_detkit(setting: Setting) -> Job:
    cv2.setNumThreads(0)
    transform = build_train(AUGMENT, InputSpec((SIZE, SIZE)))
    images = jpegs()
    seeds = iter(range(1 << 40))

    def job() -> None:
        for jpeg, boxes in images:
            image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR_RGB)
            transform(np.asarray(image), boxes, (0, next(seeds)))

    return job


def load_torchvision(setting: Setting) -> Job:
    from PIL import Image
    from torchvision import tv_tensors
    from torchvision.transforms import v2

    # as torchvision's reference recipe for SSD orders them
    transform = v2.Compose(
        [
            v2.RandomPhotometricDistort(),
            v2.RandomZoomOut(fill=[123, 117, 104]),
            v2.RandomIoUCrop(),
            v2.RandomHorizontalFlip(),
            v2.Resize((SIZE, SIZE)),
            v2.SanitizeBoundingBoxes(),
        ]
    )
    images = jpegs()

    def job() -> None:
        for jpeg, boxes in images:
            image = v2.functional.pil_to_tensor(Image.open(io.BytesIO(jpeg)).convert("RGB"))
            target = {
                "boxes": tv_tensors.BoundingBoxes(  # pyright: ignore[reportCallIssue]
                    torch.from_numpy(boxes), format="XYXY", canvas_size=(HEIGHT, WIDTH)
                ),
                "labels": torch.zeros(len(boxes), dtype=torch.int64),
            }
            transform(tv_tensors.Image(image), target)

    return job


BENCHMARKS = (
    Benchmark(
        f"decode and SSD augmentation of {IMAGES} images, {WIDTH}x{HEIGHT} to {SIZE}",
        (Runner("detkit", load_detkit, True), Runner("torchvision v2", load_torchvision)),
    ),
)
