"""As a script: `detkit train` with the toy detector; TOY_KILL_AT=N kills it in its N-th step.

TOY_SLOWLY=S lets each step take S seconds more.
"""

import os
import signal
import sys

import torch

from detkit.cli import run_command
from tests.toys.toy import Toy

if __name__ == "__main__":
    torch.set_num_threads(1)  # as in the tests, so that sums are the same
    if "TOY_KILL_AT" in os.environ:
        Toy.signal_at = (int(os.environ["TOY_KILL_AT"]), signal.SIGKILL)
    Toy.pause = float(os.environ.get("TOY_SLOWLY", 0))
    sys.exit(run_command("train"))
