"""detkit configs: the configs that come with detkit."""

import argparse
from fnmatch import fnmatchcase

from detkit.cli.listing import table
from detkit.errors import UserError, did_you_mean
from detkit.known_configs import known_configs

DESCRIPTION = "List the configs that come with detkit, which commands take by name; print one that is named in full."
EPILOG = """examples:
  detkit configs
  detkit configs 'custom/*'
  detkit configs custom/ssd_mobilenet_v2 > mine.yaml     (to change it)
  detkit train custom/ssd_mobilenet_v2 data.root=data/mine

shapes/: on a data set that detkit draws itself. custom/: for your own images. voc/: as the papers say. voc07/: small
ones for VOC2007.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pattern", nargs="?", default="*", help="a name, with wildcards: 'custom/*'")


def run(arguments: argparse.Namespace) -> None:
    """Print names, models and first lines; or a whole config."""
    known, pattern = known_configs(), arguments.pattern
    if pattern in known:
        print(known[pattern].read_text(encoding="utf-8"), end="")
        return
    names = [name for name in known if fnmatchcase(name, pattern)]
    if not names:
        raise UserError(f"no config matches {pattern!r}{did_you_mean(pattern.strip('*?'), known)}")
    print(table(("config", "about"), [(name, _about(known[name].read_text(encoding="utf-8"))) for name in names]))


def _about(text: str) -> str:
    """The first line, which is a comment."""
    return text.partition("\n")[0].removeprefix("#").strip()
