"""Limits on what files may grow to in memory, which a user can raise by environment variables."""

import math
import os

from detkit.errors import UserError

UNPACKED = "DETKIT_MAX_UNPACKED_GB"
PIXELS = "DETKIT_MAX_PIXELS"
DEFAULTS = {UNPACKED: 2.0, PIXELS: 120_000_000.0}


def limit(name: str) -> float:
    """Return a limit: the variable of that name, else its default; UserError where the variable is not positive."""
    text = os.environ.get(name, "")
    try:
        value = float(text) if text.strip() else DEFAULTS[name]
    except ValueError:
        value = math.nan
    if not value > 0:
        raise UserError(f"{name}={text} is not a positive number")
    return value
