"""report.html and errors.json."""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import torch

from detkit.data.dataset import DetectionDataset
from detkit.evaluation import COCOResult, Result, VOCResult
from detkit.evaluation.errors import KINDS, ORACLES, STATES
from detkit.files import write_atomic
from detkit.report import plots
from detkit.report.analysis import Analysis, analyse
from detkit.report.gallery import gallery
from detkit.report.markup import cell, digits, figure, fill, resource, row, scroll, table, terms
from detkit.structures import DetectionSet, TruthSet
from detkit.viz.curves import classes_by_ap
from detkit.viz.draw import hex_colour

# Writes a page of an image: the page's path, the image's number in the data set, the least score to show. Returns
# whether it is written
Explain = Callable[[Path, int, float], bool]

MEANING = {
    "right": "the best detection of an object, of its class, at IoU .5 or more",
    "localisation": "right class, but the box fits badly: best IoU from .1 to .5",
    "class": "the box fits an object of another class: IoU .5 or more",
    "both": "near an object of another class only: IoU from .1 to .5",
    "duplicate": "the object has a better detection already",
    "background": "no object there: IoU .1 or less with all",
    "missed": "an object that no detection, right or nearly right, was meant for",
    "ignored": "on a difficult object or a crowd: neither right nor wrong",
    "false positives": "if nothing wrong were detected",
    "false negatives": "if only found objects were to be found",
}


def write_report(
    folder: str | Path,
    result: Result,
    detections: DetectionSet,
    truth: TruthSet,
    dataset: DetectionDataset,
    *,
    protocol: Mapping[str, Any],
    records: Sequence[Mapping[str, Any]] = (),
    explain: Explain | None = None,
) -> Path:
    """Write report.html and errors.json into `folder`; return the former's path.

    result: what `score` said of the detections. dataset: the images of `truth.ids`, in that order; where one cannot be
    read its boxes are drawn on a blank. protocol: what the numbers are of, shown as it is. records: a training
    log's, see `viz.loss_plot`. explain: writes a page of how the detector came to what it says of an image; called for
    the worst image of each kind of error, which the report then links to. The page holds all else that it shows,
    images as small JPEGs of less than 5 MB in all.

    Raises UserError and ValueError as `voc_ap` does.
    """
    folder, curves = Path(folder), result.curves
    cpu = detections.to("cpu"), truth.to("cpu")
    analysis = analyse(*cpu, result.metric)
    images = gallery(dataset, *cpu, analysis.errors, analysis.working)
    explained = [] if explain is None else _explain_worst(folder, images, analysis, explain)
    content = {**analysis.to_dict(), **protocol}
    write_atomic(folder / "errors.json", json.dumps(content, indent=1, ensure_ascii=False, default=str) + "\n")
    loss = plots.loss_plot(records)
    blanks = sum(image["jpeg"] is None for image in images["images"])
    rows = {"metric": result.protocol, "images": result.images, **protocol}
    html = fill(
        resource("page.html"),
        style=resource("page.css"),
        script=resource("boxes.js") + resource("page.js") + resource("sort.js"),
        data={
            "classes": truth.classes,
            "states": STATES,
            "meaning": MEANING,
            "score": analysis.score,
            "explained": explained,
            **images,
        },
        title=escape(f"{protocol.get('dataset', 'detections')}: mAP {digits(result.mAP)}"),
        facts=_facts(result, analysis),
        protocol=terms({escape(str(name)): escape(str(value)) for name, value in rows.items()}),
        errors=_errors(analysis, explained),
        table=_per_class(result, analysis),
        pr=figure(
            plots.pr_plot(curves),
            f"Precision against recall at IoU .5, mAP {digits(curves.mAP)}, of the classes that are switched "
            f"on below.{_legend(curves)}",
        ),
        loss=figure(loss, _loss_caption(records)) if loss else "",
        confusion=_confusion(analysis),
        groups=_groups(analysis),
        scores=_scores(analysis),
        ious=figure(
            plots.histogram_plot({"near": analysis.near}, "Best IoU of detections", "best IoU with its class"),
            f"How well detections of score {_score(analysis)} and up fit their nearest object.",
        )
        + figure(
            plots.histogram_plot({"reach": analysis.reach}, "Best IoU of objects", "best IoU with its class"),
            "How well the nearest detection, of any score, fits each object.",
        ),
        blanks=f"<p class=note>{blanks} of {len(images['images'])} images are not there or cannot be read: "
        "their boxes are drawn on a blank of the image's size.</p>"
        if blanks
        else "",
        score=_score(analysis),
    )
    write_atomic(folder / "report.html", html)
    return folder / "report.html"


def _loss_caption(records: Sequence[Mapping[str, Any]]) -> str:
    scored = any(record.get("mAP") is not None for record in records)
    dots = f" and mAP on val ({_key('map', 'dots')}, from 0 to 1)" if scored else ""
    return f"Loss ({_key('loss', 'line')}){dots}."


def _score(analysis: Analysis) -> str:
    """The working score, rounded down, so that what it lets through stays."""
    return f"{math.floor(analysis.score * 100) / 100:.2f}"


def _key(name: str, text: str) -> str:
    return f'<span class="key {name}"></span>{text}'


def _legend(curves: VOCResult) -> str:
    """The classes' lines, the best first."""
    items = "".join(
        f'<li class="curve" data-class="{index}" style="--shade:{hex_colour(index)}"><span class="key"></span>'
        f"{escape(curves.classes[index])} {float(curves.ap[index]):.3f}</li>"
        for index in classes_by_ap(curves)
    )
    return f'<ul class="legend">{items}</ul>'


def _facts(result: Result, analysis: Analysis) -> str:
    """The few numbers to see first."""
    right, counted, objects = (int(part.sum()) for part in (analysis.found, analysis.counted, analysis.errors.npos))
    cost = analysis.errors.cost[: len(KINDS)]
    facts = {
        f"mAP, {result.metric}": digits(result.mAP),
        "images": f"{result.images:,}",
        "objects to find": f"{objects:,}",
        f"recall from {_score(analysis)}": f"{right / objects:.1%}" if objects else "–",
        f"precision from {_score(analysis)}": f"{right / counted:.1%}" if counted else "–",
    }
    if not cost.isnan().any():
        worst = int(cost.argmax())
        facts[f"mAP to gain: {KINDS[worst]}"] = f"+{float(cost[worst]):.3f}"
    return terms(facts)


def _explain_worst(folder: Path, images: dict[str, Any], analysis: Analysis, explain: Explain) -> list[str]:
    """Explain the worst image of each kind of error, from a score on that shows the error; return the kinds done."""
    done = []
    for kind in KINDS:
        for number, focus in images["kinds"][kind][:1]:
            image = images["images"][number]
            shown = analysis.score if kind == "missed" else min(analysis.score, image["detections"][focus][1])
            if explain(folder / _page(kind), image["index"], math.floor(shown * 100) / 100):
                done.append(kind)
    return done


def _page(kind: str) -> str:
    """Where the worst image of a kind of error is explained, beside the report."""
    return f"explained/{kind}.html"


def _errors(analysis: Analysis, explained: Sequence[str]) -> str:
    """The table of kinds: how many at the working score, and what each costs at all scores."""
    counts = dict(zip(KINDS, analysis.working.counts.tolist()))
    cost = analysis.errors.cost.nan_to_num(0).tolist()
    highest = max([*cost, 1e-9])
    rows = []
    for name, value in zip(ORACLES, cost):
        known = name in counts
        dot = f'<span class="dot k-{name}" aria-hidden="true"></span>' if known else ""
        meter = f'<span class="meter" style="width:{max(0.0, value) / highest * 100:.1f}%"></span>'
        cells = cell(f"{counts[name]:,}" if known else ""), cell(f"{value:+.4f}{meter}")
        link = f'<small><a href="{_page(name)}">the worst, step by step</a></small>' if name in explained else ""
        rows.append(row(f"{dot}{name}<small>{MEANING[name]}</small>{link}", cells, "" if known else ' class="sum"'))
    return table(("kind", f"count from {_score(analysis)}", "mAP to gain"), rows, "kinds")


def _per_class(result: Result, analysis: Analysis) -> str:
    """The per-class table: AP, counts at the working score, and what each kind of error costs the class."""
    errors, curves = analysis.errors, result.curves
    aps, means = {"AP": result.ap}, [result.mAP]
    if isinstance(result, COCOResult):
        aps["AP50"] = curves.ap
        means.append(curves.mAP)
    counts = errors.npos, analysis.found, analysis.counted
    gains = errors.fixed - errors.ap

    def cells(aps: Iterable[float], counts: Iterable[int], gains: Sequence[float]) -> list[str]:
        text = [f"{value:+.3f}" if value == value else "–" for value in gains[: len(KINDS)]]
        return [cell(value) for value in (*map(digits, aps), *counts, *text)]

    columns = [torch.stack(part, 1).tolist() for part in ([*aps.values()], counts)]
    rows = [row(escape(name), cells(*parts)) for name, *parts in zip(errors.classes, *columns, gains.T.tolist())]
    foot = row("mean or sum", cells(means, [int(part.sum()) for part in counts], errors.cost.tolist()))
    titles = ("class", *aps, "objects", "found", "detections", *KINDS)
    return scroll("Per-class table", table(titles, rows, "sortable", foot))


def _confusion(analysis: Analysis) -> str:
    """The confusion matrix, each row shaded by its shares."""
    counts = analysis.confusion
    names = [escape(name) for name in analysis.errors.classes]
    shades = (100 * (counts.double() / counts.sum(1, keepdim=True).clamp(min=1)) ** 0.6).round().int().tolist()
    rows = []
    for index, name in enumerate([*names, "<em>no object</em>"]):
        cells = []
        for column, (count, shade) in enumerate(zip(counts[index].tolist(), shades[index])):
            kind = "hit" if index == column and index < len(names) else "miss"
            cells.append(cell(count, f' class="{kind}" style="--share:{shade}%"') if count else cell(""))
        rows.append(row(name, cells))
    titles = ("object ↓ taken for →", *(f"<span>{name}</span>" for name in [*names, "<em>none</em>"]))
    return scroll("Confusion matrix", table(titles, rows, "confusion"))


def _groups(analysis: Analysis) -> str:
    rows = (
        row(group.name, map(cell, (f"{group.objects:,}", digits(group.ap), digits(group.recall))))
        for group in analysis.groups
    )
    return table(("objects", "count", "AP", "recall"), rows, "groups")


def _scores(analysis: Analysis) -> str:
    """Calibration, and the histogram of scores."""
    calibration, right, wrong = analysis.calibration, analysis.right_scores, analysis.wrong_scores
    if calibration is None or right is None or wrong is None:
        return "<p>Scores are no probabilities here: there is no calibration to measure.</p>"
    reliability = figure(
        plots.reliability_plot(calibration),
        f"How often detections of a score are right. Expected calibration error {calibration.error:.4f}, "
        f"all detections, {len(calibration.count)} bins.",
    )
    if calibration.error != calibration.error:
        reliability = "<p>No detections: nothing to calibrate.</p>"
    return reliability + figure(
        plots.histogram_plot(
            {"right": right, "wrong": wrong}, "Scores of right and wrong detections", "score", log=True
        ),
        f"Scores of {_key('right', 'right')} and {_key('wrong', 'wrong')} detections, on a logarithmic axis.",
    )
