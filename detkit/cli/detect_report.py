"""The detections.json of detkit detect."""

import json
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from detkit.structures import Detections


class Report:
    """detections.json, written entry by entry, so that a long video needs no memory; whole at the end or not at all.

    path: None writes nothing. header: what comes before "images".
    """

    def __init__(self, path: Path | None, header: dict[str, Any]) -> None:
        self.path, self._header = path, header
        self._entries: Generator[None, dict[str, Any] | None] | None = None

    def __enter__(self) -> Self:
        return self

    def add(self, entry: dict[str, Any]) -> None:
        """Append one photo or frame."""
        if self.path is None:
            return
        if self._entries is None:
            # only now, so that a command that finds nothing to read makes no folder
            self._entries = self._write(self.path)
            next(self._entries)
        self._entries.send(entry)

    def __exit__(self, *error: Any) -> None:
        if self._entries is None:
            return
        if error[0] is None:
            next(self._entries, None)
        else:
            self._entries.close()

    def _write(self, path: Path) -> Generator[None, dict[str, Any] | None]:
        """Write what is sent; None ends the file, closing removes it."""
        from detkit.files import atomic_path

        with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
            before = json.dumps(self._header, ensure_ascii=False)[:-1] + ', "images": ['
            while (entry := (yield)) is not None:
                file.write(before + "\n" + json.dumps(entry, ensure_ascii=False))
                before = ","
            file.write("\n]}\n")


def plain(detections: "Detections", classes: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return the detections of one picture as plain data."""
    rows = zip(detections.boxes[0].tolist(), detections.scores[0].tolist(), detections.labels[0].tolist())
    return [
        {"class": classes[label], "score": round(score, 6), "box": [round(edge, 3) for edge in box]}
        for box, score, label in rows
    ]
