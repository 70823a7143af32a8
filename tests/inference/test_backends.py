"""Detectors whose networks run elsewhere find what they find on torch; what can't run is one line.

tests/export/test_onnx.py has all the others: whatever it exports runs on every backend.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import detkit
from detkit.cli import main
from detkit.errors import UserError
from detkit.export.onnx import export_onnx
from detkit.inference import backends
from detkit.inference.backends import onnx_file, open_detector
from detkit.inference.backends.runtimes import OpenVINO
from detkit.models import postprocess
from detkit.runtime.device import images_to_device
from tests import zoo
from tests.backends import INSTALLED, check_backends
from tests.builders import few_regions, random_image, save_checkpoint
from tests.data.roots import make_root, xml
from tests.matching import assert_same_detections

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
if not INSTALLED:
    pytest.skip("needs onnxruntime or openvino", allow_module_level=True)


@pytest.mark.parametrize("name", ["fast_rcnn", "sppnet"])
def test_an_image_pyramid(name: str, tmp_path: Path) -> None:
    detector = zoo.trained(name, scales=[64, 96])
    export_onnx(save_checkpoint(tmp_path / "best.pt", detector), tmp_path / "net.onnx")
    check_backends(detector, tmp_path / "net.onnx")


@pytest.mark.parametrize(("name", "backend"), [("ssd", INSTALLED[0]), ("fast_rcnn", INSTALLED[-1])])
def test_a_checkpoint_on_a_backend(name: str, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By Python's door, with images of several sizes, flipped and scaled, and proposals made for them."""
    monkeypatch.setattr("detkit.inference.predict.find_method", lambda *_: few_regions)
    images = [np.ascontiguousarray(random_image(60, 90, seed)[0].permute(1, 2, 0)) for seed in (0, 1, 2)]
    images.append(images[0][:40].copy())
    path = save_checkpoint(tmp_path / "best.pt", zoo.trained(name))
    ours, theirs = detkit.load(path, "cpu", backend), detkit.load(path, "cpu")
    assert theirs.backend == "torch" != ours.backend
    for views in ({}, {"flip": True, "scales": [0.5, 1]}):
        pairs = zip(*(one.detect(images, score=0.2, batch=3, **views) for one in (ours, theirs)), strict=True)
        for found, expected in pairs:
            assert len(expected) > 0
            assert_same_detections(found.image(0), expected.image(0), score=0.2, iou=0.45, keep=200)


def test_torch_takes_one_thread_behind_another_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_checkpoint(tmp_path / "best.pt", zoo.trained("yolov1"))
    used: list[int] = []

    def watched(work: Any) -> Any:
        def spy(*arguments: Any) -> Any:
            used.append(torch.get_num_threads())
            return work(*arguments)

        return spy

    for work in (images_to_device, postprocess):
        monkeypatch.setattr(f"detkit.inference.evaluate.{work.__name__}", watched(work))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for backend in ("torch", INSTALLED[0]):
            detkit.load(path, "cpu", backend).detect([np.zeros((64, 64, 3), np.uint8)])
        assert used == [2, 2, 1, 1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_auto_is_the_fastest_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_checkpoint(tmp_path / "best.pt", zoo.trained("yolov1"))
    started: list[str] = []

    class Fake:
        def __init__(self, content: bytes) -> None:
            started.append(self.name)

    fakes = {name: type(name, (Fake,), {"name": name}) for name in backends.RUNTIMES}
    monkeypatch.setattr(backends, "RUNTIMES", fakes)
    monkeypatch.setattr(backends, "trace_parts", lambda *_: {"": b""})
    missing: list[str] = []
    monkeypatch.setattr(backends, "find_spec", lambda name: None if name in missing else "there")
    for expected in ("openvino", "onnxruntime", "torch"):
        assert open_detector(path, "cpu", "auto")[0].backend == expected
        missing.append(expected)
    assert started == ["openvino", "onnxruntime"]
    missing.clear()
    assert open_detector(path)[0].backend == "torch", "a checkpoint's weights are there already"
    for capable, expected in ((True, "torch"), (False, "openvino")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": capable}, raising=False)  # noqa: B023
        assert open_detector(path, "cpu", "auto", ["train.amp=bf16"])[0].backend == expected
        assert open_detector(path, "cpu", "auto", ["train.amp=none"])[0].backend == "openvino"
    peer = save_checkpoint(tmp_path / "peer.pt", zoo.build("torchvision_ssd"))
    assert open_detector(peer, "cpu", "auto")[0].backend == "torch", "it can't be exported"
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert open_detector(path, "cpu", "auto")[0].backend == "torch"


def test_openvino_runs_any_number_of_images(tmp_path: Path) -> None:
    """Few networks for many numbers of images, last batches filled up; a call's outputs outlive the next call."""
    pytest.importorskip("openvino")
    detector = zoo.trained("yolov1")
    export_onnx(save_checkpoint(tmp_path / "best.pt", detector), tmp_path / "net.onnx")
    runtime = OpenVINO((tmp_path / "net.onnx").read_bytes())
    pixels = zoo.sample_images(detector, 6).pixels
    found = runtime(pixels=pixels)
    with torch.inference_mode():
        expected = detector.boxes_and_scores(pixels)
    compiled = []
    for count in (5, 1, 1, 2, 3, 2, 4, 4, 6):
        for one, alone in zip(found, runtime(pixels=pixels[:count]), strict=True):
            torch.testing.assert_close(alone, one[:count])
        compiled.append([*runtime._compiled])
    assert compiled == [[6]] * 2 + [[6, 1]] * 3 + [[6, 1, 2]] * 2 + [[6, 1, 2, 4]] * 2
    for one, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(one, theirs, atol=1e-3, rtol=1e-4)


def refused(*arguments: Any, **keys: Any) -> str:
    with pytest.raises(UserError) as error:
        open_detector(*arguments, **keys)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_can_not_run_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "net.onnx"
    export_onnx(save_checkpoint(tmp_path / "best.pt", zoo.trained("faster_rcnn")), path)
    checkpoint, rpn, head = tmp_path / "best.pt", tmp_path / "net-rpn.onnx", tmp_path / "net-head.onnx"
    assert open_detector(rpn)[0].classes == zoo.CLASSES, "any part will do"
    content = head.read_bytes()

    # names, places, packages
    line = refused(checkpoint, backend="onnxruntim")
    assert line.startswith("backend 'onnxruntim' is not one of auto, torch, openvino, onnxruntime; did you mean 'onnxr")
    assert f"{path}: torch runs no ONNX files; openvino or onnxruntime does" in refused(path, backend="torch")
    assert f"no file {tmp_path / 'none.onnx'}" in refused(tmp_path / "none.onnx")
    assert f"{path}: backend {INSTALLED[0]} runs on the CPU; device cuda" in refused(path, "cuda", INSTALLED[0])
    for keys in (["train.device=cuda"], ["train.device=cpu", "train.device=cuda:1"]):
        assert f"runs on the CPU; device {keys[-1][13:]} goes" in refused(path, overrides=keys)
    assert open_detector(path, overrides=["train.device=cuda", "train.device=cpu"])[1].train.device == "cpu"
    peer = save_checkpoint(tmp_path / "peer.pt", zoo.build("torchvision_ssd"))
    assert "torchvision_ssd can't be exported to ONNX: it loops over images" in refused(peer, backend=INSTALLED[0])
    with monkeypatch.context() as patch:
        for package in backends.RUNTIMES:
            patch.setitem(sys.modules, package, None)
            assert f"{path}: backend {package} is not installed; pip install {package}" in refused(path, None, package)
        assert f"{path}: torch runs no ONNX files; openvino or onnxruntime does: pip install" in refused(path)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "onnxscript", None)
        line = refused(checkpoint, backend=INSTALLED[0])
        assert f"--backend {INSTALLED[0]}, for which checkpoints are exported, needs onnxscript; pip install" in line

    # files: of other programs, cut off, changed, of other formats, alone, of two exports
    foreign = onnx.load_from_string(content)
    del foreign.metadata_props[:]
    for wrong in (foreign.SerializeToString(), b"", b"rubbish" * 50, content[:-1], content[:5000]):
        head.write_bytes(wrong)
        line = refused(path)
        assert f"{head}: cut off, or not exported by this detkit: it lacks the metadata `detkit` (format, con" in line
    for place in (100, len(content) // 2, len(content) - 200, len(content) - 60):
        head.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert f"{head}: " in (line := refused(path))
        assert (
            "damaged, or changed by another program, as onnxsim: its checksum is of" in line
            or "lacks the metadata" in line
        )
    simplified = onnx.load_from_string(content)
    simplified.graph.node[0].name = "another"
    head.write_bytes(simplified.SerializeToString())
    assert "changed by another program" in refused(path)
    own = onnx_file.read_file(rpn).values
    for number in ("0", "2"):
        head.write_bytes(onnx_file.seal(b"", {}, {**own, "part": "-head", "format": f"detkit onnx {number}"}))
        assert f"format 'detkit onnx {number}', this detkit reads 'detkit onnx 1' alone; export" in refused(path)
    head.write_bytes(onnx_file.seal(b"", {}, {**own, "part": "-head", "export": "another"}))
    assert "are not parts of one export; export both again" in refused(rpn)
    head.unlink()
    assert f"{rpn}: its detector has a part that is not there: {head}" in refused(rpn)

    # a network that the program can't run
    head.write_bytes(onnx_file.seal(b"rubbish", {}, {**own, "part": "-head"}))
    for backend in INSTALLED:
        assert f"{head}: {backend} can't run it: " in refused(rpn, backend=backend)


def test_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """detect and evaluate take an exported file as they take its checkpoint, and say what ran it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "120")
    objects = {"1": xml([("a", (1, 1, 20, 20))]), "2": xml([("b", (10, 10, 30, 30))])}
    root = make_root(tmp_path / "animals", objects, {"test": ["1", "2"]})
    image = str(root / "JPEGImages/1.jpg")
    save_checkpoint(Path("best.pt"), zoo.trained("ssd"))
    export_onnx("best.pt", "ssd.onnx")
    found = []
    for file in ("best.pt", "ssd.onnx"):
        keys = [f"data.root={root}", "data.format=voc", "train.workers=0"]
        assert main(["evaluate", file, *keys, "--out", f"{file}.out"]) == 0
        metrics = json.loads(Path(f"{file}.out/metrics.json").read_text())
        assert ("backend" in metrics) == (file == "ssd.onnx")
        assert ("run by" in capsys.readouterr().out) == (file == "ssd.onnx")
        assert main(["detect", file, str(root / "JPEGImages"), "--score", ".2", "--json", "--out", f"{file}.out"]) == 0
        images = json.loads(Path(f"{file}.out/detections.json").read_text())["images"]
        found.append((metrics["AP"], [len(image["detections"]) for image in images]))
        assert metrics["checkpoint"] == file
        line = capsys.readouterr().out.splitlines()[0]
        assert (", OpenVINO " in line or ", ONNX Runtime " in line) == (file == "ssd.onnx")
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-3)
    assert found[0][1] == found[1][1]
    for words, arguments in (
        (
            "leave --backend out",
            ["detect", "ssd.onnx", image, "--explain", "--backend", "auto"],
        ),
        ("--explain needs a checkpoint", ["detect", "ssd.onnx", image, "--explain"]),
        ("leave --backend out", ["evaluate", "--detections", "x.json", "--backend", "auto", "--dataset", str(root)]),
        ("backend 'openvin' is not one of", ["evaluate", "best.pt", "--backend", "openvin"]),
    ):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1
