"""R-CNN's bounding-box regression (appendix C, and the authors' code)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from detkit.models.svm_stage import measure_scale, spread
from detkit.ops import BoxCoder, fit_ridge, match_regions

if TYPE_CHECKING:
    from detkit.models.svm_detector import SVMDetector


@dataclass(frozen=True)
class BoxRegression:
    """A stage: for each class a ridge regression from a proposal's features before the tail to its object's deltas.

    ridge: lambda, for features of mean norm 20. match_iou: proposals of at least that IoU with the object that they
    overlap most are learnt from. images: how many images; 0 = all.
    """

    coder: BoxCoder
    ridge: float
    match_iou: float
    images: int
    name: str = "box_regression"

    def run(self, detector: "SVMDetector", run: Any) -> None:
        """Fit `detector.head.regressor`; an interrupted pass over the images goes on where it was."""
        state = run.restore(detector)
        run.begin()
        rows = spread(len(run.train), self.images)
        pairs: list[tuple[Tensor, Tensor, Tensor]] = []
        scale: Tensor | None = state.get("scale")

        def save(done: int) -> None:
            gathered = [torch.cat(part) for part in zip(*pairs)]
            run.save_last(detector, {"done": done, "scale": scale, "pairs": gathered})

        if scale is None:
            scale = measure_scale(detector, run, rows, lambda: save(0), tail=False)
        elif state["pairs"]:
            pairs.append(tuple(state["pairs"]))
        for images, targets in run.dataset_pass(detector, rows, "regression", done=state.get("done", 0), save=save):
            assert images.proposals is not None
            given = images.proposals
            objects = (targets.boxes, targets.valid, targets.ignore)
            match = match_regions(*objects, given.boxes, given.valid, self.match_iou)
            learnt = match.index >= 0
            # the learnt ones first, cut to the most in an image (host sync): the others need no features
            most = max(1, int(learnt.sum(1).max()))
            order = learnt.int().argsort(dim=1, descending=True, stable=True)[:, :most]
            boxes = given.boxes.gather(1, order.unsqueeze(-1).expand(-1, -1, 4))
            owner, learnt = match.index.gather(1, order).clamp(min=0), learnt.gather(1, order)
            truth = targets.boxes.gather(1, owner.unsqueeze(-1).expand(-1, -1, 4))
            with run.inference():
                features = detector.extract_features(images, boxes, tail=False)
            deltas, labels = self.coder.encode(truth, boxes), targets.labels.gather(1, owner)
            # in main memory (host sync, an image batch): VOC07 has gigabytes of them
            pairs.append((features[learnt].cpu(), deltas[learnt].cpu(), labels[learnt].cpu()))
        features, deltas, labels = (torch.cat(part) for part in zip(*pairs))
        scale = scale.cpu()  # host sync: once, beside features that are there
        weight, offset = fit_ridge(features * scale, deltas, labels, len(detector.classes), self.ridge)
        run.say(f"regression: {len(labels)} proposals, of {len(rows)} images")
        head = detector.head
        head.regressor.weight.copy_((weight * scale).flatten(0, 1))
        head.regressor.bias.copy_(offset.flatten())
        head.regression_fitted.fill_(True)
        run.conclude(detector)
