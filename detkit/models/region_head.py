"""The head of Fast and Faster R-CNN: scores and deltas of each region (Fast R-CNN, section 2.1)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from detkit.models.base import StageRun
from detkit.models.region import RegionDetector, SampledRegions, with_objects
from detkit.models.shape_checks import tail_width
from detkit.ops import BoxCoder, match_regions, region_loss

CODER = BoxCoder((10.0, 10.0, 5.0, 5.0))  # one over the deltas' standard deviations .1, .1, .2, .2 of py-faster-rcnn


class RegionHead(nn.Module):
    """The tail of the backbone, then scores of C classes and background, and four deltas a class.

    channels: of the pooled map, size: its side. beta: where the smooth L1 of the deltas turns from a
    square into a line.
    """

    coder = CODER
    delta_mean: Tensor
    delta_std: Tensor

    def __init__(self, tail: nn.Module, channels: int, size: int, classes: int, beta: float = 1.0) -> None:
        super().__init__()
        self.tail, self.classes, self.beta = tail, classes, beta
        width = tail_width(tail, (channels, size, size))
        self.classifier = nn.Linear(width, classes + 1)
        self.regressor = nn.Linear(width, classes * 4)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.normal_(self.regressor.weight, std=0.001)
        nn.init.zeros_(self.classifier.bias)
        nn.init.zeros_(self.regressor.bias)
        # of the deltas of each class: the network predicts normalised ones; DeltaStatistics sets what is not fixed
        self.register_buffer("delta_mean", torch.zeros(classes, 4))
        self.register_buffer("delta_std", torch.ones(classes, 4))

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """(B, R, C, size, size) -> logits (B, R, classes + 1), background last, and deltas (B, R, classes, 4)."""
        x = self.tail(pooled.flatten(0, 1))
        logits, deltas = self.classifier(x), self.regressor(x)
        shape = pooled.shape[:2]
        return logits.view(*shape, self.classes + 1), deltas.view(*shape, self.classes, 4)

    def logits(self, pooled: Tensor) -> Tensor:
        return self(pooled)[0]

    def losses(self, pooled: Tensor, sampled: SampledRegions) -> dict[str, Tensor]:
        """The multi-task loss (Fast R-CNN, equation 1)."""
        logits, deltas = self(pooled)
        target_deltas = self.normalise(sampled.target_deltas(self.coder), sampled.labels)
        return region_loss(logits, deltas, sampled.labels, target_deltas, sampled.valid, self.beta)

    def predict(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        logits, deltas = (output.unflatten(0, pooled.shape[:2]) for output in self.raw(pooled.flatten(0, 1)))
        return logits.float().softmax(-1)[..., :-1], deltas

    def normalise(self, deltas: Tensor, labels: Tensor) -> Tensor:
        """Deltas (B, R, 4) of regions of classes (B, R), C for background -> what the network is to predict of them."""
        label = labels.clamp(max=self.classes - 1)
        return (deltas - self.delta_mean[label]) / self.delta_std[label]

    def outputs(self) -> dict[str, str]:
        return {
            "logits": f"(regions, {self.classes + 1}) float32, of each class and, last, background; a softmax makes "
            "them scores",
            "deltas": f"(regions, {self.classes}, 4) float32, of each class, from the regions, see coder",
        }

    def raw(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, size, size) -> logits (N, classes + 1), and deltas (N, classes, 4), no longer normalised."""
        logits, deltas = self(pooled.unsqueeze(0))
        return logits[0], deltas[0].float() * self.delta_std + self.delta_mean


@dataclass(frozen=True)
class DeltaStatistics:
    """A stage before SGD: mean and standard deviation of each class's deltas over the training regions.

    (Fast R-CNN, section 2.3: targets of zero mean and unit variance; the code takes proposals and objects of IoU >=
    `fg_iou`.) store: of the run's folder, the proposals; by default those of the config.
    """

    name: str = "delta_statistics"
    iterations_factor: int = 0
    store: str | None = None

    def run(self, detector: RegionDetector, run: StageRun) -> None:
        """Set the buffers of the region head; a class of less than two regions keeps mean 0 and deviation 1."""
        run.restore(detector)
        head: RegionHead = detector.head
        sums = torch.zeros(3, head.classes, 4, dtype=torch.float64)
        for targets, proposals in run.regions(self.store):
            objects, regions = (targets.boxes, targets.valid, targets.ignore), with_objects(proposals, targets)
            match = match_regions(*objects, regions.boxes, regions.valid, detector.config.fg_iou)
            image, region = (match.index >= 0).nonzero(as_tuple=True)  # on the host, where stores are read
            matched = match.index[image, region]
            deltas = head.coder.encode(targets.boxes[image, matched], regions.boxes[image, region]).double()
            label = targets.labels[image, matched]
            for row, values in enumerate((torch.ones_like(deltas), deltas, deltas.square())):
                sums[row].index_add_(0, label, values)
        count, total, squares = sums
        mean = total / count.clamp(min=1)
        std = (squares / count.clamp(min=1) - mean.square()).clamp(min=0).sqrt()
        known = count >= 2
        head.delta_mean.copy_(torch.where(known, mean, 0))
        head.delta_std.copy_(torch.where(known & (std > 0), std, 1))
