"""R-CNN's bounding-box regression (appendix C, and the authors' code)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from detkit.models.base import StageRun
from detkit.models.region import RegionDetector, stored_proposals
from detkit.models.svm_stage import measure_scale, spread
from detkit.ops import fit_ridge, gather_boxes, match_regions


@dataclass(frozen=True)
class BoxRegression:
    """A stage: for each class a ridge regression from a proposal's features before the tail to its object's deltas.

    Of the proposals of at least IoU `ridge_match_iou` with their object; lambda, `ridge`, is for features of mean norm 20.
    """

    name: str = "box_regression"
    iterations_factor: int = 0

    def run(self, detector: RegionDetector, run: StageRun) -> None:
        """Fit `detector.head.regressor`; an interrupted pass over the images goes on where it was."""
        config, head, state = detector.config, detector.head, run.restore(detector)
        run.begin()
        rows = spread(run.train_count(), config.fit_images)
        pairs: list[Sequence[Tensor]] = [state["pairs"]] if state.get("pairs") else []
        scale: Tensor | None = state.get("scale")
        done = 0 if scale is None else state["done"]

        def save(done: int) -> None:
            gathered = [torch.cat(part) for part in zip(*pairs)]
            run.save_last(detector, {"done": done, "scale": scale, "pairs": gathered})

        if scale is None:
            scale = measure_scale(detector, run, rows, save, tail=False)
        for images, targets in run.dataset_pass(detector, rows, "regression", done=done, save=save):
            proposals = stored_proposals(images)
            objects = (targets.boxes, targets.valid, targets.ignore)
            match = match_regions(*objects, proposals.boxes, proposals.valid, config.ridge_match_iou)
            positive = match.index >= 0
            # positives first, cut to the most in an image (host sync): the others need no features
            count = max(1, int(positive.sum(1).max()))
            order = positive.int().argsort(dim=1, descending=True, stable=True)[:, :count]
            boxes, positive = gather_boxes(proposals.boxes, order), positive.gather(1, order)
            matched = match.index.gather(1, order).clamp(min=0)
            with run.inference():
                features = detector.extract_features(images, boxes, tail=False)
            deltas = head.coder.encode(gather_boxes(targets.boxes, matched), boxes)
            # in main memory (host sync, an image batch): VOC07 has gigabytes of them
            pairs.append([x[positive].cpu() for x in (features, deltas, targets.labels.gather(1, matched))])
        features, deltas, labels = (torch.cat(part) for part in zip(*pairs))
        scale = scale.cpu()  # host sync: once, beside features that are there
        weight, offset = fit_ridge(features * scale, deltas, labels, len(detector.classes), config.ridge)
        run.say(f"regression: {len(labels)} proposals, of {len(rows)} images")
        head.regressor.weight.copy_((weight * scale).flatten(0, 1))
        head.regressor.bias.copy_(offset.flatten())
        head.regression_fitted.fill_(True)
        run.conclude(detector)
