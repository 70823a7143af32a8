"""The stages of a detector's training, run one after the other."""

from typing import TYPE_CHECKING, Protocol

from detkit.engine.run import Run
from detkit.engine.train import fit
from detkit.errors import UserError
from detkit.models import SGD

if TYPE_CHECKING:
    from detkit.models import Detector


class Stage(Protocol):
    """A stage of its own kind, such as fitting SVMs on frozen features.

    `run` changes the detector in place. It calls `run.restore(detector)` for what it saved before a kill, then
    `run.begin()`, saves with `run.save_last(detector, state)`, and at the end keeps its result with `run.conclude`.
    """

    @property
    def name(self) -> str: ...

    def run(self, detector: "Detector", run: Run) -> None: ...


def run_stages(detector: "Detector", run: Run) -> None:
    """Run the detector's stages; a resumed run begins with the stage that last.pt was saved in, if it isn't done.

    An SGD stage is only described by the detector, since the loop belongs to the engine; others bring their `run`.
    """
    stages: list[SGD | Stage] = list(detector.stages())
    if run.resumed is not None:
        names = [stage.name for stage in stages]
        name = run.resumed["training"]["stage"]
        if name not in names:
            raise UserError(f"{run.folder / 'last.pt'}: saved in stage {name!r}; this model has {', '.join(names)}")
        at = names.index(name)
        run.before = run.config.train.iterations * sum(
            done.iterations_factor for done in stages[:at] if isinstance(done, SGD)
        )
        if run.resumed["training"].get("finished"):
            run.restore(detector)
            at += 1
        stages = stages[at:]
    for stage in stages:
        run.stage = stage.name
        detector.begin_stage(stage.name)
        if isinstance(stage, SGD):
            run.store = stage.store
            fit(detector, run, stage)
            run.before += run.config.train.iterations * stage.iterations_factor
        else:
            stage.run(detector, run)
