"""detkit compare: what it trains, measures and writes, where it goes on, and what it refuses."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from detkit.backbones.describe import count_flops
from detkit.checkpoints import checkpoint
from detkit.cli import main
from detkit.comparison import detecting, job, measure, training
from detkit.comparison.entries import find_entries
from detkit.comparison.measure import training_log
from detkit.data import open_dataset
from detkit.data.proposal_store import open_store
from detkit.evaluation.errors import KINDS
from detkit.experiment import load_config
from detkit.models import Detector, build_detector
from detkit.proposals import methods
from detkit.runtime.race import Setting
from tests.builders import few_regions, images_of, random_image
from tests.engine.conftest import CONFIG
from tests.engine.toy import CLASSES, draw_toys
from tests.report.test_report import BROWSER, Strict

SPEEDS = {"slim": {1: 10.0, 16: 40.0}, "wide": {1: 5.0, 16: 20.0}}
TIMES = ("training_seconds", "training_images_per_second", "memory_bytes")

SSD = """
model: {{name: ssd, backbone: {{name: tiny}}, size: 96, l2norm: [], extras: [[32, 64, 3, 2, 1]], batch_norm: false,
  min_sizes: [12.0, 24.0, 48.0, 72.0], max_sizes: [24.0, 48.0, 72.0, 90.0],
  aspect_ratios: [[2.0], [2.0], [2.0], [2.0]]}}
data: {{root: {root}, train: [train], val: [val], test: [test]}}
train: {{iterations: 2, batch: 4, workers: 0, device: cpu}}
"""


@pytest.fixture(scope="session")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("compared") / "toys"
    root.mkdir()
    draw_toys(root)
    return root


@pytest.fixture(scope="session")
def configs(toys: Path) -> Path:
    """Return a folder of two configs of toy detectors."""
    folder = toys.parent / "configs"
    folder.mkdir()
    for name, width in (("slim", 4), ("wide", 8)):
        text = CONFIG.format(root=toys).replace("{name: toy}", f"{{name: toy, width: {width}}}")
        (folder / f"{name}.yaml").write_text(text)
    return folder


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Toys train in processes that know them; what else has processes of its own is measured in this one."""
    monkeypatch.setattr(training, "COMMAND", (sys.executable, "-m", "tests.engine.train_toy"))
    monkeypatch.setattr(training, "POLL", 0.05)
    monkeypatch.setattr(job, "measure_cost", detecting._cost)
    monkeypatch.setattr(
        job, "speeds", lambda entries, *_: [SPEEDS.get(entry.name, {1: 1.0, 16: 1.0}) for entry in entries]
    )
    monkeypatch.chdir(Path(__file__).parents[2])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def compared(configs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a whole comparison of both."""
    out = tmp_path_factory.mktemp("compared") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "COMMAND", (sys.executable, "-m", "tests.engine.train_toy"))
        patch.setattr(job, "measure_cost", detecting._cost)
        patch.setattr(job, "speeds", lambda entries, *_: [SPEEDS[entry.name] for entry in entries])
        patch.chdir(Path(__file__).parents[2])
        assert main(["compare", str(configs), "--out", str(out)]) == 0
    return out


def compare(*arguments: object) -> int:
    return main(["compare", *map(str, arguments)])


def failure(capsys: pytest.CaptureFixture[str], *arguments: object, status: int = 2) -> str:
    """Run what must fail; return the one line that it says."""
    capsys.readouterr()
    assert compare(*arguments) == status
    said = capsys.readouterr().err
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, said
    return lines[0]


def flops(detector: Detector, side: int) -> int:
    return count_flops(lambda: detector.eval().predict(images_of(random_image(side, side))))


def content(out: Path) -> dict:
    return json.loads((out / "compare.json").read_text())


def test_what_it_writes(compared: Path, configs: Path):
    assert {"report.html", "compare.csv", "compare.json", "speed.png"} <= {path.name for path in compared.iterdir()}
    found = content(compared)
    assert [one["name"] for one in found["detectors"]] == ["slim", "wide"]
    assert found["protocol"]["dataset"] == "toys/test"
    assert found["protocol"]["images"] == 9
    assert found["failed"] == {}
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
        assert one["training_seconds"] > 0.5
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
        assert row["proposals_seconds_per_image"] == ""


def test_the_same_command_again_does_nothing_twice(
    compared: Path, configs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(training, "COMMAND", ("false",))
    monkeypatch.setattr(measure, "_evaluate", lambda *_: pytest.fail("evaluated again"))
    before = content(compared)
    assert compare(configs, "--out", compared) == 0
    output = capsys.readouterr().out
    assert "slim: trained already" in output
    assert f"{before['detectors'][0]['mAP']:.4f}" in output
    after = content(compared)
    for one in (*before["detectors"], *after["detectors"]):
        one.pop("memory_bytes")
    assert after == before


def test_other_weights_are_evaluated_again(
    compared: Path, configs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "out"
    shutil.copytree(compared, out)
    best = checkpoint.load(out / "slim" / "best.pt")
    best["model"]["out.bias"] += 0.5
    checkpoint.write(out / "slim" / "best.pt", best)
    evaluated = []
    original = measure._evaluate
    monkeypatch.setattr(
        measure, "_evaluate", lambda entry, *rest: evaluated.append(entry.name) or original(entry, *rest)
    )
    assert compare(configs, "--out", out) == 0
    assert evaluated == ["slim"]


def test_runs_are_taken_as_they_are(compared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(training, "COMMAND", ("false",))
    runs = tmp_path / "runs"
    for name in ("slim", "wide"):
        shutil.copytree(compared / name, runs / name)
    (runs / "wide" / "metrics.json").unlink()
    files = {path: path.stat().st_mtime_ns for path in runs.rglob("*")}
    assert compare(runs, "--out", tmp_path / "out") == 0
    assert files == {path: path.stat().st_mtime_ns for path in runs.rglob("*")}
    slim, wide = content(tmp_path / "out")["detectors"]
    assert (slim["finished"], wide["finished"]) == (True, False)
    assert "training not ended" in (tmp_path / "out" / "report.html").read_text()
    assert slim["mAP"] == content(compared)["detectors"][0]["mAP"]
    images, seconds = training_log(compared / "slim", 4)
    assert (slim["training_images_per_second"], slim["training_seconds"]) == (images, seconds)
    assert slim["training_seconds_of"] == "steps and evaluations in log.jsonl"


def test_training_log(tmp_path: Path):
    lines = [
        {"iteration": 20, "loss": 1.0, "images_per_second": 10.0},  # 80 images in 8 s
        {"iteration": 24, "loss": 1.0, "images_per_second": 4.0},  # 16 in 4 s
        {"iteration": 24, "mAP": 0.5, "seconds": 3.0},
    ]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert training_log(tmp_path, 4) == (96 / 12, 15.0)
    assert training_log(tmp_path / "nowhere", 4) == (None, None)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_and_gone_on_with(
    number: signal.Signals,
    compared: Path,
    configs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    """The first detector is there, the second is stopped in the middle; then it is the one that was not."""
    out = tmp_path / "out"
    out.mkdir()
    shutil.copytree(compared / "slim", out / "slim")
    log = out / "wide" / "log.jsonl"

    def stop() -> None:
        while not (log.exists() and log.read_text()):  # the evaluation at step 8
            time.sleep(0.002)
        os.kill(os.getpid(), number)

    monkeypatch.setenv("TOY_SLOWLY", "0.1")
    thread = threading.Thread(target=stop)
    thread.start()
    assert compare(configs, "--out", out) == 128 + number
    thread.join()
    assert "the same command goes on where it was stopped" in capsys.readouterr().err
    assert not (out / "compare.json").exists()
    done = checkpoint.load(out / "wide" / "last.pt")["iteration"]
    assert 8 <= done < 24
    assert f"saved after step {done}" in (out / "wide.log").read_text()
    first = json.loads((out / "times.json").read_text())["train wide"]
    monkeypatch.delenv("TOY_SLOWLY")
    assert compare(configs, "--out", out) == 0
    found, whole = content(out)["detectors"][1], content(compared)["detectors"][1]
    assert found["training_seconds"] > first + 0.5
    for name in TIMES:
        del found[name], whole[name]
    found["checkpoint"] = whole["checkpoint"]
    assert found == whole


def test_a_run_killed_before_its_first_checkpoint_begins_anew(compared: Path, configs: Path, tmp_path: Path, capsys):
    out = tmp_path / "out"
    shutil.copytree(compared, out)
    for path in (out / "slim").iterdir():
        if path.name not in ("config.yaml", "env.txt", "log.jsonl"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert compare(configs, "--out", out) == 0
    assert content(out)["detectors"][0]["AP"] == content(compared)["detectors"][0]["AP"]
    shutil.rmtree(out / "slim")
    (out / "slim").mkdir()
    (out / "slim" / "thesis.txt").touch()
    assert "slim holds thesis.txt, but no checkpoint to go on from" in failure(capsys, configs, "--out", out, status=1)
    assert (out / "slim" / "thesis.txt").exists()


def test_a_detector_that_fails_does_not_stop_the_others(
    compared: Path, configs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for name in ("slim", "wide"):
        shutil.copytree(compared / name, tmp_path / "out" / name)
    own = tmp_path / "configs"
    shutil.copytree(configs, own)
    text = (configs / "wide.yaml").read_text()
    (own / "wrong.yaml").write_text(text.replace("HorizontalFlip: {p: 0.5}", "VerticalFlop: {p: 0.5}"))
    said = failure(capsys, own, "--out", tmp_path / "out", status=1)
    assert "wrong: training failed" in said
    assert "VerticalFlop" in said
    log = tmp_path / "out" / "wrong.log"
    assert str(log) in said
    assert "VerticalFlop" in log.read_text()
    found = content(tmp_path / "out")
    assert [one["name"] for one in found["detectors"]] == ["slim", "wide"]
    assert "VerticalFlop" in found["failed"]["wrong"]
    assert "VerticalFlop" in (tmp_path / "out" / "report.html").read_text()


def test_a_detector_that_breaks_when_it_is_measured(
    compared: Path, configs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    shutil.copytree(compared, out)

    def breaks(config, *rest):
        if config.model.width == 4:
            raise RuntimeError("a bug\nof two lines")
        return detecting._cost(config, *rest)

    monkeypatch.setattr(job, "measure_cost", breaks)
    assert f"slim: RuntimeError: a bug of two lines; more in {out / 'slim.log'}" in failure(
        capsys, configs, "--out", out, status=1
    )
    assert "Traceback" in (out / "slim.log").read_text()
    assert [one["name"] for one in content(out)["detectors"]] == ["wide"]


def test_missing_proposals_are_made_and_timed(toys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made = []
    monkeypatch.setattr(methods, "find_method", lambda *_: few_regions)
    monkeypatch.setattr(job, "proposal_seconds", lambda entries, *_: [0.5] * len(entries))

    def in_this_process(dataset, images, method, parameters, workers):
        made.append((dataset.name, method, parameters["mode"]))
        for i in images:
            yield i, few_regions(dataset.image(i)), None

    monkeypatch.setattr("detkit.proposals.make._run", in_this_process)
    stores = [str(tmp_path / f"toys-{split}-selective_search-single.npz") for split in ("train", "val", "test")]
    config = tmp_path / "fast.yaml"
    config.write_text(
        "model: {name: fast_rcnn, backbone: {name: tiny}, size: [48, 64], freeze_stages: 0, batch_size_per_image: 4}\n"
        f"data: {{root: {toys}, train: [train], val: [val], test: [test], proposals: [{', '.join(stores)}]}}\n"
        "train: {iterations: 2, batch: 2, workers: 0, device: cpu}\n"
    )
    assert compare(config, "--out", tmp_path / "out") == 0
    assert made == [(f"toys/{split}", "selective_search", "single") for split in ("train", "val", "test")]
    assert len(open_store(stores[0])) == 24
    found = content(tmp_path / "out")
    assert set(found["protocol"]["stores made"]) == set(stores)
    (one,) = found["detectors"]
    assert (one["takes_proposals"], one["proposals_seconds_per_image"]) == (True, 0.5)
    assert one["images_per_second_with_proposals"]["16"] == pytest.approx(1 / 1.5)
    entries = find_entries([str(config)], [], tmp_path / "out")
    dataset = open_dataset(entries[0].config.data, "test")
    assert detecting.method_of(entries[0].config, dataset) == ("selective_search", {"mode": "single", "seed": 0})
    assert compare(config, "--out", tmp_path / "out") == 0
    assert len(made) == 3


def test_the_papers_order(tmp_path: Path):
    for name in ("ssd", "rcnn", "yolov1", "fast_rcnn", "sppnet", "faster_rcnn"):
        shutil.copy(Path(__file__).parents[2] / "configs" / "shapes" / f"{name}.yaml", tmp_path)
    found = [entry.name for entry in find_entries([str(tmp_path)], [], tmp_path / "out")]
    assert found == ["rcnn", "sppnet", "fast_rcnn", "faster_rcnn", "yolov1", "ssd"]


def test_measured_in_processes_of_their_own(toys: Path, tmp_path: Path):
    """Without any stand-in: memory, operations and speed of a detector that other processes know."""
    path = tmp_path / "ssd.yaml"
    path.write_text(SSD.format(root=toys))
    config = load_config(path)
    detector = build_detector(config.model, CLASSES)
    (tmp_path / "out" / "ssd").mkdir(parents=True)
    checkpoint.save(tmp_path / "out" / "ssd" / "best.pt", detector, config)
    (entry,) = find_entries([str(path)], [], tmp_path / "out")
    cost = detecting.measure_cost(config, entry.best, "cpu")
    assert cost.parameters == sum(part.numel() for part in detector.parameters())
    assert cost.flops == flops(detector, 96)
    if sys.platform == "linux":
        assert cost.memory is not None
        # more than the weights, less than a copy of torch
        assert 4 * cost.parameters < cost.memory < 300e6
    rounds = []
    (rates,) = measure.speeds([entry], Setting("cpu", 1, 2), lambda done, total: rounds.append((done, total)))
    assert set(rates) == {1, 16}
    assert all(1 < rate < 1e5 for rate in rates.values())
    assert rounds == [(1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.yaml"], "no config nowhere.yaml"),
        (["{configs}/slim.yml"], "no config {configs}/slim.yml; did you mean '{configs}/slim.yaml'?"),
        (["{tmp}/empty"], "{tmp}/empty holds neither configs (*.yaml) nor folders of runs"),
        (["{tmp}/unsaved"], "{tmp}/unsaved: a run without a checkpoint best.pt"),
        (["{compared}/slim/best.pt"], "the folder of its run would be {compared}/slim"),
        (["{compared}/slim", "{configs}/slim.yaml"], "have one name, slim"),
        (
            ["{compared}/slim", "{tmp}/triangles"],
            "slim and triangles cannot be compared, their classes are not the same",
        ),
        (["{compared}/slim", "{tmp}/val"], "slim and val cannot be compared, their images are not the same"),
        (["{compared}/slim", "{tmp}/area"], "their metrics are not the same: voc, and voc07; evaluate.metric=voc sets"),
        (["{configs}", "train.itterations=3"], "train.itterations"),
        (["train.iterations=3"], "what to compare"),
        (["{configs}", "--rounds", "0"], "at least one"),
        (["{configs}", "--out", "{compared}/compare.csv"], "is a file"),
        (
            ["{configs}", "train.lr=0.5", "--out", "{compared}"],
            "slim/config.yaml was trained by: train.lr: 0.5, not 0.05",
        ),
        (["{tmp}/regions.yaml"], "data.proposals is empty"),
    ],
)
def test_wrong_inputs(
    arguments: list[str], message: str, configs: Path, compared: Path, toys: Path, tmp_path: Path, capsys
):
    (tmp_path / "empty").mkdir()
    (tmp_path / "unsaved").mkdir()
    shutil.copy(compared / "slim" / "config.yaml", tmp_path / "unsaved")
    best = checkpoint.load(compared / "slim" / "best.pt")
    for name, change in (
        ("triangles", {"classes": ["circle", "triangle"]}),
        ("val", {"config": {**best["config"], "data": {**best["config"]["data"], "test": ["one"]}}}),
        ("area", {"config": {**best["config"], "evaluate": {"metric": "voc", "batch": 4}}}),
    ):
        checkpoint.write(tmp_path / name / "best.pt", {**best, **change})
    (tmp_path / "regions.yaml").write_text(
        "model: {name: fast_rcnn, backbone: {name: tiny}}\ntrain: {iterations: 1}\n" + f"data: {{root: {toys}}}\n"
    )
    places = {"configs": configs, "compared": compared, "tmp": tmp_path}
    own = [] if "--out" in arguments else ["--out", tmp_path / "out"]
    said = failure(capsys, *(argument.format(**places) for argument in arguments), *own)
    assert message.format(**places) in said
    assert not (tmp_path / "out").exists()


def data_of(path: Path) -> dict:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text(), re.DOTALL)
    assert found
    return json.loads(found[1])


def test_the_page_is_whole_and_alone(compared: Path):
    text = (compared / "report.html").read_text()
    page = Strict(text)
    assert not {tag for tag, _ in page.elements} & {"link", "iframe", "img"}
    assert "http:" not in text.replace("http-equiv", "")
    assert "https:" not in text
    assert not any("src" in attributes for _, attributes in page.elements)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = {str(attributes["href"]).lstrip("#") for tag, attributes in page.elements if tag == "a"}
    assert links <= set(ids)
    assert "{{" not in text
    assert "NaN" not in text.replace("isNaN", "")
    for one in content(compared)["detectors"]:
        assert f"{one['mAP']:.4f}" in page.text
        for cost in one["error_mAP_cost"].values():
            assert f"{cost:+.4f}" in page.text


def test_the_photos_show_what_each_detector_found(compared: Path):
    data = data_of(compared / "report.html")
    assert [run["name"] for run in data["runs"]] == ["slim (toy)", "wide (toy)"]
    found = json.loads((compared / "evaluations" / "wide-detections.json").read_text())
    assert len(data["images"]) == 9
    for sample_image in data["images"]:
        assert sample_image["image"].startswith("data:image/jpeg")
        number = found["images"].index(sample_image["id"])
        best = max(row[2] for row in found["detections"] if row[0] == number)
        assert sample_image["found"][1][0][1] == pytest.approx(best, abs=1e-4)
    one = content(compared)["detectors"][1]
    assert data["levels"][0]["scores"][1] == pytest.approx(one["best_F1_score"], abs=1e-4)
    shown = [row[2] for sample_image in data["images"] for row in sample_image["found"][1]]
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


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_it_lives_in_a_browser(compared: Path, tmp_path: Path):
    """Switches, levels, enlarged image by keyboard, curves and sorting, in a narrow window."""
    page = tmp_path / "page.html"
    page.write_text((compared / "report.html").read_text().replace("</body>", f"<script>{SCRIPT}</script></body>"))
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"]
    command += ["--disable-background-networking", "--disable-component-update", f"--user-data-dir={tmp_path / 'user'}"]
    command += ["--window-size=400,800", "--dump-dom", page.as_uri()]
    output = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    seen = json.loads(next(own for _, own in Strict(output).elements if "data-seen" in own)["data-seen"] or "")
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
