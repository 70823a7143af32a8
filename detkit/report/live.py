"""live.html: a run's curves while it goes on, in one page that needs nothing beside it."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from html import escape
from typing import Any

from detkit.report import plots
from detkit.report.markup import figure, fill, legend, resource, terms
from detkit.viz.curves import smooth, training_curves

RENEW = 10  # seconds after which a browser reads the page of a run again


def live_page(
    name: str,
    records: Sequence[Mapping[str, Any]],
    iterations: int,
    *,
    left: float | None = None,
    state: str = "",
    ended: bool = False,
    val: bool = True,
) -> str:
    """Return the page.

    name: of the run. records: those of log.jsonl. iterations: steps in all. left: seconds until they are done. state:
    a line of HTML on the run. ended: whether nothing more is to come; else a browser keeps reading the page. val:
    whether there may be a split to evaluate on meanwhile.
    """
    curves = training_curves(records)
    done = max((int(record["iteration"]) for record in records), default=0)
    end = float(max(done, 1) if ended else max(iterations, done, 1))
    losses = {part: (curves.steps, smooth(values)) for part, values in curves.losses.items()}
    facts = {"steps": f"{done:,} of {max(iterations, done):,}"}
    if left is not None:
        facts["time left"] = str(timedelta(seconds=round(left)))
    if len(curves.steps):
        facts |= {"images/s": f"{curves.speeds[-1]:.1f}", "loss": f"{curves.losses['loss'][-1]:.3f}"}
        facts["learning rate"] = f"{curves.rates[-1]:.2g}"
    if len(curves.mAP):
        facts["best mAP on val"] = f"{curves.mAP.max():.4f}"
    nothing = "<p>Nothing yet.</p>"
    unscored = nothing if val and not ended else "<p>Not evaluated on val.</p>"
    of_map = plots.training_plot({"mAP": (curves.evaluated, curves.mAP)}, end, "mAP", highest=1.0, marks=True)
    return fill(
        resource("live.html"),
        style=resource("page.css"),
        script=resource("live.js"),
        data={"renew": 0 if ended else RENEW},
        title=escape(f"{name}: {'ended' if ended else 'training'}"),
        facts=terms(facts),
        state=state,
        losses=figure(plots.training_plot(losses, end, "loss"), legend(losses)) if losses else nothing,
        scores=figure(of_map, "") if len(curves.mAP) else unscored,
        rates=figure(plots.training_plot({"lr": (curves.steps, curves.rates)}, end, "learning rate"), "")
        if losses
        else nothing,
        speeds=figure(plots.training_plot({"images/s": (curves.steps, curves.speeds)}, end, "images/s"), "")
        if losses
        else nothing,
    )
