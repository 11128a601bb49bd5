"""Workers of alerts and spectra come and go at random while what they depend on fails and batches take long.

What goes wrong only where two of these meet, such as a worker that loses partitions of spectra while all it reads is
paused, is found by chance; so this is played with other moments in every run, and the long form plays it often.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Sequence

import pytest

from broker.batch import BatchResult, IncomingMessage
from broker.errors import DependencyUnavailableError
from tests.faults.harness import GIVE_UP_S, Kafka
from tests.faults.ledger import Row
from tests.integration.test_service import Threads, wait_until
from tests.integration.test_topics import send_to

PARTITIONS = 4
LONG_S = 6.0
"""Longer than a worker waits for a batch before it pauses what it reads."""


class Unreliable(Threads):
    """Workers whose batches wait for a dependency now and then, or take long."""

    def process(self, batch: Sequence[IncomingMessage]) -> BatchResult:
        lot = random.random()
        if lot < 0.15:
            raise DependencyUnavailableError("a test")
        if lot < 0.2:
            time.sleep(random.choice((1.0, 3.0, LONG_S)))
        return super().process(batch)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("protocol", "static"), [("cooperative", False), ("cooperative", True), ("eager", False), ("eager", True)]
)
def test_churn_of_alerts_and_spectra(
    kafka: Kafka, report: Callable[[Row], None], full: bool, protocol: str, static: bool
) -> None:
    if protocol == "eager" and not full:
        pytest.skip("in the long form only (make faults): tests/integration has a shorter one")
    moments = random.Random(time.time_ns())
    for turn in range(10 if full else 1):
        name = f"churn-{protocol}-{static}-{turn}".lower()
        _play(kafka, report, name, moments, group_protocol=protocol, static=static)


def _play(
    kafka: Kafka, report: Callable[[Row], None], name: str, moments: random.Random, *, group_protocol: str, static: bool
) -> None:
    topics = {"alerts": f"{name}.alerts", "spectra": f"{name}.spectra"}
    kafka.create_topics(list(topics.values()), partitions=PARTITIONS)
    changes = {
        "input_topics": [topics["alerts"]], "spectra_topic": topics["spectra"], "metadata_refresh_s": 1.0,
        "static_membership": static, "group_protocol": group_protocol,
    }  # fmt: skip
    sent: Counter[bytes] = Counter()
    with Unreliable(kafka, name, lambda: random.choice((0.0, 0.0, 0.05)), **changes) as group:
        group.start()
        for step in range(5):
            for kind, most in (("alerts", 40), ("spectra", 12)):
                for partition in range(PARTITIONS):
                    count = moments.randrange(most)
                    payloads = [f"{kind} {step} {partition} {number}".encode() for number in range(count)]
                    send_to(kafka, topics[kind], partition, payloads)
                    sent.update(payloads)
            if len(group.running) == 1 or (len(group.running) < 4 and moments.random() < 0.6):
                group.start()
            else:
                group.stop(moments.randrange(len(group.running)))
            time.sleep(3 * moments.random())
        last_change = time.monotonic()
        wait_until(lambda: len(group.out()) >= sent.total(), seconds=GIVE_UP_S)
        recovery = time.monotonic() - last_change
        time.sleep(1)
        out = Counter(group.out())
    report(
        Row(
            f"alerts and spectra, {group_protocol}{', static' if static else ''}: workers come and go, batches fail",
            sent.total(), (sent - out).total(), (out - sent).total(), out.total(), recovery, "since the last change",
        )
    )  # fmt: skip
    assert out == sent
