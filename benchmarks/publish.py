"""What an annotation costs: milliseconds to make it and its messages, bytes in each kind of topic.

Batches of 256 of the simulated stream. Bytes are those of LZ4 blocks, as producers compress what one transaction has
for one partition (4 a topic here), and uncompressed.
"""

from __future__ import annotations

import time
from collections import defaultdict
from contextlib import closing
from zlib import crc32

import pyarrow as pa

from broker.batch import BatchResult, IncomingMessage
from broker.build import build_engine, build_publisher, load_reference_set
from broker.config import Settings
from broker.metrics import STAGE_SECONDS
from broker.pipeline import Pipeline
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
    seconds = []
    for _ in range(REPEATS):
        start = time.process_time()
        for result in results:
            for _message in publisher.messages(result):
                pass
        seconds.append(time.process_time() - start)
    plain: defaultdict[str, int] = defaultdict(int)
    wire: defaultdict[str, int] = defaultdict(int)
    number: defaultdict[str, int] = defaultdict(int)
    for result in results:
        blocks: defaultdict[tuple[str, int], bytes] = defaultdict(bytes)
        for message in publisher.messages(result):
            blocks[message.topic, crc32(message.key or b"") % PARTITIONS] += message.value
            plain[kind(message.topic)] += len(message.value)
            number[kind(message.topic)] += 1
        for (topic, _), block in blocks.items():
            wire[kind(topic)] += len(pa.compress(block, codec="lz4", asbytes=True))
    stages = {s.labels["stage"]: s.value for m in STAGE_SECONDS.collect() for s in m.samples if s.name.endswith("_sum")}
    print(f"{count} annotations; annotate {1e3 * stages['annotate'] / count:.4f} ms, messages "
          f"{1e3 * min(seconds) / count:.4f} ms an alert")  # fmt: skip
    for name in sorted(wire, key=lambda n: -wire[n]):
        print(
            f"  {name}: {number[name] / count:.2f} messages, {plain[name] / count:.0f} bytes an alert, "
            f"{wire[name] / count:.0f} in LZ4"
        )
    print(f"  all topics: {sum(plain.values()) / count:.0f} bytes an alert, {sum(wire.values()) / count:.0f} in LZ4")


if __name__ == "__main__":
    main()
