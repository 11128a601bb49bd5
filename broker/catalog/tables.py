"""Catalogue tables, a piece at a time, of any format of ``broker.tables``, to columns of ours."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from broker.catalog.columns import Kinds, regroup
from broker.catalog.known import NAME, STORED, TEXTS, TYPE, known_columns
from broker.catalog.layout import EPOCH
from broker.catalog.plausible import POSITION, Counts, plausible
from broker.catalog.presets import FIELDS, Preset, Source
from broker.errors import InputFileError
from broker.lightcurves.columns import NAME as OBJECT_NAME
from broker.lightcurves.columns import find
from broker.sky import Array
from broker.tables.files import SUFFIXES, open_table
from broker.tables.table import input_errors

_NO_VALUES: Final = "no value"
_OBJECT: Final = "object name"
"""What the column of names is called among ours."""
_UNEVEN: Final = "another number of cells than the header"
_UNITS: Final = {
    "ra": "deg", "dec": "deg", EPOCH: "yr", "parallax": "mas", "parallax_error": "mas",
    "pmra": "mas/yr", "pmra_error": "mas/yr", "pmdec": "mas/yr", "pmdec_error": "mas/yr", "pm": "mas/yr",
}  # fmt: skip
"""Of our columns; a magnitude has none that could differ."""


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """n usable rows of a table."""

    ra: Array
    """(n,) ICRS degrees, 0 to 360."""
    dec: Array
    """(n,) ICRS degrees."""
    epoch: Array
    """(n,) Julian years; NaN where the table does not say."""
    values: dict[str, NDArray[Any]]
    """(n,) each: the columns of METADATA_FEATURES that the table has, NaN where unknown; of known variable stars
    those of ``broker.catalog.known.STORED``."""
    rows_read: int
    """Rows of the file up to the end of this piece, usable or not: where to go on."""
    skipped: int
    """Rows of this piece without a position or without any value."""
    bytes_read: int
    """About how far into the file that is."""
    unknown: Counts = field(default_factory=dict)
    """Values of all rows of this piece that are unknown, and rows that are left out ("position", "row"), by reason."""


class CatalogTable:
    """One file of a catalogue, read as a preset says."""

    def __init__(self, path: Path, preset: Preset, *, by_name: bool = False) -> None:
        """Open ``path``; raises InputFileError where it is no table, or one without positions or values.

        ``by_name``: it needs names of its objects (``OBJECT_NAME``) instead of positions, for ``named_values``.
        """
        self.path: Final = path
        self.known: Final = preset.known
        """Whether it is one of known variable stars."""
        self._table = open_table(path)
        if not self._table.names:
            raise InputFileError(f"{path}: no header line")
        self._sources = self._choose(preset, by_name)
        self._factors = {ours: self._factor(ours, source.name) for ours, source in self._sources.items()}
        named = {ours: source.name for ours, source in self._sources.items()}
        texts = frozenset(named[ours] for ours in TEXTS if ours in named) if self.known else frozenset()
        if by_name:
            texts |= {named[_OBJECT]}
        self._kinds = Kinds(texts, {named[axis]: unit for axis, unit in (("ra", 15.0), ("dec", 1.0)) if axis in named})
        self._table.keep(list(dict.fromkeys(named.values())))

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns besides the position that the table gives, in the order of FIELDS or of STORED."""
        fields = tuple(STORED) if self.known else FIELDS
        return tuple(name for name in fields if name in self._sources and name not in ("ra", "dec"))

    def chunks(self, start: int = 0, size: int = 100_000) -> Iterator[Chunk]:
        """The table from its row ``start`` on, about ``size`` rows at a time; raises InputFileError."""
        done = start
        uneven = 0
        for columns, bytes_read in self._pieces(tuple(self._sources), start, size):
            read = len(columns["ra"])
            done += read
            ra, dec = columns.pop("ra"), columns.pop("dec")
            placed, unknown = _placed(ra, dec)
            epoch = np.full(read, np.nan)
            if self.known:
                values, listed, of_values = known_columns(columns)
            else:
                values, of_values = plausible(columns)
                epoch = values.pop(EPOCH, epoch)
                listed = np.any([np.isfinite(column) for column in values.values()], axis=0)
            usable = placed & listed
            unknown |= of_values
            left_out = {_NO_VALUES: int((placed & ~usable).sum()), _UNEVEN: self._table.uneven - uneven}
            uneven = self._table.uneven
            unknown["row"] = {reason: count for reason, count in left_out.items() if count}
            counts = {name: reasons for name, reasons in unknown.items() if reasons}
            yield Chunk(
                np.mod(ra[usable], 360.0), dec[usable], epoch[usable],
                {name: column[usable] for name, column in values.items()},
                done, read - int(usable.sum()), bytes_read, counts,
            )  # fmt: skip

    def named_values(self, size: int = 100_000) -> Iterator[tuple[list[str], dict[str, NDArray[Any]], Counts]]:
        """Names (n,) and columns (n,) of METADATA_FEATURES, and values that are unknown, by column and reason.

        Of a table opened ``by_name``; raises InputFileError.
        """
        uneven = 0
        for columns, _ in self._pieces(tuple(self._sources), 0, size):
            names = [name.decode("utf-8", "replace").strip() for name in columns.pop(_OBJECT).tolist()]
            values, unknown = plausible(columns)
            values.pop(EPOCH, None)
            if self._table.uneven > uneven:
                unknown["row"] = {_UNEVEN: self._table.uneven - uneven}
                uneven = self._table.uneven
            yield names, values, {name: reasons for name, reasons in unknown.items() if reasons}

    def positions(self, size: int = 1_000_000) -> Iterator[tuple[Array, Array]]:
        """Right ascensions and declinations of all rows that have them; raises InputFileError."""
        for columns, _ in self._pieces(("ra", "dec"), 0, size):
            ra, dec = columns["ra"], columns["dec"]
            known, _ = _placed(ra, dec)
            yield ra[known], dec[known]

    def _pieces(self, ours: Sequence[str], start: int, size: int) -> Iterator[tuple[dict[str, NDArray[Any]], int]]:
        names = list(dict.fromkeys(self._sources[name].name for name in ours))
        numbers = set(names) - self._kinds.texts
        with input_errors(self.path):
            # ``NA`` is a nova's type, and no missing value.
            batches = self._table.batches(names, start, size, numbers=numbers, words_are_missing=False)
            for columns in regroup(batches, size, self._kinds):
                read = {name: self._convert(name, columns[self._sources[name].name]) for name in ours}
                yield read, self._table.bytes_read

    def _choose(self, preset: Preset, by_name: bool) -> dict[str, Source]:
        """For each of our columns the one of the table; raises InputFileError where too few are there."""
        names = self._table.names
        by_lower = {name.lower(): name for name in reversed(names)}
        chosen = {}
        for ours, sources in preset.columns.items():
            for source in sources:
                exact = source.name if source.name in names else by_lower.get(source.name.lower())
                if exact is not None:
                    chosen[ours] = Source(exact, source.convert)
                    break
        if any(names.count(source.name) > 1 for source in chosen.values()):
            raise InputFileError(f"{self.path}: two columns have the same name: {', '.join(names)[:500]}")
        if by_name:
            chosen = {ours: source for ours, source in chosen.items() if ours not in ("ra", "dec")}
            if (name := find(names, OBJECT_NAME)) is None:
                raise InputFileError(f"{self.path}: no column of names ({', '.join(OBJECT_NAME[:3])}, ...)")
            chosen[_OBJECT] = Source(name)
        wanted = [name for name in ("ra", "dec") if name not in chosen]
        if wanted and not by_name:
            tried = " or ".join(" and ".join(s.name for s in preset.columns[name]) for name in wanted)
            raise InputFileError(
                f"{self.path}: no column for {' and '.join(wanted)} (looked for {tried}); "
                f"the table has {', '.join(names) or 'none'}"
            )
        needed = {NAME, TYPE} if preset.known else set(FIELDS) - {"ra", "dec", EPOCH}
        if not needed & chosen.keys():
            what = "names or types" if preset.known else "catalogue values"
            raise InputFileError(
                f"{self.path}: no column of {what}; the table has {', '.join(names)}; "
                "name them with --preset or --column"
            )
        return chosen

    def _factor(self, ours: str, theirs: str) -> float:
        """What to multiply a column with to have it in our unit."""
        from astropy import units

        text = self._table.units.get(theirs, "").strip()
        if not text or ours not in _UNITS or self._sources[ours].convert is not None:
            return 1.0
        unit = units.Unit(text, parse_strict="silent")
        if isinstance(unit, units.UnrecognizedUnit):
            return 1.0
        try:
            return float(unit.to(units.Unit(_UNITS[ours])))
        except units.UnitConversionError as error:
            raise InputFileError(
                f"{self.path}: column {theirs} is in {text}, which is not {_UNITS[ours]} in any scale"
            ) from error

    def _convert(self, ours: str, column: NDArray[Any]) -> NDArray[Any]:
        convert = self._sources[ours].convert
        if column.dtype.kind == "S":
            return column
        return column * self._factors[ours] if convert is None else convert(column)


def expand(paths: Iterable[Path]) -> list[Path]:
    """The files named, and those with a known suffix in the folders named; raises InputFileError where none is."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = (p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith((".", "_")))
            files = sorted(p for p in inside if p.is_file())
            if not files:
                raise InputFileError(f"{path}: no tables in this folder ({', '.join(SUFFIXES)})")
            found += files
        else:
            found.append(path)
    return list(dict.fromkeys(found))


def _placed(ra: Array, dec: Array) -> tuple[NDArray[np.bool_], Counts]:
    """Which rows have a position, and why the others have none."""
    blank = np.isnan(ra) | np.isnan(dec)
    with np.errstate(invalid="ignore"):
        inside = (ra >= -180.0) & (ra <= 360.0) & (np.abs(dec) <= 90.0)
    zero = (ra == 0.0) & (dec == 0.0)
    counts = {
        "blank": int(blank.sum()),
        "0, 0": int(zero.sum()),
        "not in degrees": int((~blank & ~inside).sum()),
    }
    return inside & ~zero, {POSITION: {reason: count for reason, count in counts.items() if count}}
