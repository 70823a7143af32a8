"""MATLAB files, read in a process of its own: scipy's reader ends its process on some damaged files."""

import os
import sys
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from detkit.errors import UserError
from detkit.limits import UNPACKED, limit

GB = 1_000_000_000


def read_variables(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Return those of the variables `names` that a MATLAB file has, cell arrays as arrays of objects.

    Raises UserError, in one line, for a damaged file, one of version 7.3, and one that takes more memory than
    DETKIT_MAX_UNPACKED_GB.
    """
    most = limit(UNPACKED)
    try:
        # forked where that can be: a new process would take seconds to import what this one has
        context = get_context("fork" if sys.platform == "linux" else None)
        with ProcessPoolExecutor(1, context, _limit_memory, (int(most * GB),)) as pool:
            return pool.submit(_load, path, names).result()
    except UserError:
        raise
    except NotImplementedError:
        raise UserError(f"{path}: a MATLAB 7.3 file; save it once more in MATLAB with save(FILE, '-v7')") from None
    except BrokenProcessPool:
        raise UserError(f"{path}: damaged: scipy's reader of MATLAB files ended at it") from None
    except MemoryError:
        raise UserError(
            f"{path}: damaged, or takes more than {most:g} GB; if it is to be trusted, raise {UNPACKED}"
        ) from None
    except Exception as error:  # scipy raises what it happens on in a damaged file: zlib.error, TypeError, ...
        raise UserError(f"{path}: damaged, or no MATLAB file: {' '.join(str(error).split())}") from None


def _limit_memory(size: int) -> None:
    """Let this process take so many bytes more than it has, where the system can limit that."""
    try:
        import resource

        now = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (now + size, now + size))
    except (ImportError, OSError, ValueError):
        pass


def _load(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    from scipy.io import loadmat, whosmat

    values = loadmat(path, variable_names=names)
    if names[0] not in values:
        there = ", ".join(name for name, *_ in whosmat(path)) or "nothing"
        raise UserError(f"{path}: no variable {names[0]!r} in it, only {there}")
    return {name: values[name] for name in names if name in values}
