"""What last.pt says of training is looked at before training goes on, and nothing is written where it is wrong."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from detkit.cli import run_command

OPTIMIZER = "training.optimizer"


def change(content: dict[str, Any], kind: str) -> None:
    """Change the content of a last.pt by hand, in one of many ways that it cannot be."""
    training = content["training"]
    moments = training["optimizer"]["state"][0]
    weight = moments["momentum_buffer"]
    match kind:
        case "best.pt":
            del content["training"]
        case "no dict":
            content["training"] = [1]
        case "stage":
            training["stage"] = "dance"
        case "no stage":
            del training["stage"]
        case "best":
            training["best"] = float("nan")
        case "no run":
            del training["run"]
        case "no log":
            training["run"]["log"] = -1
        case "no fingerprint":
            del training["run"]["data"]["val"]
        case "no weights":
            del training["weights"]
        case "nan weights":
            training["weights"]["out.bias"][0] = torch.nan
        case "nan average":
            content["model"]["out.bias"][0] = torch.inf
        case "beyond the recipe":
            training["iteration"] = 25
        case "iteration":
            training["iteration"] = "8"
        case "tensor":
            training["iteration"] = torch.tensor([8, 8])
        case "finished":
            training["finished"] = torch.tensor([True, True])
        case "losses":
            training["losses"] = [[1.0, 2.0], [1.0]]
        case "many losses":
            training["losses"] = [[1.0, 2.0]] * 21
        case "an infinite loss":
            training["losses"] = [[1.0, float("inf")]]
        case "no moments":
            training["optimizer"]["state"] = []
        case "another parameter":
            training["optimizer"]["state"][99] = moments
        case "other moments":
            moments["exp_avg"] = weight
        case "shape":
            moments["momentum_buffer"] = weight[:-1]
        case "integers":
            moments["momentum_buffer"] = weight.long()
        case "expanded":
            moments["momentum_buffer"] = torch.zeros(()).expand(weight.shape)
        case "nan moments":
            weight.view(-1)[0] = torch.nan
        case "groups":
            training["optimizer"]["param_groups"].pop()
        case "code":
            training["more"] = {1: torch.float32}


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("best.pt", "has no state of training, as the best.pt of a run"),
        ("no dict", "training.stage is not the name of a stage"),
        ("stage", "saved in stage 'dance'; this model has sgd"),
        ("no stage", "training.stage is not the name of a stage"),
        ("best", "training.best is not a number, or None"),
        ("no run", "training.run is not what a run keeps"),
        ("no log", "training.run is not what a run keeps"),
        ("no fingerprint", "training.run.data is not the fingerprints of train and val"),
        ("no weights", "no training.weights in it"),
        ("nan weights", "training.weights.out.bias is not finite"),
        ("nan average", "out.bias holds values that are not finite"),
        ("beyond the recipe", "training.iteration is not a number of steps up to 24"),
        ("iteration", "training.iteration is not a number of steps"),
        ("tensor", "training.iteration is not a number of steps"),
        ("finished", "training.finished is not True or False"),
        ("losses", "training.losses is not the losses of at most 20 steps"),
        ("many losses", "training.losses is not the losses of at most 20 steps"),
        ("an infinite loss", "training.losses[0][1] is not a finite number"),
        ("no moments", f"{OPTIMIZER} is not the state of an optimiser"),
        ("another parameter", f"{OPTIMIZER}.state[99] is not momentum_buffer of a parameter"),
        ("other moments", f"{OPTIMIZER}.state[0] is not momentum_buffer of a parameter"),
        ("shape", f"{OPTIMIZER}.state[0]['momentum_buffer'] is not floating-point numbers of shape (16,)"),
        ("integers", f"{OPTIMIZER}.state[0]['momentum_buffer'] is not floating-point numbers of shape (16,)"),
        ("expanded", f"{OPTIMIZER}.state.0.momentum_buffer is not a tensor of plain numbers"),
        ("nan moments", f"{OPTIMIZER}.state.0.momentum_buffer is not finite"),
        ("groups", "saved by another optimiser"),
        ("code", "training.more.1 is not a finite number, text, or a tensor"),
    ],
)
def test_a_fault_of_last_is_one_line(kind: str, message: str, trained: Path, tmp_path: Path, capsys) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    content = torch.load(run / "last.pt", weights_only=True)
    change(content, kind)
    torch.save(content, run / "last.pt")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert run_command("train", ["--resume", str(run)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {run / 'last.pt'}: ")
    assert message in said
    assert said.count("\n") == 1
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
