"""How far `trifid state rebuild` came, kept in Redis itself: where that loses its state again, this is lost with it;
where one primary of a cluster loses its part, it counts no more."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Final

import redis

from broker.state.redis import RedisStore

LIFE_S: Final = 86_400
"""An interrupted run is gone on with within a day; after that, from the beginning."""


class Progress:
    """Positions of one source, by part: partitions of a topic, files of a folder."""

    def __init__(self, store: RedisStore, source: str, prefix: str = "trifid") -> None:
        """``source`` is whatever tells one thing to be read from others; ``store`` has been checked."""
        self._connection = store.connection
        name = f"{store.generation}/{source}"
        self.key: Final = f"{prefix}:rebuild:{hashlib.sha256(name.encode('utf-8', 'surrogateescape')).hexdigest()[:16]}"

    def load(self) -> dict[str, int]:
        """The positions that an interrupted run came to; empty where there was none."""
        try:
            value = self._connection.call(lambda client: client.get(self.key))
            found = {} if value is None else json.loads(value)
            return {str(part): int(at) for part, at in found.items()}
        except (ValueError, AttributeError, TypeError, OverflowError, redis.ResponseError):
            return {}  # whoever wrote that: what is merged again changes nothing

    def save(self, positions: Mapping[str, int]) -> None:
        """Keep the positions, after what comes before them is in the state."""
        text = json.dumps(dict(positions))
        self._connection.call(lambda client: client.set(self.key, text, ex=LIFE_S))

    def forget(self) -> None:
        """All was read: the next run begins anew."""
        self._connection.call(lambda client: client.delete(self.key))
