"""What can be known of a detector without its values: size, arithmetic, weights."""

from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import MISSING
from torch import Tensor

from detkit.backbones.describe import count_flops, count_parameters
from detkit.backbones.weights import Source, torchvision_source
from detkit.checkpoints.torchvision_files import NETWORKS, PREFIX
from detkit.models.base import Detector, Paper
from detkit.models.fast_rcnn import FastRCNN
from detkit.models.faster_rcnn import FasterRCNN
from detkit.models.rcnn import RCNN
from detkit.models.region import RegionDetector
from detkit.models.registry import MODELS
from detkit.models.sppnet import SPPNet
from detkit.models.yolov1 import YOLOv1
from detkit.structures import InputSpec

CLASSES = tuple(f"class{number}" for number in range(20))  # as many as PASCAL VOC has
IMAGE = (375, 500)  # height and width of most of its images
MOST = 10_000  # pixels: no limit to the long side


@dataclass(frozen=True)
class ModelSummary:
    """A detector by its paper's config, for people.

    kind: `dense` detectors classify fixed places of an image, `region` detectors regions, one by one. proposals: where
    these come from: `given`, `own`, None for dense ones. backbone: of the paper; None where there is no default, and
    so neither parameters nor flops. input: how it takes images. flops: operations of one image of 500x375 (additions
    and multiplications each), but for those of each region, region_flops; None where they are not known.
    weights: published detectors, as `detkit.load` takes them.
    """

    name: str
    paper: Paper | None
    kind: str
    proposals: str | None
    backbone: str | None
    input: str | None
    parameters: int | None
    flops: int | None
    region_flops: int | None
    weights: tuple[Source, ...]


def describe_model(name: str) -> ModelSummary:
    """Describe a detector of 20 classes; nothing is downloaded. UserError for an unknown name."""
    detector_type = MODELS.get(name)
    kind = "region" if issubclass(detector_type, RegionDetector) else "dense"
    proposals = None if kind == "dense" else "given" if detector_type.takes_proposals else "own"
    facts = (name, detector_type.paper, kind, proposals)
    config = detector_type.config_type()
    backbone = getattr(getattr(config, "backbone", None), "name", None)
    if backbone == MISSING:
        return ModelSummary(*facts, None, None, None, None, None, _weights(detector_type, name))
    with torch.device("meta"):
        build: Any = detector_type  # whose subclasses take a config and classes alone
        detector = build(config, CLASSES).eval()
        flops, region_flops = _flops(detector)
    return ModelSummary(
        *facts,
        backbone,
        str(detector.input),
        count_parameters(detector),
        flops,
        region_flops,
        _weights(detector_type, name),
    )


def _weights(build: type, name: str) -> tuple[Source, ...]:
    known = [(key, network) for key, network in NETWORKS.items() if network.config().model.name == name]
    sources = [torchvision_source(network.weights)._replace(name=PREFIX + key) for key, network in known]
    if issubclass(build, YOLOv1):
        sources.append(Source("darknet's yolov1.weights", "a file of darknet, its .cfg beside it", False))
    return tuple(sources)


def _flops(detector: Detector) -> tuple[int | None, int | None]:
    """Return the operations of an image, and of a region; everything is on the meta device."""
    c, backbone = detector.config, detector.backbone
    if isinstance(detector, RCNN):
        crop = torch.empty(1, 3, c.crop, c.crop)
        pooled = torch.empty(1, detector.map.channels, c.pool_size, c.pool_size)
        return 0, count_flops(lambda: (backbone(crop), detector.head.detect(pooled, False)))
    if isinstance(detector, SPPNet):
        blanks = [_blank(InputSpec((short, MOST), resize="shortest")) for short in c.scales]
        pooled = torch.empty(1, detector.map.channels, sum(level**2 for level in c.pyramid))
        image = count_flops(lambda: [backbone(blank) for blank in blanks])
        return image, count_flops(lambda: detector.head.detect(pooled, False))
    if isinstance(detector, (FastRCNN, FasterRCNN)):
        blank = _blank(detector.input)
        rpn = detector.rpn if isinstance(detector, FasterRCNN) else lambda maps: maps
        region = backbone.region
        pooled = torch.empty(1, backbone(blank)[region].shape[1], c.pool_size, c.pool_size)
        return count_flops(lambda: rpn([backbone(blank)[region]])), count_flops(lambda: detector.head(pooled, 1))
    network: Any = getattr(detector, "network", None)
    if isinstance(detector, RegionDetector) or network is None:  # somebody's own
        return None, None
    return count_flops(lambda: network(torch.empty(1, 3, *detector.input.size))), None


def _blank(spec: InputSpec) -> Tensor:
    return torch.empty(1, 3, *spec.fit(*IMAGE))
