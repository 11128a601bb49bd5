"""What an annotation costs: milliseconds to make it, its messages and their headers, bytes in each kind of topic.

Batches of 256 of the simulated stream. Bytes are those of LZ4 blocks, as producers compress what one transaction has
for one partition (4 a topic here), headers included, and of messages uncompressed, without them. Headers cost what
``summary_headers`` takes, and what the producer takes more for a message with them than without; they spare a
subscriber whose filter rejects an annotation reading it.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from contextlib import closing
from itertools import starmap
from typing import cast
from zlib import crc32

import pyarrow as pa
from confluent_kafka import Message, Producer

from broker.batch import BatchResult, IncomingMessage
from broker.build import build_engine, build_publisher, load_reference_set
from broker.client import Filter
from broker.client.headers import summary
from broker.config import Settings
from broker.metrics import STAGE_SECONDS
from broker.pipeline import Pipeline
from broker.publish.annotation import read
from broker.publish.headers import summary_headers
from broker.publish.messages import OutgoingMessage
from broker.state.memory import MemoryStore
from broker.surveys import Decoder
from broker.surveys.simulator import simulate_alerts
from broker.taxonomy import CLASS_NAMES
from broker.times import mjd_now

OBJECTS, VISITS, BATCH, PARTITIONS, REPEATS = 100, 60, 256, 4, 5


def kind(topic: str) -> str:
    name = topic.rsplit(".", 1)[1]
    if name in ("all", "anomaly", "other", "notclassified"):
        return name
    return "class" if name.upper() in CLASS_NAMES else "parent"


def fastest(call: Callable[[], object], count: int) -> float:
    """CPU time of a call in microseconds, of each of ``count`` things that it is for; the least of REPEATS."""
    seconds = []
    for _ in range(REPEATS):
        start = time.process_time()
        call()
        seconds.append(time.process_time() - start)
    return 1e6 * min(seconds) / count


class Received:
    """What ``summary`` asks a message of Kafka for, as the client gives it."""

    def __init__(self, sent: OutgoingMessage) -> None:
        self._headers = [(k, v.encode() if isinstance(v, str) else v) for k, v in sent.headers]

    def headers(self) -> list[tuple[str, bytes]]:
        return self._headers


def headers_cost(results: Sequence[BatchResult], sent: Sequence[OutgoingMessage], count: int) -> None:
    """Print it: of alerts for the publisher, of messages for a subscriber."""
    annotations = [annotation for result in results for annotation in result.annotations]
    known = [(annotation, annotation.parent) for annotation in annotations]  # as it is from the record
    made = fastest(lambda: deque(starmap(summary_headers, known), 0), count)
    # To nobody: what is measured is the call, not the network.
    nobody = {"bootstrap.servers": "127.0.0.1:1", "log_level": 0, "queue.buffering.max.messages": 10_000_000}
    producer = Producer(nobody | {"queue.buffering.max.kbytes": 2_000_000})

    def produce(*, with_headers: bool) -> float:
        """Seconds of this thread, without those of librdkafka's own."""
        given = [list(message.headers) if with_headers else [] for message in sent]
        start = time.thread_time()
        for message, headers in zip(sent, given, strict=True):
            producer.produce(message.topic, message.value, message.key, headers=headers)
        seconds = time.thread_time() - start
        producer.purge()
        producer.poll(0)
        return seconds

    spent = [(produce(with_headers=False), produce(with_headers=True)) for _ in range(REPEATS)]
    less, whole = (1e6 * min(column) / count for column in zip(*spent, strict=True))
    more = whole - less
    print(f"headers: {made:.1f} us an alert to make, {more:.1f} us for its {len(sent) / count:.1f} messages to be sent")
    received = [cast(Message, Received(message)) for message in sent]
    wanted = Filter(min_probability=0.9, min_detections=20)

    def by_headers() -> None:
        for message in received:
            values = summary(message)
            assert values is not None
            wanted.holds(values)

    def by_reading() -> None:
        for message in sent:
            for annotation in read(message.value):
                wanted(annotation)

    print(f"a subscriber's filter: {fastest(by_headers, len(sent)):.1f} us a message by headers, "
          f"{fastest(by_reading, len(sent)):.1f} us by reading it")  # fmt: skip


def main() -> None:
    settings = Settings()
    payloads = [a.payload for a in simulate_alerts(OBJECTS, VISITS, seed=0)]
    publisher = build_publisher(settings)
    results: list[BatchResult] = []
    with closing(build_engine(settings.inference, settings.triton)) as engine:
        pipeline = Pipeline(Decoder(), MemoryStore(), engine, engine.manifest, load_reference_set(settings))
        messages = [IncomingMessage(payload, mjd_now()) for payload in payloads]
        results += [pipeline.process(messages[first : first + BATCH]) for first in range(0, len(messages), BATCH)]
    count = sum(len(result.annotations) for result in results)

    def publish() -> None:
        for result in results:
            for _message in publisher.messages(result):
                pass

    messages_us = fastest(publish, count)
    plain: defaultdict[str, int] = defaultdict(int)
    wire: defaultdict[str, int] = defaultdict(int)
    number: defaultdict[str, int] = defaultdict(int)
    for result in results:
        blocks: defaultdict[tuple[str, int], bytes] = defaultdict(bytes)
        for message in publisher.messages(result):
            headers = "".join(f"{name}{value}" for name, value in message.headers).encode()
            blocks[message.topic, crc32(message.key or b"") % PARTITIONS] += headers + message.value
            plain[kind(message.topic)] += len(message.value)
            number[kind(message.topic)] += 1
        for (topic, _), block in blocks.items():
            wire[kind(topic)] += len(pa.compress(block, codec="lz4", asbytes=True))
    stages = {s.labels["stage"]: s.value for m in STAGE_SECONDS.collect() for s in m.samples if s.name.endswith("_sum")}
    print(f"{count} annotations; annotate {1e3 * stages['annotate'] / count:.4f} ms, messages "
          f"{1e-3 * messages_us:.4f} ms an alert")  # fmt: skip
    for name in sorted(wire, key=lambda n: -wire[n]):
        print(
            f"  {name}: {number[name] / count:.2f} messages, {plain[name] / count:.0f} bytes an alert, "
            f"{wire[name] / count:.0f} in LZ4"
        )
    headers_cost(results, [m for result in results for m in publisher.messages(result)], count)
    print(f"  all topics: {sum(plain.values()) / count:.0f} bytes an alert, {sum(wire.values()) / count:.0f} in LZ4")


if __name__ == "__main__":
    main()
