"""The bytes in which objects, spectra and catalogue values are kept.

Every value starts with a version byte and a kind byte. Columns follow one after another in little-endian
order, so that reading is a view on the bytes and no copy. A detection takes 22 bytes (8 + 4 + 4 + 4 + 1 + 1).
Compression was tried and left out: it saves a third and costs more time than the rest of the merge.

The layout of a version never changes; a release reads all versions that any release before it wrote, and leaves those
of later releases alone (docs/state.md). Version 1 had of the latest alert its position and time only. Version 2 was
written without the revision for a while; the length tells. Version 3 is laid out as version 2, but may name columns
of the packet that an earlier release does not know. What is not of the present form is written again in it when
the object's next alert comes, or by ``trifid state migrate``. A change of the layout needs a new version, its reader
here, and values written by the last release in ``tests/data/state``.
"""

from __future__ import annotations

import struct
from typing import Final

import numpy as np

from broker.errors import TrifidError
from broker.records import (
    BAND_CODE,
    BANDS,
    SOURCE_FEATURES,
    Alert,
    KeptSearch,
    LightCurve,
    SourceMetadata,
    Spectrum,
)

VERSION: Final = 3
_HEADER: Final = struct.Struct("<BcI")  # version, kind, number of points
_LATEST_1: Final = struct.Struct("<ddd")  # ra, dec, mjd
_REVISION: Final = struct.Struct("<I")
_LATEST: Final = struct.Struct("<dddqqffBBB")
"""Of the latest alert: ra, dec, mjd, alert id, source id, real/bogus, star score, band, whether it is of a moving
object, and how many catalogue values of its packet follow."""
_PACKET_VALUE: Final = struct.Struct("<Bf")  # index into SOURCE_FEATURES, value
_SEARCH: Final = struct.Struct("<IBIddB")
"""Of a period search: its version, its basis, number of points, first and last MJD, number of checksums."""
_CANDIDATE: Final = struct.Struct("<dd")  # frequency, R^2
_NO_BAND: Final = 255
_COLUMNS: Final = (
    ("mjd", "<f8"), ("flux", "<f4"), ("flux_error", "<f4"), ("reference_flux", "<f4"), ("band", "u1"), ("kind", "u1"),
)  # fmt: skip
_POINT_BYTES: Final = sum(np.dtype(dtype).itemsize for _, dtype in _COLUMNS)


class StateError(TrifidError):
    """Stored bytes that this version cannot read."""


class NewerStateError(StateError):
    """A value that a later release of Trifid has written: not damaged, and not to be overwritten."""


STAMP_BYTES: Final = _HEADER.size + _REVISION.size
"""So many bytes at the head of a stored object tell whether another worker has written it meanwhile."""


def encode_object(curve: LightCurve, latest: Alert, before: bytes | None = None) -> bytes:
    """A light curve and the object's latest alert, without that alert's own light curve.

    ``before`` is what was stored; it is returned where nothing has changed, and otherwise decides the revision.
    """
    revision = _REVISION.unpack_from(before, _HEADER.size)[0] if before and is_current(before) else 0
    value = _encode(curve, latest, revision)
    if value == before:
        return value
    changed = bytearray(value)
    _REVISION.pack_into(changed, _HEADER.size, (revision + 1) % 2**32)
    return bytes(changed)


def _encode(curve: LightCurve, latest: Alert, revision: int) -> bytes:
    values = [] if latest.metadata is None else latest.metadata.values.tolist()
    known = [part for pair in enumerate(values) if pair[1] == pair[1] for part in pair]
    return b"".join(
        [
            _HEADER.pack(VERSION, b"L", len(curve)),
            _REVISION.pack(revision),
            _LATEST.pack(
                latest.ra, latest.dec, latest.mjd, latest.alert_id, latest.source_id,
                _number(latest.real_bogus), _number(latest.star_score),
                BAND_CODE.get(latest.band, _NO_BAND), latest.solar_system, len(known) // 2,
            ),
            struct.pack("<" + "Bf" * (len(known) // 2), *known),
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
            if _has_revision(data):
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


def of_later_release(data: bytes | None) -> str | None:
    """What to say of a stored object that a later release has written; None for any other value."""
    if data is None or len(data) < _HEADER.size or data[1:2] != b"L" or data[0] <= VERSION:
        return None
    return f"a later release of Trifid wrote it, in version {data[0]}; this one reads versions 1 to {VERSION}"


def is_current(data: bytes) -> bool:
    """Whether a stored object is of the present form."""
    return len(data) > STAMP_BYTES and data[0] == VERSION and _has_revision(data)


def _has_revision(data: bytes) -> bool:
    """Whether an object of version 2 has its revision; not so where its length is that of one without.

    The two are never of one length: the revision has 4 bytes, catalogue values have 5 and points 22.
    """
    known_at = _HEADER.size + _LATEST.size - 1
    if len(data) <= known_at:
        return True
    _, _, count = _HEADER.unpack_from(data)
    return len(data) != known_at + 1 + data[known_at] * _PACKET_VALUE.size + int(count) * _POINT_BYTES


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


def encode_search(search: KeptSearch) -> bytes:
    """What is kept of a period search."""
    return b"".join(
        [
            _HEADER.pack(VERSION, b"P", len(search.candidates)),
            _SEARCH.pack(search.search, search.basis, search.points, search.first, search.last, len(search.checksums)),
            np.array(search.checksums, "<u4").tobytes(),
            *(_CANDIDATE.pack(*candidate) for candidate in search.candidates),
        ]
    )


def decode_search(data: bytes) -> KeptSearch:
    """The inverse of ``encode_search``; raises StateError for bytes of another form."""
    _, count = _read_header(data, b"P")
    if len(data) < _HEADER.size + _SEARCH.size:
        raise StateError(f"period search in {len(data)} bytes")
    search, basis, points, first, last, sums = _SEARCH.unpack_from(data, _HEADER.size)
    start = _HEADER.size + _SEARCH.size
    if len(data) != start + 4 * sums + count * _CANDIDATE.size:
        raise StateError(f"period search of {count} candidates and {sums} checksums in {len(data)} bytes")
    checksums = tuple(np.frombuffer(data, "<u4", sums, start).tolist())
    candidates = tuple(_CANDIDATE.iter_unpack(data[start + 4 * sums :]))
    return KeptSearch(search, basis, points, first, last, checksums, candidates)


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _packet_values(data: bytes, start: int, known: int) -> SourceMetadata | None:
    if not known:
        return None
    values = np.full(len(SOURCE_FEATURES), np.nan, np.float32)
    for index, value in _PACKET_VALUE.iter_unpack(data[start : start + known * _PACKET_VALUE.size]):
        values[index] = value
    return SourceMetadata(values)


def _read_header(data: bytes, kind: bytes) -> tuple[int, int]:
    """Version and count; spectra and catalogue values are the same in both versions."""
    if len(data) < _HEADER.size:
        raise StateError(f"{len(data)} bytes are too few for a stored value")
    version, found, count = _HEADER.unpack_from(data)
    if found != kind:
        raise StateError(f"stored value is of kind {found!r}, not {kind!r}")
    if version < 1:
        raise StateError(f"stored value has version {version}, this release reads versions 1 to {VERSION}")
    if version > VERSION:
        raise NewerStateError(
            f"a later release of Trifid wrote it, in version {version}; this one reads versions 1 to {VERSION}"
        )
    return int(version), int(count)
