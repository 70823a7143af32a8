"""Configs: what is accepted, and the one line for what isn't."""

from pathlib import Path

import pytest
import torch

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
        (MINIMAL, ["train.lr=-1"], r"train\.lr: -1\.0 is not positive"),
        (MINIMAL, ["train.schedule=step"], r"train\.schedule: 'step' is not one of steps, cosine"),
        (MINIMAL, ["train.accumulate=5"], r"train\.batch: 32 is not a multiple of train\.accumulate 5"),
        (MINIMAL, ["lr"], r"argument 'lr' is not key=value"),
        (MINIMAL, ["model.name=sdd"], r"unknown model 'sdd'; did you mean 'ssd'"),
        ("model: {name: ssd}\ntrain: {iterations: 1}\n", [], r"missing data\.root"),
        ("data: {root: x}\n", [], r"model\.name is missing"),
        ("- 1\n", [], r"a config is a mapping"),
        ("model: {name: ssd\n", [], r"not valid YAML"),
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
