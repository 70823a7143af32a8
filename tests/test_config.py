"""Configs: what is accepted, and the one line for what isn't."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from detkit import extensions
from detkit.errors import UserError
from detkit.experiment import from_plain, load_config, save_config, to_plain
from detkit.models import build_detector
from detkit.models.ssd import SSD

CONFIGS = Path(__file__).parents[1] / "configs"
ROOT = ["data.root=somewhere"]


def write(folder: Path, text: str) -> Path:
    path = folder / "a.yaml"
    path.write_text(text)
    return path


MINIMAL = "model: {name: ssd}\ndata: {root: x}\ntrain: {iterations: 10}\n"


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_config_is_valid_and_survives_a_round_trip(path, tmp_path):
    config = load_config(path, ROOT)
    save_config(tmp_path / "config.yaml", config)
    assert load_config(tmp_path / "config.yaml") == config
    assert from_plain(to_plain(config), "a checkpoint") == config


@pytest.mark.parametrize(("name", "boxes"), [("ssd300_vgg16", 8732), ("ssd512_vgg16", 24564)])
def test_the_papers_recipes_build_the_papers_boxes(name, boxes):
    config = load_config(CONFIGS / "voc" / f"{name}.yaml", ["model.backbone.weights=null"])
    detector = build_detector(config.model, tuple(map(str, range(20))))
    assert isinstance(detector, SSD)
    assert len(detector.anchors) == boxes


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        (MINIMAL, ["train.itterations=3"], r"argument 'train\.itterations=3': unknown key .*did you mean 'iterations'"),
        (MINIMAL + "optimiser: sgd\n", [], r"a\.yaml: unknown key 'optimiser'"),
        (MINIMAL, ["model.negativ=2"], r"unknown key 'model\.negativ'; did you mean 'neg_pos_ratio'"),
        (MINIMAL, ["train.lr=fast"], r"argument 'train\.lr=fast': train\.lr: Value 'fast' .* Float"),
        (MINIMAL, ["model.backbone=tiny"], r"model\.backbone: 'tiny' is not a mapping with keys such as name, weights"),
        (MINIMAL, ["data.train=trainval"], r"data\.train: expected a list"),
        (MINIMAL, ["train.batch=2.5"], r"train\.batch"),
        (MINIMAL, ["train.milestones=[[1,2]]"], r"train\.milestones: \[\[1, 2\]\] is not a list such as"),
        (MINIMAL, ["data.classes=[[a,b]]"], r"data\.classes: .* is not a list such as"),
        (MINIMAL, ["train.lr=0"], r"train\.lr: 0\.0 is not in \(0, inf\)"),
        (MINIMAL, ["train.ema=1"], r"train\.ema: 1\.0 is not in \[0, 1\)"),
        (MINIMAL, ["train.lr=-1"], r"a\.yaml: train\.lr: -1\.0 is not in \(0, inf\)"),
        (MINIMAL, ["train.schedule=step"], r"train\.schedule: 'step' is not one of steps, cosine"),
        (MINIMAL, ["train.accumulate=5"], r"train\.batch: 32 is not a multiple of train\.accumulate 5"),
        (MINIMAL, ["lr"], r"argument 'lr' is not key=value"),
        (MINIMAL, ["model.name=sdd"], r"unknown model 'sdd'; did you mean 'ssd'"),
        ("model: {name: ssd}\ntrain: {iterations: 1}\n", [], r"missing data\.root"),
        ("data: {root: x}\n", [], r"model\.name is missing"),
        ("- 1\n", [], r"a config is a mapping"),
        ("model: {name: ssd\n", [], r"not valid YAML"),
        (MINIMAL, ["train.momentum=5"], r"train\.momentum: 5\.0 is not in \[0, 1\)"),
        (MINIMAL, ["train.seed=-1"], r"train\.seed: -1 is not in \[0, 4294967295\]"),
        (MINIMAL, ["train.seed=1" + "0" * 400], r"': train\.seed: an integer beyond 64 bits"),
        (MINIMAL, ["train.seed=1" + "0" * 5000], r"argument 'train\.seed="),
        (MINIMAL, ["train.seed=0x1" + "0" * 5000], r"': train\.seed: an integer beyond 64 bits"),
        (MINIMAL, ["train.lr=.nan"], r"argument 'train\.lr=\.nan': train\.lr: nan is no number"),
        (MINIMAL, ["train.lr='nan'"], r"train\.lr: nan is not in \(0, inf\)"),
        (MINIMAL, ["train.bias_lr='inf'"], r"train\.bias_lr: inf is not in \[0, inf\)"),
        (MINIMAL, ["model.mean=[0,0,'nan']"], r"model\.mean: nan is not in \(-inf, inf\)"),
        (MINIMAL, ["model.aspect_ratios=[[2],[-1]]"], r"model\.aspect_ratios: -1\.0 is not in \(0, inf\)"),
        (MINIMAL, ["train.lr=1e400"], r"train\.lr: inf is no number"),
        (MINIMAL, ["data.augment=[{HorizontalFlip: {p: .nan}}]"], r"data\.augment\.0\.HorizontalFlip\.p: nan is no"),
        (MINIMAL, ["train.lr=${train.momentum}"], r"': train\.lr: '\$\{train\.momentum\}' refers to something else"),
        (MINIMAL, ["model=${data}"], r"': model: '\$\{data\}' refers"),
        (MINIMAL, ["model.name=${model.name}"], r"': model\.name: "),
        (MINIMAL + "imports: ${a}\n", [], r"a\.yaml: imports: '\$\{a\}' refers"),
        (MINIMAL, ["train.lr=${"], r"argument 'train\.lr=\$\{'"),
        (MINIMAL, ["train.accumulate=0"], r"train\.accumulate: 0 is not in \[1, inf\)"),
        (MINIMAL, ["train.workers=1000000"], r"train\.workers: 1000000 is not in \[0, 1024\]"),
        (MINIMAL, ["data.format=vocc"], r"a\.yaml: data\.format: 'vocc' is not one of auto, voc, coco, yolo, shapes"),
    ],
)
def test_mistakes_are_one_line(text, overrides, message, tmp_path):
    with pytest.raises(UserError, match=message) as caught:
        load_config(write(tmp_path, text), overrides)
    assert "\n" not in str(caught.value)


def test_a_missing_file_names_its_neighbour(tmp_path):
    write(tmp_path, MINIMAL)
    with pytest.raises(UserError, match=r"no config .*b\.yaml; did you mean '.*a\.yaml'"):
        load_config(tmp_path / "b.yaml")


def test_numbers_in_scientific_notation_are_numbers(tmp_path):
    config = load_config(write(tmp_path, MINIMAL + "evaluate: {batch: 4}\n"), ["train.lr=3e-4"])
    assert config.train.lr == 3e-4


def test_no_iterations_is_named(tmp_path):
    with pytest.raises(UserError, match=r"missing train\.iterations"):
        load_config(write(tmp_path, "model: {name: ssd}\ndata: {root: x}\n"))


@pytest.mark.parametrize("path", sorted((CONFIGS / "voc").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_published_recipe_can_be_built(path: Path) -> None:
    config = load_config(path)
    config.model.backbone.weights = None
    with torch.device("meta"):
        detector = build_detector(config.model, tuple(map(str, range(20))))
    assert detector.takes_proposals == bool(config.data.proposals)


@pytest.mark.parametrize(("key", "nearest"), [("score", "score_threshold"), ("iou", "nms_iou"), ("nns", "nms")])
def test_a_word_of_a_key_leads_to_the_key(key: str, nearest: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"did you mean '{nearest}'"):
        load_config(write(tmp_path, MINIMAL), [f"detect.{key}=1"])


CODE = "from pathlib import Path\nPath(__file__).with_suffix('.ran').touch()\n"


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """Return a function that writes a Python file, which touches NAME.ran where it is run, and returns its path."""
    names = []
    monkeypatch.setattr(extensions, "imported", [])
    monkeypatch.setattr(sys, "path", [*sys.path])

    def write_code(name: str) -> str:
        names.append(name)
        (tmp_path / f"{name}.py").write_text(CODE)
        return str(tmp_path / f"{name}.py")

    yield write_code
    for name in names:
        sys.modules.pop(name, None)


def ran(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.ran"))


def test_a_config_runs_its_imports_and_keeps_those_of_the_command_line(code, tmp_path):
    by_option, by_config = code("by_option_of_a_test"), code("by_config_of_a_test")
    extensions.import_code([by_option])
    text = MINIMAL + f"imports: [{by_config}]\n"
    assert load_config(write(tmp_path, text)).imports == [by_config, by_option]
    assert ran(tmp_path) == ["by_config_of_a_test", "by_option_of_a_test"]
    assert load_config(write(tmp_path, MINIMAL)).imports == [by_option, by_config]


def test_reading_a_checkpoint_runs_no_code_but_the_arguments(code, tmp_path):
    """What the checkpoint names stays in its config, to be told of; code that is only at hand is no part of it."""
    named, argument = code("named_by_a_test"), code("argument_of_a_test")
    values = to_plain(load_config(write(tmp_path, MINIMAL))) | {"imports": [named]}
    assert from_plain(values, "best.pt").imports == [named]
    assert ran(tmp_path) == []
    assert from_plain(values, "best.pt", [f"imports=[{argument}]"]).imports == [argument]
    assert ran(tmp_path) == ["argument_of_a_test"]
    assert from_plain(values, "best.pt").imports == [named]


def test_a_checkpoint_of_unknown_names_is_one_line(tmp_path):
    """With the code that would register them, where it names any."""
    values = to_plain(load_config(write(tmp_path, MINIMAL)))
    values["data"]["format"] = "nonesuch"
    with pytest.raises(UserError, match=r"^best\.pt: data\.format: 'nonesuch' is not one of auto, voc"):
        from_plain(values, "best.pt")
    with pytest.raises(
        UserError, match=r"^best\.pt: data\.format is 'nonesuch', of code .*: add --import a\.py --import b "
    ):
        from_plain(values | {"imports": ["a.py", "b"]}, "best.pt")
