"""The forms of an exported file: NMS inside, a fixed batch, half precision, INT8."""

import importlib.util
from pathlib import Path

import pytest
import torch

from detkit.cli import main
from detkit.config import DetectConfig
from detkit.errors import UserError
from detkit.export.onnx import Form, export_onnx
from detkit.inference.backends import open_detector
from detkit.inference.backends.onnx_file import read_file
from detkit.inference.backends.runtimes import RUNTIMES
from detkit.inference.tta import check_scales
from detkit.models import Detector, postprocess
from tests import zoo
from tests.backends import INSTALLED, check_backends
from tests.builders import save_checkpoint
from tests.data.roots import make_root, xml
from tests.matching import assert_same_detections

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
SETTINGS = {"score_threshold": 0.3, "top_k": 60, "nms_iou": 0.4, "detections_per_image": 25}
OVERRIDES = tuple(f"detect.{key}={value}" for key, value in SETTINGS.items())


def exported(folder: Path, name: str, form: Form) -> tuple[Detector, Path]:
    detector = zoo.trained(name)
    export_onnx(save_checkpoint(folder / "best.pt", detector), folder / "net.onnx", form)
    return detector, folder / "net.onnx"


def test_nms_inside_is_detkits(tmp_path: Path) -> None:
    detector, path = exported(tmp_path, "ssd", Form(nms=True, batch=2, overrides=OVERRIDES))
    file, settings = read_file(path), DetectConfig(**SETTINGS)
    images = zoo.sample_images(detector, 3)  # in batches of 2, the last filled up
    with torch.inference_mode():
        expected = postprocess(detector.predict(images), images, settings)[0].unpad()
    for backend in INSTALLED:
        outputs = RUNTIMES[backend](file.content)(pixels=images.pixels[:2])
        boxes, scores, labels = outputs
        assert (boxes.shape, scores.shape, labels.shape) == ((2, 25, 4), (2, 25), (2, 25))
        for image in range(2):
            kept = labels[image] >= 0
            assert 5 < kept.sum() <= 25
            assert (scores[image][kept].diff() <= 0).all()
            assert not boxes[image][~kept].any()
            assert not scores[image][~kept].any()
            found = (boxes[image][kept], scores[image][kept], labels[image][kept])
            assert_same_detections(found, expected[image].image(0), score=0.3, iou=0.4, keep=25)
        other, config = open_detector(path, backend=backend)
        with torch.inference_mode():
            again = postprocess(other.predict(images), images, config.detect)[0].unpad()
        for ours, theirs in zip(again, expected, strict=True):
            assert_same_detections(ours.image(0), theirs.image(0), score=0.3, iou=0.4, keep=25)
    check_scales(other, DetectConfig(**{**SETTINGS, "score_threshold": 0.5}))
    for key, value in (("score_threshold", 0.2), ("nms_iou", 0.5), ("top_k", 5), ("nms", "linear")):
        with pytest.raises(UserError, match=r"inside the exported file; for others export it without --nms"):
            check_scales(other, DetectConfig(**{**SETTINGS, key: value}))


def test_nms_inside_a_file_that_letterboxes(tmp_path: Path) -> None:
    """Boxes are clipped to each image, not to the canvas."""
    detector, path = exported(tmp_path, "yolov3", Form(nms=True, overrides=OVERRIDES))
    images, settings = zoo.sample_images(detector, 3), DetectConfig(**SETTINGS)
    with torch.inference_mode():
        expected = postprocess(detector.predict(images), images, settings)[0].unpad()
    for backend in INSTALLED:
        other, config = open_detector(path, backend=backend)
        with torch.inference_mode():
            found = postprocess(other.predict(images), images, config.detect)[0].unpad()
        for ours, theirs in zip(found, expected, strict=True):
            assert ours.valid.sum() > 5
            assert_same_detections(ours.image(0), theirs.image(0), score=0.3, iou=0.4, keep=25)


def test_a_fixed_batch_runs_any_number(tmp_path: Path) -> None:
    detector, path = exported(tmp_path, "faster_rcnn", Form(batch=2))
    check_backends(detector, path)
    file = read_file(path.with_name("net-rpn.onnx"))
    assert file.values["batch"] == 2
    assert file.values["batched"].count(False) == 1, "anchors are all images'"
    assert "batch" not in read_file(path.with_name("net-head.onnx")).values


def test_half_precision_is_half_the_bytes(tmp_path: Path) -> None:
    detector, path = exported(tmp_path, "yolov1", Form(fp16=True))
    weights = sum(weight.nbytes for weight in detector.state_dict().values())
    assert path.stat().st_size < 0.5 * weights + 100_000
    images = zoo.sample_images(detector, 2)
    with torch.inference_mode():
        expected = detector.predict(images)
        for backend in INSTALLED:
            found = open_detector(path, backend=backend)[0].predict(images)
            torch.testing.assert_close(found.boxes, expected.boxes, atol=0.5, rtol=0)
            torch.testing.assert_close(found.scores, expected.scores, atol=1e-2, rtol=0)
            assert not torch.equal(found.scores, expected.scores)


def test_int8(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nncf")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    objects = {str(number): xml([("ab"[number % 2], (1 + number, 1, 40 + number, 40))]) for number in range(6)}
    root = make_root(tmp_path / "animals", objects, {"train": ["0", "1", "2", "3"], "test": ["4", "5"]})
    detector = zoo.trained("ssd")
    path = save_checkpoint(tmp_path / "best.pt", detector)
    data = [f"data.root={root}", "data.format=voc", "train.workers=0"]
    assert main(["export", str(path), "--onnx", str(tmp_path / "net.onnx"), "--int8", "--images", "3", *data]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("mAP 0.")
    assert "in INT8" in line
    assert "animals/test, 2 images" in line
    assert line.endswith("calibrated on 3 training images")
    assert (tmp_path / "net.onnx").stat().st_size < 0.35 * path.stat().st_size
    images = zoo.sample_images(detector, 2)
    with torch.inference_mode():
        expected = detector.predict(images)
        found = open_detector(tmp_path / "net.onnx")[0].predict(images)
    assert (found.scores - expected.scores).abs().mean() < 0.1
    assert (found.boxes - expected.boxes).abs().mean() < 3


def test_what_can_not_be(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_checkpoint(Path("ssd.pt"), zoo.build("ssd"))
    save_checkpoint(Path("rcnn.pt"), zoo.build("rcnn"))
    save_checkpoint(Path("retinanet.pt"), zoo.build("retinanet"))
    for words, arguments in (
        ("--nms: what rcnn exports ends before its boxes", ["rcnn.pt", "--onnx", "x.onnx", "--nms"]),
        ("--nms: retinanet takes images of any size", ["retinanet.pt", "--onnx", "x.onnx", "--nms"]),
        ("--nms: a file has hard NMS of one view", ["ssd.pt", "--onnx", "x.onnx", "--nms", "detect.nms=linear"]),
        ("--batch: what this detector exports takes regions", ["rcnn.pt", "--onnx", "x.onnx", "--batch", "2"]),
        ("--fp16 and --int8: one at a time", ["ssd.pt", "--onnx", "x.onnx", "--fp16", "--int8"]),
        ("--nms, key=value: goes with --onnx FILE.onnx", ["ssd.pt", "--nms", "detect.nms=hard"]),
        ("unknown key 'detect.nm'", ["ssd.pt", "--onnx", "x.onnx", "detect.nm=1"]),
    ):
        assert main(["export", *arguments]) == 2
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1
    weights = zoo.build("ssd")
    next(weights.parameters()).data.fill_(1e5)
    save_checkpoint(Path("large.pt"), weights)
    assert main(["export", "large.pt", "--onnx", "x.onnx", "--fp16"]) == 2
    assert "has values beyond half precision, whose largest is 65504" in capsys.readouterr().err
    if importlib.util.find_spec("nncf") is None:
        assert main(["export", "ssd.pt", "--onnx", "x.onnx", "--int8"]) == 2
        assert "--int8 needs nncf; pip install nncf onnxruntime openvino" in capsys.readouterr().err
    assert not Path("x.onnx").exists()
