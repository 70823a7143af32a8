"""Downloads, from a server of the test's own on this machine."""

import hashlib
import io
import re
import tarfile
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest

from detkit.data import fetch
from detkit.errors import UserError
from detkit.names import shown


class Server(ThreadingHTTPServer):
    """Serves `files`; `requests` notes (path, range); `cut` ends the next answers after so many bytes."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.cut: list[int] = []
        self.ranges = True
        self.endless: dict[str, int] = {}  # bytes that were sent of files that do not end

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/mirror"


class Handler(BaseHTTPRequestHandler):
    """One answer."""

    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        name, span = self.path.rpartition("/")[2], self.headers.get("Range")
        self.server.requests.append((name, span))
        if name in self.server.endless:
            self.send_response(200)
            self.end_headers()
            with suppress(OSError):
                while self.server.endless[name] < 64 << 20:
                    self.server.endless[name] += self.wfile.write(b"x" * 4096)
            return
        if name not in self.server.files:
            self.send_error(404)
            return
        data = self.server.files[name]
        first = int(re.findall(r"\d+", span)[0]) if span and self.server.ranges else 0
        body = data[first:]
        self.send_response(206 if first else 200)
        self.send_header("Content-Length", str(len(body)))
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        self.wfile.write(body[: self.server.cut.pop(0)] if self.server.cut else body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(fetch.time, "sleep", lambda _: None)
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()


def tar_of(members: dict[str, bytes | tarfile.TarInfo]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                tar.addfile(content)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def offer(server: Server, monkeypatch, **archives: bytes) -> None:
    """Put archives on the server and make them the official ones of voc07."""
    listed = []
    for name, data in archives.items():
        server.files[f"{name}.tar"] = data
        listed.append(fetch.Archive("x", f"{name}.tar", len(data), hashlib.md5(data).hexdigest()))
    source = fetch.Source(tuple(listed), "VOCdevkit/VOC2007", ("trainval", "test"))
    monkeypatch.setitem(fetch.SOURCES, "voc07", source)


BASE = "VOCdevkit/VOC2007/"
TRAINVAL = {BASE + "ImageSets/Main/trainval.txt": b"000005\n", BASE + "JPEGImages/000005.jpg": b"a" * 300_000}
TEST = {BASE + "ImageSets/Main/test.txt": b"000001\n", BASE + "JPEGImages/000001.jpg": b"b" * 1000}


def test_official_files():
    archives = [archive for source in fetch.SOURCES.values() for archive in source.archives]
    from torchvision.datasets.voc import DATASET_YEAR_DICT

    peers = {DATASET_YEAR_DICT[year]["filename"]: DATASET_YEAR_DICT[year] for year in ("2012", "2007", "2007-test")}
    for archive in archives:
        assert archive.md5 == peers[archive.name]["md5"]
        # torchvision's versions name one host of the two, the files are the same
        path = urlsplit(f"{fetch.OFFICIAL}/{archive.folder}/{archive.name}").path
        assert path == urlsplit(peers[archive.name]["url"]).path
        assert archive.size % 512 == 0  # tar's blocks


def test_fetch(server, monkeypatch, tmp_path):
    offer(server, monkeypatch, trainval=tar_of(TRAINVAL), test=tar_of(TEST))
    seen = []
    folder = fetch.fetch("voc07", tmp_path, server.url + "/", lambda *step: seen.append(step))
    assert folder == tmp_path / "VOCdevkit" / "VOC2007"
    assert sorted(p.name for p in (folder / "JPEGImages").iterdir()) == ["000001.jpg", "000005.jpg"]
    assert [p.name for p in tmp_path.iterdir() if p.name != "cache"] == ["VOCdevkit"]
    assert {text.split()[0] for text, _, _ in seen} == {"download", "verify", "unpack"}
    assert all(done <= total for _, done, total in seen)
    count = len(server.requests)
    assert fetch.fetch("voc07", tmp_path, server.url) == folder
    assert len(server.requests) == count  # nothing is fetched twice


def test_goes_on_where_it_stopped(server, monkeypatch, tmp_path):
    data = tar_of(TRAINVAL)
    offer(server, monkeypatch, trainval=data)
    server.cut = [100_000, 0, 50_000]
    part = tmp_path / "downloads" / "trainval.tar.part"
    part.parent.mkdir()
    part.write_bytes(data[:1234])  # of an earlier, killed run
    fetch.fetch("voc07", tmp_path, server.url)
    assert [span for _, span in server.requests] == [f"bytes={n}-" for n in (1234, 101_234, 101_234, 151_234)]


def test_a_server_without_ranges_starts_again(server, monkeypatch, tmp_path):
    offer(server, monkeypatch, trainval=tar_of(TRAINVAL))
    server.ranges, server.cut = False, [100_000]
    fetch.fetch("voc07", tmp_path, server.url)
    assert len(server.requests) == 2


def test_gives_up_but_keeps_what_it_has(server, monkeypatch, tmp_path):
    offer(server, monkeypatch, trainval=tar_of(TRAINVAL))
    server.cut = [5000] + [0] * 99
    with pytest.raises(UserError, match="run the same command again to go on at byte 5000"):
        fetch.fetch("voc07", tmp_path, server.url)
    assert (tmp_path / "downloads" / "trainval.tar.part").stat().st_size == 5000
    server.cut = []
    assert fetch.fetch("voc07", tmp_path, server.url).is_dir()


def test_wrong_content_is_removed(server, monkeypatch, tmp_path):
    data = tar_of(TRAINVAL)
    offer(server, monkeypatch, trainval=data)
    server.files["trainval.tar"] = data[:-1] + b"!"
    with pytest.raises(UserError, match=r"not the official one \(MD5 "):
        fetch.fetch("voc07", tmp_path, server.url)
    assert list((tmp_path / "downloads").iterdir()) == []
    assert not (tmp_path / "VOCdevkit").exists()


def test_wrong_size_is_seen_before_the_download(server, monkeypatch, tmp_path):
    offer(server, monkeypatch, trainval=tar_of(TRAINVAL))
    server.files["trainval.tar"] = b"<html>sorry</html>"
    with pytest.raises(UserError, match="the server's file has 18 bytes"):
        fetch.fetch("voc07", tmp_path, server.url)


def test_a_file_that_does_not_end_is_left(server, monkeypatch, tmp_path):
    offer(server, monkeypatch, a=tar_of({}))
    server.endless["a.tar"] = 0
    with pytest.raises(UserError, match=r"sends more than the \d+ bytes of the official file"):
        fetch.fetch("voc07", tmp_path, server.url)
    assert server.endless["a.tar"] < 64 << 20
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) == 0


@pytest.mark.parametrize("length", ["-5", "abc", "99999"])
def test_a_length_that_is_none_or_another(server, monkeypatch, tmp_path, length):
    offer(server, monkeypatch, a=tar_of({}))
    monkeypatch.setattr(
        Handler, "send_header", lambda self, name, _: BaseHTTPRequestHandler.send_header(self, name, length)
    )
    with pytest.raises(UserError, match=f"the server's file has {length} bytes, the official one "):
        fetch.fetch("voc07", tmp_path, server.url)


@pytest.mark.parametrize("url", ["http://[::1", "http://a b/", "http://\0/"])
def test_what_is_no_address(monkeypatch, tmp_path, url):
    monkeypatch.setattr(fetch.time, "sleep", lambda _: None)
    with pytest.raises(UserError) as error:
        fetch.fetch("voc07", tmp_path, url)
    assert str(error.value).startswith(shown(url))


def test_missing_file_server_and_name(server, monkeypatch, tmp_path):
    offer(server, monkeypatch, trainval=tar_of(TRAINVAL))
    server.files.clear()
    with pytest.raises(UserError, match="the server answers 404"):
        fetch.fetch("voc07", tmp_path, server.url)
    with pytest.raises(UserError, match="connection failed"):
        fetch.fetch("voc07", tmp_path, "http://127.0.0.1:1/x")
    with pytest.raises(UserError, match="not an http or https address"):
        fetch.fetch("voc07", tmp_path, "file:///etc")
    with pytest.raises(UserError, match="no data set 'voc08'"):
        fetch.fetch("voc08", tmp_path)


def link(name: str, target: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, target
    return info


@pytest.mark.parametrize(
    "member",
    [
        {"../../escaped.txt": b"x"},
        {BASE + "../../../escaped.txt": b"x"},
        {"l": link("l", "/etc")},
        {"l": link("l", "../..")},
    ],
)
def test_archives_cannot_write_elsewhere(server, monkeypatch, tmp_path, member):
    root = tmp_path / "deep" / "data"
    offer(server, monkeypatch, trainval=tar_of(TRAINVAL | member))
    with pytest.raises(UserError, match="unsafe archive"):
        fetch.fetch("voc07", root, server.url)
    assert not (root / "VOCdevkit").exists()
    assert [p.name for p in root.iterdir()] == ["downloads"]
    assert not list(tmp_path.rglob("escaped.txt"))


def test_broken_or_foreign_archive(server, monkeypatch, tmp_path):
    offer(server, monkeypatch, trainval=b"no tar at all" * 999)
    with pytest.raises(UserError, match="broken archive"):
        fetch.fetch("voc07", tmp_path, server.url)
    offer(server, monkeypatch, other=tar_of({"readme": b"x"}))
    with pytest.raises(UserError, match="holds no folder VOCdevkit/VOC2007"):
        fetch.fetch("voc07", tmp_path, server.url)


def test_an_incomplete_folder_of_the_user_is_left_alone(tmp_path):
    folder = tmp_path / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main"
    folder.mkdir(parents=True)
    (folder / "trainval.txt").write_text("")
    with pytest.raises(UserError, match="has no split test; move it away"):
        fetch.fetch("voc07", tmp_path)
