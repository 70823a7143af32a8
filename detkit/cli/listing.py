"""Lists of models and backbones as text: one a line, never truncated or wrapped, so that grep and cut can read them."""

from collections.abc import Sequence
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


def where(source: "Source") -> str:
    """Return where weights come from: this disk, a server, a command."""
    return "on this disk" if source.here else urlparse(source.origin).netloc or source.origin


def millions(count: int | None) -> str:
    """Return a number of parameters in millions, `-` for None."""
    return "-" if count is None else f"{count / 1e6:.2f} M"


def billions(count: int | None) -> str:
    """Return a number of operations in billions, `-` for None."""
    return "-" if count is None else f"{count / 1e9:.2f}"
