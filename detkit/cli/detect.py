"""detkit detect: a checkpoint on images, folders, globs, videos and cameras."""

import argparse
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import accumulate, chain, groupby, takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from detkit.cli import explain
from detkit.cli.arguments import add_backend, backend_overrides, whole
from detkit.cli.detect_report import Listing, open_all, write_coco, write_csv, write_json
from detkit.errors import UserError, did_you_mean, late
from detkit.names import unused_name
from detkit.runtime.screen import say

if TYPE_CHECKING:
    from detkit.config import Config
    from detkit.inference.sources import Sources, Video
    from detkit.models import Detector

DESCRIPTION = (
    "Run a trained detector. Writes each image with its detections drawn, under the same name, and each video as MP4."
)
EPILOG = """examples:
  detkit detect voc image.jpg
  detkit detect runs/cards-1/best.pt image.jpg --score best
  detkit detect runs/cards-1/best.pt images/ 'more/**/*.jpg' clip.mp4 --score 0.3 --out found --format json,csv
  detkit detect runs/cards-1/best.pt images/ --classes ace,king --score 0.5,king=0.8 --crops cut
  detkit detect runs/cards-1/best.pt images/ --flip --scales 0.75,1 --soft-nms gaussian
  detkit detect runs/cards-1/best.pt 0 --show     (camera 0, until Ctrl-C, or q in its window)
  detkit detect torchvision/ssd300_vgg16 image.jpg
  detkit detect ssd.onnx images/     (what detkit export --onnx wrote; of two parts the name that they share)

voc is part of detkit: a small SSD that knows PASCAL VOC's 20 classes (docs/voc.md).
torchvision/ssd300_vgg16, torchvision/fasterrcnn_resnet50_fpn and torchvision/fasterrcnn_resnet50_fpn_v2 know COCO's 80
classes and are fetched on first use; a file of such weights stands for a checkpoint, too.

formats, all in the output folder:
  json  detections.json: checkpoint, model, classes, thresholds and NMS, and under "images" an entry an image, or
        a frame of a video: file, (frame, seconds,) drawn, width, height, detections. Each has class, score and box:
        [left, top, right, bottom] in pixels of the file, continuous, 0 at the left and upper edge.
  coco  coco_results.json, as COCO's tools read it, and coco_images.json, the images and categories that its ids mean
  csv   detections.csv: file, frame, seconds, width, height, class, score, left, top, right, bottom
  voc, yolo  a data set of the images, linked, with what was found as its objects: voc/ and yolo/, split `detected`

Images are shown upright by their EXIF, of animations the first image; what is transparent is white. A video keeps its
frames' times, also where they are uneven. Ctrl-C ends the work after the batch at hand, and leaves whole files.

exit status: 0; 1 if one of several sources could not be read, or an image or list not be written; 2 if nothing could be
done; 130 after Ctrl-C.
"""

SWITCH_INTERVAL = 2e-4  # seconds
KEPT_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
FORMATS = {
    "json": "detections.json",
    "coco": "coco_results.json",
    "voc": "voc/",
    "yolo": "yolo/",
    "csv": "detections.csv",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint", help="best.pt or last.pt of a run, MODEL.onnx of detkit export, voc, or torchvision/NAME"
    )
    parser.add_argument("source", nargs="+", help="image, folder, 'glob', video file or camera number")
    parser.add_argument(
        "--score",
        type=_scores,
        default="0.5",
        metavar="S[,CLASS=S...]",
        help="score threshold, and those of single classes (default %(default)s); best: of each class that which had "
        "the best F1 on val in training",
    )
    parser.add_argument("--classes", type=_names, metavar="A,B", help="find these alone")
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("detections"), help="default %(default)s")
    parser.add_argument(
        "--format", type=_formats, default=[], metavar="A,B", help=f"of {', '.join(FORMATS)}: see below"
    )
    parser.add_argument("--json", action="store_true", help="the same as --format json")
    parser.add_argument("--no-images", action="store_true", help="draw and write no images and videos")
    parser.add_argument("--crops", metavar="DIR", type=Path, help="cut each detection out, into DIR/CLASS/")
    parser.add_argument("--show", action="store_true", help="show each image in a window; q there ends the work")
    parser.add_argument(
        "--soft-nms", choices=("linear", "gaussian"), help="lower scores of boxes that overlap better ones"
    )
    parser.add_argument("--flip", action="store_true", default=None, help="look at each image mirrored, too")
    parser.add_argument("--scales", type=_factors, metavar="F,F", help="look at these factors of the usual size")
    parser.add_argument(
        "--max-side",
        type=whole(1),
        metavar="N",
        help="of detectors that classify given regions: selective search sees larger images in a copy whose longer "
        "side has N pixels (default: the config's, 500)",
    )
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda or cuda:N")
    add_backend(parser)
    parser.add_argument("--batch", type=whole(1), default=8, help="images at once (default %(default)s)")
    parser.add_argument("--profile", action="store_true", help="print where the time went, step by step")
    explain.add_arguments(parser)


def _finite(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number")
    return value


def _scores(text: str) -> tuple[float | str, dict[str, float]]:
    """`0.5,cat=0.3` -> (0.5, {"cat": 0.3}); `best` stays a text"""
    score, class_scores = 0.5, {}
    for part in text.split(","):
        name, equals, value = part.rpartition("=")
        if equals:
            class_scores[name.strip()] = _finite(value)
        else:
            score = "best" if part.strip() == "best" else _finite(part)
    return score, class_scores


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _formats(text: str) -> list[str]:
    for name in _names(text):
        if name not in FORMATS:
            raise argparse.ArgumentTypeError(f"no format {name!r}{did_you_mean(name, FORMATS)}")
    return _names(text)


def _factors(text: str) -> list[float]:
    return [_finite(part) for part in text.split(",")]


def run(arguments: argparse.Namespace) -> int:
    """Detect on every source in the order given."""
    # the cheap questions first: a misspelt name is answered before torch has loaded
    from detkit.inference.sources import Sources, VideoReader, quiet

    quiet()
    if arguments.explain or arguments.truth is not None:
        return explain.run(arguments)
    overrides = backend_overrides(arguments)
    sources = Sources(arguments.source)
    _check_folder("--out", arguments.out)
    if not arguments.no_images:
        _check_out(arguments.out, sources)
    if arguments.crops is not None:
        _check_crops(arguments.crops, sources)
    for video in sources.videos():
        with VideoReader(video):
            pass  # opens, or says why not, before anything is written
    window = None
    if arguments.show:
        from detkit.viz.window import Window

        window = Window("detkit detect")

    import torch

    from detkit.cli.detect_job import Job
    from detkit.inference.backends import open_detector
    from detkit.inference.thresholds import score_thresholds
    from detkit.inference.tta import check_scales
    from detkit.runtime import memory
    from detkit.runtime.signals import Interrupt
    from detkit.runtime.stopwatch import Stopwatch

    memory.tune()
    # a thread that wants Python's lock gets it sooner: else each operator of the network waits for those who draw
    sys.setswitchinterval(SWITCH_INTERVAL)
    detector, config = open_detector(arguments.checkpoint, arguments.device, arguments.backend, overrides)
    score, class_scores = arguments.score
    if arguments.max_side is not None and not detector.takes_proposals:
        raise UserError(f"--max-side {arguments.max_side}: {config.model.name} needs no selective search")
    changes = {"nms": arguments.soft_nms, "flip": arguments.flip, "scales": arguments.scales}
    changes["proposal_side"] = arguments.max_side
    changes = {key: value for key, value in changes.items() if value is not None}
    thresholds = score_thresholds(detector, score, arguments.classes, class_scores)
    least = float(thresholds.min()) if isinstance(score, str) else score
    config = replace(config, detect=replace(config.detect, score_threshold=least, **changes))
    check_scales(detector, config.detect)
    say(_protocol(arguments, detector, config))

    watch = Stopwatch(next(detector.parameters()).device, ("network", "post-processing"))
    timed = {"timed": watch.timed} if arguments.profile else {}
    start = time.perf_counter()
    formats = [name for name in FORMATS if name in arguments.format or (name == "json" and arguments.json)]
    listings = _listings(formats, arguments, detector, config)
    with late() as attempt:
        try:
            with Interrupt() as stop, open_all(listings, attempt) as report:
                out, crops, batch, alone = arguments.out, arguments.crops, arguments.batch, len(sources) == 1
                keys = {"draws": not arguments.no_images, **timed}
                job = Job(detector, config, thresholds, batch, out, report, stop, alone, crops, window, **keys)
                pairs = takewhile(lambda _: not job.is_over(), zip(sources, drawn_names(sources)))
                # images that follow each other share batches
                for _, group in groupby(pairs, key=lambda pair: isinstance(pair[0], Path)):
                    for source, name in group:
                        if isinstance(source, Path):
                            rest = ((image, drawn) for image, drawn in group if isinstance(image, Path))
                            job.images(chain([(source, name)], rest), sources.images)
                        else:
                            job.video(source, name)
                if job.failures == job.sources and not job.is_over():
                    raise UserError(f"none of the {job.sources} sources could be read")
                if job.unwritten and not job.written and not listings:
                    raise job.unwritten[0]
        except torch.OutOfMemoryError:
            raise UserError(f"out of GPU memory; try a --batch below {arguments.batch}") from None
        seconds = time.perf_counter() - start
        say(job.summary(seconds, [FORMATS[name] for name in formats]))
        if arguments.profile:
            say(*job.profile(watch.seconds, seconds))
        if job.unwritten:
            with attempt(f"{len(job.unwritten)} images"):
                raise job.unwritten[0]
        if job.is_over() and not job.ended_a_camera:
            done = f"{job.sources} of {len(sources)} sources"
            print(f"interrupted after {done}; what was done is complete", file=sys.stderr)
            return 130
        return 1 if job.failures or job.damaged else 0


def _listings(
    formats: list[str], arguments: argparse.Namespace, detector: "Detector", config: "Config"
) -> dict[str, Listing]:
    from detkit.cli.detect_datasets import write_voc, write_yolo

    settings, (score, class_scores) = config.detect, arguments.score
    if isinstance(score, str) and detector.best_scores is not None:
        class_scores = {**detector.best_scores.scores, **class_scores}
    header = {
        "checkpoint": str(arguments.checkpoint),
        "model": config.model.name,
        "classes": list(detector.classes),
        "score": score,
        "class_scores": class_scores,
        "only": arguments.classes,
        "nms": settings.nms,
        "nms_iou": settings.nms_iou,
        "flip": settings.flip,
        "scales": settings.scales,
    }
    json = partial(write_json, header=header)
    writers = {"json": json, "coco": write_coco, "voc": write_voc, "yolo": write_yolo, "csv": write_csv}
    return {FORMATS[name]: partial(writers[name], arguments.out / FORMATS[name], detector.classes) for name in formats}


def drawn_names(sources: "Iterable[Path | Video]") -> Iterator[str]:
    """Yield a file name for each source's drawn image or video, all different, also where case doesn't count.

    It is the source's name; where that is taken, its folders' names come before it: b/x.jpg -> b-x.jpg.
    """
    taken: set[str] = set()
    for source in sources:
        place = source if isinstance(source, Path) else source.place
        stem, folders, suffix = f"camera{place}", (), ".mp4"
        if isinstance(place, Path):
            stem, folders = place.stem, place.absolute().parent.parts[1:]
        if isinstance(source, Path):
            suffix = source.suffix if source.suffix.lower() in KEPT_SUFFIXES else ".png"
        longer = accumulate(reversed(folders), lambda name, folder: f"{folder}-{name}", initial=stem)
        stem = next((name for name in longer if f"{name}{suffix}".lower() not in taken), stem)
        yield unused_name(taken, stem, suffix)


def _check_folder(option: str, folder: Path) -> None:
    """Refuse an output folder that can't be one."""
    parent = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not parent.is_dir():
        raise UserError(f"{option} {folder}: {parent} is a file, not a folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(f"{option} {folder}: no permission to write in {parent}")


def _check_out(out: Path, sources: "Sources") -> None:
    """Refuse an output folder in which a source would be overwritten."""
    folder = os.path.realpath(out)
    originals = {name for parent, name in map(os.path.split, _real_paths(sources)) if parent == folder}
    if not originals:
        return
    for name in drawn_names(sources):
        if os.path.basename(os.path.realpath(out / name)) in originals:
            raise UserError(f"--out {out}: {out / name} is a source and would be overwritten; choose another folder")


def _check_crops(folder: Path, sources: "Sources") -> None:
    """Refuse a folder for crops that can't be one, or that holds sources."""
    _check_folder("--crops", folder)
    real = os.path.realpath(folder)
    if any(path.startswith(real + os.sep) for path in _real_paths(sources)):
        raise UserError(f"--crops {folder}: sources are in it; choose another folder")


def _real_paths(sources: "Sources") -> Iterator[str]:
    for source in sources:
        path = source if isinstance(source, Path) else source.place
        if isinstance(path, Path):
            yield os.path.realpath(path)


def _protocol(arguments: argparse.Namespace, detector: "Detector", config: "Config") -> str:
    backbone = getattr(getattr(config.model, "backbone", None), "name", None)
    inside = f" ({backbone}, {detector.input})" if backbone else f" ({detector.input})"
    settings, (score, class_scores) = config.detect, arguments.score
    classes = f"{len(detector.classes)} classes"
    if arguments.classes is not None:
        classes = f"{', '.join(arguments.classes)} of {classes}"
    scores = f"score of {detector.best_scores}, else 0.5" if isinstance(score, str) else f"score >= {score:g}"
    scores += "".join(f", {name} >= {value:g}" for name, value in class_scores.items())
    nms = f"NMS IoU {settings.nms_iou:g}"
    if settings.nms != "hard":
        nms = f"linear soft-NMS from IoU {settings.nms_iou:g}" if settings.nms == "linear" else "Gaussian soft-NMS"
    views = ", mirrored too" * settings.flip
    if settings.scales != [1.0]:
        views += f", at scales {', '.join(f'{scale:g}' for scale in settings.scales)}"
    if detector.takes_proposals:
        side = "" if settings.proposal_side is None else f" in at most {settings.proposal_side} pixels"
        views += f"; selective search ({settings.proposals}){side}"
    return (
        f"{arguments.checkpoint}: {config.model.name}{inside}, {classes}; {scores}, {nms}, "
        f"at most {settings.detections_per_image} an image{views}; "
        f"{next(detector.parameters()).device}{f', {detector.backend}' * (detector.backend != 'torch')}"
        f"{', compiled' * config.detect.compile}"
    )
