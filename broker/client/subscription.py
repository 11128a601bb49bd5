"""Read annotations from Trifid's topics.

The module has over 400 lines, as all of a subscription shares its place in each partition.
"""

from __future__ import annotations

import logging
import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Final, Literal, Self, TypeVar

from confluent_kafka import OFFSET_INVALID, Consumer, KafkaError, KafkaException, Message, TopicPartition

from broker.client.arguments import check_arguments, check_seconds, consumer_options, no_topic
from broker.client.duplicates import is_first
from broker.client.foreign import ForeignMessage
from broker.client.lag import behind
from broker.client.outage import Outage
from broker.client.positions import CALL_S, Position, Start, after, place_of, starting_points, weakly
from broker.client.reading import Condition, Reader
from broker.client.schemas import schemas_of
from broker.errors import ConfigurationError, DependencyUnavailableError
from broker.publish.annotation import PublishedAnnotation, Schemas
from broker.streaming import clients
from broker.streaming.lost import after_lost
from broker.topic_names import any_matches, is_pattern

log = logging.getLogger(__name__)

T = TypeVar("T")

_POLL_S: Final = 0.5
_RETRY_S: Final = 0.5
_PATIENCE_S: Final = 120.0
"""Less than the 5 minutes after which the group takes a member that does not poll for dead."""
_JOIN_S: Final = 30.0
"""Until a group with a member that was killed has assigned its partitions anew."""
_REFUSED: Final = (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.GROUP_AUTHORIZATION_FAILED)


class Subscription:
    """Annotations as they are published: ``with Subscription("trifid.ztf.rrab") as s: for annotation in s: ...``.

    Only transactions that were committed are read. With a ``group_id``, the group has a position in every partition
    from its first moment on, and a later subscription of the same name goes on from there, at least once each:

    - an annotation counts as read when the next one is asked for, when ``acknowledge`` is called, or when the end of
      the ``with`` block or ``close`` ends the subscription, unless an exception is on its way;
    - so where the loop's body raises, the annotation that it was given comes again, and so does one that a ``break``
      left behind where nothing closes the subscription;
    - positions are committed every second, at each rebalance and at the end: a process that is killed reads at most
      the annotations of its last second again.

    Several subscriptions of one group share the partitions. A partition that was added, or a topic that a pattern
    began to match, is read from its beginning.

    An annotation that several of the topics have comes once: from the first of them in the order given; of those that
    one regular expression takes, from the first in the annotation's own ``topics``. No memory is needed for it, so
    that it holds over restarts and between the members of a group, as long as they all have the same topics. Where a
    group gets a further topic, put it last: the topics before it have a position, and lose nothing.
    """

    def __init__(
        self,
        topics: str | Sequence[str],
        bootstrap_servers: str = "localhost:9092",
        *,
        group_id: str | None = None,
        start: Start = "latest",
        where: Condition | Sequence[Condition] | None = None,
        idle_timeout: float | None = None,
        timeout: float = 30.0,
        on_foreign: Literal["warn", "raise"] | Callable[[ForeignMessage], None] = "warn",
        options: dict[str, str | int | float | bool] | None = None,
        schema_registry: str | Schemas | None = None,
        hold: bool = False,
    ) -> None:
        """Subscribe to one or several topics; one that begins with ``^`` is a regular expression.

        Dead letters are no annotations: a regular expression leaves their topic out. ``start`` is where to begin in a
        topic in which the group has no position: a time with a zone is that of publication. ``where``, a ``Filter``,
        ``Expression`` or function, or several that all have to agree, says which annotations are delivered; the others
        count as read, and those that Kafka's headers tell a ``Filter`` or ``Expression`` to leave out are not even
        decoded (``broker.client.headers.FIELDS_IN_HEADERS`` are the fields). After ``idle_timeout`` seconds
        without any annotation the iteration ends, with None never. ``timeout`` bounds, in seconds, the wait for Kafka
        and for the topics at the beginning; later outages are waited for. ``on_foreign`` is what to do with a message
        that is no annotation: ``warn`` logs where it is, counts it in ``skipped`` and goes on; ``raise`` raises
        DecodeError before it counts as read; a function is called with it and may raise likewise. ``options`` are
        further librdkafka properties, such as those for TLS and passwords. ``schema_registry`` is for messages that
        only name their schema: the address of the registry, or what gives a parsed schema by its id. With ``hold``
        only ``acknowledge`` and the end count annotations as read, and asking for the next one does not. Raises
        ConfigurationError where an argument cannot be meant.
        """
        self._topics = list(dict.fromkeys([topics] if isinstance(topics, str) else topics))
        self._servers, self._start, self._timeout = bootstrap_servers, start, timeout
        self._idle_timeout = idle_timeout
        self._has_group, self._hold = group_id is not None, hold
        options = options or {}
        check_arguments(self._topics, bootstrap_servers, group_id, start, on_foreign, options)
        check_seconds(idle_timeout=idle_timeout, timeout=timeout)
        self._ready = False
        """Whether Kafka and the topics were there."""
        self._known: set[str] | None = None
        """Topics that existed when this began; None until Kafka has answered."""
        self._visible: set[str] = set()
        """Topics that this user may see, as of the latest assignment: a pattern takes no others."""
        self._positions: dict[Position, int] = {}
        """The next offset of each partition, of those that were assigned; what a reader without a group goes by."""
        self._handed: dict[Position, TopicPartition] = {}
        """Positions after the annotations that the caller has, where all before them was read."""
        self._rest: deque[PublishedAnnotation] = deque()
        """Of a message that has several, those that were not delivered yet."""
        self._after_rest: TopicPartition | None = None
        self._assigned = False
        self._awaits_group = False  # whether there is a topic whose partitions the group can assign
        self._idle_from = 0.0
        """From when on silence counts, monotonic seconds: not while the group is about to assign partitions."""
        self._outage = Outage(bootstrap_servers)
        # Members that keep partitions over a rebalance are told of the others only.
        self._incremental = "cooperative" in str(options.get("partition.assignment.strategy")) or (
            options.get("group.protocol") == "consumer"
        )
        try:
            self._consumer = Consumer(
                consumer_options(options, bootstrap_servers, group_id)
                | {"error_cb": self._outage.report, "on_commit": self._outage.committed}
            )
        except KafkaException as error:
            raise ConfigurationError(f"options of Kafka: {error.args[0].str()}") from error
        schemas = schemas_of(schema_registry) if isinstance(schema_registry, str) else schema_registry
        conditions = [where] if callable(where) else where or ()
        self._read = Reader(self._consumer, schemas, on_foreign, timeout, conditions)

    def __iter__(self) -> Iterator[PublishedAnnotation]:
        """Annotations in the order of each partition; may be called again, and goes on where it was.

        Raises DependencyUnavailableError where Kafka does not answer at the beginning or at the end of
        ``idle_timeout``, ConfigurationError where a topic does not exist or may not be read, and DecodeError where
        ``on_foreign`` asks for it.
        """
        self._pass()  # whoever asks again has processed what was delivered
        self._connect()
        try:
            for annotation in self._annotations():
                if annotation is not None:
                    yield annotation
                self._pass()
        finally:
            self._commit()

    def batches(self, size: int = 500, wait: float = 0.5) -> Iterator[list[PublishedAnnotation]]:
        """Lists of annotations, of which each counts as read, as a whole, when the next one is asked for.

        A list ends with ``size`` annotations, or ``wait`` seconds after its first one. For what is stored many at a
        time; raises what the iteration over single annotations does, after what came before it was given.
        """
        self._pass()
        self._connect()
        batch: list[PublishedAnnotation] = []
        begun = 0.0
        annotations = self._annotations()
        failed: Exception | None = None
        try:
            while True:
                try:
                    annotation = next(annotations)
                except StopIteration:
                    break
                except Exception as error:  # whoever asks again has all that came before it, and it counts as read
                    failed = error
                    break
                if annotation is not None:
                    begun = begun if batch else time.monotonic()
                    batch.append(annotation)
                if not batch:
                    self._pass()  # of messages that were no annotations
                elif len(batch) >= size or time.monotonic() - begun >= wait:
                    yield batch
                    self._pass()
                    batch = []
            if batch:
                yield batch
                self._pass()
            if failed is not None:
                raise failed
        finally:
            self._commit()

    def _annotations(self) -> Iterator[PublishedAnnotation | None]:
        """Annotations, and None after each message or pause: what was delivered until then may be acknowledged."""
        yield from self._of_message()  # where whoever asked before went away in the middle of one
        heard = time.monotonic()
        while (left := self._time_left(heard)) > 0 or not self._idle_is_meant():
            message = self._poll(max(0.0, min(_POLL_S, left)))
            if message is None:
                self._outage.ask_again(self._consumer)
                yield None
                continue
            error = message.error()
            if error is not None and error.code() == KafkaError._PARTITION_EOF:
                topic, partition, end = place_of(message)
                self._handed[topic, partition] = TopicPartition(topic, partition, end)
                yield None
                continue
            if error is not None:
                self._hear(error, message.topic() or "")
                continue
            self._outage.over()
            own, has_any = self._read(message, lambda one: is_first(one, self._topics, self._visible))
            self._rest.extend(own)
            self._after_rest = after(message)
            yield from self._of_message()
            if has_any:
                heard = time.monotonic()

    def _of_message(self) -> Iterator[PublishedAnnotation | None]:
        """The annotations of a message that are left; it is handed over with the last of them, or None for none."""
        position = self._after_rest
        while position is not None:
            annotation = self._rest.popleft() if self._rest else None
            if not self._rest:
                self._handed[position.topic, position.partition] = position
                position = self._after_rest = None
            yield annotation

    def _poll(self, wait: float) -> Message | None:
        """The next message or event; None after ``wait`` seconds, or where Kafka has deleted what was to come next.

        Raises DependencyUnavailableError where the consumer cannot begin in a partition, or go on in it.
        """
        try:
            message = self._consumer.poll(wait)  # calls _on_assign, too
            error = None if message is None else message.error()
            if message is not None and error is not None and error.code() == KafkaError._AUTO_OFFSET_RESET:
                self._go_on_after_lost(message)
                return None
            return message
        except KafkaException as failed:
            raise DependencyUnavailableError(f"Kafka at {self._servers}: {failed.args[0].str()}") from failed

    @property
    def skipped(self) -> int:
        """Messages so far that were no annotations."""
        return self._read.skipped

    def handed(self) -> Mapping[Position, TopicPartition]:
        """Positions behind what was delivered and does not count as read yet, for ``acknowledge``."""
        return dict(self._handed)

    def acknowledge(self, handed: Mapping[Position, TopicPartition] | None = None) -> None:
        """Count what was delivered as read: it will not come again. With ``handed``, what was delivered until then."""
        if handed is None:
            handed, self._handed = self._handed, {}
        for place, position in handed.items():
            self._positions[place] = position.offset
            if self._has_group:
                with suppress(KafkaException):  # the partition has another reader by now, to which it comes again
                    self._consumer.store_offsets(offsets=[position])

    def _pass(self) -> None:
        """What was delivered is dealt with, since the next is asked for."""
        if not self._hold:
            self.acknowledge()

    def lag(self) -> dict[Position, int]:
        """How many messages behind the end of each assigned partition this subscription is, by topic and partition.

        Marks of transactions count, too, one for each of the service's batches. Raises DependencyUnavailableError where
        Kafka does not answer.
        """
        return behind(self._consumer, self._servers, self._consumer.assignment(), self._positions)

    def close(self) -> None:
        """Count what was delivered as read, unless this is called upon an exception; commit, and leave the group."""
        self._close(dealt_with=sys.exc_info()[0] is None)

    def _close(self, *, dealt_with: bool) -> None:
        if not dealt_with:
            self._handed = {}  # it comes again
        self.acknowledge()
        self._consumer.close()

    def __del__(self) -> None:
        with suppress(AttributeError, RuntimeError, KafkaException):  # never made, or closed
            self._consumer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close(dealt_with=kind is None)

    def _commit(self) -> None:
        """Commit what counts as read at once: nothing else does where a subscription is dropped without ``close``."""
        if self._has_group and self._assigned and not self._outage.text:
            with suppress(KafkaException, RuntimeError):  # nothing new, told by on_commit, or closed meanwhile
                self._consumer.commit(asynchronous=False)

    def _connect(self) -> None:
        """Wait for Kafka and the topics, and subscribe."""
        if self._ready:
            return
        end = time.monotonic() + self._timeout
        topics: set[str] | None = None
        while True:
            topics = self._existing(min(CALL_S, self._timeout))
            if topics is not None:
                self._known = topics if self._known is None else self._known
                missing = self._missing(topics)
                if not missing:
                    break
            if time.monotonic() >= end:
                if topics is None:
                    raise self._unreachable(f"within {self._timeout:g} s")
                raise no_topic(self._servers, missing, topics)
            time.sleep(_RETRY_S)
        self._awaits_group = any_matches(self._topics, topics)
        if not self._awaits_group:
            log.warning("no topic matches %s yet", ", ".join(self._topics))
        self._idle_from = time.monotonic() + max(_JOIN_S if self._awaits_group else 0.0, self._timeout)
        self._consumer.subscribe(self._topics, on_assign=weakly(self._on_assign), on_revoke=weakly(self._on_revoke))
        self._ready = True
        self._outage.over()

    def _existing(self, timeout: float) -> set[str] | None:
        """Names of all topics that may be seen; None where Kafka does not answer."""
        try:
            self._visible = set(self._consumer.list_topics(timeout=timeout).topics)
            return self._visible
        except KafkaException as error:
            if not self._ready:
                self._consumer.poll(0)  # has error_cb told why; there are no messages yet
            self._outage.report(error.args[0])
            return None

    def _missing(self, topics: set[str]) -> list[str]:
        """Topics asked for by name that do not exist; raises ConfigurationError where one may not be read."""
        missing = [t for t in self._topics if not is_pattern(t) and t not in topics]
        for topic in missing:
            with suppress(KafkaException):
                error = self._consumer.list_topics(topic, timeout=CALL_S).topics[topic].error
                if error is not None and error.code() in _REFUSED:
                    raise clients.failure(error, f"topic {topic}")
        return missing

    def _unreachable(self, when: str) -> DependencyUnavailableError:
        why = f": {self._outage.text}" if self._outage.text else ""
        return DependencyUnavailableError(f"Kafka at {self._servers} does not answer {when}{why}")

    def _time_left(self, heard: float) -> float:
        """Seconds until the iteration ends for want of annotations, not counting waits for Kafka and for the group."""
        if self._idle_timeout is None:
            return math.inf
        return max(heard, self._idle_from, self._outage.ended) + self._idle_timeout - time.monotonic()

    def _idle_is_meant(self) -> bool:
        """Whether nothing came because there is nothing: raises at a fault, is False where an outage has just ended."""
        end = time.monotonic() + self._timeout
        while (topics := self._existing(CALL_S)) is None:
            if time.monotonic() >= end:
                raise self._unreachable("any more")
            time.sleep(_RETRY_S)
        if self._outage.text:
            self._outage.over()
            return False
        if missing := self._missing(topics):
            raise no_topic(self._servers, missing, topics)
        if not any_matches(self._topics, topics):
            raise ConfigurationError(f"Kafka at {self._servers}: no topic matches {', '.join(self._topics)}")
        if not self._assigned and not self._awaits_group:  # the first topic that matches came only now
            self._awaits_group, self._idle_from = True, time.monotonic() + max(_JOIN_S, self._timeout)
            return False
        if not self._assigned:
            raise DependencyUnavailableError(f"Kafka at {self._servers}: the group has not assigned partitions yet")
        return True

    def _hear(self, error: KafkaError, topic: str) -> None:
        """An event of the consumer instead of a message."""
        if error.code() in _REFUSED:
            raise clients.failure(error, f"topic {topic}" if topic else "")
        if error.fatal():
            raise DependencyUnavailableError(f"Kafka ended the subscription: {error.str()}")
        self._outage.report(error)  # librdkafka goes on trying

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Begin where the group is, or at a position that the group is given now."""
        positions = None if self._has_group else self._positions
        begun, self._visible = self._insist(
            lambda: starting_points(consumer, partitions, positions, self._start, self._known or ())
        )
        # What an outage kept from being committed was read all the same.
        places = [(p.topic, p.partition) for p in partitions]
        ahead = {place for place in places if 0 <= self._positions.get(place, OFFSET_INVALID) > begun[place]}
        going_on = {place: self._positions[place] if place in ahead else begun[place] for place in places}
        going_on = self._insist(lambda: after_lost(consumer, going_on, CALL_S))
        for p, place in zip(partitions, places, strict=True):
            p.offset = self._positions[place] = going_on[place]
        if self._incremental:
            consumer.incremental_assign(partitions)
        else:
            consumer.assign(partitions)
        if ahead and self._has_group:
            consumer.store_offsets(offsets=[p for p, place in zip(partitions, places, strict=True) if place in ahead])
        self._assigned, self._idle_from = True, time.monotonic()

    def _go_on_after_lost(self, message: Message) -> None:
        """Read a partition on with what Kafka still has, where it has deleted what was to be read next."""
        topic, partition, offset = place_of(message)
        going_on = self._insist(lambda: after_lost(self._consumer, {(topic, partition): offset}, CALL_S))
        self._positions[topic, partition] = going_on[topic, partition]
        here = TopicPartition(topic, partition, going_on[topic, partition])
        # librdkafka has ended reading the partition, and then refuses to seek in it.
        if self._incremental:
            self._consumer.incremental_unassign([here])
            self._consumer.incremental_assign([here])
        else:
            assigned = self._consumer.position(self._consumer.assignment())
            others = [p for p in assigned if (p.topic, p.partition) != (topic, partition)]
            for p in others:
                p.offset = self._positions[p.topic, p.partition] if p.offset < 0 else p.offset
            self._consumer.assign([here, *others])

    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Partitions go to other members, or are lost in an outage; the group assigns anew."""
        if not self._incremental:
            self._assigned, self._idle_from = False, time.monotonic() + max(_JOIN_S, self._timeout)

    def _insist(self, call: Callable[[], T]) -> T:
        """Repeat a call until it succeeds, within bounds.

        An unreachable Kafka is waited for as long as at the beginning. One that answers that it is not ready yet, as
        it does for partitions that are being made, and one that went away later, are waited for longer.
        """
        start = time.monotonic()
        while True:
            try:
                return call()
            except KafkaException as error:
                code = error.args[0].code()
                if code in _REFUSED:
                    raise clients.failure(error.args[0]) from error
                limit = max(_PATIENCE_S, self._timeout) if code > 0 or self._positions else self._timeout
                if time.monotonic() - start >= limit:
                    raise DependencyUnavailableError(f"Kafka at {self._servers}: {error.args[0].str()}") from error
                self._outage.report(error.args[0])
                time.sleep(_RETRY_S)
