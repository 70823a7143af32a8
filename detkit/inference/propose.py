"""The regions that a trained Faster R-CNN proposes for the images of a data set, as a store for other detectors."""

import hashlib
from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from detkit.checkpoints.checkpoint import load_detector
from detkit.config import Config
from detkit.data.dataset import DetectionDataset
from detkit.data.loader import test_loader
from detkit.data.proposal_store import ProposalStore, make_manifest
from detkit.errors import UserError
from detkit.models import Detector
from detkit.ops import clip
from detkit.proposals.make import Made, fill_store
from detkit.runtime.device import autocast, choose_device, images_to_device, to_device
from detkit.structures import Images, Proposals


def load_proposer(
    checkpoint: str | Path, overrides: list[str] | None = None, count: int | None = None
) -> tuple[Detector, Config]:
    """Read the checkpoint of a detector that proposes regions, such as Faster R-CNN.

    overrides: `key=value` arguments. count: the most regions of an image, by default as many as its config says.
    Raises UserError, in one line, for a checkpoint that is missing or another's.
    """
    detector, config = load_detector(checkpoint, overrides=overrides)
    if detector.proposal_settings() is None:
        raise UserError(f"{checkpoint}: {config.model.name} proposes no regions; name a checkpoint of faster_rcnn")
    if count is not None:
        detector.limit_proposals(count)
    return detector, config


def make_rpn_store(
    path: str | Path,
    dataset: DetectionDataset,
    detector: Detector,
    config: Config,
    checkpoint: str | Path,
    progress: Callable[[int, int], None] | None = None,
) -> ProposalStore:
    """Write the proposals for the images of a data set to the store `path`, in pixels of the image, with scores.

    detector, config: see `load_proposer`; checkpoint: where they are from. Scores are probabilities of an object. Goes
    on and raises as `fill_store` does. `config.evaluate.batch` images are proposed for at once, also when going on, so
    that the result is the same.
    """
    device = choose_device(config.train.device)
    to_device(detector, device, config.train.channels_last)
    detector.eval()
    manifest = make_manifest("rpn", _parameters(detector, Path(checkpoint)), dataset.ids)
    make = partial(_propose, detector, config, dataset, device)
    return fill_store(path, dataset.ids, manifest, make, progress)


def _parameters(detector: Detector, checkpoint: Path) -> dict[str, Any]:
    """What the proposals depend on. The checkpoint's folder tells one best.pt from another."""
    settings = detector.proposal_settings()
    assert settings is not None
    folder_and_name = "/".join(checkpoint.resolve().parts[-2:])
    return {"checkpoint": folder_and_name, "weights": _hash(detector.state_dict()), **settings}


def _hash(weights: dict[str, torch.Tensor]) -> str:
    """Return a digest of names and values."""
    digest = hashlib.sha256()
    for name, tensor in weights.items():
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _propose(
    detector: Detector, config: Config, dataset: DetectionDataset, device: torch.device, images: list[int]
) -> Generator[Made]:
    """Yield what is proposed for `images`, in their order."""
    index_of = {dataset.ids[i]: i for i in images}
    skip = frozenset(range(len(dataset))).difference(images)
    batch, workers = config.evaluate.batch, config.train.workers
    for read, _ in test_loader(dataset, detector.input, batch=batch, workers=workers, skip=skip):
        batch_images = images_to_device(read, device, config.train.channels_last)
        with torch.inference_mode(), autocast(device, config.train.amp):
            # waits for the device, once a batch: the store is written on the host
            proposals = detector.propose_regions(batch_images)
            boxes, scores, valid = (part.cpu().numpy() for part in _of_image(proposals, batch_images))
        for row, name in enumerate(batch_images.ids):
            if name in index_of:
                yield index_of[name], boxes[row][valid[row]], scores[row][valid[row]]


def _of_image(proposals: Proposals, images: Images) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return boxes (B, R, 4) in pixels of the images, scores (B, R), and valid (B, R): neither padding nor empty."""
    assert proposals.scores is not None
    factor = (images.original / images.sizes).flip(-1).repeat(1, 2).unsqueeze(1)
    boxes = clip(proposals.boxes * factor, images.original)
    return boxes, proposals.scores, proposals.valid & (boxes[..., 2:] > boxes[..., :2]).all(-1)
