"""The parser of a command."""

import argparse
from collections.abc import Sequence
from typing import Any


class Parser(argparse.ArgumentParser):
    """Takes arguments before and after options; also as the parser of one action of a command.

    Above an epilog, such as examples, the description's lines stay as they are.
    """

    def __init__(
        self, prog: str | None = None, description: str | None = None, epilog: str | None = None, **options: Any
    ) -> None:
        formatter = argparse.HelpFormatter if epilog is None else argparse.RawDescriptionHelpFormatter
        super().__init__(prog, description=description, epilog=epilog, formatter_class=formatter, **options)
        self._mixing = False

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> tuple[Any, list[str]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        # a command calls this for its actions, and the intermixed parser, which takes no actions, calls it twice
        if self._mixing or self._subparsers is not None:
            return super().parse_known_args(args, namespace)
        self._mixing = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._mixing = False
