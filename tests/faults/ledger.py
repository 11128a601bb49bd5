"""The ledger: which messages went in, what came out for each, when, and what that means."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from broker.errors import DecodeError
from broker.publish.annotation import read
from broker.records import Alert, PhotometryKind
from broker.surveys import Decoder
from broker.surveys.simulator import simulate_alerts

_POLL_S: Final = 0.05
_DELIVERY_S: Final = 120.0
_NAMED: Final = 10
"""How many ids a failure names."""
WINDOW_S: Final = 2.0
FULL_RATE: Final = 0.8
"""The rate is full again where a window has this share of what such a window had before the fault."""

Place = tuple[int, int]
"""Partition and offset of a message that went in."""


@dataclass(frozen=True, slots=True)
class Sent:
    """What is sent: an alert's packet, or something else, which then has no id."""

    payload: bytes
    key: bytes
    alert_id: int | None = None
    detections: int = 0
    """Detections in the packet, its history included."""


def stream(count: int, seed: int, alerts_per_object: int = 12) -> list[Sent]:
    """Exactly ``count`` simulated alerts in order of time, their objects mixed; the same for one seed."""
    # Objects that are often too faint to be detected give fewer alerts than asked for.
    packets = list(simulate_alerts(2 * count // alerts_per_object + 10, alerts_per_object, seed))[:count]
    assert len(packets) == count
    sent = []
    for packet, decoded in zip(packets, Decoder().decode_batch([packet.payload for packet in packets]), strict=True):
        assert not isinstance(decoded, DecodeError)
        (alert,) = decoded
        assert isinstance(alert, Alert)
        seen = int((alert.light_curve.kind == PhotometryKind.DETECTION).sum())
        sent.append(Sent(packet.payload, packet.object_id.encode(), alert.alert_id, seen))
    assert len({s.alert_id for s in sent}) == count
    return sent


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table of results."""

    name: str
    alerts: int
    lost: int
    duplicated: int
    dead_lettered: int
    recovery_s: float | None
    note: str = ""

    def __str__(self) -> str:
        recovery = "-" if self.recovery_s is None else f"{self.recovery_s:.1f} s"
        return (
            f"{self.name}: alerts {self.alerts}, lost {self.lost}, duplicated {self.duplicated}, "
            f"dead-lettered {self.dead_lettered}, recovery {recovery}" + (f" ({self.note})" if self.note else "")
        )


@dataclass(frozen=True, slots=True)
class Output:
    """One annotation, as a subscriber got it."""

    time: float
    alert_id: int
    detections: int
    ingest_mjd: float


@dataclass(frozen=True, slots=True)
class Letter:
    """One dead letter."""

    time: float
    place: Place
    alert_id: int | None
    reason: str


@dataclass
class _Mismatches:
    lost: list[object] = field(default_factory=list)
    duplicated: list[object] = field(default_factory=list)
    unknown: list[object] = field(default_factory=list)


class Ledger:
    """Sends to ``<prefix>.in``, and reads with read_committed whatever comes out, from a thread of its own."""

    def __init__(self, bootstrap: str, prefix: str, partitions: dict[str, int]) -> None:
        """``partitions`` of the topics that are read: ``<prefix>.ztf.all`` and ``<prefix>.deadletter``."""
        self.input = f"{prefix}.in"
        self.sent: dict[Place, Sent] = {}
        self.outputs: list[Output] = []
        self.letters: list[Letter] = []
        self._dead_letter_topic = f"{prefix}.deadletter"
        self._accounted: set[int | Place] = set()
        self._failures: list[KafkaError] = []
        quick = {"bootstrap.servers": bootstrap, "reconnect.backoff.max.ms": 500, "log_level": 0}
        self._producer = Producer(
            {
                **quick,
                "enable.idempotence": True,
                "message.max.bytes": 10_485_760,
                "queue.buffering.max.kbytes": 1_048_576,
                "message.timeout.ms": round(_DELIVERY_S * 1000),
                # Alerts of one object in order in one partition, as docs/state.md asks for; the same in every run.
                "partitioner": "murmur2",
            }
        )
        self._consumer = Consumer(
            {
                **quick,
                "group.id": f"{prefix}-ledger",
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                "isolation.level": "read_committed",
                "fetch.wait.max.ms": 50,
                "fetch.error.backoff.ms": 100,
            }
        )
        self._consumer.assign([TopicPartition(t, p, 0) for t, count in partitions.items() for p in range(count)])
        self._news = threading.Condition()
        self._done = threading.Event()
        self._broken: Exception | None = None
        self._thread = threading.Thread(target=self._read, name="ledger")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        self._consumer.close()
        self._producer.purge()
        self._producer.flush(5)

    def send(self, messages: Sequence[Sent], *, wait: bool = True) -> None:
        """Send all; unless told otherwise, wait until Kafka has them."""
        for message in messages:

            def delivered(error: KafkaError | None, report: Message, message: Sent = message) -> None:
                if error is not None:
                    self._failures.append(error)
                else:
                    self.sent[report.partition(), report.offset()] = message

            self._producer.produce(self.input, message.payload, message.key, on_delivery=delivered)
            self._producer.poll(0)
        if wait:
            self.flush()

    def flush(self) -> None:
        """Wait until Kafka has all that was sent."""
        left = self._producer.flush(_DELIVERY_S)
        assert not left, f"Kafka did not take {left} messages of the test's own"
        assert not self._failures, f"Kafka did not take messages of the test's own: {self._failures[0]}"

    @property
    def accounted(self) -> int:
        """Messages of which something came out."""
        return len(self._accounted)

    def wait(self, count: int, seconds: float) -> bool:
        """Wait until so many messages are accounted for; whether they are."""
        end = time.monotonic() + seconds
        with self._news:
            while self.accounted < count and (left := end - time.monotonic()) > 0:
                self._news.wait(min(left, 1.0))
                if self._broken is not None:
                    raise self._broken
        return self.accounted >= count

    def rate(self, begin: float, end: float) -> float:
        """Outcomes a second between two times."""
        times = self._times()
        return (bisect_left(times, end) - bisect_left(times, begin)) / (end - begin)

    def recovery(self, healed: float, full_rate: float) -> float:
        """Seconds from ``healed`` until outcomes come at the full rate again, or until all of them have come."""
        times = [t for t in self._times() if t >= healed]
        if not times:
            return 0.0
        needed = max(1, round(FULL_RATE * full_rate * WINDOW_S))
        for number, begin in enumerate(times):
            if number + needed > len(times) or times[number + needed - 1] <= begin + WINDOW_S:
                # Of a backlog that ends before, the last outcome counts.
                return (begin if number + needed <= len(times) else times[-1]) - healed
        raise AssertionError  # the last of them satisfies the first condition

    def _times(self) -> list[float]:
        return sorted([o.time for o in self.outputs] + [letter.time for letter in self.letters])

    def row(self, name: str, recovery_s: float | None, note: str = "") -> Row:
        """The line of the table."""
        wrong = self._mismatches()
        return Row(name, len(self.sent), len(wrong.lost), len(wrong.duplicated), len(self.letters), recovery_s, note)

    def complaint(self, doubled: int = 0) -> str:
        """What is wrong: empty where everything came out exactly once, or all of it and up to ``doubled`` twice."""
        wrong = self._mismatches()
        told = []
        for what, which in (
            ("lost", wrong.lost),
            ("duplicated", wrong.duplicated if len(wrong.duplicated) > doubled else []),
            ("never sent", wrong.unknown),
        ):
            if which:
                told.append(f"{len(which)} {what}: {', '.join(map(str, which[:_NAMED]))}")
        return "; ".join(told)

    def _mismatches(self) -> _Mismatches:
        wrong = _Mismatches()
        outputs = Counter(o.alert_id for o in self.outputs)
        letters = Counter(letter.place for letter in self.letters)
        for place, message in self.sent.items():
            came = letters[place] + (outputs[message.alert_id] if message.alert_id is not None else 0)
            what = f"{message.alert_id} at {place}"
            if came == 0:
                wrong.lost.append(what)
            wrong.duplicated += [what] * (came - 1)
        ids = {message.alert_id for message in self.sent.values()}
        wrong.unknown += [number for number in outputs if number not in ids]
        wrong.unknown += [place for place in letters if place not in self.sent]
        return wrong

    def _read(self) -> None:
        try:
            while not self._done.is_set():
                for message in self._consumer.consume(500, _POLL_S):
                    self._take(message)
                with self._news:
                    self._news.notify_all()
        except Exception as error:  # for the thread of the test
            self._broken = error

    def _take(self, message: Message) -> None:
        error = message.error()
        if error is not None:
            if error.fatal():
                raise KafkaException(error)
            return  # librdkafka goes on trying
        now = time.monotonic()
        if message.topic() == self._dead_letter_topic:
            headers = {name: value.decode() for name, value in message.headers() or []}
            place = int(headers["source-partition"]), int(headers["source-offset"])
            number = int(headers["alert-id"]) if "alert-id" in headers else None
            self.letters.append(Letter(now, place, number, headers["reason"]))
            self._accounted.add(place)
            return
        for annotation in read(message.value() or b"", message.topic() or ""):
            self.outputs.append(Output(now, annotation.alert_id, annotation.detections, annotation.ingest_mjd))
            self._accounted.add(annotation.alert_id)
