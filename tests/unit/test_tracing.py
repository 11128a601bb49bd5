"""Spans of messages, batches and stages; to OpenTelemetry's exporter in memory, and to a receiver of OTLP over HTTP."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import ThreadingHTTPServer
from typing import cast

import pytest
from confluent_kafka import Message
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from broker import tracing
from broker.batch import BatchResult, DeadLetter, IncomingMessage, Origin
from broker.config import TracingSettings
from broker.metrics import stage_timer
from broker.publish.messages import Publisher
from broker.publish.topics import OutputTopics
from broker.streaming.work_thread import WorkThread
from broker.tracing import Tracing
from tests.otlp import PARENT, SAMPLED, TRACE, Handler, Receiver, otlp_receiver
from tests.unit.publish.test_messages import ANNOTATION

UNSAMPLED = f"00-{TRACE}-{PARENT}-00"
WRITTEN_MS = 1_700_000_000_123


class Sent:
    """A message of Kafka, as far as tracing looks at it."""

    def __init__(self, **headers: str) -> None:
        self._headers = [(name, value.encode()) for name, value in headers.items()]

    def headers(self) -> list[tuple[str, bytes]] | None:
        return self._headers or None


def batch_of(*sent: Sent) -> tuple[list[IncomingMessage], list[Message]]:
    batch = [IncomingMessage(b"", 61000.0, Origin("alerts.ztf", 2, row, WRITTEN_MS)) for row in range(len(sent))]
    return batch, cast("list[Message]", list(sent))


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def made(exporter: InMemorySpanExporter) -> Iterator[list[Tracing]]:
    """What a test makes is closed at its end: a stage's spans are the process's."""
    tracings: list[Tracing] = []
    yield tracings
    for each in tracings:
        each.close()


def traced(made: list[Tracing], exporter: InMemorySpanExporter, share: float) -> Tracing:
    made.append(Tracing(SimpleSpanProcessor(exporter), share, "group", "worker-1"))
    return made[-1]


def named(exporter: InMemorySpanExporter, name: str) -> list[ReadableSpan]:
    return [span for span in exporter.get_finished_spans() if span.name == name]


def test_a_message_that_is_traced_and_the_batch_that_it_is_in(
    made: list[Tracing], exporter: InMemorySpanExporter
) -> None:
    spans = traced(made, exporter, 0.0)
    batch, messages = batch_of(
        Sent(other="x"), Sent(traceparent=SAMPLED, tracestate="rubin=1"), Sent(traceparent=UNSAMPLED, tracestate="a=b"),
        Sent(traceparent="00-00000000000000000000000000000000-00f067aa0ba902b7-01"), Sent(tracestate="a=b"),
    )  # fmt: skip
    thread = WorkThread()
    with spans.batch(batch, messages):
        headers = [message.trace for message in batch]
        thread.submit(lambda: _stage("decode")).result(60)
        _stage("deliver")
        batch.clear()
    thread.end(60)
    _stage("decode")  # of a batch without a traced alert: no span

    (alert,), (own,), (decode,), (deliver,) = (named(exporter, n) for n in ("alert", "batch", "decode", "deliver"))
    assert len(exporter.get_finished_spans()) == 4
    assert f"{alert.context.trace_id:032x}" == TRACE
    assert f"{alert.parent.span_id:016x}" == PARENT  # type: ignore[union-attr]
    assert alert.start_time == WRITTEN_MS * 1_000_000
    assert alert.end_time > time.time_ns() - 60e9  # type: ignore[operator]
    assert alert.attributes == {
        "messaging.system": "kafka", "messaging.destination.name": "alerts.ztf",
        "messaging.destination.partition.id": "2", "messaging.kafka.offset": 1,
    }  # fmt: skip
    assert alert.status.is_ok
    # The batch is of many alerts: a trace of its own, with links both ways.
    assert own.parent is None
    assert own.context.trace_id != alert.context.trace_id
    assert [link.context.span_id for link in own.links] == [alert.context.span_id]
    assert [link.context.span_id for link in alert.links] == [own.context.span_id]
    assert dict(own.attributes or {})["messaging.batch.message_count"] == 5
    for stage in (decode, deliver):
        assert stage.parent == own.context
    # Out goes our span as the parent; what is not to be traced goes on as it came; what is wrong does not.
    ours = f"00-{TRACE}-{alert.context.span_id:016x}-01".encode()
    assert headers == [
        (), (("traceparent", ours), ("tracestate", b"rubin=1")),
        (("traceparent", UNSAMPLED.encode()), ("tracestate", b"a=b")), (), (),
    ]  # fmt: skip


def _stage(name: str) -> None:
    with stage_timer(name):
        pass


def test_how_many_alerts_are_traced(made: list[Tracing], exporter: InMemorySpanExporter) -> None:
    """A share of those that say nothing, and no more of one batch than a collector can take."""
    spans = traced(made, exporter, 1.0)
    batch, messages = batch_of(*[Sent()] * 40)
    with spans.batch(batch, messages):
        batch.clear()
    assert Counter(span.name for span in exporter.get_finished_spans()) == {"alert": 16, "batch": 1}
    exporter.clear()
    batch, messages = batch_of(*[Sent(traceparent=SAMPLED)] * 40)
    with spans.batch(batch, messages):
        assert sum(message.trace == (("traceparent", SAMPLED.encode()),) for message in batch) == 24
        batch.clear()
    assert len(named(exporter, "alert")) == 16
    made.pop().close()
    exporter.clear()
    spans = traced(made, exporter, 0.0)
    batch, messages = batch_of(*[Sent()] * 40)
    with spans.batch(batch, messages):
        _stage("decode")
    assert exporter.get_finished_spans() == ()


def test_a_header_that_is_too_long_is_not_passed_on(made: list[Tracing], exporter: InMemorySpanExporter) -> None:
    # With it the annotations might be larger than their topics allow, and the worker would end with each attempt.
    long = "a=" + 5000 * "b"
    batch, messages = batch_of(
        Sent(traceparent=UNSAMPLED, tracestate=long), Sent(traceparent=SAMPLED, tracestate=long),
        Sent(traceparent=UNSAMPLED + long),
    )  # fmt: skip
    with traced(made, exporter, 0.0).batch(batch, messages):
        assert [[name for name, _ in message.trace] for message in batch] == [["traceparent"], ["traceparent"], []]
        batch.clear()


def test_what_is_read_again_says_so(made: list[Tracing], exporter: InMemorySpanExporter) -> None:
    spans = traced(made, exporter, 1.0)
    batch, messages = batch_of(Sent())
    with pytest.raises(LookupError), spans.batch(batch, messages):
        raise LookupError
    with spans.batch(*batch_of(Sent())):
        pass  # told to stop before all was delivered
    failed, left = named(exporter, "alert")
    assert failed.status.description == "to be read again: LookupError"
    assert left.status.description == "to be read again: the worker stops"


def test_annotations_and_dead_letters_carry_the_trace() -> None:
    header = (("traceparent", SAMPLED.encode()),)
    other = replace(ANNOTATION, alert_id=7)
    letter = DeadLetter(IncomingMessage(b"bad", 61000.0, None, header), "unknown", "no alert")
    result = BatchResult(annotations=[ANNOTATION, other], dead_letters=[letter])
    result.traces[ANNOTATION.survey, ANNOTATION.alert_id] = header
    publisher = Publisher(OutputTopics("trifid", 0.9), "Trifid", 100)
    messages = list(publisher.messages(result))
    carrying = Counter(message.topic for message in messages[:-1] if header[0] in message.headers)
    without = Counter(message.topic for message in messages[:-1] if header[0] not in message.headers)
    assert carrying == without  # of the same topics, one annotation each
    assert sum(carrying.values()) == len(messages) // 2 >= 3
    assert dict(messages[-1].headers) == {"reason": b"no alert", "survey": b"unknown", **dict(header)}


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with otlp_receiver() as server:
        yield server


def test_a_collector_gets_the_spans(receiver: Receiver) -> None:
    settings = TracingSettings(endpoint=f"http://127.0.0.1:{receiver.server_port}/", share=0.0)
    spans = tracing.start(settings, "group", "worker-7")
    batch, messages = batch_of(Sent(traceparent=SAMPLED))
    with spans.batch(batch, messages):
        _stage("infer")
        batch.clear()
    spans.close()
    (path, request), *_ = receiver.requests
    assert path == "/v1/traces"
    (resource,) = request.resource_spans
    assert {"service.name": "trifid", "service.instance.id": "worker-7"}.items() <= {
        attribute.key: attribute.value.string_value for attribute in resource.resource.attributes
    }.items()
    found = {span.name: span for scope in resource.scope_spans for span in scope.spans}
    assert set(found) == {"alert", "batch", "infer"}
    assert found["alert"].trace_id.hex() == TRACE
    assert found["alert"].parent_span_id.hex() == PARENT
    assert found["infer"].parent_span_id == found["batch"].span_id
    assert [link.span_id for link in found["batch"].links] == [found["alert"].span_id]


def test_the_end_of_a_worker_waits_for_no_collector() -> None:
    """One that is silent, after it took the connection."""
    silence = threading.Event()

    class Silent(Handler):
        def do_POST(self) -> None:  # noqa: N802
            silence.wait(120)

    with ThreadingHTTPServer(("127.0.0.1", 0), Silent) as server, ThreadPoolExecutor(1) as pool:
        pool.submit(server.serve_forever)
        spans = tracing.start(TracingSettings(endpoint=f"http://127.0.0.1:{server.server_port}", share=1.0), "g", "w")
        with spans.batch(*batch_of(Sent())):
            pass
        began = time.monotonic()
        spans.close()
        assert time.monotonic() - began < 60
        silence.set()
        server.shutdown()


@pytest.mark.parametrize("endpoint", ["collector:4318", "grpc://collector:4317", "http://me:secret@collector:4318"])
def test_addresses_that_cannot_be_meant(endpoint: str) -> None:
    with pytest.raises(ValueError, match=r"URL|login") as refused:
        TracingSettings(endpoint=endpoint)
    assert "secret" not in str(refused.value).partition("\n")[2].partition("[")[0]
