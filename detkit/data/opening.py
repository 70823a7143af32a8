"""The data sets that a config names."""

from collections.abc import Sequence
from pathlib import Path

from detkit.config import DataConfig
from detkit.data.dataset import DetectionDataset, parse_splits
from detkit.data.drawn import DRAWINGS, written_format
from detkit.data.formats import open_sources, usual_split
from detkit.data.shapes import ensure_shapes
from detkit.data.split_file import read_split_file
from detkit.errors import UserError, did_you_mean


def split_names(data: DataConfig, use: str) -> list[str]:
    """Return the splits that a config uses for `train`, `val` or `test`; draws shapes on first use.

    What the config leaves open (null) is found in the root, see `usual_split`; not so val where training is given,
    since it may be part of that.
    """
    if use not in ("train", "val", "test"):
        raise UserError(f"no split {use!r} in a config{did_you_mean(use, ('train', 'val', 'test'))}")
    if data.format == "given":
        raise UserError(
            "the data of this run were given in Python: give them again, as in detkit.train(resume=..., data=...), or "
            "name others, as in data.format=auto data.root=PATH"
        )
    if data.format in DRAWINGS:
        ensure_shapes(data.root, drawing=DRAWINGS[data.format])
    named = getattr(data, use)
    if named is not None:
        return list(named)
    if data.split_file is not None:
        shared = read_split_file(data.split_file)
        return [shared.of] if use in shared.parts else []
    return [] if use == "val" and data.train is not None else usual_split(data.root, use, written_format(data.format))


def open_dataset(data: DataConfig, split: str, classes: Sequence[str] | None = None) -> DetectionDataset:
    """Open the images that a config names for `train`, `val` or `test`; draws shapes on first use.

    classes: label order, as a checkpoint carries it; else that of the config; else read from the annotations.
    Raises UserError for whatever is missing or broken, see DetectionDataset.
    """
    names = split_names(data, split)
    if not names:
        raise UserError(f"data.{split} is empty; name a split of {data.root}, as in data.{split}=[{split}]")
    name = ids = None
    if data.split_file is not None and getattr(data, split) is None:
        name, ids = f"{Path(data.root).name}/{split}", read_split_file(data.split_file).parts[split]
    classes = data.classes if classes is None else classes
    return open_sources(parse_splits(data.root, names), classes, written_format(data.format), name=name, ids=ids)


def open_split(
    root: str | Path, split: str = "train", format_name: str = "auto", classes: Sequence[str] | None = None
) -> DetectionDataset:
    """Open a split below a root, see `detkit.open_dataset`."""
    return open_dataset(DataConfig(format=format_name, root=str(root), test=[split]), "test", classes)
