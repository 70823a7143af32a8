"""Workers and the signals that a terminal or a scheduler sends to all processes."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import multiprocessing, os, signal, sys
from detkit.config import DataConfig, TrainConfig
from detkit.data import loader
from detkit.data.voc import VOCDataset
from detkit.structures import InputSpec
if __name__ == "__main__":
    root, name, handles, when = sys.argv[1:]
    number = getattr(signal, name)
    # "no": as in a terminal, also where the tests run in the background and inherit that SIGINT is ignored.
    handler = signal.default_int_handler
    if handles == "yes":
        handler = lambda *_: print("signal", flush=True)
    signal.signal(number, handler)
    init_worker = loader._init_worker
    if when == "start":
        def init_early(worker):  # the first worker sends it before any of them has its handlers
            if worker == 0:
                os.killpg(0, number)
            init_worker(worker)
        loader._init_worker = init_early
    dataset = VOCDataset([(root, "trainval")])
    recipe = TrainConfig(iterations=50, batch=4, workers=2)
    batches = loader.train_loader(dataset, InputSpec((24, 32)), DataConfig(root="x"), recipe, start=0, stop=50)
    for step, _ in enumerate(batches):
        if step == 3 and when == "step":
            print(len(multiprocessing.active_children()), "workers", flush=True)
            os.killpg(0, number)
    print("end", flush=True)
"""


def send(root: Path, name: str, handles: str, when: str = "step") -> subprocess.CompletedProcess[str]:
    """Let a process of its own group, and its workers, get a signal while it reads batches.

    The pipes of the output are at their end, and this returns, only when the workers are gone too.
    """
    command = [sys.executable, "-c", SCRIPT, str(root), name, handles, when]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, start_new_session=True)


def test_ctrl_c_leaves_no_workers_and_no_noise(small_root):
    result = send(small_root, "SIGINT", handles="no")
    assert result.stderr.strip().endswith("KeyboardInterrupt")
    assert result.stderr.count("Traceback") == 1
    assert result.stdout == "2 workers\n"


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_workers_go_on_as_long_as_the_main_process_does(small_root, name):
    result = send(small_root, name, handles="yes")
    assert result.returncode == 0, result.stderr
    assert result.stdout == "2 workers\nsignal\nend\n"


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_while_workers_start_does_not_end_them(small_root, name):
    result = send(small_root, name, handles="yes", when="start")
    assert result.returncode == 0, result.stderr
    assert result.stdout == "signal\nend\n"
