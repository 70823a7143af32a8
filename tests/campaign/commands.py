"""detkit's commands as a user calls them, held to the rule."""

import io
import sys
import traceback
import unicodedata
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from detkit.cli import INTERRUPTED, USAGE_ERROR, run_command

PROBLEMS = 1  # exit status of `dataset check` that has found any
OUT = "out"  # where the readers of formats/ write, below the current folder


class Broken(Exception):
    """The rule is broken: what happened."""


def run(command: str, *arguments: str | Path, files: str | Path = OUT) -> int:
    """Run a command in this process, and return its exit status.

    Raises Broken unless it ended with 0, 1 or 130 (by Ctrl-C), or with 2, one line of error and nothing new in the
    folder `files`; and for characters that control a terminal. Any other exception is the command's own.
    """
    before = listing(files)
    out = io.TextIOWrapper(io.BytesIO(), "utf-8", errors="strict")
    err = io.TextIOWrapper(io.BytesIO(), "utf-8", errors="backslashreplace")  # as the interpreter opens them
    with redirect_stdout(out), redirect_stderr(err):
        try:
            status = run_command(command, [str(word) for word in arguments])
        except SystemExit as end:  # argparse
            status = end.code
        sys.stdout.flush()
    said = []
    for stream in (out, err):
        stream.flush()
        said.append(stream.buffer.getvalue().decode())
    check_outcome(status, *said)
    if status == USAGE_ERROR and (left := listing(files) - before):
        raise Broken(f"status 2, and left behind: {', '.join(sorted(left)[:5])}")
    return int(status or 0)


def check_outcome(status: object, out: str, err: str) -> None:
    """Raise Broken unless a status and what was printed are as the rule has it."""
    odd = {character for character in out + err if unicodedata.category(character) == "Cc"} - set("\n\t\r")
    if odd:
        raise Broken(f"printed control characters {sorted(odd)}: {(out + err)[-300:]!r}")
    if status not in (0, PROBLEMS, USAGE_ERROR, INTERRUPTED):
        raise Broken(f"exit status {status}: {err[-300:]!r}")
    errors = [line for line in err.split("\n") if "error: " in line]
    if status == USAGE_ERROR and (len(errors) != 1 or not errors[0].partition("error: ")[2].strip()):
        raise Broken(f"exit status 2 with {len(errors)} lines of error: {err[-300:]!r}")


def listing(folder: str | Path) -> set[str]:
    """Return what lies in a folder, at any depth; nothing where there is none."""
    return {str(path) for path in Path(folder).rglob("*")}


def origin(error: BaseException) -> str:
    """Return `file.py:line` of the last place in detkit that an error came through."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/detkit/" in frame.filename]
    return f"{frames[-1].filename.rpartition('/detkit/')[2]}:{frames[-1].lineno}" if frames else ""
