"""The bytes in which light curves, spectra and metadata are kept.

Every value starts with a version byte and a kind byte. Columns follow one after another in little-endian
order, so that reading is a view on the bytes and no copy. A detection takes 22 bytes (8 + 4 + 4 + 4 + 1 + 1).
Compression was tried and left out: it saves a third and costs more time than the rest of the merge.
"""

from __future__ import annotations

import struct
from typing import Final

import numpy as np
from numpy.typing import NDArray

from broker.errors import TrifidError
from broker.records import LightCurve, SourceMetadata, Spectrum

VERSION: Final = 1
_HEADER: Final = struct.Struct("<BcI")  # version, kind, number of points
_POSITION: Final = struct.Struct("<ddd")  # ra, dec, and the time of the detection they are from
_COLUMNS: Final = (
    ("mjd", "<f8"), ("flux", "<f4"), ("flux_error", "<f4"), ("reference_flux", "<f4"), ("band", "u1"), ("kind", "u1"),
)  # fmt: skip
_POINT_BYTES: Final = sum(np.dtype(dtype).itemsize for _, dtype in _COLUMNS)


class StateError(TrifidError):
    """Stored bytes that this version cannot read."""


def encode_light_curve(curve: LightCurve, ra: float, dec: float, position_mjd: float) -> bytes:
    """A light curve and the object's latest position (degrees, and MJD of the detection it is from)."""
    columns = [np.ascontiguousarray(getattr(curve, name), dtype).tobytes() for name, dtype in _COLUMNS]
    header = _HEADER.pack(VERSION, b"L", len(curve))
    return b"".join([header, _POSITION.pack(ra, dec, position_mjd), *columns])


def decode_light_curve(data: bytes) -> tuple[LightCurve, float, float, float]:
    """Light curve, ra, dec and the position's MJD; raises StateError for bytes of another form."""
    count = _read_header(data, b"L")
    start = _HEADER.size + _POSITION.size
    if len(data) != start + count * _POINT_BYTES:
        raise StateError(f"light curve of {count} points in {len(data)} bytes")
    ra, dec, mjd = _POSITION.unpack_from(data, _HEADER.size)
    columns = []
    for _, dtype in _COLUMNS:
        columns.append(np.frombuffer(data, dtype, count, start))
        start += count * np.dtype(dtype).itemsize
    return LightCurve(*columns), ra, dec, mjd


def encode_spectrum(spectrum: Spectrum) -> bytes:
    """A spectrum: wavelength, flux and error."""
    wavelength = np.asarray(spectrum.wavelength, "<f8")
    return b"".join(
        [_HEADER.pack(VERSION, b"S", len(wavelength)), wavelength.tobytes(),
         np.asarray(spectrum.flux, "<f4").tobytes(), np.asarray(spectrum.flux_error, "<f4").tobytes()]
    )  # fmt: skip


def decode_spectrum(data: bytes) -> Spectrum:
    """The inverse of ``encode_spectrum``; raises StateError for bytes of another form."""
    count = _read_header(data, b"S")
    if len(data) != _HEADER.size + 16 * count:
        raise StateError(f"spectrum of {count} pixels in {len(data)} bytes")
    flux_at = _HEADER.size + 8 * count
    return Spectrum(
        np.frombuffer(data, "<f8", count, _HEADER.size),
        np.frombuffer(data, "<f4", count, flux_at),
        np.frombuffer(data, "<f4", count, flux_at + 4 * count),
    )


def encode_metadata(metadata: SourceMetadata) -> bytes:
    """Catalogue values."""
    values = np.asarray(metadata.values, "<f4")
    return _HEADER.pack(VERSION, b"M", len(values)) + values.tobytes()


def decode_metadata(data: bytes) -> SourceMetadata:
    """The inverse of ``encode_metadata``; raises StateError for bytes of another form."""
    count = _read_header(data, b"M")
    if len(data) != _HEADER.size + 4 * count:
        raise StateError(f"{count} catalogue values in {len(data)} bytes")
    values: NDArray[np.float32] = np.frombuffer(data, "<f4", count, _HEADER.size)
    return SourceMetadata(values)


def _read_header(data: bytes, kind: bytes) -> int:
    if len(data) < _HEADER.size:
        raise StateError(f"{len(data)} bytes are too few for a stored value")
    version, found, count = _HEADER.unpack_from(data)
    if version != VERSION:
        raise StateError(f"stored value has version {version}, this program reads version {VERSION}")
    if found != kind:
        raise StateError(f"stored value is of kind {found!r}, not {kind!r}")
    return int(count)
