"""Export to ONNX: a detector's networks, with normalisation in front and whatever decoding no data decides behind.

NMS, and the pooling of regions that an RPN or a proposal method found, are left to who runs the files; so the region
detectors become two files, one for the image and one for its regions.
"""

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from detkit.checkpoints import checkpoint
from detkit.errors import UserError
from detkit.files import atomic_path
from detkit.models import Detector, fast_rcnn, faster_rcnn, rcnn, region, sppnet, ssd, yolov1
from detkit.models import svm_detector as linear
from detkit.models.rpn import CODER as RPN_CODER
from detkit.ops import BoxCoder
from detkit.ops.coders import MAX_LOG_SCALE
from detkit.structures import Images

OPSET = 18  # what torch's exporter writes without converting
MOST = 2**31  # bytes of one file: protobuf's limit
INSTALL = "pip install onnx onnxscript onnxruntime"
LOGGERS = ("onnxscript", "torch.fx.experimental.symbolic_shapes")
SEED = 0


class Input(NamedTuple):
    """What a network takes. example: traced with; probe: of another size, compared with; axes: those that may vary."""

    example: Tensor
    probe: Tensor
    axes: dict[int, str]
    text: str


@dataclass(frozen=True)
class Part:
    """One ONNX file.

    inputs: by the names of the network's arguments. outputs: what they are, by name, in its order. facts: whatever else
    it takes to go on from the outputs, for the file's metadata.
    """

    network: nn.Module
    inputs: dict[str, Input]
    outputs: dict[str, str]
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Difference:
    """One output of onnxruntime beside torch's, for one random input: the shape, the largest value and difference."""

    output: str
    shape: tuple[int, ...]
    largest: float
    difference: float


@dataclass(frozen=True)
class Written:
    """One file, its bytes, and how near onnxruntime comes to torch; None where onnxruntime is not installed."""

    path: Path
    size: int
    differences: tuple[Difference, ...] | None


class _Traced(Images):
    """Images while a network is traced: without names or checks, since how many they are is known at run time only."""

    def __post_init__(self) -> None:
        pass


class Dense(nn.Module):
    """A detector whose predictions need nothing but pixels (B, 3, H, W)."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        nothing = torch.empty(0, 2)  # images that fill the input need no sizes
        found = self.detector.predict(_Traced(pixels, nothing, nothing, ()))
        return found.boxes, found.scores


class Proposer(nn.Module):
    """pixels (B, 3, H, W), sizes (B, 2) -> of each map logits, deltas and anchors; then the maps that are pooled."""

    def __init__(self, detector: faster_rcnn.FasterRCNN) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, pixels: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        maps = self.detector.maps(_Traced(pixels, sizes, sizes, ()))
        logits, deltas = self.detector.rpn(maps)
        pooled = maps[: len(self.detector.region_features.strides)]
        return (*logits, *deltas, *self.detector.anchors(maps), *pooled)


class Features(nn.Module):
    """pixels (B, 3, H, W), sizes (B, 2) -> the map that regions are pooled from."""

    def __init__(self, detector: fast_rcnn.FastRCNN | sppnet.SPPNet) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, pixels: Tensor, sizes: Tensor) -> Tensor:
        normalised = self.detector.normalise(_Traced(pixels, sizes, sizes, ()))
        return self.detector.backbone(normalised)[self.detector.map.name]


class Head(nn.Module):
    """pooled (R, C, size, size) -> logits (R, classes + 1), and deltas (R, classes, 4), no longer normalised."""

    def __init__(self, head: region.RegionHead) -> None:
        super().__init__()
        self.head = head

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        logits, deltas = self.head(pooled, 1)
        return logits[0], deltas[0] * self.head.delta_std + self.head.delta_mean


class SVMHead(nn.Module):
    """pooled (R, ...) -> scores (R, classes) and deltas (R, classes, 4)."""

    def __init__(self, head: linear.SVMHead, softmax: bool) -> None:
        super().__init__()
        self.head, self.softmax = head, softmax

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        return self.head.detect(pooled, self.softmax)


class Crops(nn.Module):
    """crops (R, 3, crop, crop) -> scores (R, classes) and deltas (R, classes, 4)."""

    def __init__(self, detector: rcnn.RCNN) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        return self.detector.head.detect(self.detector.features(crops), self.detector.config.scoring == "softmax")


def parts(detector: Detector) -> dict[str, Part]:
    """Return what becomes a file, by the end of its name; UserError for a detector that can't be exported."""
    for kind, split in KINDS.items():
        if isinstance(detector, kind):
            return split(detector)
    names = ", ".join(kind.config_type().name for kind in KINDS)
    raise UserError(f"{detector.config.name} can't be exported to ONNX, since it loops over images; {names} can")


def export_onnx(path: str | Path, out: str | Path) -> list[Written]:
    """Write the networks of a checkpoint's detector as ONNX, in float32; return the files.

    SSD, YOLOv1: `out`, with boxes and scores before NMS. R-CNN: `out`, for crops. Faster R-CNN: OUT-rpn.onnx and
    OUT-head.onnx; Fast R-CNN and SPPNet: OUT-map.onnx and OUT-head.onnx. Batches, numbers of regions, and where
    detectors keep images' aspect ratio height and width too, are free. Each file's metadata say in JSON what its inputs
    and outputs are, the classes, and the InputSpec, whose mean and std are applied inside.
    All files are written or none. Raises UserError, in one line: no checkpoint, a detector that can't be exported,
    missing packages, a file that is there or that would be too large.
    """
    _check_packages()
    out = Path(out)
    if out.suffix != ".onnx":
        raise UserError(f"--onnx {out}: the name of an ONNX file ends in .onnx")
    detector, _ = checkpoint.load_detector(path)
    try:
        split = parts(detector)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    files = {out.with_name(f"{out.stem}{end}{out.suffix}"): part for end, part in split.items()}
    for file, part in files.items():
        if file.exists():
            raise UserError(f"{file} exists already; remove it, or give another --onnx")
        size = sum(weight.nbytes for weight in part.network.state_dict().values())
        if size >= MOST:
            raise UserError(f"{file}: {size / 1e9:.1f} GB of weights; an ONNX file holds less than {MOST / 1e9:.1f} GB")
    programs = {file: _trace(part, _metadata(detector, part), path) for file, part in files.items()}
    with ExitStack() as stack:
        for file, program in programs.items():
            program.save(str(stack.enter_context(atomic_path(file))), external_data=False)
    return [Written(file, file.stat().st_size, compare(file, part)) for file, part in files.items()]


def compare(file: Path, part: Part) -> tuple[Difference, ...] | None:
    """Run a file in onnxruntime, on the CPU, beside the network in torch, on a random input of another size."""
    try:
        import onnxruntime  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    found = session.run(None, {name: one.probe.numpy() for name, one in part.inputs.items()})
    with torch.inference_mode():
        wanted = part.network(*(one.probe for one in part.inputs.values()))
    wanted = [wanted] if isinstance(wanted, Tensor) else wanted
    return tuple(
        Difference(name, tuple(want.shape), _largest(want), _largest(torch.from_numpy(got) - want))
        for name, got, want in zip(part.outputs, found, wanted)
    )


def _largest(values: Tensor) -> float:
    return float(values.abs().max()) if values.numel() else 0.0


def _check_packages() -> None:
    try:
        import onnx  # noqa: F401  # pyright: ignore[reportMissingImports]
        import onnxscript  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(f"--onnx needs {error.name}; {INSTALL}") from None


def _trace(part: Part, metadata: Mapping[str, str], path: str | Path) -> torch.onnx.ONNXProgram:
    try:
        with _quiet():
            program = torch.onnx.export(
                part.network.eval(),
                tuple(one.example for one in part.inputs.values()),
                input_names=list(part.inputs),
                output_names=list(part.outputs),
                dynamic_shapes={name: one.axes for name, one in part.inputs.items()},
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise UserError(f"{path}: torch can't export this network to ONNX: {reason}") from None
    assert program is not None
    program.model.metadata_props.update(metadata)
    return program


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says of shared axis names, unfolded constants and inequalities that it can't solve."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)


def _metadata(detector: Detector, part: Part) -> dict[str, str]:
    """What it takes to run a file without detkit, as JSON."""
    values = {
        "model": detector.config.name,
        "classes": detector.classes,
        "input": asdict(detector.input) | {"normalisation": "inside"},
        "inputs": {name: one.text for name, one in part.inputs.items()},
        "outputs": part.outputs,
        **part.facts,
    }
    return {key: json.dumps(value) for key, value in values.items()}


def _dense(detector: Detector) -> dict[str, Part]:
    height, width = detector.input.size
    text = f"(batch, 3, {height}, {width}) uint8, RGB images, each stretched to this size"
    pixels = Input(_pixels(2, height, width), _pixels(3, height, width), {0: "batch"}, text)
    outputs = {
        "boxes": "(batch, boxes, 4) float32, x1, y1, x2, y2 in pixels of the input, neither clipped nor suppressed",
        "scores": f"(batch, boxes, {len(detector.classes)}) float32, of each class",
    }
    return {"": Part(Dense(detector), {"pixels": pixels}, outputs)}


def _faster_rcnn(detector: faster_rcnn.FasterRCNN) -> dict[str, Part]:
    c = detector.config
    names = detector.features if detector.neck is None else [info.name for info in detector.neck.info]
    pooled = names[: len(detector.region_features.strides)]
    outputs = {
        **{f"logits_{name}": "(batch, anchors) float32, object or not; a sigmoid makes it a score" for name in names},
        **{f"deltas_{name}": "(batch, anchors, 4) float32, from the anchors, see proposals" for name in names},
        **{f"anchors_{name}": "(anchors, 4) float32, x1, y1, x2, y2 in pixels of the input" for name in names},
        **{f"map_{name}": "(batch, channels, rows, columns) float32, pooled from, see pooling" for name in pooled},
    }
    proposals = {
        "pre_nms_top_n": c.test_pre_nms_top_n,
        "post_nms_top_n": c.test_post_nms_top_n,
        "nms_iou": c.rpn_nms_iou,
        "min_size": c.min_size,
    }
    proposals |= {"deltas": _coder(RPN_CODER)}
    rpn = Part(
        Proposer(detector), _resized_images(detector), outputs, {"proposals": proposals, "pooling": _pooling(detector)}
    )
    return {"-rpn": rpn, "-head": _head(detector)}


def _fast_rcnn(detector: fast_rcnn.FastRCNN) -> dict[str, Part]:
    facts = {"pooling": _pooling(detector), "scales": detector.config.scales, "longest": detector.config.longest}
    return {
        "-map": Part(Features(detector), _resized_images(detector), _map(detector), facts),
        "-head": _head(detector),
    }


def _sppnet(detector: sppnet.SPPNet) -> dict[str, Part]:
    c = detector.config
    bins = sum(level**2 for level in c.pyramid)
    pooling = {"pyramid": c.pyramid, "stride": detector.map.stride, "centre": detector.centre}
    text = f"(regions, {detector.map.channels}, {bins}) float32, largest values in the bins of the pyramid"
    pooled = _regions((detector.map.channels, bins), text)
    head = Part(SVMHead(detector.head, c.scoring == "softmax"), {"pooled": pooled}, *_scored(detector))
    facts = {"pooling": pooling, "scales": c.scales}
    return {"-map": Part(Features(detector), _resized_images(detector), _map(detector), facts), "-head": head}


def _rcnn(detector: rcnn.RCNN) -> dict[str, Part]:
    c = detector.config
    text = f"(regions, 3, {c.crop}, {c.crop}) float32, regions warped to RGB squares, 0 to 255, see crops"
    crops = _regions((3, c.crop, c.crop), text, 255)
    outputs, facts = _scored(detector)
    facts["crops"] = {"side": c.crop, "context": c.context}
    return {"": Part(Crops(detector), {"crops": crops}, outputs, facts)}


def _resized_images(detector: Detector) -> dict[str, Input]:
    """Images whose sides are free, and their sizes."""
    # where the detector, and so whoever runs the file, rescales images, values are no whole numbers
    dtype, kind = (torch.uint8, "uint8") if detector.input.resize == "shortest" else (torch.float32, "float32")
    shapes = (2, *detector.input.fit(300, 400)), (1, *detector.input.fit(400, 300))
    example, probe = (_pixels(*shape).to(dtype) for shape in shapes)
    full = [torch.tensor([sides] * batch) for batch, *sides in shapes]
    # a padded image, too
    full[1] -= torch.tensor([0, 5])
    axes = {0: "batch", 2: "height", 3: "width"}
    text = f"(batch, 3, height, width) {kind}, RGB images, 0 to 255, at the upper left, padded with anything"
    return {
        "pixels": Input(example, probe, axes, text),
        "sizes": Input(full[0], full[1], {0: "batch"}, "(batch, 2) int64, height and width of each image in pixels"),
    }


def _map(detector: fast_rcnn.FastRCNN | sppnet.SPPNet) -> dict[str, str]:
    return {"map": f"(batch, {detector.map.channels}, rows, columns) float32, pooled from, see pooling"}


def _head(detector: faster_rcnn.FasterRCNN | fast_rcnn.FastRCNN) -> Part:
    shape, classes = (detector.region_features.channels, *[detector.config.pool_size] * 2), len(detector.classes)
    outputs = {
        "logits": f"(regions, {classes + 1}) float32, of each class and, last, background; a softmax makes them scores",
        "deltas": f"(regions, {classes}, 4) float32, of each class, from the regions, see coder",
    }
    text = f"(regions, {', '.join(map(str, shape))}) float32, pooled from the map"
    return Part(Head(detector.head), {"pooled": _regions(shape, text)}, outputs, {"coder": _coder(region.CODER)})


def _scored(detector: linear.SVMDetector) -> tuple[dict[str, str], dict[str, Any]]:
    classes = len(detector.classes)
    outputs = {
        "scores": f"(regions, {classes}) float32, of each class",
        "deltas": f"(regions, {classes}, 4) float32, of each class, from the regions, see coder",
    }
    return outputs, {"coder": _coder(linear.CODER)}


def _pooling(detector: faster_rcnn.FasterRCNN | fast_rcnn.FastRCNN) -> dict[str, Any]:
    c, features = detector.config, detector.region_features
    pooling = {"kind": c.pool, "size": c.pool_size, "strides": features.strides}
    # of several maps, a region's is chosen by its size
    return pooling | ({"canonical_scale": features.canonical_scale} if len(features.strides) > 1 else {})


def _coder(coder: BoxCoder) -> dict[str, Any]:
    """What a box is decoded with: deltas (wx dx, wy dy, ww dw, wh dh), the last two up to a largest logarithm."""
    return {"weights": coder.weights, "largest": MAX_LOG_SCALE}


def _pixels(batch: int, height: int, width: int) -> Tensor:
    return torch.randint(256, (batch, 3, height, width), generator=_random(), dtype=torch.uint8)


def _regions(shape: tuple[int, ...], text: str, scale: float = 1.0) -> Input:
    example, probe = (torch.rand(count, *shape, generator=_random()) * scale for count in (2, 5))
    return Input(example, probe, {0: "regions"}, text)


def _random() -> torch.Generator:
    return torch.Generator().manual_seed(SEED)


KINDS: dict[type[Detector], Callable[[Any], dict[str, Part]]] = {
    ssd.SSD: _dense,
    yolov1.YOLOv1: _dense,
    faster_rcnn.FasterRCNN: _faster_rcnn,
    fast_rcnn.FastRCNN: _fast_rcnn,
    sppnet.SPPNet: _sppnet,
    rcnn.RCNN: _rcnn,
}
