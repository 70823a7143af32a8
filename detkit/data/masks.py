"""The masks of a split's objects: read when they are asked for, kept as run lengths, see detkit/rle.py."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from detkit import rle
from detkit.data.annotations import Fault
from detkit.data.coco_index import load_coco, number_of
from detkit.data.index import fingerprint, load_arrays, save_arrays, texts
from detkit.data.values import path_below
from detkit.errors import UserError
from detkit.rle import RLE


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
        faults = arrays["fault_number"].tolist(), arrays["fault_text"].tolist()
        self._faults: dict[int, str] = dict(zip(*faults))

    def __call__(self, row: int, numbers: Sequence[int], size: tuple[int, int]) -> list[RLE | str]:
        return [self._faults.get(number) or self._mask(number, size) for number in numbers]

    def _mask(self, number: int, size: tuple[int, int]) -> RLE:
        place = int(np.searchsorted(self._numbers, number))
        low, high = self._ends[place - 1] if place else 0, self._ends[place]
        return {"size": [*size], "counts": self._counts[low:high].tobytes()}


def _coco_masks(content: dict[str, Any], sizes: np.ndarray) -> dict[str, np.ndarray]:
    """The masks of all annotations in the order of their numbers, one after the other, and what is wrong with some."""
    size_of = {image["id"]: (int(height), int(width)) for image, (width, height) in zip(content["images"], sizes)}
    items = [(number_of(item, at), item) for at, item in enumerate(content["annotations"], 1)]
    counts = Counter(number for number, _ in items)
    numbers, parts, faults = [], [], {}
    for number, item in sorted(items, key=lambda pair: pair[0]):
        # an image that nobody can read has no size, and is refused where it is read
        size = size_of.get(item["image_id"] if type(item.get("image_id")) in (int, str) else None, (0, 0))
        found = rle.parse(item.get("segmentation"), size) if min(size) else "is of an image of unknown size"
        if counts[number] > 1:
            found = "is one of several with this number: its id is missing or there twice"
        if isinstance(found, str):
            faults[number] = f"its segmentation {found}"
        else:
            numbers.append(number)
            parts.append(found["counts"])
    return {
        "numbers": np.array(numbers, np.int64),
        "counts": np.frombuffer(b"".join(parts), np.uint8),
        "stops": np.cumsum([len(part) for part in parts], dtype=np.int64),
        "fault_number": np.array([*faults], np.int64),
        "fault_text": texts([*faults.values()]),
    }


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
        from PIL import Image  # with its numbers: cv2 would turn a palette into colours

        path = self.path(row)
        try:
            with Image.open(path) as image:
                if image.mode not in ("P", "L"):
                    return [f"{path.name} is of colours, not of the numbers of objects"] * len(numbers)
                of_pixel = np.array(image)
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: no masks can be read: {' '.join(str(error).split())}") from None
        if of_pixel.shape != size:
            raise UserError(f"{path}: {of_pixel.shape[1]}x{of_pixel.shape[0]}, but its image is {size[1]}x{size[0]}")
        masks = of_pixel == np.array(numbers, np.int64).reshape(-1, 1, 1)
        found = zip(rle.encode(masks), masks.any((1, 2)).tolist(), numbers)
        return [mask if some else f"no pixel of {path.name} is {number}" for mask, some, number in found]


def faults_of(numbers: Sequence[int], masks: Sequence[RLE | str]) -> list[Fault]:
    """Return what is wrong with masks."""
    return [Fault(number, mask) for number, mask in zip(numbers, masks) if isinstance(mask, str)]
