"""Webhooks: which addresses are called, that one which trickles ends, and what is told of a failure."""

from __future__ import annotations

import ipaddress
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from broker.config import NotifySettings
from broker.watch import messages, webhook
from broker.watch.deliveries import Delivery
from broker.watch.times import next_attempt, next_message
from broker.watch.webhook import WebhookError, check_url, is_allowed, post
from tests.busy import Stopwatch
from tests.faults.certificates import Authority

LOOPBACK = ("127.0.0.0/8",)


@pytest.mark.parametrize(
    ("address", "allowed"),
    [
        ("8.8.8.8", True), ("2606:4700::1111", True), ("127.0.0.1", False), ("10.1.2.3", False), ("172.16.0.1", False),
        ("192.168.1.1", False), ("169.254.169.254", False), ("100.64.0.1", False), ("0.0.0.0", False),
        ("224.0.0.1", False), ("255.255.255.255", False), ("::1", False), ("fe80::1", False), ("fd00::1", False),
        ("::ffff:127.0.0.1", False), ("::ffff:8.8.8.8", True), ("64:ff9b::7f00:1", False),
        ("64:ff9b::a9fe:a9fe", False), ("2002:7f00:1::", False), ("::", False), ("ff02::1", False), ("fec0::1", False),
        ("192.0.0.192", False), ("3fff::1", False),
    ],
)  # fmt: skip
def test_only_public_addresses_are_called(address: str, allowed: bool) -> None:
    assert is_allowed(ipaddress.ip_address(address), ()) is allowed


def test_the_operator_allows_a_network_and_no_other() -> None:
    assert is_allowed(ipaddress.ip_address("10.1.2.3"), ("10.1.0.0/16",))
    assert is_allowed(ipaddress.ip_address("::ffff:10.1.2.3"), ("10.1.0.0/16",))
    assert not is_allowed(ipaddress.ip_address("10.2.2.3"), ("10.1.0.0/16",))


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.org/", "file:///etc/passwd", "https:///x", "https://user@example.org/", "https://[::1]/",
        "https://169.254.169.254/latest", "https://example.org/a b", "https://example.org/\r\nHost: x",
        "https://example.org\\@127.0.0.1/", "https://example.org/#x", "https://" + "a" * 2000, "gopher://a", "",
    ],
)  # fmt: skip
def test_what_is_no_url_of_a_webhook(url: str) -> None:
    with pytest.raises(ValueError, match=r"URL|public"):
        check_url(url, ())


# 127.0.0.1 in the ways that only resolving tells.
@pytest.mark.parametrize("host", ["localhost", "2130706433", "0x7f000001", "127.1"])
def test_a_name_that_leads_inside_is_not_called(host: str, heard: list[bytes], port: int) -> None:
    with pytest.raises(WebhookError, match=r"no public address|no such host"):
        post(f"https://{host}:{port}/secret", {}, "1", (), 60.0)
    assert heard == []


def test_the_address_that_was_looked_at_is_the_one_that_is_called(
    monkeypatch: pytest.MonkeyPatch, heard: list[bytes], port: int
) -> None:
    resolve = socket.getaddrinfo
    asked = []

    def once(host: str, *rest: Any, **options: Any) -> Any:
        if host == "rebind.example":
            asked.append(host)
            host = "127.0.0.1" if len(asked) == 1 else "127.0.0.2"
        return resolve(host, *rest, **options)

    monkeypatch.setattr(socket, "getaddrinfo", once)
    post(f"http://rebind.example:{port}/hook?a=b", {"text": "x"}, "n1", LOOPBACK, 60.0)
    assert asked == ["rebind.example"]
    head, _, body = heard[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /hook?a=b HTTP/1.1\r\nHost: rebind.example:%d\r\n" % port)
    assert b"Idempotency-Key: n1" in head
    assert json.loads(body) == {"text": "x"}


@pytest.fixture
def heard() -> list[bytes]:
    return []


@pytest.fixture
def port(heard: list[bytes]) -> Iterator[int]:
    """A server that answers 204."""
    with serving(lambda connection: _answer(connection, heard)) as number:
        yield number


def _answer(connection: socket.socket, heard: list[bytes]) -> None:
    got = b""
    while b"\r\n\r\n" not in got or not got.endswith(b"}"):
        got += connection.recv(65_536)
    heard.append(got)
    connection.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")


class serving:  # noqa: N801 - used as a function
    """A server of one connection at a time, each given to a function."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self._server = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            with connection, suppress(OSError):
                self._handle(connection)

    def __enter__(self) -> int:
        self._thread.start()
        number: int = self._server.getsockname()[1]
        return number

    def __exit__(self, *_: object) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join(5.0)


def test_a_server_that_trickles_is_left_after_the_time_for_all() -> None:
    def trickle(connection: socket.socket) -> None:
        connection.recv(65_536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
        for _ in range(600):
            connection.sendall(b"a")
            time.sleep(0.1)

    with serving(trickle) as number, pytest.raises(WebhookError, match=r"127\.0\.0\.1: no answer within 1 s"):
        post(f"http://127.0.0.1:{number}/SECRET", {}, "1", LOOPBACK, 1.0)


def test_a_body_that_trickles_ends_too() -> None:
    def trickle(connection: socket.socket) -> None:
        connection.recv(65_536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 4000\r\n\r\n")
        for _ in range(100):
            connection.sendall(b"a")
            time.sleep(0.1)

    with serving(trickle) as number, Stopwatch() as watch, pytest.raises(WebhookError, match="no answer within 1 s"):
        post(f"http://127.0.0.1:{number}/", {}, "1", LOOPBACK, 1.0)
    assert watch.seconds < 5.0


def test_a_handshake_that_ends_late_leaves_no_time_for_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = Authority(tmp_path, "authority")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(*authority.issue("server"))
    trusting = ssl.create_default_context(cafile=authority.certificate)
    monkeypatch.setattr(ssl, "create_default_context", lambda: trusting)
    connect = socket.create_connection

    def slow(*given: Any, **options: Any) -> socket.socket:
        time.sleep(0.6)
        return connect(*given, **options)

    monkeypatch.setattr(socket, "create_connection", slow)

    def trickle(connection: socket.socket) -> None:
        time.sleep(0.6)
        with server.wrap_socket(connection, server_side=True) as secure:
            secure.recv(65_536)
            secure.sendall(b"HTTP/1.1 200 OK\r\nX: ")
            for _ in range(80):
                secure.sendall(b"a")
                time.sleep(0.1)

    with serving(trickle) as number, Stopwatch() as watch, pytest.raises(WebhookError, match="no answer within 1 s"):
        post(f"https://127.0.0.1:{number}/", {}, "1", LOOPBACK, 1.0)
    assert watch.seconds < 5.0


def test_a_name_that_is_resolved_late_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    end = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: end.wait(20.0) and [])
    with (
        Stopwatch() as watch,
        pytest.raises(WebhookError, match=r"late\.example: its name is not resolved within 0\.5 s"),
    ):
        post("https://late.example/", {}, "1", (), 0.5)
    assert watch.seconds < 5.0
    end.set()


def test_no_failure_tells_the_path() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        number = closed.getsockname()[1]
    for url in (f"http://127.0.0.1:{number}/SECRET", "https://nowhere.invalid/SECRET"):
        with pytest.raises(WebhookError) as caught:
            post(url, {}, "1", LOOPBACK, 5.0)
        assert "SECRET" not in str(caught.value)


def test_a_name_in_slacks_text_calls_nobody() -> None:
    row = {"survey": "ztf", "object_id": "<!channel>&", "label": "<b>", "class_name": "M", "probability": 0.5}
    row |= {"event": "e", "anomaly_score": None, "ra": None, "dec": None}
    delivery = Delivery(1, "n", 0, 1, [row], {"name": "mine", "topic": "t", "webhook": "https://a.org/x"})
    text = messages.call(delivery, NotifySettings())["text"]
    assert text == "*mine*: 1 new match\n\u2022 &lt;!channel&gt;&amp; (&lt;b&gt;) M 0.50"


def test_when_messages_and_attempts_are_due() -> None:
    assert next_message(61000.5, 24.0, 16) == 61000 + 16 / 24
    assert next_message(61000.7, 24.0, 16) == 61001 + 16 / 24
    assert next_message(61000.5, 6.0, 16) == 61000.75
    seconds = [(next_attempt(0.0, n, 30.0, 200.0)) * 86_400 for n in (1, 2, 3, 4, 5, 5000)]
    assert seconds == pytest.approx([30, 60, 120, 200, 200, 200])
    assert webhook.check_url("https://example.org:8443/a", ()).port == 8443
