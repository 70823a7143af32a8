"""The report of a comparison: several detectors side by side in one page that needs nothing beside it."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import torch

from detkit.comparison.rows import Compared, by_group, cells, finds_masks
from detkit.comparison.side_by_side import side_by_side
from detkit.data.dataset import DetectionDataset
from detkit.evaluation.errors import KINDS, STATES
from detkit.files import write_atomic
from detkit.report import plots
from detkit.report.markup import cell, digits, figure, fill, legend, resource, row, scroll, table, terms
from detkit.report.write import MEANING
from detkit.viz.curves import SpeedPoint
from detkit.viz.draw import hex_colour


def write_comparison(
    path: str | Path,
    rows: Sequence[Compared],
    points: Sequence[SpeedPoint],
    dataset: DetectionDataset,
    *,
    protocol: Mapping[str, Any],
    failures: Mapping[str, str],
) -> None:
    """Write the page.

    rows: the detectors, in the order shown, all of the images of `dataset`. points: those whose speed was measured.
    protocol: what the numbers are of, shown as it is. failures: what went wrong, by detector. Images are small JPEGs of
    less than 1 MB in all.
    """
    truth = dataset.truth()
    names = [row.entry.label for row in rows]
    content = {
        "classes": truth.classes,
        "states": STATES,
        "kinds": ["right", *KINDS[:-1], "ignored"],
        "runs": [{"name": name, "shade": hex_colour(number)} for number, name in enumerate(names)],
        **side_by_side(dataset, truth, rows),
    }
    html = fill(
        resource("comparison.html", "detkit.comparison"),
        style=resource("page.css") + resource("comparison.css", "detkit.comparison"),
        script=resource("boxes.js") + resource("comparison.js", "detkit.comparison") + resource("sort.js"),
        data=content,
        title=escape(f"{len(rows)} detectors on {dataset.name}"),
        facts=_facts(rows),
        failures="".join(f"<p class=note>{escape(text)}</p>" for text in failures.values()),
        table=_numbers(rows),
        masks="Mask AP is COCO’s: the mean over IoU .5 to .95 of masks. " if finds_masks(rows) else "",
        speed=_speed(points),
        parts=_parts(rows),
        classes=_classes(rows),
        errors=_errors(rows),
        pr=figure(plots.pr_comparison(dict(zip(names, (row.result.curves for row in rows)))), legend(names)),
        choices="".join(f'<option value="{k}">{escape(name)}</option>' for k, name in enumerate(truth.classes)),
        protocol=_protocol(protocol, rows),
    )
    write_atomic(path, html)


def _facts(rows: Sequence[Compared]) -> str:
    """The few numbers to see first."""
    facts: dict[str, tuple[str, Compared]] = {}
    scored = [row for row in rows if row.result.mAP == row.result.mAP]
    if scored:
        best = max(scored, key=lambda row: row.result.mAP)
        facts["best mAP"] = f"{best.result.mAP:.4f}", best
    timed = [row for row in rows if row.end_to_end]
    if timed:
        quick = max(timed, key=lambda row: row.end_to_end[1])
        facts["fastest, proposals included"] = f"{quick.end_to_end[1]:,.0f} images/s", quick
    small = min(rows, key=lambda row: row.cost.parameters)
    facts["fewest parameters"] = f"{small.cost.parameters / 1e6:.3g} M", small
    said = {name: f"{value}<small>{escape(row.entry.label)}</small>" for name, (value, row) in facts.items()}
    return terms({**said, "images": f"{rows[0].result.images:,}<small>test split</small>"})


def _row(number: int, compared: Compared, cells: Iterable[str]) -> str:
    """A row of a table of detectors."""
    dot = f'<span class="dot run" style="--shade:{hex_colour(number)}" aria-hidden="true"></span>'
    note = "" if compared.entry.finished else "<small>training not ended</small>"
    return row(f"{dot}{escape(compared.entry.label)}{note}", cells)


def _numbers(rows: Sequence[Compared]) -> str:
    """The main table, one row a detector."""
    masks = finds_masks(rows)
    lines, titles = [], [*cells(rows[0], masks)]
    for number, compared in enumerate(rows):
        shown = cells(compared, masks)
        values = {title: text.replace(",", "") for title, text in shown.items()}
        seconds = compared.training.seconds
        values["training"] = "" if seconds is None else str(seconds)
        data = (cell(escape(text), f' data-value="{escape(values[title])}"') for title, text in shown.items())
        lines.append(_row(number, compared, data))
    return scroll("All numbers", table(["detector", *map(escape, titles)], lines, "sortable"))


def _speed(points: Sequence[SpeedPoint]) -> str:
    if not points:
        return "<p>Speed was not measured.</p>"
    caption = "Accuracy against speed: up and to the right is better."
    if any(point.slower is not None for point in points):
        caption += " Hollow: with the making of its proposals, which the filled mark reads from a store."
    return figure(plots.speed_plot(points), caption)


def _classes(rows: Sequence[Compared]) -> str:
    """AP of each class, a column a detector; the best of a class is marked."""

    def line(name: str, values: Sequence[float]) -> str:
        best = max((value for value in values if value == value), default=None)
        return row(escape(name), (cell(digits(value), " class=best" if value == best else "") for value in values))

    aps = zip(*(compared.result.ap.tolist() for compared in rows))
    lines = [line(name, values) for name, values in zip(rows[0].result.classes, aps)]
    foot = line("mAP", [compared.result.mAP for compared in rows])
    titles = ["class", *(escape(compared.entry.label) for compared in rows)]
    return scroll("AP of each class", table(titles, lines, "sortable", foot))


def _parts(rows: Sequence[Compared]) -> str:
    """AP and recall of each group of objects, a column a detector."""
    lines = []
    for name, *groups in by_group(rows):
        best = max(group.ap for group in groups)
        data = (
            cell(f"{digits(group.ap)}<small>{digits(group.recall)}</small>", " class=best" if group.ap == best else "")
            for group in groups
        )
        lines.append(row(f"{name}<small>{groups[0].objects:,}</small>", data))
    titles = ["objects", *(escape(compared.entry.label) for compared in rows)]
    return scroll("Sizes and crowding", table(titles, lines, "sortable"))


def _errors(rows: Sequence[Compared]) -> str:
    """What each kind of error costs each detector, and how many there are at best F1."""
    costs = torch.stack([compared.errors.cost[: len(KINDS)] for compared in rows]).nan_to_num(0)
    highest = max(1e-9, float(costs.max()))
    lines = []
    for number, (compared, values) in enumerate(zip(rows, costs.tolist())):
        data = []
        for kind, value, count in zip(KINDS, values, compared.working.counts.tolist()):
            meter = f'<span class="meter k-{kind}" style="width:{max(0.0, value) / highest * 100:.1f}%"></span>'
            data.append(cell(f"{value:+.4f}<small>{count:,}</small>{meter}", f' data-value="{value}"'))
        lines.append(_row(number, compared, data))
    meanings = {f'<span class="dot k-{kind}" aria-hidden="true"></span>{kind}': MEANING[kind] for kind in KINDS}
    errors = scroll("Errors by kind", table(["detector", *KINDS], lines, "sortable shares"))
    return f'{errors}<dl class="meanings">{terms(meanings)}</dl>'


def _protocol(protocol: Mapping[str, Any], rows: Sequence[Compared]) -> str:
    lines = {name: str(value) for name, value in protocol.items() if value and name != "stores made"}
    for path, seconds in protocol.get("stores made", {}).items():
        lines[f"proposals {path}"] = f"made here in {seconds:,.0f} s, all processors"
    lines |= {f"weights of {row.entry.label}": str(row.entry.best) for row in rows}
    return terms({escape(name): escape(text) for name, text in lines.items()})
