"""Code of a user's own: Python files that register backbones, detectors and formats of data sets.

A config names them in `imports`, from the working folder on as all of its paths, a command line in `--import`. What a
checkpoint names is never run by itself, since reading a checkpoint runs no code.
"""

import sys
import traceback
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path

from detkit.errors import UserError

imported: list[str] = []  # what has been imported here, as it was named


def import_code(names: Iterable[str]) -> None:
    """Import files (`PATH.py`) and installed modules, each once.

    A file's folder is searched from then on, so that it can import files beside it. UserError, in one line, where there
    is no such file or module, or where it fails, with the place.
    """
    for name in names:
        if name not in imported:
            _import(name)
            imported.append(name)


def _import(name: str) -> None:
    path = Path(name).resolve() if name.endswith(".py") else None
    if path is not None:
        if not path.is_file():
            raise UserError(f"imports: no file {name}; give the path of a Python file, or the name of a module")
        # behind all others: what is called as an installed module must not take its place
        if str(path.parent) not in sys.path:
            sys.path.append(str(path.parent))
    module = name if path is None else path.stem
    try:
        imported_module = import_module(module)
    except UserError:
        raise
    except ModuleNotFoundError as error:
        if error.name != module:
            raise UserError(f"imports: {name} imports {error.name!r}, which is not installed") from None
        raise UserError(f"imports: no module {name!r}; a file is named with .py, as in {name}.py") from None
    except Exception as error:
        at = error if isinstance(error, SyntaxError) else traceback.extract_tb(error.__traceback__)[-1]
        where = f"{at.filename}:{at.lineno}"
        raise UserError(f"imports: {name} fails at {where}: {type(error).__name__}: {error}") from None
    file = getattr(imported_module, "__file__", None)
    if path is not None and (file is None or Path(file).resolve() != path):
        raise UserError(f"imports: {name}: there is another module {module!r}, {file or 'of Python'}; rename the file")
