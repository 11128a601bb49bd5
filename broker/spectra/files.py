"""Spectra from files of many formats, told by content and not by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from broker.errors import DecodeError, InputFileError
from broker.files import require_file
from broker.records import ObservedSpectrum
from broker.spectra import message, tables
from broker.spectra.fits import read_fits
from broker.spectra.normalise import RawSpectrum, UnusableSpectrumError, to_observed
from broker.spectra.text import read_text
from broker.tables.content import head_of, read_content
from broker.tables.files import Format, format_of, is_described, open_table
from broker.tables.table import input_errors

MAX_FILE_BYTES: Final = 512_000_000
"""Also after decompression."""
MAX_TEXT_BYTES: Final = 64_000_000
"""Of a file that is none of the binary formats: MAX_PIXELS lines of 640 characters."""
MAX_VOTABLE_BYTES: Final = 256_000_000
FILE: Final = "file:"
"""Before a file's name, as the id of a spectrum that has none."""
_REASONS: Final = 5
"""That are listed of a file with several unusable spectra."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Overrides:
    """What the user says of a file's spectra; it wins over what the file says. None: as the file says."""

    spectrum_id: str | None = None
    """Of several spectra in a file, the second and later get ``#2``, ... at its end."""
    survey: str | None = None
    object_id: str | None = None
    ra: float | None = None
    """ICRS degrees, as ``dec``."""
    dec: float | None = None
    mjd: float | None = None
    """MJD UTC."""
    redshift: float | None = None
    air: bool | None = None
    """Whether the wavelengths are those in air."""
    wavelength_unit: str | None = None
    """As astropy.units has them, as is ``flux_unit``."""
    flux_unit: str | None = None

    def apply(self, raw: RawSpectrum, number: int, name: str) -> RawSpectrum:
        """The spectrum, ``number``-th of the file ``name``, counted from 1, with what is said here."""
        said = {f.name: value for f in dataclasses.fields(self) if (value := getattr(self, f.name)) is not None}
        suffix = "" if number == 1 else f"#{number}"
        if self.spectrum_id is not None:
            said["spectrum_id"] = self.spectrum_id + suffix
        elif not raw.spectrum_id:
            said["spectrum_id"] = f"{FILE}{name}{suffix}"
        return dataclasses.replace(raw, **said)


def read_spectra(
    path: Path, overrides: Overrides = Overrides(), *, rest_frame: bool = True, placed: bool = True
) -> Iterator[ObservedSpectrum]:
    """The spectra of a file, as ``to_observed`` makes them, with ``placed`` as there.

    Formats: LAMOST low resolution and SDSS FITS, FITS tables and one-dimensional images, VOTable, Parquet, ECSV, CSV
    and other text, messages of ``broker.spectra.message``; also compressed with gzip, bzip2, xz or zstandard.

    Raises InputFileError, with the file's name and the reason, where it cannot be read; where some of its spectra
    cannot be used, after all others were given.
    """
    problems: list[tuple[str, str]] = []
    count = failed = 0
    for raw in read_raw(path, overrides):
        count += 1
        try:
            yield to_observed(raw, rest_frame=rest_frame, placed=placed)
        except UnusableSpectrumError as error:
            failed += 1
            if failed <= _REASONS:
                problems.append((raw.spectrum_id[:80], str(error)))
    if failed:
        of = f"{failed} of {count} spectra: " if count > 1 else ""
        listed = "; ".join(f"{name}: {reason}" if count > 1 else reason for name, reason in problems)
        more = f"; and {failed - _REASONS} more" if failed > _REASONS else ""
        raise InputFileError(f"{path}: {of}{listed}{more}")


def read_raw(path: Path, overrides: Overrides = Overrides()) -> Iterator[RawSpectrum]:
    """The spectra of a file as they stand there, one at a time; raises InputFileError as ``read_spectra`` does."""
    number = 0
    with input_errors(path):
        try:
            for raw in _read(path):
                number += 1
                yield overrides.apply(raw, number, path.name)
        except (UnusableSpectrumError, DecodeError) as error:
            raise InputFileError(f"{path}: {error}") from error
    if not number:
        raise InputFileError(f"{path}: no spectrum in it")


def _read(path: Path) -> Iterator[RawSpectrum]:
    if require_file(path) > MAX_FILE_BYTES:
        raise UnusableSpectrumError(f"more than {MAX_FILE_BYTES:,} bytes, the most that are read")
    head = head_of(path)
    match format_of(head):
        case Format.FITS:
            return read_fits(read_content(path, MAX_FILE_BYTES))
        case Format.AVRO:
            return iter(message.read_raw(read_content(path, MAX_FILE_BYTES)))
        case Format.TEXT if not is_described(path, head):
            return tables.spectra(read_text(read_content(path, MAX_TEXT_BYTES)), "text")
        case Format.VOTABLE:
            limit = MAX_VOTABLE_BYTES
        case _:
            limit = MAX_FILE_BYTES
    table = open_table(path, limit)
    return (raw for part in tables.read_table(table) for raw in tables.spectra(part, table.format))
