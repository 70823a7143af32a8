"""detkit dataset: fetch, check, show, count, convert and split data sets, and find anchors for them."""

import argparse
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from detkit.cli.arguments import SIDE, whole
from detkit.cli.listing import print_table
from detkit.errors import UserError
from detkit.files import write_image
from detkit.names import shown
from detkit.runtime.screen import say

if TYPE_CHECKING:
    from rich.console import Console

    from detkit.config import Config
    from detkit.data.dataset import DetectionDataset
    from detkit.structures import InputSpec

DESCRIPTION = (
    "Fetch, check, show, count, convert and split data sets in VOC, COCO or YOLO layout, and find anchors for them."
)
EPILOG = """examples:
  detkit dataset fetch voc07
  detkit dataset check --root data/mine
  detkit dataset stats --root data/VOCdevkit --split VOC2007/trainval --split VOC2012/trainval
  detkit dataset show configs/shapes/ssd.yaml --out shapes.jpg
  detkit dataset anchors --root data/mine --split train
  detkit dataset convert data/mine --to yolo --out data/mine_yolo
  detkit dataset split data/mine --train .8 --val .1 --test .1

VOC, COCO and YOLO data sets are told apart by what the folder holds. convert keeps classes, splits, images without
objects, and difficult, crowd and truncated objects; what a format has no place for stands where other tools pass it by
(<crowd> in VOC's XML, keys of COCO's annotations, flags.json beside YOLO's data.yaml).
"""
FORMATS = ("voc", "coco", "yolo")
SUFFIXES = (".jpg", ".jpeg", ".png")  # of what `show` writes
MAX_LISTED = 200  # problems printed one by one; the table counts them all


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(
        dest="action", required=True, metavar="fetch|check|show|stats|anchors|convert|split"
    )

    def add(name: str, text: str) -> argparse.ArgumentParser:
        return actions.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")

    fetch = add("fetch", "download PASCAL VOC, verified and resumable")
    fetch.add_argument("name", choices=("voc07", "voc12"), help="voc07: 0.9 GB, voc12: 2 GB")
    fetch.add_argument("--root", default="data", metavar="DIR", help="it becomes DIR/VOCdevkit/VOC20xx (default: data)")
    fetch.add_argument("--mirror", metavar="URL", help="a folder on another server that holds the official files")

    about = {
        "check": "name each broken box or mask, missing file, unknown class and duplicate; exit status 1 for any",
        "show": "write an image of what the loader feeds the network",
        "stats": "count images, objects and sizes of each class",
        "anchors": "find the shapes that the objects' are most like, by k-means with IoU, as YOLOv2's and v3's anchors",
    }
    for name, text in about.items():
        action = add(name, text)
        action.add_argument("config", nargs="?", metavar="CONFIG", help="a YAML config, or --root")
        action.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the config")
        action.add_argument("--root", metavar="DIR", help="the folder of a data set, in place of a config")
        _add_format(action, "--format")
        if name == "show":
            action.add_argument(
                "--split", help="train (augmented), val or test of the config; a split of --root (default: train)"
            )
            action.add_argument("--out", default="show.jpg", metavar="FILE", help="default: show.jpg")
            action.add_argument("--images", type=whole(), default=16, metavar="N", help="how many (default: 16)")
            action.add_argument("--start", type=whole(), default=0, metavar="N", help="first position of the stream")
            action.add_argument(
                "--size", type=whole(most=SIDE), metavar="PIXELS", help="network input, where no config says it"
            )
        else:
            action.add_argument(
                "--split", action="append", metavar="SPLIT", help="SPLIT or SUBFOLDER/SPLIT of --root; repeatable"
            )

        if name == "anchors":
            action.add_argument("--count", type=whole(), default=5, metavar="N", help="how many (default: 5)")
            text = "side of the input, to which images are stretched (default: 416)"
            action.add_argument("--size", type=whole(most=SIDE), default=416, metavar="PIXELS", help=text)
            text = "side of a cell, whose multiples anchors are (default: 32; with --letterbox 1)"
            action.add_argument("--stride", type=whole(most=SIDE), metavar="PIXELS", help=text)
            text = "images keep their aspect ratio in the input, and anchors are in pixels, as YOLOv3 has them"
            action.add_argument("--letterbox", action="store_true", help=text)

    convert = add("convert", "write a data set in another format")
    convert.add_argument("source", metavar="ROOT", help="the folder of a data set")
    convert.add_argument("--to", required=True, choices=FORMATS)
    convert.add_argument("--out", required=True, metavar="DIR", help="a new folder; it appears when it is complete")
    convert.add_argument("--split", action="append", metavar="SPLIT", help="default: all; repeatable")
    _add_format(convert, "--from")
    convert.add_argument(
        "--images",
        "--photos",  # as it was called first
        dest="images",
        default="link",
        choices=("link", "copy", "symlink"),
        help="link: hard links, or copies where the disk has no such (default: link)",
    )
    convert.add_argument(
        "--outside",
        action="store_true",
        help="bring images along, too, that lie outside of ROOT, or are links to there",
    )

    split = add("split", "divide a data set at random, each class alike, and write the lists")
    split.add_argument("source", metavar="ROOT", help="the folder of a data set")
    for name, share in (("train", 0.8), ("val", 0.1), ("test", 0.1)):
        split.add_argument(
            f"--{name}", type=float, default=share, metavar="SHARE", help=f"default: {share}; 0: no such split"
        )
    split.add_argument("--seed", type=whole(0), default=0, metavar="N", help="default: 0")
    split.add_argument(
        "--from", dest="divide", metavar="SPLIT", help="of COCO: which file to divide, if there are several"
    )
    _add_format(split, "--format")


def _add_format(parser: argparse.ArgumentParser, option: str) -> None:
    text = "voc, coco or yolo (default: by what the folder holds), or one that --import brings"
    parser.add_argument(option, dest="format", default="auto", metavar="FORMAT", help=text)


def run(arguments: argparse.Namespace) -> int | None:
    """Do what was asked; 1 where `check` finds problems."""
    actions = {"fetch": _fetch, "check": _check, "show": _show, "stats": _stats, "anchors": _anchors}
    return {**actions, "convert": _convert, "split": _split}[arguments.action](arguments)


def _fetch(arguments: argparse.Namespace) -> None:
    from detkit.data.fetch import fetch
    from detkit.runtime.progress import Progress

    with Progress(transfer=True) as bars:
        folder = fetch(arguments.name, arguments.root, arguments.mirror, bars.update)
    say(f"{arguments.name} is at {folder}")


def _config(arguments: argparse.Namespace) -> "Config | None":
    """Return the config that was named, or None where --root was."""
    if arguments.config is not None and arguments.root is None:
        from detkit.experiment import load_config

        if arguments.format != "auto":
            raise UserError(f"--format goes with --root; with a config, as in data.format={arguments.format}")
        return load_config(arguments.config, arguments.overrides)
    if arguments.config is not None:
        raise UserError(f"either a config or --root, not both: {arguments.config} and {arguments.root}")
    if arguments.root is None:
        raise UserError(f"which data set? an example: detkit dataset {arguments.action} --root data/mine")
    return None


def _sources(
    arguments: argparse.Namespace, uses: tuple[str, ...] = ("train", "val", "test")
) -> tuple[list[tuple[Path, str]], list[str] | None, str]:
    """Return the (root, split) pairs that were asked for, and class list and format of the config.

    uses: of a config's splits, which of them. A root without splits is looked at as a whole.
    """
    from detkit.data.dataset import EVERYTHING, parse_splits
    from detkit.data.drawn import written_format
    from detkit.data.formats import DATASETS, find_format
    from detkit.data.opening import split_names

    config = _config(arguments)
    if config is not None:
        if arguments.split:
            raise UserError("--split goes with --root; with a config, name splits as data.train=[...] data.test=[...]")
        data = config.data
        splits = dict.fromkeys(name for use in uses for name in split_names(data, use))
        return parse_splits(data.root, list(splits)), data.classes, written_format(data.format)
    splits = arguments.split
    if not splits:
        kind = DATASETS[find_format(arguments.root, arguments.format)]
        splits = kind.splits(Path(arguments.root)) or [EVERYTHING]
    return parse_splits(arguments.root, splits), None, arguments.format


def _check(arguments: argparse.Namespace) -> int:
    from collections import Counter

    from detkit.data.check import check_root
    from detkit.runtime.progress import Progress

    sources, classes, kind = _sources(arguments)
    roots = list(dict.fromkeys(root for root, _ in sources))
    found = 0
    for root in roots:
        splits = [split for where, split in sources if where == root]
        with Progress() as bars:
            report = check_root(root, splits, classes, partial(bars.update, "images"), kind)
        _print_notes(report.notes)
        for problem in report.problems[:MAX_LISTED]:
            say(problem)
        if len(report.problems) > MAX_LISTED:
            say(f"... and {len(report.problems) - MAX_LISTED} more")
        if report.problems:
            counts = sorted(Counter(problem.kind for problem in report.problems).items())
            print_table(("problem", "count"), ((name, str(count)) for name, count in counts), texts=2)
        names = f"splits {', '.join(report.splits)}" if any(report.splits) else "no splits"
        what = f"{report.images} images, {report.objects} objects, {names}"
        say(f"{root}: {what}: {len(report.problems) or 'no'} problem{'s' * (len(report.problems) != 1)}")
        found += len(report.problems)
    return 1 if found else 0


def _stats(arguments: argparse.Namespace) -> None:
    from rich.console import Console

    from detkit.data.dataset import notes_on
    from detkit.data.formats import open_sources

    sources, classes, kind = _sources(arguments)
    console = Console(highlight=False)
    opened = [open_sources([source], classes, kind) for source in sources]
    for dataset in opened:
        _print_stats(console, dataset)
    _print_notes(notes_on(opened))


def _anchors(arguments: argparse.Namespace) -> None:
    """Cluster the shapes of the objects that a detector would learn."""
    import torch

    from detkit.data.formats import open_sources
    from detkit.ops import iou_kmeans

    dataset = open_sources(*_sources(arguments, ("train",)))
    truth = dataset.truth()
    extent, stride = (
        torch.from_numpy(dataset.sizes)[truth.image],
        arguments.stride or (1 if arguments.letterbox else 32),
    )
    if arguments.letterbox:
        extent = extent.amax(1, keepdim=True)
    sides = (truth.boxes[:, 2:] - truth.boxes[:, :2]) / extent
    sides = sides[(sides > 0).all(1) & ~truth.ignore] * arguments.size / stride
    try:
        anchors, mean_iou = iou_kmeans(sides, arguments.count)
    except ValueError as error:
        raise UserError(f"--count {arguments.count}: {dataset.name}: {error}") from None
    say("model.anchors=" + str([[round(side, 4) for side in anchor] for anchor in anchors.tolist()]).replace(" ", ""))
    say(
        f"{dataset.name}: {len(sides)} objects, whose IoU with the most similar of these is {mean_iou:.3f} on average; "
        f"in {'pixels' if stride == 1 else f'cells of {stride} pixels'}, at {arguments.size}x{arguments.size}"
    )


def _print_notes(notes: Iterable[str]) -> None:
    for note in notes:
        print(f"note: {note}")


def _print_stats(console: "Console", dataset: "DetectionDataset") -> None:
    """Print a table of the classes and a line on the images."""
    import numpy as np
    from rich.markup import escape
    from rich.table import Table

    def spread(values: np.ndarray) -> str:
        """Minimum, quartiles and maximum."""
        return " ".join(f"{v:.0f}" for v in np.quantile(values, (0, 0.25, 0.5, 0.75, 1))) if len(values) else ""

    truth = dataset.truth()
    boxes, labels, image = truth.boxes.numpy(), truth.labels.numpy(), truth.image.numpy()
    records = [dataset.record(i).annotations for i in range(len(dataset))]
    flags = {
        name: np.concatenate([getattr(record, name) for record in records])
        for name in ("difficult", "crowd", "truncated")
    }
    size = np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(1))
    table = Table(title=escape(shown(f"{dataset.name}: {len(dataset)} images")), title_justify="left")
    for column in ("class", "images", "objects", *flags, "size: min, quartiles, max"):
        table.add_column(column, justify="left" if column == "class" else "right")
    for label, name in [*enumerate(dataset.classes), (None, "all")]:
        of_class = labels == label if label is not None else np.ones(len(labels), dtype=bool)
        counts = (len(np.unique(image[of_class])), of_class.sum(), *(flag[of_class].sum() for flag in flags.values()))
        table.add_row(
            escape(shown(name)),
            *map(str, counts),
            spread(size[of_class]),
            end_section=label == len(dataset.classes) - 1,
        )
    console.print(table)
    each = np.bincount(image, minlength=len(dataset))
    width, height = dataset.sizes.T
    console.print(
        f"objects per image: {each.mean():.1f} on average, {each.max()} at most, none in {(each == 0).sum()}; "
        f"min, quartiles, max of width: {spread(width)}; of height: {spread(height)}. "
        "Size is the root of a box's area.\n"
    )


def _show(arguments: argparse.Namespace) -> None:
    """Draw the first images of the stream, as batches bring them, with their boxes."""
    from detkit import viz
    from detkit.data import loader
    from detkit.data.formats import open_root
    from detkit.data.opening import open_dataset

    if arguments.images < 1 or arguments.start < 0:
        raise UserError(f"--images {arguments.images} --start {arguments.start}: show at least one image, from 0 on")
    if Path(arguments.out).suffix.lower() not in SUFFIXES:
        raise UserError(f"--out {arguments.out}: an image's name ends with {', '.join(SUFFIXES)}")
    config = _config(arguments)
    split = arguments.split or "train"
    if config is None:
        dataset = open_root(arguments.root, [split], arguments.format)
    else:
        dataset = open_dataset(config.data, split)
    training = config is not None and split == "train"
    spec = _spec(arguments, config, dataset.classes, training)
    start, stop = arguments.start, arguments.start + arguments.images
    if config is not None and training:
        how, recipe = "augmented for training", replace(config.train, workers=0, batch=1, accumulate=1)
        batches = loader.train_loader(dataset, spec, config.data, recipe, start=start, stop=stop)
    else:
        how, batches = "as for testing", islice(loader.test_loader(dataset, spec, batch=1, workers=0), start, stop)
    tiles, titles = [], []
    for images, targets in batches:
        valid = targets.valid[0]
        boxes, labels, ignore = (part[0][valid].numpy() for part in (targets.boxes, targets.labels, targets.ignore))
        image = images.pixels[0].permute(1, 2, 0).contiguous().numpy()
        tiles.append(viz.draw(image, boxes, labels, dataset.classes, ignore=ignore))
        titles.append(images.ids[0])
    if not tiles:
        raise UserError(f"--start {start}: {dataset.name} has only {len(dataset)} images")
    write_image(Path(arguments.out), viz.mosaic(tiles, titles))
    say(f"{arguments.out}: {len(tiles)} images of {dataset.name}, {how}, {spec}")


def _convert(arguments: argparse.Namespace) -> None:
    from detkit.data.convert import convert
    from detkit.runtime.progress import Progress

    with Progress() as bars:
        root, splits, images = arguments.source, arguments.split, arguments.images
        show = partial(bars.update, "images")
        done = convert(root, arguments.out, arguments.to, splits, arguments.format, images, show, arguments.outside)
    _print_notes(done.notes)
    splits = ", ".join(f"{name} {count}" for name, count in done.splits.items())
    say(f"{arguments.out}: {done.images} images ({splits}), {done.objects} objects, {len(done.classes)} classes")


def _split(arguments: argparse.Namespace) -> None:
    from detkit.data.split import split_dataset

    shares = {name: getattr(arguments, name) for name in ("train", "val", "test")}
    counts, copies = split_dataset(arguments.source, shares, arguments.seed, arguments.format, arguments.divide)
    if copies:
        say(f"note: {copies} images are copies of others, or nearly the same; such stay in one split")
    say(f"{arguments.source}: " + ", ".join(f"{name} {count}" for name, count in counts.items()) + " images")


def _spec(
    arguments: argparse.Namespace, config: "Config | None", classes: tuple[str, ...], training: bool
) -> "InputSpec":
    from detkit.structures import InputSpec

    if arguments.size is not None or config is None:
        size = 300 if arguments.size is None else arguments.size
        if size < 1:
            raise UserError(f"--size {size} is not positive")
        return InputSpec((size, size))
    from detkit.models import build_detector

    config.model.backbone.weights = None  # only its input is looked at
    detector = build_detector(config.model, classes)
    return detector.train_input if training else detector.input
