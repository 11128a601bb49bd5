"""librdkafka's own mock cluster: a Kafka of sorts within this process, for the demo.

It knows topics, groups and idempotent producers, but no transactions, and it silently drops the oldest
messages of a partition beyond some 4.5 MB: whoever writes to it has to wait for those who read.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Final, Self

from confluent_kafka import Producer

PARTITION_BYTES: Final = 4_500_000
"""Beyond so much in a partition, the mock drops what is oldest."""


class KafkaMock:
    """One mock broker on a free port of the loopback interface, for as long as the context lasts."""

    def __enter__(self) -> Self:
        self._client = Producer({"bootstrap.servers": "mock", "test.mock.num.brokers": 1, "log_level": 0})
        broker = next(iter(self._client.list_topics(timeout=10).brokers.values()))
        self.bootstrap = f"{broker.host}:{broker.port}"
        return self

    def create_topics(self, names: Iterable[str]) -> None:
        """Make topics exist before anybody subscribes to them: the mock makes those that a producer asks for."""
        for name in names:
            self._client.list_topics(name, timeout=10)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del self._client  # the cluster ends with the client that carries it
