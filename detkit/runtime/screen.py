"""Lines on the screen, in which names are harmless."""

import sys

from detkit.names import shown


def say(*lines: object) -> None:
    """Print each in a line on stdout, at once."""
    for line in lines:
        print(shown(line), flush=True)


def complain(text: object, kind: str = "error") -> None:
    """Print `KIND: text` in a line on stderr, at once."""
    print(f"{kind}: {shown(str(text).strip())}", file=sys.stderr, flush=True)
