"""ImageDetections: what `detector.detect` returns of each image."""

import base64
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from detkit import viz
from detkit.data.image_file import decode_image
from detkit.errors import UserError
from detkit.inference.results import Detection, ImageDetections
from detkit.viz import shown
from tests.builders import random_image

CLASSES = ("cat", "dog <b>", "bird")
PIXELS = np.ascontiguousarray(random_image(40, 60)[0].permute(1, 2, 0).numpy())


def found(count: int = 4, **keys) -> ImageDetections:
    boxes = torch.tensor([[1.0, 2, 11, 22], [0, 0, 60, 40], [5.25, 6.5, 7.75, 8], [20, 10, 30.0001, 20]])
    scores, labels = torch.tensor([0.9, 0.8, 0.5, 0.25]), torch.tensor([1, 0, 1, 2])
    extra = {"angle": torch.tensor([10.0, 20, 30, 40])[:count]}
    keys = {"extra": extra, "kept": PIXELS, "size": (40, 60), **keys}
    return ImageDetections(boxes[:count], scores[:count], labels[:count], CLASSES, **keys)


def angles(detections: ImageDetections) -> list[float]:
    return detections.extra["angle"].tolist()


def test_one_by_one() -> None:
    all_of_them = list(found())
    assert len(found()) == len(all_of_them) == 4
    assert all_of_them[0] == Detection((1, 2, 11, 22), pytest.approx(0.9), 1, "dog <b>")
    assert all_of_them == [found()[index] for index in range(4)]
    assert found()[-1] == found()[torch.tensor(3)] == found()[np.int64(3)] == all_of_them[3]
    assert found().names == ["dog <b>", "cat", "dog <b>", "bird"]
    boxes, scores, labels = found().image(0)
    assert torch.equal(boxes, found().boxes)
    assert torch.equal(scores, found().scores)
    assert torch.equal(labels, found().labels)
    for index in (4, -5):
        with pytest.raises(IndexError, match=f"no detection {index}: there are 4"):
            found()[index]
    with pytest.raises(IndexError, match="of one image"):
        found().image(1)
    assert list(found(0)) == found(0).names == []


def test_some_of_them() -> None:
    """All fields follow, and what is the image's stays."""
    path = Path("x.jpg")
    for rows, expected in (
        (slice(1, 3), [20, 30]),
        (slice(None, None, -1), [40, 30, 20, 10]),
        (found().scores > 0.6, [10, 20]),
        (torch.tensor([2, 0]), [30, 10]),
        (np.array([True, False, False, True]), [10, 40]),
        ([3], [40]),
        ([], []),
        ([False, True, False, False], [20]),
    ):
        part = found(path=path)[rows]
        assert angles(part) == expected
        assert part.boxes.shape == (len(expected), 4)
        assert (part.path, part.size, part.classes, part.kept) == (path, (40, 60), CLASSES, PIXELS)
    assert angles(found().filter(score=0.5)) == [10, 20]  # above, as everywhere
    assert angles(found().filter(classes="dog <b>")) == [10, 30]
    assert angles(found().filter(classes=["cat", "bird"], score=0.3)) == [20]
    assert angles(found().filter(classes=[])) == []
    assert found().filter() == found()
    with pytest.raises(UserError, match="no class 'brd'; did you mean 'bird'"):
        found().filter(classes="brd")


def test_equal_by_value() -> None:
    assert found() == found()
    assert found() == found(kept=None)
    assert found() != found(3)
    assert found() != found(path=Path("x.jpg"))
    assert found() != replace(found(), scores=found().scores + 1)
    assert found() != list(found())


def test_plain_values() -> None:
    content = found(path=Path("d/7.jpg")).to_dict()
    assert json.loads(json.dumps(content)) == content
    assert [*content] == ["file", "width", "height", "detections"]
    assert (content["file"], content["width"], content["height"]) == ("d/7.jpg", 60, 40)
    assert content["detections"][3] == {"class": "bird", "score": 0.25, "box": [20, 10, 30, 20]}
    frame = found(path=Path("clip.mp4"), frame=3, seconds=0.12345)
    assert {key: frame.to_dict()[key] for key in ("file", "frame", "seconds")} == {
        "file": "clip.mp4",
        "frame": 3,
        "seconds": 0.123,
    }
    assert found().to_dict()["file"] is None
    assert found(url="https://x/y.jpg").to_dict()["file"] == "https://x/y.jpg"


def test_coco_results() -> None:
    entries = found(path=Path("d/000000000139.jpg")).to_coco()
    assert [entry["image_id"] for entry in entries] == [139] * 4
    assert entries[2] == {"image_id": 139, "category_id": 2, "bbox": [5.25, 6.5, 2.5, 1.5], "score": 0.5}
    assert json.loads(json.dumps(entries)) == entries
    assert found(path=Path("d/cat.jpg")).to_coco()[0]["image_id"] == "cat"
    assert [entry["category_id"] for entry in found().to_coco(5, [10, 20, 90])] == [20, 10, 20, 90]
    for keys in ({}, {"path": Path("clip.mp4"), "frame": 0}, {"url": "https://x/7.jpg"}):
        with pytest.raises(UserError, match="to_coco needs an image_id"):
            found(**keys).to_coco()
    with pytest.raises(UserError, match="2 category_ids for 3 classes"):
        found().to_coco(5, [1, 2])


def test_pandas() -> None:
    pandas = pytest.importorskip("pandas")
    table = pandas.concat([found(path=Path("x.jpg")).to_pandas(), found(0).to_pandas()])
    assert [*table.columns] == ["file", "frame", "class", "score", "left", "top", "right", "bottom"]
    assert table["file"].tolist() == ["x.jpg"] * 4
    assert table[table["class"] == "bird"][["left", "right"]].to_numpy()[0] == pytest.approx([20, 30.0001])


def test_supervision() -> None:
    supervision = pytest.importorskip("supervision")
    other = found().to_supervision()
    assert isinstance(other, supervision.Detections)
    assert np.array_equal(other.xyxy, found().boxes.numpy())
    assert np.array_equal(other.confidence, found().scores.numpy())
    assert other.class_id.tolist() == [1, 0, 1, 2]
    assert other.data["class_name"].tolist() == found().names
    assert len(other[other.confidence > 0.6]) == 2
    assert supervision.LabelAnnotator().annotate(PIXELS.copy(), other).shape == PIXELS.shape
    assert len(found(0).to_supervision()) == 0


@pytest.mark.parametrize("package", ["pandas", "supervision"])
def test_packages_that_are_not_there(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=f"^to_{package} needs {package}: pip install {package}$"):
        getattr(found(), f"to_{package}")()


def test_drawn_and_written(tmp_path: Path) -> None:
    drawn = viz.draw(PIXELS, found().boxes, found().labels, CLASSES, scores=found().scores)
    assert np.array_equal(found().plot(), drawn)
    assert found().save(tmp_path / "new" / "x.png") == tmp_path / "new" / "x.png"
    assert np.array_equal(decode_image(tmp_path / "new" / "x.png"), drawn)
    for name in ("x", "x.mpo", "x.txt"):
        with pytest.raises(UserError, match=rf"{name}: OpenCV cannot write images as '[.\w]*'; .jpg and .png it can"):
            found().save(tmp_path / name)
    assert [entry.name for entry in tmp_path.iterdir()] == ["new"]


def test_pixels_are_read_again(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    cv2.imwrite(str(path), PIXELS[..., ::-1])
    again = found(path=path).without_pixels()
    assert again.kept is None
    assert np.array_equal(again.pixels, PIXELS)
    assert found(url="https://x/y.jpg").without_pixels().kept is PIXELS  # no second download
    cv2.imwrite(str(path), PIXELS[:20, :, ::-1])
    with pytest.raises(UserError, match=r"x.png: has changed since"):
        found(path=path, kept=None).plot()
    path.unlink()
    with pytest.raises(UserError, match=r"no image .*x\.png"):
        found(path=path, kept=None).plot()
    with pytest.raises(UserError, match="were not kept"):
        found(kept=None).plot()


def test_in_a_notebook(tmp_path: Path) -> None:
    page = found()._repr_html_()
    content = re.search(r'src="data:image/jpeg;base64,([^"]+)"', page)
    assert content is not None
    image = cv2.imdecode(np.frombuffer(base64.b64decode(content[1]), np.uint8), cv2.IMREAD_COLOR_RGB)
    assert np.abs(image.astype(int) - found().plot()).mean() < 20
    assert page.count("<tr>") == 5
    assert "<b>" not in page
    assert "dog &lt;b&gt;" in page
    missing = found(path=tmp_path / "gone.jpg", kept=None)._repr_html_()
    assert "no image" in missing
    assert missing.count("<tr>") == 5
    large = re.search(r"base64,([^\"]+)", found(kept=np.zeros((40, 3000, 3), np.uint8), size=(40, 3000))._repr_html_())
    assert large is not None
    assert cv2.imdecode(np.frombuffer(base64.b64decode(large[1]), np.uint8), 1).shape == (13, 1000, 3)
    many = found()[[0] * 30]._repr_html_()
    assert many.count("<tr>") == 21
    assert "and 10 more" in many
    assert repr(found(path=Path("x.jpg"))) == "<ImageDetections x.jpg 60x40: 2 dog <b>, 1 cat, 1 bird>"
    assert repr(found(0, path=Path("a\nb.mp4"), frame=7)) == r"<ImageDetections a\nb.mp4 frame 7 60x40: nothing found>"


def test_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a notebook under its cell, else in a window that the user closes."""
    displayed, seen = [], []

    class Kernel:
        kernel = object()

        def get_ipython(self) -> "Kernel":
            return self

        def display(self, shown: object) -> None:
            displayed.append(shown)

    class Window:
        def __init__(self, title: str) -> None:
            seen.append(title)

        def show(self, image: np.ndarray) -> None:
            seen.append(image)

        def wait(self) -> None:
            seen.append("closed")

    monkeypatch.setattr(shown, "Window", Window)
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    found(path=Path("x.jpg")).show()
    assert seen[0].startswith("x.jpg ")
    assert np.array_equal(seen[1], found().plot())
    assert seen[2] == "closed"
    kernel = Kernel()
    monkeypatch.setitem(sys.modules, "IPython", kernel)
    monkeypatch.setitem(sys.modules, "IPython.display", kernel)
    one = found()
    one.show()
    assert displayed == [one]
    monkeypatch.delattr(Kernel, "kernel")  # IPython in a terminal
    found().show()
    assert seen[3].startswith("image ")
