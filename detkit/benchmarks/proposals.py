"""Selective search, fast mode, on one core, beside OpenCV's of ximgproc where opencv-contrib is installed.

OpenCV's has other segmentations (k of 150, 300 and 450), textures and boxes: the same job, though not the same boxes.
"""

from importlib.util import find_spec

import numpy as np

from detkit.benchmarks.data import HEIGHT, WIDTH, jpegs
from detkit.benchmarks.race import Contender, Job, Setting, Subject

PHOTOS = 2


def photos() -> list[np.ndarray]:
    """Return PHOTOS pictures of (HEIGHT, WIDTH, 3) RGB; one core for what OpenCV does in either contender."""
    import cv2

    cv2.setNumThreads(1)
    coded = [np.frombuffer(jpeg, np.uint8) for jpeg, _ in jpegs()[:PHOTOS]]
    return [np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)) for data in coded]


def search_detkit(setting: Setting) -> Job:
    from detkit.proposals.selective_search import selective_search

    images = photos()
    return lambda: [selective_search(image, "fast") for image in images]


def search_opencv(setting: Setting) -> Job:
    from cv2 import ximgproc  # pyright: ignore[reportAttributeAccessIssue]

    images = [np.ascontiguousarray(image[..., ::-1]) for image in photos()]

    def job() -> None:
        for image in images:
            search = ximgproc.segmentation.createSelectiveSearchSegmentation()
            search.setBaseImage(image)
            search.switchToSelectiveSearchFast()
            search.process()

    return job


_peers = [Contender("opencv-contrib", search_opencv)] if find_spec("cv2.ximgproc") else []
SUBJECTS = (
    Subject(
        f"selective search, fast, {PHOTOS} photos {WIDTH}x{HEIGHT}, one core",
        (Contender("detkit", search_detkit, True), *_peers),
    ),
)
