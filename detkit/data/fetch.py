"""Downloads of the official PASCAL VOC archives: resumable, verified, unpacked as a whole or not at all."""

import hashlib
import os
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory

from detkit.errors import UserError, did_you_mean

OFFICIAL = "https://thor.robots.ox.ac.uk/pascal/VOC"
CHUNK = 1 << 20
TIMEOUT = 30  # seconds without a byte
TRIES = 5  # connections that bring nothing new before giving up

Progress = Callable[[str, int, int], None]  # what is being done, how many bytes or files are done, of how many


@dataclass(frozen=True)
class Archive:
    """One official file; its size in bytes and MD5 are those of the official server."""

    folder: str
    name: str
    size: int
    md5: str


@dataclass(frozen=True)
class Source:
    """A data set: its archives, the folder that they make, and the splits that are then there."""

    archives: tuple[Archive, ...]
    folder: str
    splits: tuple[str, ...]


SOURCES = {
    "voc07": Source(
        (
            Archive("voc2007", "VOCtrainval_06-Nov-2007.tar", 460032000, "c52e279531787c972589f7e41ab4ae64"),
            Archive("voc2007", "VOCtest_06-Nov-2007.tar", 451020800, "b6e924de25625d8de591ea690078ad9f"),
        ),
        "VOCdevkit/VOC2007",
        ("trainval", "test"),
    ),
    "voc12": Source(
        (Archive("voc2012", "VOCtrainval_11-May-2012.tar", 1999639040, "6cd6e144f989b92b3379bac3b3de84fd"),),
        "VOCdevkit/VOC2012",
        ("trainval",),
    ),
}


def fetch(name: str, root: str | Path, mirror: str | None = None, progress: Progress = lambda *_: None) -> Path:
    """Bring `voc07` (trainval and test) or `voc12` (trainval) to ROOT/VOCdevkit/VOC20xx; return that folder.

    mirror: URL of a folder with files of the official names. An interrupted download goes on where it stopped. The
    data set appears by one rename, once every archive is verified and unpacked; the archives are then removed. Raises
    UserError: unknown name, server or connection failure, wrong size or checksum, unsafe archive.
    """
    if name not in SOURCES:
        raise UserError(f"no data set {name!r} to fetch{did_you_mean(name, SOURCES)}")
    if mirror is not None and not mirror.startswith(("https://", "http://")):
        raise UserError(f"mirror {mirror} is not an http or https address")
    source, root = SOURCES[name], Path(root)
    target = root / source.folder
    if target.exists():
        missing = [s for s in source.splits if not (target / "ImageSets" / "Main" / f"{s}.txt").is_file()]
        if missing:
            raise UserError(f"{target} exists but has no split {missing[0]}; move it away, then fetch again")
        return target
    downloads = root / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    files = []
    for archive in source.archives:
        base = mirror.rstrip("/") if mirror else f"{OFFICIAL}/{archive.folder}"
        files.append(download(f"{base}/{archive.name}", downloads / archive.name, archive.size, archive.md5, progress))
    with TemporaryDirectory(prefix=".unpack.", dir=root, ignore_cleanup_errors=True) as temporary:
        for file in files:
            unpack(file, Path(temporary), progress)
        unpacked = Path(temporary) / source.folder
        if not unpacked.is_dir():
            raise UserError(f"{files[0]} holds no folder {source.folder}")
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(unpacked, target)
    for file in files:
        file.unlink()
    if not any(downloads.iterdir()):
        downloads.rmdir()
    return target


def download(url: str, path: Path, size: int, md5: str, progress: Progress) -> Path:
    """Bring one file of known size and MD5 to `path`, by way of `path`.part, which a later call goes on with."""
    if not path.exists():
        part = path.with_name(path.name + ".part")
        fruitless = 0
        while (have := part.stat().st_size if part.exists() else 0) < size:
            reason = _receive(url, part, have, size, lambda done: progress(f"download {path.name}", done, size))
            if reason is None:
                continue
            fruitless = 0 if part.exists() and part.stat().st_size > have else fruitless + 1
            if fruitless >= TRIES:
                raise UserError(f"{url}: {reason}; run the same command again to go on at byte {have}")
            time.sleep(min(fruitless, 3) * 0.5)
        found = _md5(part, lambda done: progress(f"verify {path.name}", done, size))
        if part.stat().st_size != size or found != md5:
            part.unlink()
            raise UserError(f"{url}: the file is not the official one (MD5 {found}, not {md5}); it was removed")
        os.replace(part, path)
    return path


def _receive(url: str, part: Path, have: int, size: int, done: Callable[[int], None]) -> str | None:
    """Append to `part` what the server sends from byte `have` on; return why it ended early, if it did."""
    try:
        request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            resumed = have > 0 and (answer.headers.get("Content-Range") or "").startswith(f"bytes {have}-")
            if not resumed:
                have = 0  # a server without ranges starts again from the first byte
            length = answer.headers.get("Content-Length") or str(size - have)
            if length != str(size - have):
                more = " more" if have else ""
                raise UserError(f"{url}: the server's file has {length} bytes{more}, the official one {size - have}")
            with open(part, "ab" if resumed else "wb") as file:
                # one byte too many shows that the file is another; no more of it is read
                while chunk := answer.read(min(CHUNK, size + 1 - have)):
                    file.write(chunk)
                    have += len(chunk)
                    done(min(have, size))
                    if have > size:
                        file.truncate(0)
                        raise UserError(f"{url}: the server sends more than the {size} bytes of the official file")
    except urllib.error.HTTPError as error:
        if error.code < 500:
            raise UserError(f"{url}: the server answers {error.code} {error.reason}") from None
        return f"the server answers {error.code} {error.reason}"
    except (urllib.error.URLError, HTTPException, TimeoutError, ConnectionError) as error:
        return f"connection failed ({getattr(error, 'reason', None) or error or type(error).__name__})"
    except ValueError as error:  # what is no address
        raise UserError(f"{url}: {error}") from None
    return None if have == size else "the connection ended early"


def _md5(path: Path, done: Callable[[int], None]) -> str:
    digest = hashlib.md5(usedforsecurity=False)  # the only checksum that was published
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            done(file.tell())
    return digest.hexdigest()


def unpack(path: Path, folder: Path, progress: Progress) -> None:
    """Unpack a tar file into `folder`; UserError where it is broken or a member would land or point outside."""
    try:
        with tarfile.open(path) as tar:
            members = tar.getmembers()
            for done, member in enumerate(members, 1):
                tar.extract(member, folder, filter="data")
                if done % 100 == 0 or done == len(members):
                    progress(f"unpack {path.name}", done, len(members))
    except tarfile.FilterError as error:
        raise UserError(f"{path}: unsafe archive, nothing was unpacked: {error}") from None
    except (tarfile.TarError, EOFError, LookupError, ValueError) as error:  # what tarfile raises on a damaged one
        raise UserError(f"{path}: broken archive: {' '.join(str(error).split())}") from None
