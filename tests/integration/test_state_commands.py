"""``trifid state`` on a real Redis: objects that future points spoilt are looked at, repaired and forgotten."""

from __future__ import annotations

import hashlib
import io
import json
import re
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import pytest
import redis
from click.testing import CliRunner, Result

from broker.cli import main
from broker.embedded.redis import RedisServer
from broker.errors import DecodeError
from broker.records import Alert, KeptSearch, LightCurve, ObservedSpectrum, PhotometryKind, Spectrum
from broker.state.encoding import VERSION, decode_object
from broker.state.merge import merge
from broker.state.redis import RedisStore
from broker.surveys import Decoder
from broker.surveys.simulator import SCHEMA_JSON, simulate_alerts
from broker.times import JD_OF_MJD_0, mjd_now
from tests.integration.test_redis_store import point
from tests.redis_keys import key_at, key_of, places
from tests.unit.state.test_merge import same

ROOT = Path(__file__).resolve().parents[2]
PAYLOADS = [alert.payload for alert in simulate_alerts(2, 20, seed=5)]
ALERTS = [a for payload in PAYLOADS for a in Decoder().decode(payload) if isinstance(a, Alert)]
GOOD = ALERTS[-1]
NAME = GOOD.object_id


@pytest.fixture
def trifid(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.setenv("TRIFID_REDIS__URL", server.url)
    return lambda *arguments: CliRunner().invoke(main, ["state", *arguments])


SEARCH = KeptSearch(1, 3, 20, 59000.5, 59040.25, (1, 2), ((1.6, 0.875), (0.3, 0.25)))
"""Of a period of 0.625 d."""


def spoilt(curve: LightCurve) -> Alert:
    """An alert dated 50 years ahead, with more future points than are kept of an object, and absurd fluxes."""
    times = np.concatenate([GOOD.mjd + 18_000 + np.arange(40.0), [30_000.0, GOOD.mjd - 0.5]])
    flux = np.ones(len(times), np.float32)
    flux[-1] = 1e15
    bad = LightCurve(
        times, flux, np.ones_like(flux), np.full_like(flux, np.nan), np.zeros(len(times), np.uint8),
        np.zeros(len(times), np.uint8),
    )  # fmt: skip
    return replace(GOOD, mjd=float(times[39]), alert_id=1, light_curve=merge(curve, bad))


def stored(client: redis.Redis) -> tuple[LightCurve, Alert]:
    value = client.get(key_of(client, NAME))
    assert isinstance(value, bytes)
    return decode_object(value, "ztf", NAME)


def test_a_spoilt_object_is_repaired_and_goes_on(store: RedisStore, client: redis.Redis, trifid: object) -> None:
    assert callable(trifid)
    store.update([GOOD])
    clean, _ = stored(client)
    store.update([spoilt(GOOD.light_curve)])
    assert len(stored(client)[0]) == len(clean) + 42
    store.keep_searches({("ztf", NAME): SEARCH})

    dry: Result = trifid("repair", NAME, "--dry-run")
    assert dry.exit_code == 0
    assert "would remove 40 points (after_receipt), 1 points (before_survey), 1 points (flux)" in dry.stdout
    assert len(stored(client)[0]) == len(clean) + 42
    assert client.exists(key_at(GOOD, "ps"))

    done: Result = trifid("repair", f"ztf:{NAME}")
    assert done.exit_code == 0
    assert (
        f"{len(clean)} of {len(clean) + 42} points left, MJD {clean.mjd[0]:.5f} to {clean.mjd[-1]:.5f}" in done.stdout
    )
    assert "the time of the latest alert, MJD" in done.stdout
    assert "1 objects looked at, 1 repaired, 42 points removed, 0 not readable" in done.stdout
    curve, latest = stored(client)
    assert same(curve, clean)
    assert latest.mjd == clean.mjd[-1]
    assert not client.exists(key_at(GOOD, "ps"))
    assert "0 repaired" in trifid("repair", NAME).stdout

    # The next alert is the latest again, and the object is found where it is.
    after = replace(GOOD, mjd=GOOD.mjd + 1, ra=GOOD.ra + 1e-5, alert_id=2)
    (state,) = store.update([after])
    assert (state.ra, len(state.light_curve)) == (after.ra, len(clean))
    (other,) = store.update([point("lsst", "7", after.ra, after.dec, after.mjd)])
    assert other.associated == (f"ztf:{NAME}",)


def test_points_of_a_time_or_kind_are_removed_on_request(
    store: RedisStore, client: redis.Redis, trifid: object
) -> None:
    """As forced photometry that an earlier release took in spite of its status."""
    assert callable(trifid)
    store.update([GOOD])
    clean, _ = stored(client)
    middle = float(np.median(clean.mjd))
    meant = (clean.kind == PhotometryKind.FORCED) & (clean.mjd <= middle)
    assert 0 < meant.sum() < (clean.kind == PhotometryKind.FORCED).sum()
    done: Result = trifid("repair", "--all", "--kind", "forced", "--between", "50000", str(middle))
    assert f"{meant.sum()} points (requested)" in done.stdout
    left, latest = stored(client)
    assert left.mjd.tolist() == clean.mjd[~meant].tolist()
    assert latest.mjd == GOOD.mjd


def test_an_object_without_other_points_is_deleted(store: RedisStore, client: redis.Redis, trifid: object) -> None:
    assert callable(trifid)
    store.update([point("ztf", "ZTF18a", 10.0, 0.0, 90_000.0), GOOD])
    done: Result = trifid("repair", "--all")
    assert "ztf:ZTF18a: 1 points (after_receipt)" in done.stdout
    assert "no point is left, the object is forgotten" in done.stdout
    assert "2 objects looked at, 1 repaired, 1 points removed" in done.stdout
    assert client.keys("*:ZTF18a:*") == []
    assert places(client) == [f"ztf:{NAME}".encode()]


def test_show_says_what_there_is(store: RedisStore, client: redis.Redis, trifid: object) -> None:
    assert callable(trifid)
    spectrum = Spectrum(np.arange(4000.0, 4100.0), *np.ones((2, 100), np.float32))
    store.put_observed([ObservedSpectrum("s", 0.0, 0.0, 59000.0, spectrum, "ztf", NAME)])
    store.update([GOOD, spoilt(GOOD.light_curve)])
    store.keep_searches({("ztf", NAME): SEARCH})
    curve, _ = stored(client)
    shown: Result = trifid("show", NAME, "--points")
    assert shown.exit_code == 0
    for text in (
        f"ztf:{NAME}\n", f"points:     {len(curve)}, MJD 30000.00000 to", "ztf:g", "ztf:r", f"layout {VERSION},",
        "by name:    spectrum yes", "40 points (after_receipt), 1 points (before_survey), 1 points (flux)",
        f"place:      ra {GOOD.ra:.6f}, dec {GOOD.dec:.6f}, MJD", "1e+15",
        "period:     0.625 d (R^2 0.875), searched in 20 points, MJD 59000.50000 to 59040.25000\n",
    ):  # fmt: skip
        assert text in shown.stdout, text
    client.set(key_of(client, NAME), b"\x02Lgarbage")
    broken: Result = trifid("show", f"ztf:{NAME}")
    assert "bytes that cannot be read: " in broken.stdout
    repaired: Result = trifid("repair", "--all")
    assert repaired.exit_code == 1
    assert f"ztf:{NAME}: cannot be read" in repaired.stderr


def test_forget_leaves_nothing_behind(store: RedisStore, client: redis.Redis, trifid: object) -> None:
    assert callable(trifid)
    spectrum = Spectrum(np.arange(4000.0, 4100.0), *np.ones((2, 100), np.float32))
    store.put_observed([ObservedSpectrum("s", 0.0, 0.0, 59000.0, spectrum, "ztf", NAME)])
    store.update([GOOD, point("lsst", "7", 10.0, 0.0, 60_000.0)])
    store.keep_searches({("ztf", NAME): SEARCH, ("lsst", "7"): SEARCH})
    client.set(f"{key_at(GOOD, 'ps')}:damaged", b"x")
    done: Result = trifid("forget", NAME)
    assert done.exit_code == 0
    assert f"ztf:{NAME}: forgotten ({key_at(GOOD)}, {key_at(GOOD, 'ps')}" in done.stdout
    assert client.keys(f"*{NAME}*") == []
    assert places(client) == [b"lsst:7"]
    (state,) = store.update([GOOD])
    assert (state.remembered, state.spectrum, state.kept_search) == (0, None, None)
    assert [key.decode() for key in client.keys("*:ps")] == [key_of(client, "7", "ps", "lsst")]
    assert trifid("forget", "7").exit_code == 0
    for command in ("show", "forget", "repair"):
        unknown: Result = trifid(command, "ZTF99none")
        assert unknown.exit_code == 1
        assert "nothing is stored of 'ZTF99none'" in unknown.stderr


def test_repair_beside_workers_loses_no_point(server: RedisServer, store: RedisStore, client: redis.Redis) -> None:
    """An object that a worker writes between the reading and the writing of a repair is repaired again."""
    from broker.build import build_state_admin
    from broker.config import Settings
    from broker.state.admin import Selection

    store.update([GOOD, spoilt(GOOD.light_curve)])
    admin = build_state_admin(Settings(redis={"url": server.url}))  # type: ignore[arg-type]
    write, late = (
        admin._write,
        replace(GOOD, mjd=GOOD.mjd + 3, light_curve=point("ztf", "x", 0, 0, GOOD.mjd + 3).light_curve),
    )

    def write_later(*arguments: object) -> bool:
        admin._write = write  # type: ignore[method-assign]
        store.update([late])
        return write(*arguments)  # type: ignore[arg-type]

    admin._write = write_later  # type: ignore[method-assign, assignment]
    with closing(admin):
        repaired = admin.repair(("ztf", NAME), 70_000.0, Selection())
    curve, _ = stored(client)
    assert curve.mjd[-1] == late.mjd
    assert repaired.left == len(curve) == len(merge(GOOD.light_curve, late.light_curve))


def test_packets_of_the_future_leave_the_state_as_it_was(store: RedisStore, client: redis.Redis) -> None:
    """One alert dated 50 years ahead, and one with 2,000 points to come: they had evicted the real history."""
    decoder = Decoder()
    store.update([GOOD])
    before = client.get(key_of(client, NAME))
    record: Any = next(fastavro.reader(io.BytesIO(PAYLOADS[-1])))
    now, like = mjd_now(), record["candidate"]

    def packet(mjd: float, earlier: list[float]) -> bytes:
        out = io.BytesIO()
        points = [{**like, "jd": time + JD_OF_MJD_0} for time in earlier]
        changed = {**record, "candidate": {**like, "jd": mjd + JD_OF_MJD_0}, "prv_candidates": points, "fp_hists": None}
        fastavro.writer(out, fastavro.parse_schema(json.loads(SCHEMA_JSON)), [changed])
        return out.getvalue()

    sent = [packet(now + 18_262, [now - 1]), packet(GOOD.mjd, [now + 0.5 + day for day in range(2000)])]
    refused, kept = decoder.decode_batch(sent, [now, now])
    assert isinstance(refused, DecodeError)
    assert isinstance(kept, list)
    assert [a.light_curve.mjd.tolist() for a in kept if isinstance(a, Alert)] == [[GOOD.mjd]]
    store.update([a for a in kept if isinstance(a, Alert)])
    assert client.get(key_of(client, NAME)) == before


def test_the_users_of_the_example_have_the_rights_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """deploy/security/redis-users.acl: the service remembers and watches, the operator shows, repairs and forgets."""
    acl = (ROOT / "deploy" / "security" / "redis-users.acl").read_text()
    for place in ("ADMIN", "TRIFID", "OPERATOR", "WEB"):
        acl = acl.replace(f"@{place}_SHA256@", hashlib.sha256(place.encode()).hexdigest())
    (tmp_path / "users.acl").write_text(acl)
    with RedisServer(acl_file=tmp_path / "users.acl", login=("admin", "ADMIN")) as server:
        address = f"127.0.0.1:{server.port}/0"
        with closing(RedisStore(f"redis://trifid:TRIFID@{address}")) as store:
            store.check()
            store.update([GOOD, spoilt(GOOD.light_curve)])
            spectrum = Spectrum(np.arange(4000.0, 4100.0), *np.ones((2, 100), np.float32))
            sent = ObservedSpectrum("s", 0.0, 0.0, 59000.0, spectrum)
            for each in (sent, replace(sent, ra=9.0), replace(sent, survey="ztf", object_id=NAME)):
                store.put_observed([each])
            (state,) = store.update([GOOD])
            assert state.spectrum is not None
        monkeypatch.setenv("TRIFID_REDIS__URL", f"redis://trifid-operator:OPERATOR@{address}")
        for arguments, said in (
            (("show", NAME), "spectrum yes"),
            (("repair", "--all"), "42 points removed"),
            (("forget", NAME), "forgotten"),
        ):
            done = CliRunner().invoke(main, ["state", *arguments])
            assert (done.exit_code, said in done.stdout) == (0, True), done.output


@pytest.mark.parametrize(("user", "scripts"), [("trifid", "state/*.lua"), ("trifid-operator", "*/*.lua")])
def test_each_command_of_the_scripts_is_granted(user: str, scripts: str) -> None:
    called = {
        command.lower()
        for path in (ROOT / "broker").glob(scripts)
        for command in re.findall(r"redis\.call\('(\w+)'", path.read_text())
    }
    (line,) = (
        line
        for line in (ROOT / "deploy" / "security" / "redis-users.acl").read_text().splitlines()
        if line.startswith(f"user {user} ")
    )
    assert len(called) > 8
    assert {f"+{command}" for command in called} <= set(line.split())
