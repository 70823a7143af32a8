"""A detector of a user's own, one file, has all of detkit's tools."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import detkit
from detkit import extensions
from detkit.backbones.describe import count_flops
from detkit.checkpoints.describe import describe_model
from detkit.cli import main
from detkit.models import MODELS, DenseDetector, Detector, RegionDetector
from detkit.structures import Images
from tests.builders import images_of, random_image
from tests.toys.toy import CLASSES, draw_toys

CONFIGS = {
    "dots": "{name: dots, size: 96}",
    "windows": "{name: windows, size: [64, 96], sides: [24.0, 40.0], pool_size: 3, batch_size_per_image: 16}",
}
FILES = {"dots": Path(__file__).with_name("dense.py"), "windows": Path(__file__).with_name("region.py")}
BASES = {"dots": DenseDetector, "windows": RegionDetector}
CONFIG = """
imports: [FILE]
model: MODEL
data: {root: toys, train: [train], val: [val], test: [test], difficult: false}
train: {iterations: 6, batch: 4, lr: 0.01, workers: 0, device: cpu}
detect: {score_threshold: 0.01}
evaluate: {batch: 4}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a folder with toys, and a run of each of the two detectors, which are registered until the last test."""
    root = tmp_path_factory.mktemp("own")
    draw_toys(root / "toys")
    known = dict(MODELS._entries)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
        patch.setattr(extensions, "imported", [])
        patch.setattr(sys, "path", [*sys.path])
        for name, model in CONFIGS.items():
            text = CONFIG.replace("MODEL", model).replace("FILE", str(FILES[name]))
            (root / f"{name}.yaml").write_text(text)
            assert main(["train", f"{name}.yaml", "--out", f"runs/{name}"]) == 0
        yield root
    MODELS._entries.clear()
    MODELS._entries.update(known)
    for path in FILES.values():
        del sys.modules[path.stem]


@pytest.fixture(autouse=True)
def _in_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))


def load(name: str) -> Detector:
    return detkit.load(f"runs/{name}/best.pt", device="cpu")


def test_each_is_a_page() -> None:
    for path in FILES.values():
        assert len(path.read_text().splitlines()) <= 60


def test_the_page_on_extending_shows_them() -> None:
    page = (Path(__file__).parents[2] / "docs" / "extending.md").read_text()
    for path in FILES.values():
        assert path.read_text() in page


@pytest.mark.parametrize("name", CONFIGS)
def test_it_trains_and_evaluates(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [json.loads(line) for line in Path(f"runs/{name}/log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses
    assert torch.tensor(losses).isfinite().all()
    assert main(["evaluate", f"runs/{name}/best.pt", "--out", f"scored/{name}"]) == 0
    metrics = json.loads(Path(f"scored/{name}/metrics.json").read_text())
    assert set(metrics["AP"]) == set(CLASSES)
    assert metrics["images"] == 9


@pytest.mark.parametrize("name", CONFIGS)
def test_it_detects(name: str) -> None:
    detector = load(name)
    assert isinstance(detector, BASES[name])
    found = detector.detect("toys/JPEGImages/test*.jpg", score=0.0)
    assert len(found) == 9
    for detections in found:
        boxes, scores, labels = detections.image(0)
        assert len(labels) > 0
        assert ((boxes >= 0) & (boxes <= torch.tensor([40.0, 36, 40, 36]))).all()
        assert ((scores >= 0) & (scores <= 1)).all()


@pytest.mark.parametrize("name", CONFIGS)
def test_it_is_exported(name: str) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    assert main(["export", f"runs/{name}/best.pt", "--onnx", f"onnx/{name}.onnx"]) == 0
    ends = {"dots": [""], "windows": ["-head", "-map"]}[name]
    assert [path.stem for path in sorted(Path("onnx").glob(f"{name}*"))] == [name + end for end in ends]


@pytest.mark.parametrize("name", CONFIGS)
def test_it_is_explained(name: str) -> None:
    out = Path(f"explained/{name}")
    arguments = [f"runs/{name}/best.pt", "toys/JPEGImages/test000.jpg", "--explain", "--score", "0.01"]
    assert main(["detect", *arguments, "--out", str(out)]) == 0
    assert (out / "explain.html").is_file()
    drawings = [path.stem.split("-", 1)[1] for path in sorted(out.glob("*.png"))]
    assert len(drawings) >= (3 if name == "dots" else 5)  # NMS and what comes of it; before it a region's features


@pytest.mark.parametrize("name", CONFIGS)
def test_its_operations_are_counted(name: str) -> None:
    detector = load(name)
    height, width = detector.input.fit(96, 128)
    images = images_of(random_image(height, width))
    flops = detector.flops(96, 128)
    assert flops is not None
    regions = detector.predict(images).scores.shape[1] if flops.region is not None else 0
    total = flops.image + (flops.region or 0) * regions
    assert total == count_flops(lambda: detector.predict(images))
    summary = describe_model(name)
    assert summary.kind == type(detector).kind
    assert summary.proposals == (None if name == "dots" else "own")
    assert summary.flops is not None
    assert (summary.parameters or 0) > 1000


def test_they_are_compared(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "runs/dots", "runs/windows", "--out", "compared", "--rounds", "1"]) == 0
    rows = json.loads(Path("compared/compare.json").read_text())["detectors"]
    assert {row["model"] for row in rows} == set(CONFIGS)


def test_windows_cover_each_image_of_a_batch() -> None:
    """Windows are inside their image; the middle of every pixel lies in one; what is outside is padding."""
    detector = detkit.create_model("windows", classes=["a"], size=[64, 96], sides=[24.0], pool_size=3)
    assert isinstance(detector, RegionDetector)
    sizes = torch.tensor([[64, 80], [50, 33]])
    images = Images(torch.zeros(2, 3, 64, 80, dtype=torch.uint8), sizes, sizes, ("a", "b"))
    proposals = detector.propose(images, None)
    assert proposals.valid[0].all()
    assert not proposals.valid[1].all()
    for boxes, valid, (height, width) in zip(proposals.boxes, proposals.valid, sizes.tolist()):
        boxes = boxes[valid]
        assert ((boxes[:, 2:] - boxes[:, :2]) > 0).all()
        for x, y in ((0.5, 0.5), (width - 0.5, height - 0.5), (width / 2, 0.5)):
            inside = (boxes[:, 0] <= x) & (boxes[:, 2] >= x) & (boxes[:, 1] <= y) & (boxes[:, 3] >= y)
            assert inside.any()


@pytest.mark.parametrize(("geometry", "offset"), [("backbone", 15), ("published", 0)])
def test_regions_are_pooled_where_the_cells_lie(geometry: str, offset: float) -> None:
    keys = {"backbone": {"name": "alexnet", "weights": None}, "pool_size": 6, "geometry": geometry}
    with torch.device("meta"):
        assert detkit.create_model("windows", classes=["a"], **keys).features.pooling.offset == offset
