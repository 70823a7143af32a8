"""detkit proposals: make, measure and convert the proposals of a data set."""

import argparse
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from detkit.cli.arguments import whole
from detkit.cli.listing import print_table
from detkit.errors import UserError, late
from detkit.names import LONGEST, fit_name
from detkit.runtime.screen import say

if TYPE_CHECKING:
    from detkit.config import Config
    from detkit.data.dataset import DetectionDataset
    from detkit.data.proposal_store import ProposalStore
    from detkit.evaluation.recall import ProposalRecall

NUMBERS = (10, 30, 100, 300, 1000, 2000)  # of boxes an image, whose recall is shown
IOUS = tuple(step / 20 for step in range(10, 21))  # of the curve
COLUMNS = (0.5, 0.6, 0.7, 0.8, 0.9)  # of the table
LEGEND = "best so many boxes of each image; R@t: recall at IoU t; MABO: mean over classes of the average best overlap"

DESCRIPTION = "Make, measure and convert the regions that R-CNN, SPPnet and Fast R-CNN classify."
EPILOG = """examples:
  detkit proposals make --root data/VOCdevkit/VOC2007 --split trainval --split test --mode fast
  detkit proposals make configs/voc/fast_rcnn.yaml --split train --out proposals/train.npz
  detkit proposals make --checkpoint runs/faster_rcnn-1/best.pt --split test --count 300
  detkit proposals recall proposals/test.npz --dataset data/VOCdevkit/VOC2007 --split test
  detkit proposals convert voc_2007_test.mat test.npz --dataset data/VOCdevkit/VOC2007 --split test
  detkit proposals convert proposals/test.npz test.json

With --checkpoint the regions are those of a trained Faster R-CNN, with their scores, of the data set of CONFIG, of
--root, or else of the checkpoint's config. A config names stores in data.proposals. An interrupted `make` goes on
where it was.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="make|recall|convert")

    make = actions.add_parser("make", help="make the proposals of a data set, in several processes, resumable")
    make.add_argument("config", nargs="?", metavar="CONFIG", help="a YAML config, or --root, or --checkpoint")
    make.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the config, or the checkpoint's")
    make.add_argument("--root", metavar="DIR", help="the folder of a data set, in place of a config")
    make.add_argument(
        "--split",
        action="append",
        metavar="SPLIT",
        help="train (default), val or test of the config; SPLIT or SUBFOLDER/SPLIT of --root, repeatable",
    )
    make.add_argument("--method", help="selective_search (default), or rpn, which --checkpoint means")
    make.add_argument("--mode", help="of selective search: single, fast or quality (default: fast)")
    make.add_argument(
        "--max-side",
        type=whole(1),
        metavar="N",
        help="of selective search: larger images are searched in a copy whose longer side has N pixels, as `detect` "
        "does with 500 (default: as they are, as for the published boxes of VOC)",
    )
    make.add_argument("--checkpoint", metavar="FILE", help="of a Faster R-CNN, whose proposals to store")
    make.add_argument(
        "--count",
        type=whole(),
        metavar="N",
        help="with --checkpoint: at most so many an image (default: its test_post_nms_top_n)",
    )
    make.add_argument("--out", metavar="FILE.npz", help="default: proposals/DATASET-METHOD[-MODE].npz")
    make.add_argument(
        "--workers", type=whole(), metavar="N", help="processes (default: one a core, or the checkpoint's)"
    )

    recall = actions.add_parser("recall", help="recall against IoU and number of boxes, and MABO")
    recall.add_argument("store", metavar="STORE", help="a .npz of proposals")
    _add_dataset(recall, required=True)
    recall.add_argument("--out", metavar="FILE", help="the image of the curves (default: STORE-recall.png)")

    convert = actions.add_parser("convert", help="published MATLAB boxes or JSON to a store; a store to JSON")
    convert.add_argument("source", metavar="IN", help=".mat, .json or .npz")
    convert.add_argument("out", metavar="OUT", help=".npz, or .json for a store")
    _add_dataset(convert, required=False)


def _add_dataset(action: argparse.ArgumentParser, required: bool) -> None:
    use = "" if required else ", to check names and sizes"
    action.add_argument("--dataset", required=required, metavar="ROOT", help=f"the folder of a data set{use}")
    action.add_argument("--split", action="append", metavar="SPLIT", help="SPLIT or SUBFOLDER/SPLIT (default: test)")


def run(arguments: argparse.Namespace) -> None:
    """Make, measure or convert."""
    {"make": _make, "recall": _recall, "convert": _convert}[arguments.action](arguments)


def _make(arguments: argparse.Namespace) -> None:
    if arguments.config is not None and "=" in arguments.config:  # an override in the place of a config
        arguments.config, arguments.overrides = None, [arguments.config, *arguments.overrides]
    if arguments.workers is not None and arguments.workers < 1:
        raise UserError(f"--workers {arguments.workers}: at least one process")
    if arguments.root is not None and arguments.config is not None:
        raise UserError(f"either a config or --root, not both: {arguments.config} and {arguments.root}")
    if arguments.checkpoint is not None or arguments.method == "rpn":
        store = _make_by_rpn(arguments)
    else:
        store = _make_by_search(arguments)
    boxes = int(store.counts.sum())
    say(f"{store.path}: {boxes} boxes of {len(store)} images, {boxes / len(store):.0f} each; {store.manifest.recipe}")


def _make_by_search(arguments: argparse.Namespace) -> "ProposalStore":
    from detkit.experiment import load_config
    from detkit.proposals.make import make_store
    from detkit.runtime.progress import Progress

    if arguments.count is not None:
        raise UserError(f"--count {arguments.count} goes with --checkpoint")
    if arguments.config is None and arguments.overrides:
        raise UserError(f"{arguments.overrides[0]!r} changes a config, and there is none")
    if arguments.root is None and arguments.config is None:
        raise UserError("which data set? an example: detkit proposals make --root data/mine --split train")
    config = load_config(arguments.config, arguments.overrides) if arguments.config is not None else None
    dataset = _dataset_to_make(arguments, config)
    method, mode = arguments.method or "selective_search", arguments.mode or "fast"
    out, workers = _out(arguments, dataset, method, mode), arguments.workers or os.cpu_count() or 1
    parameters = {"mode": mode, "seed": 0}
    if arguments.max_side is not None:
        parameters["max_side"] = arguments.max_side
    with Progress(unit="images") as bars:
        show = partial(bars.update, "proposals")
        return make_store(out, dataset, method, parameters, workers=workers, progress=show)


def _make_by_rpn(arguments: argparse.Namespace) -> "ProposalStore":
    from detkit.experiment import load_config
    from detkit.inference.propose import load_proposer, make_rpn_store
    from detkit.runtime.progress import Progress

    if arguments.checkpoint is None:
        raise UserError("--method rpn needs a trained Faster R-CNN: --checkpoint FILE")
    if arguments.method not in (None, "rpn"):
        raise UserError(f"--checkpoint means --method rpn, not {arguments.method}")
    if arguments.mode is not None:
        raise UserError(f"--mode {arguments.mode} is one of selective search; leave it or --checkpoint out")
    if arguments.max_side is not None:
        raise UserError(f"--max-side {arguments.max_side} is of selective search; leave it or --checkpoint out")
    if arguments.count is not None and arguments.count < 1:
        raise UserError(f"--count {arguments.count}: at least one region an image")
    overrides = arguments.overrides if arguments.config is None else []
    detector, config = load_proposer(arguments.checkpoint, overrides, arguments.count)
    if arguments.workers is not None:
        config.train.workers = arguments.workers
    of_images = load_config(arguments.config, arguments.overrides) if arguments.config is not None else config
    dataset = _dataset_to_make(arguments, of_images)
    out = _out(arguments, dataset, "rpn")
    with Progress(unit="images") as bars:
        show = partial(bars.update, "proposals")
        return make_rpn_store(out, dataset, detector, config, arguments.checkpoint, show)


def _out(arguments: argparse.Namespace, dataset: "DetectionDataset", *how: str) -> Path:
    name = fit_name("-".join((dataset.name.replace("/", "-"), *how)), LONGEST - 4)
    return Path(arguments.out) if arguments.out is not None else Path("proposals") / f"{name}.npz"


def _dataset_to_make(arguments: argparse.Namespace, config: "Config | None") -> "DetectionDataset":
    """Return the images of --root, or else of a split of the config."""
    if config is None or arguments.root is not None:
        if not arguments.split:
            raise UserError(f"which images of {arguments.root}? an example: --split trainval")
        return _open(arguments.root, arguments.split)
    from detkit.data.opening import open_dataset

    splits = arguments.split or ["train"]
    if len(splits) > 1:
        raise UserError(f"--split {' --split '.join(splits)}: of a config, one at a time")
    return open_dataset(config.data, splits[0])


def _open(root: str, splits: list[str]) -> "DetectionDataset":
    from detkit.data.formats import open_root

    return open_root(root, splits)


def _convert(arguments: argparse.Namespace) -> None:
    from detkit.data.proposal_store import check_store, open_store
    from detkit.proposals.convert import to_store, write_json

    if arguments.split and arguments.dataset is None:
        raise UserError(f"--split {arguments.split[0]} goes with --dataset ROOT")
    source, out = Path(arguments.source), Path(arguments.out)
    dataset = _open(arguments.dataset, arguments.split or ["test"]) if arguments.dataset is not None else None
    if source.suffix == ".npz":
        if out.suffix != ".json":
            raise UserError(f"{out}: a store becomes a .json file")
        store = open_store(source)
        if dataset is not None:
            check_store(store, dataset)
        write_json(out, store)
    else:
        to_store(source, out, dataset)
        store = open_store(out)
    say(f"{out}: {int(store.counts.sum())} boxes of {len(store)} images")


def _recall(arguments: argparse.Namespace) -> None:
    import torch

    from detkit.data.proposal_store import StoredProposals, open_store
    from detkit.evaluation.recall import proposal_recall
    from detkit.viz import recall_plot

    path = Path(arguments.store)
    store = open_store(path)
    dataset = _open(arguments.dataset, arguments.split or ["test"])
    stored = StoredProposals([store], dataset)
    truth = dataset.truth()
    if bool(truth.ignore.all()):
        raise UserError(f"{dataset.name} has no objects to find")
    boxes = [torch.from_numpy(stored.boxes(i)) for i in range(len(dataset))]
    max_boxes = max(map(len, boxes))
    numbers = [number for number in NUMBERS if number < max_boxes]
    result = proposal_recall(boxes, truth, [*numbers, None], IOUS)
    what = f"{store.manifest.recipe} on {dataset.name}: {len(dataset)} images, {int(result.objects.sum())} objects"
    _print(result)
    say(f"{path}: {what}, difficult ones left out", LEGEND)
    out = Path(arguments.out) if arguments.out is not None else path.with_name(f"{path.stem}-recall.png")
    with late() as attempt, attempt(str(out)):
        recall_plot(result, out, what)
        say(f"curves: {out}")


def _print(result: "ProposalRecall") -> None:
    shown = [index for index, iou in enumerate(result.ious) if iou in COLUMNS]
    rows = []
    for number, boxes, mabo, recall in zip(
        result.numbers, result.boxes.tolist(), result.mabo.tolist(), result.recall.tolist()
    ):
        name = "all" if number is None else str(number)
        rows.append((name, f"{boxes:.1f}", f"{mabo:.4f}", *(f"{recall[index]:.4f}" for index in shown)))
    print_table(("best", "boxes", "MABO", *(f"R@{result.ious[index]:g}" for index in shown)), rows, texts=0)
