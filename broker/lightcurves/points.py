"""Rows of a table as points: times, magnitudes, errors and bands, and which of them are no measurements."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from broker.errors import InputFileError
from broker.lightcurves.asassn import UNNAMED, bands_of_cameras, is_asassn
from broker.lightcurves.columns import (
    DEFAULT_BAND,
    NO_BAND,
    Columns,
    as_text,
    bad_points,
    band_code,
    is_text,
    numbers,
    times,
)
from broker.lightcurves.fluxes import to_magnitudes
from broker.lightcurves.objects import is_wrong
from broker.lightcurves.report import BRIGHTEST, FAINTEST, NO_SIGNAL, LeftOut, Report
from broker.lightcurves.rows import Rows
from broker.lightcurves.time_column import TimeColumn
from broker.lightcurves.values import angles, first_values, per_point, values_of
from broker.photometry import POGSON
from broker.records import BANDS

_EXACT: Final = {pa.float64(): 2**53, pa.float32(): 2**24, pa.float16(): 2**11}
"""From here on floating-point numbers skip integers, so that two ids become one."""
_FLOAT_ID: Final = r"^\d+(\.\d*[eE]\+?\d+|[eE]\+\d+|\.0*)$"
_LIMIT: Final = r"^\s*[<>\x{2264}\x{2265}]"


class RowReader:
    """Batches of one file as rows of points."""

    def __init__(
        self,
        path: Path,
        columns: Columns,
        report: Report,
        time: TimeColumn,
        *,
        decimal_comma: bool,
        two_filters: bool,
        whole: tuple[str, float, float],
        zero_point: float = 0.0,
        error_scale: float = 1.0,
    ) -> None:
        """``whole`` is the name and the position (ICRS degrees) of all rows where no column has them.

        ``zero_point`` is the magnitude of a flux of 1, where the columns hold fluxes; errors are multiplied
        by ``error_scale``. ``two_filters``: the file may be
        ASAS-SN's, whose V and g are then told apart where no column does.
        """
        self._path, self._columns, self._report, self._time = path, columns, report, time
        self._comma, self._two_filters = decimal_comma, two_filters
        self._zero_point, self._error_scale = zero_point, error_scale
        self._whole_name, self._whole_ra, self._whole_dec = whole

    def names(self, column: pa.Array[Any], first: int) -> NDArray[np.object_]:
        """(n,) names; InputFileError where they are ids that floating-point numbers do not hold."""
        name = self._columns.name
        limit = _EXACT.get(column.type)
        if limit is not None:
            values = column.to_numpy(zero_copy_only=False).astype(np.float64)
            self._refuse_ids(values, limit, str(column.type))
            texts = [
                None if not np.isfinite(v) else str(int(v)) if v == int(v) else repr(v) for v in values.tolist()
            ]  # fmt: skip
            names = np.array(texts, np.object_)
        else:
            text: Any = as_text(column)
            floats: Any = pc.fill_null(pc.match_substring_regex(text, _FLOAT_ID), False)
            names = pc.utf8_trim_whitespace(text).to_numpy(zero_copy_only=False)
            is_float = floats.to_numpy(zero_copy_only=False)
            if is_float.any():
                names = names.copy()
                values = names[is_float].astype(np.float64)
                self._refuse_ids(values, 2**53, "text written from floating-point numbers")
                names[is_float] = [
                    str(int(v)) if v == int(v) else t for v, t in zip(values, names[is_float], strict=True)
                ]
        empty = np.flatnonzero([not value for value in names])
        if len(empty):
            names = names.copy()
            names[empty] = [f"row {first + row + 1}" for row in empty]
        assert name is not None
        return names

    def _refuse_ids(self, values: NDArray[np.float64], limit: int, kind: str) -> None:
        with np.errstate(invalid="ignore"):
            large = np.flatnonzero(np.abs(values) >= limit)
        if len(large):
            raise InputFileError(
                f"{self._path}: column {self._columns.name} holds ids as {kind}, such as {values[large[0]]:.0f}: from "
                f"{limit} on these skip integers, so that different objects have one id. Write them as int64 or text"
            )

    def rows(self, batch: dict[str, pa.Array[Any]], first: int) -> Rows:
        """The rows of a batch, columns by name, of which the first is row ``first`` of the file, counted from 0."""
        columns, comma = self._columns, self._comma
        lists = [values_of(batch[name], comma) for name in (columns.time, columns.magnitude, columns.error)]
        counts = np.stack([count for count, _ in lists])
        uneven = (counts != counts[0]).any(axis=0)
        self._report.uneven_lists += int(uneven.sum())
        size = np.where(uneven, 0, counts[0])
        kept = [np.repeat(~uneven, count) for count, _ in lists]
        values = [value for _, value in lists]
        time = times(values[0], comma)[kept[0]]
        magnitude, error = (numbers(v, comma)[k] for v, k in zip(values[1:], kept[1:], strict=True))
        error = error * self._error_scale
        if columns.flux:
            magnitude, error = to_magnitudes(magnitude, error, self._zero_point)
        elif columns.ratio:
            with np.errstate(invalid="ignore", divide="ignore"):
                error = np.where(error > 0, POGSON / error, np.nan)
        reason = self._judge(time, magnitude, error, values, kept)
        band = self._bands(None if columns.band is None else batch[columns.band], size)
        if columns.flag is not None:
            reason[per_point(batch[columns.flag], size, lambda v: bad_points(columns.flag or "", v), comma)] = (
                LeftOut.FLAGGED
            )
        rows = len(counts[0])
        if columns.name is not None:
            names = self.names(batch[columns.name], first)
        elif (counts[0] > 1).any():
            names = np.array([f"row {first + row + 1}" for row in range(rows)], np.object_)
        else:
            names = np.full(rows, self._whole_name, np.object_)
        if columns.band is None and (self._two_filters or columns.camera is not None or "" not in columns.bare):
            band = self._filters(band, names, None if columns.camera is None else batch[columns.camera], time, size)
        reason[(band >= len(BANDS)) & (band != UNNAMED)] = LeftOut.BAND
        ra, dec = (
            np.full(rows, whole) if name is None else angles(first_values(batch[name]), hours, comma)
            for name, whole, hours in ((columns.ra, self._whole_ra, True), (columns.dec, self._whole_dec, False))
        )
        start = np.concatenate([[0], np.cumsum(size)])
        wrong = np.repeat(is_wrong(ra, dec), size)
        if wrong.any():
            row = int(np.searchsorted(start, np.flatnonzero(wrong)[0], "right")) - 1
            self._report.examples.setdefault(LeftOut.POSITION, f"ra {ra[row]:g}, dec {dec[row]:g} of {names[row]}")
        reason[wrong] = LeftOut.POSITION
        return Rows(names, ra, dec, start, np.stack([time, magnitude, error]), band, reason, uneven)

    def _judge(
        self,
        time: NDArray[np.float64],
        magnitude: NDArray[np.float64],
        error: NDArray[np.float64],
        values: list[pa.Array[Any]],
        kept: list[NDArray[np.bool_]],
    ) -> NDArray[np.uint8]:
        """(m,) LeftOut by the values alone; examples for the messages."""
        reason = np.zeros(len(time), np.uint8)
        with np.errstate(invalid="ignore"):
            reason[error >= NO_SIGNAL] = LeftOut.NO_SIGNAL
            reason[~(error > 0)] = LeftOut.ERROR
            reason[~((magnitude > BRIGHTEST) & (magnitude < FAINTEST) & (magnitude != 0.0))] = LeftOut.MAGNITUDE
        if is_text(values[1]):
            text: Any = values[1]
            limits: Any = pc.fill_null(pc.match_substring_regex(text, _LIMIT), False)
            reason[limits.to_numpy(zero_copy_only=False)[kept[1]]] = LeftOut.LIMIT
        mjd, ways = self._time.to_mjd(time)
        reason[np.isnan(mjd)] = LeftOut.TIME
        for way, found in ways.items():
            self._report.time_read(way, self._time.said, float(time[np.argmax(found)]))
        for which, number in ((LeftOut.MAGNITUDE, 1), (LeftOut.ERROR, 2), (LeftOut.NO_SIGNAL, 2), (LeftOut.LIMIT, 1)):
            points = np.flatnonzero(reason == which)
            if len(points) and which not in self._report.examples:
                value = values[number][int(np.flatnonzero(kept[number])[points[0]])].as_py()
                self._report.examples[which] = f"such as {value!r}"
        bad = np.flatnonzero(reason == LeftOut.TIME)
        if len(bad):
            self._report.examples.setdefault(LeftOut.TIME, self._time.mistake(float(time[bad[0]])))
        return reason

    def _bands(self, column: pa.Array[Any] | None, size: NDArray[np.int64]) -> NDArray[np.uint8]:
        """(m,) codes for the points of all rows; a row may have one band for all its points or one for each."""
        bare = self._columns.bare
        if column is None:
            return np.full(size.sum(), band_code(None, bare), np.uint8)

        def codes(values: pa.Array[Any]) -> NDArray[np.uint8]:
            encoded: Any = as_text(values).dictionary_encode()
            names = encoded.dictionary.to_pylist()
            known = [band_code(name, bare) for name in names]
            index = pc.fill_null(encoded.indices, len(known)).to_numpy(zero_copy_only=False)
            counts = np.bincount(index, minlength=len(known) + 1).tolist()
            unknown = {str(n): count for n, code, count in zip(names, known, counts, strict=False) if code == NO_BAND}
            self._report.bands.update(unknown)
            known = [
                self._report.unknown_band(str(n)) if str(n) in unknown else c for n, c in zip(names, known, strict=True)
            ]
            found: NDArray[np.uint8] = np.array([*known, band_code(None, bare)], np.uint8)[index]
            return found

        return per_point(column, size, codes, False, np.uint8(NO_BAND))

    def _filters(
        self,
        band: NDArray[np.uint8],
        names: NDArray[np.object_],
        camera: pa.Array[Any] | None,
        time: NDArray[np.float64],
        size: NDArray[np.int64],
    ) -> NDArray[np.uint8]:
        """``band`` (m,) of a table that names no bands, with ASAS-SN's by the camera, or UNNAMED."""
        two = np.full(len(band), self._two_filters)
        if not self._two_filters:
            two = np.repeat([is_asassn(name) for name in names], size)
        found = np.full(len(band), UNNAMED, np.uint8)
        if camera is not None:
            texts = per_point(camera, size, lambda v: np.array(as_text(v).to_pylist(), np.object_), False, None)
            found = bands_of_cameras(texts.tolist(), self._time.to_mjd(time)[0])
            two |= found != UNNAMED
        if two.any() and "" not in self._report.ways:
            self._report.ways.add("")
            self._report.line(
                "no column for the filter: ASAS-SN's V and g are told apart by "
                f"{'camera, ' if camera is not None else ''}date and the two levels of each object"
            )
        if not two.all() and DEFAULT_BAND not in self._report.ways:
            self._report.ways.add(DEFAULT_BAND)
            self._report.line(f"no column for the band: taken as {DEFAULT_BAND} (trifid classify --band, if another)")
        return np.where(two, found, band)
