"""Catalogues of known variable stars in a real Redis: their stars beside alerts, and never among the model's inputs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import redis

from broker import sky
from broker.catalog.presets import KNOWN, PLAIN, PRESETS
from broker.catalog.store import CatalogStore
from broker.embedded.redis import RedisServer
from broker.errors import InputFileError
from broker.records import Alert, KnownObject, LightCurve
from broker.state.redis import RedisStore
from tests.commands import catalog

MJD_2020 = 58849.5
ALERT = Alert("ztf", 1, 1, "ZTF1", 120.5, 10.25, MJD_2020, "ztf:g", LightCurve.empty(), "")
VSX = "OID,Name,V,RAJ2000,DEJ2000,Type,l_Period,Period\n1,AB Xyz,0,120.50001,10.25,EW|ESD,,0.4123456789\n"


@pytest.fixture
def store(server: RedisServer, client: redis.Redis) -> Iterator[CatalogStore]:
    store = CatalogStore(server.url)
    yield store
    store.close()


@pytest.fixture
def states(server: RedisServer, client: redis.Redis) -> Iterator[RedisStore]:
    states = RedisStore(server.url)
    yield states
    states.close()


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_an_alert_gets_the_star_of_each_catalogue_and_the_model_nothing_of_it(
    store: CatalogStore, states: RedisStore, tmp_path: Path
) -> None:
    store.load("mine", [write(tmp_path / "t.csv", "ra,dec,ruwe\n120.5,10.25,1.5\n")], PLAIN)
    (before,) = states.update([ALERT])
    store.load("vsx", [write(tmp_path / "vsx.csv", VSX)], KNOWN)
    store.load("gcvs", [write(tmp_path / "gcvs.csv", "ra,dec,VarType\n120.5,10.2503,E:\n")], KNOWN)
    (after,) = states.update([ALERT])
    assert before.known_as == ()
    assert before.metadata is not None
    assert after.metadata is not None
    assert after.metadata.values.tobytes() == before.metadata.values.tobytes()
    vsx, gcvs = after.known_as
    assert vsx == KnownObject("vsx", "AB Xyz", "EW|ESD", 0.4123456789, vsx.distance, "Eclipsing")
    assert vsx.distance == pytest.approx(0.0354, abs=1e-3)
    assert gcvs == KnownObject("gcvs", None, "E:", None, gcvs.distance, "Eclipsing")
    assert gcvs.distance == pytest.approx(1.08, abs=1e-3)
    # A body of the solar system that passes by, and a place 2.1 arcsec beside it.
    passing = replace(ALERT, object_id="ZTF2", alert_id=2, solar_system=True)
    beside = replace(ALERT, object_id="ZTF3", alert_id=3, dec=10.25 - 2.1 / 3600)
    assert [state.known_as for state in states.update([passing, beside])] == [(), ()]


def test_a_fast_star_is_found_where_gaia_says_how_it_moves(
    store: CatalogStore, states: RedisStore, tmp_path: Path
) -> None:
    """Of 0.4 arcsec a year: 8 arcsec in the 20 years from VSX's epoch on."""
    motion = (np.array([400.0]), np.array([0.0]))
    at_2000 = (np.array([120.5]), np.array([10.25]))
    ra_2016, dec_2016 = sky.move(*at_2000, *motion, np.array([16.0]))
    ra, dec = sky.move(*at_2000, *motion, np.array([20.0]))
    alert = replace(ALERT, ra=float(ra[0]), dec=float(dec[0]))
    store.load("vsx", [write(tmp_path / "vsx.csv", "ra,dec,Name,Type\n120.5,10.25,fast,BY\n")], KNOWN)
    assert states.update([alert])[0].known_as == ()
    gaia = f"ra,dec,pmra,pmdec,phot_g_mean_mag\n{ra_2016[0]},{dec_2016[0]},400,0,12\n"
    store.load("gaia", [write(tmp_path / "gaia.csv", gaia)], PRESETS["gaia"])
    ((found,),) = [state.known_as for state in states.update([alert])]
    assert (found.name, found.class_name) == ("fast", "ROT")
    assert found.distance == pytest.approx(0.0, abs=5e-3)


def test_the_commands(server: RedisServer, client: redis.Redis, tmp_path: Path) -> None:
    path = write(tmp_path / "vsx.csv", VSX + "2,gone,3,50,50,M,,300\n")
    result = catalog(server, "load", "vsx", path)
    assert result.exit_code == 0, result.output
    assert "catalogue vsx: 1 sources from 1 file (1 rows" in result.stdout
    assert "radius 2 arcsec; name, type, period" in result.stdout
    assert "  unknown flag: 1 possible duplicate\n" in result.stdout
    line, *rest = catalog(server, "match", "120.5", "10.25").stdout.splitlines()
    assert line.startswith("vsx: AB Xyz 0.03")
    assert line.endswith("arcsec from 120.500000 +10.250000: EW|ESD, 0.4123457 d")
    assert rest == []
    found = json.loads(catalog(server, "match", "120.5", "10.25", "--json").stdout)
    assert found["values"] == {}
    (match,) = found["matches"]
    assert {name: match[name] for name in ("catalog", "name", "type", "class", "period", "values")} == {
        "catalog": "vsx", "name": "AB Xyz", "type": "EW|ESD", "class": "Eclipsing", "period": 0.4123456789,
        "values": {},
    }  # fmt: skip
    assert catalog(server, "load", "mine", path, "--preset", "vsx", "--radius", "5").exit_code == 0
    assert "mine: AB Xyz 3.996 arcsec" in catalog(server, "match", "120.5", "10.25111").stdout


def test_a_catalogue_of_names_does_not_mix_with_one_of_values(store: CatalogStore, tmp_path: Path) -> None:
    store.load("vsx", [write(tmp_path / "vsx.csv", VSX)], KNOWN)
    with pytest.raises(InputFileError, match="no column of names or types"):
        store.load("vsx", [write(tmp_path / "t.csv", "ra,dec,ruwe\n120.5,10.25,1.5\n")], KNOWN)
    other = write(tmp_path / "u.csv", "ra,dec,Type,ruwe\n120.5,10.25,M,1.5\n")
    result = store.load("vsx", [tmp_path / "vsx.csv", other], KNOWN)
    assert result.failures == (f"{other}: gives type, but the catalogue has name, type, period",)
    assert result.contents.rows == 1
