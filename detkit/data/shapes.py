"""The shapes data set: drawn by detkit itself, in VOC layout, so that everything can be tried without a download.

Six classes of shapes over textured, cluttered backgrounds that also hold letters, scribbles, bars and worms of no
class. Sizes run from a sixth to two thirds of the image, with some rotation, stretch, blur, outlines and patterned
fills. A mask is the visible part, and a box is tight around it, as VOC's rule has it. An object of which less than
half can be seen is difficult; one cut off or covered by a fifth is truncated; one hidden almost wholly is not
annotated.

Image i of a split depends on the seed, the split and i alone.
"""

import json
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from detkit.data.annotations import AnnotatedObject
from detkit.data.voc_writer import voc_xml
from detkit.errors import UserError
from detkit.files import write_atomic
from detkit.runtime.progress import Progress

CLASSES = ("circle", "cross", "ring", "square", "star", "triangle")
COUNTS = {"train": 9600, "val": 200, "test": 400}

MANIFEST = "shapes.json"
DIFFICULT_BELOW = 1 / 2
TRUNCATED_BELOW = 0.8
HIDDEN_BELOW = 0.08
MAX_TURN = np.pi / 8
SHIFT = 4  # cv2 takes coordinates in 1/16 pixels


@dataclass(frozen=True)
class Drawing:
    """A data set that detkit draws. name: of it. draw: takes the seed, the split and the image's number, returns the
    image, (H, W, 3) RGB uint8, and its objects. version: of what `draw` draws."""

    name: str
    version: int
    classes: tuple[str, ...]
    draw: Callable[[tuple[int, ...]], tuple[np.ndarray, list[AnnotatedObject]]]


def ensure_shapes(
    root: str | Path, counts: dict[str, int] | None = None, seed: int = 0, drawing: Drawing | None = None
) -> Path:
    """Draw the data set at `root` unless it is there, complete, from this version and seed; return `root`.

    An older drawing is replaced as a whole. drawing: which set, by default SHAPES. UserError where `root` holds
    something else than this set.
    """
    root, drawing = Path(root), drawing or SHAPES
    manifest = _manifest(counts or COUNTS, seed, drawing)
    if (old := _read_manifest(root)) == manifest:
        return root
    empty = not root.exists() or (root.is_dir() and not any(root.iterdir()))
    if not empty and old.get("drawn by") != manifest["drawn by"]:
        kind = drawing.name.replace("_", " ")
        raise UserError(f"{root} is not a {kind} data set and is left alone; draw it elsewhere with data.root=PATH")
    draw_shapes(root, counts, seed, drawing)
    return root


def draw_shapes(
    root: str | Path, counts: dict[str, int] | None = None, seed: int = 0, drawing: Drawing | None = None
) -> None:
    """Draw the data set into a temporary folder beside `root`, then put it in the place of `root`."""
    root, drawing = Path(root), drawing or SHAPES
    counts = counts or COUNTS
    manifest = _manifest(counts, seed, drawing)
    root.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{root.name}.", dir=root.parent, ignore_cleanup_errors=True) as temporary:
        drawn, old = Path(temporary) / "new", Path(temporary) / "old"
        _draw_into(drawn, counts, seed, drawing)
        write_atomic(drawn / MANIFEST, json.dumps(manifest, indent=1) + "\n")
        if root.exists():
            os.replace(root, old)
        try:
            os.replace(drawn, root)
        except OSError:
            if _read_manifest(root) != manifest:  # else another process has drawn the same meanwhile
                raise


def _manifest(counts: dict[str, int], seed: int, drawing: Drawing) -> dict:
    facts = {"version": drawing.version, "seed": seed, "counts": counts, "classes": list(drawing.classes)}
    return {"drawn by": f"detkit {drawing.name}", **facts}


def _read_manifest(root: Path) -> dict:
    """Return what `root` says of itself, {} where it says nothing."""
    try:
        manifest = json.loads((root / MANIFEST).read_text())
    except (OSError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def _draw_into(root: Path, counts: dict[str, int], seed: int, drawing: Drawing) -> None:
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main", "SegmentationObject"):
        (root / folder).mkdir(parents=True)
    jobs = [(split, i) for split, count in counts.items() for i in range(count)]
    for split, count in counts.items():
        write_atomic(root / "ImageSets" / "Main" / f"{split}.txt", "".join(f"{split}_{i:05d}\n" for i in range(count)))
    # forked: nothing to import again; a chunk is some 50 ms of work
    workers = min(os.cpu_count() or 1, 16)
    if len(jobs) < 50 or workers == 1:
        for job in jobs:
            _write_image(root, seed, drawing, job)
        return
    # the bar is inside: its thread starts after the processes
    with ProcessPoolExecutor(workers, mp_context=get_context("fork")) as pool, Progress(unit="images") as bars:
        for done, _ in enumerate(pool.map(partial(_write_image, root, seed, drawing), jobs, chunksize=25), 1):
            bars.update("shapes drawn", done, len(jobs))


def _write_image(root: Path, seed: int, drawing: Drawing, job: tuple[str, int]) -> None:
    import cv2

    cv2.setNumThreads(0)
    split, i = job
    name = f"{split}_{i:05d}"
    image, objects = drawing.draw((seed, sorted(COUNTS).index(split) if split in COUNTS else len(COUNTS), i))
    quality = 88 + i % 8
    ok, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert ok
    (root / "JPEGImages" / f"{name}.jpg").write_bytes(data.tobytes())
    (root / "Annotations" / f"{name}.xml").write_text(voc_xml(f"{name}.jpg", image.shape[1::-1], objects))
    numbers = np.zeros(image.shape[:2], np.uint8)  # what can be seen of two objects never overlaps
    for number, item in enumerate(objects, 1):
        numbers[item.mask] = number
    ok, data = cv2.imencode(".png", numbers)
    assert ok
    (root / "SegmentationObject" / f"{name}.png").write_bytes(data.tobytes())


def draw_image(seed: tuple[int, ...]) -> tuple[np.ndarray, list[AnnotatedObject]]:
    """Return one image as (H, W, 3) RGB uint8 and the objects in it."""
    random = np.random.default_rng(seed)
    height, width = (int(side) for side in random.integers(128, 161, 2))
    image = background(random, height, width)
    for _ in range(int(random.integers(0, 4))):
        distract(random, image)

    masks: list[np.ndarray] = []  # (H, W) bool of what is still visible of each object
    full: list[tuple[str, int]] = []  # its class, and the area of the whole shape, in pixels, also outside the image
    places: list[np.ndarray] = []
    sizes: list[float] = []
    # mostly a few objects, sometimes none, seldom a crowd
    for _ in range(int(random.choice(9, p=(0.03, 0.09, 0.17, 0.21, 0.2, 0.13, 0.09, 0.05, 0.03)))):
        name = CLASSES[int(random.integers(len(CLASSES)))]
        size = float(np.exp(random.uniform(np.log(24), np.log(96))))
        centre = _place(random, size, places, sizes, (width, height))
        if centre is None:
            continue
        places.append(centre)
        sizes.append(size)
        alpha, area = _shape(random, name, centre, size, height, width)
        paint(random, image, alpha)
        inside = alpha > 127
        for mask in masks:
            mask &= ~inside
        masks.append(inside)
        full.append((name, area))
    for _ in range(int(random.integers(0, 2))):  # a thing in front of the objects
        over = places[int(random.integers(len(places)))] if places and random.random() < 0.5 else None
        covered = distract(random, image, over)
        for mask in masks:
            mask &= ~covered

    objects = [visible_object(mask, name, area) for mask, (name, area) in zip(masks, full)]
    return photograph(random, image), [item for item in objects if item is not None]


def visible_object(mask: np.ndarray, name: str, area: int, unclear: bool = False) -> AnnotatedObject | None:
    """Annotate an object by what is visible of it, mask (H, W) bool; None where that is next to nothing.

    area: of the whole shape, in pixels. unclear: whether it can't be told from others.
    """
    visible = mask.sum() / max(area, 1)
    columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    if visible < HIDDEN_BELOW or len(columns) < 5 or len(rows) < 5:
        return None
    box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    difficult, truncated = bool(visible < DIFFICULT_BELOW), bool(visible < TRUNCATED_BELOW)
    return AnnotatedObject(name, box, difficult or unclear, truncated=truncated, mask=mask)


def photograph(random: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Return the image with a camera's faults: sometimes a blur, always some grain."""
    import cv2

    if random.random() < 0.35:
        image = cv2.GaussianBlur(image, (0, 0), float(random.uniform(0.4, 1.1)))
    grain = random.integers(0, 256, image.shape, dtype=np.uint8).view(np.int8)
    noise = grain * np.float32(random.uniform(0, 8 / 128))
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def _place(
    random: np.random.Generator, size: float, places: list[np.ndarray], sizes: list[float], image: tuple[int, int]
) -> np.ndarray | None:
    """Choose a centre where an object of `size` is mostly in the image and apart from others; None if there is none.

    Now and then it may cover others, wherever that is.
    """
    margin = 0.3 * size
    anywhere = not places or random.random() < 0.1
    for _ in range(12):
        centre = random.uniform((margin, margin), np.array(image) - margin)
        if anywhere or (np.hypot(*(np.stack(places) - centre).T) > 0.4 * (np.array(sizes) + size)).all():
            return centre
    return None


def _colour(random: np.random.Generator) -> np.ndarray:
    return random.uniform(15, 240, 3)


def background(random: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A gradient between two colours plus noise of several scales."""
    import cv2

    direction = random.uniform(-1, 1, 2)
    x = np.arange(width, dtype=np.float32) / max(height, width)
    y = np.arange(height, dtype=np.float32).reshape(-1, 1) / max(height, width)
    ramp = (direction[0] * x + direction[1] * y).astype(np.float32)[..., None]
    one, other = (_colour(random).astype(np.float32) for _ in range(2))
    image = one * (0.5 + ramp / 2) + other * (0.5 - ramp / 2)
    for cells in (4, 12, 40):
        coarse = random.uniform(-1, 1, (cells, cells, 3 if random.random() < 0.5 else 1)).astype(np.float32)
        layer = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).reshape(height, width, -1)
        image += layer * np.float32(random.uniform(4, 20))
    return np.clip(image, 0, 255).astype(np.uint8)


def distract(random: np.random.Generator, image: np.ndarray, over: np.ndarray | None = None) -> np.ndarray:
    """Draw something of no class, near the point `over` if given; return its pixels as (H, W) bool."""
    import cv2

    height, width = image.shape[:2]
    mask = np.zeros((height, width), np.uint8)
    kind = int(random.integers(4))
    centre = random.uniform((0, 0), (width, height)) if over is None else over + random.uniform(-12, 12, 2)
    size = float(random.uniform(8, 30))
    if kind == 0:  # a worm
        turns = np.cumsum(random.uniform(-0.7, 0.7, 14)) + random.uniform(0, 2 * np.pi)
        points = centre + size / 6 * np.cumsum(np.stack([np.cos(turns), np.sin(turns)], 1), 0)
        cv2.polylines(mask, [fixed(points)], False, 255, int(random.integers(5, 10)), cv2.LINE_AA, SHIFT)
    elif kind == 1:  # a scribble
        points = centre + np.cumsum(random.uniform(-size, size, (int(random.integers(3, 8)), 2)), 0)
        cv2.polylines(mask, [fixed(points)], False, 255, int(random.integers(1, 4)), cv2.LINE_AA, SHIFT)
    elif kind == 2:  # a bar across
        points = random.uniform((0, 0), (width, height), (2, 2))
        cv2.polylines(mask, [fixed(points)], False, 255, int(random.integers(2, 7)), cv2.LINE_AA, SHIFT)
    else:  # a letter
        letter = "ABEFGHKMNRSWZ2345789"[int(random.integers(20))]
        place = (int(centre[0]) - 10, int(centre[1]) + 10)
        cv2.putText(
            mask, letter, place, cv2.FONT_HERSHEY_DUPLEX, size / 16, 255, int(random.integers(1, 4)), cv2.LINE_AA
        )
    paint(random, image, mask)
    return mask > 127


def fixed(points: np.ndarray) -> np.ndarray:
    return np.round(points * (1 << SHIFT)).astype(np.int32)


def _outlines(name: str) -> list[np.ndarray]:
    """Outlines of a class within [-1, 1]; the second, if there is one, is a hole."""
    turn = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    circle = np.stack([np.cos(turn), np.sin(turn)], 1)
    if name == "circle":
        return [circle]
    if name == "ring":
        return [circle, circle * 0.52]
    if name == "square":
        return [np.array([(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)])]
    if name == "triangle":
        angle = np.pi * (np.arange(3) * 2 / 3 - 0.5)
        return [np.stack([np.cos(angle), np.sin(angle)], 1)]
    if name == "star":
        angle = np.pi * (np.arange(10) / 5 - 0.5)
        radius = np.where(np.arange(10) % 2, 0.42, 1.0)
        return [np.stack([np.cos(angle), np.sin(angle)], 1) * radius[:, None]]
    arm = 0.32
    corner = [(-arm, -1), (arm, -1), (arm, -arm), (1, -arm), (1, arm), (arm, arm)]
    return [np.array(corner + [(-x, -y) for x, y in corner])]


def _shape(
    random: np.random.Generator, name: str, centre: np.ndarray, size: float, height: int, width: int
) -> tuple[np.ndarray, int]:
    """Return the coverage (H, W) uint8 of a turned and stretched shape, and its whole area in pixels."""
    angle = random.uniform(-MAX_TURN, MAX_TURN)
    stretch = np.exp(random.uniform(-0.2, 0.2))
    return filled(_outlines(name), angle, stretch, centre, size, (height, width))


def filled(
    outlines: list[np.ndarray], angle: float, stretch: float, centre: np.ndarray, size: float, image: tuple[int, int]
) -> tuple[np.ndarray, int]:
    """Return the coverage (H, W) uint8 of outlines, stretched, then turned by `angle`, and their whole area in pixels.

    outlines: within [-1, 1], which become `size` pixels; the second is a hole. image: its height and width.
    """
    import cv2

    turn = np.array([(np.cos(angle), -np.sin(angle)), (np.sin(angle), np.cos(angle))])
    alpha = np.zeros(image, np.uint8)
    area = 0.0
    for level, outline in enumerate(outlines):
        points = (outline * (stretch, 1 / stretch) * (size / 2)) @ turn.T
        cv2.fillPoly(alpha, [fixed(points + centre)], 0 if level else 255, cv2.LINE_AA, SHIFT)
        area += (-1 if level else 1) * cv2.contourArea(points.astype(np.float32))
    return alpha, int(area)


def paint(random: np.random.Generator, image: np.ndarray, alpha: np.ndarray, outlined: float = 0.3) -> None:
    """Paint a region with a colour that stands out from what is below, plain, shaded or striped.

    outlined: the probability of an outline.
    """
    import cv2

    left, top, width, height = cv2.boundingRect(alpha)
    if not width:
        return
    window = (slice(top, top + height), slice(left, left + width))
    alpha, image = alpha[window], image[window]  # views: only this part is touched
    below = np.array(cv2.mean(image, alpha)[:3])
    colour = below
    for _ in range(10):
        colour = _colour(random)
        if np.abs(colour - below).max() > 80:
            break
    fill = np.broadcast_to(colour.astype(np.float32), image.shape)
    style = random.random()
    if style < 0.45:
        direction = random.uniform(-1, 1, 2).astype(np.float32)
        wave = direction[0] * np.arange(width, dtype=np.float32) + direction[1] * np.arange(
            height, dtype=np.float32
        ).reshape(-1, 1)
        if style < 0.2:  # stripes
            wave = np.sin(wave * np.float32(random.uniform(0.5, 1.5))) * np.float32(random.uniform(10, 30))
        fill = fill + np.clip(wave, -45, 45)[..., None]
    _blend(image, fill, alpha)
    if random.random() < outlined:
        edge = cv2.morphologyEx(alpha, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) & alpha
        _blend(image, _colour(random).astype(np.float32), edge)


def _blend(image: np.ndarray, fill: np.ndarray, alpha: np.ndarray) -> None:
    """Lay `fill` over `image`, in place, as far as alpha (H, W) uint8 covers it."""
    cover = alpha[..., None] * np.float32(1 / 255)
    image[:] = np.clip(image + (fill - image) * cover, 0, 255)


SHAPES = Drawing("shapes", 7, CLASSES, draw_image)
