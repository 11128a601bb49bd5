"""A TCP proxy that counts round trips: how often the client began to send after the server had answered."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self


class CountingProxy:
    """Listens on a free loopback port and forwards one connection at a time to another port."""

    def __init__(self, target_port: int) -> None:
        self._target = target_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.round_trips = 0
        self._client_speaks = False
        self._threads = [threading.Thread(target=self._accept)]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join()

    def rewrite(self, data: bytes) -> bytes:
        """What the server gets of what the client sends; for tests that change it."""
        return data

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._target))
            for source, sink, speaks in ((client, server, True), (server, client, False)):
                thread = threading.Thread(target=self._forward, args=(source, sink, speaks))
                thread.start()
                self._threads.append(thread)

    def _forward(self, source: socket.socket, sink: socket.socket, client_speaks: bool) -> None:
        # Either side may close first.
        with source, suppress(OSError):
            while data := source.recv(1 << 16):
                if client_speaks and not self._client_speaks:
                    self.round_trips += 1
                self._client_speaks = client_speaks
                sink.sendall(self.rewrite(data) if client_speaks else data)
            sink.shutdown(socket.SHUT_WR)
