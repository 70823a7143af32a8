"""The tables that training and evaluation end with."""

from collections.abc import Mapping

from rich.markup import escape
from rich.table import Table
from torch import Tensor

from detkit.evaluation.coco import NUMBERS, COCOResult
from detkit.evaluation.score import Result
from detkit.evaluation.voc import VOCResult
from detkit.names import shown

Columns = dict[str, tuple[str, list[str]]]  # title -> foot, cells


def per_class_table(result: Result, *, split: str, source: str, masks: COCOResult | None = None) -> Table:
    """Return a rich table, one row a class, the means below.

    It has AP, objects, how many of them were found, and detections; for COCO's metric AP, AP50, AP75, AR100 and
    objects, with the others of its numbers in the caption. split, source: which images, and what was scored (a
    checkpoint, a file of detections); they stand in the caption beside metric and IoU, since a number says nothing
    without its protocol. masks: the result of the masks, whose numbers stand above the caption.
    """
    caption = f"{result.protocol}\n{shown(split)}: {result.images} images\n{shown(source)}"
    if isinstance(result, COCOResult):
        columns, npos = _coco_columns(result), result.npos[0]
        caption = "\n".join([*_others(result), caption])
    else:
        columns, npos = _voc_columns(result), result.npos
    if masks is not None:
        lines = [NUMBERS[at : at + 3] for at in range(0, len(NUMBERS), 3)]
        numbers = ["  ".join(f"{name} {_figure(masks.summary[name])}" for name in line) for line in lines]
        caption = "\n".join(["masks:", *numbers, masks.protocol, "boxes:", caption])
    table = Table(
        show_footer=True, caption=escape(caption), caption_justify="left", caption_style="", title_justify="left"
    )
    none = int((npos == 0).sum())
    mean = "mAP" if not none else f"mAP of {len(result.classes) - none} classes"
    table.add_column("class", mean, overflow="fold", min_width=20)  # wide enough for the caption
    for title, (foot, _) in columns.items():
        table.add_column(title, foot, justify="right", no_wrap=True)
    for row in zip(map(escape, map(shown, result.classes)), *(cells for _, cells in columns.values())):
        table.add_row(*row)
    return table


def _voc_columns(result: VOCResult) -> Columns:
    counts = {"objects": result.npos, "found": result.found, "detections": result.counted}
    ap, *classes = (_figure(value, "no objects") for value in (result.mAP, *result.ap.tolist()))
    columns = {"AP": (ap, classes)}
    return columns | {title: _numbers(values) for title, values in counts.items()}


def _coco_columns(result: COCOResult) -> Columns:
    precision, recall = result.precision[0], result.recall[2, 0]
    values = {"AP": result.ap, "AP50": precision[0], "AP75": precision[5], "AR100": recall.mean(0)}
    columns = {
        title: (_figure(result.summary[title]), [_figure(value) for value in column.tolist()])
        for title, column in values.items()
    }
    return columns | {"objects": _numbers(result.npos[0])}


def _others(result: COCOResult) -> list[str]:
    """Lines of those of the twelve numbers that have no column."""
    lines = ("APs", "APm", "APl"), ("AR1", "AR10", "ARs", "ARm", "ARl")
    return ["  ".join(f"{name} {_figure(result.summary[name])}" for name in line) for line in lines]


def _numbers(values: Tensor) -> tuple[str, list[str]]:
    return str(int(values.sum())), [str(value) for value in values.tolist()]


def reference_table(ours: Mapping[str, float], reference: Mapping[str, float], name: str) -> Table:
    """Return a rich table of our numbers, those of the reference `name`, and their differences."""
    table = Table()
    table.add_column("")
    for title in ("detkit", name, "difference"):
        table.add_column(title, justify="right", no_wrap=True)
    for key, value in ours.items():
        table.add_row(key, f"{value:.9f}", f"{reference[key]:.9f}", f"{value - reference[key]:.1e}")
    return table


def _figure(value: float, none: str = "-") -> str:
    return f"{value:.4f}" if value == value else none
