"""What bounds the HTTP of a schema registry's client: the time of a whole answer, and its size."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Generic, TypeVar, cast

from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.common._httpx_compat import httpx  # the one of httpx, httpx2 that the client uses

from broker.avro.schema import MAX_SCHEMA_BYTES

T = TypeVar("T")


class AnswerTooLargeError(Exception):
    """An answer of more than MAX_SCHEMA_BYTES."""


class Exchange(threading.Thread, Generic[T]):
    """One question to the registry, which is abandoned where the answer takes too long in all.

    The client's timeout is one for each read: an answer whose headers or body come byte by byte never meets it, and
    neither does the resolution of a name. Hence a thread, whose connections are shut down where it is late.
    """

    def __init__(self, ask: Callable[[], T]) -> None:
        """``ask`` calls the registry's client, with which ``guard`` was called."""
        super().__init__(name="schema registry", daemon=True)  # a late one must not hold up the end of the process
        self._ask = ask
        self._done = threading.Event()
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._abandoned = False
        self._found: list[T] = []
        self._error: Exception | None = None

    def result(self, timeout_s: float) -> T:
        """The answer; raises what the client raises, and TimeoutError after so many seconds."""
        self.start()
        if not self._done.wait(timeout_s):
            with self._lock:
                self._abandoned = True
                for connection in self._sockets:
                    _shut_down(connection)
            raise TimeoutError(f"no whole answer within {timeout_s:g} s")
        if self._error is not None:
            raise self._error
        return self._found[0]

    def run(self) -> None:
        """Ask, and end the connections afterwards; what the client raises is for ``result``."""
        try:
            self._found.append(self._ask())
        except Exception as error:
            self._error = error
        finally:
            self._done.set()
            with self._lock:
                for connection in self._sockets:
                    connection.close()
                self._sockets.clear()

    def prepare(self, request: httpx.Request) -> None:
        """Follow a request of this thread; raises TimeoutError where it was abandoned, so that there is no other."""
        if self._abandoned:
            raise TimeoutError("abandoned")
        request.extensions = {**request.extensions, "trace": self._trace}

    def _trace(self, event: str, info: dict[str, Any]) -> None:
        if event != "connection.connect_tcp.complete":
            return
        opened = info["return_value"].get_extra_info("socket")
        with self._lock:
            # A second descriptor: TLS takes the first over, and the client closes it.
            connection = socket.socket(fileno=os.dup(opened.fileno()))
            self._sockets.append(connection)
            if self._abandoned:
                _shut_down(connection)


def _shut_down(connection: socket.socket) -> None:
    """End a connection under another thread that waits for it."""
    with suppress(OSError):  # the other side may have ended it already
        connection.shutdown(socket.SHUT_RDWR)


class _BoundedStream(httpx.SyncByteStream):
    """The body of an answer, refused where it is too large."""

    def __init__(self, stream: httpx.SyncByteStream) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        size = 0
        for chunk in self._stream:
            size += len(chunk)
            if size > MAX_SCHEMA_BYTES:
                raise AnswerTooLargeError(f"the answer has more than {MAX_SCHEMA_BYTES} bytes")
            yield chunk

    def close(self) -> None:
        self._stream.close()


def guard(client: SchemaRegistryClient) -> None:
    """Bound what an answer may take, for which the client has no setting.

    A connection is not kept either, as a schema is fetched once in months, and answers are not compressed, so that
    the bound is one of memory.
    """

    def follow(request: httpx.Request) -> None:
        thread = threading.current_thread()
        if isinstance(thread, Exchange):
            thread.prepare(request)

    def bound(response: httpx.Response) -> None:
        response.stream = _BoundedStream(cast(httpx.SyncByteStream, response.stream))

    session = client._rest_client.session
    session.headers.update({"Connection": "close", "Accept-Encoding": "identity"})
    session.event_hooks = {"request": [follow], "response": [bound]}
