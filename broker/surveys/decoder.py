"""Messages of any survey to alerts, a batch at a time."""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

import numpy as np

from broker.avro.compiler import Program, compile_schema
from broker.avro.container import (
    CONTAINER_MAGIC,
    MAX_BLOCK_BYTES,
    Block,
    Header,
    Span,
    TooLargeError,
    block_spans,
    read_blocks,
    read_header,
)
from broker.avro.layout import Layout
from broker.avro.machine import warm_up
from broker.avro.reader import Message, run
from broker.avro.schema import AvroSchema, WriterSchema, read_schema
from broker.avro.wire import CONFLUENT_MAGIC, read_confluent_header
from broker.dead_letters import isolate_first
from broker.errors import ConfigurationError, DecodeError
from broker.records import Alert, ObservedSpectrum
from broker.spectra import message as spectrum_message
from broker.surveys.columns import FUTURE_DAYS
from broker.surveys.lsst_schemas import lsst_schema
from broker.surveys.survey import MODULES, Survey, load_surveys

SPECTRUM_SCHEMA: Final = "trifid.spectrum"
"""Full name of the records that are spectra and not alerts."""
MAX_SCHEMA_BYTES: Final = 1_000_000
"""Of a container's own schema; LSST's have 55,000."""
MAX_BLOCKS: Final = 10_000
"""Of one container."""
MAX_ALERTS: Final = 10_000
"""Of one message, by default."""
MAX_OBJECT_ID: Final = 256
"""Characters of an object id, which becomes a key in Redis and in Kafka; surveys' have 20."""
_CACHED_SCHEMAS: Final = 64
_RECENT_HEADERS: Final = 8
_MAX_RUN_BYTES: Final = 64_000_000
"""Inflated bytes that are read at once, where one message is not larger itself."""


class Decoded(list[Alert | ObservedSpectrum]):
    """What one message holds."""

    def __init__(self, records: Iterable[Alert | ObservedSpectrum] = ()) -> None:
        super().__init__(records)
        self.refused: list[DecodeError] = []
        """Why alerts of the message cannot be used, one reason each; the others are in the list."""


@dataclass(frozen=True, slots=True)
class _AlertSchema:
    """Its records become alerts of a survey."""

    survey: int
    """Index of the survey."""
    program: Program


class _SpectrumSchema:
    """Its records are spectra."""


@dataclass(frozen=True, slots=True)
class _UnusableSchema:
    """Its records are of no use."""

    reason: str


@dataclass(slots=True)
class _Work:
    """What one survey's module has to do of a batch."""

    programs: list[Program] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    """Of each of ``messages``, its number in the batch."""
    received: list[float] = field(default_factory=list)
    """Of each of ``messages``, MJD UTC, infinite where unknown."""

    def add(self, position: int, program: Program, blocks: list[Block], received: float) -> None:
        """Take a message."""
        if program not in self.programs:
            self.programs.append(program)
        self.messages.append(Message(self.programs.index(program), blocks))
        self.positions.append(position)
        self.received.append(received)


class Decoder:
    """Turns messages of any survey into alerts; the packet itself tells the survey. Not for several threads."""

    def __init__(
        self,
        surveys: Sequence[str] = MODULES,
        schema_of_id: Callable[[int], AvroSchema] = lsst_schema,
        future_days: float = FUTURE_DAYS,
        *,
        max_alerts: int = MAX_ALERTS,
        max_bytes: int = MAX_BLOCK_BYTES,
    ) -> None:
        """``surveys`` are names of modules. ``schema_of_id`` gives the schema for an id in Confluent's wire format.

        It may raise DecodeError for an id that does not exist, DependencyUnavailableError where it cannot say at
        present. Detections may be later than the receipt of their alert by ``future_days``. A message of more than
        ``max_alerts`` alerts, or ``max_bytes`` bytes once inflated, is refused as a whole. Raises ConfigurationError
        where a module cannot be used.
        """
        self._future_days = future_days
        self._surveys = load_surveys(surveys)
        self._layouts = [_layout(survey) for survey in self._surveys]
        self._schema_of_id = schema_of_id
        self._max_alerts, self._max_bytes = max_alerts, max_bytes
        self._schemas: OrderedDict[bytes | int, _AlertSchema | _SpectrumSchema | _UnusableSchema] = OrderedDict()
        """What became of each schema that was seen, by a container's JSON or an id; latest last."""
        self._headers: list[tuple[bytes, Header]] = []
        """The headers seen last, latest first."""
        self._left_out: Counter[tuple[str, str]] = Counter()
        warm_up()

    def decode(self, payload: bytes) -> Decoded:
        """The alerts of one message, an Avro container or a record in Confluent's wire format; or its spectra.

        Of several alerts those that cannot be used are left out, and named in ``refused``. Raises DecodeError, with the
        reason, where the bytes are not that or the only alert cannot be used, DependencyUnavailableError where its
        schema cannot be had at present.
        """
        decoded = self.decode_batch([payload])[0]
        if isinstance(decoded, DecodeError):
            raise decoded
        return decoded

    def decode_batch(
        self, payloads: Sequence[bytes], received: Sequence[float] | None = None
    ) -> list[Decoded | DecodeError]:
        """For each message what ``decode`` gives, or the DecodeError that it raises.

        ``received`` says when each was received, MJD UTC: an alert of a later time (by ``future_days``) is refused,
        and later points of it are left out. None where that is not known. Raises DependencyUnavailableError where a
        schema cannot be had at present.
        """
        results: list[Decoded | DecodeError] = []
        while len(results) < len(payloads):
            done = len(results)
            results += self.decode_next(payloads[done:], None if received is None else received[done:])
        return results

    def decode_next(
        self, payloads: Sequence[bytes], received: Sequence[float] | None = None, *, most: int | None = None
    ) -> list[Decoded | DecodeError]:
        """What ``decode_batch`` gives, for the first of the messages: as many as are decoded at once.

        These are at least one, and otherwise no more than hold ``most`` alerts together. So it is bounded by one
        message, and not by their number, what memory they take.
        """
        times = [math.inf] * len(payloads) if received is None else received

        def failed(_: bytes, error: Exception) -> list[Decoded | DecodeError]:
            return [DecodeError(f"the packet cannot be read: {type(error).__name__}: {str(error)[:500]}")]

        def decode(some: Sequence[bytes]) -> list[Decoded | DecodeError]:
            counted = self._left_out.copy()
            try:
                return self._decode(some, times, most)
            except Exception:
                self._left_out = counted  # they are counted when these messages are decoded again
                raise

        return isolate_first(payloads, decode, failed)

    def take_left_out(self) -> Counter[tuple[str, str]]:
        """Points that were left out since this was asked last, by survey and reason (``columns.LeftOut``)."""
        found, self._left_out = self._left_out, Counter()
        return found

    def _decode(
        self, payloads: Sequence[bytes], received: Sequence[float], most: int | None
    ) -> list[Decoded | DecodeError]:
        results: list[Decoded | DecodeError] = []
        work: dict[int, _Work] = {}
        alerts = size = 0
        for payload, time in zip(payloads, received, strict=False):
            try:
                header, spans = self._outline(payload)
                alerts += sum(span.number for span in spans)
                if results and most is not None and alerts > most:
                    break
                schema, blocks = self._open(payload, header, spans)
                if isinstance(schema, _SpectrumSchema):
                    results.append(Decoded(spectrum_message.read(payload)))
                else:
                    results.append(Decoded())
                    work.setdefault(schema.survey, _Work()).add(len(results) - 1, schema.program, blocks, time)
                    size += sum(block.end - block.start for block in blocks)
            except DecodeError as error:
                results.append(error)
            if size > _MAX_RUN_BYTES:
                break
        for survey, todo in work.items():
            self._run(todo, survey, results)
        return [_alone(result) for result in results]

    def _run(self, work: _Work, number: int, results: list[Decoded | DecodeError]) -> None:
        survey, layout = self._surveys[number], self._layouts[number]
        first = 0
        while first < len(work.messages):
            done = run(work.programs, layout, work.messages, first)
            for message, error in done.errors.items():
                results[work.positions[message]] = error
            records = done.records
            records.latest = np.array(work.received)[records.message] + self._future_days
            alerts = survey.to_alerts(records)
            for reason, points in records.left_out.items():
                self._left_out[survey.name, reason] += points
            for message, alert in zip(records.message.tolist(), alerts, strict=True):
                position = work.positions[message]
                result = results[position]
                if isinstance(result, DecodeError):
                    continue
                if isinstance(alert, DecodeError):
                    result.refused.append(alert)
                elif len(alert.object_id) > MAX_OBJECT_ID:
                    result.refused.append(DecodeError(f"an object id of more than {MAX_OBJECT_ID} characters"))
                else:
                    result.append(alert)
            first = done.stopped

    def _outline(self, payload: bytes) -> tuple[Header | None, list[Span]]:
        """Where a message's records are, and how many it says there are, which costs nothing to find out.

        A number that is not true is found out when the records are read. Without a header where the message is no
        container.
        """
        if payload.startswith(CONTAINER_MAGIC):
            header = self._header(payload)
            spans = list(islice(block_spans(payload, header), MAX_BLOCKS + 1))
            if len(spans) > MAX_BLOCKS:
                raise TooLargeError(f"Avro container: more than {MAX_BLOCKS} blocks")
            number = sum(span.number for span in spans)
            if number > self._max_alerts:
                raise TooLargeError(
                    f"the message says that it has {number} records; "
                    f"pipeline.max_message_alerts allows {self._max_alerts}"
                )
            return header, spans
        if payload and payload[0] == CONFLUENT_MAGIC:
            if len(payload) > self._max_bytes:
                raise TooLargeError(self._too_many_bytes())
            return None, [Span(1, read_confluent_header(payload)[1], len(payload))]
        if not payload:
            raise DecodeError("the message is empty")
        raise DecodeError(f"neither an Avro container nor Confluent's wire format: it begins with {payload[:4]!r}")

    def _open(
        self, payload: bytes, header: Header | None, spans: Sequence[Span]
    ) -> tuple[_AlertSchema | _SpectrumSchema, list[Block]]:
        """The schema of a message, and its records where they are alerts."""
        if header is not None:
            schema = self._schema(header.schema_json, lambda: container_schema(header.schema_json))
            if isinstance(schema, _SpectrumSchema):
                return schema, []
            try:
                return schema, list(read_blocks(payload, header, spans, self._max_bytes))
            except TooLargeError as error:
                raise TooLargeError(self._too_many_bytes()) from error
        schema_id, _ = read_confluent_header(payload)
        schema = self._schema(schema_id, lambda: self._schema_of_id(schema_id))
        if isinstance(schema, _SpectrumSchema):
            raise DecodeError(f"the schema of id {schema_id} is that of spectra, which are sent in containers")
        return schema, [Block(number, payload, start, end) for number, start, end in spans]

    def _too_many_bytes(self) -> str:
        return f"the message has more than {self._max_bytes} bytes once inflated (pipeline.max_message_mib)"

    def _header(self, payload: bytes) -> Header:
        """The header of a container: most begin with the same bytes as one of the last."""
        for number, (raw, header) in enumerate(self._headers):
            if payload.startswith(raw):
                if number:
                    self._headers.insert(0, self._headers.pop(number))
                return header
        header = read_header(payload)
        self._headers.insert(0, (header.raw, header))
        del self._headers[_RECENT_HEADERS:]
        return header

    def _schema(self, key: bytes | int, definition: Callable[[], AvroSchema]) -> _AlertSchema | _SpectrumSchema:
        """What to do with the records of a schema; raises DecodeError where they are of no use."""
        if key in self._schemas:
            self._schemas.move_to_end(key)
            schema = self._schemas[key]
        else:
            # A failed look-up is not kept: the schema may be there the next time.
            found = definition()
            try:
                schema = self._compile(found)
            except DecodeError as error:
                schema = _UnusableSchema(str(error))
            self._schemas[key] = schema
            while len(self._schemas) > _CACHED_SCHEMAS:
                self._schemas.popitem(last=False)
        if isinstance(schema, _UnusableSchema):
            raise DecodeError(schema.reason)
        return schema

    def _compile(self, definition: AvroSchema) -> _AlertSchema | _SpectrumSchema:
        writer = WriterSchema.parse(definition)
        if writer.full_name == SPECTRUM_SCHEMA:
            return _SpectrumSchema()
        for number in reversed(range(len(self._surveys))):
            if self._surveys[number].recognises(writer.full_name, writer.fields):
                return _AlertSchema(number, compile_schema(writer, self._layouts[number]))
        raise DecodeError(f"records of type {writer.name[:200]!r} are no alerts of a known survey")


def _layout(survey: Survey) -> Layout:
    try:
        return Layout(dict(survey.tables))
    except ConfigurationError as error:
        raise ConfigurationError(f"survey {survey.name!r}: {error}") from error


def container_schema(schema_json: bytes) -> AvroSchema:
    """The schema of a container; raises DecodeError where it is too large or not valid JSON."""
    try:
        return read_schema(schema_json, MAX_SCHEMA_BYTES)
    except ValueError as error:
        raise DecodeError(f"Avro container: its schema {error}") from error


def _alone(result: Decoded | DecodeError) -> Decoded | DecodeError:
    """A message whose only alert cannot be used is one that cannot be used."""
    if isinstance(result, Decoded) and not result and len(result.refused) == 1:
        return result.refused[0]
    return result
