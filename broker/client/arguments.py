"""What a subscription may be asked for, and what is said where it cannot be meant."""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, Final
from uuid import uuid4

from broker.errors import ConfigurationError
from broker.topic_names import DEAD_LETTER_ENDING, ELASTICC_ENDING, NO_ANNOTATIONS, check_topic

_OWN: Final = (
    "bootstrap.servers", "group.id", "auto.offset.reset", "enable.auto.commit", "enable.auto.offset.store",
    "isolation.level", "topic.blacklist",
)  # fmt: skip
"""Properties that the promises of a subscription rest on."""
_NAMES_SHOWN: Final = 5
_COMMIT_MS: Final = 1000
_SESSION_MS: Final = 10_000
_REFRESH_MS: Final = 10_000
"""New topics of a pattern, and new partitions, are found after so long; librdkafka's own choice is 5 minutes."""


def check_topics(topics: Sequence[str]) -> None:
    """Raises ConfigurationError where there is no topic, or one that cannot be, or one of dead letters."""
    if not topics:
        raise ConfigurationError("no topic to subscribe to")
    for topic in topics:
        try:
            check_topic(topic)
        except ValueError as error:
            raise ConfigurationError(str(error)) from error
        if topic.endswith(DEAD_LETTER_ENDING):
            raise ConfigurationError(f"{topic} holds dead letters, no annotations: `trifid deadletter show` reads them")
        if topic.endswith(ELASTICC_ENDING):
            raise ConfigurationError(
                f"{topic} holds what ELAsTiCC's schema reads, no annotations: those are in <prefix>.<survey>.all"
            )


def check_seconds(**arguments: float | None) -> None:
    """Raises ConfigurationError where an argument is no finite number above 0; None is allowed."""
    for name, seconds in arguments.items():
        if seconds is not None and not (math.isfinite(seconds) and seconds > 0):
            raise ConfigurationError(f"{name} is {seconds}: give a number of seconds above 0")


def check_start(start: object) -> None:
    """Raises ConfigurationError where ``start`` is no place to begin, or a time of nobody knows which zone."""
    if isinstance(start, datetime):
        if start.tzinfo is None:
            raise ConfigurationError(f"start is {start}, without a time zone: give datetime(..., tzinfo=UTC)")
    elif start not in ("earliest", "latest"):
        raise ConfigurationError(f"start is {start!r}: give 'earliest', 'latest' or a datetime")


def check_options(options: Collection[str]) -> None:
    """Raises ConfigurationError where a property of librdkafka is the subscription's own."""
    refused = [name for name in _OWN if name in options]
    if refused:
        raise ConfigurationError(f"options: {', '.join(refused)} cannot be set: what a subscription promises rests on "
                                 "them")  # fmt: skip


def check_arguments(
    topics: Sequence[str],
    servers: str,
    group_id: str | None,
    start: object,
    on_foreign: object,
    options: Collection[str],
) -> None:
    """Raises ConfigurationError where one of a subscription's arguments cannot be meant."""
    check_topics(topics)
    if not servers.strip():
        raise ConfigurationError("bootstrap_servers is empty: give Kafka's address, host:port")
    if servers.strip().lower().startswith(("http://", "https://")):
        raise ConfigurationError(
            f"bootstrap_servers is {servers!r}, the address of a web page: give Kafka's, host:port"
        )
    if group_id is not None and not group_id.strip():
        raise ConfigurationError("group_id is empty: give a name, or None to read without a group")
    check_start(start)
    if not callable(on_foreign) and on_foreign not in ("warn", "raise"):
        raise ConfigurationError(f"on_foreign is {on_foreign!r}: give 'warn', 'raise' or a function")
    check_options(options)


def consumer_options(options: Mapping[str, Any], servers: str, group_id: str | None) -> dict[str, Any]:
    """Properties of a subscription's consumer; ``options`` are the user's, of which it keeps all but its own."""
    return {
        # What librdkafka would write to stderr is told to error_cb, too, which the subscription adds.
        "log_level": 2,
        "log.connection.close": False,
        "reconnect.backoff.ms": 500,
        "reconnect.backoff.max.ms": 5000,
        # A process that was killed holds up the next one of its group for so long.
        "session.timeout.ms": _SESSION_MS,
        "topic.metadata.refresh.interval.ms": _REFRESH_MS,
        **options,
        "bootstrap.servers": servers,
        "group.id": group_id or f"trifid-subscriber-{uuid4()}",
        # Each partition begins at a position of its own. One that Kafka no longer has is an event, which is told.
        "auto.offset.reset": "error",
        # Between the last message and the end of a partition are ends of transactions: with a position before them,
        # their deletion would look like that of a message.
        "enable.partition.eof": True,
        "enable.auto.commit": group_id is not None,
        "auto.commit.interval.ms": _COMMIT_MS,
        "enable.auto.offset.store": False,
        "isolation.level": "read_committed",
        "topic.blacklist": ",".join([*(rf"^.*\{ending}$" for ending in NO_ANNOTATIONS), "^__.*"]),
    }


def describe_missing(missing: Sequence[str], topics: Collection[str]) -> str:
    """That topics do not exist, with those of nearly the same name, or examples of those that there are."""
    names = sorted(t for t in topics if not t.startswith("__"))
    said = []
    for topic in missing:
        near = difflib.get_close_matches(topic, names, n=3)
        said.append(f"topic {topic} does not exist" + (f" (did you mean {', '.join(near)}?)" if near else ""))
    shown = [t for t in names if t.endswith(".all")][:_NAMES_SHOWN] or names[:_NAMES_SHOWN]
    if not any("did you" in text for text in said):
        said.append(f"there are {', '.join(shown)}{', ...' if len(names) > len(shown) else ''}" if names else
                    "there are no topics at all")  # fmt: skip
    return "; ".join(said)


def no_topic(servers: str, missing: Sequence[str], topics: Collection[str]) -> ConfigurationError:
    """The error of topics that do not exist, as ``describe_missing`` has them."""
    return ConfigurationError(f"Kafka at {servers}: {describe_missing(missing, topics)}")
