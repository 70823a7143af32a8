"""Where the file of an index is written, and when it is read."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from detkit.data.annotations import AnnotatedImage, AnnotatedObject
from detkit.data.index import Index, cached_index, make_index


def index_of(name: str) -> Index:
    """An index of one image, which has one object."""
    return make_index([AnnotatedImage(name, [AnnotatedObject("cat", (0, 0, 1, 2), number=7)])], ["cat"])


@pytest.mark.parametrize("writable", [True, False])
def test_each_index_has_one_file(writable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the root, or, where that is read-only, in the user's cache; by key, and read again while its digest fits."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = tmp_path / "root"
    root.mkdir()
    root.chmod(0o755 if writable else 0o555)
    keys = ("", "images=a", "images=b")
    try:
        for key in keys:
            cached_index(root, key, "digest", Index, lambda key=key: index_of(f"of {key}"))
        for key in keys:
            stored = cached_index(root, key, "digest", Index, lambda: pytest.fail("the file is not read"))
            assert stored.ids.tolist() == [f"of {key}"]
        in_root, in_cache = ([*folder.rglob("*.npz")] for folder in (root, tmp_path / "cache"))
        assert (len(in_root), len(in_cache)) == ((3, 0) if writable else (0, 3))
        again = cached_index(root, "images=a", "another digest", Index, lambda: index_of("new"))
        assert again.ids.tolist() == ["new"]
    finally:
        root.chmod(0o755)


def test_a_damaged_index_is_made_anew(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    many = replace(index_of("first"), first=np.zeros(1000, np.int64))
    cached_index(root, "", "digest", Index, lambda: many)
    (path,) = root.glob(".*.npz")
    whole = path.read_bytes()
    at = whole.index(b"'shape': (1000,)") + len("'shape': (")  # numpy would read as many as are said
    path.write_bytes(whole[:at] + b"0" + whole[at + 1 :])
    assert cached_index(root, "", "digest", Index, lambda: index_of("anew")).ids.tolist() == ["anew"]
