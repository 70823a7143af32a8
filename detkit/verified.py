"""Files of arrays, verified before anything is taken from them.

torch.save and numpy.savez write zip files, with a checksum of each member, but neither torch's reader nor a map into
memory looks at these.
"""

import math
import pickle
import zipfile
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from detkit.errors import UserError
from detkit.limits import UNPACKED, limit

CHUNK = 1 << 20  # bytes read at once
ZIP = b"PK\3\4"  # begins a zip
END = 22  # bytes of a zip's end record, before its comment
MANY = 0xFFFF  # stands in it where there are as many members or more
GB = 1_000_000_000


def verify_zip(file: BinaryIO, source: str | Path, what: str) -> None:
    """Raise UserError, naming `source`, unless the file is a zip whose members all fit their checksums.

    One that unpacks to more than its own size and DETKIT_MAX_UNPACKED_GB is refused before anything is unpacked. The
    file is then at its beginning. what: what it should be, for the error.
    """
    size = file.seek(0, 2)
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            unpacked = sum(member.file_size for member in members)
            if unpacked <= max(size, limit(UNPACKED) * GB):
                if len(set(archive.namelist())) < len(members):
                    raise zipfile.BadZipFile("a name is there twice")
                # which zipfile does not compare: damage in a member's length can hide those behind it
                file.seek(size - END - len(archive.comment))
                if int.from_bytes(file.read(END)[10:12], "little") not in (len(members), MANY):
                    raise zipfile.BadZipFile("it has another number of parts than it states")
                for member in members:
                    with archive.open(member) as part:
                        while part.read(CHUNK):
                            pass
                file.seek(0)
                return
    except UserError:
        raise
    except Exception as error:  # BadZipFile, zlib.error, NotImplementedError, RuntimeError of encrypted ones, ...
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{source}: damaged, or not {what}: {reason}") from None
    raise UserError(
        f"{source}: unpacks to {unpacked / GB:.2g} GB, the limit is {limit(UNPACKED):g}; if it is to be trusted, set "
        f"{UNPACKED}={math.ceil(unpacked / GB)}"
    )


def read_torch(path: Path, what: str, device: torch.device | str = "cpu") -> Any:
    """Return the content of a file that torch.save wrote, tensors and plain data alone, read onto `device`.

    what: what it should be, for the UserError of a file that is something else, or damaged. Files older than torch 1.6
    are no zips and have no checksums.
    """
    try:
        file = BytesIO(path.read_bytes())  # by itself, since torch raises OSError for broken content too
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None
    if file.getbuffer()[:4] == ZIP:  # what torch goes by, too
        verify_zip(file, path, what)
    file.seek(0)
    try:
        return torch.load(file, map_location=device, weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(f"{path}: not {what} (not a file of plain tensors)") from None
    except Exception:  # torch raises what it likes on other files: RuntimeError, OSError, EOFError, KeyError of a byte
        raise UserError(f"{path}: damaged, or not {what}") from None


def nonfinite(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the name of the first tensor that holds a value that is not finite, None where there is none."""
    # the least and largest are NaN where a value is, in a fortieth of the time that isfinite() of all takes
    names = [name for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.numel()]
    ends = [torch.stack(tensors[name].detach().aminmax()).isfinite().all() for name in names]
    fine = torch.stack(ends).tolist() if ends else []  # host sync, once
    return next((name for name, good in zip(names, fine) if not good), None)
