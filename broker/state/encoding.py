"""The bytes in which objects, spectra and catalogue values are kept.

Every value starts with a version byte and a kind byte. Columns follow one after another in little-endian
order, so that reading is a view on the bytes and no copy. A detection takes 22 bytes (8 + 4 + 4 + 4 + 1 + 1).
Compression was tried and left out: it saves a third and costs more time than the rest of the merge.

Version 1 had of the latest alert its position and time only. It is read as well, and written again in the
present form when the object's next alert comes, or by ``trifid state migrate``.
"""

from __future__ import annotations

import struct
from typing import Final

import numpy as np
from numpy.typing import NDArray

from broker.assemble.metadata import METADATA_FEATURES
from broker.errors import TrifidError
from broker.records import BAND_CODE, BANDS, Alert, LightCurve, SourceMetadata, Spectrum

VERSION: Final = 2
_HEADER: Final = struct.Struct("<BcI")  # version, kind, number of points
_LATEST_1: Final = struct.Struct("<ddd")  # ra, dec, mjd
_REVISION: Final = struct.Struct("<I")
_LATEST: Final = struct.Struct("<dddqqffBBB")
"""Of the latest alert: ra, dec, mjd, alert id, source id, real/bogus, star score, band, whether it is of a moving
object, and how many catalogue values of its packet follow."""
_PACKET_VALUE: Final = struct.Struct("<Bf")  # index into METADATA_FEATURES, value
_NO_BAND: Final = 255
_COLUMNS: Final = (
    ("mjd", "<f8"), ("flux", "<f4"), ("flux_error", "<f4"), ("reference_flux", "<f4"), ("band", "u1"), ("kind", "u1"),
)  # fmt: skip
_POINT_BYTES: Final = sum(np.dtype(dtype).itemsize for _, dtype in _COLUMNS)


class StateError(TrifidError):
    """Stored bytes that this version cannot read."""


STAMP_BYTES: Final = _HEADER.size + _REVISION.size
"""So many bytes at the head of a stored object tell whether another worker has written it meanwhile."""


def encode_object(curve: LightCurve, latest: Alert, before: bytes | None = None) -> bytes:
    """A light curve and the object's latest alert, without that alert's own light curve.

    ``before`` is what was stored; it is returned where nothing has changed, and otherwise decides the revision.
    """
    revision = _REVISION.unpack_from(before, _HEADER.size)[0] if before and is_current(before) else 0
    value = _encode(curve, latest, revision)
    return value if value == before else _encode(curve, latest, (revision + 1) % 2**32)


def _encode(curve: LightCurve, latest: Alert, revision: int) -> bytes:
    values = [] if latest.metadata is None else latest.metadata.values.tolist()
    known = [(index, value) for index, value in enumerate(values) if value == value]
    return b"".join(
        [
            _HEADER.pack(VERSION, b"L", len(curve)),
            _REVISION.pack(revision),
            _LATEST.pack(
                latest.ra, latest.dec, latest.mjd, latest.alert_id, latest.source_id,
                _number(latest.real_bogus), _number(latest.star_score),
                BAND_CODE.get(latest.band, _NO_BAND), latest.solar_system, len(known),
            ),
            *(_PACKET_VALUE.pack(index, value) for index, value in known),
            *(np.ascontiguousarray(getattr(curve, name), dtype).tobytes() for name, dtype in _COLUMNS),
        ]
    )  # fmt: skip


def decode_object(data: bytes, survey: str, object_id: str) -> tuple[LightCurve, Alert]:
    """The inverse of ``encode_object``, of any version; raises StateError for bytes of another form.

    The alert ids of a value of version 1 are 0.
    """
    version, count = _read_header(data, b"L")
    start = _HEADER.size
    try:
        if version == 1:
            ra, dec, mjd = _LATEST_1.unpack_from(data, start)
            start += _LATEST_1.size
            alert_id = source_id = known = 0
            real_bogus = star_score = float("nan")
            band, solar_system = _NO_BAND, False
        else:
            start += _REVISION.size
            ra, dec, mjd, alert_id, source_id, real_bogus, star_score, band, solar_system, known = _LATEST.unpack_from(
                data, start
            )
            start += _LATEST.size
        metadata = _packet_values(data, start, known)
    except (struct.error, IndexError) as error:
        raise StateError(f"object of {count} points in {len(data)} bytes: {error}") from error
    start += known * _PACKET_VALUE.size
    if len(data) != start + count * _POINT_BYTES:
        raise StateError(f"light curve of {count} points in {len(data)} bytes")
    columns = []
    for _, dtype in _COLUMNS:
        columns.append(np.frombuffer(data, dtype, count, start))
        start += count * np.dtype(dtype).itemsize
    latest = Alert(
        survey=survey,
        alert_id=alert_id,
        source_id=source_id,
        object_id=object_id,
        ra=ra,
        dec=dec,
        mjd=mjd,
        band=BANDS[band] if band < len(BANDS) else "",
        light_curve=LightCurve.empty(),
        schema_version="",
        metadata=metadata,
        real_bogus=real_bogus if real_bogus == real_bogus else None,
        solar_system=bool(solar_system),
        star_score=star_score if star_score == star_score else None,
    )
    return LightCurve(*columns), latest


def is_current(data: bytes) -> bool:
    """Whether a stored object is of the present version."""
    return len(data) > STAMP_BYTES and data[0] == VERSION


def encode_spectrum(spectrum: Spectrum) -> bytes:
    """A spectrum: wavelength, flux and error."""
    wavelength = np.asarray(spectrum.wavelength, "<f8")
    return b"".join(
        [_HEADER.pack(VERSION, b"S", len(wavelength)), wavelength.tobytes(),
         np.asarray(spectrum.flux, "<f4").tobytes(), np.asarray(spectrum.flux_error, "<f4").tobytes()]
    )  # fmt: skip


def decode_spectrum(data: bytes) -> Spectrum:
    """The inverse of ``encode_spectrum``; raises StateError for bytes of another form."""
    _, count = _read_header(data, b"S")
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
    _, count = _read_header(data, b"M")
    if len(data) != _HEADER.size + 4 * count:
        raise StateError(f"{count} catalogue values in {len(data)} bytes")
    values: NDArray[np.float32] = np.frombuffer(data, "<f4", count, _HEADER.size)
    return SourceMetadata(values)


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _packet_values(data: bytes, start: int, known: int) -> SourceMetadata | None:
    if not known:
        return None
    values = np.full(len(METADATA_FEATURES), np.nan, np.float32)
    for number in range(known):
        index, value = _PACKET_VALUE.unpack_from(data, start + number * _PACKET_VALUE.size)
        values[index] = value
    return SourceMetadata(values)


def _read_header(data: bytes, kind: bytes) -> tuple[int, int]:
    """Version and count; spectra and catalogue values are the same in both versions."""
    if len(data) < _HEADER.size:
        raise StateError(f"{len(data)} bytes are too few for a stored value")
    version, found, count = _HEADER.unpack_from(data)
    if not 1 <= version <= VERSION:
        raise StateError(f"stored value has version {version}, this program reads versions 1 to {VERSION}")
    if found != kind:
        raise StateError(f"stored value is of kind {found!r}, not {kind!r}")
    return int(version), int(count)
