"""Catalogues in a real Redis: loading through kills, replacing, dropping, a full Redis, and the commands."""

from __future__ import annotations

import gzip
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis

from broker.catalog.layout import decode_index
from broker.catalog.match import CatalogReader
from broker.catalog.presets import PLAIN, PRESETS
from broker.catalog.store import CatalogStore, LoadProgress
from broker.embedded.redis import RedisServer
from broker.errors import ConfigurationError, DependencyUnavailableError
from broker.records import METADATA_FEATURES, Alert, LightCurve, ObjectState
from broker.state.redis import RedisStore
from tests.commands import catalog

GAIA = PRESETS["gaia"]
N = 20_000


@pytest.fixture
def store(server: RedisServer, client: redis.Redis) -> Iterator[CatalogStore]:
    store = CatalogStore(server.url)
    yield store
    store.close()


def write(path: Path, n: int = N, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    columns = {
        "ra": rng.uniform(0, 360, n), "dec": np.degrees(np.arcsin(rng.uniform(-1, 1, n))),
        "pmra": rng.normal(0, 20, n), "pmdec": rng.normal(0, 20, n),
        "phot_g_mean_mag": rng.uniform(8, 20, n).astype(np.float32).astype(float),
    }  # fmt: skip
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=3000)
    return columns


def contents(client: redis.Redis) -> dict[bytes, list[bytes]]:
    """The rows of every cell, without the generation and in no order."""
    found = {}
    for key in client.scan_iter("trifid:cat:*"):
        value = client.get(key)
        assert value is not None
        assert len(value) % 20 == 0
        rows = [value[i : i + 20] for i in range(0, len(value), 20)]
        found[re.sub(rb":\d+:", b":", key)] = sorted(rows)
    return found


def matches(client: redis.Redis, columns: dict[str, np.ndarray]) -> float:
    """The share of the stars that are found with their magnitude."""
    reader = CatalogReader()
    reader.prime(client.get(reader.meta_key))
    request = reader.request(columns["ra"], columns["dec"])
    mjd = np.full(len(columns["ra"]), 57388.5)
    found = reader.match(request, client.mget(request.keys), columns["ra"], columns["dec"], mjd)
    same = [
        f.metadata is not None and f.metadata.values[1] == g
        for f, g in zip(found, columns["phot_g_mean_mag"], strict=True)
    ]
    return float(np.mean(same))


def test_all_that_is_loaded_is_found(store: CatalogStore, client: redis.Redis, tmp_path: Path) -> None:
    first, second = write(tmp_path / "a.parquet"), write(tmp_path / "b.parquet", seed=1)
    result = store.load("gaia", [tmp_path], GAIA)
    assert not result.already_complete
    assert (result.contents.rows, result.contents.skipped) == (2 * N, 0)
    assert matches(client, first) == matches(client, second) == 1.0
    rows_a_cell = result.contents.stored / client.dbsize()
    assert 5 < rows_a_cell < 25
    # The same once more does nothing.
    before = contents(client)
    result = store.load("gaia", [tmp_path], GAIA)
    assert result.already_complete
    assert contents(client) == before


@pytest.mark.parametrize("width", [1.0, 10.0])
def test_cells_fit_a_table_of_a_part_of_the_sky(
    store: CatalogStore, client: redis.Redis, tmp_path: Path, width: float
) -> None:
    columns = write(tmp_path / "a.parquet")
    columns["ra"], columns["dec"] = columns["ra"] / 360 * width, np.abs(columns["dec"]) / 90 * width
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    result = store.load("gaia", [tmp_path / "a.parquet"], GAIA)
    assert 4 < result.contents.stored / client.dbsize() < 30


def test_files_can_be_added(store: CatalogStore, client: redis.Redis, tmp_path: Path) -> None:
    write(tmp_path / "a.parquet")
    store.load("gaia", [tmp_path], GAIA, order=5)
    second = write(tmp_path / "b.parquet", seed=1)
    result = store.load("gaia", [tmp_path], GAIA)
    assert (result.contents.rows, result.layout.order) == (2 * N, 5)
    assert matches(client, second) == 1.0


def test_stopped_anywhere_it_goes_on(store: CatalogStore, client: redis.Redis, tmp_path: Path) -> None:
    columns = write(tmp_path / "a.parquet")
    write(tmp_path / "b.parquet", seed=1)
    store.load("gaia", [tmp_path], GAIA, order=5)
    expected = contents(client)
    client.flushall()

    class Stop(BaseException):
        pass

    stops = 0
    for size in (700, 1100, 901, 5000, 999, 1234, 100_000):
        seen: list[LoadProgress] = []

        def stop(progress: LoadProgress, seen: list[LoadProgress] = seen) -> None:
            seen.append(progress)
            if len(seen) == 3:
                raise Stop

        try:
            store.load("gaia", [tmp_path], GAIA, order=5, chunk_rows=size, on_progress=stop)
        except Stop:
            stops += 1
            assert matches(client, columns) == 0  # not used before it is complete
            (entry,) = store.entries()
            assert entry.loading is not None
    assert stops == 6
    assert contents(client) == expected
    assert matches(client, columns) == 1.0


LOADER = """
import sys, time
from pathlib import Path
from broker.catalog.presets import PRESETS
from broker.catalog.store import CatalogStore
def wait(progress):
    print(progress.rows, flush=True)
    time.sleep(float(sys.argv[3]))
CatalogStore(sys.argv[1]).load("gaia", [Path(sys.argv[2])], PRESETS["gaia"], order=6, chunk_rows=500, on_progress=wait)
"""


def test_killed_it_goes_on(store: CatalogStore, server: RedisServer, client: redis.Redis, tmp_path: Path) -> None:
    columns = write(tmp_path / "a.parquet")
    store.load("gaia", [tmp_path / "a.parquet"], GAIA, order=6)
    expected = contents(client)
    client.flushall()
    killed = 0
    for delay in (0.0, 0.03, 0.05, 0.01, 0.1):
        process = subprocess.Popen(
            [sys.executable, "-c", LOADER, server.url, str(tmp_path / "a.parquet"), "0.001"], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
    assert killed >= 3
    if not store.entries()[0].current:
        assert 0 < store.contents("gaia", store.entries()[0].loading).rows <= N  # type: ignore[arg-type]
    result = store.load("gaia", [tmp_path / "a.parquet"], GAIA)
    assert result.contents.rows == N
    assert contents(client) == expected
    assert matches(client, columns) == 1.0


def test_two_at_once_do_not_mix(store: CatalogStore, client: redis.Redis, server: RedisServer, tmp_path: Path) -> None:
    columns = write(tmp_path / "a.parquet")

    def load_too(progress: LoadProgress) -> None:
        other = CatalogStore(server.url)
        other.load("gaia", [tmp_path / "a.parquet"], GAIA, order=5)
        other.close()

    with pytest.raises(ConfigurationError, match="by another process"):
        store.load("gaia", [tmp_path / "a.parquet"], GAIA, order=5, chunk_rows=1000, on_progress=load_too)

    def drop(progress: LoadProgress) -> None:
        store.drop("second")

    with pytest.raises(ConfigurationError, match="was dropped, by another process"):
        store.load("second", [tmp_path / "a.parquet"], GAIA, order=5, on_progress=drop)
    assert store.load("gaia", [tmp_path / "a.parquet"], GAIA).contents.rows == N
    assert matches(client, columns) == 1.0


def test_replacing_leaves_the_old_one_until_the_new_is_there(
    store: CatalogStore, client: redis.Redis, tmp_path: Path
) -> None:
    old = write(tmp_path / "a.parquet")
    store.load("gaia", [tmp_path], GAIA, order=5)
    size = len(contents(client))
    new = write(tmp_path / "a.parquet", seed=2)
    with pytest.raises(ConfigurationError, match=r"has changed since it was loaded; --replace"):
        store.load("gaia", [tmp_path], GAIA)
    shares = []

    def look(progress: LoadProgress) -> None:
        shares.append((matches(client, old), matches(client, new)))

    result = store.load("gaia", [tmp_path], GAIA, order=5, anew=True, chunk_rows=5000, on_progress=look)
    assert result.layout.generation == 2
    assert set(shares) == {(1.0, 0.0)}
    assert (matches(client, old), matches(client, new)) == (0.0, 1.0)
    keys = set(client.scan_iter("trifid:cat*"))
    assert not [key for key in keys if b":1:" in key]
    assert len(contents(client)) == pytest.approx(size, rel=0.05)
    # Once more, with other options than an unfinished one.
    with pytest.raises(RuntimeError, match="stop"):
        store.load("gaia", [tmp_path], GAIA, anew=True, on_progress=_stop)
    result = store.load("gaia", [tmp_path], GAIA, order=4, anew=True)
    assert (result.layout.order, result.contents.rows) == (4, N)
    generations = {key.split(b":")[3] for key in client.scan_iter("trifid:cat:*")}
    assert generations == {str(result.layout.generation).encode()}


def _stop(progress: LoadProgress) -> None:
    raise RuntimeError("stop")


def test_other_options_are_refused(store: CatalogStore, tmp_path: Path) -> None:
    write(tmp_path / "a.parquet")
    store.load("gaia", [tmp_path], GAIA, order=5)
    for options in ({"order": 6}, {"radius": 2.0}, {"epoch": 2015.5}):
        with pytest.raises(ConfigurationError, match=r"begun with .*order 5.*--replace"):
            store.load("gaia", [tmp_path], GAIA, **options)
    with pytest.raises(ConfigurationError, match="begun with"):
        store.load("gaia", [tmp_path], PLAIN.with_columns(["ruwe=pmra"]))
    with pytest.raises(ConfigurationError, match="order 14: it can be 0 to 13"):
        store.load("new", [tmp_path], GAIA, order=14)
    pq.write_table(pa.table({"ra": [1.0], "dec": [1.0], "ruwe": [1.0]}), tmp_path / "b.parquet")
    [failure] = store.load("gaia", [tmp_path], GAIA).failures
    assert "b.parquet: gives ruwe, but the catalogue has phot_g_mean_mag" in failure


def test_dropping_leaves_nothing(store: CatalogStore, client: redis.Redis, tmp_path: Path) -> None:
    write(tmp_path / "a.parquet")
    store.load("gaia", [tmp_path], GAIA)
    store.load("gaia.2", [tmp_path], GAIA)
    with pytest.raises(RuntimeError, match="stop"):
        store.load("gaia", [tmp_path], GAIA, anew=True, on_progress=_stop)
    assert store.drop("gaia")
    assert [entry.name for entry in store.entries()] == ["gaia.2"]
    assert not list(client.scan_iter("trifid:cat*:gaia:*"))
    assert store.drop("gaia.2")
    assert client.keys() == [b"trifid:catalogs:generations"]
    assert not store.drop("gaia")


def test_a_full_redis_says_how_far_it_got_and_goes_on(store: CatalogStore, client: redis.Redis, tmp_path: Path) -> None:
    columns = write(tmp_path / "a.parquet")
    store.load("gaia", [tmp_path], GAIA, order=5)
    expected = contents(client)
    with RedisServer() as small, redis.Redis.from_url(small.url) as full:
        filling = CatalogStore(small.url)
        full.config_set("maxmemory", full.info("memory")["used_memory"] + 1_000_000)
        with pytest.raises(
            DependencyUnavailableError, match=r"Redis is full \(maxmemory\) after row [\d,]+ of .*goes on"
        ):
            filling.load("gaia", [tmp_path], GAIA, order=5, chunk_rows=500)
        (entry,) = filling.entries()
        assert entry.loading is not None
        assert 0 < filling.contents("gaia", entry.loading).rows < N
        full.config_set("maxmemory", 0)
        filling.load("gaia", [tmp_path], GAIA)
        assert contents(full) == expected
        assert matches(full, columns) == 1.0
        full.config_set("maxmemory", 1)
        assert filling.drop("gaia")
        filling.close()


def test_redis_unavailable(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet")
    with RedisServer() as gone:
        store = CatalogStore(gone.url)

        def kill(progress: LoadProgress) -> None:
            gone.kill()

        with pytest.raises(DependencyUnavailableError, match=r"Redis is unavailable after row 1,000 of .*goes on from"):
            store.load("gaia", [tmp_path], GAIA, order=5, chunk_rows=1000, on_progress=kill)
        store.close()


def test_a_reader_takes_a_replaced_catalogue_with_its_next_request(
    store: CatalogStore, client: redis.Redis, tmp_path: Path
) -> None:
    columns = write(tmp_path / "a.parquet", 100)
    store.load("gaia", [tmp_path], GAIA)
    reader = CatalogReader()
    reader.prime(client.get(reader.meta_key))
    request = reader.request(columns["ra"], columns["dec"])
    store.load("gaia", [tmp_path], GAIA, anew=True)
    outdated = client.mget(request.keys)  # its keys are gone
    asked = (request, outdated)
    request, values = reader.read(columns["ra"], columns["dec"], client.mget, asked)
    found = reader.match(request, values, columns["ra"], columns["dec"], np.full(len(columns["ra"]), np.nan))
    assert all(f.metadata is not None for f in found)


def test_the_commands(server: RedisServer, client: redis.Redis, tmp_path: Path) -> None:
    columns = write(tmp_path / "a.parquet")
    assert "no catalogues" in catalog(server, "list").output
    result = catalog(server, "load", "gaia", tmp_path, "--preset", "gaia")
    assert result.exit_code == 0, result.output
    assert f"catalogue gaia: {N:,} sources from 1 file " in result.stdout
    assert "is complete" in catalog(server, "load", "gaia", tmp_path, "--preset", "gaia").stdout
    assert catalog(server, "list").stdout.startswith(f"gaia: {N:,} sources")
    at = (f"{columns['ra'][5]:.6f}", f"{columns['dec'][5]:.6f}")
    result = catalog(server, "match", *at)
    assert result.exit_code == 0, result.output
    assert re.search(rf"phot_g_mean_mag +{columns['phot_g_mean_mag'][5]:.6g} +gaia\n", result.stdout)
    assert re.match(r"gaia: 0\.\d\d\d arcsec from ", result.stdout)
    found = json.loads(catalog(server, "match", *at, "--json", "--mjd", "60000").stdout)
    assert set(found["values"]) == {"phot_g_mean_mag", "pmra", "pmdec"}
    assert [(m["catalog"], m["separation_arcsec"] < 1.0) for m in found["matches"]] == [("gaia", True)]
    assert found["matches"][0]["values"] == found["values"]
    assert "no source at 0.000000 -89.990000 in gaia" in catalog(server, "match", "0", "-89.99").stdout
    assert catalog(server, "drop", "gaia").exit_code == 0
    result = catalog(server, "drop", "gaia")
    assert result.exit_code == 2
    assert "there is no catalogue gaia" in result.stderr


def test_errors_of_the_command(server: RedisServer, client: redis.Redis, tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": [1.0], "y": [1.0], "ruwe": [1.0]}), tmp_path / "a.parquet")
    result = catalog(server, "load", "gaia", tmp_path, "--preset", "gaia")
    assert result.exit_code == 2
    assert "no column for ra and dec" in result.stderr
    assert "the table has x, y, ruwe" in result.stderr
    assert "Traceback" not in result.output
    assert catalog(server, "load", "gaia", tmp_path, "--column", "ra=x", "--column", "dec=y").exit_code == 0
    result = catalog(server, "load", "gaia", tmp_path, "--column", "rra=x")
    assert result.exit_code == 2
    assert "'rra' is none of ra, dec" in result.stderr
    assert catalog(server, "load", "a:b", tmp_path).exit_code == 2
    assert catalog(server, "load", "gaia", tmp_path / "missing").exit_code == 2
    os.environ.pop("TRIFID_CONFIG", None)
    with RedisServer() as gone:
        pass
    result = catalog(gone, "load", "other", tmp_path, "--column", "ra=x", "--column", "dec=y")
    assert result.exit_code == 1
    assert "Redis is unavailable" in result.stderr


def test_real_stars(server: RedisServer, store: CatalogStore, client: redis.Redis, shared: Path) -> None:
    preset = GAIA.with_columns(
        ["ra=gaia_ra", "dec=gaia_dec", "parallax=gaia_parallax", "parallax_error=gaia_parallax_error",
         "phot_g_mean_mag=gaia_phot_g_mean_mag", "bp_rp=gaia_bp_rp", "ruwe=gaia_ruwe", "pmra=asassn_pmRA",
         "pmdec=asassn_pmDE"]
    )  # fmt: skip
    result = store.load("stars", [shared / "data" / "asassn_gaia.csv"], preset)
    assert result.contents.rows == 980
    # The first row of the file.
    found, [match] = store.match(251.61386067502823, -51.54105945499765, 60000.0)
    assert match.catalog == "stars"
    assert found is not None
    assert found.metadata is not None
    assert found.metadata.values[1] == np.float32(10.655378)


def test_the_index_is_one_key(store: CatalogStore, client: redis.Redis, tmp_path: Path) -> None:
    write(tmp_path / "a.parquet")
    for name in ("b", "a", "c"):
        store.load(name, [tmp_path], GAIA)
    store.load("a", [tmp_path], GAIA, anew=True)
    entries = decode_index(client.get("trifid:catalogs"))
    assert [(e.name, e.current.generation) for e in entries if e.current] == [("b", 1), ("a", 4), ("c", 3)]


def write_csv(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def known(store: CatalogStore, ra: float, dec: float) -> dict[str, float]:
    """What the catalogues say of a position, rounded."""
    _, matches = store.match(ra, dec, 57388.5)
    return {name: round(value, 3) for match in matches for name, value in match.values.items()}


def test_codes_are_unknown_and_counted(
    server: RedisServer, store: CatalogStore, client: redis.Redis, tmp_path: Path
) -> None:
    path = write_csv(
        tmp_path / "cat.csv",
        "ra,dec,mean_vmag,k_mag\n10.0,10.0,-9.99,9.999\n10.1,10.0,0.000,99.999\n10.2,10.0,12.3,11.1\n",
    )
    result = catalog(server, "load", "mine", path)
    assert result.exit_code == 0, result.output
    assert "catalogue mine: 1 sources" in result.stdout
    assert "  unknown mean_vmag: 2 a code such as -9.99 or 0\n" in result.stdout
    assert "  unknown k_mag: 2 a code such as -9.99 or 0\n" in result.stdout
    assert "  unknown row: 2 no value\n" in result.stdout
    assert known(store, 10.0, 10.0) == known(store, 10.1, 10.0) == {}
    assert known(store, 10.2, 10.0) == {"mean_vmag": 12.3, "k_mag": 11.1}
    assert "unknown k_mag" in catalog(server, "list").stdout


def test_one_alien_file_does_not_end_a_load(
    server: RedisServer, store: CatalogStore, client: redis.Redis, tmp_path: Path
) -> None:
    folder = tmp_path / "stars"
    folder.mkdir()
    write_csv(folder / "a.csv", "<html>404 Not Found</html>\n")
    write_csv(folder / "b.csv", "ra,dec,mean_vmag\n10,10,12.5\n")
    (folder / "c.parquet").write_bytes(b"PAR1 cut off")
    write_csv(folder / "d.csv", "ra,dec,mean_vmag\n20,10,13.5\n")
    write_csv(folder / "e.csv", "ra,dec,ruwe\n20,10,1\n")
    os.mkfifo(folder / "f.csv")
    for _ in range(2):  # and the same once more says the same
        result = catalog(server, "load", "mine", folder)
        assert result.exit_code == 1, result.output
        assert "a.csv: an HTML page" in result.stderr
        assert "c.parquet: " in result.stderr
        assert "e.csv: gives ruwe, but the catalogue has mean_vmag" in result.stderr
        assert "3 files failed, the others are in use" in result.stderr
    assert (known(store, 10, 10), known(store, 20, 10)) == ({"mean_vmag": 12.5}, {"mean_vmag": 13.5})
    assert (
        "f.csv: a FIFO (named pipe), not a file"
        in catalog(server, "load", "other", folder / "b.csv", folder / "f.csv").stderr
    )
    store.drop("other")
    # A replacement with a file that fails would lose what that file had.
    write_csv(folder / "b.csv", "ra,dec,mean_vmag\n10,10,14.5\n")
    result = catalog(server, "load", "mine", folder, "--replace")
    assert result.exit_code == 1
    assert "not replaced, the one before stays in use" in result.stderr
    assert known(store, 10, 10) == {"mean_vmag": 12.5}
    result = catalog(server, "load", "mine", folder / "b.csv", folder / "d.csv", "--replace")
    assert result.exit_code == 0, result.output
    assert known(store, 10, 10) == {"mean_vmag": 14.5}


def test_a_file_damaged_half_way_is_named_with_what_is_in(
    server: RedisServer, store: CatalogStore, client: redis.Redis, tmp_path: Path
) -> None:
    rows = "".join(f"{10 + i / 5000},10,12.5,{'x' * 500}\n" for i in range(100_000))
    packed = gzip.compress(f"ra,dec,mean_vmag,note\n{rows}".encode(), 1)
    (tmp_path / "cut.csv.gz").write_bytes(packed[: len(packed) * 9 // 10])
    write_csv(tmp_path / "good.csv", "ra,dec,mean_vmag\n200,10,13.5\n")
    result = catalog(server, "load", "mine", tmp_path)
    assert result.exit_code == 1
    assert re.search(r"cut.csv.gz: .*; its first [\d,]+ rows are in", result.stderr), result.stderr
    assert known(store, 200, 10) == {"mean_vmag": 13.5}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("ra,dec,mean_vmag\n10,10,-9.99\n11,10,50\n", "-9.99 or 0, 1 not in -5 to 30; row: 2 no value"),
        ("ra,dec,mean_vmag\n-999,10,12\n,,12\n0,0,12\n", "position: 1 0, 0, 1 blank, 1 not in degrees"),
        ("ra,dec,mean_vmag\n10,10,null\n", "mean_vmag: 1 blank"),
        ("ra,dec,mean_vmag\n", "no row of its tables is usable"),
        ("ra,dec,mean_vmag\n10,10,-9.99\n3,4\n5,6\n", "another number of cells than the header"),
    ],
)  # fmt: skip
def test_without_usable_rows_nothing_is_loaded(
    server: RedisServer, store: CatalogStore, client: redis.Redis, tmp_path: Path, text: str, reason: str
) -> None:
    result = catalog(server, "load", "mine", write_csv(tmp_path / "t.csv", text))
    assert result.exit_code == 1
    assert reason in result.stderr, result.stderr
    assert "not loaded" in result.stderr
    assert "no catalogues" in catalog(server, "list").stdout
    assert client.keys("trifid:cat:*") == []


def test_rows_of_another_width_than_the_header_are_no_table(
    server: RedisServer, client: redis.Redis, tmp_path: Path
) -> None:
    result = catalog(server, "load", "mine", write_csv(tmp_path / "t.csv", "ra,dec,mean_vmag\n1,2\n3,4\n"))
    assert (result.exit_code, "rows of 2 cells below 3 names" in result.stderr) == (2, True), result.stderr


def test_positions_may_be_sexagesimal(
    server: RedisServer, store: CatalogStore, client: redis.Redis, tmp_path: Path
) -> None:
    store.load("mine", [write_csv(tmp_path / "t.csv", "ra,dec,ruwe\n269.452083,-4.693333,1.5\n")], PLAIN)
    for at in (("17:57:48.5", "-04:41:36"), ("17h57m48.5s", "-4d41m36s"), ("17 57 48.5", "-04 41 36"),
               ("269.452083", "-4.6933333")):  # fmt: skip
        result = catalog(server, "match", *at)
        assert result.exit_code == 0, result.output
        assert re.match(r"mine: 0\.00\d arcsec from 269.4520\d+ -4.69333", result.stdout), result.stdout
        assert re.search(r"ruwe +1.5 +mine\n", result.stdout)
    for at in (("24:00:01", "0"), ("10", "-90:00:01"), ("x", "0"), ("10", "10:99")):
        result = catalog(server, "match", *at)
        assert (result.exit_code, "or such as" in result.stderr) == (2, True), result.output


def test_each_file_is_opened_once_for_its_columns(
    store: CatalogStore, client: redis.Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A VOTable is parsed whole each time it is opened."""
    from astropy.table import Table

    from broker.tables import votable

    for name in ("a.vot", "b.vot"):
        Table({"ra": [1.0, 2.0], "dec": [1.0, 2.0], "ruwe": [1.0, 2.0]}).write(tmp_path / name, format="votable")
    parsed = []
    read = votable.read
    monkeypatch.setattr(votable, "read", lambda *given: parsed.append(1) or read(*given))  # type: ignore[func-returns-value]
    before = set(Path(tempfile.gettempdir()).glob("trifid-*"))
    assert store.load("mine", [tmp_path], PLAIN).contents.rows == 4
    assert len(parsed) == 2
    assert set(Path(tempfile.gettempdir()).glob("trifid-*")) <= before


def test_motions_no_star_has_fill_no_cells(store: CatalogStore, client: redis.Redis, tmp_path: Path) -> None:
    path = write_csv(
        tmp_path / "t.csv",
        "ra,dec,pmra,pmdec,phot_g_mean_mag\n10,10,5e6,3,12\n11,10,-798.58,10328.12,9\n12,10,1e20,0,13\n13,10,-999,-999,14\n",
    )
    result = store.load("mine", [path], PLAIN, order=13)
    assert result.contents.rows == 4
    assert result.contents.stored < 500  # Barnard's star crosses some hundred cells of 13 arcsec
    assert known(store, 10, 10) == {"phot_g_mean_mag": 12.0}
    assert known(store, 12, 10) == {"phot_g_mean_mag": 13.0}
    assert known(store, 13, 10) == {"phot_g_mean_mag": 14.0}
    assert result.contents.unknown == {
        "pmra": {"not in -10500 to 10500": 2, "a code such as -9.99 or 0": 1},
        "pmdec": {"of an unknown value": 2, "a code such as -9.99 or 0": 1},
    }


@pytest.mark.parametrize("when", ["before", "while"])
def test_the_probe_may_take_a_replaced_catalogue_between_a_request_and_its_match(
    server: RedisServer, store: CatalogStore, client: redis.Redis, tmp_path: Path, when: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The health probe asks Redis from a thread of its own, with the store that the worker thread reads with."""
    path = write_csv(tmp_path / "t.csv", "ra,dec,ruwe\n120.5,10.25,1.5\n")
    store.load("mine", [path], PLAIN)
    states = RedisStore(server.url)
    alert = Alert("ztf", 1, 1, "ZTF1", 120.5, 10.25, 60000.0, "ztf:g", LightCurve.empty(), "")
    assert ruwe(states.update([alert])) == [1.5]
    reader = states._reader._catalogs
    request = reader.request
    replaced = []

    def then_replace(*at: np.ndarray) -> object:
        """The catalogue is replaced, and the probe notices, after the request was made and before it is sent."""
        made = request(*at)
        if not replaced:
            replaced.append(True)
            write_csv(path, "ra,dec,ruwe\n120.5,10.25,2.5\n")
            store.load("mine", [path], PLAIN, anew=True)
            if when == "while":
                probe = threading.Thread(target=states.check)
                probe.start()
                probe.join()
        return made

    monkeypatch.setattr(reader, "request", then_replace)
    assert ruwe(states.update([alert])) == [2.5]
    states.close()


def ruwe(states: Sequence[ObjectState]) -> list[float | None]:
    index = METADATA_FEATURES.index("ruwe")
    return [None if s.metadata is None else float(s.metadata.values[index]) for s in states]
