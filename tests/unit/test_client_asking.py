"""What clients ask `trifid web`: a token goes to no other host."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from broker.client import give_feedback
from broker.client.plot import fetch_object
from broker.client.similar import similar_objects
from broker.errors import DependencyUnavailableError, TrifidError


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


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{",
        b"HTTP/1.1 503 Busy\r\nContent-Length: 100\r\n\r\n{",
        b"HTTP/1.1 200",
        b"no HTTP\r\n\r\n",
        b"",
    ],
)
@pytest.mark.parametrize(
    "ask",
    [
        lambda url: fetch_object("ztf", "a", url),
        lambda url: similar_objects(url, "ztf:a"),
        lambda url: give_feedback(url, "ztf:a", "boring"),
    ],
)
def test_a_server_that_dies_in_its_answer_is_told(ask: Callable[[str], object], answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def die() -> None:
            with suppress(OSError):
                while True:
                    one, _ = listener.accept()
                    with one:
                        one.recv(65536)
                        one.sendall(answer)

        thread = threading.Thread(target=die, daemon=True)
        thread.start()
        with pytest.raises(DependencyUnavailableError):
            ask(f"http://127.0.0.1:{listener.getsockname()[1]}")
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
