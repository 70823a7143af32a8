"""The masks of a split's objects: read when they are asked for, kept as run lengths, see detkit/rle.py."""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from detkit import rle
from detkit.data.annotations import Fault
from detkit.data.coco_index import load_coco, number_of
from detkit.data.index import fingerprint, load_arrays, save_arrays, texts
from detkit.data.values import path_below
from detkit.errors import UserError
from detkit.rle import RLE

VOID = 255  # in VOC's PNGs
NOTHING = ("is missing", "is empty")  # what is said of an annotation that has no segmentation
BORDER = 10, 0.1  # pixels, and share of a box's side, that VOC's masks may leave of their box
OUTSIDE = 0.1  # share of a mask of VOC that may lie outside its box
ROUNDING = 1, 0.02  # pixels, and share of a box's side, that COCO's masks and boxes may differ by


class MaskFault(NamedTuple):
    """What is wrong with a mask. number: of the object, 0 where no single one is meant; kind: for a table."""

    number: int
    kind: str
    text: str


MaskCheck = Callable[[int], list[MaskFault]]


class Masks(Protocol):
    """The masks of a split's objects."""

    def __call__(self, row: int, numbers: Sequence[int], size: tuple[int, int]) -> list[RLE | str]:
        """Return the mask, or what is wrong with it, of each object of an image of `size` (height, width).

        row: of the image in its index; numbers: of the objects, see AnnotatedObject.
        """
        ...


class COCOMasks:
    """The masks in a JSON file. They are parsed once, and kept in a file as an index is, see `cached_index`.

    sizes: (F, 2) width and height of the file's images.
    """

    def __init__(self, root: Path, path: Path, sizes: np.ndarray) -> None:
        name, state = path_below(path, root), path.stat()
        key = f"coco masks {name}"
        digest = fingerprint([name, state.st_size, state.st_mtime_ns, sizes.tolist()])
        arrays = load_arrays(root, key, digest)
        if arrays is None:
            arrays = _coco_masks(load_coco(path), sizes)
            save_arrays(root, key, digest, arrays)
        self._numbers, self._counts, self._ends = arrays["numbers"], arrays["counts"], arrays["stops"]
        self._extents, self._pixels = arrays["extents"], arrays["pixels"]
        faults = arrays["fault_number"].tolist(), arrays["fault_text"].tolist()
        self._faults: dict[int, str] = dict(zip(*faults))

    def __call__(self, row: int, numbers: Sequence[int], size: tuple[int, int]) -> list[RLE | str]:
        return [self._faults.get(number) or self._mask(number, size) for number in numbers]

    def check(self, numbers: Sequence[int], boxes: np.ndarray, size: tuple[int, int], slack: float) -> list[MaskFault]:
        """Return what is wrong with the masks of the objects of one image, which have `boxes` (N, 4).

        A box is the extent of its mask, but for ROUNDING: COCO's own are, exactly, that of the polygons' corners. It is
        not that of the mask's pixels, which leave out what is thinner than a pixel. slack: pixels that a polygon may
        reach beyond its image.
        """
        found, (height, width) = [], size
        limits = np.array([width, height] * 2, float)
        for number, box in zip(numbers, boxes):
            if number in self._faults:
                text = self._faults[number]
                found.append(MaskFault(number, "no mask" if text.endswith(NOTHING) else "broken mask", text))
                continue
            place = int(np.searchsorted(self._numbers, number))
            extent, inside = self._extents[place], np.clip((self._extents[place], box), 0, limits)
            if (extent[:2] < -slack).any() or (extent[2:] > limits[2:] + slack).any():
                text = f"its segmentation reaches from {_point(extent[:2])} to {_point(extent[2:])}"
                found.append(MaskFault(number, "mask outside", f"{text}, and its image has {width}x{height} pixels"))
            elif not self._pixels[place]:
                found.append(MaskFault(number, "empty mask", "its segmentation has no pixel"))
            elif (np.abs(inside[0] - inside[1]) > _allowed(box, ROUNDING)).any():
                found.append(MaskFault(number, "mask and box", _differ(extent, box)))
        return found

    def _mask(self, number: int, size: tuple[int, int]) -> RLE:
        place = int(np.searchsorted(self._numbers, number))
        low, high = self._ends[place - 1] if place else 0, self._ends[place]
        return {"size": [*size], "counts": self._counts[low:high].tobytes()}


def _coco_masks(content: dict[str, Any], sizes: np.ndarray) -> dict[str, np.ndarray]:
    """The masks of all annotations in the order of their numbers, one after the other, and what is wrong with some.

    extents: (N, 4) xyxy of the corners of polygons, and of the pixels of run lengths; pixels: (N,) how many.
    """
    size_of = {image["id"]: (int(height), int(width)) for image, (width, height) in zip(content["images"], sizes)}
    items = [(number_of(item, at), item) for at, item in enumerate(content["annotations"], 1)]
    counts = Counter(number for number, _ in items)
    numbers, parts, extents, pixels, faults = [], [], [], [], {}
    for number, item in sorted(items, key=lambda pair: pair[0]):
        # an image that nobody can read has no size, and is refused where it is read
        size = size_of.get(item["image_id"] if type(item.get("image_id")) in (int, str) else None, (0, 0))
        known = min(size) > 0 and max(size) < rle.MAX_SIDE
        found = rle.parse(item.get("segmentation"), size) if known else "is of an image of unknown size"
        if counts[number] > 1:
            found = "is one of several with this number: its id is missing or there twice"
        if isinstance(found, str):
            faults[number] = f"its segmentation {found}"
        else:
            numbers.append(number)
            parts.append(found["counts"])
            extents.append(_extent(item["segmentation"], found))
            pixels.append(rle.area([found])[0])
    return {
        "numbers": np.array(numbers, np.int64),
        "counts": np.frombuffer(b"".join(parts), np.uint8),
        "stops": np.cumsum([len(part) for part in parts], dtype=np.int64),
        "extents": np.array(extents, np.float64).reshape(-1, 4),
        "pixels": np.array(pixels, np.float64),
        "fault_number": np.array([*faults], np.int64),
        "fault_text": texts([*faults.values()]),
    }


def _extent(segmentation: Any, mask: RLE) -> np.ndarray:
    """The extent (4,) xyxy of a segmentation that is right, and its mask."""
    if isinstance(segmentation, dict):
        return rle.boxes([mask])[0]
    corners = np.concatenate([np.array(polygon, np.float64).reshape(-1, 2) for polygon in segmentation])
    return np.concatenate((corners.min(0), corners.max(0)))


def _allowed(box: np.ndarray, rule: tuple[float, float]) -> np.ndarray:
    """How many pixels (4,) each edge of a box may be off: so many, and a share of the side."""
    pixels, share = rule
    return pixels + share * np.tile(box[2:] - box[:2], 2)


def _differ(extent: np.ndarray, box: np.ndarray) -> str:
    first, second = (f"from {_point(one[:2])} to {_point(one[2:])}" for one in (extent, box))
    return f"its mask reaches {first}, its box {second}"


def _point(point: np.ndarray) -> str:
    return f"({point[0]:g}, {point[1]:g})"


class VOCMasks:
    """VOC's SegmentationObject: a PNG for each image, whose pixels are numbers of objects, in the XML file's order.

    0 is background, and 255 is void: the border of an object, of nobody. folder: of the PNGs; names: of the images, by
    their row.
    """

    def __init__(self, folder: str, names: Sequence[str]) -> None:
        self._folder, self._names = folder, names

    def path(self, row: int) -> Path:
        """Return the path of an image's PNG, whether it is there or not."""
        return Path(self._folder, f"{self._names[row]}.png")

    def __call__(self, row: int, numbers: Sequence[int], size: tuple[int, int]) -> list[RLE | str]:
        of_pixel = self._read(row, size)
        masks = of_pixel == np.array(numbers, np.int64).reshape(-1, 1, 1)
        found = zip(rle.encode(masks), masks.any((1, 2)).tolist(), numbers)
        return [mask if some else self._nothing(row, number) for mask, some, number in found]

    def check(
        self,
        row: int,
        numbers: Sequence[int],
        boxes: np.ndarray,
        size: tuple[int, int],
        refused: Collection[int],
        needed: bool,
    ) -> list[MaskFault]:
        """Return what is wrong with the masks of the objects of one image, which have `boxes` (N, 4).

        VOC's masks are drawn by hand apart from the boxes, and end at a border of void, 3 to 6 pixels inside: see
        BORDER. Its guidelines leave out of a box what is little of an object, such as an aerial: see OUTSIDE. refused:
        numbers of objects that were not read, 0 for all; needed: whether the image is to have masks.
        """
        path = self.path(row)
        if not path.is_file():
            text = f"{path.name} is missing, which has its masks"
            return [MaskFault(0, "no mask", text)] if needed and numbers else []
        if not min(size) or 0 in refused:  # an image, or annotations, that nobody can read
            return []
        try:
            of_pixel = self._read(row, size)
        except UserError as error:
            return [MaskFault(0, "broken mask", str(error).removeprefix(f"{path.parent}/"))]
        found, pixels = [], np.bincount(of_pixel.flatten(), minlength=VOID + 1)
        if strange := sorted({*np.flatnonzero(pixels).tolist()} - {0, VOID, *numbers, *refused}):
            listed = ", ".join(map(str, strange))
            found.append(MaskFault(0, "mask of no object", f"{path.name} has pixels of {listed}, and no such object"))
        for number, box in zip(numbers, boxes):
            if number >= VOID or not pixels[number]:
                found.append(MaskFault(number, "no mask", self._nothing(row, number)))
                continue
            mask = of_pixel == number
            columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
            extent = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], float)
            low, high = (np.clip(corner, 0, size[::-1]) for corner in (box[:2], box[2:]))
            (left, top), (right, bottom) = np.floor(low).astype(int), np.ceil(high).astype(int)
            outside = 1 - mask[top:bottom, left:right].sum() / pixels[number]
            free = np.concatenate((extent[:2] - low, high - extent[2:]))
            if outside > OUTSIDE or (free > _allowed(box, BORDER)).any():
                found.append(MaskFault(number, "mask and box", _differ(extent, box)))
        return found

    def _read(self, row: int, size: tuple[int, int]) -> np.ndarray:
        """Return the number of the object at each pixel, (H, W) uint8."""
        from PIL import Image  # with its numbers: cv2 would turn a palette into colours

        path = self.path(row)
        try:
            with Image.open(path) as image:
                if image.mode not in ("P", "L"):
                    raise UserError(f"{path} is of colours, not of the numbers of objects")
                of_pixel = np.array(image)
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: no masks can be read: {' '.join(str(error).split())}") from None
        if of_pixel.shape != size:
            raise UserError(f"{path}: {of_pixel.shape[1]}x{of_pixel.shape[0]}, but its image is {size[1]}x{size[0]}")
        return of_pixel

    def _nothing(self, row: int, number: int) -> str:
        return f"no pixel of {self.path(row).name} is {number}"


def faults_of(numbers: Sequence[int], masks: Sequence[RLE | str]) -> list[Fault]:
    """Return what is wrong with masks."""
    return [Fault(number, mask) for number, mask in zip(numbers, masks) if isinstance(mask, str)]
