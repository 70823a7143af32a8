"""detkit train: from a config to weights, mAP and images."""

import argparse
import shlex
import sys
from pathlib import Path

from detkit.errors import UserError

DESCRIPTION = (
    "Train a detector. The run's folder then holds config.yaml, env.txt, log.jsonl, last.pt, best.pt, "
    "metrics.json, plots/ and samples/."
)
EPILOG = """examples:
  detkit train configs/shapes/ssd.yaml
  detkit train configs/voc/ssd300_vgg16.yaml train.batch=16 train.amp=bf16 --out runs/voc
  detkit train --resume runs/voc
  torchrun --nproc-per-node 4 tools/train.py configs/voc/ssd300_vgg16.yaml
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", nargs="?", help="a YAML file, such as configs/shapes/ssd.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the config: train.lr=0.01")
    parser.add_argument("--out", metavar="DIR", help="the run's folder, new or empty; default runs/CONFIG-NUMBER")
    parser.add_argument("--resume", metavar="DIR", help="go on with the run in DIR, by its config.yaml")


def run(arguments: argparse.Namespace) -> int:
    """Train, then evaluate the best checkpoint on the test split."""
    config, overrides = arguments.config, list(arguments.overrides)
    if config is not None and "=" in config:  # an override in the config's place, since --resume needs no config
        config, overrides = None, [config, *overrides]
    if arguments.resume is not None and arguments.out is not None:
        raise UserError("--resume DIR goes on in DIR; leave --out away")
    if arguments.resume is None and config is None:
        raise UserError("which config? an example: detkit train configs/shapes/ssd.yaml")

    from detkit.engine.session import train
    from detkit.runtime import distributed
    from detkit.runtime.signals import Stopped

    try:
        train(config, overrides, arguments.out, arguments.resume)
    except Stopped as stop:
        if distributed.launched_rank() == 0:
            command = "detkit train" if Path(sys.argv[0]).name == "detkit" else f"python {sys.argv[0]}"
            print(f"{stop}; to go on: {command} --resume {shlex.quote(str(stop.folder))}", file=sys.stderr)
        return 128 + stop.signal
    return 0
