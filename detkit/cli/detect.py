"""detkit detect: a checkpoint on images, folders, globs, videos and cameras."""

import argparse
import math
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detkit.cli import explain
from detkit.cli.detect_job import Job
from detkit.cli.detect_report import Report
from detkit.errors import UserError

if TYPE_CHECKING:
    from detkit.config import Config
    from detkit.engine.sources import Video
    from detkit.models import Detector

EPILOG = """examples:
  detkit detect runs/cards-1/best.pt photo.jpg
  detkit detect runs/cards-1/best.pt photos/ 'more/**/*.jpg' clip.mp4 --score 0.3 --out found --json
  detkit detect runs/cards-1/best.pt 0            (camera 0, until Ctrl-C)
  detkit detect torchvision/ssd300_vgg16 photo.jpg

torchvision/ssd300_vgg16, torchvision/fasterrcnn_resnet50_fpn and torchvision/fasterrcnn_resnet50_fpn_v2 know COCO's 80
classes and are fetched on first use; a file of such weights stands for a checkpoint, too.

detections.json holds the checkpoint, model, classes, score threshold and NMS IoU, and under "images" one entry a
photo, or a frame of a video: file, (frame, seconds,) drawn, width, height, detections. Each detection has class, score
and box: [left, top, right, bottom] in pixels of the file, continuous, 0 at the left and upper edge.

exit status: 0; 1 if some of several sources could not be read; 2 if nothing could be done.
"""

KEPT_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


def parser() -> argparse.ArgumentParser:
    """Return the command's arguments."""
    parser = argparse.ArgumentParser(
        prog="detkit detect",
        description="Run a trained detector. Writes each photo with its detections drawn, under the same name, and "
        "each video as MP4.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", help="best.pt or last.pt of a run, or torchvision/NAME")
    parser.add_argument("source", nargs="+", help="image, folder, 'glob', video file or camera number")
    parser.add_argument("--score", type=_finite, default=0.5, help="least score of a detection (default %(default)s)")
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("detections"), help="default %(default)s")
    parser.add_argument("--json", action="store_true", help="write DIR/detections.json too")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda or cuda:N")
    parser.add_argument("--batch", type=_positive, default=8, help="images at once (default %(default)s)")
    explain.add_arguments(parser)
    return parser


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text} is not a finite number")
    return value


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return value


def run(arguments: argparse.Namespace) -> int:
    """Detect on every source in the order given."""
    from dataclasses import replace
    from itertools import groupby

    # the cheap questions first: a misspelt name is answered before torch has loaded
    from detkit.engine.sources import VideoReader, find_sources, quiet

    quiet()
    if arguments.explain or arguments.truth is not None:
        return explain.run(arguments)
    sources = find_sources(arguments.source)
    drawn = drawn_names(sources)
    _check_out(arguments.out, sources, drawn)
    for video in sources:
        if not isinstance(video, Path):
            with VideoReader(video):
                pass  # opens, or says why not, before anything is written

    import torch

    from detkit.engine import memory
    from detkit.engine.checkpoint import load_detector
    from detkit.engine.device import choose_device, place

    memory.tune()
    device = choose_device(arguments.device)
    detector, config = load_detector(arguments.checkpoint, device)
    place(detector, device, config.train.channels_last)
    config = replace(config, detect=replace(config.detect, score=arguments.score))
    print(_protocol(arguments.checkpoint, detector, config, device))

    start = time.perf_counter()
    header = {
        "checkpoint": str(arguments.checkpoint),
        "model": config.model.name,
        "classes": list(detector.classes),
        "score": config.detect.score,
        "nms_iou": config.detect.iou,
    }
    try:
        with Report(arguments.out / "detections.json" if arguments.json else None, header) as report:
            job = Job(detector, config, arguments.batch, arguments.out, report, len(sources))
            # photos that follow each other share batches
            for _, group in groupby(zip(sources, drawn), key=lambda pair: isinstance(pair[0], Path)):
                photos = {}
                for source, name in group:
                    if isinstance(source, Path):
                        photos[source] = name
                    else:
                        job.video(source, name)
                if photos:
                    job.photos(photos)
            if job.failures == len(sources):
                raise UserError(f"none of the {len(sources)} sources could be read")
    except torch.OutOfMemoryError:
        raise UserError(f"out of GPU memory; try a --batch below {arguments.batch}") from None
    print(job.summary(time.perf_counter() - start))
    return 1 if job.failures or job.damaged else 0


def drawn_names(sources: "Iterable[Path | Video]") -> list[str]:
    """Return a file name for each source's drawn picture or video, all different, also where case doesn't count.

    It is the source's own name; where that is taken, its folders' names come before it: b/x.jpg -> b-x.jpg.
    """
    taken: set[str] = set()
    names = []
    for source in sources:
        if isinstance(source, Path):
            path = source.absolute()
            name = path.name if path.suffix.lower() in KEPT_SUFFIXES else path.stem + ".png"
            folders = [part for part in path.parent.parts if part != path.anchor]
        elif isinstance(source.place, Path):
            path = source.place.absolute()
            name, folders = path.stem + ".mp4", [part for part in path.parent.parts if part != path.anchor]
        else:
            name, folders = f"camera{source.place}.mp4", []
        plain = name
        while name.lower() in taken and folders:
            name = f"{folders.pop()}-{name}"
        number = 2
        while name.lower() in taken:
            name = f"{Path(plain).stem}-{number}{Path(plain).suffix}"
            number += 1
        taken.add(name.lower())
        names.append(name)
    return names


def _check_out(out: Path, sources: "list[Path | Video]", drawn: list[str]) -> None:
    """Refuse an output folder that can't be one, or in which a source would be overwritten."""
    for folder in (out, *out.absolute().parents):
        if folder.exists():
            if not folder.is_dir():
                raise UserError(f"--out {out}: {folder} is a file, not a folder")
            break
    places = [source if isinstance(source, Path) else source.place for source in sources]
    originals = {place.resolve() for place in places if isinstance(place, Path)}
    for name in drawn:
        if (out / name).resolve() in originals:
            raise UserError(f"--out {out}: {out / name} is a source and would be overwritten; choose another folder")


def _protocol(checkpoint: str, detector: "Detector", config: "Config", device: Any) -> str:
    backbone = getattr(getattr(config.model, "backbone", None), "name", None)
    inside = f" ({backbone}, {detector.input})" if backbone else f" ({detector.input})"
    settings = config.detect
    return (
        f"{checkpoint}: {config.model.name}{inside}, {len(detector.classes)} classes; "
        f"score >= {settings.score:g}, NMS IoU {settings.iou:g}, at most {settings.keep} an image; {device}"
    )
