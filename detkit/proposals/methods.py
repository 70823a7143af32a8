"""The ways to make proposals from an image alone, by name."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from detkit.errors import UserError, did_you_mean

Method = Callable[[np.ndarray], np.ndarray]

METHODS = ("selective_search",)


def find_method(name: str, parameters: dict[str, Any]) -> Method:
    """Return the function from an (H, W, 3) RGB uint8 image to boxes (N, 4), the best first.

    Raises UserError for an unknown name.
    """
    if name not in METHODS:
        raise UserError(f"no method {name!r} of making proposals{did_you_mean(name, METHODS)}")
    from detkit.proposals.selective_search import selective_search  # only who makes proposals waits for it

    return partial(selective_search, **parameters)
