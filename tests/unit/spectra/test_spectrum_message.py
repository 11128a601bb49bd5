from __future__ import annotations

import io
import json
from typing import Any

import fastavro
import numpy as np
import pytest

from broker.assemble.spectrum import assemble_spectra
from broker.avro.container import container_message
from broker.errors import DecodeError
from broker.records import ObservedSpectrum, Spectrum
from broker.spectra.message import SCHEMA_TEXT, read, write
from broker.spectra.normalise import air_to_vacuum
from tests.unit.spectra.test_spectrum_normalise import same


def observed(**others: Any) -> ObservedSpectrum:
    wavelength = np.arange(3800.0, 9050.0, 5.0)
    flux = (100 * (1 + 0.2 * np.sin(wavelength / 300))).astype(np.float32)
    error = np.full(len(wavelength), 2, np.float32)
    flux[5], error[5] = 0, np.inf
    fields = {
        "spectrum_id": "x:1",
        "ra": 10.0,
        "dec": -5.0,
        "mjd": 59000.5,
        "spectrum": Spectrum(wavelength, flux, error),
    }
    return ObservedSpectrum(**(fields | others))


def record(**others: Any) -> dict[str, Any]:
    given = observed()
    fields = {
        "spectrumId": "x:1", "ra": 10.0, "dec": -5.0, "wavelength": given.spectrum.wavelength.tolist(),
        "flux": given.spectrum.flux.tolist(), "fluxError": given.spectrum.flux_error.tolist(),
    }  # fmt: skip
    return fields | others


def container(*records: dict[str, Any], schema: Any = None, codec: str = "null") -> bytes:
    out = io.BytesIO()
    fastavro.writer(out, fastavro.parse_schema(schema or json.loads(SCHEMA_TEXT)), records, codec=codec)
    return out.getvalue()


@pytest.mark.parametrize("others", [{}, {"mjd": float("nan")}, {"survey": "ztf", "object_id": "ZTF18abc"}])
def test_what_is_written_is_read(others: dict[str, Any]) -> None:
    given = observed(**others)
    [found] = read(write(given))
    assert same(found, given)
    assert assemble_spectra([found.spectrum]).present[0]


def test_another_program_can_write_them_with_the_schema_alone() -> None:
    [found] = read(container(record()))
    assert same(found, observed(mjd=float("nan")))
    assert [s.spectrum_id for s in read(container(record(), record(spectrumId="x:2")))] == ["x:1", "x:2"]
    [found] = read(container(record(fluxError=None)))
    assert 0 < found.spectrum.flux_error[0] < 2


def test_all_fields_are_documented() -> None:
    schema = json.loads(SCHEMA_TEXT)
    assert (schema["name"], schema["namespace"]) == ("spectrum", "trifid")
    assert all(f["doc"] for f in schema["fields"])


def test_the_reader_converts() -> None:
    s = observed().spectrum
    nm = observed(spectrum=Spectrum(s.wavelength / 10, s.flux, s.flux_error))
    payload = write(
        nm, medium="air", wavelength_unit="nm", flux_unit="Jy", redshift=1e-3, instrument="X", resolution=900
    )
    [found] = read(payload)
    vacuum = air_to_vacuum(s.wavelength)
    np.testing.assert_allclose(found.spectrum.wavelength, vacuum / 1.001, rtol=1e-12)
    ratio = found.spectrum.flux[6:] / s.flux[6:] * vacuum[6:] ** 2
    np.testing.assert_allclose(ratio / ratio[0], 1, rtol=1e-5)


WAVELENGTH = observed().spectrum.wavelength


@pytest.mark.parametrize(
    ("others", "reason"),
    [
        ({"flux": [1.0, 2.0]}, "flux has 2 pixels, wavelength 1050"),
        ({"fluxError": [1.0]}, "fluxError has 1 pixels"),
        ({"wavelength": [4000.0] * 3, "flux": [1.0] * 3, "fluxError": None}, "do not increase"),
        ({"wavelength": WAVELENGTH[::-1].tolist()}, "do not increase"),
        ({"wavelength": [float("nan"), *WAVELENGTH[1:].tolist()]}, "do not increase"),
        ({"wavelength": [4000.0, 4001.0], "flux": [1.0, 2.0], "fluxError": None}, "2 pixels"),
        ({"wavelength": np.linspace(3800, 9000, 100_001).tolist(), "flux": [1.0] * 100_001, "fluxError": None},
         "100001 pixels"),
        ({"wavelength": (WAVELENGTH + 6000).tolist()}, "the model needs 10%"),
        ({"ra": float("nan")}, "position"),
        ({"dec": 100.0}, "position"),
        ({"mjd": 2.4e6}, "no MJD"),
        ({"wavelengthMedium": "water"}, "'water', not vacuum or air"),
        ({"wavelengthUnit": "K"}, "unit"),
        ({"fluxUnit": "K"}, "unit"),
        ({"redshift": float("inf")}, "redshift"),
        ({"survey": "ztf"}, "both or neither"),
        ({"spectrumId": ""}, "id"),
    ],
)  # fmt: skip
def test_impossible_spectra_are_refused_with_the_reason(others: dict[str, Any], reason: str) -> None:
    with pytest.raises(DecodeError, match=reason):
        read(container(record(**others)))


def test_other_bytes_are_refused() -> None:
    for payload in (b"", b"Obj\x01", b"{}", bytes(100), write(observed())[:-20]):
        with pytest.raises(DecodeError):
            read(payload)
    with pytest.raises(DecodeError, match="without a spectrum"):
        read(container())
    with pytest.raises(DecodeError, match="not compressed"):
        read(container(record(), codec="deflate"))
    with pytest.raises(DecodeError, match="allowed"):
        read(bytes(16_000_001))
    small = record(wavelength=[1.0, 2.0], flux=[1.0, 2.0], fluxError=None)
    with pytest.raises(DecodeError, match="more than 1000"):
        read(container(*[small] * 1001))


def test_few_bytes_cannot_become_many() -> None:
    bomb: dict[str, Any] = json.loads(SCHEMA_TEXT)
    bomb["fields"].append({"name": "extra", "type": {"type": "array", "items": "null"}})
    with pytest.raises(DecodeError, match="no spectrum has"):
        read(container(record(extra=[None] * 1000), schema=bomb))
    payload = write(observed())
    claim = bytes([0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x40])  # an array of 2^54 items
    start = payload.index(WAVELENGTH[0].tobytes())
    with pytest.raises(DecodeError):
        read(payload[: start - 2] + claim + payload[start:])
    for depth in (900, 4000):
        deep = '{"type":"array","items":' * depth + '"string"' + "}" * depth
        schema = f'{{"type":"record","name":"spectrum","fields":[{{"name":"spectrumId","type":{deep}}}]}}'
        with pytest.raises(DecodeError):
            read(container_message(schema.encode(), bytes(100)))


def test_damaged_messages_never_do_anything_else_than_fail() -> None:
    rng = np.random.default_rng(0)
    whole = write(observed())
    header = len(whole) - len(WAVELENGTH) * 16
    refused = 0
    for number in range(2000):
        data = bytearray(whole)
        for _ in range(rng.integers(1, 5)):
            data[rng.integers(0, header if number % 2 else len(data))] = rng.integers(0, 256)
        if number % 5 == 0:
            del data[rng.integers(0, len(data)) :]
        elif number % 7 == 0:
            place = rng.integers(0, len(data))
            data[place:place] = rng.bytes(rng.integers(1, 9))
        try:
            read(bytes(data))
        except DecodeError:
            refused += 1
    assert refused > 1000
