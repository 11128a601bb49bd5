"""How the messages of a batch and the progress through the input get to Kafka together.

Both ways end the same for the caller: ``deliver`` returns and the batch is done for good, or it raises
DependencyUnavailableError and the batch is to be delivered again.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, Protocol

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from broker.errors import ConfigurationError, DependencyUnavailableError, TrifidError
from broker.metrics import DEPENDENCY_WAITS
from broker.publish.messages import OutgoingMessage
from broker.streaming import clients
from broker.streaming.clients import CALL_TIMEOUT

_PURGED: Final = (KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT)
"""What messages of an aborted transaction report: no failure of their own."""


ANY_PARTITION: Final = -1
"""For a message whose key decides (librdkafka's RD_KAFKA_PARTITION_UA)."""


_TIMED_OUT: Final = (KafkaError._MSG_TIMED_OUT, KafkaError._TIMED_OUT, KafkaError.REQUEST_TIMED_OUT)
_NO_TOPIC: Final = (
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._UNKNOWN_TOPIC,
    KafkaError._UNKNOWN_PARTITION,
    KafkaError.UNKNOWN_TOPIC_ID,
)


class WorkerFencedError(TrifidError):
    """Kafka fenced this worker: a newer one has its name, or its transaction timed out."""


class KafkaUnreachableError(TrifidError):
    """Kafka has not answered for ``kafka.unreachable_limit_s``: a new process may find brokers that have moved."""


class DeliveryTimedOutError(DependencyUnavailableError):
    """Kafka did not take all messages of a batch in time; it may take fewer."""


class TopicMissingError(DependencyUnavailableError):
    """A topic to send to does not exist."""


def _nothing() -> None:
    """For whoever does not watch."""


class Delivery(Protocol):
    """Sends messages and commits offsets."""

    def start(self) -> None:
        """Make ready; raises DependencyUnavailableError where Kafka is unavailable."""

    def deliver(self, messages: Sequence[OutgoingMessage], offsets: list[TopicPartition], consumer: Consumer) -> None:
        """Send all messages and commit the consumer's offsets.

        Raises DependencyUnavailableError where that failed and may succeed later (TopicMissingError where a topic has
        to be created first, DeliveryTimedOutError where fewer messages may succeed), ConfigurationError where a topic
        will never take a message, WorkerFencedError or KafkaUnreachableError where this worker has to end.
        """

    def close(self) -> None:
        """Close the connection."""


class _Outbox:
    """A producer's queue for one batch, with what became of its messages."""

    def __init__(self, producer: Producer, stop: threading.Event, beat: Callable[[], None], limit_s: float) -> None:
        self.producer = producer
        self._stop, self._beat, self._limit = stop, beat, limit_s
        self.error: KafkaError | None = None
        self._topic = ""
        self._since = time.monotonic()

    def put(self, messages: Sequence[OutgoingMessage]) -> None:
        self.error, self._topic = None, ""
        for message in messages:
            while True:
                try:
                    self.producer.produce(
                        message.topic,
                        message.value,
                        message.key,
                        ANY_PARTITION if message.partition is None else message.partition,
                        headers=list(message.headers),
                        on_delivery=self._delivered,
                    )
                    break
                except KafkaException as error:  # librdkafka knows already that it cannot be sent
                    self.error, self._topic = error.args[0], message.topic
                    raise
                except BufferError as error:  # the local queue is full: let it drain
                    self.wait()
                    self.producer.poll(0.1)
                    if self._stop.is_set():
                        raise DependencyUnavailableError("Kafka did not take all messages before the end") from error
            self.producer.poll(0)

    def begin(self) -> None:
        """A delivery begins, which may take ``limit_s``."""
        self._since = time.monotonic()

    def wait(self) -> None:
        """Say that the worker is alive; raises KafkaUnreachableError where a delivery takes too long."""
        self._beat()
        if (silent := time.monotonic() - self._since) > self._limit and not self._stop.is_set():
            raise KafkaUnreachableError(
                f"Kafka has not taken a batch for {silent:.0f} s (kafka.unreachable_limit_s): a new process asks "
                "kafka.bootstrap_servers again"
            )

    def _delivered(self, error: KafkaError | None, message: Message) -> None:
        if error is not None and error.code() not in _PURGED and self.error is None:
            self.error, self._topic = error, message.topic() or ""

    def failure(self, error: KafkaError) -> TrifidError:
        """The error to raise for one of Kafka's: the message's own, where one was refused, says more."""
        topic = f"topic {self._topic}" if self.error is not None else ""
        error = self.error or error
        refused = clients.failure(error, topic)
        if isinstance(refused, ConfigurationError):  # before what is fatal, which a refused transactional id is, too
            return refused
        if error.fatal():
            return WorkerFencedError(f"Kafka fenced this worker: {error}")
        if error.code() in (KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_MSG_SIZE):
            return ConfigurationError(
                f"Kafka refuses a message for its size ({error}): lower publish.dead_letter_max_bytes, or "
                "raise the topic's max.message.bytes and kafka.max_message_bytes"
            )
        DEPENDENCY_WAITS.labels("kafka").inc()
        if self.error is not None and error.code() in _NO_TOPIC:
            return TopicMissingError(f"{refused}; has it been deleted?")
        if error.code() in _TIMED_OUT:  # that of the offsets, too: they wait behind messages that a quota holds back
            return DeliveryTimedOutError(str(refused))
        return refused


class ExactlyOnceDelivery:
    """Messages and offsets in one Kafka transaction: subscribers see both or neither (KIP-98, KIP-447)."""

    def __init__(
        self,
        connect: Callable[[], Producer],
        stop: threading.Event,
        beat: Callable[[], None] = _nothing,
        limit_s: float = math.inf,
        *,
        as_member: bool = True,
    ) -> None:
        """``connect`` gives a producer, always with the same transactional id; ``stop`` ends the waiting for Kafka,
        ``beat`` is called meanwhile.

        A delivery that has not come to an end for ``limit_s`` raises KafkaUnreachableError. ``as_member``: offsets are
        committed for a member of the group only, not for a reader outside of it.
        """
        self._connect, self._stop, self._as_member = connect, stop, as_member
        self._producer = connect()
        self._outbox = _Outbox(self._producer, stop, beat, limit_s)

    def start(self) -> None:
        """Take over the transactional id; a transaction that an earlier process left open is aborted."""
        try:
            self._producer.init_transactions(CALL_TIMEOUT)
        except KafkaException as error:
            clients.poll_events(self._producer)
            raise self._outbox.failure(error.args[0]) from error

    def deliver(self, messages: Sequence[OutgoingMessage], offsets: list[TopicPartition], consumer: Consumer) -> None:
        """See ``Delivery.deliver``; where it fails, the transaction is aborted and nobody sees any of it."""
        # Kafka refuses offsets of a member that it has removed from the group, or of an earlier generation. But it
        # takes those of nobody in particular, which is what a consumer is that noticed by itself that it is out: it
        # must not commit. Asked in this order: the member's id comes back only after on_lost was called, and so not
        # between the two calls.
        group = consumer.consumer_group_metadata()
        if self._as_member and not consumer.memberid():
            raise DependencyUnavailableError("Kafka: not in the group at present")
        self._outbox.begin()
        sending_offsets = False
        try:
            self._producer.begin_transaction()
            self._outbox.put(messages)
            sending_offsets = True
            self._retry(lambda: self._producer.send_offsets_to_transaction(offsets, group, CALL_TIMEOUT))
            sending_offsets = False
            self._retry(lambda: self._producer.commit_transaction(CALL_TIMEOUT))
        except KafkaException as error:
            failure = self._outbox.failure(error.args[0])
            if not self._stop.is_set() and not error.args[0].fatal():
                # Offsets that were not answered may still arrive, and count for the next transaction, which may be of
                # fewer messages: abort_transaction keeps the producer's epoch then. A new producer has the next one.
                self._abort(anew=sending_offsets and error.args[0].code() in _TIMED_OUT)
            raise failure from error

    def close(self) -> None:
        """Send nothing more; Kafka aborts what is open when the id is used again, or after its timeout."""
        with suppress(KafkaException):  # of a producer that was fenced, which is known by then
            self._producer.purge()
            self._producer.flush(CALL_TIMEOUT)

    def _abort(self, *, anew: bool) -> None:
        try:
            if anew:
                self.close()
                self._producer = self._outbox.producer = self._connect()
                self._retry(lambda: self._producer.init_transactions(CALL_TIMEOUT))
            else:
                self._retry(lambda: self._producer.abort_transaction(CALL_TIMEOUT))
        except KafkaException as error:
            if self._stop.is_set():  # aborted by the next process under this name, or after its timeout
                return
            raise WorkerFencedError(f"Kafka does not let the transaction be aborted: {error}") from error

    def _retry(self, call: Callable[[], None]) -> None:
        """Repeat a call while Kafka says it may still succeed, until the service has to stop.

        The outcome of such a call is not known, so that nothing but the same call may follow it.
        """
        while True:
            self._outbox.wait()
            try:
                return call()
            except KafkaException as error:
                if not error.args[0].retriable() or self._stop.is_set():
                    raise
                DEPENDENCY_WAITS.labels("kafka").inc()


class AtLeastOnceDelivery:
    """Messages first, acknowledged by Kafka, then offsets; a failure in between repeats messages."""

    def __init__(
        self,
        connect: Callable[[], Producer],
        stop: threading.Event,
        beat: Callable[[], None] = _nothing,
        limit_s: float = math.inf,
    ) -> None:
        """As that of ExactlyOnceDelivery, for a producer without a transactional id."""
        self._producer, self._stop = connect(), stop
        self._outbox = _Outbox(self._producer, stop, beat, limit_s)

    def start(self) -> None:
        """Nothing has to be prepared."""

    def deliver(self, messages: Sequence[OutgoingMessage], offsets: list[TopicPartition], consumer: Consumer) -> None:
        """See ``Delivery.deliver``; where it fails, any part of the messages may have been sent."""
        self._outbox.begin()
        try:
            self._outbox.put(messages)
            while self._producer.flush(CALL_TIMEOUT):
                DEPENDENCY_WAITS.labels("kafka").inc()
                self._outbox.wait()
                if self._stop.is_set():
                    raise DependencyUnavailableError("Kafka did not acknowledge all messages before the end")
            if self._outbox.error is not None:
                raise self._outbox.failure(self._outbox.error)
            consumer.commit(offsets=offsets, asynchronous=False)
        except KafkaException as error:
            raise self._outbox.failure(error.args[0]) from error

    def close(self) -> None:
        """Drop what Kafka did not take; its alerts come again, since their offsets are not committed."""
        with suppress(KafkaException):
            self._producer.purge()
            self._producer.flush(CALL_TIMEOUT)
