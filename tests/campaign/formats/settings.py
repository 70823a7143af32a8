"""Configs and the command line's key=value."""

import json
import math
from pathlib import Path
from random import Random
from typing import Any

import yaml
from omegaconf import OmegaConf

from detkit.config import Config
from detkit.experiment import load_config, save_config, to_plain
from tests.campaign.children import REPOSITORY
from tests.campaign.commands import Broken, run
from tests.campaign.formats.base import Files, Format
from tests.campaign.formats.datasets import prepare_voc
from tests.campaign.formats.weights import CONFIG, TINY
from tests.campaign.mutations import NUMBERS, VALUES, WORDS, edit_several, edit_text

SHAPES = REPOSITORY / "configs/shapes/ssd.yaml"
VALUES_OF_CONFIG = (
    *(value for value in VALUES if value != "\ud800"),  # which YAML cannot hold
    *("${model.name}", "${oc.env:NOPE}", "${oc.decode:[}", "${", "???", "ssd", [["a"]], {1: 2}, {None: 1}),
    [{"HorizontalFlip": {"p": 2}}],
)
TEXTS = (
    *NUMBERS,
    *WORDS,
    *("[]", "{}", "[1", "{a:", "[[1],[2]]", "${model.name}", "[a,b", "!!python/object:os.system", "&a [*a]", "*a"),
    *("a: b: c", "[1,2,3]", "{a: 1}", "1e3", "0o7", "0b1", "2020-01-01", "?"),
)
ODD_KEYS = (
    *("x", "", ".", "model..x", "[", "a.b.c.d", "train.[0]", "data.augment.0", "data.augment[0]", "data.train[5]"),
    *("model.min_sizes[0]", "model.min_sizes.7", "__class__", "train.__init__", "_content"),
)
RATES = (
    *("lr", "momentum", "weight_decay", "bias_decay", "warmup_lr", "clip", "ema", "seed", "gamma"),
    *("bias_lr", "backbone_lr", "class_lr"),
)
LARGEST = 2**63 - 1


def check_config(config: Config) -> None:
    """Raise Broken unless all numbers of a config can be computed with, and no text is still to be replaced."""
    for value in _leaves(to_plain(config)):
        if isinstance(value, float) and not math.isfinite(value):
            raise Broken(f"{value} accepted")
        if isinstance(value, int) and abs(value) > LARGEST:
            raise Broken(f"a number of {len(str(abs(value)))} digits accepted")
        if isinstance(value, str) and "${" in value:
            raise Broken(f"{value!r} accepted")
    if not 0 <= config.train.momentum <= 1 or config.train.seed < 0:
        raise Broken(f"momentum {config.train.momentum}, seed {config.train.seed} accepted")


def _leaves(value: Any) -> list[Any]:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else None
    return [value] if parts is None else [leaf for part in parts for leaf in _leaves(part)]


def prepare_config() -> list[bytes]:
    """A config; returns those that detkit comes with."""
    contents = [path.read_bytes() for path in sorted((REPOSITORY / "configs").rglob("*.yaml"))]
    Path("config.yaml").write_bytes(contents[0])
    return contents


def draw_config(random: Random, seeds: list[bytes]) -> Files:
    """Damage one."""
    content = random.choice(seeds)
    if random.random() < 0.6:
        data = edit_several(random, yaml.safe_load(content), VALUES_OF_CONFIG)
        content = yaml.safe_dump(data, allow_unicode=True).encode("utf-8", "replace")
    else:
        content = edit_text(random, content)
    return {"config.yaml": content}


def read_config() -> None:
    """Read it, write it, read that: the same."""
    config = load_config("config.yaml", [])
    check_config(config)
    save_config("out/config.yaml", config)
    if repr(to_plain(load_config("out/config.yaml", []))) != repr(to_plain(config)):
        raise Broken("the config that is written reads differently")


def prepare_overrides() -> list[str]:
    """Returns all keys of a config."""
    Path("overrides.json").write_text("[]")
    keys = OmegaConf.to_container(OmegaConf.create(to_plain(load_config(SHAPES, []))))
    return [*_keys(keys), *ODD_KEYS]


def _keys(node: Any, path: str = "") -> list[str]:
    if not isinstance(node, dict):
        return []
    names = [(f"{path}.{name}" if path else name, value) for name, value in node.items()]
    return [key for name, value in names for key in (name, *_keys(value, name)) if name != "imports"]


def draw_overrides(random: Random, seed: list[str]) -> Files:
    """Odd keys and values."""
    signs = ("=", "=", "=", "=", "", "==", ":")
    count = random.choice((1, 1, 2))
    words = [random.choice(seed) + random.choice(signs) + random.choice(TEXTS) for _ in range(count)]
    return {"overrides.json": json.dumps(words).encode()}


def read_overrides() -> None:
    """Read a config with them."""
    check_config(load_config(SHAPES, json.loads(Path("overrides.json").read_text())))


def prepare_training() -> None:
    """A VOC data set to train on."""
    prepare_voc()
    Path("overrides.json").write_text("[]")


def draw_training(random: Random, seed: None) -> Files:
    """Odd numbers for a recipe."""
    return {"overrides.json": json.dumps([f"train.{random.choice(RATES)}={random.choice(NUMBERS)}"]).encode()}


def read_training() -> None:
    """Train by them for two steps: what cannot be is said before anything is written."""
    words = json.loads(Path("overrides.json").read_text())
    steps = ("train.iterations=2", "train.batch=2", "train.workers=0", "data.val=[]", "data.test=[]")
    folder = Path("out/run")
    run("train", CONFIG, *TINY, *steps, *words, "--out", folder, files="nothing")
    if folder.exists() and not (folder / "last.pt").exists():  # with it, a loss was not finite
        raise Broken("a run's folder is left without last.pt")


SETTINGS_FORMATS = (
    Format("config", prepare_config, draw_config, read_config, 2000, 80),
    Format("override", prepare_overrides, draw_overrides, read_overrides, 4200, 150),
    Format("training", prepare_training, draw_training, read_training, 150, 6),
)
