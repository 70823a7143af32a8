"""detkit detect --explain: what each step of a detector did with one image."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from detkit.errors import UserError
from detkit.files import write_file, write_image
from detkit.runtime.screen import say

if TYPE_CHECKING:
    import numpy as np

    from detkit.config import Config
    from detkit.data.image_truth import Truth
    from detkit.explain import Section
    from detkit.models import Detector

INSIDE = "inside.html"  # of detkit inside, which explain's page links to where both are written to one folder
# options of detect that have no meaning, or would need an image of their own
UNUSED = (
    *("classes", "format", "json", "no_images", "crops", "show", "soft_nms", "flip", "scales", "max_side"),
    *("backend", "compile", "profile"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options to those of detkit detect."""
    parser.add_argument(
        "--explain",
        action="store_true",
        help="of one image, write what each step of the detector did: DIR/explain.html, and a PNG a step",
    )
    parser.add_argument(
        "--truth",
        metavar="XML",
        type=Path,
        help="with --explain: the image's objects (VOC), to show what training would learn from it; found by itself "
        "where the image lies in a data set",
    )


def run(arguments: argparse.Namespace) -> int:
    """Explain the one source of the arguments."""
    if not arguments.explain:
        raise UserError("--truth goes with --explain")
    score, of_classes = arguments.score
    if isinstance(score, str):
        raise UserError(f"--explain takes one score threshold, and --score {score} is one for each class")
    others = {f"--{name.replace('_', '-')}": getattr(arguments, name) for name in UNUSED}
    others["--score CLASS=S"] = of_classes
    if wrong := [name for name, value in others.items() if value]:
        raise UserError(
            f"--explain shows one image as the checkpoint's config detects in it; leave {', '.join(wrong)} out"
        )
    # the cheap questions first: what can't be explained is answered before torch has loaded
    if arguments.checkpoint.endswith(".onnx"):
        raise UserError(f"{arguments.checkpoint}: --explain needs a checkpoint: ONNX files keep no steps to show")
    path = _one_image(arguments.source)
    if arguments.out.exists() and not arguments.out.is_dir():
        raise UserError(f"--out {arguments.out}: a file, not a folder")

    from detkit.data.image_file import decode_image
    from detkit.inference.backends import open_detector

    image = decode_image(path)
    detector, config = open_detector(arguments.checkpoint, arguments.device)
    truth = _find_truth(arguments.truth, path, image, detector)
    inside = INSIDE if (arguments.out / INSIDE).is_file() else None
    given = (truth, score, path.name, arguments.checkpoint, inside)
    page, sections, lines = explain_image(detector, config, image, *given)
    for number, section in enumerate(sections, 1):
        write_image(arguments.out / f"{number}-{section.name}.png", section.sheet())
    write_file(arguments.out / "explain.html", page)
    for line in lines:
        say(line)
    for number, section in enumerate(sections, 1):
        say(f"{number} {section.title}: {section.text}")
    say(f"{arguments.out / 'explain.html'} and {len(sections)} images beside it")
    return 0


def explain_image(
    detector: "Detector",
    config: "Config",
    image: "np.ndarray",
    truth: "Truth | None",
    score: float,
    name: str,
    checkpoint: str,
    inside: str | None = None,
) -> tuple[str, "list[Section]", list[str]]:
    """Return the page that explains an image, its sections, and the lines above them; inside: see `explain_page`."""
    from detkit.explain import draw_sections, explain, explain_page

    # soft-NMS removes nothing, and several looks have no one image: what a config says of them is not shown
    config = replace(config, detect=replace(config.detect, score_threshold=score, nms="hard", flip=False, scales=[1.0]))
    result = explain(detector, image, config, truth)
    sections = draw_sections(result)
    height, width = image.shape[:2]
    settings = result.settings
    protocol = (
        f"{checkpoint}: {config.model.name} ({detector.input}), {name} of {width}x{height} pixels; "
        f"score above {settings.score_threshold:g}, NMS IoU {settings.nms_iou:g}, at most "
        f"{settings.detections_per_image} an image; "
        + (f"objects of {truth.origin}" if truth is not None else "the image's objects are not known (--truth XML)")
    )
    page = explain_page(result, sections, f"{config.model.name}, step by step: {name}", protocol, inside)
    return page, sections, [protocol, *filter(None, [result.note])]


def _one_image(names: list[str]) -> Path:
    from detkit.inference.sources import find_sources

    sources = find_sources(names)
    if len(sources) != 1:
        raise UserError(f"--explain takes one image, here are {len(sources)}; name one, such as {sources[0]}")
    if not isinstance(sources[0], Path):
        raise UserError(f"--explain takes an image, and {sources[0]} is a video; save one of its frames")
    return sources[0]


def _find_truth(xml: Path | None, path: Path, image: "np.ndarray", detector: "Detector") -> "Truth | None":
    """The objects in the file that is named, or where the image's data set has them."""
    from detkit.data.image_truth import find_truth, read_truth

    classes = detector.classes
    truth = find_truth(path, classes, detector.takes_masks) if xml is None else read_truth(xml, classes)
    height, width = image.shape[:2]
    if truth is None or truth.size in ((0, 0), (width, height)):
        return truth
    if xml is None:
        return None
    raise UserError(
        f"--truth {xml}: of an image of {truth.size[0]}x{truth.size[1]}, and {path} has {width}x{height} pixels"
    )
