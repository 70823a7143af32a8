"""The parser of a command."""

import argparse
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from detkit.errors import UserError
from detkit.names import shown

MOST = 2**31 - 1  # what everything that takes a number holds
SIDE = 16384  # pixels of a network's input, at most


def whole(least: int | None = None, most: int = MOST) -> Callable[[str], int]:
    """Return the type of an argument that is a whole number between `least`, where that is not left to the command,
    and `most`."""

    def read(text: str) -> int:
        brief = text if len(text) < 40 else f"{text[:30]}..."
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{brief!r} is not a whole number that could be meant") from None
        if value > most or value < -most:
            raise argparse.ArgumentTypeError(f"{brief} is more than {most}")
        if least is not None and value < least:
            raise argparse.ArgumentTypeError(f"{brief} is less than {least}")
        return value

    return read


def add_backend(parser: argparse.ArgumentParser) -> None:
    """Add the options of what runs a detector's networks, see `backend_overrides`."""
    parser.add_argument(
        "--backend",
        metavar="NAME",
        help="what runs the networks: torch, onnxruntime, openvino, or auto, the fastest that is installed (default: "
        "auto for an .onnx file; torch for a checkpoint, which the others run after an export of some seconds)",
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="let torch.compile compile the network, with constant weights: up to minutes, kept for the next time",
    )


def backend_overrides(arguments: argparse.Namespace) -> list[str]:
    """Return the changes to a config that `add_backend`'s options are; UserError where no torch runs the network."""
    if arguments.compile and (arguments.backend not in (None, "torch") or str(arguments.checkpoint).endswith(".onnx")):
        raise UserError("--compile is for a checkpoint on torch: leave it out, or --backend")
    return ["detect.compile=true"] * arguments.compile


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

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {shown(message)}; see {self.prog} --help\n")

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> tuple[Any, list[str]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        # a command calls this for its actions, and the intermixed parser, which takes no actions, calls it twice
        if self._mixing or self._subparsers is not None:
            return super().parse_known_args(args, namespace)
        self._mixing = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._mixing = False
