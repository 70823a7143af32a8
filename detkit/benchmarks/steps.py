"""The steps of a config's own training, on its own data, in each number format: what `train.amp` is worth here."""

from functools import partial
from pathlib import Path

import torch

from detkit.data.opening import open_dataset
from detkit.engine.run import Run
from detkit.engine.step import Step
from detkit.errors import UserError
from detkit.experiment import load_config, override_texts
from detkit.models import SGD, Detector, build_detector
from detkit.runtime.race import Benchmark, Job, Runner, Setting

FORMATS = {"float32": "none", "bfloat16": "bf16"}
BATCHES = 4  # which take turns; each round takes them all


def step_benchmarks(path: str, overrides: list[str]) -> list[Benchmark]:
    """Return a benchmark of the first stage that has steps; UserError for a config that can't be trained.

    path, overrides: as of `train`.
    """
    config = load_config(path, overrides)
    stage = first_stage(build_detector(config.model, open_dataset(config.data, "train").classes), path)
    images = config.train.batch // stage.iterations_factor
    runners = tuple(Runner(name, partial(steps, path, overrides, amp), True) for name, amp in FORMATS.items())
    return [Benchmark(f"{Path(path).stem}, {BATCHES} training steps of {images} images", runners)]


def steps(path: str, overrides: list[str], amp: str, setting: Setting) -> Job:
    """Return the job of BATCHES steps, whose images are decoded before."""
    chosen = override_texts({"train": {"amp": amp, "device": setting.device}})
    config = load_config(path, [*overrides, *chosen])
    data = open_dataset(config.data, "train")
    detector = build_detector(config.model, data.classes)
    stage = first_stage(detector, path)
    detector.begin_stage(stage.name)
    step = Step(detector, config.train, torch.device(setting.device))
    run = Run(config, Path(), step.device, data, None, None)
    batches = list(run.batches(stage, detector.train_input, 0, BATCHES, workers=0))

    def job() -> None:
        for iteration, (images, targets) in enumerate(batches):
            step.backward(detector, images, targets)
            step.update(iteration)

    return job


def first_stage(detector: Detector, path: str) -> SGD:
    """Return the first stage of gradient descent."""
    for stage in detector.stages():
        if isinstance(stage, SGD):
            return stage
    raise UserError(f"{path}: {detector.config.name} has no training steps")
