"""What clients ask `trifid web`: a token goes to no other host."""

from __future__ import annotations

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from broker.client.plot import fetch_object
from broker.client.similar import similar_objects
from broker.errors import TrifidError


@pytest.mark.parametrize(
    "ask",
    [
        lambda url: fetch_object("ztf", "a", url, "SECRET"),
        lambda url: similar_objects(url, "ztf:a", token="SECRET"),
    ],
)
def test_no_redirect_is_followed(ask: Callable[[str], object]) -> None:
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(302 if len(asked) == 1 else 404)
            self.send_header("Location", f"http://localhost:{self.server.server_address[1]}/elsewhere")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with pytest.raises(TrifidError):
        ask(f"http://127.0.0.1:{server.server_address[1]}")
    server.shutdown()
    server.server_close()
    assert len(asked) == 1
