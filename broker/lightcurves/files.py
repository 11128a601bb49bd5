"""Light curves from tables of any format: one row an object with lists, or one row a point.

Columns are taken by their names (``broker.lightcurves.columns``): the object's name and position, the time, the
magnitude and its error, the band and, where the archive has one, a flag of bad points. Text may have any dialect
(``broker.tables.text``), Parquet lists, structs of lists or lists of structs (HATS, nested-pandas). They are read in
pieces: memory does not grow with the file, unless the rows of an object are scattered over it.

Points that are no measurements are left out: codes for missing values, limits, flagged points, times that are none.
What was left out, and why, is counted, and said in one line for each reason. What remains is merged as the points of
alert packets are (``broker.state.merge``), so that a row that is there twice counts once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from broker.bands import BAND_CODE, BANDS
from broker.errors import InputFileError
from broker.lightcurves.asassn import is_asassn
from broker.lightcurves.columns import DEC, NAME, NO_BAND, RA, Columns, band_code, plain
from broker.lightcurves.fluxes import ARBITRARY, band_of, error_scale, mission_of, zero_point
from broker.lightcurves.objects import NamedLightCurve, ObjectBuilder
from broker.lightcurves.points import RowReader
from broker.lightcurves.report import LeftOut, Report
from broker.lightcurves.rows import Rows, gather, join, run_bounds
from broker.lightcurves.time_column import TimeColumn
from broker.lightcurves.values import angles
from broker.records import TimeSystem
from broker.tables.files import open_table
from broker.tables.table import Table
from broker.tables.text import TextTable
from broker.times import mjd_now

_POINTS_AT_ONCE: Final = 200_000
"""Points that are read at once, about, of a table with lists."""
_ROWS_AT_ONCE: Final = 100_000
_MOST_HELD: Final = 1 << 20
"""Points of one object that are kept while its rows are read."""
_GAIA_TIME: Final = "BJD - 2455197.5"
"""Of Gaia's epoch photometry (in TCB, some 20 s from TDB; Gaia DR3 documentation, section 20.7.3)."""
_UNNAMED: Final = ("hjd", "mag", "mag_err")
"""Columns of a text without names (OGLE and many others). The range of the times tells what they are."""


def read_light_curves(
    path: Path | Table,
    say: Callable[[str], None] = lambda _: None,
    time_system: TimeSystem | None = None,
    columns: Mapping[str, str] | None = None,
    band: str | None = None,
) -> Iterator[NamedLightCurve]:
    """Each object of a table once, in the order of their first rows; rows of one name are put together.

    ``problem`` says which points of an object were left out: it may thus have an empty light curve, but no name is
    lost. A row without a name is called ``row <number>``; a table without names is one object, called as the file.
    Rows of one name that lie at two places are no object: it has no points, and ``problem`` says so. Magnitudes are
    taken as AB (see ``broker.photometry``) and as total flux. ``say`` is called with what the user should know of the
    file, a line each time. ``time_system`` is what the times are, where not what their column is called after;
    ``columns`` are the names of columns by their role (see ``Columns.of``); ``band`` is that of all points where the
    table has no column for it. Raises InputFileError where the file is not such a table, or the band is not known.
    """
    table = path if isinstance(path, Table) else open_table(path)
    try:
        yield from _Reader(table, say, time_system, columns or {}, band).light_curves()
    except pa.ArrowException as error:
        raise InputFileError(f"{table.path}: {error}") from error


_PLACE = {
    TimeSystem.UTC: ", UTC at the observatory",
    TimeSystem.HELIOCENTRIC: ", heliocentric",
    TimeSystem.BARYCENTRIC: ", barycentric",
}


class _Reader:
    """One pass through one file."""

    def __init__(
        self,
        table: Table,
        say: Callable[[str], None],
        time_system: TimeSystem | None,
        given: Mapping[str, str],
        band: str | None,
    ) -> None:
        self._table, self._path = table, table.path
        path = table.path
        unnamed = isinstance(self._table, TextTable) and not self._table.names
        if isinstance(self._table, TextTable) and unnamed:
            if self._table.width != len(_UNNAMED):
                raise InputFileError(
                    f"{path}: no line of column names above the {self._table.width} columns of numbers: put one there"
                )
            self._table.name_columns(_UNNAMED)
        try:
            self._columns = Columns.of(self._table.names, given)
        except ValueError as error:
            raise InputFileError(f"{path}: {error}") from error
        self._report = Report(path, self._columns, say)
        header = {str(name): str(value) for name, value in self._table.header.items()}
        texts = (path.name, *self._table.names, *header, *header.values())
        two_filters = any(map(is_asassn, texts))
        if unnamed:
            self._report.line(f"no line of column names: the columns are taken as {', '.join(_UNNAMED)}")
        mission = mission_of(self._table.header)
        if mission is not None and self._columns.band is None:
            self._columns = replace(self._columns, bare={"": BAND_CODE[band_of(mission)]})
        elif self._columns.band is None and band is not None:
            code = band_code(band, {})
            if code == NO_BAND:
                raise InputFileError(f"{path}: the band {band} is not known (known: {', '.join(BANDS)})")
            self._columns, two_filters = replace(self._columns, bare={"": code}, camera=None), False
        units = self._table.units
        time = TimeColumn(
            self._columns.time, mjd_now() + 1.0, units.get(self._columns.time) or self._epoch_of_gaia(header)
        )
        scale = ARBITRARY
        error_unit = units.get(self._columns.error)
        per_error = 1e-3 if (error_unit or "").strip().lower() in ("mmag", "millimag") else 1.0
        if self._columns.flux:
            column = self._columns.magnitude
            known = zero_point(plain(column.rsplit(".", 1)[-1]), column, units.get(column), mission)
            if known is None:
                self._report.line(
                    f"fluxes in column {column}, whose unit is not known: only their variation is used, not the level"
                )
            else:
                scale = known
                self._report.line(f"fluxes in column {column} are read with {known:.2f} mag for a flux of 1")
            converted = error_scale(self._columns.error, error_unit, units.get(column), known)
            if converted is None:
                raise InputFileError(
                    f"{path}: errors in column {self._columns.error} are in {error_unit}, fluxes in {column} in "
                    f"{units.get(column) or 'a unit that is not known'}: the one cannot be made the other"
                )
            per_error = converted
        name = self._of_header(NAME) or path.name.split(".")[0] or path.name
        ra, dec = (
            float(angles(pa.array([self._of_header(spellings) or ""]), hours, self._table.decimal_comma)[0])
            for spellings, hours in ((RA, True), (DEC, False))
        )
        self._rows = RowReader(
            path, self._columns, self._report, time,
            decimal_comma=self._table.decimal_comma, two_filters=two_filters, whole=(name, ra, dec), zero_point=scale,
            error_scale=per_error,
        )  # fmt: skip
        self._report.place = _PLACE[time_system or time.system]
        if time_system is None and time.system is TimeSystem.UTC:
            # Archives call mjd what is heliocentric, too, and no value tells.
            self._report.place += " (--times heliocentric or barycentric, if they are not)"
        self._objects = ObjectBuilder(self._columns, self._report, time, time_system or time.system)

    def _epoch_of_gaia(self, header: Mapping[str, str]) -> str:
        """What the times of Gaia's epoch photometry are, which text does not say."""
        names = {plain(name) for name in self._table.names}
        return _GAIA_TIME if {"transitid", "fluxovererror", "time"} <= names else ""

    def _of_header(self, spellings: Sequence[str]) -> str | None:
        by_plain = {plain(str(name)): str(value) for name, value in self._table.header.items()}
        return next((by_plain[plain(s)] for s in spellings if plain(s) in by_plain), None)

    def light_curves(self) -> Iterator[NamedLightCurve]:
        """All objects, then what is to be said of the file."""
        pieces = self._pieces()
        if self._columns.name is not None and self._is_scattered():
            parts = list(pieces)
            pieces = iter([gather(join(parts))] if parts else [])
        held: Rows | None = None  # the last object so far: its rows may go on in the next piece
        for piece in pieces:
            rows = piece if held is None else join([held, piece])
            bounds = run_bounds(rows.name)
            yield from self._objects.objects(rows, bounds[:-1])
            held = self._bounded(rows.slice(bounds[-2], bounds[-1]))
        if held is None:
            raise InputFileError(f"{self._path}: a table without rows")
        yield from self._objects.objects(held, np.array([0, len(held)]))
        self._report.close(self._table.uneven)

    def _pieces(self) -> Iterator[Rows]:
        first = 0
        mean = max(self._table.values_per_row(self._columns.time), 1.0)
        size = int(min(max(_POINTS_AT_ONCE / mean, 1), _ROWS_AT_ONCE))
        for batch in self._table.batches(self._columns.all, size=size):
            if batch.num_rows:
                rows = self._rows.rows(dict(zip(batch.schema.names, batch.columns, strict=True)), first)
                self._report.points += len(rows.band)
                yield rows
            first += batch.num_rows

    def _is_scattered(self) -> bool:
        """Whether rows of some name have rows of other names between them."""
        assert self._columns.name is not None
        first, last, seen = 0, None, set[str]()
        for batch in self._table.batches([self._columns.name]):
            column: pa.Array[Any] = batch.column(0)
            if len(column):
                names = self._rows.names(column, first)
                starts = names[run_bounds(names)[:-1]].tolist()
                starts = starts[1:] if starts[0] == last else starts
                if not seen.isdisjoint(starts) or len(set(starts)) < len(starts):
                    return True
                seen.update(starts)
                last = names[-1]
            first += len(column)
        return False

    def _bounded(self, held: Rows) -> Rows:
        """The rows, or every second of them in order of time as often as they are too many."""
        while held.points.shape[1] > _MOST_HELD and len(held) > 1:
            time = np.full(len(held), np.inf)
            some = np.diff(held.start) > 0
            time[some] = held.points[0, held.start[:-1][some]]
            rows = np.sort(np.argsort(time, kind="stable")[::2])
            before = held.points.shape[1]
            held = held.take(rows)
            self._report.left_out[LeftOut.THINNED] += before - held.points.shape[1]
        return held
