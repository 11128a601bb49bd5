"""What a topic may be called, and the patterns that librdkafka matches it with: for settings, client and service."""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Final

from broker.taxonomy import OUTPUT_NAMES, PARENTS

KINDS: Final[tuple[str, ...]] = ("all", *OUTPUT_NAMES, *PARENTS, "anomaly")
"""Of the topics of one survey, see ``topic_of``."""
DEAD_LETTER_ENDING: Final = ".deadletter"
"""Of the topic of dead letters, whatever the prefix: a subscriber is told only names."""
ELASTICC_ENDING: Final = ".brokerclassification"
"""Of the topic in ELAsTiCC's schema, whatever the prefix."""
NO_ANNOTATIONS: Final = (DEAD_LETTER_ENDING, ELASTICC_ENDING)
"""Endings of topics that a subscriber to annotations has no use for."""
_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,249}")
_IN_NAMES: Final = string.ascii_letters + string.digits + "._-"
"""All characters that a topic's name may have."""
_NOT_POSIX: Final = re.compile(r"\(\?|[*+?}][*+?{]|\\(?:[A-Za-z0-9](?<![wWsSbB])|[<>`'])")
"""librdkafka has the C library's extended regular expressions: there ``\\d`` is the letter d, ``(?`` an error, and
``a+?`` matches nothing, too."""
_CLASSES: Final[Mapping[str, str]] = {
    "alnum": string.ascii_letters + string.digits,
    "alpha": string.ascii_letters,
    "blank": " \t",
    "cntrl": "",
    "digit": string.digits,
    "graph": _IN_NAMES,
    "lower": string.ascii_lowercase,
    "print": _IN_NAMES,
    "punct": "._-",
    "space": string.whitespace,
    "upper": string.ascii_uppercase,
    "xdigit": string.hexdigits,
}
"""Of POSIX's ``[[:digit:]]`` and the like, what can be in a name."""


def topic_of(prefix: str, survey: str, kind: str) -> str:
    """The topic of one of KINDS: ``trifid.ztf.rrab``."""
    return f"{prefix}.{survey}.{kind.lower()}"


def dead_letter_topic(prefix: str) -> str:
    """The topic of what could not be processed: ``trifid.deadletter``."""
    return f"{prefix}{DEAD_LETTER_ENDING}"


def elasticc_topic(prefix: str) -> str:
    """The topic of classifications in ELAsTiCC's schema: ``trifid.brokerclassification``."""
    return f"{prefix}{ELASTICC_ENDING}"


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
    _compiled(topic)
    return topic


def matches(topic: str, name: str) -> bool:
    """Whether a name, or a regular expression, takes the topic ``name``, as librdkafka says; raises as check_topic."""
    return _compiled(topic).search(name) is not None if is_pattern(topic) else topic == name


def any_matches(topics: Iterable[str], names: Iterable[str]) -> bool:
    """Whether one of the names and regular expressions ``topics`` takes one of the ``names``; raises as check_topic."""
    every = list(names)
    return any(matches(topic, name) for topic in topics for name in every)


@lru_cache(maxsize=256)
def _compiled(pattern: str) -> re.Pattern[str]:
    """A POSIX extended regular expression in Python's spelling; raises ValueError, saying why, where it is none."""
    parts: list[str] = []
    outside = ""
    at = 0
    while at < len(pattern):
        if pattern[at] == "[":
            found, at = _bracket(pattern, at)
            parts.append(found)
            outside += "x"
            continue
        piece = pattern[at : at + 2] if pattern[at] == "\\" else pattern[at]
        parts.append(piece)
        outside += "x" if re.fullmatch(r"\\[^A-Za-z0-9<>`']", piece) else piece
        at += len(piece)
    if found_other := _NOT_POSIX.search(outside):
        raise ValueError(
            f"{pattern!r}: {found_other[0]} is not in the regular expressions of Kafka's clients, which are POSIX "
            r"extended; [0-9] is what \d is elsewhere"
        )
    try:
        return re.compile("".join(parts), re.ASCII)
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}") from error


def _bracket(pattern: str, start: int) -> tuple[str, int]:
    """The bracket expression ``[...]`` at ``start`` as the characters of names that it takes, and where it ends.

    There POSIX has classes such as ``[:digit:]``, ``]`` as the first character is itself, and so is a backslash.
    """
    at = start + 1
    negated = pattern.startswith("^", at)
    at = first = at + negated
    taken: set[str] = set()
    while at == first or not pattern.startswith("]", at):
        if at >= len(pattern):
            raise ValueError(f"{pattern!r} is no regular expression: a [ without its ]")
        if pattern.startswith(("[.", "[="), at):
            raise ValueError(f"{pattern!r}: {pattern[at : at + 2]} in a bracket expression is not supported")
        if pattern.startswith("[:", at):
            name, colon, _ = pattern[at + 2 :].partition(":]")
            if not colon or name not in _CLASSES:
                raise ValueError(f"{pattern!r}: no such class as [:{name}:]; there are {', '.join(_CLASSES)}")
            taken |= set(_CLASSES[name])
            at += len(name) + 4
            continue
        if re.match(r"\\[A-Za-z0-9]", pattern[at:]):
            raise ValueError(
                f"{pattern!r}: {pattern[at : at + 2]} in [...] is a backslash or a letter for Kafka's clients, whose "
                "regular expressions are POSIX extended; write [0-9], [[:alnum:]_] and the like"
            )
        low = high = pattern[at]
        at += 1
        if pattern.startswith("-", at) and at + 1 < len(pattern) and pattern[at + 1] != "]":
            high = pattern[at + 1]
            at += 2
            if high == "[" or high < low:
                raise ValueError(f"{pattern!r} is no regular expression: the range {low}-{high}")
        taken |= {character for character in _IN_NAMES if low <= character <= high}
    characters = [c for c in _IN_NAMES if (c in taken) != negated]
    return (f"[{''.join(map(re.escape, characters))}]" if characters else "(?!)"), at + 1
