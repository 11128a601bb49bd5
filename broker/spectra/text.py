"""Spectra in plain text: columns of numbers, with or without names, as programs and observatories write them.

A spectrum of one file is a whole: a row that does not fit is an error with its line, not a row to be left out, and
columns without names are wavelength, flux and error. So it is read here and not by ``broker.tables.text``, which reads
large tables in pieces.
"""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Iterator
from typing import Final

import numpy as np

from broker.spectra.normalise import MAX_PIXELS, UnusableSpectrumError, to_angstrom
from broker.spectra.tables import SpectrumColumn, SpectrumTable, is_number, is_wavelength, numbers_or_texts
from broker.tables.encoding import UTF_16, decoded

_COMMENT: Final = ("#", "!", "%", ";", "\\", "//", "*")
"""With which a line begins that is no row: of most programs, IRAF and Fortran, LaTeX, IDL, IPAC, C."""
_AFTER_A_ROW: Final = re.compile(r"\s+[#!].*$")
_CONTROL: Final = re.compile(rb"[\x00-\x08\x0e-\x19\x1b-\x1f]")
_SEPARATORS: Final = (";", "\t", ",", "|", None)
_MAX_LINES: Final = 2 * MAX_PIXELS
_KEYWORD: Final = re.compile(r"^\s*([A-Za-z][\w\- ]{0,30}?)\s*[:=]\s*(.+?)\s*$")


def read_text(data: bytes) -> SpectrumTable:
    """A table in CSV, IPAC's form or separated by white space, in UTF-8, UTF-16 or Latin-1.

    Comments begin with ``#``, ``!``, ``%``, ``;``, ``\\``, ``//`` or ``*``; those of the form ``name: value`` or
    ``name = value`` are the header. The names of the columns are in a line above the numbers, or in the last comment
    there; without any, the columns are wavelength, flux and, if there is a third, error. Numbers may have Fortran's
    D exponents and, where the separator is no comma, decimal commas.

    Raises UnusableSpectrumError for what is no such table, with the line that does not fit.
    """
    if _CONTROL.search(data) and not data.startswith(UTF_16):
        raise UnusableSpectrumError("neither FITS, Parquet, VOTable nor text")
    text = decoded(data)
    comments: list[str] = []
    titles: list[str] = []
    rows: list[tuple[int, str]] = []
    separator: str | None = None
    for number, line in enumerate(itertools.islice(text.split("\n", _MAX_LINES + 1), _MAX_LINES + 1), 1):
        if number > _MAX_LINES:
            raise UnusableSpectrumError(f"more than {_MAX_LINES:,} lines: no spectrum, or many in one text")
        stripped = line.strip()
        if stripped.startswith(_COMMENT):
            if not rows:
                comments.append(stripped.lstrip("#!%;\\/* \t"))
        elif rows:
            if stripped:
                rows.append((number, stripped))
        elif stripped:
            separator = _separator(stripped)
            if is_number(_split(stripped, separator)[0], separator != ","):
                rows.append((number, stripped))
            else:
                titles.append(stripped)
    if not rows and not titles:
        raise UnusableSpectrumError("a text without a table")
    if len(rows) > MAX_PIXELS:
        raise UnusableSpectrumError(f"{len(rows):,} rows; a spectrum has {MAX_PIXELS:,} pixels at most")
    cells = [_split(_AFTER_A_ROW.sub("", row), separator) for _, row in rows]
    names, units, others = _titles(titles, comments, separator, len(cells[0]) if cells else 0)
    for (number, row), values in zip(rows, cells, strict=True):
        if len(values) == len(names) + 1 and not values[-1].strip():  # a separator at the end of the line
            values.pop()
        if len(values) != len(names):
            raise UnusableSpectrumError(
                f"line {number}, {row[:60]!r}: a row of {len(values)} values under {len(names)} columns: "
                f"{', '.join(names)[:200]}"
            )
    header = {match[1].strip(): match[2] for line in (*others, *comments) if (match := _KEYWORD.match(line))}
    comma = separator != ","
    return SpectrumTable(
        [
            SpectrumColumn(name.strip(), numbers_or_texts([row[i] for row in cells], comma), unit)
            for i, (name, unit) in enumerate(zip(names, units, strict=True))
        ],
        header,
    )


def _separator(row: str) -> str | None:
    """What separates the cells of a row: the first by which all are numbers, else the first that it has."""
    for separator in _SEPARATORS:
        cells = _split(row, separator)
        if len(cells) > 1 and all(is_number(cell, separator != ",") for cell in cells):
            return separator
    return next((s for s in (",", ";", "\t", "|") if s in row.strip("|")), None)


def _split(row: str, separator: str | None) -> list[str]:
    if separator is None:
        return row.split() or [""]
    if separator == "|":
        row = row.strip().strip("|")
    return next(csv.reader([row], delimiter=separator), [""])


def _titles(
    titles: list[str], comments: list[str], separator: str | None, size: int
) -> tuple[list[str], list[str | None], list[str]]:
    """Names and units of ``size`` columns (0: of no rows), and the lines above the numbers that are neither."""
    for lines in (titles, comments):
        for number in reversed(range(len(lines))):
            names = next((n for n in _readings(lines[number], separator) if _is_header(n, size)), None)
            if names is None:
                continue
            below = lines[number + 1] if number + 1 < len(lines) else ""
            units = next((u for u in _readings(below, separator) if len(u) == len(names)), [])
            known = [u.strip() if re.search("[a-zA-Z]", u) else None for u in units] or [None] * len(names)
            if lines is comments or not _are_units(known):
                known = [None] * len(names)
            return names, known, titles[:number] if lines is titles else titles
    if titles and (not size or len(_split(titles[-1], _separator(titles[-1]))) == size):
        names = _split(titles[-1], _separator(titles[-1]) if not size else separator)
        return names, [None] * len(names), titles[:-1]
    names = ["wavelength", "flux", "error"] if size > 2 else ["wavelength", "flux"]
    return names, [None] * len(names), titles


def _readings(line: str, separator: str | None) -> Iterator[list[str]]:
    """A line of names in the ways it may be meant: as the rows are, or by another separator."""
    if line.startswith("|"):  # IPAC
        yield [name.strip() for name in line.strip("|").split("|")]
    for way in dict.fromkeys((separator, _separator(line), None)):
        yield _split(line, way)


def _are_units(units: list[str | None]) -> bool:
    """Whether a line below the names is of units: Angstrom and the like for the wavelength."""
    return any(u is not None and _is_wavelength_unit(u) for u in units)


def _is_wavelength_unit(text: str) -> bool:
    try:
        to_angstrom(np.ones(1), text)
    except UnusableSpectrumError:
        return False
    return True


def _is_header(names: list[str], size: int) -> bool:
    return len(names) == (size or len(names)) and any(map(is_wavelength, names))
