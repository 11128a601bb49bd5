"""What a batch of alerts finds in Redis, as objects in memory."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar

from broker.metrics import CROWDED_SEARCHES
from broker.records import Alert, ObservedSpectrum
from broker.state.encoding import (
    NewerStateError,
    StateError,
    decode_object,
    decode_search,
    decode_spectrum,
    of_later_release,
)
from broker.state.keys import ObjectName, base
from broker.state.objects import Limits, Objects, has_no_object
from broker.state.places import StoredPlace, own_cells

LOG: Final = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Copy:
    """How an object was stored in one home."""

    value: bytes | None
    cell: int | None = None
    """The fine cell where it was; None where its value cannot be read."""
    search: bytes | None = None
    """Its period search."""


class StoredBatch:
    """Objects of one batch, with what was stored of them.

    An object has one home, but may be found in two for a moment: where workers began it on both sides of a border,
    where one moves it, or where it has still a key without a home. What is in each is merged.
    """

    def __init__(self, limits: Limits, prefix: str) -> None:
        self.objects = Objects(limits)
        self.copies: dict[ObjectName, dict[str, Copy]] = {}
        """What was stored of each object, by home."""
        self.damaged: dict[str, bytes] = {}
        """Stored values that cannot be read, by key; they are set aside under ``<key>:damaged``, not lost."""
        self.newer: dict[ObjectName, str] = {}
        """Objects that a later release has written, and in which form; they are left as they are."""
        self._prefix = prefix

    def add(self, found: tuple[Any, Any, int, int], homes: Sequence[str]) -> int:
        """Take in what ``read.lua`` found with the keys of ``homes``; returns for how many positions."""
        objects, spectra, done, crowded = found
        self.add_objects([(name, homes[int(at) - 1], *row) for name, *row, at in objects])
        for *row, at in spectra:
            self.add_spectrum(homes[int(at) - 1], *row)
        CROWDED_SEARCHES.inc(crowded)
        return done

    def add_objects(self, rows: Iterable[Sequence[Any]]) -> None:
        """Objects: name, home, place, light curve, spectrum and period search of each."""
        seen: list[tuple[ObjectName, str, Alert]] = []
        places: list[tuple[ObjectName, bytes]] = []
        for key, home, place, curve, spectrum, search in rows:
            text = key.decode()
            survey, _, object_id = text.partition(":")
            name = (survey, object_id)
            known = self.objects.known[name]
            if (reason := of_later_release(curve)) is not None:
                LOG.warning("stored value %s:%s:lc: %s", base(self._prefix, home), text, reason)
                self.newer[name] = reason
                continue
            if place:
                places.append((name, place))
            copies = self.copies.setdefault(name, {})
            if home in copies:  # found for another position, too
                continue
            if spectrum is not None and known.spectrum is None:
                known.spectrum = self._read(f"{self._prefix}:{text}:sp", spectrum, decode_spectrum)
            start = f"{base(self._prefix, home)}:{text}"
            if curve is not None:
                copies[home] = Copy(curve, None, search)
                read = self._read(f"{start}:lc", curve, partial(decode_object, survey=survey, object_id=object_id))
                if read is not None:
                    self.objects.take(name, *read)
                    seen.append((name, home, read[1]))
            if search is not None:
                found = self._read(f"{start}:ps", search, decode_search)
                if found is not None and (known.kept_search is None or found.points > known.kept_search.points):
                    known.kept_search = found
        for (name, home, _), cell in zip(seen, own_cells([latest for *_, latest in seen]), strict=True):
            copy = self.copies[name][home]
            self.copies[name][home] = Copy(copy.value, cell, copy.search)
        for name, place in places:
            latest = self.objects.known[name].latest
            # An entry of another time is left from before the object moved, when its value could not be read.
            if latest is not None and (at := StoredPlace.unpack(place)).mjd == latest.mjd:
                self.objects.places.put(name, at, name[0])

    def add_named_spectrum(self, name: ObjectName, value: bytes) -> None:
        """A spectrum that was stored by an object's name."""
        key = f"{self._prefix}:{':'.join(name)}:sp"
        self.objects.known[name].spectrum = self._read(key, value, decode_spectrum)

    def add_spectrum(self, home: str, name: bytes, place: bytes, value: bytes | None) -> None:
        """One spectrum that ``read.lua`` found."""
        spectrum = self._read(f"{base(self._prefix, home)}:spectrum:{name.decode()}", value, decode_spectrum)
        if spectrum is not None:
            at = StoredPlace.unpack(place)
            self.objects.add_spectra([ObservedSpectrum(name.decode(), at.ra, at.dec, at.mjd, spectrum)])

    def _read(self, key: str, value: bytes | None, decode: Callable[[bytes], T]) -> T | None:
        if value is None:
            return None
        try:
            return decode(value)
        except NewerStateError as error:
            LOG.warning("stored value %s is not used: %s", key, error)
            return None
        except StateError as error:
            LOG.error("stored value %s cannot be read and is set aside: %s", key, error)
            self.damaged[key] = value
            return None


def catalogue_position(position: Alert | ObservedSpectrum) -> tuple[float, float, float]:
    """Where and when to look in catalogues: nowhere for what has no object."""
    if isinstance(position, Alert) and has_no_object(position):
        return math.nan, math.nan, math.nan
    return position.ra, position.dec, position.mjd
