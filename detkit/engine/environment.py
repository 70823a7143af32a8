"""What a run runs on: the content of env.txt."""

import os
import platform
import shlex
import subprocess
import sys
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from detkit.runtime import distributed
from detkit.runtime.device import resolve_amp

PACKAGES = ("detkit", "torch", "torchvision", "numpy", "opencv-python-headless", "albumentations")


def environment(device: torch.device, amp: str) -> str:
    """Return versions, device, number format, git state and command, one `name: value` a line."""
    lines = {
        "time": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": shlex.join(sys.argv),
        "folder": os.getcwd(),
        "git": _git_state(),
        "python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
        "system": platform.platform(),
        "device": _describe(device),
        "amp": resolve_amp(device, amp),
        "processes": str(distributed.world_size()),
    }
    return "".join(f"{name}: {value}\n" for name, value in lines.items())


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _describe(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    return f"cpu, {os.cpu_count()} cores, {torch.get_num_threads()} threads"


def _git_state() -> str:
    """The commit of detkit's checkout, `none` where it is installed from a package."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return "none"
    commands = (["git", "-C", root, "rev-parse", "HEAD"], ["git", "-C", root, "status", "--porcelain"])
    try:
        ran = [subprocess.run(command, capture_output=True, text=True, timeout=10) for command in commands]
    except (OSError, subprocess.TimeoutExpired):
        return "none"
    commit, changes = (one.stdout.strip() for one in ran)
    return commit + (" with changes" if changes else "")
