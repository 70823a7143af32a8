"""The command line: `detkit COMMAND ...`, and tools/COMMAND.py, which is the same.

A command is a module of this folder with `DESCRIPTION` and `EPILOG` for --help, `add_arguments(parser)` and
`run(arguments)`. It imports what is heavy inside `run`, so that `--help` is quick, and raises UserError for whatever a
user can cause.
"""

import argparse
import io
import os
import sys
from importlib import import_module
from types import ModuleType

from detkit.cli.arguments import Parser
from detkit.errors import Incomplete, UserError, did_you_mean
from detkit.runtime.screen import complain

COMMANDS = {
    "train": "train a detector from a config",
    "evaluate": "mAP of a checkpoint, or of a file of detections",
    "compare": "train and measure several detectors, side by side",
    "detect": "run a checkpoint on images, folders, videos or a camera",
    "inside": "what a network's layers have learned, and where it looks",
    "export": "write a checkpoint as ONNX, or compress it",
    "dataset": "fetch, check, show, convert and split data sets",
    "proposals": "make, measure and convert region proposals",
    "configs": "list the configs that come with detkit, or print one",
    "models": "list the detectors",
    "backbones": "list the backbones",
    "benchmark": "time detkit beside torchvision",
}

IMPORT = "--import"  # an option of all commands
INCOMPLETE = 1
USAGE_ERROR = 2
INTERRUPTED = 130


def main(argv: list[str] | None = None) -> int:
    """Entry point of the `detkit` command; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        lines = [f"  {name:{width}}  {text}" for name, text in COMMANDS.items()]
        print("usage: detkit COMMAND ...\n\ncommands (each has --help):\n" + "\n".join(lines))
        return 0 if argv else USAGE_ERROR
    if argv[0] == "--version":
        from importlib.metadata import version

        print(version("detkit"))
        return 0
    if argv[0] not in COMMANDS:
        return _fail(f"unknown command {argv[0]!r}{did_you_mean(argv[0], COMMANDS)}")
    return run_command(argv[0], argv[1:])


def command_parser(name: str) -> tuple[ModuleType, Parser]:
    """Return a command's module and parser."""
    command = import_module(f"detkit.cli.{name}")
    parser = Parser(f"detkit {name}", command.DESCRIPTION, command.EPILOG)
    command.add_arguments(parser)
    parser.add_argument(IMPORT, metavar="FILE.py", help="your own models, backbones, formats; repeatable")
    return command, parser


def run_command(name: str, argv: list[str] | None = None) -> int:
    """Run one command; every error that a user can cause becomes one line on stderr and status 2."""
    command, parser = command_parser(name)
    argv, names = _take_import(sys.argv[1:] if argv is None else argv)
    arguments = parser.parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # where the terminal's alphabet lacks a letter
    try:
        if names:
            from detkit.extensions import import_code

            import_code(names)
        status = command.run(arguments)
        sys.stdout.flush()
    except Incomplete as error:
        complain(error, "warning")
        return INCOMPLETE
    except UserError as error:
        return _fail(str(error))
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):  # torch raises it, in the middle of anything, when one has ended
            raise
        return _fail(
            f"a process that loads images was killed, as the system does when memory is short ({error}); "
            "what was saved is intact: try train.workers=0, a smaller batch or data.cache=false"
        )
    except KeyboardInterrupt as stop:
        print("; ".join(("interrupted", *map(str, stop.args))), file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # the reader (head, less) went away; keep Python from complaining once more at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a full disk, a folder that is a file, no permission
        return _fail(f"{error.strerror or error}: {error.filename}" if error.filename else str(error))
    return status or 0


def _take_import(argv: list[str]) -> tuple[list[str], list[str]]:
    """Return arguments without --import, wherever it stands, also behind an action's name, and its values."""
    if not any(text == IMPORT or text.startswith(f"{IMPORT}=") for text in argv):
        return argv, []
    alone = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    alone.add_argument(IMPORT, action="append", dest="names")
    taken, rest = alone.parse_known_args(argv)
    return rest, taken.names


def _fail(message: str) -> int:
    complain(message)
    return USAGE_ERROR
