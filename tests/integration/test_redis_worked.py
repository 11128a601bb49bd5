"""Lifetimes, proper motion and spectra in a real Redis, against values worked out by hand or by astropy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import astropy.units as u
import numpy as np
import pytest
import redis
from astropy.coordinates import SkyCoord
from astropy.time import Time

from broker.embedded.redis import RedisServer
from broker.records import METADATA_FEATURES, Alert, ObservedSpectrum, SourceMetadata, Spectrum
from broker.state.encoding import VERSION, decode_spectrum
from broker.state.memory import MemoryStore
from broker.state.objects import Limits
from broker.state.redis import RedisStore
from tests.integration.test_redis_store import point
from tests.redis_keys import key_at, key_of, spectrum_key

DAYS = 2.5
SECONDS = 216_000
"""DAYS, in which Redis counts."""
FLUX = np.array([1.5, -2.5, 3.5, 4.5], np.float32)
ERROR = np.array([0.25, 0.5, 0.75, np.inf], np.float32)
SPECTRUM = Spectrum(np.array([4000.0, 4001.5, 4003.25, 4006.0]), FLUX, ERROR)


@pytest.fixture
def store(server: RedisServer, client: redis.Redis) -> Iterator[RedisStore]:
    with closing(RedisStore(server.url, expiry_days=DAYS)) as store:
        yield store


def lifetimes(client: redis.Redis) -> dict[str, int]:
    """Seconds that each value is kept; -1 for ever."""
    found = {key.decode(): client.ttl(key) for key in client.keys("trifid:*")}
    return {name: seconds for name, seconds in found.items() if ":catalog" not in name}


def is_new(seconds: int) -> bool:
    return SECONDS - 600 < seconds <= SECONDS


def test_what_is_not_seen_again_is_kept_for_days(store: RedisStore, client: redis.Redis) -> None:
    alert = point("ztf", "ZTF18a", 10.0, 20.0, 60000.0)
    store.update([alert])
    (sky,) = [key for key in lifetimes(client) if ":sky:objects:" in key]
    assert is_new(lifetimes(client)[key_of(client, "ZTF18a")])
    assert is_new(lifetimes(client)[sky])
    # The same alert again writes nothing, and renews what it found.
    client.expire(key_of(client, "ZTF18a"), 100)
    store.update([alert])
    assert is_new(lifetimes(client)[key_of(client, "ZTF18a")])
    # A new one renews the place, too.
    client.expire(sky, 100)
    store.update([point("ztf", "ZTF18a", 10.0, 20.0, 60001.0)])
    assert is_new(lifetimes(client)[sky])


@pytest.mark.parametrize("named", [True, False])
def test_spectra_do_not_expire(store: RedisStore, client: redis.Redis, named: bool) -> None:
    observed = ObservedSpectrum("s:1", 10.0, 20.0, 59000.5, SPECTRUM)
    store.put_observed([replace(observed, survey="ztf", object_id="ZTF18a") if named else observed])
    assert set(lifetimes(client).values()) == {-1}


def test_a_damaged_value_is_set_aside_for_days(store: RedisStore, client: redis.Redis) -> None:
    alert = point("ztf", "ZTF18a", 10.0, 20.0, 60000.0)
    client.set(key_at(alert), b"\x63garbage")
    store.update([alert])
    assert is_new(lifetimes(client)[f"{key_at(alert)}:damaged"])


@pytest.mark.parametrize("named", [True, False])
def test_a_stored_spectrum_comes_back_with_its_own_flux(store: RedisStore, client: redis.Redis, named: bool) -> None:
    alert = point("ztf", "ZTF18a", 10.0, 20.0, 60000.0)
    observed = ObservedSpectrum("s:1", 10.0, 20.0, 59000.5, SPECTRUM)
    store.put_observed([replace(observed, survey="ztf", object_id="ZTF18a") if named else observed])
    (state,) = store.update([alert])
    assert state.spectrum is not None
    for name in ("wavelength", "flux", "flux_error"):
        assert getattr(state.spectrum, name).tolist() == getattr(SPECTRUM, name).tolist()
    stored = client.get("trifid:ztf:ZTF18a:sp" if named else spectrum_key(observed))
    assert isinstance(stored, bytes)
    assert decode_spectrum(stored).flux.tolist() == FLUX.tolist()


def moving(dec: float, pmra: float, pmdec: float) -> Alert:
    values = np.full(len(METADATA_FEATURES), np.nan, np.float32)
    values[METADATA_FEATURES.index("pmra")], values[METADATA_FEATURES.index("pmdec")] = pmra, pmdec
    return replace(point("ztf", "ZTF18a", 150.0, dec, 58000.0), metadata=SourceMetadata(values))


@pytest.mark.parametrize(
    ("dec", "pmra", "pmdec"),
    [(70.0, 1500.0, 0.0), (-60.0, -1500.0, 400.0), (0.0, 1500.0, -400.0), (-80.0, 0.0, 1500.0)],
)
def test_a_fast_star_is_where_astropy_moves_it(store: RedisStore, dec: float, pmra: float, pmdec: float) -> None:
    """After ten years some 15 arcsec away; far from the equator its right ascension has changed by more than that."""
    years = 10.0
    there = SkyCoord(
        150.0 * u.deg, dec * u.deg, pm_ra_cosdec=pmra * u.mas / u.yr, pm_dec=pmdec * u.mas / u.yr,
        obstime=Time(58000.0, format="mjd"), distance=10 * u.pc,
    ).apply_space_motion(dt=years * u.yr)  # fmt: skip
    later = 58000.0 + years * 365.25
    star = moving(dec, pmra, pmdec)
    for of in (store, MemoryStore()):
        of.update([star])
        found, off = of.update(
            [
                point("lsst", "1", float(there.ra.deg), float(there.dec.deg), later),
                # 3 arcsec to the north, twice the radius within which two are one.
                point("lsst", "2", float(there.ra.deg), float(there.dec.deg) + 3 / 3600, later),
            ]
        )
        assert found.associated == ("ztf:ZTF18a",)
        assert off.associated == ()


@pytest.mark.parametrize(("arcsec", "found"), [(1.4, True), (1.6, False)])
@pytest.mark.parametrize("dec", [0.0, 75.0])
def test_the_radius_is_in_arcsec_on_the_sky(
    server: RedisServer, client: redis.Redis, arcsec: float, found: bool, dec: float
) -> None:
    """East of the star: a step of right ascension is shorter by cos(dec)."""
    for of in (RedisStore(server.url, Limits(association_radius=1.5)), MemoryStore(Limits(association_radius=1.5))):
        with closing(of):
            of.update([point("ztf", "ZTF18a", 150.0, dec, 60000.0)])
            east = SkyCoord(150.0 * u.deg, dec * u.deg).directional_offset_by(90 * u.deg, arcsec * u.arcsec)
            (state,) = of.update([point("lsst", "1", float(east.ra.deg), float(east.dec.deg), 60001.0)])
            assert (state.associated == ("ztf:ZTF18a",)) is found


@pytest.mark.parametrize("later", ["a", "b"])
def test_an_object_that_a_later_release_wrote_hides_no_other(
    store: RedisStore, client: redis.Redis, later: str
) -> None:
    """Two stars read in one batch, whichever of them Redis names first."""
    ra = {"a": 10.0, "b": 190.0}
    store.update([point("ztf", name, ra[name], 20.0, 60000.0) for name in "ab"])
    value = client.get(key_of(client, later))
    assert isinstance(value, bytes)
    client.set(key_of(client, later), bytes([VERSION + 1]) + value[1:])
    states = store.update([point("lsst", f"at {name}", ra[name], 20.0, 60001.0) for name in "ab"])
    found = {state.object_id: state.associated for state in states}
    assert found == {f"at {name}": () if name == later else (f"ztf:{name}",) for name in "ab"}
