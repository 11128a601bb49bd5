"""The bytes of stored values, written out by hand; each column with numbers that no other column has."""

from __future__ import annotations

import struct
from dataclasses import replace

import numpy as np
import pytest

from broker.records import BAND_CODE, SOURCE_FEATURES, Alert, KeptSearch, LightCurve, SourceMetadata, Spectrum
from broker.state.encoding import (
    STAMP_BYTES,
    VERSION,
    NewerStateError,
    StateError,
    decode_object,
    decode_search,
    decode_spectrum,
    encode_object,
    encode_search,
    encode_spectrum,
    is_current,
    of_later_release,
)

SPECTRUM = Spectrum(
    np.array([4000.0, 4001.5, 4003.25]),
    np.array([1.5, -2.5, 3.5], np.float32),
    np.array([0.25, 0.5, np.inf], np.float32),
)
SPECTRUM_BYTES = struct.pack("<BcI3d3f3f", 3, b"S", 3, 4000.0, 4001.5, 4003.25, 1.5, -2.5, 3.5, 0.25, 0.5, float("inf"))
CURVE = LightCurve(
    np.array([59000.5, 59001.25]), np.array([100.5, -200.5], np.float32), np.array([1.5, 2.5], np.float32),
    np.array([1000.5, np.nan], np.float32), np.array([BAND_CODE["ztf:g"], BAND_CODE["lsst:r"]], np.uint8),
    np.array([0, 2], np.uint8),
)  # fmt: skip
VALUES = np.full(len(SOURCE_FEATURES), np.nan, np.float32)
VALUES[[0, 43]] = 15.5, -0.25
ALERT = Alert(
    survey="ztf", alert_id=11, source_id=-12, object_id="ZTF18a", ra=10.5, dec=-20.25, mjd=59001.25, band="ztf:r",
    light_curve=CURVE, schema_version="4.02", metadata=SourceMetadata(VALUES), real_bogus=0.75, solar_system=True,
    star_score=0.5,
)  # fmt: skip


def object_bytes(version: int = 3, revision: int | None = 1, band: int = BAND_CODE["ztf:r"]) -> bytes:
    head = struct.pack("<BcI", version, b"L", 2) + (b"" if revision is None else struct.pack("<I", revision))
    latest = struct.pack("<dddqqffBBB", 10.5, -20.25, 59001.25, 11, -12, 0.75, 0.5, band, 1, 2)
    packet = struct.pack("<BfBf", 0, 15.5, 43, -0.25)
    points = struct.pack("<2d2f2f2f", 59000.5, 59001.25, 100.5, -200.5, 1.5, 2.5, 1000.5, float("nan"))
    return head + latest + packet + points + bytes([BAND_CODE["ztf:g"], BAND_CODE["lsst:r"], 0, 2])


SEARCH = KeptSearch(0xFEDCBA98, 3, 427, 59000.5, 60123.25, (1, 0xFFFFFFFF, 77), ((1.75, 0.875), (0.5, 0.25)))
SEARCH_BYTES = struct.pack(
    "<BcI" "IBIddB" "3I" "4d", 3, b"P", 2, 0xFEDCBA98, 3, 427, 59000.5, 60123.25, 3, 1, 0xFFFFFFFF, 77,
    1.75, 0.875, 0.5, 0.25,
)  # fmt: skip


def test_a_period_search_byte_by_byte() -> None:
    assert encode_search(SEARCH) == SEARCH_BYTES
    assert decode_search(SEARCH_BYTES) == SEARCH
    without = replace(SEARCH, checksums=(), candidates=())
    assert decode_search(encode_search(without)) == without


@pytest.mark.parametrize(
    "value",
    [
        b"",
        SEARCH_BYTES[:20],
        SEARCH_BYTES[:-1],
        SEARCH_BYTES + b"\0",
        b"\x03S" + SEARCH_BYTES[2:],
        b"\0" + SEARCH_BYTES[1:],
    ],
)
def test_bytes_that_are_no_period_search(value: bytes) -> None:
    with pytest.raises(StateError):
        decode_search(value)


def test_a_period_search_of_a_later_release() -> None:
    with pytest.raises(NewerStateError):
        decode_search(b"\x04" + SEARCH_BYTES[1:])


def test_a_spectrum_byte_by_byte() -> None:
    assert encode_spectrum(SPECTRUM) == SPECTRUM_BYTES
    again = decode_spectrum(SPECTRUM_BYTES)
    assert again.wavelength.tolist() == [4000.0, 4001.5, 4003.25]
    assert again.flux.tolist() == [1.5, -2.5, 3.5]
    assert again.flux_error.tolist() == [0.25, 0.5, float("inf")]


def test_an_object_byte_by_byte() -> None:
    assert encode_object(CURVE, ALERT) == object_bytes()
    curve, latest = decode_object(object_bytes(), "ztf", "ZTF18a")
    assert curve.mjd.tolist() == [59000.5, 59001.25]
    assert curve.flux.tolist() == [100.5, -200.5]
    assert curve.flux_error.tolist() == [1.5, 2.5]
    assert curve.reference_flux.tolist()[0] == 1000.5
    assert np.isnan(curve.reference_flux[1])
    assert curve.band.tolist() == [BAND_CODE["ztf:g"], BAND_CODE["lsst:r"]]
    assert curve.kind.tolist() == [0, 2]
    assert latest.metadata is not None
    np.testing.assert_array_equal(latest.metadata.values, VALUES)
    assert _fields(latest) == _fields(ALERT)
    assert len(latest.light_curve) == 0


def _fields(alert: Alert) -> tuple[object, ...]:
    return (
        alert.survey, alert.object_id, alert.alert_id, alert.source_id, alert.ra, alert.dec, alert.mjd, alert.band,
        alert.real_bogus, alert.star_score, alert.solar_system,
    )  # fmt: skip


@pytest.mark.parametrize("revision", [None, 7])
def test_objects_of_version_2_with_a_revision_and_without(revision: int | None) -> None:
    data = object_bytes(2, revision)
    curve, latest = decode_object(data, "ztf", "ZTF18a")
    assert curve.flux.tolist() == [100.5, -200.5]
    assert _fields(latest) == _fields(ALERT)
    assert not is_current(data)


def test_the_revision_counts_on_and_begins_again() -> None:
    changed = replace(ALERT, ra=11.5)
    assert struct.unpack_from("<I", encode_object(CURVE, changed, object_bytes(revision=7)), 6) == (8,)
    assert struct.unpack_from("<I", encode_object(CURVE, changed, object_bytes(revision=2**32 - 1)), 6) == (0,)
    # What an earlier version has says nothing of the revision.
    assert struct.unpack_from("<I", encode_object(CURVE, changed, object_bytes(2, 7)), 6) == (1,)
    assert encode_object(CURVE, ALERT, object_bytes(revision=7)) == object_bytes(revision=7)


def test_a_band_and_scores_that_are_not_known_come_back_as_unknown() -> None:
    unknown = replace(ALERT, band="", real_bogus=None, star_score=None, metadata=None, solar_system=False)
    curve, latest = decode_object(encode_object(CURVE, unknown), "ztf", "ZTF18a")
    assert _fields(latest) == _fields(unknown)
    assert latest.metadata is None
    assert len(curve) == 2
    _, of_no_band = decode_object(object_bytes(band=254), "ztf", "ZTF18a")
    assert of_no_band.band == ""


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (SPECTRUM_BYTES[:5], "5 bytes are too few"),
        (SPECTRUM_BYTES[:-1], "spectrum of 3 pixels in 53 bytes"),
        (b"\x00" + SPECTRUM_BYTES[1:], "version 0, this release reads versions 1 to 3"),
        (SPECTRUM_BYTES[:1] + b"M" + SPECTRUM_BYTES[2:], "of kind b'M', not b'S'"),
    ],
)
def test_why_a_spectrum_cannot_be_read(data: bytes, told: str) -> None:
    with pytest.raises(StateError, match=told) as caught:
        decode_spectrum(data)
    assert not isinstance(caught.value, NewerStateError)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (object_bytes()[:40], "object of 2 points in 40 bytes"),
        (object_bytes()[:-1], "light curve of 2 points in 114 bytes"),
        (object_bytes() + b"\0", "light curve of 2 points in 116 bytes"),
        (object_bytes().replace(struct.pack("<Bf", 43, -0.25), struct.pack("<Bf", 200, -0.25)), "object of 2 points"),
    ],
)
def test_why_an_object_cannot_be_read(data: bytes, told: str) -> None:
    with pytest.raises(StateError, match=told):
        decode_object(data, "ztf", "ZTF18a")


def test_values_of_a_later_release_are_told_from_damaged_ones() -> None:
    later = bytes([VERSION + 1])
    for decode, data in ((decode_spectrum, SPECTRUM_BYTES), (lambda d: decode_object(d, "ztf", "a"), object_bytes())):
        with pytest.raises(NewerStateError, match="in version 4; this one reads versions 1 to 3"):
            decode(later + data[1:])
    assert of_later_release(later + object_bytes()[1:]) is not None
    assert "version 4; this one reads versions 1 to 3" in str(of_later_release(later + object_bytes()[1:]))
    assert of_later_release(later + object_bytes()[1:6]) is not None
    for other in (None, object_bytes(), later + object_bytes()[1:5], later + SPECTRUM_BYTES[1:]):
        assert of_later_release(other) is None


def test_the_first_bytes_of_an_object_end_with_its_revision() -> None:
    assert STAMP_BYTES == 10
    assert is_current(object_bytes())
    assert not is_current(object_bytes()[:STAMP_BYTES])
    assert is_current(object_bytes()[: STAMP_BYTES + 1])
