"""Users' lists over the HTTP API: who may, what is refused, counts by hand, quotas, uploads, older databases."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient
from pydantic import SecretStr

from broker.client import Expression, PublishedAnnotation
from broker.config import NotifySettings, Settings
from broker.database import WATCH_DAYS, WATCHES
from broker.embedded.redis import RedisServer
from broker.times import mjd_now
from broker.watch import lists
from broker.watch.match import Hit
from broker.watch.outbox import Outbox
from broker.web import feedback
from broker.web.app import application, parts_of
from broker.web.index import Index
from broker.web.services import Services
from tests.integration.web_line import fill, publish, settings_for

URL = "http://127.0.0.1:8080"


@pytest.fixture(scope="module")
def settings(server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    web = settings_for(
        server.url, tmp_path_factory.mktemp("lists"), requests_per_minute=100_000, classifications_per_minute=100_000,
        require_login=True,
    )  # fmt: skip
    notify = NotifySettings(
        max_lists=3, max_positions=100_010, matches_per_day=5, smtp_host="127.0.0.1", mail_from="t@example.org",
        email_domains=("example.org",),
    )  # fmt: skip
    return web.model_copy(update={"notify": notify})


@pytest.fixture(scope="module")
def annotations(settings: Settings) -> list[PublishedAnnotation]:
    return publish(settings, objects=12, visits=20)


@pytest.fixture(scope="module")
def parts(settings: Settings, annotations: list[PublishedAnnotation]) -> Iterator[Services]:
    with parts_of(settings, fill(settings, annotations), follow=False) as parts:
        yield parts


@pytest.fixture(scope="module")
def tokens(parts: Services) -> dict[str, str]:
    return {
        "alice": parts.tokens.create("alice", frozenset({"read", "watch"})),
        "Bob B.": parts.tokens.create("Bob B.", frozenset({"read", "watch"})),
        "reader": parts.tokens.create("reader", frozenset({"read"})),
    }


def client(parts: Services, token: str) -> TestClient:
    return TestClient(application(parts), base_url=URL, headers={"Authorization": f"Bearer {token}"})


@pytest.fixture
def alice(parts: Services, tokens: dict[str, str]) -> Iterator[TestClient]:
    with parts.index.engine.begin() as connection:
        connection.execute(sa.delete(WATCHES))
        connection.execute(sa.delete(WATCH_DAYS))
    return client(parts, tokens["alice"])


def test_lists_are_their_owners_and_need_a_scope(alice: TestClient, parts: Services, tokens: dict[str, str]) -> None:
    made = alice.post("/api/v1/watches", json={"name": "mine", "lines": "10, 20, a star\nZTF18abc", "radius": 3})
    assert made.status_code == 201
    assert made.json()["topic"] == "trifid.user.alice.mine"
    assert (made.json()["positions"], made.json()["radius"]) == (2, 3.0)
    bob = client(parts, tokens["Bob B."])
    assert bob.get("/api/v1/watches").json() == {"lists": []}
    for method, path in (("GET", "mine"), ("PUT", "mine"), ("DELETE", "mine"), ("POST", "mine/retry")):
        body = {"json": {"expression": "known"}} if method == "PUT" else {}
        assert bob.request(method, f"/api/v1/watches/{path}", **body).status_code == 404  # type: ignore[arg-type]
    assert bob.post("/api/v1/watches", json={"name": "mine", "expression": "known"}).status_code == 201
    # The first eight digits of `printf 'Bob B.' | sha256sum`.
    assert bob.get("/api/v1/watches/mine").json()["topic"] == "trifid.user.bob-b-2edba5c8.mine"
    reader = client(parts, tokens["reader"])
    assert reader.get("/api/v1/watches").status_code == 403
    assert reader.get("/watches").status_code == 403
    nobody = TestClient(application(parts), base_url=URL)
    assert nobody.get("/api/v1/watches").status_code == 401
    assert alice.delete("/api/v1/watches/mine").status_code == 204
    assert alice.get("/api/v1/watches/mine").status_code == 404
    again = alice.post("/api/v1/watches", json={"name": "mine", "expression": "known"})
    assert again.json()["detail"] == "a list 'mine' is being deleted: wait a little"


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"expression": "probability > 'x'"}, "expression, character 15: this is a text, and has to be a number"),
        ({}, "give positions, names, a region or an expression"),
        ({"name": "Mine"}, "a list's name has"),
        ({"name": "a.b", "expression": "known"}, "a list's name has"),
        ({"lines": "ten, 20"}, "line 1: 'ten, 20' is no position"),
        ({"region": "5/x"}, "no MOC"),
        ({"expression": "known", "radius": 700}, "radius: "),
        ({"expression": "known", "email": "x"}, "no e-mail address"),
        ({"expression": "known", "email": "a@example.org\r\nBcc: b@c.de"}, "no e-mail address"),
        ({"expression": "known", "email": "a@elsewhere.org"}, "mail goes to example.org only"),
        ({"expression": "known", "email": "a@example.org", "webhook": "https://a.org/"}, "give email or webhook"),
        ({"expression": "known", "webhook": "http://example.org/x"}, "begins with https://"),
        ({"expression": "known", "webhook": "https://127.0.0.1/x"}, "127.0.0.1 is no public address"),
        ({"expression": "known", "webhook": "https://u:p@example.org/x"}, "no login"),
        ({"expression": "known", "what": 1}, "what: "),
        ({"expression": "known", "every_hours": -1}, "every_hours: "),
    ],
)
def test_what_is_refused(alice: TestClient, given: dict[str, object], problem: str) -> None:
    answer = alice.post("/api/v1/watches", json={"name": "mine"} | given)
    assert (answer.status_code, problem in answer.json()["detail"]) == (422, True), answer.json()
    assert alice.get("/api/v1/watches").json() == {"lists": []}


@pytest.mark.parametrize(
    "text",
    [
        'class == "M" or class == "SR"', "detections > 10 and probability > 0.3", 'probability("RRLyrae") > 0.2',
        "pOther > 0.1 or missing(pOther)", "true", '"spectrum" in modalities',
    ],
)  # fmt: skip
def test_a_count_is_that_of_the_last_nights_annotations(
    alice: TestClient, annotations: list[PublishedAnnotation], text: str
) -> None:
    answer = alice.post("/api/v1/watches/check", json={"expression": text}).json()
    latest = {a.object_id: a for a in sorted(annotations, key=lambda a: (a.mjd, a.publish_mjd))}
    approximate = "pOther" in text
    meets = Expression(text)
    wanted = [a for a in annotations if meets(latest[a.object_id] if approximate else a)]
    assert answer["annotations"] == len(annotations)
    assert (answer["matches"], answer["approximate"]) == (len(wanted), approximate)
    assert answer["objects"] == len({a.object_id for a in wanted})


def test_a_count_by_place_and_name(alice: TestClient, annotations: list[PublishedAnnotation]) -> None:
    star, other = annotations[0], next(a for a in annotations if a.object_id != annotations[0].object_id)
    own = [a for a in annotations if a.object_id == star.object_id]
    lines = f"{star.ra}, {star.dec + 1 / 3600}, near\n"
    answer = alice.post("/api/v1/watches/check", json={"lines": lines, "radius": 5}).json()
    assert (answer["matches"], answer["objects"]) == (len(own), 1)
    assert alice.post("/api/v1/watches/check", json={"lines": lines, "radius": 0.5}).json()["matches"] == 0
    both = alice.post("/api/v1/watches/check", json={"lines": f"{lines}{other.survey}:{other.object_id}", "radius": 5})
    assert both.json()["objects"] == 2
    wrong = alice.post("/api/v1/watches/check", json={"expression": "probability >"})
    assert (wrong.status_code, wrong.json()["detail"]) == (422, "expression, character 14: it ends too early")


@pytest.mark.parametrize("radius", ["0", "-1", "nan", "inf", "600000", "1e-310"])
def test_a_radius_that_is_none_is_told_on_the_page_and_by_the_api(alice: TestClient, radius: str) -> None:
    form = {"lines": "10, 20", "radius": radius, "action": "check"}
    page = alice.post("/watches", data=form)
    assert (page.status_code, "give arcsec, 0.01 to 600" in page.text) == (422, True)
    body = f'{{"lines": "10, 20", "radius": {radius.replace("nan", "NaN").replace("inf", "Infinity")}}}'
    answer = alice.post("/api/v1/watches/check", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422


def test_no_more_positions_are_counted_than_a_user_may_have(alice: TestClient) -> None:
    table = b"ra,dec\n" + b"1,2\n" * 100_011
    page = alice.post("/watches", data={"action": "check"}, files={"file": ("stars.csv", table)})
    assert (page.status_code, "100,011 positions and names; 100,010 are the most" in page.text) == (422, True)


def test_uploads_and_quotas(alice: TestClient) -> None:
    rows = "".join(f"s{n},{n % 360},{n % 90}.5\n" for n in range(100_000))
    table = f"name,ra,dec\n{rows}".encode()
    made = alice.put("/api/v1/watches/many/content", files={"file": ("stars.csv", table)})
    assert made.status_code == 200, made.text
    assert (made.json()["positions"], made.json()["remarks"]) == (100_000, [])
    region = alice.put("/api/v1/watches/area/content", files={"file": ("m.txt", b"3/1-4")}).json()
    assert (region["positions"], region["region"]) == (0, True)
    too_many = alice.post("/api/v1/watches", json={"name": "more", "lines": "\n".join(f"o{n}" for n in range(11))})
    assert too_many.json()["detail"] == "100,011 positions and names in all your lists; 100,010 are the most"
    assert alice.post("/api/v1/watches", json={"name": "more", "lines": "a"}).status_code == 201
    fourth = alice.post("/api/v1/watches", json={"name": "fourth", "expression": "known"})
    assert fourth.json()["detail"] == "3 lists, those being deleted included; 3 are the most"
    bad = alice.put("/api/v1/watches/many/content", files={"file": ("x.csv", b"a,b\n1,2\n")})
    assert bad.status_code == 422
    assert bad.json()["detail"].startswith("x.csv: neither columns of positions")
    assert alice.get("/api/v1/watches/many").json()["positions"] == 100_000
    terms = alice.put("/api/v1/watches/many", json={"expression": "known", "radius": 1.5}).json()
    assert (terms["positions"], terms["radius"], terms["expression"]) == (100_000, 1.5, "known")


def test_matches_beyond_the_days_quota_are_counted_and_those_that_come_again_are_not(
    alice: TestClient, parts: Services, settings: Settings, annotations: list[PublishedAnnotation]
) -> None:
    alice.post("/api/v1/watches", json={"name": "all", "expression": "true"})
    ((wanted, row),) = lists.load(parts.index.engine, tokens_required=True)
    box = Outbox(parts.index.engine, settings)
    hits = [Hit(wanted.key, number, "") for number in range(8)]
    for _ in range(2):
        box.add(hits[:4], annotations, dict.fromkeys(range(4), b"x"), {wanted.key: row})
    assert len(alice.get("/api/v1/watches/all").json()["matches"]) == 4
    box.add(hits, annotations, dict.fromkeys(range(8), b"x"), {wanted.key: row})
    shown = alice.get("/api/v1/watches/all").json()
    assert (len(shown["matches"]), shown["leftOut"]) == (5, 3)
    assert shown["matches"][0]["objectId"] == annotations[4].object_id
    with parts.index.engine.begin() as connection:  # the next day
        connection.execute(sa.update(WATCH_DAYS).values(day=WATCH_DAYS.c.day - 1))
    box.add(hits, annotations, dict.fromkeys(range(8), b"x"), {wanted.key: row})
    assert len(alice.get("/api/v1/watches/all").json()["matches"]) == 8


def test_a_webhooks_path_is_not_shown(alice: TestClient) -> None:
    url = "https://hooks.slack.com/services/T0/SECRET"
    made = alice.post("/api/v1/watches", json={"name": "hook", "expression": "known", "webhook": url})
    assert made.json()["webhook"] == "https://hooks.slack.com/..."
    assert "SECRET" not in alice.get("/api/v1/watches/hook").text + alice.get("/watches/hook").text


def test_a_list_for_another_service_stays_what_it_is_when_its_page_is_saved(alice: TestClient) -> None:
    url = "https://portal.example.org/SECRET"
    given = {"name": "sky", "expression": "known", "webhook": url, "format": "skyportal", "options": {"group_ids": [3]}}
    refused = alice.post("/api/v1/watches", json=given)
    assert (refused.status_code, refused.json()["detail"]) == (422, "skyportal needs a token")
    made = alice.post("/api/v1/watches", json=given | {"token": "T0K3N"})
    assert (made.status_code, made.json()["token"], made.json()["everyHours"]) == (201, True, 0.0)
    assert "(skyportal)" in alice.get("/watches").text
    page = alice.get("/watches/sky").text
    assert "This list tells skyportal" in page
    assert "T0K3N" not in page + alice.get("/api/v1/watches/sky").text
    form = {"expression": "detections > 3", "send": "webhook", "every_hours": "24", "radius": "2"}
    assert alice.post("/watches/sky", data=form, follow_redirects=False).status_code == 303
    # As it is shown, over the API.
    shown = alice.get("/api/v1/watches/sky").json()
    assert (shown["expression"], shown["format"], shown["webhook"]) == (
        "detections > 3", "skyportal", "https://portal.example.org/..."
    )  # fmt: skip
    back = {name: shown[name] for name in ("expression", "radius", "webhook", "format", "options")}
    changed = alice.put("/api/v1/watches/sky", json=back | {"expression": "known"})
    assert (changed.status_code, changed.json()["token"]) == (200, True)


def test_lists_of_whoever_has_no_valid_token_any_more_do_not_count(
    alice: TestClient, parts: Services, tokens: dict[str, str]
) -> None:
    alice.post("/api/v1/watches", json={"name": "mine", "expression": "known"})
    client(parts, tokens["Bob B."]).post("/api/v1/watches", json={"name": "his", "expression": "known"})
    engine = parts.index.engine
    before = lists.version(engine)
    assert [row["name"] for _, row in lists.load(engine, tokens_required=True)] == ["mine", "his"]
    assert parts.tokens.revoke("Bob B.")
    assert lists.version(engine) != before
    assert [row["name"] for _, row in lists.load(engine, tokens_required=True)] == ["mine"]
    tokens["Bob B."] = parts.tokens.create("Bob B.", frozenset({"read", "watch"}))


def test_a_database_of_an_earlier_release_is_taken_on(tmp_path: Path) -> None:
    path = tmp_path / "old.sqlite"
    with closing(Index(f"sqlite:///{path}")) as index:
        names = [t for t in sa.inspect(index.engine).get_table_names() if t not in _EARLIER]
    with closing(sqlite3.connect(path)) as old:
        for name in names:  # as that release made it
            old.execute(f"DROP TABLE {name}")
        old.execute(
            "CREATE TABLE trifid_feedback (id INTEGER PRIMARY KEY, survey TEXT, object_id TEXT, label TEXT, "
            'comment TEXT, "by" TEXT, created FLOAT)'
        )
        old.execute("INSERT INTO trifid_feedback VALUES (7, 'ztf', 'ZTF1', 'RRAB', 'by eye', 'carol', 60000.5)")
        old.execute("DROP INDEX trifid_objects_by_combined")
        old.execute("ALTER TABLE trifid_objects DROP COLUMN combined_anomaly")
        old.execute(
            "INSERT INTO trifid_tokens (name, digest, scopes, created) VALUES ('carol', 'x', 'read', ?)", [mjd_now()]
        )
        old.commit()
    settings = Settings.model_validate({"web": {"database": SecretStr(f"sqlite:///{path}")}})
    with closing(Index(f"sqlite:///{path}")) as index:
        lists.Lists(index.engine, settings).create("local", "a", lists.Terms("known"), lists.Content())
        assert [row["name"] for _, row in lists.load(index.engine, tokens_required=False)] == ["a"]
        with index.engine.connect() as connection:
            assert connection.execute(sa.text("SELECT name FROM trifid_tokens")).scalars().all() == ["carol"]
        (said,) = feedback.find(index.engine, survey="ztf", object_id="ZTF1", limit=9)
        assert (said.kind, said.label, said.note, said.by, said.created) == (
            "class",
            "RRAB",
            "by eye",
            "carol",
            60000.5,
        )
        assert not sa.inspect(index.engine).has_table("trifid_feedback")
        assert index.most_anomalous(5) == []
    with closing(Index(f"sqlite:///{path}")) as index:
        assert len(feedback.find(index.engine, survey="ztf", object_id="ZTF1", limit=9)) == 1


_EARLIER = {"trifid_objects", "trifid_annotations", "trifid_tokens"}
