"""The state of objects from stored alerts again, after Redis has lost it: decode and update state, and nothing else.

Merging an alert into the state twice changes nothing, and neither does their order (``broker.state.Store.update``), so
that it may run beside the workers, and be run again where it was interrupted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from broker.dead_letters import describe, isolate
from broker.errors import DecodeError
from broker.offline import batched
from broker.records import Alert, ObservedSpectrum
from broker.sources import Packet
from broker.state import Store
from broker.surveys import Decoder
from broker.times import mjd_now

BATCH: Final = 512
"""Packets at once: two round trips to Redis."""


@dataclass(slots=True)
class Rebuilt:
    """What a rebuild came to: messages = what has alerts or spectra, or is in ``refused``."""

    messages: int = 0
    alerts: int = 0
    spectra: int = 0
    refused: int = 0
    """Messages, or alerts of one, that cannot be decoded or merged."""


def rebuild(packets: Iterable[Packet], decoder: Decoder, store: Store, counts: Rebuilt) -> Iterator[tuple[str, str]]:
    """Merge all alerts and spectra of ``packets`` into the state, a batch at a time; ``counts`` is kept up to date.

    Gives the name and the reason of each that is refused, so that it has to be read to its end. Raises
    DependencyUnavailableError where Redis, or a schema registry, is unavailable.
    """
    for batch in batched(packets, BATCH):
        now = mjd_now()
        alerts: list[tuple[str, Alert]] = []
        spectra: list[tuple[str, ObservedSpectrum]] = []
        refused: list[tuple[str, str]] = []
        for packet, decoded in zip(
            batch, decoder.decode_batch([p.payload for p in batch], [now] * len(batch)), strict=True
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
        refused += [*bad, *bad_spectra]
        counts.messages += len(batch)
        counts.alerts += len(alerts) - len(bad)
        counts.spectra += len(spectra) - len(bad_spectra)
        counts.refused += len(refused)
        yield from refused


def _update(store: Store, alerts: Sequence[tuple[str, Alert]]) -> list[tuple[str, str]]:
    store.update([alert for _, alert in alerts])
    return []


def _put(store: Store, spectra: Sequence[tuple[str, ObservedSpectrum]]) -> list[tuple[str, str]]:
    store.put_observed([spectrum for _, spectrum in spectra])
    return []


def _refused(item: tuple[str, Alert] | tuple[str, ObservedSpectrum], error: Exception) -> list[tuple[str, str]]:
    return [(item[0], describe(error))]
