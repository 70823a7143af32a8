"""Images at addresses of the web: http and https alone, of a bounded size, each fetched when its turn comes."""

import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException

import numpy as np

from detkit.data.image_file import decode_bytes
from detkit.errors import UserError

SCHEMES = ("https://", "http://")
MAX_BYTES = 64 << 20
TIMEOUT = 10  # seconds without a byte
DEADLINE = 60  # seconds in all
CHUNK = 1 << 16
HANDLERS = (  # those of urllib but for files, ftp and data, which an address may lead on to
    urllib.request.ProxyHandler,
    urllib.request.HTTPHandler,
    urllib.request.HTTPSHandler,
    urllib.request.HTTPDefaultErrorHandler,
    urllib.request.HTTPRedirectHandler,
    urllib.request.HTTPErrorProcessor,
    urllib.request.UnknownHandler,
)


@dataclass(frozen=True)
class Address:
    """A web address of an image."""

    url: str

    def __str__(self) -> str:
        return self.url


def fetch_image(address: Address) -> np.ndarray:
    """Return an image as `decode_image` does, (H, W, 3) RGB uint8.

    Raises UserError, naming the address: no connection, a server's refusal, more than 64 MiB, more than a minute, or no
    image.
    """
    opener = urllib.request.OpenerDirector()
    for handler in HANDLERS:
        opener.add_handler(handler())
    content = bytearray()
    try:
        # some servers refuse whoever does not say what it is
        request = urllib.request.Request(address.url, headers={"User-Agent": "detkit"})
        until = time.monotonic() + DEADLINE
        with opener.open(request, timeout=TIMEOUT) as answer:
            while chunk := answer.read1(CHUNK):
                content += chunk
                if len(content) > MAX_BYTES:
                    raise UserError(f"{address}: more than {MAX_BYTES >> 20} MiB; download it, and detect on the file")
                if time.monotonic() > until:
                    raise UserError(f"{address}: took more than {DEADLINE} s; download it, and detect on the file")
    except urllib.error.HTTPError as error:
        raise UserError(f"{address}: the server answers {error.code} {error.reason}") from None
    except (OSError, HTTPException) as error:  # URLError and a timeout among them
        raise UserError(f"{address}: {getattr(error, 'reason', None) or error or type(error).__name__}") from None
    except ValueError as error:  # what is no address
        raise UserError(f"{address}: {error}") from None
    return decode_bytes(np.frombuffer(content, np.uint8), address.url)
