"""One detector in several programs and number formats: what each finds beside what torch finds."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from detkit.data.dataset import DetectionDataset
from detkit.data.opening import open_dataset
from detkit.errors import UserError
from detkit.inference.backends import check_name, installed, open_detector
from detkit.inference.backends.onnx_file import read_files
from detkit.inference.evaluate import evaluate
from detkit.ops import box_iou
from detkit.structures import DetectionSet

SCORE, IOU = 0.1, 0.5  # from which scores detections are compared, and from which overlap two are the same


@dataclass(frozen=True)
class Output:
    """What a file gave on a backend.

    mAP, images_per_second: of the split, from files to detections. boxes, scores: largest differences of detections of
    the same image and class from torch's, those of at least SCORE there, in pixels of the image. missing: how many of
    the `count` detections of torch's have none that overlaps them by IOU.
    """

    file: str
    backend: str
    mAP: float
    images_per_second: float
    boxes: float
    scores: float
    missing: int
    count: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def compare_outputs(
    files: Sequence[str], overrides: list[str], split: str, backend: str | None, progress: Callable[[int, int], None]
) -> tuple[list[Output], DetectionDataset]:
    """Detect on a split of the data set of the first file, a checkpoint, by torch; then by each file on each backend.

    backend: the only one beside torch; None is all that are installed. progress: called with what is done and in all.
    Raises UserError, in one line: a file or backend that can't be, files of other classes.
    """
    checkpoint = files[0]
    if checkpoint.endswith(".onnx"):
        raise UserError(f"{checkpoint}: the first file is compared with, on torch: name its checkpoint, as best.pt")
    check_name(backend)
    for file in files[1:]:  # before the work begins
        if file.endswith(".onnx"):
            read_files(Path(file))
    detector, config = open_detector(checkpoint, "cpu", "torch", overrides)
    dataset = open_dataset(config.data, split, detector.classes)
    names = [name for name in installed() if name != "torch"] if backend is None else [backend]
    pairs = [(checkpoint, "torch"), *((file, name) for file in files for name in names)]
    found: list[Output] = []
    reference = None
    for file, name in pairs:
        progress(len(found), len(pairs))
        detector, config = open_detector(file, "cpu", name, overrides)
        if detector.classes != dataset.classes:
            raise UserError(f"{file} has other classes than {checkpoint}: {', '.join(detector.classes[:6])}")
        done = evaluate(detector, dataset, config)
        reference = reference or done.detections
        rate = len(dataset) / done.seconds
        differences = _differences(reference, done.detections)
        found.append(Output(file, detector.backend, done.result.mAP, rate, *differences))
    progress(len(found), len(pairs))
    return found, dataset


def _differences(reference: DetectionSet, other: DetectionSet) -> tuple[float, float, int, int]:
    """Return `boxes`, `scores`, `missing` and `count` of an Output."""
    reference = reference.part(reference.scores >= SCORE)
    box = score = 0.0
    missing = 0
    for image in range(len(reference.ids)):
        ours, theirs = (found.part(found.image == image) for found in (reference, other))
        if not len(ours.scores):
            continue
        overlap = box_iou(ours.boxes, theirs.boxes) * (ours.labels.unsqueeze(1) == theirs.labels)
        same = overlap.amax(1) >= IOU if len(theirs.scores) else ours.labels < 0
        missing += int((~same).sum())
        if same.any():
            partner = overlap[same].argmax(1)
            box = max(box, _largest(ours.boxes[same] - theirs.boxes[partner]))
            score = max(score, _largest(ours.scores[same] - theirs.scores[partner]))
    return box, score, missing, len(reference.scores)


def _largest(values: Tensor) -> float:
    return float(values.abs().max())
