"""Selective search on one core, beside OpenCV's where a Python that has opencv-contrib is given.

OpenCV's has other segmentations (k of 150, 300 and 450 in fast mode), textures and boxes: the same job, though not the
same boxes; see search_recall.py for what they are worth.
"""

from functools import partial

import cv2
import numpy as np

from detkit.benchmarks.contrib import ContribSearch
from detkit.benchmarks.data import HEIGHT, WIDTH, jpegs
from detkit.proposals.selective_search import selective_search
from detkit.runtime.race import Benchmark, Job, Runner, Setting

IMAGES = 2


def benchmarks(mode: str, contrib: str | None) -> tuple[Benchmark, ...]:
    """Return the race of a mode. contrib: a Python that has opencv-contrib, None to run alone."""
    peers = [] if contrib is None else [Runner("opencv-contrib", partial(search_contrib, mode, contrib))]
    name = f"selective search, {mode}, {IMAGES} images {WIDTH}x{HEIGHT}, one core"
    return (Benchmark(name, (Runner("detkit", partial(search_detkit, mode), True), *peers)),)


def load_images() -> list[np.ndarray]:
    """Return IMAGES images of (HEIGHT, WIDTH, 3) RGB."""
    coded = [np.frombuffer(jpeg, np.uint8) for jpeg, _ in jpegs()[:IMAGES]]
    return [np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)) for data in coded]


def search_detkit(mode: str, setting: Setting) -> Job:
    cv2.setNumThreads(1)
    images = load_images()
    return lambda: [selective_search(image, mode) for image in images]


def search_contrib(mode: str, python: str, setting: Setting) -> Job:

    images, contrib = load_images(), ContribSearch(python)
    return lambda: [contrib.search(image, mode) for image in images]
