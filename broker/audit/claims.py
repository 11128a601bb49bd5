"""What a table says its stars are: VSX, the GCVS or one's own list of names, positions and classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from broker.catalog.known import NAME, PERIOD, TYPE
from broker.catalog.memory import MemoryCatalogs
from broker.catalog.presets import KNOWN, Source
from broker.catalog.tables import CatalogTable
from broker.catalog.types import KnownType, known_type
from broker.lightcurves.objects import NamedLightCurve
from broker.records import KnownObject
from broker.sky import Array, separation
from broker.taxonomy import PARENTS

SAME_NAME_ARCSEC: Final = 60.0
"""Stars of one name that lie farther apart are two: their names count something else in each table."""
_OWN_TYPES: Final = ("label", "class", "class_name", "claimed_class", "asas_class", "var_type", "variable_type")
_PRESET: Final = replace(
    KNOWN,
    columns={
        **KNOWN.columns,
        NAME: (*KNOWN.columns[NAME], Source("object_id"), Source("id"), Source("star")),
        TYPE: (*KNOWN.columns[TYPE], *map(Source, _OWN_TYPES)),
    },
)
_PARENT_NAMES: Final = {name.upper(): (name, frozenset(classes)) for name, classes in PARENTS.items()}
_CHUNK: Final = 200_000


def claimed_type(text: str) -> KnownType:
    """What a claimed class says in our terms: a type of VSX or the GCVS, one of our classes, or of their parents."""
    plain = text.strip()
    own = _PARENT_NAMES.get(plain.rstrip(":?").strip().upper())
    if own is None:
        return known_type(text)
    return KnownType(own[0], own[1], comparable=not plain.endswith((":", "?")))


class Claims:
    """The stars of one table, found by name and by position."""

    def __init__(self, path: Path, radius: float, columns: Sequence[str] = ()) -> None:
        """``radius`` in arcsec; ``columns`` are ``ours=theirs`` for columns whose names do not tell.

        Raises InputFileError where the table cannot be read or has no positions or no types, ConfigurationError for
        columns of other names than ours.
        """
        preset = replace(_PRESET, radius=radius).with_columns(columns)
        self._catalog = MemoryCatalogs()
        self.count: int = self._catalog.load("claims", path, preset).sources
        """Stars that have a position, and a name or a type."""
        self._source = path.name
        table = CatalogTable(path, preset)
        parts: dict[str, list[NDArray[np.generic]]] = {name: [] for name in (NAME, TYPE, PERIOD, "ra", "dec")}
        for chunk in table.chunks(0, _CHUNK):
            size = len(chunk.ra)
            given = chunk.values | {"ra": chunk.ra, "dec": chunk.dec}
            absent = {NAME: np.zeros(size, "S32"), TYPE: np.zeros(size, "S32"), PERIOD: np.full(size, np.nan)}
            named = np.flatnonzero(given.get(NAME, absent[NAME]) != b"")
            for name, found in parts.items():
                found.append((absent | given)[name][named])
        columns_of = {name: np.concatenate(found) for name, found in parts.items()}
        order = np.argsort(columns_of[NAME], kind="stable")
        self._named = {name: column[order] for name, column in columns_of.items()}

    def of(self, curves: Sequence[NamedLightCurve]) -> list[KnownObject | None]:
        """What the table says of each light curve's star, by its name, else by its place; None where it has none.

        A name counts where the table's star lies within SAME_NAME_ARCSEC, or where the light curve has no position.
        """
        ra, dec, mjd = (np.array(values, np.float64) for values in zip(*map(_place, curves), strict=True))
        near = self._catalog.look_up(ra, dec, mjd)
        by_name = self._by_name([curve.name for curve in curves], ra, dec)
        return [
            named if named is not None else next((self._placed(known) for known in there.known_as), None)
            for named, there in zip(by_name, near, strict=True)
        ]

    def _placed(self, known: KnownObject) -> KnownObject:
        return replace(known, catalogue=self._source, class_name=claimed_type(known.type).class_name)

    def _by_name(self, names: Sequence[str], ra: Array, dec: Array) -> list[KnownObject | None]:
        own = self._named[NAME]
        asked = np.array([name.strip().encode() for name in names])
        if not len(own):
            return [None] * len(names)
        first, end = (np.searchsorted(own, asked, side=side) for side in ("left", "right"))
        found: list[KnownObject | None] = []
        for row, (low, high) in enumerate(zip(first.tolist(), end.tolist(), strict=True)):
            found.append(self._nearest(range(low, high), float(ra[row]), float(dec[row])))
        return found

    def _nearest(self, rows: range, ra: float, dec: float) -> KnownObject | None:
        """Of stars of one name the nearest; where the light curve has no position, the only one."""
        if not rows:
            return None
        there = {name: column[rows.start : rows.stop] for name, column in self._named.items()}
        size = len(rows)
        distance = separation(np.full(size, ra), np.full(size, dec), there["ra"], there["dec"])
        if np.isnan(ra + dec):
            if size > 1:
                return None
            at, away = 0, float("nan")
        else:
            at = int(distance.argmin())
            away = float(distance[at])
            if away > SAME_NAME_ARCSEC:
                return None
        kind = there[TYPE][at].decode("utf-8", "replace")
        period = float(there[PERIOD][at])
        return KnownObject(
            self._source, there[NAME][at].decode("utf-8", "replace"), kind, None if np.isnan(period) else period, away,
            claimed_type(kind).class_name,
        )  # fmt: skip


def _place(curve: NamedLightCurve) -> tuple[float, float, float]:
    """Position and the middle of the observations; NaN where unknown."""
    mjd = curve.light_curve.mjd
    return curve.ra, curve.dec, float(mjd[len(mjd) // 2]) if len(mjd) else float("nan")
