"""R-CNN's bounding-box regression (appendix C, and the authors' code)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from detkit.models.base import StageRun
from detkit.models.region import RegionDetector
from detkit.models.svm_stage import measure_scale, spread
from detkit.ops import BoxCoder, fit_ridge, gather_boxes, match_regions


@dataclass(frozen=True)
class BoxRegression:
    """A stage: for each class a ridge regression from a proposal's features before the tail to its object's deltas.

    ridge: lambda, for features of mean norm 20. match_iou: least IoU of a proposal with its object that the
    regression learns from. fit_images: how many images; 0 = all.
    """

    coder: BoxCoder
    ridge: float
    match_iou: float
    fit_images: int
    name: str = "box_regression"
    iterations_factor: int = 0

    def run(self, detector: RegionDetector, run: StageRun) -> None:
        """Fit `detector.head.regressor`; an interrupted pass over the images goes on where it was."""
        state = run.restore(detector)
        run.begin()
        rows = spread(run.train_count(), self.fit_images)
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
            proposals = images.proposals
            objects = (targets.boxes, targets.valid, targets.ignore)
            match = match_regions(*objects, proposals.boxes, proposals.valid, self.match_iou)
            positive = match.index >= 0
            # positives first, cut to the most in an image (host sync): the others need no features
            count = max(1, int(positive.sum(1).max()))
            order = positive.int().argsort(dim=1, descending=True, stable=True)[:, :count]
            boxes, positive = gather_boxes(proposals.boxes, order), positive.gather(1, order)
            matched = match.index.gather(1, order).clamp(min=0)
            gt_boxes = gather_boxes(targets.boxes, matched)
            with run.inference():
                features = detector.extract_features(images, boxes, tail=False)
            deltas, labels = self.coder.encode(gt_boxes, boxes), targets.labels.gather(1, matched)
            # in main memory (host sync, an image batch): VOC07 has gigabytes of them
            pairs.append((features[positive].cpu(), deltas[positive].cpu(), labels[positive].cpu()))
        features, deltas, labels = (torch.cat(part) for part in zip(*pairs))
        scale = scale.cpu()  # host sync: once, beside features that are there
        weight, offset = fit_ridge(features * scale, deltas, labels, len(detector.classes), self.ridge)
        run.say(f"regression: {len(labels)} proposals, of {len(rows)} images")
        head = detector.head
        head.regressor.weight.copy_((weight * scale).flatten(0, 1))
        head.regressor.bias.copy_(offset.flatten())
        head.regression_fitted.fill_(True)
        run.conclude(detector)
