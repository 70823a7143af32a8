"""Errors that a user can cause."""

import difflib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager

from detkit.names import shown


class UserError(Exception):
    """One line that says what is wrong, where, and what would be right. The command line exits with status 2.

    What names in it hold that would act on a screen, a line end among it, is escaped.
    """

    def __str__(self) -> str:
        return shown(super().__str__())


class Incomplete(UserError):
    """The results are written, but not all that goes with them. The command line warns and exits with status 1."""


Attempt = Callable[[str], AbstractContextManager[None]]


@contextmanager
def late() -> Iterator[Attempt]:
    """Yield `attempt`: whatever goes wrong within `with attempt("report.html"):` waits for the end of all that follows.

    There Incomplete says what was not written, and why. For what comes after results, which no plot or full disk may
    cost.
    """
    failed: list[str] = []

    @contextmanager
    def attempt(name: str) -> Iterator[None]:
        try:
            yield
        except UserError as error:
            failed.append(f"{name}: {error}")
        except OSError as error:
            failed.append(f"{name}: {error.strerror or error}")
        except Exception as error:
            failed.append(f"{name}: {in_a_line(error)}")

    yield attempt
    if failed:
        raise Incomplete(f"not written: {'; '.join(failed)}; all else is complete")


def in_a_line(error: Exception) -> str:
    """Return an error of another's code, kind and message, without its line ends."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the nearest known name, else the list of known names.

    A name that is a word of a known one is nearest to that: `score` to `score_threshold`.
    """
    known = sorted(known)
    near = [other for other in known if name in other.split("_")]
    near = near or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"
