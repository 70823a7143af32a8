"""Files are written whole or not at all; names answer misspellings."""

import errno
import json
import os
import stat
from pathlib import Path

import pytest

from detkit.errors import UserError
from detkit.files import TEMPORARY, atomic_path, save_atomic, write_atomic
from detkit.names import LONGEST, cell_text, fit_name, shown
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


def test_a_full_disk_names_the_file(tmp_path):
    def full(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space") as error:
        save_atomic(tmp_path / "a.npz", full)
    assert error.value.filename == str(tmp_path / "a.npz")
    assert list(tmp_path.iterdir()) == []


def test_files_have_ordinary_rights_and_folders_are_made(tmp_path):
    write_atomic(tmp_path / "new" / "a.bin", b"x")
    assert stat.S_IMODE((tmp_path / "new" / "a.bin").stat().st_mode) & 0o444 == 0o444


@pytest.mark.parametrize("name", ["a.pt", "a", ".a", "n" * 255, "n" * 251 + ".jpg", "." + "n" * 254, "caf\udce9.jpg"])
def test_temporary_names_are_short_and_known(tmp_path, name):
    with atomic_path(tmp_path / name) as temporary:
        assert TEMPORARY.fullmatch(temporary.name)
        assert len(os.fsencode(temporary.name)) < 100
        temporary.write_text("x")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert not TEMPORARY.fullmatch(name)


def test_names_that_are_no_text_read_back_from_json(tmp_path):
    name = os.fsdecode(b"caf\xe9 \xc3\xa9")
    write_atomic(tmp_path / "a.json", json.dumps(name, ensure_ascii=False))
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == name


def test_what_would_act_on_a_screen_is_escaped():
    assert shown("é 猫 a\\b") == "é 猫 a\\b"
    assert shown("\x1b[31m\n\r\t\x9b\u202e\udce9\ud800\u2028") == r"\x1b[31m\n\r\t\x9b\u202e\xe9\ud800\u2028"


def test_errors_are_a_line_that_acts_on_nothing():
    assert str(UserError("no image a\nb\x1b[2J.jpg")) == r"no image a\nb\x1b[2J.jpg"


def test_names_that_are_too_long_are_cut_and_differ():
    assert fit_name("a" * LONGEST) == "a" * LONGEST
    cut = {fit_name("é" * 200 + end, 100) for end in "ab"}
    assert len(cut) == 2
    assert all(len(os.fsencode(name)) <= 100 for name in cut)


def test_cells_that_a_spreadsheet_would_run():
    assert [cell_text(text) for text in ("=1", "+1", "-1", "@a", "\ta", "a=1", "")] == [
        *("'=1", "'+1", "'-1", "'@a", "'\ta", "a=1", ""),
    ]


def test_registry_names_the_nearest():
    registry: Registry = Registry("backbone")
    for name in ("resnet50", "resnet18"):
        registry.register(name)(object)
    assert registry.names("res*") == ["resnet18", "resnet50"]
    with pytest.raises(UserError, match="unknown backbone 'resnt50'; did you mean 'resnet50'"):
        registry.get("resnt50")
    with pytest.raises(ValueError, match="registered twice"):
        registry.register("resnet18")(object)
