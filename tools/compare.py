"""`detkit compare`, from a checkout."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from detkit.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command("compare"))
