"""What has to be the same where a run goes on, and what may change."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from detkit.checkpoints import checkpoint
from detkit.checkpoints.training import check_training
from detkit.config import Config
from detkit.engine.folder import begun
from detkit.engine.length import in_steps
from detkit.engine.log import read_log
from detkit.errors import UserError
from detkit.experiment import from_plain, load_config, read_config, to_plain
from detkit.models import Stage

FIXED = (
    "model",
    "data.classes",
    "train.weights",
    "train.batch",
    "train.accumulate",
    "train.optimizer",
    "train.seed",
    "evaluate.metric",
)
"""Keys that cannot change on a resume: steps that are done were of another run by them, weights of another network, or
the mAP of best.pt of another kind. `train.weights` would have no effect."""


def resumed_config(folder: Path, config: str | Config | None, overrides: list[str]) -> Config:
    """Read the config of a run to resume; a `config` that is named, too, must say the same."""
    saved = folder / "config.yaml"
    if not saved.is_file():
        raise UserError(f"--resume {folder}: there is no {saved}; give the folder of an earlier run")
    settings = load_config(saved, overrides)
    if config is not None:
        changed = difference(to_plain(read_config(config, overrides)), to_plain(settings))
        if changed:
            name = config if isinstance(config, str) else "the config"
            raise UserError(f"{name} is not what {saved} says: {changed}; leave it away to go on with {folder}")
    return settings


def read_last(folder: Path) -> dict[str, Any] | None:
    """Return the content of a run's last.pt; None where it was killed before there was any."""
    path = folder / "last.pt"
    if not path.is_file():
        if begun(folder):
            return None
        raise UserError(f"--resume {folder}: there is no {path}; give the folder of an earlier run")
    content = checkpoint.load(path)
    check_training(content, path)
    read_log(folder / "log.jsonl")  # a line that is broken is refused before anything is done
    return content


def changes(last: Path, content: dict[str, Any], settings: Config, state: dict[str, Any]) -> list[str]:
    """Return what is no longer as last.pt (its `content`) has it, as `KEY OLD -> NEW`; UserError for what must be.

    state: of the run that goes on, as `Run.state`. Images or objects of the training split that have changed would
    make steps that are done, and batches to come, those of no run at all: that is refused. Those of val only choose
    the best checkpoint.
    """
    found = []
    saved = to_plain(from_plain(content["config"], str(last)))
    for key, old, new in differences(saved, to_plain(settings)):
        if key.startswith(tuple(f"{name}." for name in FIXED)) or key in FIXED:
            raise UserError(
                f"{key} is {old!r} in {last.parent}, and cannot become {new!r} on a resume; "
                f"a new run can begin with its weights: train.weights={last}"
            )
        found.append(f"{key} {old!r} -> {new!r}")
    before = content["training"]["run"]
    for split in ("train", "val"):
        what = data_changes(before["data"][split], state["data"][split])
        if what and split == "train":
            raise UserError(
                f"data.train is no longer what {last.parent} was trained on: other {what}; a new run can begin with "
                f"its weights: train.weights={last}"
            )
        found += [f"data.{split}: other {what}"] if what else []
    if before["processes"] != state["processes"]:
        found.append(f"processes {before['processes']} -> {state['processes']}")
    return found


def data_changes(old: dict[str, Any] | None, new: dict[str, Any] | None) -> str:
    """Return in what a split differs by its fingerprints, None where there is no such split; "" where it does not."""
    if old is None or new is None:
        return "images" if old is not new else ""
    changed = {name: value for name, value in new.items() if value != old.get(name)}
    return ", ".join(
        f"{name} ({old.get(name)} -> {value})" if isinstance(value, int) else name for name, value in changed.items()
    )


def check_iterations(last: Path, content: dict[str, Any], new: int, stages: Sequence[Stage]) -> None:
    """Raise UserError where `train.iterations` is another, and the steps that are done do not allow it.

    new: those of the run that goes on. stages: the one that last.pt was saved in, and those before.
    """
    saved = from_plain(content["config"], str(last)).train
    old = in_steps(saved, content["training"]["run"]["data"]["train"]["images"]).iterations
    done = content["training"].get("iteration")
    if old == new:
        return
    if done is None or any(stage.iterations_factor for stage in stages[:-1]):
        raise UserError(
            f"train.iterations: {old} -> {new}, but the stages of {old} are done in {last.parent}; "
            f"a new run can begin with its weights: train.weights={last}"
        )
    if done > new * stages[-1].iterations_factor:
        raise UserError(f"train.iterations: {new} are fewer than the {done} that are done in {last.parent}")


def differences(one: Any, other: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield (key, value of one, value of the other) where two plain configs differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        for name in sorted({*one, *other}):
            yield from differences(one.get(name), other.get(name), f"{key}.{name}".strip("."))
    elif one != other:
        yield key, one, other


def difference(one: Any, other: Any) -> str:
    """Return `key: value, not value` of the first difference between two plain configs, or an empty text."""
    return next((f"{key}: {old!r}, not {new!r}" for key, old, new in differences(one, other)), "")
