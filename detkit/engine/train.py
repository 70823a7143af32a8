"""Training: gradient descent on a detector's losses, the loop on one screen."""

from dataclasses import replace

import torch

from detkit.config import TrainConfig
from detkit.engine.length import due, evaluation_interval
from detkit.engine.log import Log
from detkit.engine.meter import LOG_EVERY, Meter
from detkit.engine.nonfinite import stop_nonfinite
from detkit.engine.optimizer import learning_rate, set_rate
from detkit.engine.run import Run
from detkit.engine.state import State
from detkit.engine.step import Step
from detkit.models import SGD, Detector
from detkit.runtime import distributed
from detkit.runtime.signals import Interrupt, Stopped


def fit(detector: Detector, run: Run, stage: SGD) -> None:
    """Train `detector` in place by `run.config.train` and `stage`, from where `run.resumed` ends.

    A step is a function of the state and the iteration alone: batches, learning rate and random numbers are addressed
    by the iteration. So a resumed run repeats the uninterrupted one exactly, bit for bit on the CPU.
    Raises Stopped after SIGTERM or Ctrl-C, with last.pt saved; UserError where a loss is not finite.
    """
    recipe = stage_recipe(run.recipe, stage)
    evaluate_every = evaluation_interval(recipe, len(run.train) * stage.iterations_factor)
    device, before = run.device, run.before
    step = Step(detector, recipe, device)
    average = step.average
    meter = Meter(device)
    state = State(detector, step.optimizer, step.scaler, average, meter)
    start = state.restore(resumed, run.last, recipe.iterations) if (resumed := run.take_resumed()) else 0
    start = recipe.iterations if run.stalled else start
    # an augmentation that cannot be is refused here, before anything is written
    batches = run.batches(stage, detector.train_input, start, recipe.iterations)
    run.begin()
    if not resumed:
        run.save_last(state.averaged, state.dump(0), before)  # a run can be resumed from its first second
    if recipe.compile:
        detector.compile_network()
    model = distributed.wrap(detector, device)

    told = {"writes": run.writes, "best": run.best, "callbacks": run.callbacks}
    log = Log(run.folder, before + start, before + recipe.iterations, **told)
    with Interrupt() as interrupt, log:
        for iteration, (images, targets) in enumerate(meter.timed(batches), start):
            torch.manual_seed(step_seed(recipe.seed, before + iteration, distributed.rank()))
            set_rate(step.optimizer, rate := learning_rate(recipe, iteration))
            parts = step.backward(model, images, targets)
            meter.add(iteration, parts)

            done = iteration + 1
            signal = distributed.all_reduce_max(interrupt.received)
            logging = due(done, LOG_EVERY, recipe.iterations)
            evaluating = stage.can_evaluate and due(done, evaluate_every, recipe.iterations)
            saving = bool(signal) or evaluating or due(done, recipe.save_every, recipe.iterations)
            # the one place where the host waits for a GPU, every LOG_EVERY steps and before anything is saved
            if logging or saving or meter.instant:
                bad = meter.read()
                if distributed.all_reduce_max(bad is not None):
                    stop_nonfinite(run, stage, detector.train_input, bad)

            step.update(iteration)
            log.step(before + done)
            if logging:
                images = done * (recipe.batch // stage.iterations_factor)
                seen = f"{images:,} images, epoch {images / len(run.train):.2f}"
                log.losses(before + done, *meter.summary(), rate, seen)
            if evaluating:
                run.validate(state.averaged, before + done, log)
            if saving:
                run.save_last(state.averaged, state.dump(done), before + done)
                meter.restart()
            if signal:
                raise Stopped(signal, f"step {before + done}", run.folder)
            if run.stalled:
                log.say(f"{before + done}: ends early, with no better val mAP in {run.waited} evaluations")
                break
    if average is not None:  # what a stage after this one goes on with
        detector.load_state_dict(average.detector.state_dict())


def stage_recipe(recipe: TrainConfig, stage: SGD) -> TrainConfig:
    """The config's recipe, as long as the stage is."""
    milestones = [milestone * stage.iterations_factor for milestone in recipe.milestones]
    return replace(recipe, iterations=recipe.iterations * stage.iterations_factor, milestones=milestones)


def step_seed(seed: int, iteration: int, rank: int) -> int:
    """The seed of a step's random numbers (dropout): another for every iteration and process, nothing to save."""
    return (seed * 1_000_003 + iteration) * 4099 + rank
