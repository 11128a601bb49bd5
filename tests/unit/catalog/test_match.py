"""Matching against brute force with astropy, on cells that are kept in a dict."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord
from hypothesis import given
from hypothesis import strategies as st

from broker import sky
from broker.catalog.cells import by_cell
from broker.catalog.layout import (
    CatalogError,
    CatalogLayout,
    Entry,
    cell_prefix,
    decode_index,
    encode_index,
    index_key,
    max_order,
    pack,
    unpack,
)
from broker.catalog.match import CatalogReader
from broker.catalog.tables import Chunk
from broker.records import METADATA_FEATURES, SOURCE_FEATURES, SourceMetadata
from broker.sky import Array

G = METADATA_FEATURES.index("phot_g_mean_mag")
MJD_2026 = 51544.5 + 26 * 365.25
GAIA = CatalogLayout(1, 9, ("phot_g_mean_mag", "pmra", "pmdec"), 2016.0, 1.5)
TWOMASS = CatalogLayout(1, 9, ("j_mag", "epoch"), 2000.0, 1.5)


class Redis:
    """The keys of catalogues, and what a store does with them."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.values: dict[str, bytes] = {}

    def load(
        self, name: str, layout: CatalogLayout, ra: Array, dec: Array, epoch: Array | None = None, **values: Array
    ) -> int:
        epoch = np.full(len(ra), np.nan) if epoch is None else epoch
        packed = by_cell(layout, Chunk(ra, dec, epoch, values, len(ra), 0, 0))
        start = cell_prefix("trifid", name, layout.generation)
        ends = np.cumsum(packed.sizes)
        assert ends[-1] == len(packed.rows) == packed.count * layout.row_bytes
        for cell, size, end in zip(packed.cells, packed.sizes, ends, strict=True):
            key = f"{start}{cell}"
            self.values[key] = self.values.get(key, b"") + packed.rows[end - size : end]
        if name not in [e.name for e in self.entries]:
            self.entries.append(Entry(name, layout))
        self.values[index_key("trifid")] = encode_index(self.entries)
        return packed.count

    def mget(self, keys: list[str]) -> list[bytes | None]:
        return [self.values.get(key) for key in keys]

    def match(self, ra: Array, dec: Array, mjd: Array) -> list[SourceMetadata | None]:
        reader = CatalogReader()
        reader.prime(self.values.get(reader.meta_key))
        request = reader.request(ra, dec)
        return [found.metadata for found in reader.match(request, self.mget(request.keys), ra, dec, mjd)]


def magnitudes(found: list[SourceMetadata | None], feature: int = G) -> Array:
    return np.array([np.nan if f is None else f.values[feature] for f in found])


def one(redis: Redis, ra: float, dec: float, mjd: float = MJD_2026) -> SourceMetadata | None:
    (found,) = redis.match(np.array([ra]), np.array([dec]), np.array([mjd]))
    return found


def field(n: int, ra0: float, dec0: float, width: float, seed: int) -> dict[str, Array]:
    """Stars within ``width`` degrees of a point, every tenth of them fast."""
    rng = np.random.default_rng(seed)
    offset = width * np.sqrt(rng.random(n)) * np.exp(2j * np.pi * rng.random(n)) * 3.6e6
    ra, dec = sky.move(np.full(n, ra0), np.full(n, dec0), offset.real, offset.imag, np.ones(n))
    speed = np.where(np.arange(n) % 10, 10.0, 2000.0) * rng.standard_exponential(n)
    angle = rng.uniform(0, 2 * np.pi, n)
    # Each star has a magnitude of its own, by which it is known again.
    return {
        "ra": ra, "dec": dec, "pmra": speed * np.cos(angle), "pmdec": speed * np.sin(angle),
        "phot_g_mean_mag": 5.0 + np.arange(n) / n * 15.0,
    }  # fmt: skip


@pytest.mark.parametrize("order", [3, 7, 11, 13])
@pytest.mark.parametrize(
    ("ra0", "dec0"), [(0.0, 0.0), (123.4, 56.7), (45.0, 41.81), (0.001, 89.99), (200.0, -89.999), (359.999, -45.0)]
)
def test_same_as_brute_force_with_astropy(ra0: float, dec0: float, order: int) -> None:
    layout = CatalogLayout(1, order, GAIA.columns, 2016.0, 1.5)
    stars = field(3000, ra0, dec0, 0.05, seed=order)
    redis = Redis()
    redis.load("gaia", layout, **stars)
    rng = np.random.default_rng(1)
    start = SkyCoord(stars["ra"] * u.deg, stars["dec"] * u.deg)
    ra, dec, mjd, distance = np.empty(400), np.empty(400), np.empty(400), np.empty((400, 3000))
    # Alerts up to 3 arcsec off a star, where astropy has it by then.
    for i in range(400):
        if i % 50 == 0:
            time = rng.uniform(48000, 73000)
            years = 2000.0 + (time - 51544.5) / 365.25 - 2016.0
            moved = start.spherical_offsets_by(stars["pmra"] * years * u.mas, stars["pmdec"] * years * u.mas)
        angle, off = rng.uniform(0, 360) * u.deg, rng.uniform(0, 3) * u.arcsec
        at = moved[rng.integers(len(moved))].directional_offset_by(angle, off)
        ra[i], dec[i], mjd[i] = at.ra.deg, at.dec.deg, time
        distance[i] = at.separation(moved).arcsec
    found = magnitudes(redis.match(ra, dec, mjd))
    nearest = distance.min(axis=1)
    matched = np.isfinite(found)
    assert matched.sum() > 150
    np.testing.assert_array_equal(matched, nearest <= 1.5)
    # The one found is the nearest, or as near to 1 mas.
    star = np.rint((found[matched] - 5.0) / 15.0 * 3000).astype(int)
    np.testing.assert_allclose(distance[matched, star], nearest[matched], atol=2e-3)


def test_barnards_star() -> None:
    # Gaia DR3 4472832130942575872, 2016.0.
    ra, dec, pmra, pmdec = 269.44850252543836, 4.739420051112412, -801.551, 10362.394
    for order in (6, 11, 13):
        redis = Redis()
        layout = CatalogLayout(1, order, GAIA.columns, 2016.0, 1.5)
        star = {"phot_g_mean_mag": 8.19, "pmra": pmra, "pmdec": pmdec}
        redis.load("gaia", layout, np.array([ra]), np.array([dec]), **{n: np.array([v]) for n, v in star.items()})
        for year in (1991.25, 2000.0, 2016.0, 2026.0, 2059.0):
            at = SkyCoord(ra * u.deg, dec * u.deg).spherical_offsets_by(
                pmra * (year - 2016) * u.mas, pmdec * (year - 2016) * u.mas
            )
            assert one(redis, at.ra.deg, at.dec.deg, 51544.5 + (year - 2000) * 365.25) is not None
        assert one(redis, ra, dec) is None  # it is 100 arcsec away by 2026


def test_the_motion_of_one_catalogue_leads_to_the_source_in_another() -> None:
    redis = Redis()
    ra, dec = np.array([150.0]), np.array([20.0])
    pmra, pmdec = np.array([150.0]), np.array([-80.0])
    then = sky.move(ra, dec, pmra, pmdec, np.array([1999.0 - 2016.0]))
    now = sky.move(ra, dec, pmra, pmdec, np.array([10.0]))
    # Loaded first, so its values come first; the motion is Gaia's all the same.
    redis.load("2mass", TWOMASS, *then, epoch=np.array([1999.0]), j_mag=np.array([9.0]))
    found = one(redis, now[0][0], now[1][0])
    assert found is None
    redis.load("gaia", GAIA, ra, dec, phot_g_mean_mag=np.array([10.0]), pmra=pmra, pmdec=pmdec)
    found = one(redis, now[0][0], now[1][0])
    assert found is not None
    known = {name: v for name, v in zip(SOURCE_FEATURES, found.values.tolist(), strict=True) if v == v}
    assert known == {"phot_g_mean_mag": 10.0, "pmra": 150.0, "pmdec": -80.0, "j_mag": 9.0}


def test_the_epoch_of_each_row_counts() -> None:
    redis = Redis()
    pmra, pmdec = np.array([0.0]), np.array([500.0])
    redis.load("gaia", GAIA, np.array([10.0]), np.array([10.0]), phot_g_mean_mag=np.ones(1), pmra=pmra, pmdec=pmdec)
    at = sky.move(np.full(2, 10.0), np.full(2, 10.0), pmra, pmdec, np.array([1997.5, 2001.0]) - 2016.0)
    redis.load("2mass", TWOMASS, *at, epoch=np.array([1997.5, 2001.0]), j_mag=np.array([9.0, 8.0]))
    # Both rows are the star where it was then; without their epochs they would be 1.75 arcsec apart.
    found = one(redis, 10.0, 10.0, 57388.5)
    assert found is not None
    redis = Redis()
    redis.load("gaia", GAIA, np.array([10.0]), np.array([10.0]), phot_g_mean_mag=np.ones(1), pmra=pmra, pmdec=pmdec)
    redis.load("2mass", TWOMASS, *at, epoch=np.array([2001.0, 1997.5]), j_mag=np.array([9.0, 8.0]))
    found = one(redis, 10.0, 10.0, 57388.5)
    assert found is not None
    assert np.isnan(found.values[METADATA_FEATURES.index("j_mag")])


def test_first_loaded_fills_first() -> None:
    redis = Redis()
    at = (np.array([10.0]), np.array([10.0]))
    redis.load("a", CatalogLayout(1, 5, ("ruwe",), 2016.0, 1.0), *at, ruwe=np.array([1.0]))
    redis.load(
        "b", CatalogLayout(1, 8, ("ruwe", "w3_mag"), 2016.0, 1.0), *at, ruwe=np.array([2.0]), w3_mag=np.array([3.0])
    )
    found = one(redis, 10.0, 10.0)
    assert found is not None
    assert found.values.dtype == np.float32
    assert found.values[METADATA_FEATURES.index("ruwe")] == 1.0
    assert found.values[METADATA_FEATURES.index("w3_mag")] == 3.0


def test_the_nearest_counts_and_of_equals_the_brighter() -> None:
    redis = Redis()
    # Two a milliarcsecond or so apart count as one place; a third is nearer, and fainter, elsewhere.
    dec = np.array([10.0, 10.0, 20.0, 20.0 + 0.5 / 3600])
    redis.load(
        "gaia", GAIA, np.full(4, 10.0), dec, pmra=np.zeros(4), pmdec=np.zeros(4),
        phot_g_mean_mag=np.array([18.0, 12.0, 19.0, 11.0]),
    )  # fmt: skip
    found = redis.match(np.array([10.0, 10.0]), np.array([10.0 + 0.3 / 3600, 20.0 + 0.2 / 3600]), np.full(2, MJD_2026))
    np.testing.assert_array_equal(magnitudes(found), [12.0, 19.0])


@pytest.mark.parametrize("mjd", [np.nan, np.inf, -1e300, 0.0, 2460000.5])
def test_without_a_time_sources_stay_where_gaia_saw_them(mjd: float) -> None:
    redis = Redis()
    redis.load(
        "gaia", GAIA, np.array([10.0]), np.array([10.0]),
        phot_g_mean_mag=np.ones(1), pmra=np.array([5000.0]), pmdec=np.array([np.nan]),
    )  # fmt: skip
    assert one(redis, 10.0, 10.0, mjd) is not None
    assert one(redis, 10.0, 10.0, MJD_2026) is None


def test_positions_that_are_none_have_no_source() -> None:
    redis = Redis()
    redis.load("gaia", GAIA, np.zeros(1), np.zeros(1), phot_g_mean_mag=np.ones(1), pmra=np.zeros(1), pmdec=np.zeros(1))
    ra, dec = np.array([np.nan, 0.0, 0.0, np.inf, 360.0]), np.array([0.0, np.nan, 91.0, 0.0, 0.0])
    found = redis.match(ra, dec, np.full(5, MJD_2026))
    assert [f is not None for f in found] == [False, False, False, False, True]
    assert redis.match(np.empty(0), np.empty(0), np.empty(0)) == []


def test_a_new_catalogue_is_noticed_by_the_next_read() -> None:
    redis, reader = Redis(), CatalogReader()
    at = (np.array([10.0]), np.array([10.0]))

    def match() -> bool:
        request, values = reader.read(*at, redis.mget)
        assert request.keys[0] == reader.meta_key
        (found,) = reader.match(request, values, *at, np.array([MJD_2026]))
        return found.metadata is not None

    assert not match()
    redis.load("a", CatalogLayout(1, 5, ("ruwe",), 2016.0, 1.0), *at, ruwe=np.array([1.0]))
    assert match()
    assert not reader.prime(redis.values[reader.meta_key])
    assert reader.prime(None)
    assert match()


def test_damaged_values_are_reported_once_and_left_out(caplog: pytest.LogCaptureFixture) -> None:
    redis = Redis()
    at = (np.array([10.0]), np.array([10.0]))
    redis.load("a", CatalogLayout(1, 5, ("ruwe",), 2016.0, 1.0), *at, ruwe=np.array([1.0]))
    redis.load("b", CatalogLayout(1, 5, ("w3_mag",), 2016.0, 1.0), *at, w3_mag=np.array([3.0]))
    key = next(k for k in redis.values if ":cat:a:" in k)
    redis.values[key] += b"\0"
    reader = CatalogReader()
    reader.prime(redis.values[reader.meta_key])
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            request = reader.request(*at)
            (found,) = reader.match(request, redis.mget(request.keys), *at, np.array([MJD_2026]))
            assert found.metadata is not None
            assert np.isnan(found.metadata.values[METADATA_FEATURES.index("ruwe")])
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    "meta", [b"", b"{", b"[]", b'{"version": 9, "catalogs": []}', b'{"version": 1, "catalogs": [1]}', b"\xff\xfe"]
)
def test_a_damaged_index_is_reported_and_no_crash(meta: bytes, caplog: pytest.LogCaptureFixture) -> None:
    reader = CatalogReader()
    assert reader.prime(meta)
    assert reader.request(np.array([1.0]), np.array([1.0])).keys == [reader.meta_key]
    assert len(caplog.records) == 1
    with pytest.raises(CatalogError):
        decode_index(meta)


@given(st.lists(st.tuples(st.floats(0, 360), st.floats(-90, 90), st.floats(width=32)), min_size=1, max_size=20))
def test_packing_keeps_positions_to_a_fifth_of_a_mas(rows: list[tuple[float, float, float]]) -> None:
    ra, dec, value = np.array(rows).T
    words = pack(ra, dec, value[:, None].astype(np.float32))
    again = np.frombuffer(words.tobytes(), "<u4").reshape(words.shape)
    got_ra, got_dec, got = unpack(again)
    assert np.all(sky.separation(ra, dec, got_ra, got_dec) < 2e-4)
    np.testing.assert_array_equal(got[:, 0], value.astype(np.float32))


def test_only_moving_sources_are_in_several_cells() -> None:
    rng = np.random.default_rng(0)
    n = 20000
    ra, dec = rng.uniform(0, 360, n), np.degrees(np.arcsin(rng.uniform(-1, 1, n)))
    pm = {"pmra": rng.normal(0, 5, n), "pmdec": rng.normal(0, 5, n), "phot_g_mean_mag": np.ones(n)}
    assert n < Redis().load("gaia", CatalogLayout(1, 11, GAIA.columns, 2016.0, 1.5), ra, dec, **pm) < 1.1 * n
    still = {name: np.where(np.arange(n) % 2, 0.0, np.nan) for name in ("pmra", "pmdec")}
    stored = Redis().load("gaia", CatalogLayout(1, 11, GAIA.columns, 2016.0, 1.5), ra, dec, **{**pm, **still})
    assert stored == n


def test_rows_of_another_epoch_are_moved_to_the_catalogue_s() -> None:
    redis = Redis()
    redis.load(
        "gaia", GAIA, np.array([10.0]), np.array([10.0]), epoch=np.array([2000.0]),
        phot_g_mean_mag=np.ones(1), pmra=np.zeros(1), pmdec=np.array([1000.0]),
    )  # fmt: skip
    assert one(redis, 10.0, 10.0, 51544.5) is not None
    assert one(redis, 10.0, 10.0 + 26.0 / 3600) is not None


def test_the_smallest_cells_are_wider_than_the_cones() -> None:
    for radius in (0.1, 1.5, 2.5, 10.0, 60.0):
        size = 3600 * np.degrees(np.sqrt(np.pi / 3)) / 2 ** max_order(radius)
        assert size >= 2 * (radius + 5.0)
