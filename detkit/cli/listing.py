"""Tables of the commands. Lists are never truncated or wrapped, one thing a line, for grep and cut to read."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlparse

if TYPE_CHECKING:
    from detkit.backbones.weights import Source


def table(header: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[str] = ()) -> str:
    """Align the columns of rows below their header; those named in `numbers` to the right."""
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if name in numbers else cell.ljust(width)
            for cell, width, name in zip(line, widths, header)
        ).rstrip()
        for line in lines
    )


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]], *, texts: int = 1) -> None:
    """Print rows, with lines between: the first `texts` columns to the left, the others, which are numbers, right."""
    from rich.console import Console
    from rich.table import Column, Table

    drawn = Table(*header[:texts], *(Column(name, justify="right") for name in header[texts:]))
    for row in rows:
        drawn.add_row(*row)
    Console(highlight=False).print(drawn)


def where(source: "Source") -> str:
    """Return where weights come from: this disk, a server, a command."""
    return "on this disk" if source.here else urlparse(source.origin).netloc or source.origin


def millions(count: int | None) -> str:
    """Return a number of parameters in millions, `-` for None."""
    return "-" if count is None else f"{count / 1e6:.2f} M"


def billions(count: int | None) -> str:
    """Return a number of operations in billions, `-` for None."""
    return "-" if count is None else f"{count / 1e9:.2f}"
