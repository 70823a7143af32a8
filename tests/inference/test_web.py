"""Images at web addresses, from a server of the test's own on this machine."""

import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import cv2
import numpy as np
import pytest

from detkit.data.image_file import decode_image
from detkit.errors import UserError
from detkit.inference import web
from detkit.inference.images import find_images, read_pixels
from detkit.inference.web import Address, fetch_image
from tests.builders import random_image

PNG = cv2.imencode(".png", random_image(40, 60)[0].permute(1, 2, 0).numpy())[1].tobytes()


class Handler(BaseHTTPRequestHandler):
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/"))
            self.end_headers()
        elif self.path in ("/x.png", "/text", "/endless"):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(PNG if self.path == "/x.png" else b"<html>")
            with suppress(OSError):
                while self.path == "/endless":
                    self.wfile.write(bytes(1 << 16))
        else:
            self.send_error(404)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    Handler.asked = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def test_an_image_is_fetched_when_its_turn_comes(server: str, tmp_path) -> None:
    (tmp_path / "x.png").write_bytes(PNG)
    images, videos = find_images([f"{server}/x.png", f"{server.replace('http', 'HTTP')}/to//x.png"], bgr=False)
    first, second = images
    assert (first, videos, Handler.asked) == (Address(f"{server}/x.png"), [], [])
    assert np.array_equal(read_pixels(first), decode_image(tmp_path / "x.png"))
    assert np.array_equal(read_pixels(second), read_pixels(first))


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/missing.png", "the server answers 404"),
        ("/text", "corrupt or truncated image"),
        ("/endless", "more than 1 MiB; download it"),
        ("/to/file:///etc/passwd", "302"),
        ("/to/ftp://127.0.0.1/x.png", "unknown url type: ftp"),
        ("/a b", "can't contain"),
    ],
)
def test_what_cannot_be_fetched_is_one_line(
    server: str, path: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "MAX_BYTES", 1 << 20)
    with pytest.raises(UserError) as error:
        fetch_image(Address(server + path))
    assert words in str(error.value)
    assert str(error.value).startswith(f"{server}{path}: ")
    assert "\n" not in str(error.value)


def test_what_is_slow_or_away_ends(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "DEADLINE", -1)
    with pytest.raises(UserError, match=r"x\.png: took more than"):
        fetch_image(Address(f"{server}/x.png"))
    with pytest.raises(UserError, match=r"^http://127\.0\.0\.1:1/x\.png: .*refused"):
        fetch_image(Address("http://127.0.0.1:1/x.png"))
