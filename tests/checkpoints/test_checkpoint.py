import errno
import pickle
import random
import zipfile
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
        del content["best_scores"]
        torch.save(content, path)
    elif kind == "unknown model":
        content["config"]["model"]["name"] = "ssp"
        torch.save(content, path)
    elif kind == "unknown key":
        content["config"]["train"]["itertions"] = 3
        torch.save(content, path)
    elif kind != "absent":
        change(content, kind)
        torch.save(content, path)
    return path


def change(content: dict, kind: str) -> None:
    """Change a checkpoint's content by hand, in one of many ways that it cannot be."""
    weights = content["model"]
    match kind:
        case "nan":
            weights["out.bias"][1] = torch.nan
        case "infinite":
            weights["out.bias"][1] = -torch.inf
        case "beyond float32":
            weights["out.bias"] = torch.full_like(weights["out.bias"], 1e300, dtype=torch.float64)
        case "integers":
            weights["out.bias"] = weights["out.bias"].long()
        case "no tensor":
            weights["out.bias"] = weights["out.bias"].tolist()
        case "on no device":
            weights["out.weight"] = weights["out.weight"].to("meta")
        case "expanded":
            weights["out.weight"] = torch.zeros(1).expand(2**40)
        case "numbers as names":
            content["model"] = {0: weights["out.bias"]}
        case "no weights":
            content["model"] = {}
        case "a list as config":
            content["config"] = []
        case "a tensor in the config":
            content["config"]["train"]["lr"] = torch.zeros(2)
        case "classes as text":
            content["classes"] = "circle"
        case "numbers as classes":
            content["classes"] = [1, 2]
        case "an empty class":
            content["classes"] = ["circle", ""]
        case "a class twice":
            content["classes"] = ["circle", "circle"]
        case "iteration":
            content["iteration"] = -1
        case "metrics":
            content["metrics"]["mAP"] = float("nan")


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
        ("nan", "out.bias holds values that are not finite"),
        ("infinite", "out.bias holds values that are not finite"),
        ("beyond float32", "out.bias holds values that are not finite"),
        ("integers", "1 of another type (out.bias: torch.int64, the model has torch.float32)"),
        ("no tensor", "model['out.bias'] is not a tensor of plain numbers"),
        ("on no device", "model['out.weight'] is not a tensor of plain numbers"),
        ("expanded", "model['out.weight'] is not a tensor of plain numbers"),
        ("numbers as names", "model is not tensors by name"),
        ("no weights", "model is not tensors by name"),
        ("a list as config", "config is not the config of a training run"),
        ("a tensor in the config", "train.lr"),
        ("classes as text", "classes is not a list of names"),
        ("numbers as classes", "classes is not a list of names"),
        ("an empty class", "classes is not a list of names"),
        ("a class twice", "classes is not a list of different names"),
        ("iteration", "iteration is not a whole number from 0 on"),
        ("metrics", "metrics is not a dict of plain values"),
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
    assert set(best) == {"format", "model", "config", "classes", "iteration", "metrics", "best_scores"}
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


def test_a_checkpoint_of_half_precision_is_as_good(trained: Path, tmp_path: Path) -> None:
    content = content_of(trained)
    whole = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in content["model"].items()}
    torch.save({**content, "model": whole}, tmp_path / "half.pt")
    detector, _ = checkpoint.load_detector(tmp_path / "half.pt")
    assert all(torch.equal(value, whole[name].to(value.dtype)) for name, value in detector.state_dict().items())


def test_a_changed_byte_is_found_wherever_it_is(trained: Path, tmp_path: Path, rng: random.Random) -> None:
    whole = (trained / "best.pt").read_bytes()
    weights = content_of(trained)["model"]
    path, refusals = tmp_path / "x.pt", []
    # at random, and in each byte of the records at the zip's end
    for at in (*(rng.randrange(len(whole)) for _ in range(40)), *range(len(whole) - 98, len(whole))):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 2 << rng.randrange(7)]) + whole[at + 1 :])
        try:
            detector, _ = checkpoint.load_detector(path)
        except UserError as error:
            refusals.append(str(error))
        else:  # in padding, a date or the like
            assert all(torch.equal(value, weights[name]) for name, value in detector.state_dict().items())
    assert len(refusals) > 10
    assert all(line.startswith(f"{path}: ") and "\n" not in line for line in refusals)


def test_a_file_that_unpacks_to_far_more_is_refused(trained: Path, tmp_path: Path, monkeypatch) -> None:
    content = content_of(trained)
    content["metrics"]["more"] = "0" * 3_000_000
    torch.save(content, tmp_path / "large.pt")
    checkpoint.load_detector(tmp_path / "large.pt")
    with zipfile.ZipFile(tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        large = zipfile.ZipFile(tmp_path / "large.pt")
        for name in large.namelist():
            packed.writestr(name, large.read(name))
        large.close()
    checkpoint.load_detector(tmp_path / "packed.pt")
    monkeypatch.setenv("DETKIT_MAX_UNPACKED_GB", "0.003")
    checkpoint.load_detector(tmp_path / "large.pt")  # it is as large as it says
    with pytest.raises(
        UserError, match=r"packed\.pt: unpacks to 0\.00\d+ GB, the limit is 0\.003; .* DETKIT_MAX_UNPACKED_GB=1"
    ):
        checkpoint.load_detector(tmp_path / "packed.pt")
    monkeypatch.setenv("DETKIT_MAX_UNPACKED_GB", "much")
    with pytest.raises(UserError, match="DETKIT_MAX_UNPACKED_GB=much is not a positive number"):
        checkpoint.load_detector(tmp_path / "packed.pt")
