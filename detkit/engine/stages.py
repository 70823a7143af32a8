"""The stages of a detector's training, run one after the other."""

from detkit.engine.stage_context import StageContext
from detkit.errors import UserError
from detkit.models import Detector


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
