"""Spectra from files of many formats, told by content and not by name."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from broker.errors import DecodeError, InputFileError
from broker.records import ObservedSpectrum
from broker.spectra import message, tables
from broker.spectra.fits import read_fits
from broker.spectra.normalise import RawSpectrum, UnusableSpectrumError, normalise
from broker.surveys.containers import CONTAINER_MAGIC

MAX_FILE_BYTES: Final = 512_000_000
"""Also after decompression."""
_REASONS: Final = 5
"""That are listed of a file with several unusable spectra."""
_GZIP: Final = b"\x1f\x8b"


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
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
            said["spectrum_id"] = f"file:{name}{suffix}"
        return dataclasses.replace(raw, **said)


def read_spectra(path: Path, given: Given = Given(), *, rest_frame: bool = True) -> Iterator[ObservedSpectrum]:
    """The spectra of a file, as ``normalise`` makes them.

    Formats: LAMOST low resolution and SDSS FITS, FITS tables and one-dimensional images, VOTable, Parquet, ECSV, CSV
    and other text, messages of ``broker.spectra.message``; also compressed with gzip.

    Raises InputFileError, with the file's name and the reason, where it cannot be read; where some of its spectra
    cannot be used, after all others were given.
    """
    found = read_raw(path, given)
    problems = []
    for raw in found:
        try:
            yield normalise(raw, rest_frame=rest_frame)
        except UnusableSpectrumError as error:
            problems.append(f"{raw.spectrum_id[:80]}: {error}" if len(found) > 1 else str(error))
    if problems:
        count = f"{len(problems)} of {len(found)} spectra: " if len(found) > 1 else ""
        more = f"; and {len(problems) - _REASONS} more" if len(problems) > _REASONS else ""
        raise InputFileError(f"{path}: {count}{'; '.join(problems[:_REASONS])}{more}")


def read_raw(path: Path, given: Given = Given()) -> list[RawSpectrum]:
    """The spectra of a file as they stand there; raises InputFileError as ``read_spectra`` does."""
    try:
        data = _content(path)
        found = _read(data)
    except (UnusableSpectrumError, DecodeError) as error:
        raise InputFileError(f"{path}: {error}") from error
    except Exception as error:  # damaged files make the readers of their formats raise many kinds
        raise InputFileError(f"{path}: cannot be read: {type(error).__name__}: {str(error)[:300]}") from error
    if not found:
        raise InputFileError(f"{path}: no spectrum in it")
    return [given.apply(raw, number, path.name) for number, raw in enumerate(found, 1)]


def _content(path: Path) -> bytes:
    if path.stat().st_size > MAX_FILE_BYTES:
        raise UnusableSpectrumError(f"more than {MAX_FILE_BYTES} bytes")
    data = path.read_bytes()
    if data[:2] != _GZIP:
        return data
    inflater = zlib.decompressobj(16 + zlib.MAX_WBITS)
    data = inflater.decompress(data, MAX_FILE_BYTES)
    if not inflater.eof:
        raise UnusableSpectrumError(f"cut short, or more than {MAX_FILE_BYTES} bytes when decompressed")
    return data


def _read(data: bytes) -> list[RawSpectrum]:
    if data.startswith(b"SIMPLE  ="):
        return read_fits(data)
    if data.startswith(CONTAINER_MAGIC):
        return message.read_raw(data)
    if data.startswith(b"PAR1"):
        return list(tables.spectra(tables.read_parquet(data), "Parquet"))
    start = data[:2000].lstrip()
    if start.startswith(b"<") and b"VOTABLE" in start.upper():
        return list(tables.spectra(tables.read_votable(data), "VOTable"))
    return list(tables.spectra(tables.read_text(data), "text"))
