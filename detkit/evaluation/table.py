"""The table that training and evaluation end with."""

from typing import TYPE_CHECKING

from detkit.evaluation.voc import VOCResult

if TYPE_CHECKING:
    from rich.table import Table


def per_class_table(result: VOCResult, *, split: str, source: str) -> "Table":
    """Return a rich table: AP, objects, how many of them were found, and detections for each class; the mean below.

    split, source: which images, and what was scored (a checkpoint, a file of detections); they stand in the caption
    beside metric and IoU, since a number says nothing without its protocol.
    """
    from rich.markup import escape
    from rich.table import Table

    caption = f"{result.protocol}\n{split}: {result.images} images\n{source}"
    table = Table(
        show_footer=True, caption=escape(caption), caption_justify="left", caption_style="", title_justify="left"
    )
    none = int((result.npos == 0).sum())
    mean = "mAP" if not none else f"mAP of {len(result.classes) - none} classes"
    table.add_column("class", mean, overflow="fold", min_width=20)  # wide enough for the caption
    totals = (result.npos.sum(), result.found.sum(), result.counted.sum())
    footers = [_ap(result.mAP), *(str(int(total)) for total in totals)]
    for name, footer in zip(("AP", "objects", "found", "detections"), footers):
        table.add_column(name, footer, justify="right", no_wrap=True)
    columns = (result.ap, result.npos, result.found, result.counted)
    for name, ap, npos, found, counted in zip(result.classes, *(column.tolist() for column in columns)):
        table.add_row(escape(name), _ap(ap), str(npos), str(found), str(counted))
    return table


def _ap(value: float) -> str:
    return f"{value:.4f}" if value == value else "no objects"
