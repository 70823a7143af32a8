"""Names that others chose, of files and classes: as people see them, and as files can be called."""

import hashlib
import os
import re
from itertools import chain, count

LONGEST = 255  # bytes of a file's name, on nearly all file systems
# control characters, among them ESC, line ends, what turns the direction of text, bytes that are no UTF-8
UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def shown(text: object) -> str:
    """Return text in one line as a terminal or page may show it: characters that would act there are escaped.

    They stand as in a Python literal: ESC is \\x1b, a byte that is no UTF-8 \\xe9.
    """
    return UNSEEN.sub(lambda match: _escape(ord(match[0])), str(text))


def _escape(code: int) -> str:
    code -= 0xDC00 if 0xDC80 <= code <= 0xDCFF else 0  # how Python holds such a byte
    return {9: "\\t", 10: "\\n", 13: "\\r"}.get(code, f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}")


def fit_name(stem: str, room: int = LONGEST) -> str:
    """Return a file's name, or the part of it before what takes the other bytes, of `room` bytes at most.

    A longer one is cut and ends with a digest, so that different ones stay different.
    """
    content = os.fsencode(stem)
    if len(content) <= room:
        return stem
    end = "-" + hashlib.blake2b(content, digest_size=4).hexdigest()
    return content[: room - len(end)].decode(errors="ignore") + end


def unused_name(taken: set[str], stem: str, suffix: str = "") -> str:
    """Return STEM with its suffix, or STEM-2, ..., the first that is not in `taken`, without regard to case; add it.

    A stem that is too long for a file system is cut.
    """
    ends = chain([suffix], (f"-{number}{suffix}" for number in count(2)))
    names = (fit_name(stem, LONGEST - len(end)) + end for end in ends)
    name = next(name for name in names if name.lower() not in taken)
    taken.add(name.lower())
    return name


def plain_name(stem: str) -> str:
    """Return a name that can stand in any list or XML: what `shown` would escape is `_`, no blanks at its edges."""
    return UNSEEN.sub("_", stem).strip() or "_"


def cell_text(text: str) -> str:
    """Return text for a table that spreadsheets open: what they would run as a formula begins with an apostrophe."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text
