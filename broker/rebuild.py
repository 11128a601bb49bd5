"""The state of objects from stored alerts again, after Redis has lost it: decode and update state, and nothing else.

Merging an alert into the state twice changes nothing, and neither does their order (``broker.state.Store.update``), so
that it may run beside the workers, in several processes, and be run again where it was interrupted.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from typing import Final

from broker.build import build_decoder, build_store
from broker.child_process import end_with_parent
from broker.config import KafkaSettings, Settings
from broker.dead_letters import describe, isolate
from broker.errors import DecodeError, TrifidError
from broker.records import Alert, ObservedSpectrum
from broker.sources import Packet
from broker.state import Store
from broker.streaming.consumer import incoming
from broker.streaming.stored_topic import Span, StoredTopic
from broker.surveys import Decoder
from broker.times import mjd_now

BATCH: Final = 512
"""Packets at once: two round trips to Redis."""
_AHEAD: Final = 3
"""Batches that wait for each process: more would only be memory."""
# Not forked: this process has threads, of Kafka's client for one.
_CONTEXT: Final = multiprocessing.get_context("spawn")


@dataclass(frozen=True, slots=True)
class Batch:
    """Packets of one source."""

    packets: Sequence[Packet]
    reached: Mapping[str, int] = field(default_factory=dict)
    """How far the source is read with these, by part (``broker.state.progress``); empty where that does not matter."""


@dataclass(slots=True)
class Rebuilt:
    """What a rebuild came to: messages = what has alerts or spectra, or is in ``refused``."""

    messages: int = 0
    alerts: int = 0
    spectra: int = 0
    refused: list[tuple[str, str]] = field(default_factory=list)
    """Names and reasons of messages, or alerts of one, that cannot be decoded or merged."""
    missed: int = 0
    """Messages that Kafka deleted before they were read."""


def rebuild(batches: Iterable[Batch], settings: Settings, processes: int = 1) -> Iterator[tuple[Batch, Rebuilt]]:
    """Merge all alerts and spectra of ``batches`` into the state; gives each batch, in order, when it is in Redis.

    With ``processes`` above 1 these decode and merge. Raises DependencyUnavailableError where Redis, or a schema
    registry, is unavailable, ConfigurationError, and TrifidError where one of the processes is killed.
    """
    if processes == 1:
        with closing(build_store(settings)) as store:
            decoder = build_decoder(settings)
            for batch in batches:
                yield batch, merge(batch.packets, decoder, store)
        return
    waiting: deque[tuple[Batch, Future[Rebuilt]]] = deque()
    with ProcessPoolExecutor(processes, _CONTEXT, _begin, (settings,)) as pool, _killed_told():
        try:
            for batch in batches:
                waiting.append((batch, pool.submit(_merge, batch.packets)))
                while len(waiting) > _AHEAD * processes:
                    done, result = waiting.popleft()
                    yield done, result.result()
            for done, result in waiting:
                yield done, result.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def rebuild_topic(stored: StoredTopic, settings: Settings, processes: int = 1) -> Iterator[tuple[Batch, Rebuilt]]:
    """As ``rebuild``, of what is left of a topic; closes it.

    Where it has partitions enough each process reads its own, and batches come without their packets: to hand payloads
    from one process to another costs a quarter of what it costs to decode and merge them (docs/performance.md).
    """
    parts = _shared(stored.spans, processes)
    if processes == 1 or len(parts) < processes:
        yield from rebuild(batches_of(stored), settings, processes)
        if stored.missed:
            yield Batch(()), Rebuilt(missed=stored.missed)
        return
    stored.close()
    with ExitStack() as stack, _killed_told():
        running: dict[Future[tuple[Batch, Rebuilt] | None], ProcessPoolExecutor] = {}
        for part in parts:
            arguments = (settings, stored.kafka, stored.topic, part)
            pool = ProcessPoolExecutor(1, _CONTEXT, _begin_part, arguments)
            stack.callback(pool.shutdown, cancel_futures=True)
            running |= {pool.submit(_next): pool for _ in range(2)}  # so that none waits for this process
        while running:
            done = wait(running, return_when=FIRST_COMPLETED).done
            for future in [each for each in running if each in done]:  # those of one process in their order
                pool = running.pop(future)
                if (result := future.result()) is not None:
                    running[pool.submit(_next)] = pool
                    yield result


@contextmanager
def _killed_told() -> Iterator[None]:
    try:
        yield
    except BrokenProcessPool:
        # As the system does it where memory runs out.
        raise TrifidError("a process that merges has ended or was killed: run it again") from None


def batches_of(stored: StoredTopic) -> Iterator[Batch]:
    """What is left of a topic; closes it. Raises as ``StoredTopic.read``."""
    with closing(stored):
        for messages in stored.read(BATCH):
            packets = [Packet(str(found.origin), found.payload) for found in (incoming(m, 0.0) for m in messages)]
            yield Batch(packets, {str(partition): span.start for partition, span in stored.spans.items()})


def _shared(spans: Mapping[int, Span], processes: int) -> list[dict[int, Span]]:
    """What is left of each partition, shared out: the largest first, each to whoever has least."""
    parts: list[dict[int, Span]] = [{} for _ in range(processes)]
    sizes = [0] * processes
    for partition, span in sorted(spans.items(), key=lambda item: item[1].start - item[1].end):
        if span.start < span.end:
            least = sizes.index(min(sizes))
            parts[least][partition] = span
            sizes[least] += span.end - span.start
    return [part for part in parts if part]


def merge(packets: Sequence[Packet], decoder: Decoder, store: Store) -> Rebuilt:
    """Decode packets and merge what they hold into the state; raises as ``rebuild``."""
    now = mjd_now()
    alerts: list[tuple[str, Alert]] = []
    spectra: list[tuple[str, ObservedSpectrum]] = []
    refused: list[tuple[str, str]] = []
    for packet, decoded in zip(
        packets, decoder.decode_batch([p.payload for p in packets], [now] * len(packets)), strict=True
    ):
        if isinstance(decoded, DecodeError):
            refused.append((packet.name, str(decoded)))
            continue
        refused += [(packet.name, str(error)) for error in decoded.refused]
        for record in decoded:
            if isinstance(record, Alert):
                alerts.append((packet.name, record))
            else:
                spectra.append((packet.name, record))
    bad = isolate(alerts, lambda some: _update(store, some), _refused)
    bad_spectra = isolate(spectra, lambda some: _put(store, some), _refused)
    return Rebuilt(
        len(packets), len(alerts) - len(bad), len(spectra) - len(bad_spectra), [*refused, *bad, *bad_spectra]
    )


_parts: list[tuple[Decoder, Store]] = []
"""What a process of the pool works with."""


def _begin(settings: Settings) -> None:
    _begin_process()
    _parts.append((build_decoder(settings), build_store(settings)))


def _begin_process() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command itself ends the pool
    end_with_parent()


def _merge(packets: Sequence[Packet]) -> Rebuilt:
    return merge(packets, *_parts[0])


_reading: list[Iterator[tuple[Batch, Rebuilt]]] = []
"""What a process reads by itself."""


def _begin_part(settings: Settings, kafka: KafkaSettings, topic: str, spans: Mapping[int, Span]) -> None:
    _begin_process()
    _reading.append(_part(settings, kafka, topic, spans))


def _next() -> tuple[Batch, Rebuilt] | None:
    return next(_reading[0], None)


def _part(
    settings: Settings, kafka: KafkaSettings, topic: str, spans: Mapping[int, Span]
) -> Iterator[tuple[Batch, Rebuilt]]:
    with closing(build_store(settings)) as store:
        decoder = build_decoder(settings)
        stored = StoredTopic(kafka, topic, spans=spans)
        for batch in batches_of(stored):
            yield Batch((), batch.reached), merge(batch.packets, decoder, store)
        if stored.missed:
            yield Batch(()), Rebuilt(missed=stored.missed)


def _update(store: Store, alerts: Sequence[tuple[str, Alert]]) -> list[tuple[str, str]]:
    store.absorb([alert for _, alert in alerts])
    return []


def _put(store: Store, spectra: Sequence[tuple[str, ObservedSpectrum]]) -> list[tuple[str, str]]:
    store.put_observed([spectrum for _, spectrum in spectra])
    return []


def _refused(item: tuple[str, Alert] | tuple[str, ObservedSpectrum], error: Exception) -> list[tuple[str, str]]:
    return [(item[0], describe(error))]
