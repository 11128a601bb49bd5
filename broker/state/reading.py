"""Reading what is stored near a batch's alerts: one round trip for scripts and catalogues together.

More trips are made where very much lies there, and in a cluster for spectra that were stored by the names of objects.
"""

from __future__ import annotations

import logging
import math
import struct
from collections.abc import Sequence
from itertools import chain
from typing import Final

import numpy as np

from broker.catalog.match import CatalogReader
from broker.errors import ConfigurationError
from broker.records import Alert, Catalogued, ObservedSpectrum
from broker.redis_client import CommandPipeline, RedisConnection
from broker.sky import ARCSEC
from broker.state.batch import StoredBatch, catalogue_position
from broker.state.keys import HOMES, NO_HOME, ObjectName, base, body_home, layout_key, named_spectra_key, untagged_keys
from broker.state.objects import Limits, has_no_object
from broker.state.places import BIN, BUDGET, CELL, CROWD, MARGIN, MAX_YEARS, NEAREST, near_homes, search_cells
from broker.state.scripts import READ, Call, Row, calls_of, left_of
from broker.state.watch import MARKER

LOG: Final = logging.getLogger(__name__)
NOBODY: Final = ("", "")
"""The name of what has no object of its own."""


def moved(limits: Limits) -> float:
    """Arcsec that an object may be outside its home before it gets another."""
    return limits.search_radius + MARGIN


class Reader:
    """Fills batches with what is stored around positions, and knows which catalogues and kinds of keys there are."""

    def __init__(self, connection: RedisConnection, limits: Limits, prefix: str, *, may_write: bool) -> None:
        """With ``may_write`` entries of what has expired are deleted, and the layout is noted once it is known."""
        self._connection, self._limits, self._prefix, self._may_write = connection, limits, prefix, may_write
        self._catalogs = CatalogReader(prefix)
        self._primed = False
        self._untagged = False
        """Whether there are, or may be, keys of before state was kept by cell of the sky."""

    def homes_only(self) -> None:
        """Whatever there is, look at keys with homes alone from now on."""
        self._primed, self._untagged = True, False

    def prime(self) -> None:
        """Learn which catalogues there are, and which keys; afterwards each batch brings the first along."""
        keys = (layout_key(self._prefix), f"{self._prefix}:{MARKER}")
        meta, layout, marker = self._connection.get_many([self._catalogs.meta_key, *keys])
        self._catalogs.prime(meta)
        if layout == HOMES:
            self._untagged = False
        elif not self._untagged and not (self._primed and not self._may_write):
            self._untagged = self._find_untagged(marker is not None)
            if not self._untagged and self._may_write:
                self._connection.call(lambda client: client.set(layout_key(self._prefix), HOMES))
        if self._untagged and self._connection.is_cluster:
            raise ConfigurationError(
                "this Redis Cluster has state of an earlier release, in keys that a cluster cannot read together: run "
                "`trifid state migrate` first (docs/state.md)"
            )
        self._primed = True

    def _find_untagged(self, marked: bool) -> bool:
        """Whether there is state of before; ``marked`` is whether a worker was here that said nothing of homes."""
        try:
            return next(untagged_keys(self._connection, self._prefix), None) is not None
        except ConfigurationError as error:  # the ACL has no SCAN
            LOG.warning(
                "cannot look for state of an earlier release, taken for %s: %s", "there" if marked else "none", error
            )
            return marked

    def where(self, positions: Sequence[Alert | ObservedSpectrum]) -> list[tuple[list[str], list[int]]]:
        """Homes and fine cells in which to look around positions; for what has no object its own home alone."""
        cells = search_cells(positions, self._limits.search_radius)
        return [
            (homes, [] if isinstance(p, Alert) and has_no_object(p) else around)
            for p, homes, around in zip(positions, self.homes_around(positions), cells, strict=True)
        ]

    def homes_around(self, positions: Sequence[Alert | ObservedSpectrum]) -> list[list[str]]:
        """Homes in which objects at or near positions may be; for what has no object its own alone."""
        # What is near is at most the radius + MARGIN from here, and its home at most ``moved`` from that.
        homes = near_homes(positions, self._limits.search_radius + MARGIN + moved(self._limits))
        return [
            [body_home((p.survey, p.object_id))] if isinstance(p, Alert) and has_no_object(p) else near
            for p, near in zip(positions, homes, strict=True)
        ]

    def read(
        self,
        batch: StoredBatch,
        positions: Sequence[Alert | ObservedSpectrum],
        where: Sequence[tuple[Sequence[str], Sequence[int]]],
        objects: Sequence[ObjectName],
        radius: float,
    ) -> list[Catalogued]:
        """Fill a batch, in one round trip but for crowded fields; returns what the catalogues have at each position.

        ``objects`` are one per position, NOBODY where it has no object of its own; ``radius`` is how near others
        are, in arcsec.
        """
        if not self._primed:
            self.prime()
        single = not self._connection.is_cluster
        settings: list[str | float] = [self._prefix if single else ""]
        settings += [math.radians(r / ARCSEC) for r in (radius, self._limits.spectrum_radius, MARGIN)]
        settings += [MAX_YEARS, BIN, CROWD, NEAREST, CELL, BUDGET, int(self._may_write)]
        wanted: list[tuple[str, Row]] = [
            (home, [survey, object_id, struct.pack(f"<ddd{len(around)}I", place.ra, place.dec, place.mjd, *around)])
            for (survey, object_id), place, (homes, around) in zip(objects, positions, where, strict=True)
            for home in ([*homes, NO_HOME] if self._untagged else homes)
        ]
        wanted.sort(key=lambda row: (row[0], row[1][2][24:]))  # each cell is then read in one call only
        calls = calls_of(wanted, together=single)
        at = np.array([catalogue_position(p) for p in positions]).T
        request = self._catalogs.request(at[0], at[1])
        named = named_spectra_key(self._prefix)

        def first(pipeline: CommandPipeline) -> None:
            self._ask(pipeline, settings, calls)
            pipeline.get_many(request.keys)
            if not single:
                pipeline.command("GET", named)

        answers = self._connection.execute(first)
        flag = None if single else answers.pop()
        *found, values = answers
        while calls := left_of(batch, calls, found):  # in a crowded field, so that Redis serves others in between
            left = calls
            found = self._connection.execute(lambda pipeline: self._ask(pipeline, settings, left))  # noqa: B023
        if flag is not None:
            self._read_named_spectra(batch)
        # Where a catalogue came, went or was replaced meanwhile, one more trip.
        request, values = self._catalogs.read(at[0], at[1], self._connection.get_many, (request, values))
        return self._catalogs.match(request, values, *at)

    def _ask(self, pipeline: CommandPipeline, settings: Sequence[str | float], calls: Sequence[Call]) -> None:
        for homes, rows in calls:
            pipeline.script(READ, [base(self._prefix, h) for h in homes], [*settings, *chain.from_iterable(rows)])

    def _read_named_spectra(self, batch: StoredBatch) -> None:
        names = list(batch.objects.known)
        values = self._connection.get_many([f"{self._prefix}:{':'.join(name)}:sp" for name in names])
        for name, value in zip(names, values, strict=True):
            if value is not None:
                batch.add_named_spectrum(name, value)
