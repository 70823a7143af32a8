"""Files are written whole or not at all; names answer misspellings."""

import stat

import pytest

from detkit.errors import UserError
from detkit.files import atomic_path, write_atomic
from detkit.registry import Registry


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    write_atomic(path, "old")

    def fail() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_files_have_ordinary_rights_and_folders_are_made(tmp_path):
    write_atomic(tmp_path / "new" / "a.bin", b"x")
    assert stat.S_IMODE((tmp_path / "new" / "a.bin").stat().st_mode) & 0o444 == 0o444


def test_registry_names_the_nearest():
    registry: Registry = Registry("backbone")
    for name in ("resnet50", "resnet18"):
        registry.register(name)(object)
    assert registry.names("res*") == ["resnet18", "resnet50"]
    with pytest.raises(UserError, match="unknown backbone 'resnt50'; did you mean 'resnet50'"):
        registry.get("resnt50")
    with pytest.raises(ValueError, match="registered twice"):
        registry.register("resnet18")(object)
