"""report.html: one file that needs no other, safe against any name, and alive in a browser."""

import base64
import html
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detkit.cli import main
from detkit.data.formats import open_root
from detkit.evaluation import score, write_detections
from detkit.evaluation.errors import KINDS
from detkit.report import gallery, write_report
from tests.data.roots import make_root, xml
from tests.evaluation.sets import detection_set
from tests.pages import Page, check_alone, data_of, needs_browser, run_in_browser

NASTY = "<b>\"'&</script><!--"
IDS, CLASSES = ("1", "2", "3"), ("cat", NASTY, "owl")
ROWS = [
    ("1", "cat", 0.9, (0.0, 0.0, 20.0, 20.0)),
    ("1", NASTY, 0.8, (0.0, 0.0, 20.0, 20.0)),
    ("2", NASTY, 0.7, (9.0, 9.0, 30.0, 30.0)),
    ("2", "cat", 0.6, (1.0, 40.0, 9.0, 45.0)),
    ("2", NASTY, 0.5, (9.0, 9.0, 30.0, 80.0)),
]
COUNTS = {"right": 2, "localisation": 1, "class": 1, "both": 0, "duplicate": 0, "background": 1, "missed": 1}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    annotations = {
        "1": xml([("cat", (1, 1, 20, 20))]),
        "2": xml([("&lt;b&gt;\"'&amp;&lt;/script&gt;&lt;!--", (10, 10, 30, 30)), ("owl", (1, 60, 30, 90))], (100, 100)),
        "3": xml([("owl", (1, 1, 9, 9), 1, 0)]),
    }
    return make_root(tmp_path / "an<i>mals", annotations, {"test": list(IDS)}, image_files=False)


@pytest.fixture
def report(root: Path, tmp_path: Path) -> Path:
    write_detections(tmp_path / "detections.json", detection_set(ROWS, IDS, CLASSES))
    arguments = ["--detections", tmp_path / "detections.json", "--dataset", root, "--report", "--out", tmp_path / "out"]
    assert main(["evaluate", *map(str, arguments)]) == 0
    return tmp_path / "out" / "report.html"


def test_the_page_is_whole_safe_and_alone(report: Path):
    page = check_alone(report.read_text())
    assert not {tag for tag, _ in page.elements} & {"b", "i"}
    policy = next(attributes for tag, attributes in page.elements if "http-equiv" in attributes)
    assert "default-src 'none'" in (policy["content"] or "")
    assert NASTY in page.text  # in the tables, as text
    assert "an<i>mals/test" in page.text
    assert data_of(report.read_text())["classes"] == list(CLASSES)


def test_what_it_says(report: Path):
    errors = json.loads((report.parent / "errors.json").read_text())
    metrics = json.loads((report.parent / "metrics.json").read_text())
    assert errors["mAP50"] == metrics["mAP"]
    assert errors["counts"] == {
        **COUNTS,
        "ignored": 0,
    }
    assert errors["dataset"] == metrics["dataset"]
    page = Page(report.read_text())
    assert f"mAP {metrics['mAP']:.4f}" in page.text
    for name, cost in errors["mAP_cost"].items():
        assert name in page.text
        assert f"{cost:+.4f}" in page.text


def test_galleries(report: Path):
    data = data_of(report.read_text())
    assert list(data["kinds"]) == ["right", *KINDS]
    shown = {kind: [tuple(entry) for entry in entries] for kind, entries in data["kinds"].items()}
    assert {kind: len(entries) for kind, entries in shown.items()} == COUNTS
    number, place = shown["class"][0]
    sample_image = data["images"][number]
    assert (sample_image["id"], sample_image["jpeg"]) == ("1", None)
    assert sample_image["detections"][place][:3] == [1, 0.8, data["states"].index("class")]
    number, place = shown["missed"][0]
    assert data["images"][number]["objects"][place] == [2, 2, 0, 59, 30, 90]
    assert "2 of 2 images are not there" in report.read_text()


def test_the_best_right_detection_of_an_image(tmp_path: Path):
    """Class after class, each image once: by its best detection, wherever in the file that is."""
    cats = [("cat", (1, 1, 20, 20)), ("cat", (31, 31, 50, 50))]
    root = make_root(tmp_path / "cats", {name: xml(cats) for name in "ab"}, {"test": list("ab")}, image_files=False)
    left, right = (0.0, 0.0, 20.0, 20.0), (30.0, 30.0, 50.0, 50.0)
    rows = [("a", "cat", 0.6, left), ("a", "cat", 0.9, right), ("b", "cat", 0.8, left), ("b", "cat", 0.7, right)]
    dataset, found = open_root(root, ["test"]), detection_set(rows, ("a", "b"), ("cat",))
    path = write_report(tmp_path, score(found, dataset.truth(), "voc"), found, dataset.truth(), dataset, protocol={})
    data = data_of(path.read_text())
    shown = [data["images"][number]["detections"][place] for number, place in data["kinds"]["right"]]
    assert [row[1] for row in shown] == [0.9, 0.8]
    assert [row[3:7] for row in shown] == [list(right), list(left)]


def test_the_histogram_of_ious_leaves_out_what_is_below_the_best_f1(root: Path, tmp_path: Path):
    # F1 = 2/3 at .9, 2/4 with the second, whose IoU with the cat is .5
    rows = [*ROWS[:1], ("1", "cat", 0.1, (0.0, 0.0, 20.0, 40.0))]
    dataset, found = open_root(root, ["test"]), detection_set(rows, IDS, CLASSES)
    write_report(tmp_path, score(found, dataset.truth(), "voc"), found, dataset.truth(), dataset, protocol={})
    errors = json.loads((tmp_path / "errors.json").read_text())
    assert errors["best_F1_score"] == pytest.approx(0.9)
    assert errors["best_iou_histogram"]["detections"] == [0] * 19 + [1]


def test_the_histogram_of_objects_leaves_out_what_is_not_to_be_found(root: Path, tmp_path: Path):
    """The owl of image 3 is difficult, whether it is detected or not; that of image 2 is nowhere near a detection."""
    rows = [*ROWS[:1], ("2", NASTY, 0.1, (9.0, 9.0, 30.0, 51.0)), ("3", "owl", 0.8, (0.0, 0.0, 9.0, 9.0))]
    dataset, found = open_root(root, ["test"]), detection_set(rows, IDS, CLASSES)
    write_report(tmp_path, score(found, dataset.truth(), "voc"), found, dataset.truth(), dataset, protocol={})
    errors = json.loads((tmp_path / "errors.json").read_text())
    # the cat is met exactly, the other at IoU .5, whatever the detection's score
    assert errors["best_iou_histogram"]["objects"] == [1] + [0] * 9 + [1] + [0] * 8 + [1]


def test_the_table_of_classes_says_what_was_found(report: Path):
    """Of each class: AP, objects to find, and from the score of best F1, .7, those found and detections that count;
    then the mean and the sums."""
    text = report.read_text()
    table = text[text.index('aria-label="Per-class table"') :]
    rows = re.findall(r'<tr><th scope="row"><span>(.*?)</span></th>(.*?)</tr>', table[: table.index("</table>")])
    cells = {html.unescape(name): re.findall(r"<td>(.*?)</td>", row)[:4] for name, row in rows}
    metrics = json.loads((report.parent / "metrics.json").read_text())
    ap = {name: f"{value:.4f}" for name, value in metrics["AP"].items()}
    assert cells == {
        "cat": [ap["cat"], "1", "1", "1"],
        NASTY: [ap[NASTY], "1", "1", "2"],
        "owl": [ap["owl"], "1", "0", "0"],
        "mean or sum": [f"{metrics['mAP']:.4f}", "3", "2", "3"],
    }


def test_errors_are_counted_from_the_score_of_best_f1(report: Path):
    """From .7 on the class error alone; the localisation error and the detection of nothing score less."""
    errors = json.loads((report.parent / "errors.json").read_text())
    assert errors["best_F1_score"] == pytest.approx(0.7)
    assert errors["counts_at_best_F1"] == {**COUNTS, "localisation": 0, "background": 0, "ignored": 0}
    text = report.read_text()
    table = text[text.index('<table class="kinds">') :]
    rows = re.findall(r"</span>(\w+)<small>.*?<td>(\d+)</td>", table[: table.index("</table>")])
    assert {name: int(count) for name, count in rows} == {kind: errors["counts_at_best_F1"][kind] for kind in KINDS}
    assert "recall from 0.69" in Page(text).text  # float32's .7 rounded down, so that it shows what counts


def test_an_object_is_missed_below_the_score_of_best_f1(root: Path, tmp_path: Path):
    """The owl's only detection, below, is not enough; yet no score would find more."""
    rows = [*ROWS[:1], *(("3", "cat", 0.5, (40.0, 0.0, 50.0, 9.0 + k)) for k in range(9))]
    rows.append(("2", "owl", 0.2, (0.0, 59.0, 30.0, 90.0)))
    dataset, found = open_root(root, ["test"]), detection_set(rows, IDS, CLASSES)
    path = write_report(tmp_path, score(found, dataset.truth(), "voc"), found, dataset.truth(), dataset, protocol={})
    data = data_of(path.read_text())
    missed = [data["images"][number]["objects"][place] for number, place in data["kinds"]["missed"]]
    assert [2, 2, 0, 59, 30, 90] in missed


def test_the_legend_has_the_colours_of_the_curves(report: Path):
    drawn = [own for _, own in Page(report.read_text()).elements if own.get("class") == "curve"]
    assert len(drawn) == 2 * len(CLASSES)  # each a line and an entry
    styles = {(own["data-class"], own["style"]) for own in drawn}
    assert len(styles) == len({style for _, style in styles}) == len(CLASSES)


def test_the_worst_of_distinct_images(tmp_path: Path):
    ids = [f"{k:02}" for k in range(30)]
    root = make_root(
        tmp_path / "many", {name: xml([("cat", (1, 1, 20, 20))]) for name in ids}, {"test": ids}, image_files=False
    )
    rows = [
        (name, "cat", k / 40 + part / 1000, (40.0, 40.0, 60.0, 60.0 + part))
        for k, name in enumerate(ids)
        for part in range(3)
    ]
    dataset, found = open_root(root, ["test"]), detection_set(rows, ids, ("cat",))
    path = write_report(tmp_path, score(found, dataset.truth(), "voc"), found, dataset.truth(), dataset, protocol={})
    data = data_of(path.read_text())
    shown = [
        (data["images"][number]["id"], data["images"][number]["detections"][place])
        for number, place in data["kinds"]["background"]
    ]
    assert [name for name, _ in shown] == ids[::-1][: gallery.IMAGES]
    assert [row[1] for _, row in shown] == pytest.approx(
        [(29 - k) / 40 + 0.002 for k in range(gallery.IMAGES)], abs=1e-4
    )


def test_the_largest_of_missed_objects(tmp_path: Path):
    """One an image, the largest first."""
    annotations = {
        "a": xml([("cat", (1, 1, 9, 9)), ("cat", (21, 1, 40, 10))]),
        "b": xml([("cat", (1, 1, 30, 30))]),
        "c": xml([("cat", (1, 1, 5, 5))]),
    }
    root = make_root(tmp_path / "cats", annotations, {"test": list("abc")}, image_files=False)
    dataset, found = open_root(root, ["test"]), detection_set([], tuple("abc"), ("cat",))
    path = write_report(tmp_path, score(found, dataset.truth(), "voc"), found, dataset.truth(), dataset, protocol={})
    data = data_of(path.read_text())
    shown = [
        (data["images"][number]["id"], data["images"][number]["objects"][place][2:])
        for number, place in data["kinds"]["missed"]
    ]
    assert shown == [("b", [0, 0, 30, 30]), ("a", [20, 0, 40, 10]), ("c", [0, 0, 5, 5])]


def test_images_become_small_jpegs(tmp_path: Path):
    noise = np.random.default_rng(0).integers(0, 256, (900, 1400, 3), dtype=np.uint8)
    thumbnail = gallery.thumbnail(noise)
    head, data = thumbnail.split(",")
    assert head == "data:image/jpeg;base64"
    content = base64.b64decode(data)
    assert len(content) <= gallery.BYTES
    with Image.open(io.BytesIO(content)) as sample_image:
        assert abs(sample_image.width / sample_image.height - 1400 / 900) < 0.02
    # the bound of the page: all kinds, all images, base64
    assert (1 + len(KINDS)) * gallery.IMAGES * gallery.BYTES * 4 / 3 < 5e6


def test_a_report_of_nothing(tmp_path: Path):
    root = make_root(tmp_path / "none", {"1": xml([("cat", (1, 1, 9, 9), 1, 0)])}, {"test": ["1"]}, image_files=False)
    dataset = open_root(root, ["test"])
    for metric in ("voc07", "coco"):
        found = detection_set([], ("1",), ("cat",))
        result = score(found, dataset.truth(), metric)
        path = write_report(tmp_path, result, found, dataset.truth(), dataset, protocol={})
        Page(path.read_text())
        assert "NaN" not in (tmp_path / "errors.json").read_text()
        assert "NaN" not in path.read_text().replace("isNaN", "")


def test_margins_and_a_training_log(tmp_path: Path, root: Path):
    rows = [(*row[:2], row[2] * 4 - 3, row[3]) for row in ROWS]
    dataset, found = open_root(root, ["test"]), detection_set(rows, IDS, CLASSES)
    log = [{"iteration": k, "loss": 9 / k, "lr": 0.1} for k in range(1, 2000)] + [{"iteration": 1999, "mAP": 0.5}]
    truth = dataset.truth()
    path = write_report(tmp_path, score(found, truth, "coco"), found, truth, dataset, protocol={}, records=log)
    text = path.read_text()
    assert "Scores are no probabilities" in text
    assert "Loss over 1999 iterations, 9 at first, 0.0045 at last" in text
    assert "AP50" in text
    assert "and mAP on val" in text
    assert json.loads((tmp_path / "errors.json").read_text())["calibration"] is None
    path = write_report(tmp_path, score(found, truth, "coco"), found, truth, dataset, protocol={}, records=log[:-1])
    assert "mAP on val" not in path.read_text()  # without a val split


def test_a_report_finds_a_folder(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_detections(Path("found.json"), detection_set(ROWS, IDS, CLASSES))
    assert main(["evaluate", "--detections", "found.json", "--dataset", str(root), "--report"]) == 0
    assert "written to runs/evaluate-found-test/report.html" in capsys.readouterr().out
    assert Path("runs/evaluate-found-test/report.html").is_file()


def test_the_worst_error_of_each_kind_is_explained(root: Path, tmp_path: Path):
    """Each page is of the image that comes first, and shows the error; what cannot be explained has no link."""
    dataset, found = open_root(root, ["test"]), detection_set(ROWS, IDS, CLASSES)
    asked = []

    def explain(path: Path, index: int, least: float) -> bool:
        asked.append((path.relative_to(tmp_path).as_posix(), dataset.ids[index], least))
        return "class" not in path.name

    result = score(found, dataset.truth(), "voc")
    path = write_report(tmp_path, result, found, dataset.truth(), dataset, protocol={}, explain=explain)
    assert asked == [
        ("explained/localisation.html", "2", 0.5),
        ("explained/class.html", "1", 0.69),  # where F1 is best
        ("explained/background.html", "2", 0.6),
        ("explained/missed.html", "2", 0.69),
    ]
    links = [own["href"] for tag, own in Page(path.read_text()).elements if tag == "a"]
    done = ["localisation", "background", "missed"]
    assert [link for link in links if not str(link).startswith("#")] == [f"explained/{kind}.html" for kind in done]
    assert data_of(path.read_text())["explained"] == done


SCRIPT = """
const seen = {}, boxes = () => document.querySelectorAll("#cards rect.box").length;
const by = (name, value) => document.querySelector(`input[name=${name}][value="${value}"]`);
window.onerror = (message) => { seen.error = message; };
document.addEventListener("securitypolicyviolation", (event) => { seen.refused = event.blockedURI; });
seen.kind = document.querySelector("input[name=gallery]:checked").value;
by("gallery", "class").click();
seen.cards = document.querySelectorAll(".card").length;
seen.text = document.querySelector(".card").textContent;
seen.boxes = boxes();
by("layer", "right").click();
seen.without_right = boxes();
by("layer", "objects").click();
seen.without_objects = boxes();
by("layer", "right").click(); by("layer", "objects").click();
const slider = document.getElementById("score");
slider.value = 85; slider.dispatchEvent(new Event("input"));
seen.high = boxes();
slider.value = 100; slider.dispatchEvent(new Event("input"));
seen.highest = boxes();
by("class", 1).click();
seen.without_class = document.querySelectorAll(".card").length;
by("class", 1).click();
document.querySelector(".card").click();
seen.open = document.getElementById("large").open;
seen.caption = document.getElementById("caption").textContent;
document.getElementById("large").dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowRight", bubbles: true}));
document.getElementById("close").click();
seen.closed = !document.getElementById("large").open;
document.querySelectorAll(".sort")[1].click();
seen.sorted = [...document.querySelectorAll(".sortable tbody tr")].map((row) => parseFloat(row.cells[1].textContent));
seen.wide = document.documentElement.scrollWidth <= window.innerWidth;
const named = (element) => element.labels?.length || element.textContent.trim() || element.ariaLabel;
document.getElementById("confusion").scrollIntoView({ behavior: "instant" });
seen.contents = document.querySelector("nav").getBoundingClientRect().top;
const heads = [...document.querySelectorAll(".sortable tbody th, .confusion tbody th")];
seen.broken = heads.filter((cell) => cell.offsetWidth < 30).length;
seen.nameless = [...document.querySelectorAll("button, input, summary")].filter((element) => !named(element)).length;
document.body.dataset.seen = JSON.stringify(seen);
"""


@needs_browser
def test_it_lives_in_a_browser(report: Path, tmp_path: Path):
    """Switches, slider, enlarged image and sorting."""
    assert run_in_browser(report.read_text(), SCRIPT, tmp_path) == {
        "kind": "localisation",
        "cards": 1,
        "text": f"{NASTY} 0.80{NASTY} 0.800, class1, best IoU with its class 0.00",  # on the box, and beneath
        "boxes": 3,
        "without_right": 2,
        "without_objects": 1,
        "high": 3,
        "highest": 2,  # the object, and what the image is about
        "without_class": 0,
        "open": True,
        "caption": f"1 of 1: {NASTY} 0.800, class, 1, best IoU with its class 0.00",
        "closed": True,
        "sorted": [1, 0.5, 0],
        "wide": True,
        "contents": 0,  # stay in view
        "broken": 0,  # no class's name is broken letter by letter
        "nameless": 0,
    }


NAMES = """
document.querySelector(".card").click();
const boxes = [...document.querySelectorAll("#stage .label")].map((name) => name.getBBox());
const apart = (a, b) => a.x >= b.x + b.width || b.x >= a.x + a.width || a.y >= b.y + b.height || b.y >= a.y + a.height;
const covering = boxes.filter((a, k) => boxes.slice(k + 1).some((b) => !apart(a, b))).length;
const first = document.querySelector("#stage .label").textContent;
document.body.dataset.seen = JSON.stringify({ names: boxes.length, covering, first });
"""


@needs_browser
def test_no_name_covers_another(root: Path, tmp_path: Path):
    """Of many boxes one over the other, some have no place for a name; what the image is about always has."""
    rows = [("2", "owl", 0.9 - k / 50, (30.0 + k % 3, 10.0 + k, 70.0, 60.0 + k)) for k in range(20)]
    dataset, found = open_root(root, ["test"]), detection_set(rows, IDS, CLASSES)
    path = write_report(tmp_path, score(found, dataset.truth(), "voc"), found, dataset.truth(), dataset, protocol={})
    seen = run_in_browser(path.read_text(), NAMES, tmp_path)
    assert 2 < seen.pop("names") < 20
    assert seen == {"covering": 0, "first": "owl 0.90"}
