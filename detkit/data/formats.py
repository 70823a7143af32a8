"""The formats of data sets, and finding out what a folder holds."""

from collections.abc import Sequence
from pathlib import Path

from detkit.data.coco import COCODataset, coco_splits
from detkit.data.dataset import DetectionDataset, parse_splits
from detkit.data.voc import VOCDataset, how_to_get, is_voc
from detkit.data.yolo import YOLODataset, find_config
from detkit.errors import UserError, did_you_mean

DATASETS: dict[str, type[DetectionDataset]] = {"voc": VOCDataset, "coco": COCODataset, "yolo": YOLODataset}
SIGNS = (
    "ImageSets/Main or Annotations/*.xml or XML files beside images (VOC), annotations/*.json (COCO), data.yaml or "
    "labels/ (YOLO)"
)


def find_format(root: str | Path, format_name: str = "auto") -> str:
    """Return `voc`, `coco` or `yolo`: the name given, or with `auto` what the folder holds.

    Raises UserError, in one line, where it holds none of them, or several.
    """
    if format_name != "auto":
        if format_name not in DATASETS:
            raise UserError(f"no format {format_name!r} of a data set{did_you_mean(format_name, DATASETS)}")
        return format_name
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"no data set at {root}; {how_to_get(root)}")
    formats = _formats(root)
    if len(formats) == 1:
        return formats[0]
    if formats:
        raise UserError(f"{root} looks like {' and '.join(formats)}; say which, as in data.format={formats[0]}")
    inner = [path.name for path in sorted(root.iterdir()) if path.is_dir() and _formats(path)]
    hint = f"it holds {', '.join(inner)}: name splits as {inner[0]}/SPLIT" if inner else f"looked for {SIGNS}"
    raise UserError(f"{root} is no data set; {hint}")


def _formats(root: Path) -> list[str]:
    coco = bool(coco_splits(root))
    folders = [folder for name in ("", "train", "val", "valid", "test") if (folder := root / name / "labels").is_dir()]
    # labels may hold VOC's XML files
    rows = find_config(root) is not None or any(_has_labels(folder) for folder in folders)
    found = {"voc": is_voc(root, others=coco or rows), "coco": coco, "yolo": rows}
    return [name for name, present in found.items() if present]


def _has_labels(folder: Path) -> bool:
    """Whether a folder may hold YOLO's label files: it has some, or no files of another kind."""
    names = [path.suffix.lower() for path in folder.iterdir()]
    return ".xml" not in names or ".txt" in names


def find_splits(root: str | Path, format_name: str = "auto") -> list[str]:
    """Names of the splits of one data set; UserError where it has none."""
    root = Path(root)
    splits = DATASETS[find_format(root, format_name)].splits(root)
    if not splits:
        raise UserError(f"{root} holds no split, such as train; make them with: python tools/dataset.py split {root}")
    return splits


def usual_split(root: str | Path, use: str, format_name: str = "auto") -> list[str]:
    """Return what of a data set is for `train`, `val` or `test`, by the names of its splits; may be empty.

    Training takes trainval, and then there is no val; else each takes the split that is called so, or begins so.
    Raises UserError where several could be meant, or there is none to train on.
    """
    splits = find_splits(root, format_name)
    if "trainval" in splits and use != "test":
        return ["trainval"] if use == "train" else []
    fitting = [use] if use in splits else [name for name in splits if name.startswith(use)]
    if len(fitting) > 1 or (use == "train" and not fitting):
        of_it = f"splits {', '.join(fitting or splits)}"
        raise UserError(f"{root} has the {of_it}; name one, as in data.{use}=[{(fitting or splits)[0]}]")
    return fitting


def open_sources(
    sources: Sequence[tuple[Path, str]],
    classes: Sequence[str] | None = None,
    format_name: str = "auto",
    *,
    name: str | None = None,
    ids: Sequence[str] | None = None,
) -> DetectionDataset:
    """Open (root, split) pairs, all of one format; see DetectionDataset for names and ids, and what UserError says."""
    kinds = {root: find_format(root, format_name) for root, _ in sources}
    if len(set(kinds.values())) > 1:
        text = ", ".join(f"{root} is {kind}" for root, kind in kinds.items())
        raise UserError(f"a data set is of one format: {text}; convert one with: python tools/dataset.py convert")
    kind = next(iter(kinds.values()), "voc")
    return DATASETS[kind](sources, classes, name, ids)


def open_root(root: str | Path, splits: Sequence[str], format_name: str = "auto") -> DetectionDataset:
    """Open splits below a root, see `parse_splits`."""
    return open_sources(parse_splits(root, splits), format_name=format_name)
