"""The hard shapes: the second data set that detkit draws, on which detectors differ where their papers say they do.

Against the first, see shapes.py:
- Classes come in pairs that differ by a detail, see PAIRS.
- Most objects are small: 14 to 160 pixels of images of 160 to 208, half of them below 30; and long: sides up to 3.3:1.
- Half of the images hold crowds: up to ten objects of about one size that overlap, most of them of one class, which NMS
  tells from duplicates by IoU alone; others hold small objects in front of large ones.
- Backgrounds have stripes, tiles, blotches and grain, and clutter: letters, worms, bars, and discs, triangles and half
  discs that are painted as objects are and are of no class.

Boxes are as there, as VOC has it: tight around what can be seen. An object is difficult where less than half of it can
be seen, or less than half of the part that tells it from the other of its pair: nobody could say which it is.

Image i of a split depends on the seed, the split and i alone.
"""

from typing import NamedTuple

import numpy as np

from detkit.data.annotations import AnnotatedObject
from detkit.data.shapes import MAX_TURN, Drawing, background, distract, filled, paint, photograph, visible_object


class Pair(NamedTuple):
    """Two classes, by what they differ, and where: left, top, right, bottom within [-1, 1]; None: all over."""

    names: tuple[str, str]
    detail: str
    part: tuple[float, float, float, float] | None = None


PAIRS = (
    Pair(("arrow_down", "arrow_up"), "which end has the head"),
    Pair(("block", "notched_block"), "a notch in the upper side", (-0.32, -0.85, 0.32, 0.05)),
    Pair(("cross", "tee"), "whether the bar is in the middle or on top", (-1, -0.9, 1, -0.3)),
    Pair(("ring", "thin_ring"), "how thick it is"),
)
PAIR_OF = {name: pair for pair in PAIRS for name in pair.names}
CLASSES = tuple(sorted(PAIR_OF))
CLEAR_FROM = 1 / 2  # of the part that tells a class from its partner
SIZES = (14.0, 150.0)  # pixels, before stretching
LEAST_SIDE = 11.0  # pixels of the shorter side
MOST_STRETCH = 0.6  # logarithm of half the aspect ratio
SEED = 1  # so that its images share nothing with those of the first set


def draw_image(seed: tuple[int, ...]) -> tuple[np.ndarray, list[AnnotatedObject]]:
    """Return one image as (H, W, 3) RGB uint8 and the objects in it."""
    random = np.random.default_rng((*seed, SEED))
    height, width = (int(side) for side in random.integers(160, 209, 2))
    image = background(random, height, width)
    _texture(random, image)
    for _ in range(int(random.integers(2, 8))):
        _clutter(random, image)

    top = np.zeros((height, width), np.int16)  # the number of the object, from 1, that is on top of each pixel
    drawn: list[tuple[str, int, np.ndarray, int]] = []  # class, area, the part that tells its class, and its area
    for number, (name, centre, size) in enumerate(_scene(random, width, height), 1):
        place = (random.uniform(-MAX_TURN, MAX_TURN), _stretch(random, size), centre, size, (height, width))
        alpha, area = filled(_outlines(name), *place)
        drawn.append((name, area, *filled(_part(name), *place)))
        paint(random, image, alpha, outlined=0.6)
        top[alpha > 127] = number
    for _ in range(int(random.choice(3, p=(0.5, 0.35, 0.15)))):  # things in front of the objects
        top[distract(random, image)] = len(drawn) + 1

    objects = []
    for number, (name, area, part, part_area) in enumerate(drawn, 1):
        clear = ((part > 127) & (top <= number)).sum() >= CLEAR_FROM * part_area
        objects.append(visible_object(top == number, name, area, not clear))
    return photograph(random, image), [item for item in objects if item is not None]


def _scene(random: np.random.Generator, width: int, height: int) -> list[tuple[str, np.ndarray, float]]:
    """Return class, centre and size of an image's objects, those behind first."""
    kind = random.random()
    scene: list[tuple[str, np.ndarray, float]] = []
    if kind < 0.5:  # a crowd, and others around it
        for _ in range(int(random.choice((1, 2), p=(0.7, 0.3)))):
            scene += _crowd(random, width, height)
    elif kind < 0.7:  # small ones in front of large ones
        for _ in range(int(random.integers(1, 3))):
            _scatter(random, scene, np.exp(random.uniform(np.log(64), np.log(SIZES[1]))), width, height)
        for _ in range(int(random.integers(2, 5))):
            middle, reach = scene[0][1], scene[0][2] / 3
            centre = np.clip(middle + random.uniform(-reach, reach, 2), 8, np.array((width, height)) - 8)
            size = random.uniform(SIZES[0], 24)
            if all(np.hypot(*(centre - where)) > 0.6 * (size + other) for _, where, other in scene if other < 30):
                scene.append((_class(random), centre, size))
    for _ in range(int(random.integers(0 if scene else 2, 8 if kind > 0.7 else 4))):
        # as many small ones as of all others together
        size = random.uniform(SIZES[0], 28) if random.random() < 0.6 else random.uniform(28, 80)
        _scatter(random, scene, size, width, height)
    return scene


def _class(random: np.random.Generator) -> str:
    return CLASSES[int(random.integers(len(CLASSES)))]


def _scatter(
    random: np.random.Generator, scene: list[tuple[str, np.ndarray, float]], size: float, width: int, height: int
) -> None:
    """Add an object that overlaps no other, if there is a place for it."""
    for _ in range(12):
        centre = random.uniform((0.4 * size,) * 2, np.array((width, height)) - 0.4 * size)
        if all(np.hypot(*(centre - where)) > 0.55 * (size + other) for _, where, other in scene):
            scene.append((_class(random), centre, float(size)))
            return


def _crowd(random: np.random.Generator, width: int, height: int) -> list[tuple[str, np.ndarray, float]]:
    """Objects of about one size, each next to one of those before it, most of them of one class."""
    size = np.exp(random.uniform(np.log(18), np.log(48)))
    common, share = _class(random), random.choice((0.4, 0.75, 1.0))
    image = np.array((width, height))
    crowd = [(common, random.uniform(0.25, 0.75, 2) * image, float(size))]
    for _ in range(int(random.integers(3, 10))):
        name = common if random.random() < share else PAIR_OF[common].names[int(random.integers(2))]
        own = float(size * np.exp(random.uniform(-0.15, 0.15)))
        for _ in range(12):
            beside = crowd[int(random.integers(len(crowd)))][1]
            angle, distance = random.uniform(0, 2 * np.pi), random.uniform(0.4, 0.9) * size
            centre = beside + distance * np.array([np.cos(angle), np.sin(angle)])
            inside = (centre > 0.3 * own).all() and (centre < image - 0.3 * own).all()
            if inside and all(np.hypot(*(centre - where)) > 0.38 * size for _, where, _ in crowd):
                crowd.append((name, centre, own))
                break
    return crowd


def _stretch(random: np.random.Generator, size: float) -> float:
    """Return by how much width grows and height shrinks, or the other way; small objects stay large enough to see."""
    most = min(MOST_STRETCH, np.log(size / LEAST_SIDE))
    return float(np.exp(random.uniform(-most, most)))


def _outlines(name: str) -> list[np.ndarray]:
    """Outlines of a class within [-1, 1]; the second, if there is one, is a hole."""
    if name in ("ring", "thin_ring"):
        turn = np.linspace(0, 2 * np.pi, 64, endpoint=False)
        circle = np.stack([np.cos(turn), np.sin(turn)], 1)
        return [circle, circle * (0.42 if name == "ring" else 0.74)]
    if name in ("arrow_up", "arrow_down"):
        half = [(0, -1), (0.85, -0.1), (0.32, -0.1), (0.32, 1)]
        down = -1 if name == "arrow_down" else 1
        return [np.array(half + [(-x, y) for x, y in half[:0:-1]]) * (1, down)]
    if name == "block":
        return [np.array([(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)])]
    if name == "notched_block":
        half = [(0.32, 0.05), (0.32, -0.85), (0.85, -0.85), (0.85, 0.85)]
        return [np.array(half + [(-x, y) for x, y in half[::-1]])]
    arm = 0.3
    if name == "tee":
        half = [(1, -0.9), (1, -0.9 + 2 * arm), (arm, -0.9 + 2 * arm), (arm, 0.9)]
    else:
        half = [(arm, -1), (arm, -arm), (1, -arm), (1, arm), (arm, arm), (arm, 1)]
    return [np.array(half + [(-x, y) for x, y in half[::-1]])]


def _part(name: str) -> list[np.ndarray]:
    """Outlines of the part that tells a class from the other of its pair."""
    part = PAIR_OF[name].part
    if part is None:
        return _outlines(name)
    left, top, right, bottom = part
    return [np.array([(left, top), (right, top), (right, bottom), (left, bottom)])]


def _texture(random: np.random.Generator, image: np.ndarray) -> None:
    """Lay a texture over an image, in place."""
    import cv2

    height, width = image.shape[:2]
    kind = int(random.integers(5))
    angle = random.uniform(0, np.pi)
    x, y = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32).reshape(-1, 1)
    across = (np.cos(angle) * x + np.sin(angle) * y).astype(np.float32)
    along = (np.cos(angle) * y - np.sin(angle) * x).astype(np.float32)
    period = np.float32(2 * np.pi / random.uniform(8, 32))
    amplitude, colour = float(random.uniform(10, 28)), random.uniform(-1, 1, 3)
    colour = (colour / np.abs(colour).max()).astype(np.float32)
    if kind == 0:  # as it is
        return
    if kind == 1:  # stripes
        layer = np.sin(across * period)
    elif kind == 2:  # tiles
        layer = np.sign(np.sin(across * period) * np.sin(along * period))
    else:
        cells = int(random.integers(6, 20)) if kind == 3 else 96
        coarse = random.uniform(-1, 1, (cells, cells)).astype(np.float32)
        layer = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        if kind == 3:  # blotches with edges
            layer = np.clip(layer * 8, -1, 1)
    image[:] = np.clip(image + (layer * np.float32(amplitude))[..., None] * colour, 0, 255)


def _clutter(random: np.random.Generator, image: np.ndarray) -> None:
    """Draw something of no class."""
    if random.random() < 0.5:
        distract(random, image)
        return
    height, width = image.shape[:2]
    turn = np.linspace(0, (1, 2)[int(random.integers(2))] * np.pi, 48)
    kind = int(random.integers(3))
    if kind == 0:  # a triangle, which lies anyhow
        turn = random.uniform(0, 2 * np.pi) + np.arange(3) * 2 / 3 * np.pi
    outline = np.stack([np.cos(turn), np.sin(turn)], 1)
    size = float(np.exp(random.uniform(np.log(12), np.log(70))))
    angle, centre = random.uniform(0, 2 * np.pi), random.uniform((0, 0), (width, height))
    alpha, _ = filled([outline], angle, float(np.exp(random.uniform(-0.3, 0.3))), centre, size, (height, width))
    paint(random, image, alpha)


HARD_SHAPES = Drawing("hard_shapes", 1, CLASSES, draw_image)
