"""Proposals that detectors of stored regions need and that do not exist yet."""

from collections.abc import Iterable
from pathlib import Path

from detkit.comparison.entries import Entry
from detkit.data.dataset import DetectionDataset, parse_splits
from detkit.data.drawn import written_format
from detkit.data.formats import open_sources
from detkit.data.opening import open_dataset, split_names
from detkit.errors import UserError
from detkit.proposals.selective_search import MODES

USES = ("train", "val", "test")


def missing_stores(entries: Iterable[Entry]) -> dict[Path, tuple[DetectionDataset, str]]:
    """Return the stores that configs name and that do not exist: path -> (images, mode of selective search).

    A store is of the split whose name is a part of the store's, between dashes, as `detkit proposals make` calls it;
    one that is alone is of all splits. Raises UserError where it cannot be told of which.
    """
    found: dict[Path, tuple[DetectionDataset, str]] = {}
    for entry in entries:
        paths = [Path(path) for path in entry.config.data.proposals]
        for path in paths:
            if not path.exists() and path not in found:
                mode = next((part for part in path.stem.split("-") if part in MODES), entry.config.detect.proposals)
                found[path] = _dataset(entry, path, len(paths) == 1), mode
    return found


def _dataset(entry: Entry, path: Path, alone: bool) -> DetectionDataset:
    data = entry.config.data
    splits = {use: split_names(data, use) for use in USES}
    if alone:
        names = list(dict.fromkeys(name for use in USES for name in splits[use]))
        return open_sources(parse_splits(data.root, names), data.classes, written_format(data.format))
    parts = path.stem.split("-")
    for use, names in splits.items():
        if names and all(name.rpartition("/")[2] in parts for name in names):
            return open_dataset(data, use)
    raise UserError(
        f"{entry.name}: no proposals {path}, and its name has none of the splits "
        f"{', '.join(name for names in splits.values() for name in names)}; make it with detkit proposals make"
    )
