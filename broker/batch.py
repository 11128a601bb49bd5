"""What goes into the pipeline and comes out of it: between `streaming`, which knows no astronomy, and the stages."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Final, Self

from broker.records import Alert, Annotation, ObservedSpectrum

TraceHeaders = tuple[tuple[str, bytes], ...]
"""``traceparent`` and ``tracestate`` (W3C Trace Context), as headers of a Kafka message."""
SPECTRA: Final = "spectra"
"""In place of a survey, for spectra that could not be handled."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a message stands in the stream it came from."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    """When it was written there, milliseconds since 1970, UTC."""

    def __str__(self) -> str:
        return f"{self.topic}[{self.partition}] offset {self.offset}"


@dataclass(frozen=True, slots=True)
class IncomingMessage:
    """One message of a survey's stream; it may hold several alerts."""

    payload: bytes
    received_mjd: float
    """MJD UTC."""
    origin: Origin | None = None
    trace: TraceHeaders = ()
    """To be passed on with what becomes of its alerts; none where nothing is traced (``broker.tracing``)."""


@dataclass(frozen=True, slots=True)
class Received:
    """One alert and the message it came in."""

    alert: Alert
    message: IncomingMessage


@dataclass(frozen=True, slots=True)
class ReceivedSpectrum:
    """One spectrum and the message it came in."""

    spectrum: ObservedSpectrum
    message: IncomingMessage


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An alert, or a message that is none, that could not be handled."""

    message: IncomingMessage
    survey: str
    """``unknown`` where the message could not be decoded, SPECTRA where it held a spectrum."""
    reason: str
    alert_id: int | None = None
    """Which alert of the message; None where the message could not be decoded."""
    traceback: str | None = None
    """Of an unexpected exception; None where the reason says it all."""


@dataclass(slots=True)
class BatchResult:
    """Everything a batch came to: each alert is either annotated or a dead letter, and so is each spectrum."""

    messages: int = 0
    """How many messages this is the result of."""
    alerts_in: Counter[str] = field(default_factory=Counter)
    """Alerts by survey; a message that cannot be decoded counts as one alert of survey ``unknown``."""
    points_left_out: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Points of packets that were not used, by survey and reason (``surveys.columns.PointFlaw``)."""
    spectra_in: int = 0
    spectra_stored: int = 0
    """Spectra that were stored, whether their object was seen yet or not."""
    annotations: list[Annotation] = field(default_factory=list)
    """One an alert, and one for each object that was classified again upon a spectrum."""
    dead_letters: list[DeadLetter] = field(default_factory=list)
    traces: dict[tuple[str, int], TraceHeaders] = field(default_factory=dict)
    """By survey and alert id, of the alerts that are traced."""

    def __iadd__(self, other: BatchResult) -> Self:
        """Take in what the next messages came to."""
        self.messages += other.messages
        self.alerts_in += other.alerts_in
        self.points_left_out += other.points_left_out
        self.spectra_in += other.spectra_in
        self.spectra_stored += other.spectra_stored
        self.annotations += other.annotations
        self.dead_letters += other.dead_letters
        self.traces |= other.traces
        return self
