"""Checkpoints, the folder of a run, and files of darknet's and Caffe's."""

import json
import shutil
import struct
import tempfile
import zipfile
from functools import cache
from io import BytesIO
from pathlib import Path
from random import Random
from typing import Any

import cv2
import numpy as np
import torch

from detkit.backbones.caffe_file import read_caffemodel
from detkit.checkpoints import checkpoint
from detkit.experiment import load_config
from detkit.models import build_detector
from tests.caffe import write_caffemodel
from tests.campaign.children import REPOSITORY
from tests.campaign.commands import Broken, run
from tests.campaign.formats.base import Files, Format, read_file, same
from tests.campaign.formats.datasets import ROOT, prepare_voc
from tests.campaign.mutations import VALUES, damage, edit_several, edit_text, flip_bit
from tests.campaign.stopping import stopped

MODEL, VALID, IMAGE, RUN = Path("model.pt"), Path("valid.pt"), Path("image.png"), Path("run")
CONFIG = REPOSITORY / "configs/shapes/yolov1.yaml"
TINY = ("model.size=64", "model.convolutions=[[8,3,1]]", "data.format=voc", f"data.root={ROOT}", "data.cache=false")
TAIL = 8000  # last bytes of a checkpoint, which hold the archive's table
TENSORS = (
    *(torch.zeros(3), torch.zeros(0), torch.tensor(float("nan")), torch.zeros(2, 2).to_sparse(), torch.zeros(2) > 0),
    *(("a", "b"), {"a": torch.zeros(1)}, 3 + 4j, ["a", "a"], ["a"], [1, 2], [None, "b"], ["a\n\x1b[31m", "../x"]),
)


def prepare_checkpoint() -> bytes:
    """A checkpoint with a training state, twice, and an image; returns the checkpoint's bytes."""
    _prepare_image()
    config = load_config(CONFIG, [*TINY])
    torch.manual_seed(0)
    detector = build_detector(config.model, ("cat", "dog"))
    training = {"stage": "sgd", "best": 0.5, "weights": detector.state_dict(), "losses": [[1.0, 2.0]]}
    for path in (MODEL, VALID):
        checkpoint.save(path, detector, config, iteration=7, metrics={"mAP": 0.5}, training=training)
    return read_file(str(MODEL))


def _prepare_image() -> None:
    cv2.imwrite(str(IMAGE), np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8))


def draw_checkpoint(random: Random, seed: bytes) -> Files:
    """Damage the file anywhere, or its head or table."""
    way = random.randrange(6)
    if way < 3:
        damaged = flip_bit(random, seed)
    elif way < 5:
        damaged = damage(random, seed)
    else:
        damaged = seed[:-TAIL] + damage(random, seed[-TAIL:])
    return {str(MODEL): damaged}


def draw_archive(random: Random, seed: bytes) -> Files:
    """Damage a part of the file within an archive that is sound: with checksums of what is there now."""
    buffer = BytesIO()
    with zipfile.ZipFile(BytesIO(seed)) as archive, zipfile.ZipFile(buffer, "w") as edited:
        members = [name for name in archive.namelist() if archive.getinfo(name).file_size]
        pickles = [name for name in members if name.endswith("data.pkl")]
        chosen = random.choice(pickles if random.random() < 0.5 else members)
        left_out = random.random() < 0.05
        for name in archive.namelist():
            content = archive.read(name)
            if name == chosen and left_out:
                continue
            edited.writestr(name, damage(random, content) if name == chosen else content)
    return {str(MODEL): buffer.getvalue()}


def read_checkpoint() -> None:
    """Detect with it: a damaged checkpoint is refused, or holds what it held."""
    if run("detect", MODEL, IMAGE, "--score", "0.01", "--out", "out") == 0:
        held, read = _content(str(VALID)), checkpoint.load(MODEL)
        if different := [key for key in {*held, *read} if not same(held.get(key), read.get(key))]:
            raise Broken(f"a damaged checkpoint is accepted, with another {', '.join(sorted(map(str, different)))}")


@cache
def _content(path: str) -> dict[str, Any]:
    return checkpoint.load(path)


def prepare_contents() -> dict[str, Any]:
    """A checkpoint; returns what it holds."""
    prepare_checkpoint()
    return checkpoint.load(MODEL)


def draw_contents(random: Random, seed: dict[str, Any]) -> Files:
    """Write a checkpoint, as detkit does, of other contents."""
    return {str(MODEL): _write(edit_several(random, seed, (*VALUES, *TENSORS)), seed)}


def _write(content: Any, otherwise: Any) -> bytes:
    """Return the file of a checkpoint's content, or of another's where that cannot be saved."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "content.pt"
        try:
            checkpoint.write(path, content)
        except Exception:
            checkpoint.write(path, otherwise)
        return path.read_bytes()


def read_contents() -> None:
    """Detect with it: it is refused, or its classes are names and its weights numbers."""
    if run("detect", MODEL, IMAGE, "--score", "0.01", "--out", "out") == 0:
        detector, _ = checkpoint.load_detector(MODEL)
        classes = detector.classes
        if not all(isinstance(name, str) for name in classes) or len(set(classes)) != len(classes):
            raise Broken(f"classes {classes!r} accepted")
        for name, tensor in detector.state_dict().items():
            if not tensor.isfinite().all():
                raise Broken(f"weights {name} accepted that are not finite")


# the folder of a run


def prepare_run() -> dict[str, Any]:
    """A run that was stopped after two steps of four; returns what its last.pt holds."""
    prepare_voc()
    steps = ("train.iterations=4", "train.batch=2", "train.workers=0", "train.save_every=1", "train.ema=0.9")
    with stopped("os.rename", "last.pt", number=4):  # before the steps, and after three of them
        run("train", CONFIG, *TINY, *steps, "data.val=[]", "data.test=[]", "--out", RUN)
    return checkpoint.load(RUN / "last.pt")


def draw_run(random: Random, seed: dict[str, Any]) -> Files:
    """Damage what the run left: what last.pt holds, most often its training state."""
    way, values = random.randrange(10), (*VALUES, *TENSORS)
    if way == 0:
        content = {key: value for key, value in seed.items() if key != "training"}  # best.pt, named last.pt
    elif way < 8:
        content = {**seed, "training": edit_several(random, seed["training"], values)}
    else:
        content = edit_several(random, seed, values)
    return {f"{RUN}/last.pt": _write(content, seed)}


LOG = b"".join(json.dumps({"iteration": i, "class": 0.5, "box": 1 / i, "lr": 0.002}).encode() + b"\n" for i in (1, 2))


def draw_log(random: Random, seed: dict[str, Any]) -> Files:
    """Damage log.jsonl."""
    return {f"{RUN}/log.jsonl": edit_text(random, LOG)}


def draw_saved_config(random: Random, seed: dict[str, Any]) -> Files:
    """Damage config.yaml."""
    content = json.dumps(seed["config"], indent=1).encode()  # which is YAML, too
    return {f"{RUN}/config.yaml": edit_text(random, content)}


def read_run() -> None:
    """Go on with a copy of the run: it is refused and left as it is, or ends with a log and weights that are sound."""
    folder = Path("out/run")
    shutil.copytree(RUN, folder)
    if run("train", "--resume", folder, files="nothing") != 0:
        if not (folder / "nonfinite.json").exists():  # with it, steps were done until a loss was not finite
            if left := {path.name for path in folder.iterdir()} - {path.name for path in RUN.iterdir()}:
                raise Broken(f"refused, and left behind: {', '.join(sorted(left))}")
            if (folder / "last.pt").read_bytes() != read_file(f"{RUN}/last.pt"):
                raise Broken("refused, and last.pt is another")
        return
    for line in (folder / "log.jsonl").read_text().splitlines():
        if not isinstance(json.loads(line)["iteration"], int):
            raise Broken(f"log.jsonl: {line[:80]!r} is left in it")
    if not all(tensor.isfinite().all() for tensor in checkpoint.load(folder / "last.pt")["model"].values()):
        raise Broken("weights that are not finite")


# darknet's


CFG = """[net]
batch=1
height=64
width=64
channels=3

[convolutional]
batch_normalize=1
filters=8
size=3
stride=2
pad=1
activation=leaky

[maxpool]
size=2
stride=2

[convolutional]
filters=4
size=3
stride=2
pad=1
activation=leaky

[connected]
output=1470
activation=linear

[detection]
classes=20
coords=4
rescore=1
side=7
num=2
softmax=0
sqrt=1
"""
CFG_WEIGHTS = 4 * 8 + 27 * 8 + 4 + 8 * 9 * 4 + 4 * 64 * 1470 + 1470  # how many numbers that network has


def prepare_darknet() -> bytes:
    """A YOLOv1 of darknet's with its cfg; returns its weights."""
    _prepare_image()
    weights = struct.pack("<iiii", 0, 1, 0, 5) + np.full(CFG_WEIGHTS, 0.01, "<f4").tobytes()
    Path("yolo.weights").write_bytes(weights)
    Path("yolo.cfg").write_text(CFG)
    return weights


def draw_darknet(random: Random, seed: bytes) -> Files:
    """Damage the cfg, or cut the weights off: their values have no check."""
    if random.random() < 0.2:
        return {"yolo.weights": seed[: random.randrange(len(seed))]}
    return {"yolo.cfg": edit_text(random, CFG.encode())}


def read_darknet() -> None:
    """Detect with it."""
    run("detect", "yolo.weights", IMAGE, "--out", "out")


# Caffe's


def prepare_caffe() -> list[bytes]:
    """Two layers, in both forms of the format."""
    layers = {"conv1_1": (torch.rand(4, 3, 3, 3), torch.rand(4)), "fc6": (torch.rand(5, 36), torch.rand(5))}
    for first_form in (False, True):
        write_caffemodel(Path(f"{first_form}.caffemodel"), layers, first_form)
    return [read_file(f"{first_form}.caffemodel") for first_form in (False, True)]


def draw_caffe(random: Random, seeds: list[bytes]) -> Files:
    """Damage one of them: the values of its numbers have no check."""
    seed = random.choice(seeds)
    return {"False.caffemodel": (flip_bit if random.random() < 0.3 else damage)(random, seed)}


def read_caffe() -> None:
    """Read its layers, as a backbone does: no command can with a network as small as this one."""
    for name, tensor in read_caffemodel(Path("False.caffemodel")).items():
        if tensor.dtype != torch.float32 or not name.endswith((".weight", ".bias")):
            raise Broken(f"{name}: {tensor.dtype} accepted")


WEIGHTS_FORMATS = (
    Format("pt", prepare_checkpoint, draw_checkpoint, read_checkpoint, 1000, 30),
    Format("pt_archive", prepare_checkpoint, draw_archive, read_contents, 500, 10),
    Format("pt_contents", prepare_contents, draw_contents, read_contents, 500, 20),
    Format("run", prepare_run, draw_run, read_run, 150, 5),
    Format("log", prepare_run, draw_log, read_run, 150, 5),
    Format("run_config", prepare_run, draw_saved_config, read_run, 150, 4),
    Format("darknet", prepare_darknet, draw_darknet, read_darknet, 500, 10),
    Format("caffe", prepare_caffe, draw_caffe, read_caffe, 2000, 50),
)
