"""A training session: config, folder, data, detector, stages, and the test at the end."""

from itertools import count
from pathlib import Path
from typing import Any

import torch

from detkit.checkpoints import checkpoint
from detkit.config import Config, TrainConfig
from detkit.data.dataset import DetectionDataset, notes_on
from detkit.data.loader import open_proposals
from detkit.data.opening import open_dataset, split_names
from detkit.engine.finish import finish
from detkit.engine.stage_context import StageContext
from detkit.errors import UserError
from detkit.experiment import load_config, to_plain
from detkit.models import MODELS, Detector, build_detector
from detkit.runtime import distributed
from detkit.runtime.device import choose_device


def train(config: str | None, overrides: list[str], out: str | None = None, resume: str | None = None) -> Path:
    """Train by the config file `config`, or go on in the folder `resume`; return the run's folder.

    Whatever the user may have got wrong is found before the folder is made. Raises Stopped, see `fit`.
    """
    settings = load_config(str(config), overrides) if resume is None else resumed_config(resume, config, overrides)
    device = choose_device(settings.train.device)
    distributed.start(device)
    try:
        check_batch(settings.train)
        if resume is None:
            check_folder(out)
        resumed = None if resume is None else checkpoint.load(Path(resume) / "last.pt")
        with distributed.main_first():  # it may make the data set, or index it
            classes = None if resumed is None else tuple(resumed["classes"])
            data = open_dataset(settings.data, "train", classes)
            val = open_dataset(settings.data, "val", data.classes) if split_names(settings.data, "val") else None
            test = open_dataset(settings.data, "test", data.classes) if split_names(settings.data, "test") else None
            datasets = [split for split in (data, val, test) if split is not None]
            check_proposals(settings, datasets)
        check_objects(data, settings.data.difficult)
        torch.manual_seed(settings.train.seed)  # the weights of new layers
        detector = build_detector(settings.model, data.classes)
        if resumed is None and settings.train.weights is not None:
            with distributed.main_first():  # it may have to be fetched
                checkpoint.start_from(detector, settings.train.weights)
        detector.check(data.truth(settings.data.difficult))
        name = "run" if config is None else Path(config).stem
        folder = Path(resume) if resume is not None else distributed.on_main(lambda: create_folder(out, name))
        run = StageContext(settings, folder, device, data, val, test, resumed)
        for note in notes_on(datasets):
            run.say(f"note: {note}")
        run_stages(detector, run)
        finish(run)
        return folder
    finally:
        distributed.finish()


def run_stages(detector: Detector, run: StageContext) -> None:
    """Run the detector's stages; a resumed run begins with the stage that last.pt was saved in, if it isn't done."""
    stages = detector.stages()
    if run.resumed is not None:
        names = [stage.name for stage in stages]
        name = run.resumed["training"]["stage"]
        if name not in names:
            raise UserError(f"{run.last}: saved in stage {name!r}; this model has {', '.join(names)}")
        first = names.index(name)
        run.before = run.config.train.iterations * sum(stage.iterations_factor for stage in stages[:first])
        if run.resumed["training"].get("finished"):
            run.restore(detector)
            first += 1
        stages = stages[first:]
    for stage in stages:
        run.stage = stage.name
        detector.begin_stage(stage.name)
        stage.run(detector, run)
        run.before += run.config.train.iterations * stage.iterations_factor


def check_folder(out: str | None) -> None:
    """Raise UserError where `out` is not a new or empty folder."""
    if out is not None and Path(out).exists() and (not Path(out).is_dir() or any(Path(out).iterdir())):
        resume = f"; --resume {out} goes on with the run in it" if (Path(out) / "last.pt").exists() else ""
        raise UserError(f"--out {out} exists and is not an empty folder{resume}")


def create_folder(out: str | None, name: str) -> Path:
    """Make the folder of a new run: `out`, or the first of runs/NAME-1, -2, ... that does not exist."""
    numbered = (Path("runs") / f"{name}-{number}" for number in count(1))
    folder = next(folder for folder in numbered if not folder.exists()) if out is None else Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {error.filename}: {error.strerror}") from None
    return folder


def resumed_config(folder: str, config: str | None, overrides: list[str]) -> Config:
    """Read the config of a run to resume; a `config` that is named, too, must say the same."""
    saved = Path(folder) / "config.yaml"
    for path in (saved, Path(folder) / "last.pt"):
        if not path.is_file():
            raise UserError(f"--resume {folder}: there is no {path}; give the folder of an earlier run")
    settings = load_config(saved, overrides)
    if config is not None:
        changed = difference(to_plain(load_config(config, overrides)), to_plain(settings))
        if changed:
            raise UserError(f"{config} is not what {saved} says: {changed}; leave it away to go on with {folder}")
    return settings


def difference(one: Any, other: Any, key: str = "") -> str:
    """Return `key: value, not value` of the first difference between two plain configs, or an empty text."""
    if isinstance(one, dict) and isinstance(other, dict):
        below = (
            difference(one.get(name), other.get(name), f"{key}.{name}".strip(".")) for name in sorted({*one, *other})
        )
        return next(filter(None, below), "")
    return "" if one == other else f"{key}: {one!r}, not {other!r}"


def check_objects(dataset: DetectionDataset, use_difficult: bool) -> None:
    """Raise UserError where there is nothing to train on."""
    if dataset.truth(use_difficult).ignore.all():
        what = "crowds, boxes without area" + ("" if use_difficult else ", difficult ones: data.difficult=false")
        raise UserError(f"{dataset.name}: no object to train on in {len(dataset)} images ({what} are not counted)")


def check_proposals(settings: Config, datasets: list[DetectionDataset]) -> None:
    """Raise UserError where the detector classifies stored proposals and a data set has none."""
    if MODELS.get(settings.model.name).takes_proposals and not settings.data.proposals:
        raise UserError(
            f"data.proposals is empty, but {settings.model.name} classifies given regions; make them with "
            "`detkit proposals make` and name the store, as in data.proposals=[proposals/mine.npz]"
        )
    for dataset in datasets:
        open_proposals(dataset, settings.data)


def check_batch(recipe: TrainConfig) -> None:
    """Raise UserError where a batch cannot be shared out equally."""
    pieces = distributed.world_size() * recipe.accumulate
    if recipe.batch % pieces:
        raise UserError(
            f"train.batch: {recipe.batch} is not a multiple of {pieces} "
            f"({distributed.world_size()} processes x train.accumulate {recipe.accumulate})"
        )
