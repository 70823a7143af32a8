import errno
import pickle
from pathlib import Path

import pytest
import torch

import detkit.files
from detkit.checkpoints import checkpoint
from detkit.errors import UserError
from detkit.experiment import from_plain
from detkit.models import build_detector
from tests.toys.fixtures import Train


def content_of(trained: Path) -> dict:
    return checkpoint.load(trained / "best.pt")


def write(path: Path, kind: str, trained: Path) -> Path:
    """Write a file that is no checkpoint in one of many ways."""
    content = content_of(trained)
    if kind == "text":
        path.write_text("not a checkpoint\n")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "truncated":
        whole = (trained / "best.pt").read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(Path("/")))
    elif kind == "foreign objects":
        torch.save({"model": Path("/")}, path)
    elif kind == "state dict":
        torch.save(content["model"], path)
    elif kind == "tensor":
        torch.save(torch.zeros(3), path)
    elif kind == "future":
        torch.save({**content, "format": "detkit 9"}, path)
    elif kind == "keys missing":
        torch.save({"format": checkpoint.FORMAT}, path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "weight missing":
        del content["model"]["out.bias"]
        torch.save(content, path)
    elif kind == "weight renamed":
        content["model"]["features.0.weight"] = content["model"].pop("out.weight")
        torch.save(content, path)
    elif kind == "other shape":
        content["classes"] = ["a", "b", "c"]
        torch.save(content, path)
    elif kind == "unknown model":
        content["config"]["model"]["name"] = "ssp"
        torch.save(content, path)
    elif kind == "unknown key":
        content["config"]["train"]["itertions"] = 3
        torch.save(content, path)
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("text", "not a detkit checkpoint"),
        ("empty", "not a detkit checkpoint"),
        ("truncated", "not a detkit checkpoint"),
        ("pickle", "not a detkit checkpoint"),
        ("foreign objects", "not a detkit checkpoint"),
        ("state dict", "not a detkit checkpoint"),
        ("tensor", "not a detkit checkpoint"),
        ("future", "'detkit 9'"),
        ("keys missing", "no model"),
        ("folder", "is a folder"),
        ("absent", "no checkpoint"),
        ("weight missing", "1 missing (out.bias)"),
        ("weight renamed", "1 unknown (features.0.weight)"),
        ("other shape", "(14, 16, 3, 3), the model has (16, 16, 3, 3)"),
        ("unknown model", "'ssp'"),
        ("unknown key", "itertions"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_what_is_no_checkpoint_is_named_in_one_line(kind: str, message: str, trained: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "some file.pt", kind, trained)
    with pytest.raises(UserError) as error:
        checkpoint.load_detector(path)
    assert message in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_load_detector_needs_the_file_alone(trained: Path) -> None:
    detector, config = checkpoint.load_detector(trained / "best.pt", overrides=["detect.score_threshold=0.4"])
    assert not detector.training
    assert detector.classes == ("circle", "square")
    assert config.detect.score_threshold == 0.4
    assert config.train.ema == 0.9
    weights = content_of(trained)["model"]
    assert all(torch.equal(value, weights[name]) for name, value in detector.state_dict().items())


def test_best_holds_what_inference_needs_and_last_holds_all(trained: Path) -> None:
    best, last = content_of(trained), checkpoint.load(trained / "last.pt")
    assert set(best) == {"format", "model", "config", "classes", "iteration", "metrics"}
    assert set(last) == {*best, "training"}
    assert best["metrics"]["mAP"] >= last["metrics"]["mAP"]
    assert best["iteration"] == best["metrics"]["iteration"]
    # the average is what both offer to inference
    assert not torch.equal(last["model"]["out.weight"], last["training"]["weights"]["out.weight"])
    assert last["model"]["backbone.1.num_batches_tracked"] == 24
    checkpoint.load_detector(trained / "last.pt")


def test_without_ema_weights_are_stored_once(trained: Path, tmp_path: Path) -> None:
    content = content_of(trained)
    config = from_plain(content["config"], "test")
    detector = build_detector(config.model, ("circle", "square"))
    sizes = []
    for training in (None, {"weights": detector.state_dict()}):
        checkpoint.save(tmp_path / "x.pt", detector, config, training=training)
        sizes.append((tmp_path / "x.pt").stat().st_size)
    assert sizes[1] < 1.2 * sizes[0]


def test_pretrained_weights_are_not_fetched_for_a_checkpoint(trained: Path, tmp_path: Path, monkeypatch) -> None:
    content = content_of(trained)
    content["config"]["model"]["backbone"]["weights"] = "imagenet"
    torch.save(content, tmp_path / "x.pt")
    seen = []
    build = build_detector
    monkeypatch.setattr(
        "detkit.checkpoints.checkpoint.build_detector",
        lambda config, classes: seen.append(config.backbone.weights) or build(config, classes),
    )
    _, config = checkpoint.load_detector(tmp_path / "x.pt")
    assert seen == [None]
    assert config.model.backbone.weights == "imagenet"


def test_full_disk_leaves_the_earlier_file(trained: Path, tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "last.pt"
    path.write_bytes(b"earlier")
    detector, config = checkpoint.load_detector(trained / "best.pt")
    fill_disk(monkeypatch)
    with pytest.raises(UserError, match="No space left on device") as error:
        checkpoint.save(path, detector, config)
    assert str(path) in str(error.value)
    assert path.read_bytes() == b"earlier"
    assert list(tmp_path.iterdir()) == [path]


def test_training_on_a_full_disk_ends_in_one_line(train: Train, tmp_path: Path, monkeypatch, capsys) -> None:
    fill_disk(monkeypatch)
    assert train("--out", tmp_path / "run") == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert "No space left on device" in said
    assert said.count("\n") == 1
    assert [path.name for path in (tmp_path / "run").rglob("*") if path.stat().st_size] == []


def fill_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every file be written half, as when the disk fills up."""
    whole = Path.write_bytes

    def half(path: Path, content: bytes) -> int:
        whole(path, content[: len(content) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(detkit.files.Path, "write_bytes", half)


def test_a_file_of_an_earlier_format_says_what_to_do(trained: Path, tmp_path: Path) -> None:
    torch.save({**content_of(trained), "format": "detkit 1"}, tmp_path / "old.pt")
    with pytest.raises(
        UserError, match=r"old\.pt: checkpoint format 'detkit 1', .*train again, or use the detkit that"
    ):
        checkpoint.load_detector(tmp_path / "old.pt")
