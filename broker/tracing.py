"""Traces from message to annotation (OpenTelemetry); imported only where ``tracing.endpoint`` is set.

Of some alerts there is a span ``alert``, from when the survey's message was written to Kafka until its annotations are
committed. It is a child of what the message's ``traceparent`` names (W3C Trace Context), and its own goes out with the
annotations. A batch that holds such alerts has a trace of its own: a span ``batch`` with a child for each stage, linked
with the alerts' spans both ways, as OpenTelemetry's conventions for messages ask for what is processed together.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Final, cast

from confluent_kafka import Message
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from broker import __version__, metrics
from broker.batch import IncomingMessage, TraceHeaders
from broker.config import TracingSettings

log = logging.getLogger(__name__)

_HEADERS: Final = ("traceparent", "tracestate")
_MOST_ALERTS: Final = 16
"""Traced alerts of one batch, whatever the messages ask for."""
_LONGEST: Final = 4096
"""Bytes of a header, which goes out with each message that an alert gives rise to; W3C asks for 512 to be passed on."""
_QUEUE: Final = 2048
_EXPORT_S: Final = 2.0
_CLOSE_S: Final = 2.0
"""What the end of the worker waits for spans that are left; a collector that hangs must not hold it up."""
_W3C: Final = TraceContextTextMapPropagator()


class Tracing:
    """Spans of a worker's batches, in the background; what cannot be exported is dropped."""

    def __init__(self, processor: SpanProcessor, share: float, group_id: str, worker_id: str) -> None:
        """``processor`` takes the spans that ended; ``share`` as ``TracingSettings`` has it."""
        self._share, self._group_id = share, group_id
        self._random: Final = random.Random()
        names = {"service.name": "trifid", "service.version": __version__, "service.instance.id": worker_id}
        self._provider = TracerProvider(sampler=ALWAYS_ON, resource=Resource.create(names), shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("trifid", __version__)
        metrics.trace_stages(self._stage)

    def close(self) -> None:
        """Send what is left, for a moment."""
        metrics.trace_stages(None)
        thread = threading.Thread(target=self._provider.shutdown, name="spans", daemon=True)
        thread.start()
        thread.join(_CLOSE_S)

    @contextmanager
    def batch(self, batch: list[IncomingMessage], messages: Sequence[Message]) -> Iterator[None]:
        """Trace some of the alerts of a batch, as long as the context lasts; where none is, nothing.

        What is to be passed on with their annotations is put into ``batch``, which is empty at the end where all was
        delivered; else, and after an exception, the alerts' spans say that they are to be read again.
        """
        alerts = self._alerts(batch, messages)
        if not alerts:
            yield
            return
        topics = ",".join(sorted({m.origin.topic for m in batch if m.origin is not None}))
        attributes: dict[str, str | int] = {
            "messaging.system": "kafka",
            "messaging.operation.type": "process",
            "messaging.destination.name": topics,
            "messaging.consumer.group.name": self._group_id,
            "messaging.batch.message_count": len(batch),
        }
        links = [Link(span.get_span_context()) for span in alerts]
        with self._tracer.start_as_current_span(
            "batch", context=Context(), kind=SpanKind.CONSUMER, attributes=attributes, links=links
        ) as own:
            for span in alerts:
                span.add_link(own.get_span_context())
            why: str | None = "not delivered"
            try:
                yield
                why = "the worker stops" if batch else None  # what is delivered leaves the batch
            except BaseException as error:
                why = type(error).__name__
                raise
            finally:
                for span in alerts:
                    if why is not None:
                        span.set_status(Status(StatusCode.ERROR, f"to be read again: {why}"))
                    span.end()

    def _alerts(self, batch: list[IncomingMessage], messages: Sequence[Message]) -> list[Span]:
        """Spans of the traced alerts, begun; what their annotations are to carry is put into ``batch``."""
        spans: list[Span] = []
        for row, message in enumerate(messages):
            carrier = _trace_of(message)
            parent: Context | None = None
            if carrier:
                parent = _W3C.extract(carrier, Context())
                before = trace.get_current_span(parent).get_span_context()
                if before.is_valid and not before.trace_flags.sampled:
                    batch[row] = replace(batch[row], trace=_headers(carrier))  # not ours to trace, but to pass on
                    continue
                sampled = before.is_valid
            else:
                sampled = False
            if len(spans) < _MOST_ALERTS and (sampled or (not carrier and self._random.random() < self._share)):
                span = self._alert(batch[row], parent or Context())
                spans.append(span)
                out: dict[str, str] = {}
                _W3C.inject(out, trace.set_span_in_context(span, Context()))
                batch[row] = replace(batch[row], trace=_headers(out))
            elif sampled:
                batch[row] = replace(batch[row], trace=_headers(carrier))
        return spans

    def _alert(self, message: IncomingMessage, parent: Context) -> Span:
        attributes: dict[str, str | int] = {"messaging.system": "kafka"}
        written: int | None = None
        if (origin := message.origin) is not None:
            attributes |= {
                "messaging.destination.name": origin.topic,
                "messaging.destination.partition.id": str(origin.partition),
                "messaging.kafka.offset": origin.offset,
            }
            if 0 < origin.timestamp_ms * 1_000_000 < time.time_ns():
                written = origin.timestamp_ms * 1_000_000
        span = self._tracer.start_span(
            "alert", context=parent, kind=SpanKind.CONSUMER, attributes=attributes, start_time=written
        )
        span.add_event("taken")
        return span

    def _stage(self, name: str) -> AbstractContextManager[object]:
        """A span of a stage, in a batch that is traced."""
        if not trace.get_current_span().is_recording():
            return nullcontext()
        return self._tracer.start_as_current_span(name)


def start(settings: TracingSettings, group_id: str, worker_id: str) -> Tracing:
    """Tracing to the endpoint of the settings."""
    endpoint = f"{(settings.endpoint or '').rstrip('/')}/v1/traces"
    log.info("traces go to %s, of %g of the alerts and of all that are asked for", endpoint, settings.share)
    exporter = OTLPSpanExporter(endpoint=endpoint, timeout=_EXPORT_S)
    return Tracing(BatchSpanProcessor(exporter, max_queue_size=_QUEUE), settings.share, group_id, worker_id)


def _trace_of(message: Message) -> dict[str, str]:
    """``traceparent`` and ``tracestate`` of a message's headers; what is no text, or too long, counts as none."""
    found: dict[str, str] = {}
    for name, value in cast("list[tuple[str, bytes | None]]", message.headers() or []):
        if name in _HEADERS and isinstance(value, bytes) and len(value) <= _LONGEST:
            found[name] = value.decode("ascii", "replace")
    return found if "traceparent" in found else {}


def _headers(carrier: Mapping[str, str]) -> TraceHeaders:
    return tuple((name, carrier[name].encode("ascii", "replace")) for name in _HEADERS if name in carrier)
