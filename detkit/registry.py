"""Names for models and backbones; all else is an import."""

from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Generic, TypeVar

from detkit.errors import UserError, did_you_mean

T = TypeVar("T", bound=Callable)
E = TypeVar("E", bound=Callable)


class Registry(Generic[T]):
    """A dictionary of named builders that knows how to answer a misspelt name."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[E], E]:
        """Decorator that stores a builder under a name."""

        def store(entry: E) -> E:
            if name in self._entries:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._entries[name] = entry  # pyright: ignore[reportArgumentType]  (E is a T, which it cannot say)
            return entry

        return store

    def get(self, name: str) -> T:
        """Return the builder called `name`; a UserError names the nearest one where there is none."""
        if name not in self._entries:
            raise UserError(f"unknown {self.kind} {name!r}{did_you_mean(name, self._entries)}")
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def match(self, pattern: str) -> list[str]:
        """Return the sorted names that match a shell pattern; a UserError names the nearest where none does."""
        names = self.names(pattern)
        if not names:
            raise UserError(f"no {self.kind} matches {pattern!r}{did_you_mean(pattern.strip('*?'), self._entries)}")
        return names

    def names(self, pattern: str = "*") -> list[str]:
        """Return the sorted names that match a shell pattern."""
        return sorted(name for name in self._entries if fnmatchcase(name, pattern))
