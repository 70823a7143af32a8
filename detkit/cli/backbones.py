"""detkit backbones: the backbones, their sizes and weights."""

import argparse
import json
from typing import TYPE_CHECKING

from detkit.cli.listing import billions, millions, table, where
from detkit.errors import UserError

if TYPE_CHECKING:
    from detkit.backbones import BackboneSummary

DESCRIPTION = "List the backbones with parameters, FLOPs, maps, and weights that exist. Nothing is downloaded."
EPILOG = """examples:
  detkit backbones
  detkit backbones 'res*' --size 600
  detkit backbones timm/efficientnet_b0 --json
  detkit backbones --import my_net.py

parameters: of the layers that give the maps; with tail: with those that region heads have besides. GFLOPs: of one image
of `pixels` a side, without the tail; a multiplication and an addition are two (tables that call them one show half).
maps: their names and strides; region heads pool from the one with a star. weights: for ImageNet,
model.backbone.weights=imagenet; from: where they come from, or whether they are here already; --json
has the whole address, or the path.
"""
HEADER = ("name", "parameters", "with tail", "pixels", "GFLOPs", "maps", "weights", "from")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pattern", nargs="?", default="*", help="a name, with wildcards: 'res*'; or timm/NAME")
    parser.add_argument(
        "--size", type=int, metavar="PIXELS", help="a side of the image (default: as the weights were trained, or 224)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, with all facts")


def run(arguments: argparse.Namespace) -> None:
    """Print the list."""
    from detkit.backbones import BACKBONES, describe_backbone
    from detkit.backbones.timm_models import PREFIX

    pattern, size = arguments.pattern, arguments.size
    if size is not None and size < 1:
        raise UserError(f"--size {size} is less than 1")
    names = [pattern] if pattern.startswith(PREFIX) else BACKBONES.match(pattern)
    backbones = [describe_backbone(name, size) for name in names]
    if arguments.json:
        print(json.dumps([_plain(one) for one in backbones], indent=1))
        return
    print(table(HEADER, [_row(one) for one in backbones], HEADER[1:5]))
    print("\nGFLOPs: one image of so many pixels a side, without the tail; a multiply-add is two. *: region heads' map")


def _row(one: "BackboneSummary") -> list[str]:
    maps = [f"{info.name}{'*' * (info.name == one.region)}/{info.stride}" for info in one.features]
    name, origin = "none", ""
    if one.weights is not None:
        name, origin = one.weights.name, where(one.weights)
    counts = (millions(one.parameters), millions(one.with_tail), str(one.size), billions(one.flops))
    return [one.name, *counts, " ".join(maps), name, origin]


def _plain(one: "BackboneSummary") -> dict:
    weights = None if one.weights is None else one.weights._asdict()
    return {**vars(one), "features": [info._asdict() for info in one.features], "weights": weights}
