"""A training session: config, folder, data, detector, stages, and the test at the end."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from detkit.checkpoints import checkpoint
from detkit.config import Config, DataConfig, TrainConfig
from detkit.data.dataset import DetectionDataset, notes_on
from detkit.data.given import GivenDataset, as_dataset
from detkit.data.loader import open_proposals
from detkit.data.opening import open_dataset, split_names
from detkit.engine.callbacks import Callback, Callbacks
from detkit.engine.finish import finish
from detkit.engine.folder import check_folder, create_folder, held
from detkit.engine.live import LivePage
from detkit.engine.loggers import LOGGERS
from detkit.engine.resume import changes, check_iterations, read_last, resumed_config
from detkit.engine.stage_context import StageContext
from detkit.engine.train import step_seed
from detkit.errors import UserError
from detkit.experiment import read_config
from detkit.models import MODELS, Detector, Stage, build_detector
from detkit.runtime import distributed
from detkit.runtime.device import choose_device
from detkit.runtime.progress import Progress

GIVEN = ["data.format=given", 'data.root=""']  # what a config says of data sets that are given
FREE = {"frozen": "false", "freeze_stages": "0"}  # keys that freeze layers, and at which value they do not


def train(
    config: str | Config | None,
    overrides: list[str],
    out: str | None = None,
    resume: str | None = None,
    *,
    given: Mapping[str, Any] | None = None,
    callbacks: Sequence[Callback] = (),
) -> Path:
    """Train by a config or the file of one, or go on in the folder `resume`; return the run's folder.

    given: data sets for `train`, and perhaps `val` and `test`, in place of those that the config names.
    Whatever the user may have got wrong is found before the folder is made. Raises Stopped, see `fit`.
    """
    folder = None if resume is None else Path(resume)
    overrides = [*overrides, *(GIVEN if given else ())]
    settings = read_config(config, overrides) if folder is None else resumed_config(folder, config, overrides)
    device = choose_device(settings.train.device)
    distributed.start(device)
    with ExitStack() as stack:
        stack.callback(distributed.finish)
        stack.enter_context(distributed.peers())
        if folder is None:
            check_folder(out)
        else:
            distributed.on_main(lambda folder=folder: stack.enter_context(held(folder)))
        resumed = None if folder is None else read_last(folder)
        with distributed.main_first():  # it may make the data set, or index it
            classes = None if resumed is None else tuple(resumed["classes"])
            open_splits = open_named if given is None else partial(open_given, given)
            data, val, test = open_splits(settings.data, classes)
            datasets = [split for split in (data, val, test) if split is not None]
            check_proposals(settings, datasets)
            check_masks(settings, datasets)
        check_objects(data, settings.data.difficult)
        check_patience(settings.train, val)
        state = run_state(data, val)
        changed = [] if resumed is None or folder is None else changes(folder / "last.pt", resumed, settings, state)
        torch.manual_seed(settings.train.seed)  # the weights of new layers
        detector = build_detector(settings.model, data.classes)
        if resumed is None and settings.train.weights is not None:
            with distributed.main_first():  # it may have to be fetched
                checkpoint.start_from(detector, settings.train.weights)
        elif resumed is None:
            check_frozen(detector, settings.model)
        stages = detector.stages()
        check_batch(settings.train, stages)
        if isinstance(data, GivenDataset):
            check_given(settings, stages)
        hearing = listeners(settings, callbacks)
        if folder is None:
            name = Path(config).stem if isinstance(config, str) else settings.model.name
            folder = distributed.on_main(lambda: create_folder(out, name))
            distributed.on_main(lambda: stack.enter_context(begin_anew(folder, out)))
        run = StageContext(settings, folder, device, data, val, test, state, changed, resumed)
        for note in notes_on(datasets):
            run.say(f"note: {note}")
        steps = run.recipe.iterations * sum(stage.iterations_factor for stage in stages)
        run.callbacks = Callbacks(hearing if run.writes else (), folder, settings, steps)
        with run.callbacks.until_the_end():
            run_stages(detector, run)
            finish(run)
        return folder


def open_named(
    data: DataConfig, classes: Sequence[str] | None
) -> tuple[DetectionDataset, DetectionDataset | None, DetectionDataset | None]:
    """Open what a config names for training, validation and test."""
    train = open_dataset(data, "train", classes)
    val, test = (open_dataset(data, use, train.classes) if split_names(data, use) else None for use in ("val", "test"))
    return train, val, test


def open_given(
    given: Mapping[str, Any], data: DataConfig, classes: Sequence[str] | None
) -> tuple[DetectionDataset, DetectionDataset | None, DetectionDataset | None]:
    """Check the data sets that are given for training, validation and test."""
    quiet = Console(stderr=True, highlight=False, quiet=distributed.rank() > 0)
    with Progress(quiet, unit="images", transient=True) as bars:

        def checked(use: str, names: Sequence[str] | None) -> DetectionDataset:
            return as_dataset(given[use], use, names, partial(bars.update, f"{use}: each image is read once"))

        train = checked("train", data.classes if classes is None else classes)
        val, test = (None if given.get(use) is None else checked(use, train.classes) for use in ("val", "test"))
        return train, val, test


def check_given(settings: Config, stages: Sequence[Stage]) -> None:
    """Raise UserError where a data set of a user's own, whose images may be others each time, cannot serve."""
    if settings.data.cache:
        raise UserError("data.cache: a data set that is given may change its images; cache in it, or leave this away")
    if MODELS.get(settings.model.name).takes_proposals or any(getattr(one, "store", None) for one in stages):
        raise UserError(
            f"{settings.model.name} stores regions of images, and needs these in files: see docs/own_data.md"
        )


def listeners(settings: Config, callbacks: Sequence[Callback]) -> list[Callback]:
    """Return all that hear of a run: the page of live curves, the config's loggers, the user's own."""
    for one in callbacks:
        if not isinstance(one, Callback):
            raise UserError(f"callbacks: {one!r} is no detkit.Callback")
    if distributed.rank():
        return []
    return [LivePage(), *(LOGGERS[name]() for name in settings.train.loggers), *callbacks]


def run_stages(detector: Detector, run: StageContext) -> None:
    """Run the detector's stages; a resumed run begins with the stage that last.pt was saved in, if it isn't done."""
    stages = detector.stages()
    first = 0 if run.resumed is None else find_stage(detector, run, run.resumed)
    for number, stage in enumerate(stages[first:], first):
        run.stage = stage.name
        # what a stage draws as it begins is a function of its place alone, wherever a run was interrupted
        torch.manual_seed(step_seed(run.config.train.seed, run.before, number))
        detector.begin_stage(stage.name)
        run.waited = 0
        stage.run(detector, run)
        run.before += run.recipe.iterations * stage.iterations_factor


def find_stage(detector: Detector, run: StageContext, content: dict[str, Any]) -> int:
    """Return the number of the stage that a resumed run begins with, from the `content` of last.pt; say what is new."""
    stages, training = detector.stages(), content["training"]
    names = [stage.name for stage in stages]
    if training["stage"] not in names:
        raise UserError(f"{run.last}: saved in stage {training['stage']!r}; this model has {', '.join(names)}")
    first = names.index(training["stage"])
    recipe, stage = run.recipe, stages[first]
    check_iterations(run.last, content, recipe.iterations, stages[: first + 1])
    for line in run.changed:
        run.say(f"changed: {line}")
    run.before = recipe.iterations * sum(stage.iterations_factor for stage in stages[:first])
    if training.get("finished"):
        run.restore(detector)
    stalled = 0 < recipe.patience <= training.get("waited", 0)
    done = training.get("iteration") == recipe.iterations * stage.iterations_factor
    if stage is stages[-1] and (training.get("finished") or done or stalled):
        alone = not run.before and "iteration" in training
        more = f"train.iterations={2 * recipe.iterations}" if alone else f"a new run with train.weights={run.last}"
        more = "train.patience=0" if stalled and not done else more
        run.say(f"{run.folder} is finished, only its test is done again; to train on: {more}")
    return first + bool(training.get("finished"))


def run_state(train: DetectionDataset, val: DetectionDataset | None) -> dict[str, Any]:
    """Return what last.pt has of a run beside its stage, and a resume compares."""
    data = {"train": train.fingerprint(), "val": None if val is None else val.fingerprint()}
    return {"data": data, "processes": distributed.world_size()}


@contextmanager
def begin_anew(folder: Path, out: str | None) -> Iterator[None]:
    """Hold a new run's folder, without the config of one that was killed as it began."""
    with held(folder):
        check_folder(out)  # once more: another process may have been quicker
        (folder / "config.yaml").unlink(missing_ok=True)
        yield


def check_objects(dataset: DetectionDataset, use_difficult: bool) -> None:
    """Raise UserError where there is nothing to train on."""
    if dataset.truth(use_difficult).ignore.all():
        what = "crowds, boxes without area" + ("" if use_difficult else ", difficult ones: data.difficult=false")
        raise UserError(f"{dataset.name}: no object to train on in {len(dataset)} images ({what} are not counted)")


def check_patience(recipe: TrainConfig, val: DetectionDataset | None) -> None:
    """Raise UserError where training could end early, and nothing says when."""
    if recipe.patience and (val is None or not recipe.evaluate_every):
        missing = "there is no val split" if val is None else "train.evaluate_every is 0"
        raise UserError(f"train.patience: {recipe.patience} evaluations, but {missing}; patience=0 trains to the end")


def check_frozen(detector: Detector, model: Any) -> None:
    """Raise UserError where layers of the backbone are random, and stay so."""
    backbone = getattr(model, "backbone", None)
    if backbone is None or backbone.weights is not None:
        return
    # batch norms that are frozen as they begin do nothing
    frozen = [p for p in detector.backbone.parameters() if p.ndim > 1 and not p.requires_grad]
    if frozen:
        keys = [f"model.{key}={free}" for key, free in FREE.items() if getattr(model, key, False)]
        raise UserError(
            f"model.backbone.weights: null, but layers of {backbone.name} are frozen and would stay random; "
            f"name weights, or train all layers: {' '.join(keys)}"
        )


def check_proposals(settings: Config, datasets: list[DetectionDataset]) -> None:
    """Raise UserError where the detector classifies stored proposals and a data set has none."""
    if MODELS.get(settings.model.name).takes_proposals and not settings.data.proposals:
        raise UserError(
            f"data.proposals is empty, but {settings.model.name} classifies given regions; make them with "
            "`detkit proposals make` and name the store, as in data.proposals=[proposals/mine.npz]"
        )
    for dataset in datasets:
        open_proposals(dataset, settings.data)


def check_masks(settings: Config, datasets: list[DetectionDataset]) -> None:
    """Raise UserError where the detector learns masks and a data set has none."""
    if MODELS.get(settings.model.name).takes_masks:
        for dataset in datasets:
            dataset.open_masks()


def check_batch(recipe: TrainConfig, stages: Sequence[Stage]) -> None:
    """Raise UserError where a batch cannot be shared out equally."""
    parts = max(1, *(stage.iterations_factor for stage in stages))
    pieces = distributed.world_size() * recipe.accumulate * parts
    if recipe.batch % pieces:
        what = f"{distributed.world_size()} processes x train.accumulate {recipe.accumulate}"
        what += f" x {parts} steps of a stage" if parts > 1 else ""
        raise UserError(f"train.batch: {recipe.batch} is not a multiple of {pieces} ({what})")
