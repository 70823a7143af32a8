"""What can be known of a detector without its values: size, arithmetic, weights."""

from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import MISSING

from detkit.backbones.describe import count_parameters
from detkit.backbones.weights import Source, torchvision_source
from detkit.bundled import BUNDLED, FOLDER
from detkit.checkpoints.torchvision_files import NETWORKS, PREFIX
from detkit.models.base import Paper
from detkit.models.registry import MODELS

CLASSES = tuple(f"class{number}" for number in range(20))  # as many as PASCAL VOC has
IMAGE_SIZE = (375, 500)  # height and width of most of its images
DARKNET_MODELS = ("yolov1", "yolov2", "yolov3")  # the detectors that darknet's files hold


@dataclass(frozen=True)
class ModelSummary:
    """A detector by its paper's config, for people.

    kind: `dense` detectors classify cells or anchors of an image, `region` detectors regions. proposals: where these
    come from: `stored`, `own` (computed by the detector), None for dense ones. backbone: of the paper; None where there
    is no default, and so neither parameters nor flops. input: how it takes images. flops: operations of one image of
    500x375 (additions and multiplications each), but for those of each region, region_flops; None where they are not
    known. weights: trained detectors, as `detkit.load` takes them.
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
    region = detector_type.kind == "region"
    proposals = None if not region else "stored" if detector_type.takes_proposals else "own"
    facts = (name, detector_type.paper, detector_type.kind, proposals)
    config = detector_type.config_type()
    backbone = getattr(getattr(config, "backbone", None), "name", None)
    if backbone == MISSING:
        return ModelSummary(*facts, None, None, None, None, None, published_weights(name))
    with torch.device("meta"):
        build: Any = detector_type  # whose subclasses take a config and classes alone
        detector = build(config, CLASSES).eval()
        flops = detector.flops(*IMAGE_SIZE)
    return ModelSummary(
        *facts,
        backbone,
        str(detector.input),
        count_parameters(detector),
        None if flops is None else flops.image,
        None if flops is None else flops.region,
        published_weights(name),
    )


def published_weights(name: str) -> tuple[Source, ...]:
    """Return the trained detectors of a model that `detkit.load` reads: detkit's own and published ones."""
    known = [(key, network) for key, network in NETWORKS.items() if network.model().name == name]
    own = [key for key, model in BUNDLED.items() if model == name]
    sources = [Source(key, "detkit", True, str(FOLDER / f"{key}.pt")) for key in own]
    sources += [torchvision_source(network.weights)._replace(name=PREFIX + key) for key, network in known]
    if name in DARKNET_MODELS:
        sources.append(Source(f"darknet's {name}.weights", "a file of darknet, its .cfg beside it", False))
    return tuple(sources)
