"""The service against real Kafka and Redis, with ONNX Runtime: a backlog of simulated ZTF alerts, until it is done.

Exactly once against at least once: what the transactions cost. Kafka, Redis and the worker share the machine.
"""

from __future__ import annotations

import sys
import threading
import time

from pydantic import SecretStr

from broker.batch import BatchResult
from broker.config import KafkaSettings, RedisSettings, Settings
from broker.embedded.redis import RedisServer
from broker.streaming.replay import Replay
from broker.streaming.worker import worker
from broker.surveys.simulator import simulate_alerts
from deploy.local.kafka_server import KafkaServer, find_kafka_home


def alerts_per_second(kafka: KafkaServer, payloads: list[bytes], delivery: str) -> float:
    """From the first batch delivered to the last: without start and the group's first assignment."""
    topic = f"alerts.{delivery}"
    kafka.create_topics([topic])
    with RedisServer() as redis:
        settings = Settings(
            kafka=KafkaSettings.model_validate(
                {"bootstrap_servers": kafka.bootstrap, "input_topics": [topic], "delivery": delivery, "group_id": topic}
            ),
            redis=RedisSettings(url=SecretStr(redis.url)),
        )
        with Replay(settings.kafka, topic) as replay:
            for payload in payloads:
                replay.send(payload)
        times: list[tuple[float, int]] = []

        def delivered(result: BatchResult) -> None:
            times.append((time.perf_counter(), len(result.annotations)))
            if sum(count for _, count in times) >= len(payloads):
                service.stop()

        with worker(settings, delivered) as service:
            thread = threading.Thread(target=service.run)
            thread.start()
            thread.join()
        assert service.accounting.reconciled
    return sum(count for _, count in times[1:]) / (times[-1][0] - times[0][0])


def main() -> None:
    if find_kafka_home() is None:
        print("no Apache Kafka with Java here (set TRIFID_KAFKA_HOME): nothing to measure", file=sys.stderr)
        return
    payloads = [a.payload for a in simulate_alerts(200, 60, seed=0)]
    with KafkaServer() as kafka:
        once = alerts_per_second(kafka, payloads, "exactly-once")
        least = alerts_per_second(kafka, payloads, "at-least-once")
    print(f"backlog of {len(payloads)} alerts, batches of up to 256, Kafka, Redis and one worker on one machine")
    print(f"exactly once: {once:.0f} alerts/s; at least once: {least:.0f} alerts/s; ratio {once / least:.2f}")


if __name__ == "__main__":
    main()
