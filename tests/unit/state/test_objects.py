"""Counterparts in other surveys, spectra and catalogue values join an object by its place."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from broker import sky
from broker.records import (
    BAND_CODE,
    METADATA_FEATURES,
    Alert,
    Catalogued,
    KnownObject,
    LightCurve,
    ObservedSpectrum,
    PhotometryKind,
    SourceMetadata,
    Spectrum,
)
from broker.state.memory import MemoryStore
from broker.state.objects import Limits
from broker.state.places import StoredPlace
from broker.times import JULIAN_YEAR

RNG = np.random.default_rng(20261124)
SPECTRUM = Spectrum(np.arange(3850.0, 9000.0, 2.0), *np.ones((2, 2575), np.float32))


def alert(
    survey: str, name: str, ra: float, dec: float, mjd: float = 61000.0, band: str = "g", **changes: object
) -> Alert:
    """An alert of three points in one band, one a day."""
    ones = np.ones(3, np.float32)
    curve = LightCurve(
        mjd - np.array([2.0, 1.0, 0.0]), ones, ones, ones,
        np.full(3, BAND_CODE[f"{survey}:{band}"], np.uint8), np.full(3, PhotometryKind.DETECTION, np.uint8),
    )  # fmt: skip
    return Alert(survey, 1, 1, name, ra, dec, mjd, f"{survey}:{band}", curve, "", **changes)  # type: ignore[arg-type]


def offset(ra: float, dec: float, arcsec: float, bearing: float) -> tuple[float, float]:
    east, north = arcsec * np.sin(np.radians(bearing)), arcsec * np.cos(np.radians(bearing))
    moved = sky.move(*(np.array([v]) for v in (ra, dec, 1000 * east, 1000 * north, 1.0)))
    return float(moved[0][0]), float(moved[1][0])


@pytest.mark.parametrize(
    ("ra", "dec"), [(10.0, 20.0), (359.99999, 0.0), (0.00001, -0.00001), (123.0, 89.9999), (45.0, 41.8103)]
)
def test_two_surveys_see_one_object(ra: float, dec: float) -> None:
    for bearing in range(0, 360, 30):
        store = MemoryStore()
        store.update([alert("ztf", "ZTF18a", ra, dec)])
        near, far = offset(ra, dec, 1.4, bearing), offset(ra, dec, 1.6, bearing)
        same, other = store.update([alert("lsst", "1", *near), alert("lsst", "2", *far)])
        assert same.associated == ("ztf:ZTF18a",)
        assert len(same.light_curve) == 6
        assert set(same.light_curve.band.tolist()) == {BAND_CODE["ztf:g"], BAND_CODE["lsst:g"]}
        assert other.associated == ()
        assert len(other.light_curve) == 3
        (back,) = store.update([alert("ztf", "ZTF18a", ra, dec, mjd=61001.0)])
        assert back.associated == ("lsst:1",)


def test_the_nearest_of_each_other_survey_is_taken_and_none_of_the_own() -> None:
    store = MemoryStore()
    store.update([alert("lsst", "far", 10.0, 1.2 / 3600), alert("lsst", "near", 10.0, 0.3 / 3600)])
    store.update([alert("ztf", "twin", 10.0, 0.1 / 3600)])
    (state,) = store.update([alert("ztf", "ZTF18a", 10.0, 0.0)])
    assert state.associated == ("lsst:near",)
    never = MemoryStore(Limits(association_radius=0.0))
    assert never.update([alert("ztf", "a", 1, 1), alert("lsst", "b", 1, 1)])[1].associated == ()


def once(body: Alert) -> Alert:
    """With its own detection alone, and forced photometry of other nights, as packets have it of any place."""
    kind = np.array([PhotometryKind.FORCED, PhotometryKind.LIMIT, PhotometryKind.DETECTION], np.uint8)
    return replace(body, light_curve=replace(body.light_curve, kind=kind))


def test_moving_bodies_have_no_counterparts() -> None:
    store = MemoryStore()
    store.update([once(alert("ztf", "ZTF18a", 10.0, 0.0, solar_system=True)), alert("ztf", "ZTF18b", 10.0, 0.0)])
    body, state = store.update([alert("lsst", "sso:7", 10.0, 0.0), alert("lsst", "8", 10.0, 0.0)])
    assert body.associated == ()
    assert state.associated == ("ztf:ZTF18b",)


KNOWN = KnownObject("vsx", "AB Xyz", "M", 300.0, 0.1, "M")


def values_of_a_star() -> SourceMetadata:
    values = np.full(len(METADATA_FEATURES), np.nan, np.float32)
    values[METADATA_FEATURES.index("phot_g_mean_mag")] = 15.0
    return SourceMetadata(values)


@pytest.mark.parametrize(
    ("passed_by", "has_place"),
    [
        # Earlier nights in the packet, as the survey says, or as is remembered.
        (alert("ztf", "ZTF18a", 10.0, 0.0, solar_system=True), True),
        (once(alert("ztf", "ZTF18a", 10.0, 0.0, solar_system=True, first_detected=59000.0)), True),
        (once(alert("ztf", "known", 10.0, 0.0, solar_system=True)), True),
        (once(alert("ztf", "ZTF18a", 10.0, 0.0, solar_system=True)), False),
        (once(alert("ztf", "ZTF18a", 10.0, 0.0, solar_system=True, first_detected=60999.8)), False),
        (alert("lsst", "sso:7", 10.0, 0.0, solar_system=True, first_detected=59000.0), False),
    ],
)
def test_a_star_that_a_body_passes_by_keeps_what_it_has(passed_by: Alert, has_place: bool) -> None:
    store = MemoryStore()
    other = "lsst" if passed_by.survey == "ztf" else "ztf"
    store.update([alert(other, "counterpart", 10.0, 0.0), alert("ztf", "known", 10.0, 0.0, mjd=60000.0)])
    store.put_observed([ObservedSpectrum("s", 10.0, 0.0, 60000.0, SPECTRUM)])
    objects = store._objects
    (state,) = objects.merge([passed_by], [Catalogued(values_of_a_star(), (KNOWN,))])
    assert (state.spectrum is not None, state.metadata is not None) == (has_place, has_place)
    assert bool(state.associated) == has_place
    assert state.known_as == ((KNOWN,) if has_place else ())
    name = (passed_by.survey, passed_by.object_id)
    assert (objects.places.place(name) is not None) == has_place


def test_the_place_does_not_depend_on_which_alert_came_first() -> None:
    star = alert("ztf", "ZTF18a", 10.0, 0.0, mjd=60000.0)
    passed_by = once(alert("ztf", "ZTF18a", 10.0, 0.0001, solar_system=True))
    places = []
    for order in ([star, passed_by], [passed_by, star]):
        store = MemoryStore()
        for one in order:
            store.update([one])
        places.append(store._objects.places.place(("ztf", "ZTF18a")))
    assert places[0] == places[1] == StoredPlace(10.0, 0.0001, 61000.0)


def test_a_fast_star_is_found_where_it_has_gone() -> None:
    values = np.full(len(METADATA_FEATURES), np.nan, np.float32)
    values[METADATA_FEATURES.index("pmra")] = -801.6
    values[METADATA_FEATURES.index("pmdec")] = 10362.4
    barnard = SourceMetadata(values)
    start, years = (269.452, 4.693), 0.9
    store = MemoryStore()
    store.update([alert("ztf", "barnard", *start, mjd=60000.0, metadata=barnard)])
    there = sky.move(*(np.array([v]) for v in (*start, -801.6, 10362.4, years)))
    later = 60000.0 + years * JULIAN_YEAR
    (state,) = store.update([alert("lsst", "1", float(there[0][0]), float(there[1][0]), mjd=later)])
    assert state.associated == ("ztf:barnard",)
    (left,) = store.update([alert("lsst", "2", *start, mjd=later)])
    assert left.associated == ()


def test_a_place_moves_as_the_sky_says() -> None:
    place = StoredPlace(200.0, -45.0, 58000.0, 300.0, -2000.0)
    ra, dec = sky.move(*(np.array([v]) for v in (200.0, -45.0, 300.0, -2000.0, 10.0)))
    assert place.distance(float(ra[0]), float(dec[0]), 58000.0 + 3652.5) < 1e-3
    assert StoredPlace.unpack(place.pack()) == place
    assert StoredPlace(1.0, 1.0, float("nan")).distance(1.0, 1.0, 60000.0) == 0.0


def test_a_spectrum_joins_what_is_at_its_place_before_or_after() -> None:
    store = MemoryStore()
    store.update([alert("ztf", "ZTF18a", 10.0, 0.0), alert("lsst", "7", 10.0, 0.2 / 3600)])
    spectra = [
        ObservedSpectrum("a", 10.0, 1.0 / 3600, 59000.0, SPECTRUM),
        ObservedSpectrum("b", 50.0, 50.0, float("nan"), SPECTRUM),
        ObservedSpectrum("c", 0.0, 0.0, 59000.0, SPECTRUM, "ztf", "ZTF18a"),
    ]
    store.put_observed(spectra)
    at_place, nobody, named = store.objects_of(spectra)
    assert {(a.survey, a.object_id) for a, _ in at_place} == {("ztf", "ZTF18a"), ("lsst", "7")}
    assert nobody == []
    assert [(a.object_id, a.alert_id) for a, _ in named] == [("ZTF18a", 1)]
    assert all(state.spectrum is not None and len(state.light_curve) == 6 for _, state in at_place)
    (later,) = store.update([alert("ztf", "ZTF19b", 50.0, 50.0 + 1.9 / 3600)])
    assert later.spectrum is not None
    (beyond,) = store.update([alert("ztf", "ZTF19c", 50.0, 50.0 + 2.1 / 3600)])
    assert beyond.spectrum is None


def test_the_latest_spectrum_is_used() -> None:
    store = MemoryStore()
    for number, mjd in enumerate((59000.0, 60000.0, float("nan"), 59500.0)):
        flux = np.full(2575, number, np.float32)
        spectrum = Spectrum(SPECTRUM.wavelength, flux, SPECTRUM.flux_error)
        store.put_observed([ObservedSpectrum(str(number), 10.0, 0.0, mjd, spectrum)])
    (state,) = store.update([alert("ztf", "ZTF18a", 10.0, 0.0)])
    assert state.spectrum is not None
    assert state.spectrum.flux[0] == 1


def test_limits_go_first_where_an_object_has_too_many_points() -> None:
    store = MemoryStore(Limits(max_points=4))
    curve = LightCurve(
        np.arange(6.0) + 60000, np.array([1, np.nan, 1, np.nan, 1, np.nan], np.float32), *np.ones((2, 6), np.float32),
        np.zeros(6, np.uint8), np.array([0, 2, 0, 2, 0, 2], np.uint8),
    )  # fmt: skip
    packet = Alert("ztf", 1, 1, "a", 1.0, 1.0, 60005.0, "ztf:g", curve, "")
    (state,) = store.update([packet])
    assert state.light_curve.mjd.tolist() == [60000.0, 60002.0, 60004.0, 60005.0]
    (state,) = store.update([alert("ztf", "a", 1.0, 1.0, mjd=60010.0)])
    assert state.light_curve.mjd.tolist() == [60004.0, 60008.0, 60009.0, 60010.0]
