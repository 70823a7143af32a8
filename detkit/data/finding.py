"""Finding the files that annotations and users name, however they write the names."""

import os
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from detkit.data.image_file import IMAGE_SUFFIXES

State = tuple[int, int]  # modification time in ns and size in bytes of a file


class _Folder(NamedTuple):
    """The files of a folder, and the folders in it: real ones and links."""

    files: dict[str, State]
    folders: list[str]
    links: list[str]


class Finder:
    """Looks for files below and around a root. Each folder is read once, so a finder is of one opening.

    Paths are absolute texts.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = os.path.abspath(root)
        self._folders: dict[str, _Folder] = {}
        self._lowered: dict[str, dict[str, str]] = {}  # names with their suffix in lower case -> names
        self._stems: dict[str, dict[str, list[str]]] = {}

    def below(self, *parts: str) -> str:
        """Return a path below the root."""
        return os.path.normpath(os.path.join(self.root, *parts))

    def files(self, folder: str) -> dict[str, State]:
        """Return the names and states of the files of a folder, none where it cannot be read."""
        return self._read(folder).files

    def state(self, path: str) -> State | None:
        """Return the state of a file, None where there is no such file."""
        folder, _, name = path.rpartition("/")
        return self.files(folder or "/").get(name)

    def file(self, path: str) -> str | None:
        """Return the path of a file whose suffix may be in upper or lower case, None where there is no such file."""
        folder, _, name = path.rpartition("/")
        if name in self.files(folder):
            return path
        if folder not in self._lowered:
            self._lowered[folder] = {_lowered(one): one for one in self.files(folder)}
        found = self._lowered[folder].get(_lowered(name))
        return None if found is None else f"{folder}/{found}"

    def images_of(self, folder: str, stem: str) -> list[str]:
        """Return the names of the images of a folder that are called so without their suffix."""
        if folder not in self._stems:
            stems = self._stems[folder] = {}
            for name in self.files(folder):
                if is_image(name):
                    stems.setdefault(os.path.splitext(name)[0], []).append(name)
        return self._stems[folder].get(stem, [])

    def folder(self, name: str, within: str = "") -> str | None:
        """Return the folder of a name, in upper or lower case, in another one; None where there is none."""
        within = within or self.root
        here = self._read(within)
        names = [*here.folders, *here.links]
        found = name if name in names else next((one for one in sorted(names) if one.lower() == name.lower()), None)
        return None if found is None else os.path.join(within, found)

    def folders(self, within: str) -> list[str]:
        """Return the paths of the folders in a folder, sorted."""
        here = self._read(within)
        return [os.path.join(within, name) for name in sorted((*here.folders, *here.links))]

    def walk(self, folder: str) -> Iterator[str]:
        """Yield the paths of all files below a folder. Each folder is entered once, links to folders last."""
        seen: set[str] = set()
        real, links = [folder], list[str]()
        while real or links:
            here = real.pop() if real else links.pop(0)
            key = os.path.realpath(here)
            if key in seen:
                continue
            seen.add(key)
            content = self._read(here)
            yield from (os.path.join(here, name) for name in content.files)
            real += [os.path.join(here, name) for name in content.folders]
            links += [os.path.join(here, name) for name in sorted(content.links)]

    def images(self, folder: str) -> list[str]:
        """Return the paths of all images below a folder, but for hidden files, sorted."""
        return sorted(path for path in self.walk(folder) if is_image(path) and "/." not in path[len(folder) :])

    def find_image(self, name: str, bases: Sequence[str]) -> str | None:
        """Return the path of the image that a file or a user names, None where none is there, or several could be.

        The name may be written in any of `spellings`, be relative to any of the folders `bases`, and lack its suffix
        or have another one.
        """
        texts = spellings(name)
        for text in texts:
            for base in bases:
                path = self._join(base, text)
                if self.state(path) is not None:
                    return path
        for path in (self._join(base, text) for text in texts for base in bases):
            folder, _, last = path.rpartition("/")
            stem = os.path.splitext(last)[0] if is_image(last) else last
            names = self.images_of(folder, stem)
            names = [one for one in names if one.lower() == last.lower()] if len(names) > 1 else names
            if len(names) == 1:
                return os.path.join(folder, names[0])
        return None

    def find_entry(self, name: str, bases: Sequence[str]) -> str | None:
        """Return the path of a folder or list that a file or a user names, None where there is none.

        A folder that the root is in is none: it holds other data sets.
        """
        for text in spellings(name):
            for base in bases:
                path = self._join(base, text)
                if os.path.isfile(path) or (os.path.isdir(path) and not _is_above(path, self.root)):
                    return path
        return None

    @staticmethod
    def _join(base: str, text: str) -> str:
        path = os.path.join(base, text)
        return os.path.normpath(path) if "./" in text or "//" in text or text[-1] in "./" else path

    def _read(self, folder: str) -> _Folder:
        known = self._folders.get(folder)
        if known is not None:
            return known
        content = self._folders[folder] = _Folder({}, [], [])
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    try:
                        if entry.is_dir():
                            (content.links if entry.is_symlink() else content.folders).append(entry.name)
                        else:
                            state = entry.stat()
                            content.files[entry.name] = state.st_mtime_ns, state.st_size
                    except OSError:
                        continue  # a link to nowhere
        except (OSError, ValueError):
            pass  # what cannot be read holds nothing; the name of a folder may be none
        return content


def is_image(name: str) -> bool:
    """Whether a file is called as an image."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def _lowered(name: str) -> str:
    stem, suffix = os.path.splitext(name)
    return stem + suffix.lower()


def spellings(name: str) -> list[str]:
    """Return the paths that a name may stand for: as it is; without blanks around it, with / for \\; `../x` as `x`
    before all else, since Roboflow's ../train/images means train/images; `~` for the user's folder."""
    plain = name.strip().replace("\\", "/")
    if plain == name and plain[:1] not in (".", "~"):
        return [name] if name else []
    inside = re.sub(r"^(\.{1,2}/+)+", "", plain)
    texts = [inside, plain] if plain.startswith("../") else [name, plain, inside]
    if plain.startswith("~"):
        texts.append(os.path.expanduser(plain))
    return [text for text in dict.fromkeys(texts) if text.strip()]


def _is_above(folder: str, root: str) -> bool:
    """Whether the root lies in a folder, and is not that itself."""
    folder, root = os.path.realpath(folder), os.path.realpath(root)
    return folder != root and os.path.commonpath([folder, root]) == folder
