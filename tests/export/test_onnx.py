"""Export to ONNX: onnxruntime gives what the detector gives, for any batch, and for any size where sizes are free."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from detkit.errors import UserError
from detkit.export import onnx
from detkit.inference.backends import tracing
from detkit.models import Detector
from detkit.models.parts import pad_to_canvas
from detkit.models.region_features import ImagePyramid
from detkit.models.rpn import RPNOutput
from detkit.ops import crop_warp
from detkit.structures import Images
from tests import zoo
from tests.backends import check_backends
from tests.builders import random_image, save_checkpoint

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")
pytest.importorskip("onnxscript")

FPN = {"neck": "fpn", "channels": 24, "size_divisor": 32, "anchors": "torchvision", "scales": [2.0], "pool": "align"}
CLOSE: dict[str, float] = {"atol": 1e-4, "rtol": 1e-4}


class File:
    """An exported file as others run it."""

    def __init__(self, path: Path) -> None:
        self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        meta = self.session.get_modelmeta().custom_metadata_map
        self.metadata = {key: json.loads(value) for key, value in meta.items()}

    def __call__(self, **inputs: Tensor) -> dict[str, Tensor]:
        names = [output.name for output in self.session.get_outputs()]
        found = self.session.run(None, {name: value.numpy() for name, value in inputs.items()})
        return dict(zip(names, map(torch.from_numpy, found)))


def exported(detector: Detector, folder: Path) -> dict[str, File]:
    """Export a detector, and run it on every backend; return its files by the ends of their names."""
    written, _ = onnx.export_onnx(save_checkpoint(folder / "best.pt", detector), folder / "out" / "net.onnx")
    assert sorted(one.path for one in written) == sorted((folder / "out").iterdir())
    for one in written:
        assert one.size == one.path.stat().st_size
        assert one.differences
        for each in one.differences:
            assert each.difference < 1e-4 * max(1.0, each.largest)
            assert each.largest > 0
    check_backends(detector, folder / "out" / "net.onnx")
    return {one.path.stem.removeprefix("net"): File(one.path) for one in written}


def padded(*sides: tuple[int, int]) -> Images:
    """Images of these heights and widths in one batch, with noise, not black, for padding."""
    sizes = torch.tensor(sides)
    height, width = sizes.amax(0).tolist()
    pixels = torch.randint(256, (len(sides), 3, height, width), dtype=torch.uint8)
    for row, (high, wide) in enumerate(sides):
        pixels[row, :, :high, :wide] = random_image(high, wide, row)[0]
    return Images(pixels, sizes, sizes, tuple(map(str, range(len(sides)))))


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        *(("ssd", {}), ("yolov1", {}), ("yolov1", {"local": 8, "boxes": 3}), ("yolov1", {"head": "conv"})),
        *(("yolov2", {}), ("yolov2", {"adjacent": True})),
    ],
)
def test_boxes_and_scores(name: str, keys: dict[str, Any], tmp_path: Path) -> None:
    detector = zoo.trained(name, **keys)
    (file,) = exported(detector, tmp_path).values()
    for batch in (1, 2, 5):
        images = zoo.sample_images(detector, batch)
        found = file(pixels=images.pixels)
        with torch.inference_mode():
            expected = detector.predict(images)
        assert list(found) == ["boxes", "scores"]
        torch.testing.assert_close(found["boxes"], expected.boxes, atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(found["scores"], expected.scores, **CLOSE)
        assert expected.scores.std() > 1e-3
    assert file.metadata["classes"] == ["a", "b"]
    assert file.metadata["model"] == name
    spec = file.metadata["input"]
    assert (tuple(spec["size"]), spec["resize"], spec["divisor"]) == (detector.input.size, "stretch", 255)
    assert (tuple(spec["mean"]), tuple(spec["std"])) == (detector.input.mean, detector.input.std)
    assert spec["normalisation"] == "inside", "a program that runs the file leaves it to the network"
    assert list(file.metadata["outputs"]) == ["boxes", "scores"]
    assert list(file.metadata["inputs"]) == ["pixels"]


def test_yolov3(tmp_path: Path) -> None:
    """On images that fit, of any aspect ratio, which the file lays in the middle of its canvas."""
    detector: Any = zoo.trained("yolov3")
    (file,) = exported(detector, tmp_path).values()
    for images in (padded((96, 96)), padded((80, 96), (96, 51)), padded((33, 96), (96, 90), (96, 96))):
        pixels = pad_to_canvas(images.pixels, detector.input)
        found = file(pixels=pixels, sizes=images.sizes)
        with torch.inference_mode():
            expected = detector.predict(images)
        torch.testing.assert_close(found["boxes"], expected.boxes, atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(found["scores"], expected.scores, **CLOSE)
    assert expected.scores.std() > 1e-3
    assert list(file.metadata["inputs"]) == ["pixels", "sizes"]
    assert file.metadata["input"]["resize"] == "letterbox"


@pytest.mark.parametrize("anchors", ["py_faster_rcnn", "torchvision"])
def test_retinanet(anchors: str, tmp_path: Path) -> None:
    """Of all anchors, on images of any size."""
    detector: Any = zoo.trained("retinanet", anchors=anchors)
    (file,) = exported(detector, tmp_path).values()
    for images in (padded((96, 112)), padded((96, 112), (80, 131)), padded((150, 97), (150, 90), (33, 64))):
        found = file(pixels=images.pixels, sizes=images.sizes)
        with torch.inference_mode():
            expected = detector.predict(images)
        torch.testing.assert_close(found["boxes"], expected.boxes, atol=2e-3, rtol=1e-3)
        torch.testing.assert_close(found["scores"], expected.scores, **CLOSE)
    assert expected.scores.std() > 1e-3
    assert list(file.metadata["inputs"]) == ["pixels", "sizes"]
    assert file.metadata["input"]["resize"] == "shortest"


def test_rfcn(tmp_path: Path) -> None:
    """Of the position-sensitive maps regions are pooled outside; the head is their vote."""
    detector: Any = zoo.trained("rfcn")
    files = exported(detector, tmp_path)
    assert list(files) == ["-rpn", "-head"]
    for images in (padded((96, 112)), padded((96, 112), (80, 131))):
        found = files["-rpn"](pixels=images.pixels, sizes=images.sizes)
        with torch.inference_mode():
            maps = detector.maps(images.pixels, images.sizes)
            proposals = detector.propose(images, maps)
            scores, deltas = detector.head.predict(detector.features.pool(maps, proposals.boxes))
            pooled = detector.features.pool([found["map_scores"], found["map_boxes"]], proposals.boxes)
        for name, own in zip(("map_scores", "map_boxes"), maps[1:], strict=True):
            torch.testing.assert_close(found[name], own, **CLOSE)
        scored = files["-head"](pooled=pooled.flatten(0, 1))
        torch.testing.assert_close(scored["logits"].softmax(-1)[:, :-1], scores.flatten(0, 1), **CLOSE)
        torch.testing.assert_close(scored["deltas"], deltas.flatten(0, 2), **CLOSE)
    assert files["-rpn"].metadata["pooling"]["kind"] == "psroi"


@pytest.mark.parametrize("keys", [{}, FPN], ids=["one map", "pyramid"])
def test_faster_rcnn(keys: dict[str, Any], tmp_path: Path) -> None:
    detector: Any = zoo.trained("faster_rcnn", **keys)
    files = exported(detector, tmp_path)
    assert list(files) == ["-rpn", "-head"]
    names = ["p3", "p4", "p5", "p6"] if keys else ["c3"]
    for images in (padded((96, 112)), padded((96, 112), (80, 131)), padded((150, 97), (150, 90), (33, 64))):
        found = files["-rpn"](pixels=images.pixels, sizes=images.sizes)
        logits, deltas, anchors = (
            [found[f"{kind}_{name}"] for name in names] for kind in ("logits", "deltas", "anchors")
        )
        maps = [found[f"map_{name}"] for name in (names[:-1] if keys else names)]
        with torch.inference_mode():
            own_maps = detector.maps(images.pixels, images.sizes)
            own = detector.rpn(own_maps)
            pairs = zip(
                (*logits, *deltas, *anchors, *maps),
                (*own.logits, *own.deltas, *own.anchors, *own_maps[: len(maps)]),
                strict=True,
            )
            for output, (theirs, ours) in zip(files["-rpn"].metadata["outputs"], pairs, strict=True):
                torch.testing.assert_close(theirs, ours, **CLOSE, msg=lambda text, output=output: f"{output}: {text}")
            proposals = detector.rpn.propose(RPNOutput(logits, deltas, anchors), images, training=False)
            pooled = detector.features.pool(maps, proposals.boxes)
            # of the same proposals: rounding may decide which anchors become one
            scores, deltas = detector.head.predict(detector.features.pool(own_maps, proposals.boxes))
            expected = detector.head.coder.decode(deltas, proposals.boxes.unsqueeze(2))
        scored = files["-head"](pooled=pooled.flatten(0, 1))
        found_scores = scored["logits"].softmax(-1).unflatten(0, proposals.valid.shape)
        torch.testing.assert_close(found_scores[..., :-1], scores, **CLOSE)
        boxes = decode(files["-head"].metadata["coder"], scored["deltas"], proposals.boxes.flatten(0, 1))
        torch.testing.assert_close(boxes.view_as(expected), expected, atol=2e-3, rtol=1e-3)
    assert list(files["-rpn"].metadata["inputs"]) == ["pixels", "sizes"]
    pooling = files["-rpn"].metadata["pooling"]
    assert pooling["strides"] == detector.features.strides
    assert ("canonical_scale" in pooling) == bool(keys)
    assert files["-rpn"].metadata["proposals"]["post_nms_top_n"] == 12


def decode(coder: dict[str, Any], deltas: Tensor, regions: Tensor) -> Tensor:
    """(R, C, 4) and (R, 4) -> boxes (R, C, 4), by what a file says of it (R-CNN, appendix C)."""
    x1, y1, x2, y2 = regions.double().unsqueeze(1).unbind(-1)
    dx, dy, dw, dh = (value / weight for value, weight in zip(deltas.double().unbind(-1), coder["weights"]))
    width, height = x2 - x1, y2 - y1
    x, y = (x1 + x2) / 2 + dx * width, (y1 + y2) / 2 + dy * height
    width, height = width * dw.clamp(max=coder["largest"]).exp(), height * dh.clamp(max=coder["largest"]).exp()
    return torch.stack((x - width / 2, y - height / 2, x + width / 2, y + height / 2), -1).float()


def check_regions(file: File, outputs: dict[str, Tensor], scores: Tensor, images: Images, detector: Detector) -> None:
    """Check what a file of a region head gave for all proposals: the detector's scores and boxes."""
    assert images.proposals is not None
    boxes, valid = images.proposals.boxes, images.proposals.valid
    with torch.inference_mode():
        expected = detector.predict(images)
    torch.testing.assert_close(scores.unflatten(0, valid.shape)[valid], expected.scores[valid], **CLOSE)
    decoded = decode(file.metadata["coder"], outputs["deltas"], boxes.flatten(0, 1)).unflatten(0, valid.shape)
    torch.testing.assert_close(decoded[valid], expected.boxes[valid], atol=2e-3, rtol=1e-3)


def test_fast_rcnn(tmp_path: Path) -> None:
    """An image's file, torch's pooling, and the regions' file are the detector."""
    detector: Any = zoo.trained("fast_rcnn")
    images = zoo.sample_images(detector, 2)
    assert images.proposals is not None
    files = exported(detector, tmp_path)
    x = files["-map"](pixels=images.pixels, sizes=images.sizes)["map"]
    outputs = files["-head"](pooled=detector.features.pool([x], images.proposals.boxes).flatten(0, 1))
    check_regions(files["-head"], outputs, outputs["logits"].softmax(-1)[:, :-1], images, detector)
    assert files["-map"].metadata["pooling"] == {"kind": "pool", "size": 4, "strides": [8]}


def test_sppnet(tmp_path: Path) -> None:
    """As Fast R-CNN, for images whose short side is that of the only scale."""
    detector: Any = zoo.trained("sppnet")
    images = zoo.sample_images(detector, 2)
    assert images.proposals is not None
    files = exported(detector, tmp_path)
    assert files["-head"].metadata["region_nms_iou"] == 0.3
    detector.region_nms_iou = 1.0  # it is no part of the files
    x = files["-map"](pixels=images.pixels.float(), sizes=images.sizes)["map"]
    pooled = detector.features.pool(ImagePyramid([(x, torch.ones(2))], images.sizes), images.proposals.boxes)
    outputs = files["-head"](pooled=pooled.flatten(0, 1))
    check_regions(files["-head"], outputs, outputs["scores"], images, detector)
    facts = files["-map"].metadata
    assert (facts["pooling"]["pyramid"], facts["scales"]) == ([2, 1], [96])


def test_rcnn(tmp_path: Path) -> None:
    """Regions cut out by what the file says of crops are all that its network needs."""
    detector = zoo.trained("rcnn")
    images = zoo.sample_images(detector, 2)
    assert images.proposals is not None
    (file,) = exported(detector, tmp_path).values()
    facts = file.metadata["crops"]
    mean = [value * 255 for value in file.metadata["input"]["mean"]]
    regions = images.proposals.boxes
    crops = crop_warp(images.pixels, regions, facts["side"], facts["context"], mean, images.sizes).flatten(0, 1)
    outputs = file(crops=crops)
    check_regions(file, outputs, outputs["scores"], images, detector)


def test_what_can_not_be_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ssd = save_checkpoint(tmp_path / "ssd.pt", zoo.build("ssd"))
    peer = save_checkpoint(tmp_path / "peer.pt", zoo.build("torchvision_ssd"))
    out = tmp_path / "out.onnx"
    reason = r"peer\.pt: torchvision_ssd can't be exported to ONNX: it loops over images"
    with pytest.raises(UserError, match=reason):
        onnx.export_onnx(peer, out)
    with pytest.raises(UserError, match=r"--onnx .*out\.pt: the name of an ONNX file ends in \.onnx"):
        onnx.export_onnx(ssd, tmp_path / "out.pt")
    with pytest.raises(UserError, match=r"no checkpoint .*none\.pt"):
        onnx.export_onnx(tmp_path / "none.pt", out)
    out.write_bytes(b"precious")
    with pytest.raises(UserError, match=r"out\.onnx exists already; remove it, or give another --onnx"):
        onnx.export_onnx(ssd, out)
    assert out.read_bytes() == b"precious"
    out.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(tracing, "MAX_BYTES", 1_000_000)
        with pytest.raises(UserError, match="GB of weights; an ONNX file holds less than"):
            onnx.export_onnx(ssd, out)
    for package in ("onnx", "onnxscript"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            with pytest.raises(UserError, match=f"--onnx needs {package}; pip install onnx onnxscript onnxruntime"):
                onnx.export_onnx(ssd, out)
    with monkeypatch.context() as patch:
        # a network that looks at values, as one of a plug-in might
        patch.setattr(nn.BatchNorm2d, "forward", lambda self, x: x if x.sum() > 0 else -x)
        with pytest.raises(UserError, match=r"ssd\.pt: torch can't export this network to ONNX: \S") as failed:
            onnx.export_onnx(ssd, out)
        assert "\n" not in str(failed.value)
    assert {file.name for file in tmp_path.iterdir()} == {"ssd.pt", "peer.pt"}


def test_both_files_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_checkpoint(tmp_path / "best.pt", zoo.build("faster_rcnn"))
    write, written = Path.write_bytes, []

    def full_disk(self: Path, content: bytes) -> int:
        written.append(self)
        if len(written) == 2:
            raise OSError(28, "No space left on device")
        return write(self, content)

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="No space"):
        onnx.export_onnx(path, tmp_path / "net.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["best.pt"]
    monkeypatch.undo()
    # and a file in the place of either is known before anything is traced
    (tmp_path / "net-head.onnx").write_bytes(b"precious")
    with pytest.raises(UserError, match=r"net-head\.onnx exists already"):
        onnx.export_onnx(path, tmp_path / "net.onnx")
    assert [file.name for file in tmp_path.iterdir() if file.name != "best.pt"] == ["net-head.onnx"]


def test_differences_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    detector = zoo.trained("yolov1")
    file = onnx.export_onnx(save_checkpoint(tmp_path / "best.pt", detector), tmp_path / "net.onnx")[0][0].path
    part = detector.export_parts()[""]
    detector.head.last.bias.data += 0.25  # pyright: ignore
    differences = onnx.compare(file, part)
    assert differences is not None
    assert [one.output for one in differences] == ["boxes", "scores"]
    assert all(one.difference > 1e-2 for one in differences)
    assert all(np.isfinite(one.largest) for one in differences)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert onnx.compare(file, part) is None
