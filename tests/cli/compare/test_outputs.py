"""detkit compare: the numbers and the page that it writes."""

import csv
import json
from pathlib import Path

import pytest

from detkit.evaluation.errors import KINDS
from detkit.experiment import load_config
from detkit.models import build_detector
from tests.cli.compare.builders import SPEEDS, content, flops
from tests.pages import check_alone, data_of, needs_browser, run_in_browser
from tests.toys.toy import CLASSES


def test_what_it_writes(compared: Path, configs: Path):
    assert {"report.html", "compare.csv", "compare.json", "speed.png"} <= {path.name for path in compared.iterdir()}
    found = content(compared)
    assert [one["name"] for one in found["detectors"]] == ["slim", "wide"]
    assert found["protocol"]["dataset"] == "toys/test"
    assert found["protocol"]["images"] == 9
    assert found["failed"] == {}
    times = json.loads((compared / "times.json").read_text())
    for one in found["detectors"]:
        own = json.loads((compared / one["name"] / "metrics.json").read_text())
        assert (one["mAP"], one["AP"]) == (own["mAP"], own["AP"])  # the best on val, by the same metric
        assert set(one["AP"]) == set(CLASSES)
        config = load_config(configs / f"{one['name']}.yaml")
        detector = build_detector(config.model, CLASSES)
        assert one["parameters"] == sum(part.numel() for part in detector.parameters())
        assert one["FLOPs"] == flops(detector, 32)
        assert one["images_per_second"] == {str(batch): speed for batch, speed in SPEEDS[one["name"]].items()}
        assert one["images_per_second_with_proposals"] == one["images_per_second"]
        assert (one["takes_proposals"], one["proposals_seconds_per_image"]) == (False, None)
        assert one["training_seconds_of"] == "whole command"
        assert one["training_seconds"] == times[f"train {one['name']}"]
        assert one["training_images_per_second"] > 0
        assert set(one["error_counts"]) == {"right", *KINDS}
        assert one["finished"]


def test_the_csv_has_the_same_numbers(compared: Path):
    rows = list(csv.DictReader((compared / "compare.csv").open()))
    for row, one in zip(rows, content(compared)["detectors"], strict=True):
        assert row["name"] == one["name"]
        assert float(row["AP.circle"]) == one["AP"]["circle"]
        assert float(row["images_per_second.16"]) == one["images_per_second"]["16"]
        assert float(row["error_mAP_cost.missed"]) == one["error_mAP_cost"]["missed"]
        assert float(row["groups.small.AP"]) == one["groups"]["small"]["AP"]
        assert row["proposals_seconds_per_image"] == ""


def test_the_page_is_whole_and_alone(compared: Path):
    text = (compared / "report.html").read_text()
    page = check_alone(text)
    assert "NaN" not in text.replace("isNaN", "")
    for one in content(compared)["detectors"]:
        assert f"{one['mAP']:.4f}" in page.text
        for cost in one["error_mAP_cost"].values():
            assert f"{cost:+.4f}" in page.text
        for group in one["groups"].values():
            assert not group["objects"] or f"{group['recall']:.4f}" in page.text


def test_the_images_show_the_detections_of_each_detector(compared: Path):
    data = data_of((compared / "report.html").read_text())
    assert [run["name"] for run in data["runs"]] == ["slim (toy)", "wide (toy)"]
    found = json.loads((compared / "evaluations" / "wide-detections.json").read_text())
    assert len(data["images"]) == 9
    for sample_image in data["images"]:
        assert sample_image["jpeg"].startswith("data:image/jpeg")
        number = found["images"].index(sample_image["id"])
        best = max(row[2] for row in found["detections"] if row[0] == number)
        assert sample_image["detections"][1][0][1] == pytest.approx(best, abs=1e-4)
    one = content(compared)["detectors"][1]
    assert data["levels"][0]["scores"][1] == pytest.approx(one["best_F1_score"], abs=1e-4)
    shown = [row[2] for sample_image in data["images"] for row in sample_image["detections"][1]]
    assert shown.count(data["states"].index("right")) == one["error_counts"]["right"]


SCRIPT = """
const seen = {}, all = (what) => [...document.querySelectorAll(what)];
const by = (name, value) => document.querySelector(`input[name=${name}][value="${value}"]`);
window.onerror = (message) => { seen.error = message; };
document.addEventListener("securitypolicyviolation", (event) => { seen.refused = event.blockedURI; });
const choose = (id, value) => {
  const box = document.getElementById(id);
  box.value = value;
  box.dispatchEvent(new Event("change"));
};
seen.groups = all(".group").length;
seen.cards = all(".card").length;
const boxes = () => all("#images rect.box:not(.object)").length;
choose("level", document.getElementById("level").options.length - 1);
seen.all = boxes();
by("layer", "background").click();
seen.without_background = boxes() < seen.all;
by("layer", "background").click();
document.getElementById("none").click();
seen.none = all("#images rect.box").length;
document.getElementById("all").click();
seen.back = boxes() === seen.all;
choose("level", 0);
seen.fewer = boxes() < seen.all;
all(".card")[1].click();
seen.open = document.getElementById("large").open;
const large = document.getElementById("large");
const press = (key) => large.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
const caption = () => document.getElementById("caption").textContent;
seen.first = caption().includes("image 1 of 9: slim");
press("ArrowRight"); seen.right = caption().includes("image 1 of 9: wide");
press("ArrowDown"); seen.down = caption().includes("image 2 of 9: wide");
press("ArrowRight"); seen.next = caption().includes("image 3 of 9: objects");
document.getElementById("close").click();
seen.closed = !document.getElementById("large").open;
const curves = () => all(".curve:not([hidden])").length;
seen.means = curves();
choose("curve", "0");
seen.circles = curves();
document.querySelectorAll("#numbers .sort")[4].click();
seen.sorted = all("#numbers tbody th").map((head) => head.textContent);
seen.wide = document.documentElement.scrollWidth <= window.innerWidth;
const named = (element) => element.labels?.length || element.textContent.trim() || element.ariaLabel;
seen.nameless = all("button, input, select, summary").filter((element) => !named(element)).length;
document.body.dataset.seen = JSON.stringify(seen);
"""


@needs_browser
def test_it_lives_in_a_browser(compared: Path, tmp_path: Path):
    """Switches, levels, enlarged image by keyboard, curves and sorting."""
    seen = run_in_browser((compared / "report.html").read_text(), SCRIPT, tmp_path)
    assert seen.pop("all") > 20
    assert seen == {
        **dict.fromkeys(("means", "circles"), 2),
        **dict.fromkeys(("without_background", "back", "fewer", "open", "first", "right", "down", "next"), True),
        **dict.fromkeys(("closed", "wide"), True),
        **dict.fromkeys(("none", "nameless"), 0),
        "groups": 9,
        "cards": 27,
        "sorted": ["slim (toy)", "wide (toy)"],
    }
