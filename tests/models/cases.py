"""Each detector of the zoo, and some in another form."""

from typing import Any

from detkit.models import Detector
from tests import zoo

FPN = {"neck": "fpn", "channels": 24, "size_divisor": 32, "scales": [2.0]}
CASES: dict[str, dict[str, Any]] = {
    **{name: {} for name in zoo.MODELS},
    "fast_rcnn scales": {"scales": [64, 96], "longest": 130},
    "faster_rcnn fpn": FPN,
}


def build(case: str) -> Detector:
    return zoo.build(case.split()[0], **CASES[case]).eval()
