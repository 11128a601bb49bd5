from __future__ import annotations

import struct
from dataclasses import replace

import numpy as np
import pytest

from broker.records import SOURCE_FEATURES, LightCurve, SourceMetadata, Spectrum
from broker.state.encoding import (
    STAMP_BYTES,
    StateError,
    decode_object,
    decode_spectrum,
    encode_object,
    encode_spectrum,
    is_current,
)
from broker.surveys import Decoder
from broker.surveys.simulator import simulate_alerts
from tests.unit.state.test_merge import same

ALERT = Decoder().decode([a.payload for a in simulate_alerts(2, 20, seed=0)][-1])[0]
CURVE = ALERT.light_curve
PACKET_VALUES = SourceMetadata(np.full(len(SOURCE_FEATURES), np.nan, np.float32))
PACKET_VALUES.values[[0, 43]] = 15.5, -0.25


def version_1(curve: LightCurve, ra: float, dec: float, mjd: float) -> bytes:
    """As release 0.1.0 wrote an object."""
    columns = (("mjd", "<f8"), ("flux", "<f4"), ("flux_error", "<f4"), ("reference_flux", "<f4"), ("band", "u1"))
    data = struct.pack("<BcIddd", 1, b"L", len(curve), ra, dec, mjd)
    return data + b"".join(getattr(curve, n).astype(t).tobytes() for n, t in (*columns, ("kind", "u1")))


def test_objects_come_back_exactly() -> None:
    latest = replace(
        ALERT, metadata=PACKET_VALUES, real_bogus=0.75, star_score=None, solar_system=True, alert_id=-(2**63)
    )
    data = encode_object(CURVE, latest)
    curve, again = decode_object(data, ALERT.survey, ALERT.object_id)
    assert same(curve, CURVE)
    assert again.metadata is not None
    np.testing.assert_array_equal(again.metadata.values, PACKET_VALUES.values)
    for name in ("ra", "dec", "mjd", "alert_id", "source_id", "band", "real_bogus", "star_score", "solar_system"):
        assert getattr(again, name) == getattr(latest, name)
    assert len(again.light_curve) == 0
    assert len(data) == 61 + 2 * 5 + 22 * len(CURVE)
    assert is_current(data)


def test_a_change_is_told_by_the_first_bytes_and_nothing_new_changes_nothing() -> None:
    first = encode_object(CURVE, ALERT)
    assert encode_object(CURVE, ALERT, first) == first
    second = encode_object(CURVE, replace(ALERT, ra=1.0), first)
    third = encode_object(CURVE, ALERT, second)
    assert len({value[:STAMP_BYTES] for value in (first, second, third)}) == 3
    assert third[STAMP_BYTES:] == first[STAMP_BYTES:]


def test_an_object_of_version_1_is_read() -> None:
    data = version_1(CURVE, 12.5, -3.25, 59000.5)
    curve, latest = decode_object(data, "ztf", "ZTF18a")
    assert same(curve, CURVE)
    assert (latest.ra, latest.dec, latest.mjd, latest.alert_id) == (12.5, -3.25, 59000.5, 0)
    assert (latest.survey, latest.object_id, latest.real_bogus) == ("ztf", "ZTF18a", None)
    assert not is_current(data)
    assert same(decode_object(encode_object(curve, latest), "ztf", "ZTF18a")[0], CURVE)


def test_spectra_come_back_exactly() -> None:
    flux, error = np.arange(-3, 7, dtype=np.float32), np.full(10, np.inf, np.float32)
    spectrum = Spectrum(np.arange(4000.0, 4010.0), flux, error)
    again = decode_spectrum(encode_spectrum(spectrum))
    for name in ("wavelength", "flux", "flux_error"):
        np.testing.assert_array_equal(getattr(again, name), getattr(spectrum, name))


@pytest.mark.parametrize("change", [lambda b: b[:-1], lambda b: b + b"x", lambda b: b"\x09" + b[1:], lambda b: b[:3]])
def test_bytes_of_another_form_are_refused(change: object) -> None:
    assert callable(change)
    with pytest.raises(StateError):
        decode_object(change(encode_object(CURVE, ALERT)), "ztf", "x")
    with pytest.raises(StateError):
        decode_spectrum(encode_object(CURVE, ALERT))
