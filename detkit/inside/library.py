"""Captum, an optional library."""

from importlib import import_module
from typing import Any

from detkit.errors import UserError


def captum() -> Any:
    """Return captum.attr; UserError, which says how it is installed, where it is not."""
    try:
        return import_module("captum.attr")
    except ImportError as error:
        raise UserError(f"heat maps of where a network looks need {error.name}; pip install captum") from None
