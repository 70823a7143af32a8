"""The report of a comparison: several detectors side by side in one page that needs nothing beside it."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from detkit.comparison.rows import COLUMNS, Compared, cells
from detkit.comparison.side_by_side import side_by_side
from detkit.data.dataset import DetectionDataset
from detkit.evaluation.errors import KINDS, STATES
from detkit.files import write_atomic
from detkit.report import plots
from detkit.report.template import as_data, fill, resource
from detkit.report.write import MEANING
from detkit.viz.figure import hex_colour
from detkit.viz.speed import SpeedPoint


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
    images = side_by_side(dataset, truth, rows)
    data = {
        "classes": truth.classes,
        "states": STATES,
        "kinds": ["right", *KINDS[:-1], "ignored"],
        "runs": [{"name": row.entry.label, "shade": hex_colour(number)} for number, row in enumerate(rows)],
        **images,
    }
    curves = {row.entry.label: row.result.curves for row in rows}
    parts = {
        "title": escape(f"{len(rows)} detectors on {dataset.name}"),
        "facts": _facts(rows),
        "failures": "".join(f"<p class=note>{escape(text)}</p>" for text in failures.values()),
        "table": _table(rows),
        "speed": _speed(points),
        "classes": _classes(rows),
        "errors": _errors(rows),
        "pr": plots.pr_comparison(curves),
        "pr_keys": _keys(rows),
        "choices": "".join(f'<option value="{k}">{escape(name)}</option>' for k, name in enumerate(truth.classes)),
        "protocol": _protocol(protocol, rows),
        "data": as_data(data),
        "style": resource("page.css") + resource("comparison.css", "detkit.comparison"),
        "script": resource("boxes.js") + resource("comparison.js", "detkit.comparison") + resource("sort.js"),
    }
    write_atomic(path, fill(resource("comparison.html", "detkit.comparison"), parts))


def _facts(rows: Sequence[Compared]) -> str:
    """The few numbers to see first."""
    facts: list[tuple[str, str, str]] = []
    scored = [row for row in rows if row.result.mAP == row.result.mAP]
    if scored:
        best = max(scored, key=lambda row: row.result.mAP)
        facts.append(("best mAP", best.entry.label, f"{best.result.mAP:.4f}"))
    timed = [row for row in rows if row.end_to_end]
    if timed:
        quick = max(timed, key=lambda row: row.end_to_end[1])
        facts.append(("fastest, proposals included", quick.entry.label, f"{quick.end_to_end[1]:,.0f} images/s"))
    small = min(rows, key=lambda row: row.cost.parameters)
    facts.append(("fewest parameters", small.entry.label, f"{small.cost.parameters / 1e6:.3g} M"))
    facts.append(("images", "test split", f"{rows[0].result.images:,}"))
    return "".join(
        f"<div><dt>{escape(name)}</dt><dd>{value}<small>{escape(who)}</small></dd></div>" for name, who, value in facts
    )


def _head(row: Compared, number: int) -> str:
    dot = f'<span class="dot run" style="--shade:{hex_colour(number)}" aria-hidden="true"></span>'
    note = "" if row.entry.finished else "<small>training not ended</small>"
    return f'<th scope="row">{dot}{escape(row.entry.label)}{note}</th>'


def _scroll(name: str, table: str) -> str:
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{name}">{table}</div>'


def _titles(titles: Sequence[str]) -> str:
    cells = (f'<th scope="col"><button type="button" class="sort">{escape(title)}</button></th>' for title in titles)
    return f"<thead><tr>{''.join(cells)}</tr></thead>"


def _table(rows: Sequence[Compared]) -> str:
    """The main table, one row a detector."""
    body = ""
    for number, row in enumerate(rows):
        sorted_by = {"training": row.training.seconds}
        body += f"<tr>{_head(row, number)}"
        for title, text in cells(row).items():
            value = sorted_by.get(title, text.replace(",", ""))
            body += f'<td data-value="{"" if value is None else escape(str(value), quote=True)}">{escape(text)}</td>'
        body += "</tr>"
    return _scroll(
        "All numbers",
        f'<table class="sortable">{_titles(["detector", *COLUMNS])}<tbody>{body}</tbody></table>',
    )


def _speed(points: Sequence[SpeedPoint]) -> str:
    if not points:
        return "<p>Speed was not measured.</p>"
    hollow = (
        " Hollow: with the making of its proposals, which the filled mark reads from a store."
        if any(point.slower is not None for point in points)
        else ""
    )
    caption = f"Accuracy against speed: up and to the right is better.{hollow}"
    return f'<figure class="wide" tabindex="0">{plots.speed_plot(points)}<figcaption>{caption}</figcaption></figure>'


def _classes(rows: Sequence[Compared]) -> str:
    """AP of each class, a column a detector; the best of a class is marked."""
    lines = [
        _line(name, values)
        for name, values in zip(rows[0].result.classes, zip(*(row.result.ap.tolist() for row in rows)))
    ]
    foot = _line("mAP", [row.result.mAP for row in rows])
    titles = ["class", *(row.entry.label for row in rows)]
    return _scroll(
        "AP of each class",
        f'<table class="sortable">{_titles(titles)}<tbody>{"".join(lines)}</tbody><tfoot>{foot}</tfoot></table>',
    )


def _line(name: str, values: Sequence[float]) -> str:
    best = max((value for value in values if value == value), default=None)
    cells = "".join(
        f"<td{' class=best' if value == best else ''}>{f'{value:.4f}' if value == value else '–'}</td>"
        for value in values
    )
    return f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>'


def _errors(rows: Sequence[Compared]) -> str:
    """What each kind of error costs each detector, and how many there are."""
    costs = [[0.0 if value != value else value for value in row.errors.cost[: len(KINDS)].tolist()] for row in rows]
    highest = max([1e-9, *(value for row_costs in costs for value in row_costs)])
    body = ""
    for number, (row, row_costs) in enumerate(zip(rows, costs)):
        body += f"<tr>{_head(row, number)}"
        for kind, value, count in zip(KINDS, row_costs, row.errors.counts.tolist()):
            width = max(0.0, value) / highest * 100
            body += (
                f'<td data-value="{value}">{value:+.4f}<small>{count:,}</small>'
                f'<span class="meter k-{kind}" style="width:{width:.1f}%"></span></td>'
            )
        body += "</tr>"
    table = f'<table class="sortable shares">{_titles(["detector", *KINDS])}<tbody>{body}</tbody></table>'
    meanings = "".join(
        f'<div><dt><span class="dot k-{kind}" aria-hidden="true"></span>{kind}</dt><dd>{MEANING[kind]}</dd></div>'
        for kind in KINDS
    )
    return _scroll("Errors by kind", table) + f'<dl class="meanings">{meanings}</dl>'


def _keys(rows: Sequence[Compared]) -> str:
    items = "".join(
        f'<li style="--shade:{hex_colour(number)}"><span class="key"></span>{escape(row.entry.label)}</li>'
        for number, row in enumerate(rows)
    )
    return f'<ul class="legend">{items}</ul>'


def _protocol(protocol: Mapping[str, Any], rows: Sequence[Compared]) -> str:
    values = {name: value for name, value in protocol.items() if value}
    made = values.pop("stores made", {})
    lines = {name: str(value) for name, value in values.items()}
    lines |= {f"proposals {path}": f"made here in {seconds:,.0f} s, all processors" for path, seconds in made.items()}
    lines |= {f"weights of {row.entry.label}": str(row.entry.best) for row in rows}
    return "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>" for name, text in lines.items())
