"""Mails that are taken, and what is told of those that are not."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from aiosmtpd.controller import Controller

from broker.config import NotifySettings
from broker.embedded.ports import free_port
from broker.watch import messages
from broker.watch.deliveries import Delivery

DELIVERY = Delivery(1, "n", 0, 0, [], {"name": "mine", "topic": "t", "webhook": None, "email": "a@example.org"})


class Server:
    """Takes mail, and says no good bye."""

    def __init__(self, helo: str = "") -> None:
        self.taken = 0
        self._helo = helo

    async def handle_EHLO(self, server: Any, session: Any, envelope: Any, name: str, responses: Any) -> Any:  # noqa: N802
        if self._helo:
            server.transport.close()
        session.host_name = name
        return responses

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802
        self.taken += 1
        return "250 OK"

    async def handle_QUIT(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802
        return "421 4.3.0 too busy"


@contextmanager
def listening(server: Server) -> Iterator[NotifySettings]:
    port = free_port()
    controller = Controller(server, hostname="127.0.0.1", port=port)
    controller.start()
    yield NotifySettings(smtp_host="127.0.0.1", smtp_port=port, smtp_security="none", mail_from="t@example.org")
    controller.stop()


def test_a_mail_that_was_taken_is_sent_whatever_the_server_says_then() -> None:
    server = Server()
    with listening(server) as settings:
        messages.send(DELIVERY, settings)
    assert server.taken == 1


def test_a_connection_that_ends_is_told() -> None:
    with listening(Server("close")) as settings, pytest.raises(messages.SendError) as caught:
        messages.send(DELIVERY, settings)
    assert "unexpectedly closed" in str(caught.value)


def test_a_server_whose_greeting_does_not_end_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def drip() -> None:
            one, _ = listener.accept()
            with one, suppress(OSError):
                for _ in range(600):  # each byte is in time for a socket's own timeout
                    one.sendall(b"2")
                    time.sleep(0.05)

        thread = threading.Thread(target=drip, daemon=True)
        thread.start()
        settings = NotifySettings(
            smtp_host="127.0.0.1", smtp_port=port, smtp_security="none", mail_from="t@example.org", timeout_s=0.5
        )
        with pytest.raises(messages.SendError, match=r"no answer within 0\.5 s"):
            messages.send(DELIVERY, settings)
        thread.join()
