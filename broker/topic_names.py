"""What a topic may be called, and the regular expressions that librdkafka matches topics with."""

from __future__ import annotations

import re
from typing import Final

from broker.taxonomy import CLASS_NAMES, NOT_CLASSIFIED, OTHER, PARENTS

KINDS: Final[tuple[str, ...]] = ("all", *CLASS_NAMES, OTHER.name, NOT_CLASSIFIED.name, *PARENTS, "anomaly")
"""Of the topics of one survey, see ``topic_of``."""
_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,249}")
_NOT_POSIX: Final = re.compile(r"\(\?|\\[A-Za-z0-9](?<!\\[wWsSbB])")
"""librdkafka has the C library's extended regular expressions: there ``\\d`` is the letter d, and ``(?`` an error."""


def topic_of(prefix: str, survey: str, kind: str) -> str:
    """The topic of one of KINDS: ``trifid.ztf.rrab``."""
    return f"{prefix}.{survey}.{kind.lower()}"


def pattern_of(prefix: str, kind: str) -> str:
    """A regular expression for the topics of one of KINDS of all surveys: ``^trifid[.][^.]+[.]rrab$``."""
    return f"^{prefix.replace('.', '[.]')}[.][^.]+[.]{kind.lower()}$"


def is_pattern(topic: str) -> bool:
    """Whether Kafka's clients take it for a regular expression."""
    return topic.startswith("^")


def check_topic(topic: str) -> str:
    """The name or regular expression itself; raises ValueError, saying why, where it can be neither."""
    if not is_pattern(topic):
        if topic in (".", "..") or not _NAME.fullmatch(topic):
            hint = "; a regular expression begins with ^" if re.search(r"[*+?\[\](){}|$\\]", topic) else ""
            raise ValueError(
                f"{topic!r} is no name of a topic: letters, digits, '.', '_' and '-', at most 249 of them{hint}"
            )
        return topic
    try:
        re.compile(topic)
    except re.error as error:
        raise ValueError(f"{topic!r} is no regular expression: {error}") from error
    if found := _NOT_POSIX.search(topic.replace(r"\\", "")):
        raise ValueError(
            f"{topic!r}: {found[0]} is not in the regular expressions of Kafka's clients, which are POSIX extended; "
            r"[0-9] is what \d is elsewhere"
        )
    return topic


def matches(topic: str, name: str) -> bool:
    """Whether a name, or a regular expression, takes the topic ``name``."""
    return re.search(topic, name) is not None if is_pattern(topic) else topic == name
