"""TLS for the servers that Trifid starts itself: the files, and a front for a server that was built without it."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from broker.errors import ConfigurationError

_CHUNK: Final = 1 << 16
_START_TIMEOUT: Final = 10.0


@dataclass(frozen=True, slots=True)
class ServerTls:
    """Files in PEM format by which a server identifies itself."""

    certificate: Path
    key: Path
    """Not encrypted, PKCS 8, the only form that Kafka reads."""
    authorities: Path
    """Whose certificates of clients, and of other servers, are trusted."""
    mutual: bool = False
    """Whether clients have to show a certificate of these authorities."""


class TlsFront:
    """Takes TLS connections on a port of the loopback interface and passes them on to a plain one."""

    def __init__(self, tls: ServerTls, port: int, plain_port: int) -> None:
        """Prepare it; ``start`` opens the port. Raises OSError where the files cannot be used."""
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(tls.certificate, tls.key)
        if tls.mutual:
            self._context.load_verify_locations(tls.authorities)
            self._context.verify_mode = ssl.CERT_REQUIRED
        self._port, self._plain_port = port, plain_port
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._end: asyncio.Event | None = None

    def start(self) -> None:
        """Open the port; raises ConfigurationError where it cannot be."""
        opened = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(opened)), daemon=True)
        self._thread.start()
        if not opened.wait(_START_TIMEOUT):
            raise ConfigurationError(f"no TLS on port {self._port}")

    def stop(self) -> None:
        """Close the port and all connections."""
        if self._thread is None or self._loop is None or self._end is None:
            return
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()
        self._thread = None

    async def _serve(self, opened: threading.Event) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        # A client that refuses the certificate is no news for the server's console.
        self._loop.set_exception_handler(lambda loop, context: None)
        connections: set[asyncio.Task[None]] = set()

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            connections.add(task)
            try:
                await self._relay(reader, writer)
            finally:
                connections.discard(task)

        server = await asyncio.start_server(connected, "127.0.0.1", self._port, ssl=self._context)
        opened.set()
        await self._end.wait()
        server.close()
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = [writer]
        try:
            plain_reader, plain_writer = await asyncio.open_connection("127.0.0.1", self._plain_port)
            writers.append(plain_writer)
            # Either side's end is the end of both.
            pumps = [asyncio.create_task(_pump(*pair)) for pair in ((reader, plain_writer), (plain_reader, writer))]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
        except OSError:
            pass  # the plain server is unavailable: the connection ends, as its own would
        finally:
            for each in writers:
                each.close()
            for each in writers:
                with contextlib.suppress(OSError, ssl.SSLError):
                    await each.wait_closed()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(_CHUNK):
        writer.write(data)
        await writer.drain()
