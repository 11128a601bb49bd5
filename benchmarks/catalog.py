"""Catalogues: loading rows into Redis, the memory they take there, and matching 512 alerts in one read.

The match is checked against astropy's ``match_to_catalog_sky`` over the whole catalogue, and timed against reading
the same alerts one by one.
"""

from __future__ import annotations

import argparse
import time
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import redis
from astropy import units
from astropy.coordinates import SkyCoord

from broker import sky
from broker.catalog.match import CatalogReader
from broker.catalog.presets import PRESETS
from broker.catalog.store import CatalogStore
from broker.embedded.redis import RedisServer
from broker.records import METADATA_FEATURES
from broker.times import julian_year_of

ALERTS, REPEATS, PIECE = 512, 20, 500_000
MJD = 61_000.0
Columns = dict[str, np.ndarray]


def stars(n: int, rng: np.random.Generator) -> Columns:
    """Gaia-like sources: two thirds within some degrees of the galactic plane; proper motions with a long tail."""
    disc = rng.random(n) < 0.67
    centre = disc & (rng.random(n) < 0.6)
    lon = np.where(centre, rng.normal(0, 50, n), rng.uniform(0, 360, n)) % 360.0
    lat = np.where(disc, rng.laplace(0, 7, n), np.degrees(np.arcsin(rng.uniform(-1, 1, n))))
    lat = np.clip(lat, -89.999, 89.999)
    at = SkyCoord(lon * units.deg, lat * units.deg, frame="galactic").icrs
    speed = 6.0 * rng.lognormal(0, 0.9, n)
    angle = rng.uniform(0, 2 * np.pi, n)
    magnitude = np.clip(rng.normal(18.5, 1.5, n), 3, 21)
    columns = {
        "ra": at.ra.deg, "dec": at.dec.deg, "ref_epoch": np.full(n, 2016.0),
        "pmra": speed * np.cos(angle), "pmdec": speed * np.sin(angle),
        "phot_g_mean_mag": magnitude, "phot_g_mean_flux_over_error": rng.uniform(50, 2000, n),
        "phot_bp_mean_mag": magnitude + rng.uniform(0, 1, n), "phot_bp_mean_flux_over_error": rng.uniform(20, 500, n),
        "phot_rp_mean_mag": magnitude - rng.uniform(0, 1, n), "phot_rp_mean_flux_over_error": rng.uniform(20, 500, n),
        "parallax": rng.lognormal(-1, 1, n), "parallax_error": rng.uniform(0.02, 0.5, n),
        "pmra_error": rng.uniform(0.02, 0.5, n), "pmdec_error": rng.uniform(0.02, 0.5, n),
        "ruwe": rng.normal(1.02, 0.05, n),
    }  # fmt: skip
    double = ("ra", "dec", "ref_epoch", "pmra", "pmdec", "parallax")
    return {name: column if name in double else column.astype(np.float32) for name, column in columns.items()}


def write(path: Path, rows: int, ordered: bool) -> tuple[Columns, Columns]:
    """A table, and of it positions with proper motions, and those of the stars that will have alerts."""
    rng = np.random.default_rng(7)
    pieces = [stars(min(PIECE, rows - first), rng) for first in range(0, rows, PIECE)]
    table = {name: np.concatenate([piece.pop(name) for piece in pieces]) for name in tuple(pieces[0])}
    if ordered:  # as the archive's files are: by source id, which begins with the HEALPix cell of order 12
        order = np.argsort(sky.cells(table["ra"], table["dec"], 12), kind="stable")
        for name in table:
            table[name] = table[name][order]
    pq.write_table(pa.table(table), path, row_group_size=PIECE)
    position = {name: table[name] for name in ("ra", "dec", "pmra", "pmdec", "phot_g_mean_mag")}
    chosen = rng.choice(rows, ALERTS, replace=False)
    return position, {name: column[chosen] for name, column in position.items()}


def check(columns: Columns, planted: Columns, found: list, ra: np.ndarray, dec: np.ndarray) -> None:
    """The recall of the planted stars, and whether astropy finds the same nearest ones."""
    years = julian_year_of(MJD) - 2016.0
    span = np.full(len(columns["ra"]), years)
    catalogue = SkyCoord(*sky.move(columns["ra"], columns["dec"], columns["pmra"], columns["pmdec"], span), unit="deg")
    alerts = SkyCoord(ra, dec, unit="deg")
    seconds = []
    for _ in range(2):  # the first time builds a tree, which the second has at hand
        start = time.perf_counter()
        nearest, distance, _ = alerts.match_to_catalog_sky(catalogue)
        seconds.append(time.perf_counter() - start)
    g = METADATA_FEATURES.index("phot_g_mean_mag")
    matched = np.array([f is not None for f in found])
    got = np.array([np.nan if f is None else f.values[g] for f in found])
    near = distance.arcsec <= PRESETS["gaia"].radius
    wanted = np.where(near, columns["phot_g_mean_mag"][nearest].astype(np.float32), np.nan)
    same = np.isclose(got, wanted, atol=1e-5, equal_nan=True)
    count = len(planted["ra"])
    print(
        f"matched {matched[:count].mean():.4f} of the planted stars and {matched[count:].sum()} of {len(ra) - count} "
        f"positions beside them; {same.mean():.4f} as astropy ({near.sum()} matches), which takes, with all in memory, "
        f"{seconds[0]:.1f} s and, its tree at hand, {seconds[1] * 1e3:.1f} ms for {len(ra)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--unsorted", action="store_true", help="rows in no order on the sky")
    options = parser.parse_args()
    with TemporaryDirectory() as folder, RedisServer() as server, closing(CatalogStore(server.url)) as store:
        path = Path(folder) / "gaia.parquet"
        columns, planted = write(path, options.rows, ordered=not options.unsorted)
        with redis.Redis.from_url(server.url) as client:
            before = client.info("memory")["used_memory"]
            start = time.perf_counter()
            result = store.load("gaia", [path], PRESETS["gaia"])
            seconds = time.perf_counter() - start
            used = client.info("memory")["used_memory"] - before
            stored = result.contents.stored
            print(
                f"{options.rows} rows of {result.layout.row_bytes} bytes, order {result.layout.order}: "
                f"{options.rows / seconds:.0f} rows/s, {used / options.rows:.1f} bytes of Redis a row; "
                f"{stored / client.dbsize():.1f} a cell, stored {stored / options.rows:.3f} times"
            )
            match(client, columns, planted)


def match(client: redis.Redis, columns: Columns, planted: Columns) -> None:
    rng = np.random.default_rng(11)
    years = julian_year_of(MJD) - 2016.0
    ra, dec = sky.move(*(planted[n] for n in ("ra", "dec", "pmra", "pmdec")), np.full(ALERTS, years))
    # Alerts are off by some 0.1 arcsec.
    ra, dec = sky.move(ra, dec, rng.normal(0, 100, ALERTS), rng.normal(0, 100, ALERTS), np.ones(ALERTS))
    mjd = np.full(ALERTS, MJD)
    reader = CatalogReader()
    reader.prime(client.get(reader.meta_key))
    phases = np.zeros((REPEATS, 3))
    for repeat in range(REPEATS):
        times = [time.perf_counter()]
        request = reader.request(ra, dec)
        times.append(time.perf_counter())
        values = client.mget(request.keys)
        times.append(time.perf_counter())
        found = reader.match(request, values, ra, dec, mjd)
        times.append(time.perf_counter())
        phases[repeat] = np.diff(times)
    batched = phases.sum(axis=1)
    ask, read, join = np.median(phases, axis=0) * 1e3
    start = time.perf_counter()
    for i in range(ALERTS):
        at = (ra[i : i + 1], dec[i : i + 1])
        one = reader.request(*at)
        reader.match(one, client.mget(one.keys), *at, mjd[i : i + 1])
    single = time.perf_counter() - start
    size = sum(len(v) for v in values[1:] if v)
    print(
        f"{ALERTS} alerts: {np.median(batched) * 1e3:.1f} ms in one read (request {ask:.1f}, MGET of {len(values)} "
        f"keys and {size / 1e6:.2f} MB {read:.1f}, match {join:.1f}); one by one {single * 1e3:.0f} ms, "
        f"ratio {single / np.median(batched):.0f}"
    )
    # As many positions up to 4 arcsec off a star, of which many are out of reach, or nearer to another.
    shift = rng.uniform(0, 4000, ALERTS) * np.exp(2j * np.pi * rng.random(ALERTS))
    other_ra, other_dec = sky.move(ra, dec, shift.real, shift.imag, np.ones(ALERTS))
    request = reader.request(other_ra, other_dec)
    found += reader.match(request, client.mget(request.keys), other_ra, other_dec, mjd)
    check(
        columns, planted, [f.metadata for f in found], np.concatenate([ra, other_ra]), np.concatenate([dec, other_dec])
    )


if __name__ == "__main__":
    main()
