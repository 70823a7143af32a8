"""An experiment's config: YAML files and `key=value` arguments, checked against the dataclasses of `config.py`.

An unknown key or a wrong type ends with one line that names the file or argument, the key, and the nearest known key.
"""

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from detkit import extensions
from detkit.backbones import BACKBONES
from detkit.config import Config
from detkit.data.drawn import DRAWINGS
from detkit.data.formats import DATASETS
from detkit.errors import UserError, did_you_mean
from detkit.files import write_file
from detkit.known_configs import find_config
from detkit.models import MODELS, model_config_type

LENGTHS = ("iterations", "epochs")  # keys of `train`, of which one is given


def load_config(path: str | Path, overrides: list[str] | None = None) -> Config:
    """Read a YAML config, a file or detkit's own of that name, then apply `key=value` arguments.

    Raises UserError, in one line: a missing or broken file, an unknown key, a wrong type, a missing value.
    """
    return parse_config(read_yaml(path), str(path), overrides)


def read_config(config: str | Config | None, overrides: list[str]) -> Config:
    """`load_config` of a file, or of a Config, which is checked as a file is."""
    if isinstance(config, Config):
        return parse_config(OmegaConf.create(to_plain(config)), "the config", overrides)
    return load_config(str(config), overrides)


def override_texts(overrides: Mapping[str, Any], parent: str = "") -> list[str]:
    """Return {"train": {"lr": 0.01}, "data.root": path} as the arguments train.lr=0.01 and data.root="path"."""
    texts = []
    for key, value in overrides.items():
        if isinstance(value, Mapping):
            texts += override_texts(value, f"{parent}{key}.")
            continue
        try:
            texts.append(f"{parent}{key}={json.dumps(value, default=os.fspath)}")
        except TypeError:
            raise UserError(f"{parent}{key}: {value!r} is no value of a config") from None
    return texts


def parse_config(
    values: DictConfig, source: str, overrides: list[str] | None = None, *, trusted: bool = True
) -> Config:
    """Check values read from `source` and `key=value` arguments against the dataclasses.

    trusted: whether the code that `values` names in `imports` is run; that of the arguments is.
    """
    layers = [(source, values), *((f"argument {text!r}", parse_override(text)) for text in overrides or [])]
    for origin, layer in layers:
        _check_values(OmegaConf.to_container(layer, resolve=False), origin)
    for _, layer in layers if trusted else layers[1:]:
        if isinstance(names := layer.get("imports"), ListConfig):  # what is no list is refused below
            extensions.import_code(map(str, names))
    if not trusted:
        _check_code(values, source)
    name = None
    for _, layer in layers:
        model = layer.get("model")
        name = model.get("name", name) if isinstance(model, DictConfig) else name
    if name is None:
        raise UserError(f"{source}: model.name is missing; an example: model: {{name: ssd}}")
    try:
        merged = OmegaConf.structured(Config)
        merged.model = OmegaConf.structured(model_config_type(str(name)))
    except UserError as error:
        raise UserError(f"{source}: model.name: {error}") from None
    for origin, layer in layers:
        merged = _merge(_with_one_length(merged, layer), layer, origin)
    config = _to_object(merged, source)
    formats = dict.fromkeys(("auto", "voc", "coco", "yolo", *DRAWINGS, "given", *DATASETS))
    if config.data.format not in formats:
        raise UserError(f"{source}: data.format: {config.data.format!r} is not one of {', '.join(formats)}")
    if trusted:  # the command line's --import is part of an experiment, too
        config.imports += [name for name in extensions.imported if name not in config.imports]
    return config


def _check_values(value: Any, origin: str, key: str = "") -> None:
    """Raise UserError for what no key can have: references to other keys, numbers that are none or too large."""
    if isinstance(value, dict | list):
        for name, part in value.items() if isinstance(value, dict) else enumerate(value):
            _check_values(part, origin, f"{key}.{name}".strip("."))
    elif isinstance(value, str) and "${" in value:
        raise UserError(f"{origin}: {key}: {value!r} refers to something else; write the value itself")
    elif isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{origin}: {key}: {value} is no number")
    elif isinstance(value, int) and abs(value) >= 2**63:
        raise UserError(f"{origin}: {key}: an integer beyond 64 bits")


def _check_code(values: DictConfig, source: str) -> None:
    """Raise UserError where names are unknown that the code in `imports` would register."""
    known = {
        "model.name": MODELS,
        "model.backbone.name": BACKBONES,
        "data.format": ("auto", *DRAWINGS, "given", *DATASETS),
    }
    for key, names in known.items():
        name = OmegaConf.select(values, key)
        if values.get("imports") and isinstance(name, str) and "/" not in name and name not in names:
            options = " ".join(f"--import {each}" for each in values.imports)
            raise UserError(
                f"{source}: {key} is {name!r}, of code that is not loaded: add {options} (in Python, import it first)"
            )


def read_yaml(path: str | Path) -> DictConfig:
    """Read a YAML mapping; UserError where the file is missing, unreadable or something else."""
    path = find_config(path)
    try:
        values = OmegaConf.load(path)
        written = yaml.load(path.read_text(encoding="utf-8"), yaml.BaseLoader)
        if isinstance(values, DictConfig) and isinstance(names := written.get("data", {}).get("classes"), list):
            OmegaConf.update(values, "data.classes", names)  # as they are written: 007 and no are no numbers and flags
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a YAML text file") from None
    except Exception as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, DictConfig):
        raise UserError(f"{path}: a config is a mapping of keys such as model, data, train")
    return values


def parse_override(text: str) -> DictConfig:
    """`train.lr=0.01` -> {train: {lr: 0.01}}."""
    key, equals, _ = text.partition("=")
    if not equals or not key or key.startswith("-"):
        raise UserError(f"argument {text!r} is not key=value; an example: train.lr=0.01")
    try:
        layer = OmegaConf.from_dotlist([text])
        if key == "data.classes" and isinstance(names := yaml.load(text.partition("=")[2], yaml.BaseLoader), list):
            OmegaConf.update(layer, key, names)  # as they are written
        return layer
    except Exception as error:
        raise UserError(f"argument {text!r}: {' '.join(str(error).split())}") from None


def save_config(path: str | Path, config: Config) -> None:
    """Write the resolved config as YAML."""
    write_file(path, OmegaConf.to_yaml(OmegaConf.create(to_plain(config))))


def to_plain(config: Any) -> dict[str, Any]:
    """Return plain dicts, lists and scalars, as a checkpoint carries them."""
    return dataclasses.asdict(config)


def from_plain(values: dict[str, Any], source: str, overrides: list[str] | None = None) -> Config:
    """Rebuild a config from a checkpoint's plain values."""
    try:
        return parse_config(OmegaConf.create(values), source, overrides, trusted=False)
    except UserError:
        raise
    except Exception as error:  # values of any kind, which no YAML can hold
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{source}: config: {getattr(error, 'full_key', None) or 'its values'}: {reason}") from None


def _with_one_length(base: DictConfig, layer: DictConfig) -> DictConfig:
    """Take from `base` the length of training that `layer` gives in the other way."""
    train = layer.get("train")
    given = [key for key in LENGTHS if isinstance(train, DictConfig) and train.get(key)]
    for key in LENGTHS:
        if len(given) == 1 and key not in given:
            OmegaConf.update(base, f"train.{key}", 0)
    return base


def _merge(base: DictConfig, layer: DictConfig, origin: str) -> DictConfig:
    try:
        return OmegaConf.merge(base, layer)  # pyright: ignore[reportReturnType]
    except ConfigKeyError as error:
        key = str(error.full_key or error.key)
        parent, _, leaf = key.rpartition(".")
        node = OmegaConf.select(base, parent) if parent else base
        known = [str(name) for name in node] if isinstance(node, DictConfig) else []
        raise UserError(f"{origin}: unknown key {key!r}{did_you_mean(leaf, known)}") from None
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        raise UserError(f"{origin}: {_reason(base, layer, error)}") from None


def _reason(base: DictConfig, layer: DictConfig, error: Exception) -> str:
    """Name the key at fault: OmegaConf does so for scalars, not where a mapping and a scalar meet."""
    if isinstance(key := getattr(error, "full_key", None), str) and key:
        reason = str(error).splitlines()[0]
        return f"{key}: expected a list such as [a, b]" if "ListConfig" in reason else f"{key}: {reason}"
    for key in layer:
        node, value = OmegaConf.select(base, str(key)), layer[key]
        if not isinstance(node, DictConfig):
            continue
        if not isinstance(value, DictConfig):
            return f"{key}: {value!r} is not a mapping with keys such as {', '.join(map(str, list(node)[:3]))}"
        try:
            OmegaConf.merge(node, value)
        except (OmegaConfBaseException, ValueError, TypeError) as inner:
            return f"{key}.{_reason(node, value, inner)}"
    return " ".join(str(error).split())


def _to_object(merged: DictConfig, source: str) -> Config:
    missing = sorted(str(key) for key in OmegaConf.missing_keys(merged))
    if missing:
        raise UserError(f"{source}: missing {', '.join(missing)}")
    try:
        config: Config = OmegaConf.to_object(merged)  # pyright: ignore[reportAssignmentType]
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    except OmegaConfBaseException as error:
        raise UserError(f"{source}: {str(error).splitlines()[0]}") from None
    if not config.train.iterations and not config.train.epochs:
        raise UserError(f"{source}: missing train.iterations, or train.epochs")
    if config.train.iterations and config.train.epochs:
        raise UserError(
            f"{source}: train.iterations {config.train.iterations} and train.epochs {config.train.epochs:g} are two "
            "lengths of one training; give one"
        )
    return config
