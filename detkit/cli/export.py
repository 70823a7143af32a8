"""detkit export: a checkpoint in another form."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from detkit.cli.arguments import whole
from detkit.cli.listing import print_table
from detkit.errors import UserError
from detkit.runtime.screen import say

if TYPE_CHECKING:
    from detkit.export.onnx import Written
    from detkit.export.svd import SVDResult

DESCRIPTION = (
    "Write a trained detector in another form. --onnx: its networks as ONNX. --svd: truncated SVDs "
    "in place of fully connected layers (Fast R-CNN, section 3.1), as a checkpoint like any other. --half: a "
    "checkpoint with weights in half precision."
)
EPILOG = """examples:
  detkit export runs/ssd-1/best.pt --onnx ssd.onnx
  detkit export runs/faster_rcnn-1/best.pt --onnx faster_rcnn.onnx     (two files, -rpn and -head)
  detkit export runs/ssd-1/best.pt --onnx ssd.onnx --nms --batch 1 detect.score_threshold=.3
  detkit export runs/ssd-1/best.pt --onnx ssd8.onnx --int8 data.root=data/mine
  detkit export runs/fast_rcnn-1/best.pt                         (says which layers --svd can name)
  detkit export runs/fast_rcnn-1/best.pt --svd fc6=1024,fc7=256
  detkit evaluate runs/fast_rcnn-1/best-svd.pt
  detkit export runs/ssd-1/best.pt --half ssd.pt

ONNX: float32, for any batch. SSD, YOLOv1, YOLOv2: uint8 images of the detector's size -> boxes and scores, before
NMS. YOLOv3: the same of images that fit into this size; RetinaNet: of images of any size.
Faster R-CNN: images of any size -> FILE-rpn.onnx: logits, deltas and anchors of each map, and the maps; pooled regions
-> FILE-head.onnx: logits and deltas. Fast R-CNN and SPPNet: FILE-map.onnx and FILE-head.onnx; R-CNN: warped regions ->
scores and deltas. Proposals, pooling and NMS lie between and behind. The files' metadata have the classes, mean and std
(applied inside), what each input and output is, and what decoding and pooling need, as JSON. detkit detect, evaluate
and detkit.load take the files as they take the checkpoint.

--nms, of SSD and YOLO: images -> boxes, scores and labels after NMS, padded (label -1), boxes in pixels of the input.
--fp16 halves the file; it is computed in float32, unless the program does otherwise. --int8, by NNCF, is for OpenVINO.

LAYER is fc6 or fc7, a layer's path such as head.tail.1, or the end of one. Times are those of 300 regions on the CPU,
in the number format that the checkpoint's config has for it, the fastest of several interleaved runs.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, help="best.pt or last.pt of a run")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="with --onnx: changes to the checkpoint's config"
    )
    parser.add_argument("--onnx", metavar="FILE.onnx", type=Path, help="a new file, or the stem of two")
    parser.add_argument(
        "--nms",
        action="store_true",
        help="with --onnx: NMS inside, as the config's detect section has it",
    )
    parser.add_argument("--batch", metavar="N", type=whole(1), help="with --onnx: images in a batch (default: any)")
    parser.add_argument("--fp16", action="store_true", help="with --onnx: weights in half precision, half the bytes")
    parser.add_argument(
        "--int8",
        action="store_true",
        help="with --onnx: 8-bit integers, calibrated on images of data.train; prints mAP before and after",
    )
    parser.add_argument(
        "--images", metavar="N", type=whole(1), default=300, help="with --int8: to calibrate on (default %(default)s)"
    )
    parser.add_argument(
        "--split", default="test", help="with --int8: what mAP is of, train, val or test (default %(default)s)"
    )
    parser.add_argument("--svd", metavar="LAYER=RANK,...", help="rank that is left of each layer")
    parser.add_argument("--half", metavar="FILE.pt", type=Path, help="a new file; it detects as the checkpoint does")
    parser.add_argument("--out", metavar="FILE", type=Path, help="with --svd: a new file (default: CHECKPOINT-svd.pt)")


def run(arguments: argparse.Namespace) -> None:
    """Do what was asked."""
    forms = [f"--{name}" for name in ("onnx", "svd", "half") if getattr(arguments, name) is not None]
    if len(forms) > 1:
        raise UserError(
            f"{' and '.join(forms)}: one at a time; --svd and --half write checkpoints, which --onnx can read"
        )
    if arguments.out is not None and forms and forms != ["--svd"]:
        raise UserError(f"--out {arguments.out}: goes with --svd; {forms[0]} names its file itself")
    options = {f"--{name}": getattr(arguments, name) for name in ("nms", "batch", "fp16", "int8")}
    options["key=value"] = arguments.overrides
    if arguments.onnx is None and (wrong := [name for name, value in options.items() if value]):
        raise UserError(f"{', '.join(wrong)}: goes with --onnx FILE.onnx")
    if arguments.fp16 and arguments.int8:
        raise UserError("--fp16 and --int8: one at a time; INT8 is a quarter of the bytes")
    if arguments.onnx is not None:
        _onnx(arguments)
    elif arguments.svd is not None:
        _svd(arguments.checkpoint, parse_ranks(arguments.svd), arguments.out)
    elif arguments.half is not None:
        _half(arguments.checkpoint, arguments.half)
    else:
        _list_choices(arguments.checkpoint)


def parse_ranks(text: str) -> dict[str, int]:
    """`fc6=1024,fc7=256` -> {fc6: 1024, fc7: 256}; UserError, in one line, for anything else."""
    ranks: dict[str, int] = {}
    for part in text.split(","):
        name, _, rank = (word.strip() for word in part.rpartition("="))
        if not name or not rank.isdecimal():
            raise UserError(f"--svd {text}: {part!r} is not LAYER=RANK; an example: --svd fc6=1024,fc7=256")
        if name in ranks:
            raise UserError(f"--svd {text}: {name} is named twice")
        ranks[name] = int(rank)
    return ranks


def _svd(path: Path, ranks: dict[str, int], out: Path | None) -> None:
    from rich.console import Console

    from detkit.export.svd import export_svd

    out = out if out is not None else path.with_name(f"{path.stem}-svd{path.suffix}")
    with Console(stderr=True).status("decomposing"):
        result = export_svd(path, out, ranks)
    _report(result, out)


def _report(result: "SVDResult", out: Path) -> None:
    from detkit.export.svd import ROWS

    rows = []
    for one in result.layers:
        before, after = one.seconds
        counts, times = (f"{count:,}" for count in one.parameters), (f"{second * 1e3:.2f}" for second in one.seconds)
        layer = one.layer
        rows.append((layer.name, str(layer.after.rank), *counts, f"{layer.error:.4f}", *times, f"{before / after:.2f}"))
    print_table(("layer", "rank", "parameters", "after", "error of weight", "ms", "after", "times faster"), rows)
    form = "float32" if result.amp == "none" else result.amp
    say(f"error: Frobenius norm, relative to the weight's; ms: {ROWS} regions, CPU, {form}")
    height, width = result.size
    print(
        f"largest differences on a random image of {width}x{height}, float32: scores {result.score:.3g}, "
        f"boxes {result.box:.3g} pixels"
    )
    say(f"{out}: {result.parameters[1]:,} parameters of {result.parameters[0]:,}")


def _onnx(arguments: argparse.Namespace) -> None:
    from rich.console import Console

    from detkit.export.onnx import Form, export_onnx

    names = ("nms", "batch", "fp16", "int8", "images", "split")
    form = Form(overrides=tuple(arguments.overrides), **{name: getattr(arguments, name) for name in names})
    with Console(stderr=True).status("tracing the network"):
        files, measured = export_onnx(arguments.checkpoint, arguments.onnx, form)
    for one in files:
        _report_file(one)
    if measured is not None:
        before, after = measured.before.mAP, measured.after.mAP
        say(
            f"mAP {before:.4f} in float32, {after:.4f} in INT8 ({after - before:+.4f}): {measured.before.protocol}, "
            f"{measured.dataset}, {measured.before.images} images, on {measured.backend}; calibrated on "
            f"{measured.calibration} training images"
        )
    elif files[0].differences is None:
        say("not compared with torch: onnxruntime is not installed; pip install onnxruntime")
    else:
        say("differences: onnxruntime's outputs from torch's on a random input, float32, CPU")


def _report_file(written: "Written") -> None:
    if written.differences is not None:
        header = ("output", "shape", "largest value", "largest difference")
        rows = []
        for one in written.differences:
            shape = " x ".join(map(str, one.shape))
            rows.append((one.output, shape, f"{one.largest:.3g}", f"{one.difference:.2g}"))
        print_table(header, rows)
    say(f"{written.path}: {written.size / 1e6:.1f} MB")


def _half(path: Path, out: Path) -> None:
    from detkit.export.half import export_half

    before, after = export_half(path, out)
    say(f"{out}: {after / 1e6:.1f} MB, for weights of {before / 1e6:.1f} MB")


def _list_choices(path: Path) -> None:
    from detkit.checkpoints.checkpoint import load_detector
    from detkit.models.compress import describe_layers

    detector, config = load_detector(path)
    if detector.supports_svd:
        layers = f"{path} has {describe_layers(detector)}"
    else:
        layers = f"{config.model.name} has no region head for it"
    raise UserError(
        "what to export? --onnx FILE.onnx writes the network as ONNX; --half FILE.pt a checkpoint of half the size; "
        f"--svd LAYER=RANK,... compresses fully connected layers; {layers}"
    )
