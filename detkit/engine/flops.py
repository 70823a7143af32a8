"""How many floating-point operations a detector takes."""

from typing import TYPE_CHECKING

import torch
from torch.utils.flop_counter import FlopCounterMode

if TYPE_CHECKING:
    from detkit.models import Detector
    from detkit.structures import Images


def flops(detector: "Detector", images: "Images") -> int:
    """Return the floating-point operations of `predict` on a batch, post-processing left out.

    Those of convolutions and matrix products, a multiplication and an addition counting as two; pooling, element-wise
    operations and NMS count nothing. The detector, on the device of `images`, stays in its mode.
    """
    training = detector.training
    detector.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        detector.predict(images)
    detector.train(training)
    return counter.get_total_flops()
