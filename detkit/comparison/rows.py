"""The numbers of a comparison: as plain data, as CSV, and as a table on screen."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from detkit.comparison.detecting import BATCHES, Cost
from detkit.comparison.entries import Entry
from detkit.evaluation import COCOResult, Result
from detkit.evaluation.diagnosis import Group
from detkit.evaluation.errors import KINDS, ErrorAnalysis
from detkit.names import cell_text, shown
from detkit.report.markup import digits
from detkit.structures import DetectionSet
from detkit.viz.curves import SpeedPoint

TITLE, COLUMN = 21, 9  # characters of the tables on screen: titles of the lines, and a detector's numbers


@dataclass(frozen=True)
class Training:
    """images_per_second: in steps of SGD. seconds: of the command where `clocked`, else of what the log tells:
    steps and evaluations. Both None where it tells nothing."""

    images_per_second: float | None
    seconds: float | None
    clocked: bool


@dataclass(frozen=True)
class Compared:
    """All that is known of one detector.

    groups: of objects by size, crowding and flags. score: where F1 is best; working: the errors from there on.
    images_per_second: in detection, by images at once, proposals stored; empty where it was not measured. proposals:
    seconds an image that making them takes, None where there are none or it is not known. masks: their result, by
    COCO's rules; None of a detector that finds none.
    """

    entry: Entry
    result: Result
    detections: DetectionSet
    errors: ErrorAnalysis
    groups: Sequence[Group]
    score: float
    working: ErrorAnalysis
    cost: Cost
    training: Training
    images_per_second: Mapping[int, float] = field(default_factory=dict)
    proposals: float | None = None
    masks: COCOResult | None = None

    @property
    def end_to_end(self) -> dict[int, float]:
        """Images a second with the making of proposals; empty where that is not known."""
        if self.entry.takes_proposals and self.proposals is None:
            return {}
        return {batch: 1 / (1 / speed + (self.proposals or 0)) for batch, speed in self.images_per_second.items()}

    @property
    def point(self) -> SpeedPoint:
        """Where it is in a plot of speeds, once these are measured."""
        slower = self.end_to_end.get(1) if self.entry.takes_proposals else None
        return SpeedPoint(self.entry.label, self.result.mAP, self.images_per_second[1], slower)

    def to_dict(self) -> dict[str, Any]:
        """Return what compare.json holds of the detector; null stands for what is not known."""
        result, config, errors = self.result.to_dict(), self.entry.config, self.errors.to_dict()
        curves = {"mAP50": errors["mAP50"]} if isinstance(self.result, COCOResult) else {}
        backbone = getattr(config.model, "backbone", None)
        return {
            "name": self.entry.name,
            "model": config.model.name,
            "backbone": getattr(backbone, "name", None),
            "checkpoint": str(self.entry.best),
            "finished": self.entry.finished,
            "mAP": result["mAP"],
            **curves,
            "AP": result["AP"],
            "mask_AP": None if self.masks is None else self.masks.to_dict()["mAP"],
            "mask_AP50": None if self.masks is None else self.masks.to_dict()["AP50"],
            "images_per_second": {str(batch): self.images_per_second.get(batch) for batch in BATCHES},
            "takes_proposals": self.entry.takes_proposals,
            "proposals_seconds_per_image": self.proposals,
            "images_per_second_with_proposals": {str(batch): self.end_to_end.get(batch) for batch in BATCHES},
            "training_images_per_second": self.training.images_per_second,
            "training_seconds": self.training.seconds,
            "training_seconds_of": "whole command" if self.training.clocked else "steps and evaluations in log.jsonl",
            "memory_bytes": self.cost.memory,
            "parameters": self.cost.parameters,
            "FLOPs": self.cost.flops,
            "error_counts": {kind: errors["counts"][kind] for kind in ("right", *KINDS)},
            "error_mAP_cost": {kind: errors["mAP_cost"][kind] for kind in KINDS},
            "best_F1_score": self.score,
            "groups": {group.name: group.to_dict() for group in self.groups},
        }


def to_csv(rows: Sequence[Compared]) -> str:
    """Return a table of all numbers of `to_dict`, a line a detector; `AP.cat` is the column of AP's cat."""
    flat = [
        {cell_text(key): cell_text(value) if isinstance(value, str) else value for key, value in one.items()}
        for one in (_flat(row.to_dict()) for row in rows)
    ]
    file = io.StringIO()
    writer = csv.DictWriter(file, list(flat[0]), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return file.getvalue()


def _flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{before}{name}.") if isinstance(value, Mapping) else {f"{before}{name}": value}
    return flat


def cells(row: Compared, masks: bool) -> dict[str, str]:
    """Return what the tables on screen and on the page show of a detector, by column.

    masks: whether they show masks' AP.
    """
    costs, training = row.cost, row.training
    making = _three(row.proposals) if row.proposals is not None else "unknown" if row.entry.takes_proposals else "none"
    seconds = "–" if training.seconds is None else ("" if training.clocked else "~") + clock(training.seconds)
    return {
        "mAP": digits(row.result.mAP),
        **({"mask AP": "–" if row.masks is None else digits(row.masks.mAP)} if masks else {}),
        **{f"images/s, batch {batch}": _three(row.images_per_second.get(batch)) for batch in BATCHES},
        "proposals, s/image": making,
        "images/s, training": _three(training.images_per_second),
        "training": seconds,
        "memory, MB": _three(None if costs.memory is None else costs.memory / 1e6),
        "parameters, M": _three(costs.parameters / 1e6),
        "GFLOPs": _three(costs.flops / 1e9),
    }


def finds_masks(rows: Sequence[Compared]) -> bool:
    """Whether any of the detectors finds masks."""
    return any(row.masks is not None for row in rows)


def screen_tables(rows: Sequence[Compared], caption: str, width: int) -> list[Table]:
    """Return rich tables, one column a detector, in each as many as fit on a screen of `width` characters."""
    count = -(-len(rows) // max(1, (width - TITLE) // COLUMN))
    size = -(-len(rows) // count)
    masks, groups = finds_masks(rows), by_group(rows)
    tables = []
    for first in range(0, len(rows), size):
        part = slice(first, first + size)
        own = [(name, *of_each[part]) for name, *of_each in groups]
        tables.append(_screen_table(rows[part], own, masks, caption if first + size >= len(rows) else ""))
    return tables


def _screen_table(rows: Sequence[Compared], groups: Sequence[tuple[Any, ...]], masks: bool, caption: str) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), caption=escape(caption), caption_justify="left", caption_style=""
    )
    table.add_column("", no_wrap=True)
    for row in rows:
        table.add_column(escape(shown(row.entry.label)), justify="right", overflow="fold")
    for title, *texts in zip(cells(rows[0], masks), *(cells(row, masks).values() for row in rows)):
        table.add_row(title, *texts)
    table.add_section()
    for kind, kind_costs in zip(KINDS, zip(*(row.errors.cost.tolist() for row in rows))):
        gains = (f"{cost:+.4f}" if cost == cost else "–" for cost in kind_costs)
        table.add_row(kind, *gains)
    table.add_section()
    for name, *of_each in groups:
        table.add_row(name, *(digits(group.ap) for group in of_each))
    return table


def by_group(rows: Sequence[Compared]) -> list[tuple[str, *tuple[Group, ...]]]:
    """Return the name of each group of objects that there are, and what each detector finds of it."""
    groups = zip(*(row.groups for row in rows))
    return [(of_one[0].name, *of_one) for of_one in groups if of_one[0].objects and of_one[0].name != "all"]


def clock(seconds: float) -> str:
    """Seconds as hours:minutes:seconds, or minutes:seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _three(value: float | None) -> str:
    """Three digits, or all of those before the point."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
