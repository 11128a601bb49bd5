"""What the headers of a message tell of its annotation, so that one that is not wanted need not be read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from confluent_kafka import Message

from broker.publish.headers import KNOWN, NUMBERS, OPTIONAL, TEXTS

FIELDS_IN_HEADERS: Final = frozenset((*TEXTS, *NUMBERS, KNOWN))
_FLAGS: Final = {"true": True, "false": False}


def summary(message: Message) -> Mapping[str, Any] | None:
    """FIELDS_IN_HEADERS of a message's annotation, where there is none None; None where the headers do not tell.

    They do not in messages of earlier releases, nor in any that are no annotations.
    """
    given: dict[str, Any] = dict(message.headers() or ())
    try:
        found: dict[str, Any] = {
            name: None if name in OPTIONAL and name not in given else given[name].decode() for name in TEXTS
        }
        for name in NUMBERS:
            found[name] = None if name in OPTIONAL and name not in given else float(given[name])
        found[KNOWN] = _FLAGS[given[KNOWN].decode()]
    except (KeyError, ValueError, AttributeError, TypeError):
        return None
    return found
