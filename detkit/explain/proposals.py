"""Where the regions come from: stored proposals, or what NMS leaves of the region proposal network's boxes."""

import torch

from detkit.explain.canvas import DARK, NEGATIVE, PANEL, PROPOSAL, Canvas, Key, Panel, Section
from detkit.explain.drawing import draw, plural
from detkit.explain.explanation import Explanation, Suppression, suppress
from detkit.models.trace import ProposalNMSStep, ProposalStep

WINNERS = 4  # proposals whose suppression has a panel of its own


@draw.register
def draw_proposals(step: ProposalStep, explanation: Explanation) -> list[Section]:
    """All regions over the image. Those that are given `explain` has made from it: stores of proposals are not read."""
    canvas = Canvas(explanation.image, light=DARK)
    count = len(step.boxes)
    alpha = min(1.0, max(0.25, 60 / max(count, 1)))
    canvas.boxes(explanation.in_image(step.boxes), [PROPOSAL] * count, [alpha] * count)
    settings, given = explanation.settings, ""
    if step.given:
        large = settings.proposal_side is not None and max(explanation.image.shape) > settings.proposal_side
        copy = f", in a copy of {settings.proposal_side} pixels" if large else ""
        given = f" of selective search (mode {settings.proposals}{copy}), made for this image now,"
    text = f"{plural(count, 'region', 'regions')}{given} that may hold an object, whatever its class."
    legend = [Key(PROPOSAL, "solid", "proposal")]
    return [Section("proposals", "Proposals", text, [Panel(canvas.drawing())], legend)]


def proposal_suppression(step: ProposalNMSStep, explanation: Explanation) -> Suppression:
    """Record the NMS of a step; scores are logits, since many probabilities are 1, and would tie."""
    limits = {"iou": step.nms_iou, "top_k": step.pre_nms_top_n, "max_out": step.post_nms_top_n}
    return suppress(step.boxes, step.logits, step.levels, step.levels, explanation.factors, **limits)


@draw.register
def draw_proposal_nms(step: ProposalNMSStep, explanation: Explanation) -> list[Section]:
    """What was removed, what stays, and what each of the best proposals removed."""
    nms = proposal_suppression(step, explanation)
    scores = torch.from_numpy(nms.scores).sigmoid().tolist()
    panels = []
    for rows, caption, shade in ((nms.removed, "removed", NEGATIVE), (nms.kept, "proposals", PROPOSAL)):
        canvas = Canvas(explanation.image, PANEL, DARK)
        order = rows[::-1]
        canvas.boxes(nms.boxes[order], [shade] * len(order), [0.15 + 0.85 * scores[row] for row in order])
        panels.append(Panel(canvas.drawing(), f"{len(rows)} {caption}"))
    for winner in nms.kept[:WINNERS].tolist():
        losers = nms.removed_by(winner)
        canvas = Canvas(explanation.image, PANEL, DARK)
        canvas.boxes(nms.boxes[losers], [NEGATIVE] * len(losers), [1.0] * len(losers))
        canvas.box(nms.boxes[winner], PROPOSAL, 2.5)
        panels.append(Panel(canvas.drawing(), f"proposal of {scores[winner]:.2f} removed {len(losers)}"))
    text = (
        f"The anchors moved by their deltas, the best {len(scores)} that are large enough: of those on one map "
        f"that overlap by more than IoU {nms.iou:g} the best stays, {len(nms.kept)} in all. The last images show "
        f"what the best {len(panels) - 2} proposals removed."
    )
    legend = [Key(PROPOSAL, "solid", "proposal"), Key(NEGATIVE, "solid", "removed")]
    return [Section("proposals", "Proposals", text, panels, legend)]
