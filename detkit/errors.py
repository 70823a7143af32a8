"""Errors that a user can cause."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """One line that says what is wrong, where, and what would be right. The command line exits with status 2."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the nearest known name, else the list of known names.

    A name that is a word of a known one is nearest to that: `score` to `score_threshold`.
    """
    known = sorted(known)
    near = [other for other in known if name in other.split("_")]
    near = near or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"
