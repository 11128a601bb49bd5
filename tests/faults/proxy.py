"""A TCP proxy that is a bad network: slow, silent, or gone."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Self

from broker.embedded.ports import free_port

_CHUNK: Final = 1 << 20


class BadNetwork:
    """Forwards connections of a loopback port to another one, until told to delay, to hold or to cut them."""

    def __init__(self, target_port: int | None = None) -> None:
        """``target_port`` may be given later, before the first connection."""
        self.port = free_port()
        self.target_port = target_port
        self._delay = 0.0
        self._cut = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="bad network")
        self._open = asyncio.Event()
        self._open.set()
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    def delay(self, seconds: float) -> None:
        """Bytes arrive so much later, in the direction of the server: a round trip takes that much longer."""
        self._delay = seconds

    def hold(self) -> None:
        """Let no byte through and no end of a connection either, as where a cable is pulled."""
        self._loop.call_soon_threadsafe(self._open.clear)

    def cut(self) -> None:
        """End all connections and refuse new ones."""
        self._do(self._cut_all())

    def heal(self) -> None:
        """Forward everything again, what was held first."""
        self._cut = False
        self._delay = 0.0
        self._loop.call_soon_threadsafe(self._open.set)

    def __enter__(self) -> Self:
        self._thread.start()
        self._do(self._listen())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, action: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(action, self._loop).result(120)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)

    async def _close(self) -> None:
        assert self._server is not None
        self._server.close()
        await self._cut_all()

    async def _cut_all(self) -> None:
        self._cut = True
        connections = list(self._connections)
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        # Cancelled by whoever cuts, and asyncio's server would log that.
        with suppress(asyncio.CancelledError):
            await self._connection(reader, writer)
        self._connections.discard(task)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = [writer]
        pumps: list[asyncio.Task[None]] = []
        try:
            if self._cut:
                return
            await self._open.wait()
            with suppress(OSError):
                server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self.target_port)
                writers.append(server_writer)
                pumps = [
                    asyncio.create_task(self._pump(reader, server_writer, slow=True)),
                    asyncio.create_task(self._pump(server_reader, writer, slow=False)),
                ]
                # One side's end is the end: nothing here closes one direction only.
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
                await self._open.wait()
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            for each in writers:
                each.transport.abort() if self._cut else each.close()
            for each in writers:
                with suppress(OSError):
                    await each.wait_closed()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, slow: bool) -> None:
        """Bytes of one direction; a second task sends them on, so that those on the way delay no others."""
        on_the_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        arrival = asyncio.create_task(self._arrive(on_the_way, writer))
        try:
            with suppress(OSError):
                while data := await reader.read(_CHUNK):
                    on_the_way.put_nowait((self._loop.time() + (self._delay if slow else 0.0), data))
            on_the_way.put_nowait((self._loop.time(), b""))
            await arrival
        finally:
            arrival.cancel()
            await asyncio.gather(arrival, return_exceptions=True)

    async def _arrive(self, on_the_way: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while True:
                due, data = await on_the_way.get()
                await asyncio.sleep(due - self._loop.time())
                await self._open.wait()
                if not data:
                    return
                writer.write(data)
                await writer.drain()
