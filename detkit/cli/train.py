"""detkit train: from a config to weights, mAP and images."""

import argparse
import shlex
import sys
from pathlib import Path

from detkit.errors import UserError
from detkit.runtime import launcher

DESCRIPTION = (
    "Train a detector. The run's folder then holds config.yaml, env.txt, log.jsonl, last.pt, best.pt, "
    "metrics.json, plots/ and samples/."
)
EPILOG = """examples:
  detkit train --data data/mine
  detkit train --data data/mine --model faster_rcnn train.epochs=20 --out runs/mine
  detkit train shapes/ssd
  detkit train voc/ssd300_vgg16 train.batch=16 train.amp=bf16 --out runs/voc
  detkit train --resume runs/voc
  torchrun --nproc-per-node 4 tools/train.py voc/ssd300_vgg16

CONFIG is a YAML file, or one of those that come with detkit, by name: `detkit configs` lists them.

--data takes a folder in VOC, COCO or YOLO layout, as labelling tools and Roboflow write them. It is checked, and
divided where it has no splits, without a change to it. Steps, warm-up and augmentation (upright) are chosen by its
size, and written to config.yaml as any config; key=value changes them. Training begins with weights that know other
things, and ends with the test and the report. Where it was interrupted, the same command goes on.

exit status: 0; 1 where the weights and metrics.json are written, but a plot, a sample or the report is not; 2 after an
error; 128 and the signal's number after Ctrl-C (130) or SIGTERM (143), with all saved.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", nargs="?", help="a YAML file, or the name of one of detkit's, such as shapes/ssd")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the config: train.lr=0.01")
    models = "ssd (default), ssd_lite, yolov1, yolov2, faster_rcnn, retinanet, ..."
    default = "runs/CONFIG-NUMBER; with --data runs/FOLDER-MODEL-NUMBER"
    parser.add_argument("--data", metavar="FOLDER", help="your own images, in place of a config: see below")
    parser.add_argument("--model", metavar="NAME", help=f"with --data: {models}")
    parser.add_argument("--out", metavar="DIR", help=f"the run's folder, new or empty; default {default}")
    parser.add_argument("--resume", metavar="DIR", help="go on with the run in DIR, by its config.yaml")


def run(arguments: argparse.Namespace) -> int:
    """Train, then evaluate the best checkpoint on the test split."""
    config, overrides = arguments.config, list(arguments.overrides)
    if config is not None and "=" in config:  # an override in the config's place, since --resume needs no config
        config, overrides = None, [config, *overrides]
    if arguments.resume is not None and arguments.out is not None:
        raise UserError("--resume DIR goes on in DIR; leave --out away")
    if arguments.data is None and arguments.model is not None:
        raise UserError("--model goes with --data; in a config it is model.name")
    if arguments.data is not None and (config or arguments.resume) is not None:
        other = f"--resume {arguments.resume}" if arguments.resume else config
        raise UserError(f"--data chooses a config itself; leave {other} out, or name the folder as data.root=FOLDER")
    if arguments.resume is None and config is None and arguments.data is None:
        raise UserError("on what? examples: detkit train --data FOLDER, detkit train shapes/ssd")
    launcher.follow()

    from detkit.engine import own_data
    from detkit.engine.session import train
    from detkit.runtime import distributed
    from detkit.runtime.signals import Stopped

    try:
        if arguments.data is not None:
            own_data.train(arguments.data, arguments.model, overrides, arguments.out)
        else:
            train(config, overrides, arguments.out, arguments.resume)
    except Stopped as stop:
        if distributed.launched_rank() == 0:
            command = "detkit train" if Path(sys.argv[0]).name == "detkit" else f"python {sys.argv[0]}"
            print(f"{stop}; to go on: {command} --resume {shlex.quote(str(stop.folder))}", file=sys.stderr)
        return 128 + stop.signal
    return 0
