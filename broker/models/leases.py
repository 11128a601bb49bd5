"""Which versions of the model are in use, and by whom: a server must not unload those.

Each worker says in Redis which versions it uses, before it uses them and again every minute. What it said counts for
ten minutes, by Redis's own expiry, so that no clocks need to agree; a worker that was killed is forgotten then.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from contextlib import closing
from typing import Final, cast

import redis

from broker.errors import DependencyUnavailableError, TrifidError
from broker.redis_client import CommandPipeline, RedisConnection

log = logging.getLogger(__name__)

_KEY: Final = "trifid:model_leases"
"""A hash: what each worker uses; beside it a key for each worker, which expires."""
_EXPIRY_S: Final = 600
RENEWED_S: Final = 60.0
_TIMEOUT_S: Final = 5.0
_WRONG_TYPE: Final = "WRONGTYPE"


class Leases:
    """What one worker uses. Safe for several threads."""

    def __init__(self, url: str, worker: str, clock: Callable[[], float] = time.monotonic) -> None:
        """Nothing is written yet. ``worker`` is its name, as no other living process has it."""
        self._redis = RedisConnection(url, timeout=_TIMEOUT_S, connect_timeout=_TIMEOUT_S)
        self._worker, self._clock = worker, clock
        self._lock = threading.RLock()
        self._held: dict[object, str] = {}
        self._written = -RENEWED_S

    def hold(self, user: object, version: str) -> None:
        """From now on ``user`` uses ``version`` (``Manifest.identity``), until ``release``.

        Raises DependencyUnavailableError where Redis is unavailable: a version that may be unloaded is not to be used.
        """
        with self._lock:
            self._held[user] = version
            self._write()

    def release(self, user: object) -> None:
        """``user`` uses its version no longer. Never raises: what is not taken back expires."""
        with self._lock:
            if self._held.pop(user, None) is not None:
                self._try_to_write()

    def renew(self) -> None:
        """Say again what is in use, where that is due. Never raises: it is tried again at the next call."""
        with self._lock:
            if self._held and self._clock() - self._written >= RENEWED_S:
                self._try_to_write()

    def close(self) -> None:
        """Take everything back, and close the connection."""
        with self._lock:
            if self._held:
                self._held.clear()
                self._try_to_write()
        self._redis.close()

    def _try_to_write(self) -> None:
        try:
            self._write()
        except (redis.RedisError, TrifidError) as error:
            log.debug("leases of versions: %s", error)

    def _write(self) -> None:
        versions = sorted(set(self._held.values()))

        def queue(pipeline: CommandPipeline) -> None:
            if versions:
                # First, as whoever finds a worker in the hash without its key takes it for dead.
                pipeline.command("SET", _alive(self._worker), "1", "EX", _EXPIRY_S)
                pipeline.command("HSET", _KEY, self._worker, json.dumps(versions))
            else:
                pipeline.command("HDEL", _KEY, self._worker)
                pipeline.command("DEL", _alive(self._worker))

        try:
            self._redis.execute(queue)
        except redis.ResponseError as error:
            if _WRONG_TYPE not in str(error):
                raise
            # Not ours, and of no use: the other workers say again what they use within RENEWED_S.
            log.warning("Redis: %s holds something else than leases, and is made anew", _KEY)
            self._redis.commands([("DEL", _KEY)])
            self._redis.execute(queue)
        self._written = self._clock()


def in_use(url: str, timeout: float = _TIMEOUT_S) -> dict[str, list[str]]:
    """The workers that use each version, by ``Manifest.identity``; those that are gone are removed.

    Raises DependencyUnavailableError where Redis is unavailable within ``timeout`` seconds, or what is there is none of
    what a living worker writes: nobody knows then, until it says again.
    """
    found: dict[str, list[str]] = {}
    with closing(RedisConnection(url, timeout=timeout, connect_timeout=timeout, retries=False)) as connection:
        try:
            entries = cast("dict[bytes, bytes]", connection.call(lambda client: client.hgetall(_KEY)))
            workers = sorted(name.decode() for name in entries)
            alive = connection.get_many([_alive(worker) for worker in workers]) if workers else []
            for worker, sign in zip(workers, alive, strict=True):
                if sign is None:
                    _forget(connection, worker)
                    continue
                for version in json.loads(entries[worker.encode()]):
                    found.setdefault(version, []).append(worker)
        except (redis.ResponseError, ValueError, TypeError) as error:
            raise DependencyUnavailableError(f"Redis: {_KEY} holds something else than leases: {error}") from error
    return found


def _forget(connection: RedisConnection, worker: str) -> None:
    try:
        connection.call(lambda client: client.hdel(_KEY, worker))
    except DependencyUnavailableError as error:
        log.debug("leases of %s: %s", worker, error)


def _alive(worker: str) -> str:
    return f"{_KEY}:{worker}"
