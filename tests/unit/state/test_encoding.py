from __future__ import annotations

import numpy as np
import pytest

from broker.records import SourceMetadata, Spectrum
from broker.state.encoding import (
    StateError,
    decode_light_curve,
    decode_metadata,
    decode_spectrum,
    encode_light_curve,
    encode_metadata,
    encode_spectrum,
)
from broker.surveys import Decoder
from broker.surveys.simulator import simulate_alerts
from tests.unit.state.test_merge import same

CURVE = Decoder().decode([a.payload for a in simulate_alerts(2, 20, seed=0)][-1])[0].light_curve


def test_light_curves_come_back_exactly() -> None:
    data = encode_light_curve(CURVE, 12.5, -3.25, 59000.5)
    curve, ra, dec, mjd = decode_light_curve(data)
    assert same(curve, CURVE)
    assert (ra, dec, mjd) == (12.5, -3.25, 59000.5)
    assert len(data) == 30 + 22 * len(CURVE)


def test_spectra_and_metadata_come_back_exactly() -> None:
    spectrum = Spectrum(np.arange(4000.0, 4010.0), np.ones(10, np.float32), np.full(10, np.inf, np.float32))
    again = decode_spectrum(encode_spectrum(spectrum))
    np.testing.assert_array_equal(again.wavelength, spectrum.wavelength)
    np.testing.assert_array_equal(again.flux_error, spectrum.flux_error)
    metadata = SourceMetadata(np.array([1, np.nan, 3], np.float32))
    np.testing.assert_array_equal(decode_metadata(encode_metadata(metadata)).values, metadata.values)


@pytest.mark.parametrize("change", [lambda b: b[:-1], lambda b: b + b"x", lambda b: b"\x09" + b[1:], lambda b: b[:3]])
def test_bytes_of_another_form_are_refused(change: object) -> None:
    assert callable(change)
    with pytest.raises(StateError):
        decode_light_curve(change(encode_light_curve(CURVE, 0, 0, 0)))
    with pytest.raises(StateError):
        decode_spectrum(encode_light_curve(CURVE, 0, 0, 0))
