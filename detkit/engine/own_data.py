"""`train --data FOLDER`: a folder of images and objects is looked at, split, trained on and tested.

What is chosen here becomes an ordinary config, which the run's folder has as that of every other run.
"""

import os
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from detkit.config import Config, DataConfig
from detkit.data.check import check_root
from detkit.data.dataset import EVERYTHING, DetectionDataset, parse_splits
from detkit.data.formats import DATASETS, find_format, open_sources
from detkit.data.opening import open_dataset, split_names
from detkit.data.split import divide
from detkit.data.split_file import USES, SplitFile, write_split_file
from detkit.engine import session
from detkit.engine.callbacks import Callback
from detkit.engine.folder import SPLITS, check_folder, create_folder
from detkit.engine.length import in_steps
from detkit.engine.recipe import Size, choose_recipe
from detkit.errors import UserError, did_you_mean
from detkit.experiment import LENGTHS, load_config, override_texts, to_plain
from detkit.known_configs import known_configs
from detkit.models import MODELS
from detkit.runtime import lock
from detkit.runtime.progress import Progress
from detkit.runtime.screen import say

MODEL = "ssd"
WEIGHTS = "model.backbone.weights"
START = "voc"  # whose backbone training starts from, which knows more than ImageNet's, and need not be downloaded
SHARES = {"train": 0.8, "val": 0.1, "test": 0.1}
SEED = 0  # of the split
FOLDER = "custom/"  # of the configs that are changed
BACKBONE = "mobilenet_v2"  # of the models, whose names leave it out


def own_models() -> dict[str, str]:
    """Return the models that train on a folder, and the config of each."""
    names = [name for name in known_configs() if name.startswith(FOLDER)]
    return {name.removeprefix(FOLDER).removesuffix(f"_{BACKBONE}"): name for name in names}


def train(
    data: str | Path,
    model: str | None = None,
    overrides: Sequence[str] = (),
    out: str | None = None,
    callbacks: Sequence[Callback] = (),
) -> Path:
    """Train on a folder in any layout that detkit reads; return the run's folder.

    model: one of `own_models`, by default MODEL. overrides: `key=value`, of more weight than what is chosen here.
    callbacks: hear of it. A run of the same call that was interrupted goes on. Raises UserError, in one line, for
    whatever is wrong, before a folder is made, and Stopped, see `fit`.
    """
    if "RANK" in os.environ:
        raise UserError("--data is for one process; begin so, stop it, and go on with torchrun and --resume DIR")
    models, model = own_models(), model or MODEL
    if model not in models:
        raise UserError(f"no model {model!r} for one's own images{did_you_mean(model, models)}")
    root = Path(data)
    asked = _config(models[model], root, {}, overrides)
    stores = [Path(store).is_file() for store in asked.data.proposals] or [False]
    if MODELS.get(asked.model.name).takes_proposals and not all(stores):
        raise UserError(
            f"{model} classifies regions that are made before, as the first lines of `detkit configs {models[model]}` "
            f"say; then: detkit train {models[model]} data.root={root}"
        )
    name = f"{root.resolve().name}-{model}"
    folder = _unfinished(models[model], asked, overrides, out, name)
    if folder is not None:
        say(f"{folder}: a run of this command was interrupted, and goes on")
        session.train(None, [*overrides], None, str(folder), callbacks=callbacks)
    else:
        check_folder(out)
        folder = _begin(root, models[model], asked, overrides, out, name, callbacks)
    say(f"next: detkit detect {shlex.quote(str(folder / 'best.pt'))} IMAGE --score best")
    return folder


def _config(name: str, root: Path, keys: dict[str, Any], overrides: Sequence[str]) -> Config:
    splits = dict.fromkeys(f"data.{use}" for use in USES)  # which some configs name
    texts = override_texts({"data.root": root, **splits, **keys})
    config = load_config(name, [*texts, *overrides])
    backbone = getattr(config.model, "backbone", None)
    given = any(text.startswith(WEIGHTS) for text in overrides)
    if backbone is not None and backbone.name == BACKBONE and backbone.weights == "imagenet" and not given:
        return load_config(name, [*texts, f"{WEIGHTS}={START}", *overrides])
    return config


def _unfinished(name: str, asked: Config, overrides: Sequence[str], out: str | None, run: str) -> Path | None:
    """Return the folder of the latest run of the same command, None where there is none that has not ended."""
    runs = [path for path in Path("runs").glob(f"{run}-*") if path.name.removeprefix(f"{run}-").isdecimal()]
    latest = sorted(runs, key=lambda path: int(path.name.rpartition("-")[2]))[-1:]
    for folder in latest if out is None else [Path(out)]:
        saved, ended = folder / "config.yaml", folder / "plots" / "loss.png"  # it is written after the test
        if not saved.is_file() or ended.exists():
            continue
        config = load_config(saved)
        keys = {"data.split_file": config.data.split_file, "data.test": config.data.test}
        try:
            train_set = open_dataset(config.data, "train")
        except UserError:  # of data that are no longer what they were, or of another command
            continue
        keys |= _recipe(train_set, bool(split_names(config.data, "val")), asked, overrides)
        if to_plain(_config(name, Path(asked.data.root), keys, overrides)) == to_plain(config):
            return folder
    return None


def _recipe(train_set: DetectionDataset, has_val: bool, asked: Config, overrides: Sequence[str]) -> dict[str, Any]:
    has_length = any(text.startswith(tuple(f"train.{key}=" for key in LENGTHS)) for text in overrides)
    return choose_recipe(Size.of(train_set, asked.data.difficult), asked, has_val=has_val, has_length=has_length)


def _begin(
    root: Path,
    name: str,
    asked: Config,
    overrides: Sequence[str],
    out: str | None,
    run: str,
    callbacks: Sequence[Callback],
) -> Path:
    """Look at the data, choose a recipe, train."""
    kind = find_format(root, asked.data.format)
    named = asked.data.split_file is not None or any(getattr(asked.data, use) is not None for use in USES)
    existing = DATASETS[kind].splits(root)
    keys: dict[str, Any] = {}
    shared = None
    if named or len(existing) > 1:
        splits = {use: split_names(asked.data, use) for use in USES}
        if not splits["test"] and splits["val"]:
            splits["test"] = keys["data.test"] = splits["val"]
            say("note: there is no test split: the test at the end is on val, which also chooses the best checkpoint")
        _check(root, list(dict.fromkeys(split for names in splits.values() for split in names)), asked.data, kind)
        data = _config(name, root, keys, overrides).data
        opened = {use: open_dataset(data, use) for use, names in splits.items() if names}
        say(f"{root}: {kind}, " + ", ".join(f"{use} {len(dataset)} images" for use, dataset in opened.items()))
        _warn_of_overlap(opened)
        train_set, has_val = opened["train"], "val" in opened
    else:
        of = existing[0] if existing else EVERYTHING
        _check(root, [of], asked.data, kind)
        shared = _share_out(root, of, asked.data, kind)
        train_set, has_val = open_sources([(root, of)], asked.data.classes, kind, ids=shared.parts["train"]), True
    keys |= _recipe(train_set, has_val, asked, overrides)
    with _folder(out, run) as folder:
        if shared is not None:
            keys["data.split_file"] = folder / SPLITS
            write_split_file(folder / SPLITS, shared)
        config = _config(name, root, keys, overrides)
        _say_recipe(name, config, len(train_set))
        return session.train(config, [], str(folder), callbacks=callbacks)


def _check(root: Path, splits: list[str], data: DataConfig, kind: str) -> None:
    """Say in short what is wrong; UserError where images cannot be read. All else that is fatal, opening finds."""
    sources = parse_splits(root, splits)
    for where in dict.fromkeys(folder for folder, _ in sources):
        of_it = [split for folder, split in sources if folder == where]
        with Progress(transient=True) as bars:
            report = check_root(where, of_it, data.classes, partial(bars.update, "images checked"), kind)
        for note in report.notes:
            say(f"note: {note}")
        if report.unreadable:
            count = len(report.unreadable)
            raise UserError(
                f"{where}: {count} image{'s' * (count > 1)} cannot be read, such as {report.unreadable[0]}; "
                f"detkit dataset check --root {where} names each"
            )
        if report.problems:
            kinds = Counter(problem.kind for problem in report.problems)
            counts = ", ".join(f"{number} {what}" for what, number in kinds.most_common())
            say(f"note: {counts}, such as {report.problems[0]}; detkit dataset check --root {where} names each")


def _share_out(root: Path, of: str, data: DataConfig, kind: str) -> SplitFile:
    """Divide a data set that has no splits, or a single one."""
    (source,) = open_sources([(root, of)], data.classes, kind).opened
    parts, copies = divide(root, source.index, source.paths, source.rows, SHARES, SEED)
    ids = {use: np.asarray(source.index.ids)[rows].tolist() for use, rows in parts.items()}
    counts = ", ".join(f"{use} {len(names)}" for use, names in ids.items())
    what = f"the one split, {of}, of" if of else "no splits:"
    together = f"; {copies} copies, or nearly, stay together" if copies else ""
    say(
        f"{root}: {kind}, {what} {len(source.rows)} images, divided at random, every class alike (seed {SEED}): "
        f"{counts}{together}. The folder stays as it is"
    )
    return SplitFile(of, {use: list(map(str, names)) for use, names in ids.items()})


def _warn_of_overlap(opened: dict[str, DetectionDataset]) -> None:
    paths = {use: {dataset.path(index) for index in range(len(dataset))} for use, dataset in opened.items()}
    for use in ("val", "test"):
        if count := len(paths["train"] & paths.get(use, set())):
            say(f"note: {count} of {len(paths[use])} images of {use} are trained on, too; its figures say little")


def _say_recipe(name: str, config: Config, images: int) -> None:
    recipe = in_steps(config.train, images)
    start = config.train.weights or getattr(getattr(config.model, "backbone", None), "weights", None)
    augment = ", ".join(part if isinstance(part, str) else next(iter(part)) for part in config.data.augment)
    say(
        f"recipe: {name} from {start or 'random weights'}, {recipe.iterations} steps of {recipe.batch} images "
        f"(epochs: {recipe.iterations * recipe.batch / images:.1f}), augmentation: {augment or 'none'}; "
        "config.yaml has it, and key=value changes it"
    )


@contextmanager
def _folder(out: str | None, name: str) -> Iterator[Path]:
    """Make the folder of a new run, which is gone again where training does not begin."""
    existed = out is not None and Path(out).exists()
    folder = create_folder(out, name)
    try:
        yield folder
    finally:
        if {path.name for path in folder.iterdir()} <= {SPLITS, lock.NAME}:
            for path in folder.iterdir():
                path.unlink()
            if not existed:
                folder.rmdir()
