from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from broker.assemble.spectrum import assemble_spectra
from broker.records import ObservedSpectrum
from broker.spectra.normalise import (
    MAX_PIXELS,
    RawSpectrum,
    UnusableSpectrumError,
    air_to_vacuum,
    summary,
    to_angstrom,
    to_observed,
)

SPEED_OF_LIGHT = 2.99792458e18  # Angstrom / s


def raw(wavelength: np.ndarray | None = None, **others: object) -> RawSpectrum:
    wavelength = np.arange(3800.0, 9050.0, 1.5) if wavelength is None else wavelength
    shape = 100 * (1 + 0.2 * np.sin(wavelength / 300.0))
    fields: dict[str, object] = {
        "wavelength": wavelength, "flux": shape, "error": np.full(len(wavelength), 2.0),
        "ra": 10.0, "dec": -20.0, "mjd": 59000.5, "spectrum_id": "test:1",
    } | others  # fmt: skip
    return RawSpectrum(**fields)  # type: ignore[arg-type]


def same(one: ObservedSpectrum, other: ObservedSpectrum) -> bool:
    arrays = ("wavelength", "flux", "flux_error")
    return all(
        np.array_equal(getattr(one.spectrum, a), getattr(other.spectrum, a))
        and getattr(one.spectrum, a).dtype == getattr(other.spectrum, a).dtype
        for a in arrays
    ) and all(
        getattr(one, f) == getattr(other, f) or (f == "mjd" and one.mjd != one.mjd and other.mjd != other.mjd)
        for f in ("spectrum_id", "ra", "dec", "mjd", "survey", "object_id")
    )


@pytest.mark.parametrize(
    ("air", "vacuum"),
    [
        (5889.950, 5891.583),  # Na D2, D1: NIST Atomic Spectra Database
        (5895.924, 5897.558),
        (6562.79, 6564.60),  # Halpha, Hbeta: https://classic.sdss.org/dr7/products/spectra/vacwavelength.html
        (4861.363, 4862.721),
    ],
)
def test_air_to_vacuum_gives_published_values(air: float, vacuum: float) -> None:
    assert air_to_vacuum(np.array([air]))[0] == pytest.approx(vacuum, abs=0.012)


def test_air_to_vacuum_inverts_the_formula_and_leaves_the_far_ultraviolet() -> None:
    vacuum = np.array([2500.0, 4000.0, 9000.0])
    s2 = (1e4 / vacuum) ** 2
    air = vacuum / (1 + 8.34254e-5 + 2.406147e-2 / (130 - s2) + 1.5998e-4 / (38.9 - s2))
    np.testing.assert_allclose(air_to_vacuum(air), vacuum, rtol=0, atol=1e-8)
    assert air_to_vacuum(np.array([1999.0, np.nan]))[0] == 1999.0


@pytest.mark.parametrize(
    ("unit", "factor"),
    [("nm", 0.1), ("um", 1e-4), ("Angstrom", 1.0), ("A", 1.0), ("Ang", 1.0), ("microns", 1e-4), ("m", 1e-10)],
)
def test_units_of_wavelength(unit: str, factor: float) -> None:
    values = np.array([4000.0, 8000.0])
    np.testing.assert_allclose(to_angstrom(values * factor, unit), values, rtol=1e-12)


def test_frequencies_are_wavelengths_too() -> None:
    plain = raw()
    as_frequency = dataclasses.replace(plain, wavelength=SPEED_OF_LIGHT / plain.wavelength, wavelength_unit="Hz")
    found = to_observed(as_frequency).spectrum
    np.testing.assert_allclose(found.wavelength, plain.wavelength, rtol=1e-12)
    np.testing.assert_array_equal(found.flux, to_observed(plain).spectrum.flux)


@pytest.mark.parametrize(("unit", "power"), [("Jy", 2), ("erg/s/cm^2/Hz", 2), ("mJy / sr", 2), ("ph/s/cm2/A", 1)])
def test_flux_per_frequency_and_photons_become_flux_per_wavelength(unit: str, power: int) -> None:
    plain = raw()
    scale = 1e-27 if "erg" in unit else 1.0
    other = plain.flux * (plain.wavelength / 5000.0) ** power * scale
    found = to_observed(dataclasses.replace(plain, flux=other, error=other / 50, flux_unit=unit)).spectrum
    expected = to_observed(plain).spectrum
    ratio = found.flux / expected.flux
    np.testing.assert_allclose(ratio / ratio[0], 1.0, rtol=1e-5)
    np.testing.assert_allclose(found.flux / found.flux_error, 50.0, rtol=1e-5)


@pytest.mark.parametrize(
    "unit", ["1e-17 erg/s/cm2/A", "W/m2/um", "relative", "counts", "ct/s", "adu", "", "erg/s/cm2/A/arcsec2"]
)
def test_flux_per_wavelength_in_any_unit_stays(unit: str) -> None:
    np.testing.assert_array_equal(to_observed(raw(flux_unit=unit)).spectrum.flux, to_observed(raw()).spectrum.flux)


@pytest.mark.parametrize(
    "unit", ["K", "mag", "mag(AB)", "furlong/fortnight", "m**99999999", "9**9**9 m", "(" * 70, "x" * 500]
)
def test_impossible_units_are_refused(unit: str) -> None:
    with pytest.raises(UnusableSpectrumError, match="unit"):
        to_observed(raw(flux_unit=unit))
    with pytest.raises(UnusableSpectrumError, match="unit"):
        to_observed(raw(wavelength_unit=unit))


def test_a_stellar_redshift_is_taken_out_and_another_is_not() -> None:
    plain = to_observed(raw()).spectrum.wavelength
    np.testing.assert_allclose(to_observed(raw(redshift=1e-3)).spectrum.wavelength, plain / 1.001, rtol=1e-14)
    np.testing.assert_array_equal(to_observed(raw(redshift=1e-3), rest_frame=False).spectrum.wavelength, plain)
    np.testing.assert_array_equal(to_observed(raw(redshift=0.3)).spectrum.wavelength, plain)
    for redshift, word in ((1e-3, "rest"), (0.3, "no star's"), (None, "no redshift known")):
        given = raw(redshift=redshift)
        assert word in summary(given, to_observed(given))["frame"]
    assert summary(raw(redshift=1e-3), to_observed(raw()), rest_frame=False)["frame"].startswith("observed")


def test_pixels_are_sorted_and_repeated_ones_dropped() -> None:
    plain = raw()
    order = np.random.default_rng(1).permutation(len(plain.wavelength))
    order = np.concatenate([order, order[:50]])
    mixed = dataclasses.replace(
        plain,
        wavelength=plain.wavelength[order],
        flux=plain.flux[order],
        error=plain.error[order],  # type: ignore[index]
    )
    # Of two pixels of one wavelength the good one stays, whichever comes first.
    mixed.error[:50] = np.nan  # type: ignore[index]
    assert same(to_observed(mixed), to_observed(plain))


def test_bad_pixels_have_infinite_errors() -> None:
    plain = raw()
    flux, error, bad = plain.flux.copy(), np.full(len(plain.flux), 2.0), np.zeros(len(plain.flux), bool)
    flux[0], flux[1], error[2], error[3], error[4], bad[5] = np.nan, np.inf, 0, -1, np.nan, True
    flux[6] = 1e300
    found = to_observed(raw(flux=flux, error=error, bad=bad)).spectrum
    assert np.isinf(found.flux_error[:7]).all()
    assert np.isfinite(found.flux_error[7:]).all()
    assert np.isfinite(found.flux).all()


def test_the_error_is_estimated_where_there_is_none() -> None:
    rng = np.random.default_rng(0)
    plain = raw()
    noisy = raw(flux=plain.flux + rng.normal(0, 3.0, len(plain.flux)), error=None)
    assert to_observed(noisy).spectrum.flux_error[0] == pytest.approx(3.0, rel=0.05)
    assert to_observed(raw(error=None)).spectrum.flux_error[0] == pytest.approx(0.1, rel=0.1)


def test_gaps_stay_gaps() -> None:
    wavelength = np.arange(3800.0, 9050.0, 1.5)
    wavelength = wavelength[(wavelength < 5600) | (wavelength > 5900)]
    found = to_observed(raw(wavelength))
    inputs = assemble_spectra([found.spectrum])
    grid = 3850.0 + 2.0 * np.arange(2575)
    inside = (grid > 5605) & (grid < 5895)
    assert (inputs.spectra[0, 1, inside] == 1000).all()
    assert (inputs.spectra[0, 1, (grid > 3860) & (grid < 5590)] < 100).all()


@pytest.mark.parametrize(
    "given",
    [
        raw(redshift=2e-4),
        raw(air=True, flux_unit="Jy"),
        raw(
            np.concatenate([np.arange(380.0, 560, 0.15), np.arange(590.0, 900, 0.2)]), wavelength_unit="nm", error=None
        ),
    ],
    ids=["redshift", "air", "gap"],
)
def test_doing_it_twice_changes_nothing(given: RawSpectrum) -> None:
    once = to_observed(given)
    s = once.spectrum
    again = raw(s.wavelength, flux=s.flux.astype(float), error=s.flux_error.astype(float))
    assert same(to_observed(again), once)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"flux": np.ones(3)}, "flux has 3 pixels"),
        ({"error": np.ones(3)}, "error has 3 pixels"),
        ({"wavelength": np.arange(50.0), "flux": np.arange(50.0), "error": None}, "50 pixels"),
        ({"wavelength": np.linspace(3800, 9000, MAX_PIXELS + 1)}, "100001 pixels"),
        ({"ra": np.nan}, "position"),
        ({"dec": 95.0}, "position"),
        ({"ra": 1e9}, "position"),
        ({"mjd": 2459000.5}, "no MJD"),
        ({"redshift": np.nan}, "no redshift"),
        ({"redshift": -2.0}, "no redshift"),
        ({"survey": "ztf"}, "both or neither"),
        ({"spectrum_id": ""}, "no id"),
        ({"spectrum_id": "x" * 300}, "300 characters"),
        ({"wavelength": np.arange(380.0, 905.0, 0.15)}, "is the wavelength unit right"),
        ({"wavelength": np.arange(15000.0, 17000.0, 0.2)}, "the model needs 10%"),
        ({"wavelength": np.arange(3800.0, 9000.0, 25.0)}, "pixels of 25 Angstrom"),
        ({"error": np.zeros(3500)}, "0 good pixels"),
        ({"flux": np.full(3500, 7.0)}, "the same everywhere"),
        ({"wavelength": np.full(3500, np.nan), "error": None}, "0 good pixels"),
    ],
)  # fmt: skip
def test_what_the_model_cannot_use_is_refused_with_the_reason(fields: dict[str, object], reason: str) -> None:
    given = raw(**fields)  # type: ignore[arg-type]
    with pytest.raises(UnusableSpectrumError, match=reason):
        to_observed(given)


def test_right_ascensions_are_brought_to_a_full_circle() -> None:
    assert to_observed(raw(ra=-10.0)).ra == 350.0
    assert to_observed(raw(ra=360.0)).ra == 0.0
