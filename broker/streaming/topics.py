"""What Kafka says of topics: whether they exist, and by which id a topic is told from a later one of the same name."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, TimeoutError
from dataclasses import dataclass
from typing import Any, Final

from confluent_kafka import (
    ConsumerGroupState,
    ConsumerGroupTopicPartitions,
    KafkaError,
    KafkaException,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient

from broker.config import KafkaSettings
from broker.errors import DependencyUnavailableError
from broker.streaming import clients
from broker.topic_names import is_pattern, matches

_MISSING: Final = (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC)
_NO_ID: Final = "A" * 22
"""Sixteen zero bytes in base 64: the broker is older than Kafka 2.8, which brought ids."""

_LOOK_S: Final = 1.0
"""Longest wait for any broker, before more is asked where none answered the last time."""

TopicIds = Mapping[str, str | None]
"""A topic's id by name: empty where the broker does not tell, None where the topic does not exist."""
Asked = Mapping[str, "Future[Any]"]
"""A question for ids, on its way: descriptions of topics by name."""


@dataclass(frozen=True)
class _Described:
    topic_id: str = _NO_ID


class TopicAdmin:
    """Asks about topics and groups with a client of its own; for one thread."""

    def __init__(self, settings: KafkaSettings) -> None:
        """Connects when it is first asked."""
        self._admin: AdminClient = clients.admin(settings)
        self._heard = time.monotonic()
        self._answers = True
        """Whether the last question was answered."""
        self._has_controller: bool | None = None
        """None until it is known."""

    @property
    def silent_s(self) -> float:
        """Seconds since Kafka last answered."""
        return time.monotonic() - self._heard

    def connect(self) -> None:
        """Look at the cluster, and count its silence from now on; raises DependencyUnavailableError."""
        try:
            cluster = self._admin.list_topics(timeout=clients.CALL_TIMEOUT)
        except KafkaException as error:
            clients.poll_events(self._admin)
            raise clients.failure(error.args[0]) from error
        self._has_controller = clients.has_controller(cluster)
        self._heard = time.monotonic()

    def ask(self, names: Iterable[str]) -> Asked:
        """Ask for the ids of topics, without waiting for the answer."""
        wanted = sorted(set(names))
        if not wanted:
            return {}
        if self._has_controller is False:
            return self._exist(wanted)
        if not self._answers:
            try:
                # While a question waits for the controller, and no broker is there, librdkafka connects without a
                # pause, whatever reconnect.backoff.ms says: thousands of times a second, on half a core.
                self._admin.list_topics(timeout=_LOOK_S)
            except KafkaException as error:
                return _unanswered(wanted, error)
        asked: Asked = self._admin.describe_topics(TopicCollection(wanted), request_timeout=clients.CALL_TIMEOUT)
        return asked

    def _exist(self, names: Iterable[str]) -> Asked:
        """The same where the cluster names no controller to ask, as librdkafka's mock does not: without ids."""
        try:
            there = self._admin.list_topics(timeout=clients.CALL_TIMEOUT).topics
        except KafkaException as error:
            return _unanswered(names, error)
        asked: dict[str, Future[Any]] = {name: Future() for name in names}
        for name, future in asked.items():
            if name in there:
                future.set_result(_Described())
            else:
                future.set_exception(KafkaException(KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART)))
        return asked

    def answer(self, asked: Asked) -> TopicIds:
        """Wait for the answer; raises DependencyUnavailableError, or ConfigurationError where a right is missing."""
        ids: dict[str, str | None] = {}
        for name, future in asked.items():
            try:
                topic_id = str(future.result(2 * clients.CALL_TIMEOUT).topic_id)
            except KafkaException as error:
                if error.args[0].code() not in _MISSING:
                    self._answers = False
                    clients.poll_events(self._admin)
                    raise clients.failure(error.args[0], f"topic {name}") from error
                ids[name] = None
            except TimeoutError as error:
                self._answers = False
                raise DependencyUnavailableError(f"Kafka: no answer about topic {name}") from error
            else:
                ids[name] = "" if topic_id == _NO_ID else topic_id
            self._heard, self._answers = time.monotonic(), True
        return ids

    def ids(self, names: Iterable[str]) -> TopicIds:
        """The ids of topics; raises as ``answer`` does."""
        return self.answer(self.ask(names))

    def missing(self, names: Iterable[str]) -> list[str]:
        """Those of ``names`` that do not exist, and regular expressions (``^…``) that no topic matches.

        Raises as ``answer`` does.
        """
        if self._has_controller is None:
            self.connect()
        wanted = list(names)
        patterns = [name for name in wanted if is_pattern(name)]
        missing = [name for name, found in self.ids(n for n in wanted if n not in patterns).items() if found is None]
        if patterns:
            try:
                there = self._admin.list_topics(timeout=clients.CALL_TIMEOUT).topics
            except KafkaException as error:
                clients.poll_events(self._admin)
                raise clients.failure(error.args[0]) from error
            missing += [p for p in patterns if not any(matches(p, topic) for topic in there)]
        return missing

    def committed(self, group_id: str, partitions: list[TopicPartition]) -> list[TopicPartition]:
        """The offsets that a group has committed, negative where none.

        Raises DependencyUnavailableError, also where a transaction that has not ended holds one of them.
        """
        # Only the names: an offset that is given along is refused.
        asked = [TopicPartition(p.topic, p.partition) for p in partitions]
        request = [ConsumerGroupTopicPartitions(group_id, asked)]
        try:
            answer = self._admin.list_consumer_group_offsets(
                request, require_stable=True, request_timeout=clients.CALL_TIMEOUT
            )
            found: list[TopicPartition] = answer[group_id].result(2 * clients.CALL_TIMEOUT).topic_partitions
        except (KafkaException, TimeoutError) as error:
            if self._has_no_groups(error):
                return partitions
            raise _group_failure(error, group_id) from error
        for p in found:
            # A partition with an error has no offset here, and would be taken for one of which nothing was read.
            if p.error is not None:
                raise clients.failure(p.error, f"group {group_id}, {p.topic}[{p.partition}]")
        return found

    def is_assigned(self, group_id: str, topic: str) -> bool | None:
        """Whether a member of a group has partitions of a topic; None while the group has not settled.

        Raises DependencyUnavailableError.
        """
        try:
            asked = self._admin.describe_consumer_groups([group_id], request_timeout=clients.CALL_TIMEOUT)
            group = asked[group_id].result(2 * clients.CALL_TIMEOUT)
        except (KafkaException, TimeoutError) as error:
            if isinstance(error, KafkaException) and error.args[0].code() == KafkaError.GROUP_ID_NOT_FOUND:
                return False
            if self._has_no_groups(error):
                return False
            raise _group_failure(error, group_id) from error
        if group.state in (ConsumerGroupState.EMPTY, ConsumerGroupState.DEAD):
            return False
        if group.state != ConsumerGroupState.STABLE:
            return None
        return any(p.topic == topic for member in group.members for p in member.assignment.topic_partitions)

    def _has_no_groups(self, error: KafkaException | TimeoutError) -> bool:
        """Whether a question about a group fails because the cluster is none of Kafka's, as librdkafka's mock.

        It cannot tell of groups, and had none of an earlier version either. Of a real one librdkafka says the same
        while it has no connection to the group's coordinator, as on a busy machine: then it is to be asked again.
        """
        if not isinstance(error, KafkaException) or error.args[0].code() != KafkaError._UNSUPPORTED_FEATURE:
            return False
        if self._has_controller is None:
            self.connect()
        return not self._has_controller


def _unanswered(names: Iterable[str], error: KafkaException) -> Asked:
    asked: dict[str, Future[Any]] = {name: Future() for name in names}
    for future in asked.values():
        future.set_exception(error)
    return asked


def _group_failure(error: KafkaException | TimeoutError, group_id: str) -> Exception:
    if isinstance(error, KafkaException):
        return clients.failure(error.args[0], f"group {group_id}")
    return DependencyUnavailableError(f"Kafka: no answer about group {group_id}")
