"""Messages of a subscribed topic that are no annotations."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ForeignMessage:
    """A message of a subscribed topic that is no annotation."""

    topic: str
    partition: int
    offset: int
    reason: str
    """Why it cannot be read."""
    payload: bytes

    def __str__(self) -> str:
        return f"{self.topic}[{self.partition}]@{self.offset}: {self.reason}"
