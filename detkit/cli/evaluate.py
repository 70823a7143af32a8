"""detkit evaluate: mAP of a checkpoint, or of stored detections."""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from detkit.cli.arguments import add_backend, backend_overrides
from detkit.cli.explain import explain_image
from detkit.errors import Attempt, UserError, did_you_mean, late
from detkit.files import write_atomic, write_file
from detkit.runtime.screen import say

if TYPE_CHECKING:
    from collections.abc import Callable

    from detkit.data.dataset import DetectionDataset
    from detkit.evaluation import COCOResult, Result
    from detkit.structures import DetectionSet, TruthSet
Set = TypeVar("Set", "DetectionSet", "TruthSet")

DESCRIPTION = "Average precision of every class. With --out, DIR then holds metrics.json, detections.json and pr/*.png."
EPILOG = """examples:
  detkit evaluate runs/shapes-1/best.pt
  detkit evaluate runs/voc/best.pt --metric voc --out runs/voc/test evaluate.batch=32 train.device=cuda
  detkit evaluate voc data.root=data/VOCdevkit/VOC2007
  detkit evaluate torchvision/ssd300_vgg16 data.root=data/coco
  detkit evaluate --detections runs/voc/test/detections.json --dataset data/VOCdevkit/VOC2007
  detkit evaluate --detections results/ --dataset data/VOCdevkit/VOC2007 --classes cat,dog
  detkit evaluate --detections coco_results.json --dataset data/coco --split val2017 --report --out rescored

The last three need no network and no images: annotations are enough. A folder holds the development kit's
comp4_det_<split>_<class>.txt; a JSON file detkit's detections.json, or COCO's results, a list of image_id, category_id,
bbox, score, whose ids are those of the data set, or of coco_images.json beside it.

metrics: voc07 is VOC2007's 11-point AP, voc the area under the curve of VOC2010 and later; both at IoU >= 0.5, without
difficult objects. coco is COCO's AP, the mean over IoU 0.50 to 0.95, which stands as mAP in metrics.json beside its
other numbers; VOC's difficult objects then are crowds, and pr/*.png is at IoU 0.5.

exit status: 0; 1 where numbers and detections are written, but a plot or the report is not, or --reference has other
numbers; 2 after an error.
"""

METRICS = ("voc07", "voc", "coco")


class Scored(NamedTuple):
    """What is reported. protocol: split, dataset, and checkpoint or detections, as metrics.json has them."""

    result: "Result"
    detections: "DetectionSet"
    truth: "TruthSet"
    dataset: "DetectionDataset"
    protocol: dict[str, str]
    seconds: float
    explain: "Callable[[Path, int, float], None] | None" = None
    masks: "COCOResult | None" = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint",
        nargs="?",
        help="best.pt or last.pt of a run, MODEL.onnx of detkit export, voc, or torchvision/NAME",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the checkpoint's config")
    parser.add_argument("--detections", metavar="DIR_OR_JSON", type=Path, help="score these instead of a checkpoint")
    parser.add_argument("--dataset", metavar="ROOT", help="with --detections: a data set (VOC, COCO or YOLO)")
    parser.add_argument(
        "--classes", metavar="NAME,NAME", help="with --detections: score these classes alone (default: all)"
    )
    parser.add_argument(
        "--split",
        default="test",
        help="of a checkpoint's config: train, val or test; with --detections: a split of the data set, or "
        "SUBFOLDER/SPLIT (default %(default)s)",
    )
    parser.add_argument(
        "--metric",
        help="voc07, voc or coco (default: the config's; with --detections voc07, coco for COCO's results on a "
        "COCO data set)",
    )
    add_backend(parser)
    parser.add_argument(
        "--reference",
        action="store_true",
        help="with metric coco: show pycocotools' numbers beside; exit status 1 where one differs by more than 1e-6",
    )
    parser.add_argument(
        "--report",
        action="store_true",
        help="write report.html, what went wrong with every detection and object and the worst images, and "
        "errors.json; of a checkpoint also explained/*.html, how it came to the worst error of each kind",
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        help="folder to write to (default: the table is all; with --report runs/evaluate-NAME-SPLIT)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Score, show the table, write the files; return 1 where the reference has other numbers."""
    metric = arguments.metric
    source = arguments.detections or arguments.checkpoint
    if arguments.report and arguments.out is None and source is not None:
        arguments.out = _default_out(Path(source), arguments.split)
    if metric not in (None, *METRICS):
        raise UserError(f"--metric {metric!r} is not one of {', '.join(METRICS)}{did_you_mean(metric, METRICS)}")
    if arguments.out is not None and arguments.out.exists() and not arguments.out.is_dir():
        raise UserError(f"--out {arguments.out} is a file; name a folder")
    if arguments.detections is not None:
        scored = _score_detections(arguments)
    elif arguments.checkpoint is not None:
        scored = _score_checkpoint(arguments)
    else:
        raise UserError("what to evaluate? a checkpoint, or --detections DIR_OR_JSON --dataset ROOT")
    with late() as attempt:
        _report(arguments, scored, attempt)
        return _compare(scored) if arguments.reference else 0


def _default_out(source: Path, split: str) -> Path:
    """The folder that a report is written to where none is named: of the run's name for best.pt and last.pt."""
    run = source.absolute().parent.name if source.name in ("best.pt", "last.pt") else source.stem
    return Path("runs") / f"evaluate-{run}-{Path(split).stem}"


def _score_detections(arguments: argparse.Namespace) -> Scored:
    """Score stored detections against annotations."""
    if arguments.checkpoint is not None:
        raise UserError(f"--detections takes no checkpoint and no key=value: leave {arguments.checkpoint!r} out")
    if arguments.backend is not None or arguments.compile:
        raise UserError(f"--detections runs no network: leave --{'compile' if arguments.compile else 'backend'} out")
    if arguments.dataset is None:
        raise UserError("--detections needs --dataset ROOT, the folder of a data set")
    path: Path = arguments.detections
    from detkit.data.coco import COCODataset
    from detkit.data.formats import open_root
    from detkit.evaluation import coco_ap, read_comp4, read_results, score

    start = time.perf_counter()
    dataset = open_root(arguments.dataset, [arguments.split])
    truth = dataset.truth()
    content = None if path.is_dir() else read_results(path)
    cocos = isinstance(content, list) and isinstance(dataset, COCODataset)
    metric = arguments.metric or ("coco" if cocos else "voc07")
    _check_reference(arguments, metric)
    chosen = None
    if arguments.classes is not None:
        chosen = tuple(dict.fromkeys(name.strip() for name in arguments.classes.split(",")))
        for name in chosen:
            if name not in truth.classes:
                hint = did_you_mean(name, truth.classes)
                raise UserError(f"--classes: {arguments.dataset} has no class {name!r}{hint}")
    if path.is_dir():
        detections = read_comp4(path, arguments.split.rpartition("/")[2], classes=chosen, ids=truth.ids)
    else:
        detections = _read(path, content, dataset)
    # a class that nobody looked for would count as 0 in the mean: that has to be said, not done
    for name in chosen or [truth.classes[label] for label in truth.labels.unique().tolist()]:
        if name not in detections.classes:
            hint = did_you_mean(name, detections.classes)
            raise UserError(f"{path} has no detections of class {name!r}{hint}; --classes scores some classes alone")
    classes = chosen or detections.classes
    detections = _only(detections, classes)
    masked = detections.masks is not None
    ranked = _only(dataset.ranked_truth(masks=masked), classes)
    result = score(detections, ranked, metric)
    masks = coco_ap(detections, ranked, masks=True) if masked else None
    protocol = {"split": arguments.split, "dataset": dataset.name, "detections": str(path)}
    return Scored(
        result, detections, _only(truth, classes), dataset, protocol, time.perf_counter() - start, masks=masks
    )


def _read(path: Path, content: object, dataset: "DetectionDataset") -> "DetectionSet":
    """Return the detections of a JSON file that holds `content`, detkit's or COCO's results."""
    from detkit.data.result_ids import result_ids
    from detkit.evaluation import name_coco_results, parse_coco_results, parse_detections

    if not isinstance(content, list):
        return parse_detections(path, content)
    results = parse_coco_results(path, content)
    known = result_ids(dataset, path, {*results.category_ids})
    keys = {"ids": dataset.ids, "classes": known.classes, "origin": known.origin}
    detections = name_coco_results(results, known.images, known.categories, **keys)
    if known.note:
        say(known.note)
    return detections


def _score_checkpoint(arguments: argparse.Namespace) -> Scored:
    """Run a detector over a split of its config's data set."""
    for name in ("dataset", "classes"):
        if getattr(arguments, name) is not None:
            hint = "; a checkpoint's data set changes with data.root=ROOT" if name == "dataset" else ""
            raise UserError(f"--{name} goes with --detections{hint}")

    from detkit.data.image_truth import truth_of
    from detkit.data.opening import open_dataset
    from detkit.inference.backends import open_detector
    from detkit.inference.evaluate import evaluate

    overrides = [*arguments.overrides, *backend_overrides(arguments)]
    detector, config = open_detector(arguments.checkpoint, backend=arguments.backend, overrides=overrides)
    config.evaluate.metric = arguments.metric or config.evaluate.metric
    _check_reference(arguments, config.evaluate.metric)
    dataset = open_dataset(config.data, arguments.split, detector.classes)
    evaluation = evaluate(detector, dataset, config)
    protocol = {"split": arguments.split, "dataset": dataset.name, "checkpoint": arguments.checkpoint}
    if detector.backend != "torch":
        protocol["backend"] = detector.backend

    def explain(path: Path, index: int, score: float) -> None:
        truth = truth_of(dataset, index, detector.classes, detector.takes_masks)
        name = dataset.path(index).name
        page, *_ = explain_image(detector, config, dataset.image(index), truth, score, name, arguments.checkpoint)
        write_file(path, page)

    explains = explain if detector.backend == "torch" else None  # the others show nothing of what is between
    scored = evaluation.result, evaluation.detections, dataset.truth()
    return Scored(*scored, dataset, protocol, evaluation.seconds, explains, evaluation.masks)


def _check_reference(arguments: argparse.Namespace, metric: str) -> None:
    if arguments.reference and metric != "coco":
        raise UserError(f"--reference goes with --metric coco, which pycocotools computes; the metric here is {metric}")


def _only(objects: Set, classes: tuple[str, ...]) -> Set:
    """Keep the objects of `classes`, labelled in their order."""
    import torch

    label_of = {name: label for label, name in enumerate(classes)}
    table = torch.tensor([label_of.get(name, -1) for name in objects.classes], dtype=torch.int64)
    labels = table[objects.labels]
    keep = labels >= 0
    return replace(objects.part(keep), labels=labels[keep], classes=classes)


def _compare(scored: Scored) -> int:
    """Print COCO's numbers beside those of pycocotools; return 1 where one is not the same to 1e-6."""
    import math

    from rich.console import Console

    from detkit.evaluation import COCOResult, pycocotools_summary, reference_table

    assert isinstance(scored.result, COCOResult), "_check_reference comes first"
    truth = _only(scored.dataset.ranked_truth(), scored.truth.classes)
    summary, reference = scored.result.summary, pycocotools_summary(scored.detections, truth)
    console = Console(highlight=False)
    console.print(reference_table(summary, reference, "pycocotools"))
    pairs = [(value, reference[name]) for name, value in summary.items()]
    wrong = sum(math.isnan(ours) != math.isnan(theirs) or abs(ours - theirs) > 1e-6 for ours, theirs in pairs)
    console.print(f"{wrong} of {len(pairs)} numbers differ by more than 1e-6")
    return 1 if wrong else 0


def _report(arguments: argparse.Namespace, scored: Scored, attempt: Attempt) -> None:
    """Print the table; write metrics.json, detections.json and pr/*.png into --out, and what --report asks for."""
    from rich.console import Console

    from detkit.evaluation import per_class_table, write_detections

    result, protocol = scored.result, scored.protocol
    source = protocol.get("checkpoint") or protocol["detections"]
    if "backend" in protocol:
        source += f", run by {protocol['backend']}"
    out: Path | None = arguments.out
    try:
        if out is not None:
            masks = {} if scored.masks is None else {"masks": scored.masks.to_dict()}
            metrics = {**result.to_dict(), **masks, **protocol, "seconds": round(scored.seconds, 3)}
            write_atomic(out / "metrics.json", json.dumps(metrics, indent=1, ensure_ascii=False) + "\n")
            write_detections(out / "detections.json", scored.detections)
    finally:  # a full disk costs the files, and not what the screen shows
        table = per_class_table(result, split=protocol["dataset"], source=source, masks=scored.masks)
        Console(highlight=False).print(table)
    if out is None:
        return
    from detkit.viz import pr_plots

    with attempt("pr/*.png"):
        pr_plots(result.curves, out / "pr")
    say(f"written to {out}: metrics.json, detections.json, pr/")
    if arguments.report:
        with attempt("report.html"):
            _write_report(out, scored, attempt)


def _write_report(out: Path, scored: Scored, attempt: Attempt) -> None:
    """Write report.html and errors.json into `out`; with the losses of the checkpoint's run, where they are, and with
    pages that explain the worst errors of a checkpoint."""
    from detkit.engine.log import read_log
    from detkit.evaluation.errors import KINDS
    from detkit.report import write_report
    from detkit.runtime.progress import Progress

    start = time.perf_counter()
    result, detections, truth, dataset, protocol, _, explain_one, _ = scored
    checkpoint = Path(protocol.get("checkpoint", ""))
    records = read_log(checkpoint.parent / "log.jsonl") if checkpoint.is_file() else []

    def explain(path: Path, index: int, score: float) -> bool:
        assert explain_one is not None
        name = str(path.relative_to(out))
        tried.append(name)
        bars.move("worst of each kind explained", len(tried), len(KINDS))
        with attempt(name):
            explain_one(path, index, score)
            return True
        return False

    tried: list[str] = []
    given = {"protocol": protocol, "records": records, "explain": None if explain_one is None else explain}
    with Progress(transient=True) as bars:
        path = write_report(out, result, detections, truth, dataset, **given)
    say(f"written to {path}, errors.json beside, in {time.perf_counter() - start:.1f} s")
