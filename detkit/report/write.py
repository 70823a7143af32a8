"""report.html and errors.json."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from detkit.data.dataset import DetectionDataset
from detkit.evaluation import COCOResult, Result
from detkit.evaluation.errors import KINDS, ORACLES, STATES
from detkit.files import write_atomic
from detkit.report import plots
from detkit.report.analysis import Analysis, analyse
from detkit.report.gallery import gallery
from detkit.report.template import as_data, fill, resource
from detkit.structures import DetectionSet, TruthSet
from detkit.viz.curves import classes_by_ap
from detkit.viz.figure import hex_colour

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
) -> Path:
    """Write report.html and errors.json into `folder`; return the former's path.

    result: what `score` said of the detections. dataset: the images of `truth.ids`, in that order; where one cannot be
    read its boxes are drawn on a blank. protocol: what the numbers are of, shown as it is. records: a training
    log's, see `viz.loss_plot`. The page holds all that it shows, images as small JPEGs of less than 5 MB in all.

    Raises UserError and ValueError as `voc_ap` does.
    """
    folder = Path(folder)
    cpu = detections.to("cpu"), truth.to("cpu")
    analysis = analyse(*cpu, result.metric)
    images = gallery(dataset, *cpu, analysis.errors)
    content = {**analysis.to_dict(), **protocol}
    write_atomic(folder / "errors.json", json.dumps(content, indent=1, ensure_ascii=False, default=str) + "\n")
    path = folder / "report.html"
    write_atomic(path, page(result, analysis, images, protocol, records))
    return path


def page(
    result: Result,
    analysis: Analysis,
    images: dict[str, Any],
    protocol: Mapping[str, Any],
    records: Sequence[Mapping[str, Any]] = (),
) -> str:
    """Return the page's HTML. See `write_report`."""
    errors = analysis.errors
    loss = plots.loss_plot(records)
    scores = "<p>Scores are no probabilities here: there is no calibration to measure.</p>"
    if analysis.calibration and analysis.right_scores is not None and analysis.wrong_scores is not None:
        parts = {"right": analysis.right_scores, "wrong": analysis.wrong_scores}
        scores = (
            _figure(
                plots.reliability_plot(analysis.calibration),
                f"How often detections of a score are right. Expected calibration error "
                f"{analysis.calibration.error:.4f}, all detections, {len(analysis.calibration.count)} bins.",
            )
            if analysis.calibration.error == analysis.calibration.error
            else "<p>No detections: nothing to calibrate.</p>"
        ) + _figure(
            plots.histogram_plot(parts, "Scores of right and wrong detections", "score", log=True),
            f"Scores of {_key('right', 'right')} and {_key('wrong', 'wrong')} detections, on a logarithmic axis.",
        )
    data = {
        "classes": errors.classes,
        "states": STATES,
        "meaning": MEANING,
        "score": analysis.score,
        **images,
    }
    blanks = sum(image["jpeg"] is None for image in images["images"])
    parts = {
        "title": escape(f"{protocol.get('dataset', 'detections')}: mAP {_number(result.mAP)}"),
        "facts": _facts(result, analysis, protocol),
        "protocol": _protocol(result, protocol),
        "errors": _errors(analysis),
        "table": _per_class(result, analysis),
        "pr": _figure(
            plots.pr_plot(result.curves),
            f"Precision against recall at IoU .5, mAP {_number(result.curves.mAP)}, of the classes that are switched "
            f"on above.{_legend(result)}",
        ),
        "loss": _figure(loss, f"Loss ({_key('loss', 'line')}) and mAP on val ({_key('map', 'dots')}, from 0 to 1).")
        if loss
        else "",
        "confusion": _confusion(analysis),
        "groups": _groups(analysis),
        "scores": scores,
        "ious": _figure(
            plots.histogram_plot({"near": analysis.near}, "Best IoU of detections", "best IoU with its class"),
            f"How well detections of score {analysis.score:.2f} and up fit their nearest object.",
        )
        + _figure(
            plots.histogram_plot({"reach": analysis.reach}, "Best IoU of objects", "best IoU with its class"),
            "How well the nearest detection, of any score, fits each object.",
        ),
        "blanks": f"<p class=note>{blanks} of {len(images['images'])} images are not there or cannot be read: "
        "their boxes are drawn on a blank of the image's size.</p>"
        if blanks
        else "",
        "score": f"{analysis.score:.4f}",
        "data": as_data(data),
        "style": resource("page.css"),
        "script": resource("boxes.js") + resource("page.js") + resource("sort.js"),
    }
    return fill(resource("page.html"), parts)


def _number(value: float) -> str:
    return f"{value:.4f}" if value == value else "–"


def _figure(image: str, caption: str) -> str:
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


def _key(name: str, text: str) -> str:
    return f'<span class="key {name}"></span>{text}'


def _legend(result: Result) -> str:
    """The classes' lines, the best first."""
    curves = result.curves
    items = "".join(
        f'<li class="curve" data-class="{index}" style="--shade:{hex_colour(index)}"><span class="key"></span>'
        f"{escape(curves.classes[index])} {float(curves.ap[index]):.3f}</li>"
        for index in classes_by_ap(curves)
    )
    return f'<ul class="legend">{items}</ul>'


def _facts(result: Result, analysis: Analysis, protocol: Mapping[str, Any]) -> str:
    """The few numbers to see first."""
    counts = analysis.errors.to_dict()["counts"]
    objects = int(analysis.errors.npos.sum())
    cost = analysis.errors.cost[: len(KINDS)]
    facts = {
        f"mAP, {result.metric}": _number(result.mAP),
        "images": f"{result.images:,}",
        "objects to find": f"{objects:,}",
        "found at any score": f"{counts['right'] / objects:.1%}" if objects else "–",
    }
    if not cost.isnan().any():
        worst = int(cost.argmax())
        facts[f"mAP to gain: {KINDS[worst]}"] = f"+{float(cost[worst]):.3f}"
    return "".join(f"<div><dt>{escape(name)}</dt><dd>{value}</dd></div>" for name, value in facts.items())


def _protocol(result: Result, protocol: Mapping[str, Any]) -> str:
    rows = {"metric": result.protocol, "images": result.images, **protocol}
    return "".join(f"<div><dt>{escape(str(k))}</dt><dd>{escape(str(v))}</dd></div>" for k, v in rows.items())


def _errors(analysis: Analysis) -> str:
    """The table of kinds: how many, and what each costs."""
    errors = analysis.errors
    counts = dict(zip(KINDS, errors.counts.tolist()))
    cost = [0.0 if value != value else value for value in errors.cost.tolist()]
    highest = max([*cost, 1e-9])
    rows = ""
    for name, value in zip(ORACLES, cost):
        count = f"{counts[name]:,}" if name in counts else ""
        bar = f'<span class="meter" style="width:{max(0.0, value) / highest * 100:.1f}%"></span>'
        dot = f'<span class="dot k-{name}" aria-hidden="true"></span>' if name in counts else ""
        rows += (
            f'<tr class="{"" if name in counts else "sum"}"><th scope="row">{dot}{name}'
            f"<small>{MEANING[name]}</small></th>"
            f"<td>{count}</td><td>{value:+.4f}{bar}</td></tr>"
        )
    return (
        '<table class="kinds"><thead><tr><th scope="col">kind</th><th scope="col">count</th>'
        f'<th scope="col">mAP to gain</th></tr></thead><tbody>{rows}</tbody></table>'
    )


def _per_class(result: Result, analysis: Analysis) -> str:
    """The per-class table, with what each kind of error costs the class."""
    errors = analysis.errors
    coco = isinstance(result, COCOResult)
    titles = ["class", "AP", *(["AP50"] if coco else []), "objects", "found", "detections", *KINDS]
    gains = (errors.fixed - errors.ap)[: len(KINDS)].T.tolist()
    curves = result.curves
    columns = zip(
        errors.classes,
        result.ap.tolist(),
        curves.ap.tolist(),
        curves.npos.tolist(),
        curves.found.tolist(),
        curves.counted.tolist(),
        gains,
    )
    rows = ""
    for name, ap, ap50, npos, found, counted, gain in columns:
        cells = [ap, *([ap50] if coco else [])]
        text = [_number(value) for value in cells] + [str(npos), str(found), str(counted)]
        text += [f"{value:+.3f}" if value == value else "–" for value in gain]
        rows += f'<tr><th scope="row">{escape(name)}</th>' + "".join(f"<td>{cell}</td>" for cell in text) + "</tr>"
    means = [result.mAP, *([curves.mAP] if coco else [])]
    foot = [_number(value) for value in means]
    foot += [str(int(part.sum())) for part in (curves.npos, curves.found, curves.counted)]
    foot += [f"{value:+.3f}" if value == value else "–" for value in errors.cost[: len(KINDS)].tolist()]
    head = "".join(f'<th scope="col"><button type="button" class="sort">{title}</button></th>' for title in titles)
    last = "".join(f"<td>{cell}</td>" for cell in foot)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="Per-class table"><table class="sortable">'
        f'<thead><tr>{head}</tr></thead><tbody>{rows}</tbody><tfoot><tr><th scope="row">mean or sum</th>{last}</tr>'
        "</tfoot></table></div>"
    )


def _confusion(analysis: Analysis) -> str:
    """The confusion matrix, each row shaded by its shares."""
    counts = analysis.confusion
    names = [escape(name) for name in analysis.errors.classes]
    shares = (counts / counts.sum(1, keepdim=True).clamp(min=1)).tolist()
    head = "".join(f'<th scope="col"><span>{name}</span></th>' for name in [*names, "<em>none</em>"])
    rows = ""
    for row, name in enumerate([*names, "<em>no object</em>"]):
        cells = ""
        for column, count in enumerate(counts[row].tolist()):
            kind = "hit" if row == column and row < len(names) else "miss"
            shade = round(100 * shares[row][column] ** 0.6)
            cells += f'<td class="{kind}" style="--share:{shade}%">{count or ""}</td>' if count else "<td></td>"
        rows += f'<tr><th scope="row">{name}</th>{cells}</tr>'
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Confusion matrix"><table class="confusion">'
        f"<thead><tr><th scope=col>object ↓ taken for →</th>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _groups(analysis: Analysis) -> str:
    rows = "".join(
        f'<tr><th scope="row">{group.name}</th><td>{group.objects:,}</td><td>{_number(group.ap)}</td>'
        f"<td>{_number(group.recall)}</td></tr>"
        for group in analysis.groups
    )
    return (
        '<table><thead><tr><th scope="col">objects</th><th scope="col">count</th><th scope="col">AP</th>'
        f'<th scope="col">recall</th></tr></thead><tbody>{rows}</tbody></table>'
    )
