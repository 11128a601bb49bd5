"""Which model the other workers of the group run: two versions at once publish two kinds of results in one topic.

While workers are replaced one by one that is as it should be; for longer it is a mistake. Each worker writes its own
version into one hash of Redis and reads the others', with a count that it raises each time: who does not count on is
no longer there. So no clocks need to agree.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Final, cast

from broker.errors import DependencyUnavailableError
from broker.metrics import MIXED_MODELS
from broker.redis_client import CommandPipeline, RedisConnection

log = logging.getLogger(__name__)

_TIMEOUT_S: Final = 5.0
_GONE_S: Final = 60.0
"""A worker whose count has stood still for so long is not there."""
_FORGOTTEN_S: Final = 86_400.0


class Peers:
    """This worker's place among those of its group."""

    def __init__(
        self,
        url: str,
        group: str,
        worker_id: str,
        version: Callable[[], str | None],
        note: Callable[[str | None], None],
        limit_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing is asked yet. ``version`` gives what this worker runs, None before it is known.

        ``note`` is told of each change in who runs another version; ``limit_s`` is for how long others may.
        """
        self._redis = RedisConnection(url, timeout=_TIMEOUT_S, connect_timeout=_TIMEOUT_S)
        self._key = f"trifid:workers:{group}"
        self._worker, self._version, self._note, self._limit, self._clock = worker_id, version, note, limit_s, clock
        self._count = 0
        self._seen: dict[str, tuple[str, float]] = {}
        """The last entry of each other worker, and when it changed."""
        self._counting: set[str] = set()
        """Workers whose entry has changed since this one first read it: those that are there."""
        self._since: float | None = None
        self._last: str | None = None

    def probe(self) -> str | None:
        """Write and read the hash; what is wrong where others have run another version for ``limit_s``.

        None as well where Redis is unavailable, which is another probe's to say.
        """
        version = self._version()
        if version is None:
            return None
        self._count += 1
        try:

            def queue(pipeline: CommandPipeline) -> None:
                pipeline.command("HSET", self._key, self._worker, f"{self._count} {version}")
                pipeline.command("HGETALL", self._key)

            entries = cast("Mapping[bytes, bytes]", self._redis.execute(queue)[1])
        except DependencyUnavailableError:
            return None
        now = self._clock()
        others = self._present({k.decode(): v.decode() for k, v in entries.items()}, now)
        differing = {worker: found for worker, found in others.items() if found != version}
        MIXED_MODELS.set(bool(differing))
        if not differing:
            self._since = None
            self._say(None)
            return None
        self._since = now if self._since is None else self._since
        text = f"this worker runs {version}, others of its group " + ", ".join(
            f"{found} ({worker})" for worker, found in sorted(differing.items())
        )
        self._say(text)
        lasted = now - self._since
        return f"{text}, for {lasted:.0f} s" if lasted >= self._limit else None

    def close(self) -> None:
        """Leave the group and close the connection; an entry that cannot be removed stands still and is ignored."""
        try:
            self._redis.call(lambda client: client.hdel(self._key, self._worker))
        except Exception as error:  # a worker must end, whatever Redis says
            log.debug("entry in %s: %s", self._key, error)
        self._redis.close()

    def _present(self, entries: Mapping[str, str], now: float) -> dict[str, str]:
        """The versions of the other workers that are there."""
        present = {}
        for worker, entry in entries.items():
            if worker == self._worker:
                continue
            before = self._seen.get(worker)
            if before is None or before[0] != entry:
                if before is not None:
                    self._counting.add(worker)
                self._seen[worker] = (entry, now)
            still = now - self._seen[worker][1]
            if still > _GONE_S:
                self._counting.discard(worker)
            if still > _FORGOTTEN_S:
                self._redis.call(lambda client, gone=worker: client.hdel(self._key, gone))  # type: ignore[misc]
            if worker in self._counting:
                present[worker] = entry.partition(" ")[2]
        return present

    def _say(self, text: str | None) -> None:
        if text == self._last:
            return
        self._last = text
        self._note(text)
        if text is not None:
            log.warning("%s", text)
        else:
            log.info("all workers of the group run the same model")
