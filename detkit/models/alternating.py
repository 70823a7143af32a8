"""Faster R-CNN's 4-step alternating training (section 3.2), as stages of one detector."""

from dataclasses import dataclass
from typing import Any

from detkit.models.base import SGD, Stage, StageRun
from detkit.models.region import RegionDetector


@dataclass(frozen=True)
class Propose:
    """A stage: the RPN's regions of all training images, to a store in the run's folder, for the stage after it."""

    name: str
    store: str
    iterations_factor: int = 0

    def run(self, detector: RegionDetector, run: StageRun) -> None:
        run.restore(detector)
        run.propose(detector, self.store)


# the proposals of step 2, and those of step 4
STORES = ("proposals/step1.npz", "proposals/step3.npz")
ALTERNATING: tuple[Stage, ...] = (
    SGD("rpn", iterations_factor=2, can_evaluate=False),  # step 1
    Propose("propose", STORES[0]),
    SGD("fast_rcnn", can_evaluate=False, store=STORES[0]),  # step 2
    SGD("rpn_shared", iterations_factor=2, can_evaluate=False),  # step 3
    Propose("propose_shared", STORES[1]),
    SGD("fast_rcnn_shared", store=STORES[1]),  # step 4
)
# what begins anew, as at the start of training: until step 3 the two networks share nothing
RESET = {"fast_rcnn": ("backbone", "neck"), "rpn_shared": ("rpn",)}


def begin_stage(detector: Any, stage: str) -> None:
    """Get a FasterRCNN ready for a step: what it learns, and from where."""
    if stage in RESET:
        fresh = type(detector)(detector.config, detector.classes)
        for name in RESET[stage]:
            if getattr(detector, name) is not None:
                detector.get_submodule(name).load_state_dict(fresh.get_submodule(name).state_dict())
    detector.requires_grad_(True)
    detector.freeze_layers(detector.config.freeze_stages, detector.config.freeze_norms)
    if stage.endswith("_shared"):
        detector.freeze(detector.backbone, *([] if detector.neck is None else [detector.neck]))
    detector.freeze(detector.head if stage.startswith("rpn") else detector.rpn)
