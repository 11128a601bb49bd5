"""The result of a batch as messages for topics; nothing here knows how they are sent."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from broker.avro.container import ContainerWriter
from broker.batch import BatchResult, DeadLetter
from broker.publish.annotation import SCHEMA_TEXT, to_record
from broker.publish.elasticc import classification
from broker.publish.headers import summary_headers
from broker.publish.registered import RegisteredWriter
from broker.publish.topics import OutputTopics
from broker.times import mjd_now

CUT_FROM: Final = "cut-from-bytes"
"""Header of a dead letter whose payload was cut: its size before."""
_MAX_HEADER: Final = 8000
"""Bytes; what comes from an exception may be of any length, and counts as part of the message."""


@dataclass(frozen=True, slots=True)
class OutgoingMessage:
    """One message for one topic."""

    topic: str
    value: bytes
    key: bytes | None = None
    headers: tuple[tuple[str, str | bytes], ...] = ()
    partition: int | None = None
    """Where it has to be; None where its key decides."""


class Publisher:
    """Makes the messages of a batch."""

    def __init__(
        self,
        topics: OutputTopics,
        broker_name: str,
        dead_letter_max_bytes: int,
        registered: RegisteredWriter | None = None,
    ) -> None:
        """``dead_letter_max_bytes``: a longer payload of a dead letter is cut, and a header says so.

        Annotations are containers with their schema; with ``registered`` they have the id of a registered one.
        """
        self.topics = topics
        self._broker_name = broker_name
        self._limit = dead_letter_max_bytes
        self._registered = registered
        self._write = registered or ContainerWriter(SCHEMA_TEXT)

    def prepare(self) -> None:
        """To be called before the first messages; raises as ``RegisteredWriter.prepare``."""
        if self._registered is not None:
            self._registered.prepare()

    def messages(self, result: BatchResult) -> Iterator[OutgoingMessage]:
        """One message for each topic of each annotation, keyed by object id, and one for each dead letter.

        Annotations have the headers of ``summary_headers``.

        Where asked for, one in ELAsTiCC's schema for each annotation of an alert whose time of publication is known.
        """
        now = mjd_now()
        for annotation in result.annotations:
            topics = self.topics.of(annotation)
            record = to_record(annotation, self._broker_name, now, topics=topics)
            value, headers = self._write(record), summary_headers(annotation, record["parent"])
            key = annotation.object_id.encode()
            trace = result.traces.get((annotation.survey, annotation.alert_id), ()) if result.traces else ()
            for topic in topics:
                yield OutgoingMessage(topic, value, key, headers + trace)
            if annotation.survey in self.topics.elasticc_surveys and annotation.alert_publish_mjd is not None:
                yield OutgoingMessage(self.topics.elasticc, classification(annotation, self._broker_name), key, trace)
        for letter in result.dead_letters:
            yield self._dead_letter(letter)

    def _dead_letter(self, letter: DeadLetter) -> OutgoingMessage:
        payload, origin = letter.message.payload, letter.message.origin
        headers = {"reason": letter.reason, "survey": letter.survey}
        if letter.alert_id is not None:
            headers["alert-id"] = str(letter.alert_id)
        if letter.traceback is not None:
            headers["traceback"] = letter.traceback
        if origin is not None:
            headers |= {
                "source-topic": origin.topic,
                "source-partition": str(origin.partition),
                "source-offset": str(origin.offset),
                "source-timestamp": str(origin.timestamp_ms),
            }
        if len(payload) > self._limit:
            headers[CUT_FROM] = str(len(payload))
        return OutgoingMessage(
            self.topics.dead_letter,
            payload[: self._limit],
            headers=(*((name, _header(text)) for name, text in headers.items()), *letter.message.trace),
        )


def _header(text: str) -> bytes:
    """The text, in UTF-8 whatever is in it, without the middle of one that is too long."""
    data = text.encode("utf-8", "backslashreplace")
    half = _MAX_HEADER // 2
    return data if len(data) <= _MAX_HEADER else data[:half] + b" ... " + data[-half:]
