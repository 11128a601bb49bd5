"""Notices that Redis has lost what it held, or may lose it."""

from __future__ import annotations

import hashlib
import logging
import threading
import uuid
from typing import Any, Final

import redis

from broker.metrics import REDIS_EVICTED, REDIS_MAY_EVICT, STATE_LOST
from broker.redis_client import RedisConnection

LOG: Final = logging.getLogger(__name__)
MARKER: Final = "marker"
"""The key, behind the prefix, that is there as long as Redis keeps what it was given; with a number behind it in a
cluster, one for each primary."""
_MOST_MARKERS: Final = 10_000
"""Numbers that are tried; a primary with a slot in a thousand has one among them."""


class StoreWatch:
    """Looks at a marker in Redis and at Redis's own counts, each time the store is probed. Safe for several threads."""

    def __init__(self, connection: RedisConnection, prefix: str) -> None:
        self._redis, self._key = connection, f"{prefix}:{MARKER}"
        self._lock = threading.Lock()
        self._seen: dict[str, bytes] = {}
        self._may_look = True
        self._may_evict = False

    def look(self) -> None:
        """Look once, at each primary of a cluster; raises as ``redis_errors`` where one does not answer.

        A marker that is gone, or another's, was lost with everything else: Redis restarted without persistence, was
        flushed, failed over to an empty replica, or has evicted it. It counts once for each worker.
        """
        with self._lock:
            keys = self._redis.call(self._keys)
            found = dict(zip(keys, self._redis.get_many(keys), strict=True))
            absent = [key for key, value in found.items() if value is None]
            if absent:
                # Of several workers, the first one's.
                self._redis.commands([("SET", key, uuid.uuid4().hex, "NX") for key in absent])
                found |= zip(absent, self._redis.get_many(absent), strict=True)
            for key, value in found.items():
                if value is None:
                    continue
                if self._seen.get(key, value) != value:
                    STATE_LOST.inc()
                    LOG.error(
                        "Redis has lost what it held: %s is gone or another. Was it restarted without persistence, or "
                        "flushed, or is maxmemory-policy not noeviction? Objects begin anew (docs/operations.md)", key
                    )  # fmt: skip
                self._seen[key] = value
            if self._may_look:
                self._redis.call(self._look_at_evictions)

    @property
    def generation(self) -> str:
        """Another one after Redis, or one primary of a cluster, was seen to have lost what it held."""
        with self._lock:
            return hashlib.sha256(b"".join(value for _, value in sorted(self._seen.items()))).hexdigest()[:16]

    def _keys(self, client: Any) -> list[str]:
        """The marker, or one for each primary: the first numbers that are in its slots."""
        if not self._redis.is_cluster:
            return [self._key]
        without = {node.name for node in client.get_primaries()}
        keys = []
        for number in range(_MOST_MARKERS):
            if not without:
                break
            key = f"{self._key}:{number}"
            node = client.get_node_from_key(key).name
            if node in without:
                without.remove(node)
                keys.append(key)
        return keys

    def _look_at_evictions(self, client: Any) -> None:
        try:
            infos = list(client.info(target_nodes="primaries").values()) if self._redis.is_cluster else [client.info()]
        except redis.exceptions.NoPermissionError as error:
            self._may_look = False
            LOG.warning("evictions by Redis are not watched: %s (docs/security.md)", error)
            return
        except redis.ResponseError as error:  # a service that has no INFO
            self._may_look = False
            LOG.warning("evictions by Redis are not watched: %s", error)
            return
        REDIS_EVICTED.set(sum(int(info.get("evicted_keys", 0)) for info in infos))
        policies = {
            str(info.get("maxmemory_policy", "noeviction")) for info in infos if int(info.get("maxmemory", 0)) > 0
        } - {"noeviction"}
        may_evict = bool(policies)
        REDIS_MAY_EVICT.set(may_evict)
        if may_evict and not self._may_evict:
            # All objects have an expiry, so that the policies volatile-* evict them as well.
            LOG.error(
                "Redis may evict objects when it is full: maxmemory-policy is %s, and must be noeviction",
                ", ".join(policies),
            )
        self._may_evict = may_evict
