"""The HTTP API with a real Redis, and an index filled by the pipeline and the publisher."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import secrets
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import redis
import sqlalchemy as sa
from astropy import units
from astropy.coordinates import EarthLocation, SkyCoord
from astropy.time import Time
from fastapi.testclient import TestClient
from prometheus_client import REGISTRY
from pydantic import SecretStr

from broker.client import PublishedAnnotation
from broker.config import Settings
from broker.embedded.redis import RedisServer
from broker.errors import ConfigurationError
from broker.records import LightCurve
from broker.web import search as web_search
from broker.web.app import application, parts_of
from broker.web.index import Index
from broker.web.objects import magnitudes
from broker.web.search import Cone, Query, Sort, search
from broker.web.services import Services
from tests.integration.web_line import fill, publish, settings_for

URL = "http://127.0.0.1:8080"


@pytest.fixture(scope="module")
def settings(server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return settings_for(server.url, tmp_path_factory.mktemp("web"), requests_per_minute=100_000)


@pytest.fixture(scope="module")
def annotations(settings: Settings) -> list[PublishedAnnotation]:
    return publish(settings, objects=12, visits=20)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def parts(
    request: pytest.FixtureRequest, settings: Settings, annotations: list[PublishedAnnotation]
) -> Iterator[Services]:
    if request.param == "postgresql":
        url = SecretStr(request.getfixturevalue("postgres").database())
        settings = settings.model_copy(update={"web": settings.web.model_copy(update={"database": url})})
    with closing(fill(settings, annotations)) as index, parts_of(settings, index, follow=False) as parts:
        yield parts


@pytest.fixture(scope="module")
def http(parts: Services) -> TestClient:
    return TestClient(application(parts), base_url=URL)


@pytest.fixture(scope="module")
def latest(annotations: list[PublishedAnnotation]) -> dict[str, PublishedAnnotation]:
    found: dict[str, PublishedAnnotation] = {}
    for annotation in annotations:
        if annotation.object_id not in found or annotation.mjd >= found[annotation.object_id].mjd:
            found[annotation.object_id] = annotation
    return found


def test_search_by_class_gives_what_was_published(http: TestClient, latest: dict[str, PublishedAnnotation]) -> None:
    counts = Counter(a.best_class for a in latest.values())
    assert len(counts) > 1
    for name, count in counts.items():
        found = http.get("/api/v1/objects", params={"class": name.lower(), "limit": 1000}).json()
        assert len(found["objects"]) == count
        assert found["cursor"] is None
        for one in found["objects"]:
            expected = latest[one["objectId"]]
            assert (one["class"], one["probability"]) == (name, expected.best_probability)
            assert (one["ra"], one["dec"], one["mjd"]) == (expected.ra, expected.dec, expected.mjd)


def test_pages_together_are_the_whole_in_order(http: TestClient, latest: dict[str, PublishedAnnotation]) -> None:
    cursor, seen = None, []
    for _ in range(100):
        page = http.get(
            "/api/v1/objects", params={"sort": "probability", "limit": 5} | ({"cursor": cursor} if cursor else {})
        )
        seen += page.json()["objects"]
        cursor = page.json()["cursor"]
        if cursor is None:
            break
    assert sorted(one["objectId"] for one in seen) == sorted(latest)
    probabilities = [one["probability"] for one in seen]
    assert probabilities == sorted(probabilities, reverse=True)


def test_a_parents_probability_is_what_a_search_by_parent_compares(
    http: TestClient, latest: dict[str, PublishedAnnotation]
) -> None:
    least = 0.8
    for parent in ("RRLyrae", "Eclipsing"):
        found = http.get("/api/v1/objects", params={"parent": parent, "min_probability": least}).json()["objects"]
        expected = {i for i, a in latest.items() if a.parent == parent and a.parents[parent] >= least}
        assert {one["objectId"] for one in found} == expected


@pytest.mark.parametrize("sort", ["probability", "anomaly", "mjd", "published"])
def test_a_cone_sorts_as_a_search_without_one(
    database: str, annotations: list[PublishedAnnotation], sort: Sort
) -> None:
    index = Index(database)
    index.add([replace(a, ra=10.0 + n / 1e4, dec=5.0) for n, a in enumerate(annotations)])
    for parent in ("RRLyrae", "Eclipsing"):
        query = Query(parent=parent, sort=sort)
        everywhere = [one["objectId"] for one in search(index, query, 1000).objects]
        within = search(index, replace(query, cone=Cone(10.0, 5.0, 3600.0)), 1000).objects
        assert [one["objectId"] for one in within] == everywhere
    index.close()


def test_a_cone_is_the_same_in_degrees_and_sexagesimal(
    http: TestClient, latest: dict[str, PublishedAnnotation]
) -> None:
    star = next(iter(latest.values()))
    at = SkyCoord(star.ra, star.dec, unit="deg")
    hours = at.ra.to_string(unit=units.hour, sep=":", precision=4)
    degrees = at.dec.to_string(sep=":", precision=4, alwayssign=True)
    for place in ({"ra": star.ra, "dec": star.dec}, {"ra": hours, "dec": degrees}):
        found = http.get("/api/v1/objects", params=place | {"radius": 2}).json()["objects"]
        assert found[0]["objectId"] == star.object_id
        assert found[0]["distanceArcsec"] < 0.01


def test_cones_find_what_astropy_finds(database: str, annotations: list[PublishedAnnotation]) -> None:
    random = np.random.default_rng(1)
    index = Index(database)
    for centre_ra, centre_dec in ((10.0, -30.0), (0.0, 0.0), (359.9999, 89.99), (200.0, -90.0)):
        ra = (centre_ra + random.normal(0, 0.4, 400) / max(math.cos(math.radians(centre_dec)), 0.01)) % 360.0
        dec = np.clip(centre_dec + random.normal(0, 0.4, 400), -90.0, 90.0)
        stars = [
            replace(annotations[0], object_id=f"{centre_ra}-{n}", ra=float(ra[n]), dec=float(dec[n]))
            for n in range(400)
        ]
        index.add(stars)
        separations = SkyCoord(ra, dec, unit="deg").separation(SkyCoord(centre_ra, centre_dec, unit="deg")).arcsec
        for radius in (1.0, 60.0, 900.0, 3600.0):
            cone = Cone(centre_ra, centre_dec, radius)
            found = search(index, Query(cone=cone, sort="distance"), 1000).objects
            assert {o["objectId"] for o in found} == {stars[n].object_id for n in np.flatnonzero(separations <= radius)}
            distances = [o["distanceArcsec"] for o in found]
            assert np.allclose(distances, np.sort(separations[separations <= radius]), atol=1e-4)
    index.close()


def test_a_cone_with_too_many_objects_is_refused(
    parts: Services, http: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web_search, "MAX_IN_CONE", 0)
    star = search(parts.index, Query(), 1).objects[0]
    answer = http.get("/api/v1/objects", params={"ra": star["ra"], "dec": star["dec"], "radius": 5})
    assert answer.status_code == 422
    assert "smaller radius" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        ({"class": "Cepheid"}, "'Cepheid' is none of EW, SR"),
        ({"ra": "400", "dec": "0"}, "none of 0 to 360 degrees"),
        ({"ra": "nan", "dec": "0"}, "none of 0 to 360 degrees"),
        ({"ra": "1"}, "give both ra and dec"),
        ({"ra": "1", "dec": "1", "radius": "-1"}, "radius: Input should be greater than 0"),
        ({"radius": "5"}, "radius needs ra and dec"),
        ({"since": "yesterday"}, "neither an MJD nor"),
        ({"since": "inf"}, "neither an MJD nor"),
        ({"sort": "distance"}, "needs ra, dec and radius"),
        ({"limit": "0"}, "limit: Input should be greater than or equal to 1"),
        ({"cursor": "x"}, "cursor is none that this search gave"),
        ({"ra": "1", "dec": "1", "cursor": "-1"}, "cursor is none that this search gave"),
        ({"ra": "1", "dec": "1", "cursor": "\u00b2"}, "cursor is none that this search gave"),
        ({"cursor": "1.0_9223372036854775808"}, "cursor is none that this search gave"),
        ({"cursor": "nan_1"}, "cursor is none that this search gave"),
        ({"min_probability": "nan"}, "min_probability"),
        ({"colour": "red"}, "colour: there is no such parameter"),
    ],
)
def test_what_cannot_be_meant_is_refused(http: TestClient, asked: dict[str, str], problem: str) -> None:
    answer = http.get("/api/v1/objects", params=asked)
    assert answer.status_code == 422, answer.text
    assert problem in answer.json()["detail"]


def test_an_object_has_light_curve_spectrum_history_and_annotation(
    http: TestClient, annotations: list[PublishedAnnotation], latest: dict[str, PublishedAnnotation]
) -> None:
    star = annotations[0]
    one = http.get(f"/api/v1/objects/ztf/{star.object_id}").json()
    own = sorted((a for a in annotations if a.object_id == star.object_id), key=lambda a: a.mjd)
    assert [h["alertIdStr"] for h in one["history"]] == [str(a.alert_id) for a in own]
    assert one["history"][-1]["probabilities"] == {
        n: round(p, 6) for n, p in zip(own[-1].class_names, own[-1].probabilities, strict=True)
    }
    assert one["annotation"]["alertIdStr"] == str(latest[star.object_id].alert_id)
    assert one["lightCurve"]["kind"].count("detection") == len(own)
    times = [t for t, k in zip(one["lightCurve"]["mjd"], one["lightCurve"]["kind"], strict=True) if k == "detection"]
    assert times == pytest.approx([a.mjd for a in own], abs=1e-6)
    assert one["lightCurve"]["mjd"] == sorted(one["lightCurve"]["mjd"])
    # Beside the times at the observatory those at the barycentre, as astropy has them.
    there = Time(
        one["lightCurve"]["mjd"], format="mjd", scale="utc", location=EarthLocation.from_geocentric(0, 0, 0, "m")
    )
    at = SkyCoord(star.ra, star.dec, unit="deg")
    travel = there.light_travel_time(at, ephemeris="builtin").to_value("day")
    found = np.array(one["lightCurve"]["mjdBarycentric"]) - np.array(one["lightCurve"]["mjd"])
    assert found == pytest.approx(travel, abs=2e-6)
    assert np.abs(travel).max() > 1e-4
    line = np.argmin(one["spectrum"]["flux"])
    assert one["spectrum"]["wavelength"][line] == pytest.approx(6564.6, abs=2.0)
    assert one["problems"] == []


def test_magnitudes_are_ab_and_of_the_total_flux() -> None:
    # 3631 Jy is magnitude 0; 3631e9 nJy / 100 is 5. An error of 1 % is 0.010857 mag. A limit is of 5 sigma.
    curve = LightCurve(
        np.array([1.0, 2.0, 3.0, 4.0]),
        np.array([3631e7, 3621e7, np.nan, -1.0], np.float32),
        np.array([3631e5, 3631e5, 3631e7 / 5, 1.0], np.float32),
        np.array([0.0, 1e8, np.nan, np.nan], np.float32),
        np.zeros(4, np.uint8),
        np.array([0, 0, 2, 0], np.uint8),
    )
    magnitude, error, total = magnitudes(curve)
    assert magnitude[:3] == pytest.approx([5.0, 5.0, 5.0], abs=1e-6)
    assert np.isnan(magnitude[3])
    assert error[:2] == pytest.approx([0.0108574, 0.0108574], abs=1e-6)
    assert np.isnan(error[2:]).all()
    assert total.tolist() == [True, True, False, False]


def test_csv_has_the_values_of_json(http: TestClient, annotations: list[PublishedAnnotation]) -> None:
    address = f"/api/v1/objects/ztf/{annotations[0].object_id}/lightcurve"
    columns = http.get(address).json()
    answer = http.get(address, params={"format": "csv"})
    assert "attachment" in answer.headers["content-disposition"]
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert [float(row["mjd"]) for row in rows] == columns["mjd"]
    assert [row["magnitude"] for row in rows] == ["" if m is None else str(m) for m in columns["magnitude"]]
    history = http.get(address.replace("lightcurve", "history"), params={"format": "csv"}).text
    own = [a for a in annotations if a.object_id == annotations[0].object_id]
    assert [row["alertIdStr"] for row in csv.DictReader(io.StringIO(history))] == [str(a.alert_id) for a in own]


def test_what_is_not_there_is_404_with_a_hint(http: TestClient, annotations: list[PublishedAnnotation]) -> None:
    answer = http.get(f"/api/v1/objects/lsst/{annotations[0].object_id}")
    assert answer.status_code == 404
    assert answer.json()["detail"].endswith(f"there is ztf:{annotations[0].object_id}")
    assert http.get(f"/api/v1/objects/ztf/{annotations[1].object_id}/spectrum").status_code == 404
    assert http.get("/api/v1/nothing").status_code == 404


def test_each_modality_speaks_for_itself(http: TestClient, annotations: list[PublishedAnnotation]) -> None:
    found = http.get(f"/api/v1/objects/ztf/{annotations[0].object_id}/modalities").json()
    assert found["all"]["modalities"] == [m for m in found if m != "all"]
    assert {"light_curve", "spectrum"} <= set(found)
    for modality, record in found.items():
        assert sum(c["probability"] for c in record["classifications"]) == pytest.approx(1.0)
        assert record["modalities"] == (found["all"]["modalities"] if modality == "all" else [modality])
    assert found["light_curve"]["classifications"] != found["spectrum"]["classifications"]


def test_statistics_of_a_night_count_its_annotations(
    http: TestClient, annotations: list[PublishedAnnotation], latest: dict[str, PublishedAnnotation]
) -> None:
    tonight = http.get("/api/v1/nights/tonight").json()
    counts = Counter(a.best_class for a in annotations)
    assert {row["class"]: row["annotations"] for row in tonight["classes"]} == dict(counts)
    assert (tonight["annotations"], tonight["objects"]) == (len(annotations), len(latest))
    assert tonight["startMjd"] % 1 == 0.5  # noon
    assert http.get("/api/v1/nights/2020-01-01").json()["annotations"] == 0
    assert http.get("/api/v1/nights/2020-13-01").status_code == 422


def test_status_says_what_does_not_answer(
    http: TestClient, settings: Settings, parts: Services, latest: dict[str, PublishedAnnotation]
) -> None:
    status = http.get("/api/v1/status").json()
    assert status["redis"] == "ok"
    assert status["index"]["objects"] == len(latest)
    nobody = settings.model_copy(update={"redis": settings_for("redis://127.0.0.1:1/0", Path("/")).redis})
    with parts_of(nobody, parts.index, follow=False) as alone:
        other = TestClient(application(alone), base_url=URL)
        assert "Redis" in other.get("/api/v1/status").json()["redis"]
        name = next(iter(latest))
        one = other.get(f"/api/v1/objects/ztf/{name}").json()
        assert one["annotation"]["objectId"] == name
        assert one["problems"][0].startswith("no light curve and no spectrum now: ")
        assert other.get(f"/api/v1/objects/ztf/{name}/lightcurve").status_code == 503


def test_a_right_that_redis_does_not_give_is_no_fault_of_the_server(
    server: RedisServer, settings: Settings, parts: Services, latest: dict[str, PublishedAnnotation]
) -> None:
    with closing(redis.Redis.from_url(server.url)) as client:
        client.execute_command("ACL", "SETUSER", "blind", "on", ">secret", "~*", "+@connection")
        url = server.url.replace("redis://", "redis://blind:secret@")
        blind = settings.model_copy(update={"redis": settings_for(url, Path("/")).redis})
        with parts_of(blind, parts.index, follow=False) as alone:
            other = TestClient(application(alone), base_url=URL)
            name = next(iter(latest))
            assert (
                "no light curve and no spectrum now" in other.get(f"/api/v1/objects/ztf/{name}").json()["problems"][0]
            )
            assert other.get(f"/object/ztf/{name}").status_code == 200
            for path in ("lightcurve", "spectrum", "modalities"):
                answer = other.get(f"/api/v1/objects/ztf/{name}/{path}")
                assert answer.status_code == 503, answer.text
                assert "no light curve and no spectrum now" in answer.json()["detail"]
        client.execute_command("ACL", "DELUSER", "blind")


def test_an_annotation_that_comes_again_changes_nothing(database: str, annotations: list[PublishedAnnotation]) -> None:
    index = Index(database)
    own = [a for a in annotations if a.object_id == annotations[0].object_id]
    index.add(own[5:])
    index.add(own)  # late ones do not replace the latest
    index.add(own[:3])
    history = index.history("ztf", own[0].object_id)
    assert [h["mjd"] for h in history] == sorted(a.mjd for a in own)
    record = index.record("ztf", own[0].object_id)
    assert record is not None
    assert record["mjd"] == max(a.mjd for a in own)
    index.close()


def test_what_cannot_be_stored_keeps_nothing_else_out(
    database: str, annotations: list[PublishedAnnotation], caplog: pytest.LogCaptureFixture
) -> None:
    index = Index(database)
    before = REGISTRY.get_sample_value("trifid_web_refused_total") or 0.0
    good = [replace(annotations[0], object_id=f"good-{n}") for n in range(5)]
    too_large = replace(annotations[0], object_id="bad", alert_id=2**63)
    nowhere = replace(annotations[0], object_id="nowhere", ra=math.nan)
    # Longer than an index of PostgreSQL takes, also when it is compressed.
    endless = replace(annotations[0], object_id=secrets.token_hex(4000))
    index.add([*good[:3], too_large, nowhere, endless, *good[3:]])
    assert {o["objectId"] for o in search(index, Query()).objects} == {a.object_id for a in good}
    assert REGISTRY.get_sample_value("trifid_web_refused_total") == before + 3
    assert "'ztf:bad' (alert 9223372036854775808) is not in the index" in caplog.text
    index.close()


def test_what_is_older_than_the_retention_time_is_deleted(
    tmp_path: Path, annotations: list[PublishedAnnotation]
) -> None:
    index = Index(f"sqlite:///{tmp_path / 'old.sqlite'}")
    days = {"old": [100.0], "both": [101.0, 200.0], "new": [201.0]}
    index.add(
        [
            replace(annotations[0], object_id=name, publish_mjd=day, mjd=day, alert_id=int(day))
            for name, published in days.items()
            for day in published
        ]
    )
    assert index.prune(150.0) == 2
    assert index.record("ztf", "old") is None
    assert [h["publishedMjd"] for h in index.history("ztf", "both")] == pytest.approx([200.0])
    assert index.contents()["objects"] == 2
    index.close()


def test_a_database_that_cannot_be_used_is_told_without_its_password() -> None:
    for url in ("sqlite:////nowhere/at/all.sqlite", "postgresql+psycopg://u:secret@127.0.0.1:1/x", "what://secret"):
        with pytest.raises(ConfigurationError, match=r"web\.database cannot be used") as told:
            Index(url)
        assert "secret" not in str(told.value)


def test_no_value_is_in_an_error_of_the_database(database: str) -> None:
    with closing(Index(database)) as index, index.engine.connect() as connection:
        with pytest.raises(sa.exc.DBAPIError, match="nowhere") as told:
            connection.execute(sa.text("SELECT a FROM nowhere WHERE a = :a"), {"a": "hunter2"})
        assert "hunter2" not in str(told.value)


def test_openapi_describes_all_routes(http: TestClient) -> None:
    described = http.get("/openapi.json").json()["paths"]
    assert {"get"} <= set(described["/api/v1/objects/{survey}/{object_id}"])
    assert {"get", "post"} == set(described["/api/v1/admin/tokens"])
    parameters = {p["name"]: p for p in described["/api/v1/objects"]["get"]["parameters"]}
    assert "17:57:48.5" in parameters["ra"]["description"]


def test_a_fault_of_the_server_shows_no_traceback(
    http: TestClient, parts: Services, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise RuntimeError("a secret detail")

    monkeypatch.setattr(Index, "contents", lambda _: fail())
    answer = http.get("/api/v1/status")
    assert answer.status_code == 500
    assert re.fullmatch(r"a fault of the server, which its log has under [0-9a-f]{8}", answer.json()["detail"])
    assert answer.json()["detail"][-8:] in caplog.text
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text
    assert answer.headers["x-content-type-options"] == "nosniff"
    monkeypatch.setattr(
        Index, "contents", lambda _: (_ for _ in ()).throw(sa.exc.OperationalError("select", {}, Exception("locked")))
    )
    assert http.get("/api/v1/status").status_code == 503


def test_openapi_says_what_refusals_look_like(http: TestClient) -> None:
    described = http.get("/openapi.json").json()
    problem = described["components"]["schemas"]["Problem"]
    asked = [
        ("/api/v1/objects/{survey}/{object_id}", "get", "/api/v1/objects/ztf/none", 404),
        ("/api/v1/objects", "get", "/api/v1/objects?limit=-1", 422),
        ("/api/v1/objects", "get", f"/api/v1/objects?class={'x' * 9000}", 414),
        ("/api/v1/watches/{name}", "get", "/api/v1/watches/none", 404),
        ("/api/v1/feedback", "get", "/api/v1/feedback?object=none", 404),
        ("/api/v1/feedback", "post", "/api/v1/feedback", 400),
        ("/api/v1/admin/tokens", "post", "/api/v1/admin/tokens", 400),
    ]
    for path, method, address, status in asked:
        # What is no UTF-8 cannot be parsed; a wrong body is told as 422.
        body = {"content": b"\xff", "headers": {"Content-Type": "application/json"}} if status == 400 else {}
        answer = http.request(method.upper(), address, **body)  # type: ignore[arg-type]
        assert answer.status_code == status, (address, answer.text)
        told = described["paths"][path][method]["responses"][str(status)]["content"]["application/json"]["schema"]
        assert told == {"$ref": "#/components/schemas/Problem"}
        jsonschema.validate(answer.json(), problem)
    for path, methods in described["paths"].items():
        for method, route in methods.items():
            assert {"401", "403", "413", "422", "429", "500", "503"} <= set(route["responses"]), (path, method)
            assert ("404" in route["responses"]) == ("{" in path or path.startswith("/api/v1/feedback"))
            assert ("400" in route["responses"]) == ("requestBody" in route)
            assert ("409" in route["responses"]) == ((path, method) == ("/api/v1/admin/tokens", "post"))
    for part in ("lightcurve", "spectrum", "history"):
        route = described["paths"][f"/api/v1/objects/{{survey}}/{{object_id}}/{part}"]["get"]
        assert {"application/json", "text/csv"} == set(route["responses"]["200"]["content"])
    assert "HTTPValidationError" not in json.dumps(described)


def test_head_is_answered_as_get_without_the_body(http: TestClient, latest: dict[str, PublishedAnnotation]) -> None:
    one = next(iter(latest.values()))
    addresses = (
        "/", "/api/v1/objects", f"/api/v1/objects/{one.survey}/{one.object_id}", "/openapi.json", "/healthz",
        f"/object/{one.survey}/{one.object_id}", "/api/v1/objects/ztf/none", "/nowhere",
    )  # fmt: skip
    for address in addresses:
        got, head = http.get(address), http.head(address)
        assert (head.status_code, head.content) == (got.status_code, b""), address
        told = ("content-type", "cache-control", "content-security-policy", "x-content-type-options")
        assert [head.headers.get(name) for name in told] == [got.headers.get(name) for name in told]
    assert http.head("/api/v1/objects").headers["content-length"] == str(len(http.get("/api/v1/objects").content))
    assert http.head("/api/v1/watches/check").status_code == 404  # a list of that name
