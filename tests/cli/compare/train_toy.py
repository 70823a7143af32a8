"""As a script: `detkit train` with the toy detector.

TOY_INTERRUPT=STEP:SIGNAL sends SIGNAL in step STEP to the process that started this one, which has to pass it on: the
step goes on once it is here.
"""

import os
import select
import signal
import sys

import torch
from torch import Tensor

from detkit.cli import run_command
from detkit.structures import Images, Targets
from tests.toys.toy import Toy

losses = Toy.losses


def interrupted(self: Toy, images: Images, targets: Targets) -> dict[str, Tensor]:
    """Toy's losses; in one step, ask the parent for a signal and wait for it."""
    result = losses(self, images, targets)
    step, number = map(int, os.environ["TOY_INTERRUPT"].split(":"))
    if Toy.calls == step:
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        signal.set_wakeup_fd(writing)  # a byte for each signal, whatever its handler does
        os.kill(os.getppid(), number)
        ready, _, _ = select.select([reading], [], [], 60)
        assert ready, "no signal was passed on"
    return result


if __name__ == "__main__":
    torch.set_num_threads(1)  # as in the tests, so that sums are the same
    if "TOY_INTERRUPT" in os.environ:
        Toy.losses = interrupted
    sys.exit(run_command("train"))
