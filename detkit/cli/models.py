"""detkit models: the detectors, their papers, weights and configs."""

import argparse
import json
from typing import TYPE_CHECKING

from detkit.cli.listing import billions, millions, table, where

if TYPE_CHECKING:
    from detkit.checkpoints.describe import ModelSummary

DESCRIPTION = "List the detectors with papers, parameters, FLOPs, weights that exist, and configs."
EPILOG = """examples:
  detkit models
  detkit models '*rcnn' --json
  detkit models --import my_detector.py

dense detectors classify cells or anchors of an image, region detectors regions: stored ones (detkit proposals), or
their own (an RPN). All numbers are those of the paper's config, the default, with 20 classes. GFLOPs: of one image of
500x375, and of each region besides; a multiplication and an addition are two (tables that call them one show half).
weights: trained detectors, for detect, evaluate, detkit.load and train.weights. configs: those of detkit that use the
model, by name; `detkit configs` says more of each.
"""
HEADER = ("name", "kind", "proposals", "backbone", "input", "parameters", "GFLOPs", "a region", "paper")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pattern", nargs="?", default="*", help="a name, with wildcards: '*rcnn'")
    parser.add_argument("--json", action="store_true", help="print JSON, with all facts")


def run(arguments: argparse.Namespace) -> None:
    """Print the list, then weights and configs."""
    from detkit.checkpoints.describe import describe_model
    from detkit.models import MODELS

    models = [describe_model(name) for name in MODELS.match(arguments.pattern)]
    configs = find_configs()
    if arguments.json:
        print(json.dumps([{**_plain(one), "configs": configs.get(one.name, [])} for one in models], indent=1))
        return
    print(table(HEADER, [_row(one) for one in models], HEADER[5:8]))
    print(
        "\nGFLOPs: one image of 500x375, and each region besides; a multiply-add is two. 20 classes, the paper's config"
    )
    weights = [(source.name, where(source), one.name) for one in models for source in one.weights]
    if weights:
        print("\n" + table(("weights", "from", "model"), weights))
    used = [(config, one.name) for one in models for config in configs.get(one.name, [])]
    if used:
        print("\n" + table(("config", "model"), used))


def find_configs() -> dict[str, list[str]]:
    """Return the names of detkit's configs of each model."""
    from detkit.experiment import read_yaml
    from detkit.known_configs import known_configs

    configs: dict[str, list[str]] = {}
    for name, path in known_configs().items():
        configs.setdefault(read_yaml(path).model.name, []).append(name)
    return configs


def _row(one: "ModelSummary") -> list[str]:
    paper = "-" if one.paper is None else f"{one.paper.title} ({one.paper.year})"
    region = billions(one.region_flops) if one.kind == "region" else "-"
    numbers = (millions(one.parameters), billions(one.flops), region)
    return [one.name, one.kind, one.proposals or "-", one.backbone or "any", one.input or "-", *numbers, paper]


def _plain(one: "ModelSummary") -> dict:
    paper = None if one.paper is None else one.paper._asdict()
    return {**vars(one), "paper": paper, "weights": [source._asdict() for source in one.weights]}
