"""Notices that Redis has lost what it held, or may lose it."""

from __future__ import annotations

import logging
import threading
import uuid
from typing import Final

import redis

from broker.metrics import REDIS_EVICTED, REDIS_MAY_EVICT, STATE_LOST

LOG: Final = logging.getLogger(__name__)
MARKER: Final = "marker"
"""The key, behind the prefix, that is there as long as Redis keeps what it was given."""


class StoreWatch:
    """Looks at a marker in Redis and at Redis's own counts, each time the store is probed. Safe for several threads."""

    def __init__(self, client: redis.Redis, prefix: str) -> None:
        self._client, self._key = client, f"{prefix}:{MARKER}"
        self._lock = threading.Lock()
        self._seen: bytes | None = None
        self._may_look = True
        self._may_evict = False

    def look(self) -> None:
        """Look once; raises what redis-py does where Redis does not answer.

        A marker that is gone, or another's, was lost with everything else: Redis restarted without persistence, was
        flushed, failed over to an empty replica, or has evicted it. It counts once for each worker.
        """
        with self._lock:
            found = self._client.get(self._key)
            if found is None:
                self._client.set(self._key, uuid.uuid4().hex, nx=True)  # of several workers, the first one's
                found = self._client.get(self._key)
            assert found is None or isinstance(found, bytes)
            if self._seen is not None and found != self._seen:
                STATE_LOST.inc()
                LOG.error(
                    "Redis has lost what it held: %s is gone or another. Was it restarted without persistence, or "
                    "flushed, or is maxmemory-policy not noeviction? Objects begin anew (docs/operations.md)", self._key
                )  # fmt: skip
            self._seen = found
            if self._may_look:
                self._look_at_evictions()

    def _look_at_evictions(self) -> None:
        try:
            info = self._client.info()
        except redis.exceptions.NoPermissionError as error:
            self._may_look = False
            LOG.warning("evictions by Redis are not watched: %s (docs/security.md)", error)
            return
        except redis.ResponseError as error:  # a service that has no INFO
            self._may_look = False
            LOG.warning("evictions by Redis are not watched: %s", error)
            return
        assert isinstance(info, dict)
        REDIS_EVICTED.set(int(info.get("evicted_keys", 0)))
        policy = str(info.get("maxmemory_policy", "noeviction"))
        may_evict = int(info.get("maxmemory", 0)) > 0 and policy != "noeviction"
        REDIS_MAY_EVICT.set(may_evict)
        if may_evict and not self._may_evict:
            # All objects have an expiry, so that the policies volatile-* evict them as well.
            LOG.error("Redis may evict objects when it is full: maxmemory-policy is %s, and must be noeviction", policy)
        self._may_evict = may_evict
