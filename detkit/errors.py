"""Errors that a user can cause."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """One line that says what is wrong, where, and what would be right. The command line exits with status 2."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the nearest known name, else the list of known names."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"
