"""Splits outside of a data set: a JSON file that shares out its images.

    {"of": "default", "train": ["a", "b", ...], "val": [...], "test": [...]}

The lists hold ids of images; `of` is the split of the data set that they are of, "" where it has none.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from detkit.errors import UserError
from detkit.files import read_text, write_file

USES = ("train", "val", "test")


class SplitFile(NamedTuple):
    """What such a file holds. of: the split that is shared out. parts: ids of train, val and test; not all need be."""

    of: str
    parts: Mapping[str, Sequence[str]]


def read_split_file(path: str | Path) -> SplitFile:
    """Read a file; UserError, naming it, for anything that is none."""
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError):
        content = None
    parts = dict(content) if isinstance(content, dict) else {}
    of = parts.pop("of", None)
    lists = all(isinstance(ids, list) and all(isinstance(name, str) for name in ids) for ids in parts.values())
    if not isinstance(of, str) or not parts or not lists or not parts.keys() <= {*USES}:
        raise UserError(f'{path}: not of the form {{"of": SPLIT, "train": [ids], "val": [ids], "test": [ids]}}')
    return SplitFile(of, parts)


def write_split_file(path: str | Path, content: SplitFile) -> None:
    """Write a file, whole or not at all."""
    write_file(path, json.dumps({"of": content.of, **content.parts}, indent=0) + "\n")
