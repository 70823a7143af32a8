"""One process at a time."""

import errno
import fcntl
import os
from pathlib import Path

import pytest

from detkit.errors import UserError
from detkit.runtime.lock import locked
from tests.locks import held_by_another


def test_the_holder_is_named_and_its_death_frees(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with held_by_another(path) as number:
        with (
            pytest.raises(UserError, match=f"^it is being written by process {number} on "),
            locked(path, "it"),
        ):
            pass
        with pytest.raises(UserError, match=f"process {number}"), locked(path, "it"):
            pass
    assert path.exists()
    with locked(path, "it"):
        assert path.read_text().startswith(f"process {os.getpid()} ")
    assert not path.exists()


def test_a_child_does_not_hold_it(tmp_path: Path) -> None:
    """Loaders may outlive a killed process for seconds."""
    path = tmp_path / ".lock"
    ready, done = os.pipe(), os.pipe()
    with locked(path, "it"):
        child = os.fork()
        if not child:
            os.write(ready[1], b".")
            os.read(done[0], 1)
            os._exit(0)
        os.read(ready[0], 1)
    with held_by_another(path):
        pass
    os.write(done[1], b".")
    assert os.waitpid(child, 0)[1] == 0


def test_a_lock_file_that_was_removed_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its holder let go between the opening of the file and its locking."""
    path, lockf, calls = tmp_path / ".lock", fcntl.lockf, []

    def remove_first(*arguments: int) -> None:
        lockf(*arguments)
        calls.append(arguments)
        if len(calls) == 1:
            path.unlink()

    monkeypatch.setattr(fcntl, "lockf", remove_first)
    with locked(path, "it"):
        assert path.exists()
    assert len(calls) == 2


def test_a_file_system_without_locks_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", fail)
    with locked(tmp_path / ".lock", "it"):
        pass
    assert "no locks here" in capsys.readouterr().err
