"""Runs the command that a script of this folder is named after, by the code of the checkout that it lies in."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from detkit.cli import run_command


def run(script: str) -> None:
    """Run `detkit NAME` for tools/NAME.py."""
    sys.exit(run_command(Path(script).stem))
