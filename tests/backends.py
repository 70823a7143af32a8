"""What a detector finds on every backend that is installed, beside torch."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import torch

from detkit.config import DetectConfig
from detkit.inference.backends import open_detector
from detkit.inference.backends.runtimes import RUNTIMES
from detkit.models import Detector, postprocess
from tests import zoo
from tests.matching import assert_same_detections

INSTALLED = [name for name in RUNTIMES if importlib.util.find_spec(name) is not None]
IOU, KEEP = 0.4, 12  # of the detections that are compared


def check_backends(detector: Detector, path: Path) -> None:
    """Check that the files to which a detector was exported give its predictions and detections, at batch 1 and 3.

    path: the name that the files have in common.
    """
    for backend in INSTALLED:
        other, _ = open_detector(path, backend=backend)
        assert (other.classes, other.input, type(other)) == (detector.classes, detector.input, type(detector))
        assert not other.training
        assert other.backend.lower().replace(" ", "").startswith(backend)
        assert not any(parameter.numel() for parameter in other.parameters()), "the weights are in the files"
        for batch in (1, 3):
            images = zoo.sample_images(detector, batch)
            images = replace(images, original=2 * images.sizes)  # which no network is to see
            with torch.inference_mode():
                found, expected = other.predict(images), detector.predict(images)
            valid = expected.scores > -torch.inf
            assert expected.scores[valid].std() > 1e-3
            score = expected.scores[valid].median().item()
            settings = DetectConfig(score_threshold=score, nms_iou=IOU, detections_per_image=KEEP)
            pairs = [postprocess(one, images, settings)[0].unpad() for one in (found, expected)]
            for ours, theirs in zip(*pairs, strict=True):
                assert len(theirs.labels[0]) > 0
                limits = {"score": score, "iou": IOU, "keep": KEEP, "box_atol": 2e-2, "box_rtol": 1e-4}
                assert_same_detections(ours.image(0), theirs.image(0), **limits)
            if detector.proposal_settings() is None:  # else rounding may decide which anchors become a proposal
                torch.testing.assert_close(found.scores[valid], expected.scores[valid], atol=1e-4, rtol=1e-4)
                torch.testing.assert_close(found.boxes, expected.boxes, atol=1e-2, rtol=1e-4)
