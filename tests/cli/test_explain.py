"""detkit detect --explain: images, the page, and what it refuses."""

import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from detkit import rle
from detkit.checkpoints import checkpoint
from detkit.cli import run_command
from detkit.config import Config, DataConfig, DetectConfig, TrainConfig
from detkit.data.image_truth import find_truth
from detkit.explain import draw_sections, explain, explain_page
from tests import zoo
from tests.data.roots import make_root, xml
from tests.data.test_masks import POLYGONS, coco_root
from tests.explain.test_explain import TRUTH, build, image
from tests.pages import Page, data_of, needs_browser, run_in_browser

LAST = ["candidates", "nms", "detections"]
REGIONS = ["proposals", "regions", "pooled", "regression", *LAST]
SECTIONS = {
    "ssd": ["default-boxes", "matching", "maps", *LAST],
    "retinanet": ["anchors", "matching", "focal", "maps", *LAST],
    "yolov2": ["anchors", "choice", "maps", *LAST],
    "yolov3": ["anchors", "choice", "maps", *LAST],
    "yolov1": ["class-map", "boxes", "responsible", *LAST],
    "faster_rcnn": ["anchors", "anchor-matching", "objectness", *REGIONS],
    "rfcn": ["anchors", "anchor-matching", "objectness", "proposals", "regions", "positions", "regression", *LAST],
    "mask_rcnn": [
        *("anchors", "anchor-matching", "objectness", "proposals", "regions", "mask-targets", "pooled", "regression"),
        *(*LAST, "masks"),
    ],
    "fast_rcnn": REGIONS,
    "rcnn": REGIONS,
    "sppnet": REGIONS,
    "torchvision_ssd": LAST,
}
TRAINING = {"matching", "choice", "focal", "responsible", "anchor-matching", "regions", "mask-targets"}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    detector = zoo.build("ssd")
    path = tmp_path_factory.mktemp("run") / "best.pt"
    config = Config(
        detector.config, DataConfig(root=""), TrainConfig(iterations=1), DetectConfig(detections_per_image=15)
    )
    checkpoint.save(path, detector, config)
    return str(path)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a data set of two images 60x40; its parent is the current folder."""
    monkeypatch.chdir(tmp_path)
    objects = xml([("a", (5, 5, 30, 30)), ("b", (20, 10, 55, 38))])
    return make_root(Path("set"), {"1": objects, "2": xml([("c", (1, 1, 20, 20))])}, {"test": ["1", "2"]})


def run(*arguments: object) -> int:
    return run_command("detect", [str(argument) for argument in arguments])


@pytest.mark.parametrize("name", SECTIONS)
@pytest.mark.parametrize("known", [True, False])
def test_every_detector_has_its_sections(name: str, known: bool) -> None:
    detector, config = build(name)
    explanation = explain(detector, image(), config, TRUTH if known else None)
    sections = draw_sections(explanation)
    assert [section.name for section in sections] == [one for one in SECTIONS[name] if known or one not in TRAINING]
    for section in sections:
        sheet = section.sheet()
        assert sheet.dtype == np.uint8
        assert sheet.ndim == 3
        assert max(sheet.shape) >= 850
    page = Page(explain_page(explanation, sections, "title", "protocol"))
    names = [section.name for section in sections]
    after_nms = names.index("nms") + 1
    shown = [name for name in page.ids if name in {*names, "steps"}]
    assert shown == [*names[:after_nms], "steps", *names[after_nms:]]
    drawings = [attributes for tag, attributes in page.elements if tag == "img"]
    assert len(drawings) == sum(len(section.panels) for section in sections)
    assert all(attributes["alt"] for attributes in drawings)


def test_the_page_stands_alone_and_is_safe_against_any_name() -> None:
    detector, config = build("ssd")
    detector.classes = ("</script><b>", "<!--")
    explanation = explain(detector, image(), config, TRUTH)
    text = explain_page(explanation, draw_sections(explanation), "<i>image</i>", "x & y")
    page = Page(text)
    assert not {"link", "iframe", "b", "i>"} & {tag for tag, _ in page.elements}
    sources = [value for _, attributes in page.elements for key in ("src", "href") if (value := attributes.get(key))]
    assert all(source.startswith(("data:image/jpeg;base64,", "#")) for source in sources)
    assert "default-src 'none'" in text
    assert not re.search(r"https?://(?!www\.w3\.org)", text)
    data = data_of(text)
    assert data["classes"] == ["</script><b>", "<!--"]
    assert data["by"] == explanation.nms.by.tolist()
    assert data["final"] == explanation.nms.kept.tolist()


# in braces, since the page has names of its own
SCRIPT = """{
const seen = {};
window.onerror = (message) => { seen.error = message; };
document.addEventListener("securitypolicyviolation", (event) => { seen.refused = event.blockedURI; });
const count = (kind) => document.querySelectorAll(`#scene-boxes .${kind}`).length;
seen.open = !document.getElementById("steps").hidden;
seen.first = [count("s"), count("g")];
document.getElementById("on").click();
seen.second = [count("s"), document.getElementById("step").value];
document.querySelector("#scene-boxes .s.now").dispatchEvent(new MouseEvent("click"));
seen.tapped = document.getElementById("step").value;
const slider = document.getElementById("step");
slider.value = slider.max; slider.dispatchEvent(new Event("input"));
seen.last = count("s");
seen.wide = document.documentElement.scrollWidth <= window.innerWidth;
document.body.dataset.seen = JSON.stringify(seen);
}"""


@needs_browser
@pytest.mark.parametrize("name", ["ssd", "yolov1"])
def test_it_lives_in_a_browser(name: str, tmp_path: Path) -> None:
    detector, config = build(name)
    explanation = explain(detector, image(), config, TRUTH)
    text = explain_page(explanation, draw_sections(explanation), "title", "protocol")
    assert run_in_browser(text, SCRIPT, tmp_path) == {
        "open": True,
        "first": [1, len(explanation.nms.removed_by(int(explanation.nms.kept[0])))],
        "second": [2, "2"],
        "tapped": "2",
        "last": len(explanation.nms.kept),
        "wide": True,
    }


def test_the_command(weights: str, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(weights, root / "JPEGImages/1.jpg", "--explain", "--score", 0.34, "--out", "out") == 0
    said = capsys.readouterr().out
    names = sorted(path.name for path in Path("out").iterdir())
    assert names == sorted([*(f"{n}-{name}.png" for n, name in enumerate(SECTIONS["ssd"], 1)), "explain.html"])
    # the objects were found beside the image
    assert "objects of set/Annotations/1.xml" in said.replace(str(root.resolve().parent) + "/", "")
    for name in names[:-1]:
        assert cv2.imread(f"out/{name}") is not None


def test_a_report_links_to_explanations(weights: str, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = [f"data.root={root}", "data.test=[one]", "train.device=cpu"]
    (root / "ImageSets/Main/one.txt").write_text("1\n")
    assert run_command("evaluate", [weights, *keys, "--report"]) == 0
    out = Path("runs") / f"evaluate-{Path(weights).parent.name}-test"
    pages = sorted(path.relative_to(out).as_posix() for path in out.glob("explained/*"))
    report = Page((out / "report.html").read_text())
    links = [str(own["href"]) for tag, own in report.elements if tag == "a"]
    assert sorted(link for link in links if not link.startswith("#")) == pages
    assert pages
    explained = Page((out / pages[0]).read_text())
    assert "objects of set/one" in explained.text


def test_truth_is_found_or_left_out(root: Path) -> None:
    found = find_truth(root / "JPEGImages/1.jpg", ("b", "a"))
    assert found is not None
    assert found.labels.tolist() == [1, 0]
    assert found.boxes.tolist() == [[4, 4, 30, 30], [19, 9, 55, 38]]
    assert find_truth(root / "JPEGImages/2.jpg", ("a", "b")) is None  # of a class that the detector does not know
    assert found.masks is None
    loose = Path("loose.jpg")
    shutil.copy(root / "JPEGImages/1.jpg", loose)
    assert find_truth(loose, ("a", "b")) is None


def test_masks_are_found_with_the_objects(root: Path) -> None:
    path, folder = root / "JPEGImages/1.jpg", root / "SegmentationObject"
    assert known_masks(path) is None
    folder.mkdir()
    assert known_masks(path) is None
    numbers = np.zeros((40, 60), np.uint8)
    numbers[4:30, 4:30] = 1
    cv2.imwrite(str(folder / "1.png"), numbers)
    assert known_masks(path) is None  # of the second object there is none
    numbers[9:38, 30:55] = 2
    cv2.imwrite(str(folder / "1.png"), numbers)
    masks = known_masks(path)
    assert masks is not None
    np.testing.assert_array_equal(rle.decode(masks.tolist(), (40, 60)), [numbers == 1, numbers == 2])

    coco = coco_root(Path("coco").resolve(), [POLYGONS])
    assert known_masks(coco / "train/a.png", "cat") is not None
    coco = coco_root(Path("without").resolve(), [None])
    assert known_masks(coco / "train/a.png", "cat") is None


def known_masks(path: Path, *classes: str) -> np.ndarray | None:
    found = find_truth(path, classes or ("a", "b"), masks=True)
    assert found is not None
    return found.masks


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["set/JPEGImages"], "--explain takes one image, here are 2"),
        (["set/JPEGImages/1.jpg", "set/JPEGImages/2.jpg"], "--explain takes one image, here are 2"),
        (["clip.mp4"], "--explain takes an image, and clip.mp4 is a video"),
        (["0"], "--explain takes an image, and camera 0 is a video"),
        (["broken.jpg"], "broken.jpg: corrupt or truncated image"),
        (["one.jpg", "--flip", "--score", ".5,a=.2"], "leave --flip, --score CLASS=S out"),
        (["none.jpg"], "no image, folder or video none.jpg"),
        (["set/JPEGImages/1.jpg", "--truth", "none.xml"], "no annotation none.xml"),
        (["set/JPEGImages/1.jpg", "--truth", "broken.jpg"], "broken.jpg: not valid XML"),
        (
            ["set/JPEGImages/1.jpg", "--truth", "set/Annotations/2.xml"],
            "object 1 is of class 'c', which the",
        ),
        (
            ["set/JPEGImages/1.jpg", "--truth", "large.xml"],
            "image of 600x400, and set/JPEGImages/1.jpg has 60x40",
        ),
        (["set/JPEGImages/1.jpg", "--out", "broken.jpg"], "--out broken.jpg: a file"),
    ],
)
def test_what_is_refused_in_one_line(
    arguments: list[str], message: str, weights: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("clip.mp4").write_bytes(b"")
    Path("broken.jpg").write_bytes((root / "JPEGImages/1.jpg").read_bytes()[:200])
    Path("large.xml").write_text(xml([("a", (5, 5, 30, 30))], (600, 400)))
    assert run(weights, *arguments, "--explain", *([] if "--out" in arguments else ["--out", "out"])) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not Path("out").exists()


def test_truth_without_explain(weights: str, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(weights, root / "JPEGImages/1.jpg", "--truth", root / "Annotations/1.xml", "--out", "out") == 2
    assert "--truth goes with --explain" in capsys.readouterr().err


def test_soft_nms_and_views_of_a_config_are_not_explained(
    weights: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[DetectConfig] = []

    def listen(detector, array, config, truth):
        asked.append(config.detect)
        return explain(detector, array, config, truth)

    monkeypatch.setattr("detkit.explain.explain", listen)
    content = checkpoint.load(weights)
    content["config"]["detect"] |= {"nms": "gaussian", "flip": True, "scales": [0.5, 1.0]}
    torch.save(content, "soft.pt")
    assert run("soft.pt", "set/JPEGImages/1.jpg", "--explain", "--out", "out", "--score", ".01") == 0
    assert asked == [DetectConfig(score_threshold=0.01, detections_per_image=15)]
