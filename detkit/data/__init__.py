"""Data sets, augmentation and the loader. Knows nothing of models."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from detkit.config import DataConfig
    from detkit.data.voc import VOCDataset


def open_dataset(data: "DataConfig", split: str, classes: Sequence[str] | None = None) -> "VOCDataset":
    """Open the images that a config names for `train`, `val` or `test`; draws the shapes data set on first use.

    classes: label order, as a checkpoint carries it; else that of the config; else read from the annotations.
    Raises UserError for whatever is missing or broken, see VOCDataset.
    """
    from detkit.data.voc import VOCDataset, parse_splits
    from detkit.errors import UserError, did_you_mean

    if split not in ("train", "val", "test"):
        raise UserError(f"no split {split!r} in a config{did_you_mean(split, ('train', 'val', 'test'))}")
    names = getattr(data, split)
    if not names:
        raise UserError(f"data.{split} is empty; name a split of {data.root}, as in data.{split}=[{split}]")
    if data.format == "shapes":
        from detkit.data.shapes import ensure_shapes

        ensure_shapes(data.root)
    return VOCDataset(parse_splits(data.root, names), classes if classes is not None else data.classes)
