"""Answers about real objects of a stream: by command, from Python and over HTTP, to the worker, and back again."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import redis
import sqlalchemy as sa
from click.testing import CliRunner
from fastapi.testclient import TestClient

from broker.build import build_similar
from broker.cli import main
from broker.client import feedback_answers, give_feedback, undo_feedback
from broker.config import Settings
from broker.database import ANSWERS, EVIDENCE, OBJECTS
from broker.embedded.ports import free_port
from broker.embedded.redis import RedisServer
from broker.errors import ConfigurationError, DependencyUnavailableError
from broker.feedback.learned import Learned, get, get_digest, key_of, put
from broker.feedback.learner import Correction, learn
from broker.redis_client import RedisConnection
from broker.web import feedback, teach
from broker.web.app import application, parts_of
from broker.web.index import Index
from broker.web.services import Services
from broker.web.teach import Teacher
from tests.integration.web_line import fill, publish, serving, settings_for

URL = "http://127.0.0.1:8080"


@pytest.fixture(scope="module")
def settings(server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return settings_for(server.url, tmp_path_factory.mktemp("feedback"), port=free_port(), requests_per_minute=100_000)


@pytest.fixture(scope="module")
def index(settings: Settings) -> Index:
    return fill(settings, publish(settings, objects=12, visits=20))


@pytest.fixture
def parts(settings: Settings, index: Index) -> Iterator[Services]:
    with index.engine.begin() as connection:  # each test begins without answers
        connection.execute(sa.delete(EVIDENCE))
        connection.execute(sa.delete(ANSWERS))
    with closing(redis.Redis.from_url(settings.redis.address())) as client:
        for key in client.scan_iter("trifid:feedback:*"):
            client.delete(key)
    with parts_of(settings, index, follow=False) as parts:
        yield parts


@pytest.fixture
def http(parts: Services) -> TestClient:
    return TestClient(application(parts), base_url=URL)


@pytest.fixture
def address(parts: Services) -> Iterator[str]:
    with serving(parts) as address:
        yield address


def listed(http: TestClient) -> list[dict[str, object]]:
    found: list[dict[str, object]] = http.get("/api/v1/anomalies").json()["objects"]
    return found


def first_kept(http: TestClient) -> dict[str, object]:
    """The first of the list whose embeddings are kept: of objects with metadata alone they are not."""
    return next(one for one in listed(http) if int(str(one["detections"])) >= 5)


def test_an_answer_is_learned_from_reaches_a_worker_and_is_undone(
    http: TestClient, settings: Settings, index: Index
) -> None:
    before = listed(http)
    assert [one["combinedAnomaly"] for one in before] == sorted((o["combinedAnomaly"] for o in before), reverse=True)
    last = before[-1]
    record = index.record(str(last["survey"]), str(last["objectId"]))
    assert record is not None
    path = f"/api/v1/objects/{last['survey']}/{last['objectId']}/feedback"
    answer = http.post(path, json={"answer": "interesting", "note": "double-peaked"})
    assert answer.status_code == 201
    effect = answer.json()["effect"]
    assert (effect["learned"], effect["whyNot"], effect["workers"]) == (True, None, "told")
    assert effect["rankBefore"] == len(before)
    assert effect["scoreBefore"] == last["combinedAnomaly"]
    # The same by the learner alone, from the embeddings that Redis has.
    vectors = np.zeros((1, 3, 512), np.float32)
    with closing(build_similar(settings)) as similar:
        for column, kind in enumerate(("light_curve", "spectrum", "metadata")):
            if kind in record["modalities"]:
                vectors[0, column] = similar.vector_of((str(last["survey"]), str(last["objectId"])), kind)
    score = np.array([last["combinedAnomaly"]], np.float64)
    worked = learn("m", "r", vectors, score, np.array([True])).apply(score, vectors)
    assert effect["scoreAfter"] == pytest.approx(float(worked.score[0]), abs=1e-4)
    after = listed(http)
    names = [one["objectId"] for one in after]
    assert names.index(last["objectId"]) + 1 == effect["rankAfter"] < effect["rankBefore"]
    raised = next(one for one in after if one["objectId"] == last["objectId"])
    assert raised["anomalyAnswers"] == 1
    # What a worker applies.
    with closing(Learned(RedisConnection(settings.redis.address()))) as learned:
        learned.follow(record["modelVersion"], record["referenceSetVersion"])
        assert learned.current is not None
        assert learned.current.apply(score, vectors).score[0] == pytest.approx(effect["scoreAfter"], abs=1e-6)
        undone = http.post(f"{path}/undo").json()
        assert undone["effect"]["scoreAfter"] == last["combinedAnomaly"]
        assert undone["answer"]["withdrawnMjd"] is not None
        learned.look()
        assert len(learned.current) == 0
    assert listed(http) == before
    (kept,) = http.get("/api/v1/feedback", params={"object": last["objectId"]}).json()["answers"]
    assert (kept["answer"], kept["note"], kept["by"]) == ("interesting", "double-peaked", "local")
    assert kept["withdrawnMjd"] is not None
    assert http.post(f"{path}/undo").status_code == 404


def test_the_latest_answer_counts_and_undo_brings_back_the_one_before(http: TestClient, parts: Services) -> None:
    first = first_kept(http)
    path = f"/api/v1/objects/{first['survey']}/{first['objectId']}/feedback"
    for answer in ("interesting", "boring"):
        assert http.post(path, json={"answer": answer}).status_code == 201
    assert [one.kind for one in feedback.counting(parts.index.engine)] == ["boring"]
    assert listed(http)[-1]["objectId"] is not None
    lowered = next(one for one in listed(http) if one["objectId"] == first["objectId"])
    assert lowered["anomalyAnswers"] == -1
    http.post(f"{path}/undo")
    assert [one.kind for one in feedback.counting(parts.index.engine)] == ["interesting"]
    http.post(f"{path}/undo")
    assert list(feedback.counting(parts.index.engine)) == []
    assert len(feedback.find(parts.index.engine)) == 2


def test_a_class_counts_as_ordinary_and_other_teaches_nothing(http: TestClient) -> None:
    first = first_kept(http)
    path = f"/api/v1/objects/{first['survey']}/{first['objectId']}/feedback"
    other = http.post(path, json={"answer": "class=Other"}).json()["effect"]
    assert other["learned"] is False
    assert "neither interesting nor boring" in other["whyNot"]
    assert first_kept(http) == first
    http.post(path, json={"answer": "class=RRAB"})
    assert next(o for o in listed(http) if o["objectId"] == first["objectId"])["anomalyAnswers"] == -1


def test_what_redis_forgets_is_told_again(http: TestClient, parts: Services, settings: Settings) -> None:
    first = first_kept(http)
    http.post("/api/v1/feedback", json={"object": first["objectId"], "answer": "interesting"})
    with closing(redis.Redis.from_url(settings.redis.address())) as client:
        keys = sorted(key.decode() for key in client.scan_iter("trifid:feedback:*"))
        assert len(keys) == 2
        data = client.get(keys[0])
        client.delete(*keys)
        assert parts.teacher.sync() is None
        assert client.get(keys[0]) == data


def test_where_redis_is_silent_an_answer_waits_for_it_once(
    http: TestClient, parts: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Counting(RedisConnection):
        calls = 0

        def call(self, action: Callable[[Any], Any], where: str = "") -> Any:
            self.calls += 1
            return super().call(action, where)

    first = first_kept(http)
    monkeypatch.setattr(teach, "_REST_S", 600.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        own = Counting(f"redis://127.0.0.1:{silent.getsockname()[1]}", timeout=0.2, retries=False)
        with closing(own), monkeypatch.context() as patch:
            patch.setattr(parts.teacher, "_connection", own)
            for _ in range(3):
                effect = http.post("/api/v1/feedback", json={"object": first["objectId"], "answer": "boring"}).json()
                assert "does not answer" in effect["effect"]["whyNot"]
            assert own.calls == 1
    parts.teacher._silent = None
    assert parts.teacher.sync() is None


def test_two_servers_of_one_database_tell_workers_the_same(
    http: TestClient, parts: Services, settings: Settings, index: Index
) -> None:
    first = first_kept(http)
    with closing(Teacher(index, RedisConnection(settings.redis.address()))) as other:
        name = str(first["survey"]), str(first["objectId"])
        added = feedback.add(index.engine, *name, "interesting", None, "", "local")
        # The other one looks when the answer is there, and what it is learned from is not yet.
        assert other.sync() is None
        record = index.record(*name)
        assert record is not None
        space = record["modelVersion"], record["referenceSetVersion"]
        assert parts.teacher._collect([added]) is None
        assert other._collect([added]) is None
        for teacher in (parts.teacher, other, parts.teacher, other):
            assert teacher.sync() is None
            assert len(learned_by_workers(settings, space)) == 1
        assert other.anomalies()[2] == parts.teacher.anomalies()[2]
        # On another processor the last digits are others: nobody writes over the other's all the time.
        stored = learned_by_workers(settings, space)
        with closing(RedisConnection(settings.redis.address())) as connection:
            theirs = replace(stored, weights=stored.weights + 1e-5)
            put(connection, theirs)
            assert other.sync() is None
            assert learned_by_workers(settings, space).weights == pytest.approx(theirs.weights, abs=1e-12)
            put(connection, replace(stored, weights=-stored.weights))
            assert other.sync() is None
            assert learned_by_workers(settings, space).weights == pytest.approx(stored.weights, abs=1e-12)
            connection.commands([("DEL", f"{key_of(*space)}:digest")])
            assert other.sync() is None
            assert get_digest(connection, *space) is not None


def learned_by_workers(settings: Settings, space: tuple[str, str]) -> Correction:
    with closing(RedisConnection(settings.redis.address())) as connection:
        found = get(connection, *space)
    assert found is not None
    return found


def test_where_redis_refuses_the_answer_is_kept_and_told_later(
    http: TestClient, parts: Services, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = first_kept(http)
    with closing(redis.Redis.from_url(settings.redis.address())) as client:
        client.execute_command(
            *(
                [
                    "ACL",
                    "SETUSER",
                    "reader",
                    "on",
                    ">x",
                    "~trifid:*",
                    "-@all",
                    "+get",
                    "+vemb",
                    "+vsim",
                    "+ping",
                    "+client",
                    "+command",
                ]
            )
        )
    address = settings.redis.address().replace("redis://", "redis://reader:x@")
    own, reader = parts.teacher._connection, RedisConnection(address)
    monkeypatch.setattr(parts.teacher, "_connection", reader)
    effect = http.post("/api/v1/feedback", json={"object": first["objectId"], "answer": "boring"}).json()["effect"]
    assert effect["learned"] is True
    assert "SET" in effect["workers"].upper()
    assert effect["scoreAfter"] < effect["scoreBefore"]
    monkeypatch.setattr(parts.teacher, "_connection", own)
    reader.close()
    assert parts.teacher.sync() is None
    with closing(redis.Redis.from_url(settings.redis.address())) as client:
        assert len(list(client.scan_iter("trifid:feedback:*"))) == 2


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"object": "ZTF18nobody", "answer": "boring"}, 404, "nothing is known of ZTF18nobody"),
        ({"object": "{name}", "answer": "dull"}, 422, "'dull' is none of interesting, boring or class=RRAB"),
        ({"object": "{name}", "answer": "class=XX"}, 422, "'XX' is none of EW"),
        ({"object": "{name}"}, 422, "give interesting, boring or class=RRAB"),
        ({"object": "{name}", "answer": "boring", "label": "EW"}, 422, "give interesting, boring or class=RRAB"),
        ({"object": "{name}", "answer": "boring", "note": "a\0"}, 422, "a zero byte"),
        ({"object": "ztf:{name}\0", "answer": "boring"}, 422, "object: a zero byte"),
        ({"object": "{name}", "answer": "boring", "note": "x" * 2001}, 422, "note: "),
    ],
)
def test_what_is_no_answer_is_refused(http: TestClient, body: dict[str, str], status: int, said: str) -> None:
    name = str(listed(http)[0]["objectId"])
    answer = http.post("/api/v1/feedback", json={key: value.replace("{name}", name) for key, value in body.items()})
    assert answer.status_code == status
    assert said in answer.json()["detail"]
    assert http.get("/api/v1/feedback").json()["answers"] == []


def test_answers_of_another_model_are_not_applied_to_this_ones_scores(http: TestClient, parts: Services) -> None:
    before = listed(http)
    first = before[0]
    http.post("/api/v1/feedback", json={"object": first["objectId"], "answer": "boring"})
    with parts.index.engine.begin() as connection:
        connection.execute(sa.update(EVIDENCE).values(model="another 1"))
    parts.teacher._state = None
    assert [one["anomalyAnswers"] for one in listed(http)] == [0] * len(before)
    assert [one["anomalyAfterAnswers"] for one in listed(http)] == [one["combinedAnomaly"] for one in before]


def test_the_list_is_that_of_the_served_model_beside_a_canary(http: TestClient, parts: Services) -> None:
    before = listed(http)
    with parts.index.engine.begin() as connection:
        row = dict(connection.execute(sa.select(OBJECTS).limit(1)).mappings().one())
        del row["id"]
        record = json.loads(row["record"]) | {
            "objectId": "ZTFcanary", "modelVersion": "canary 1", "brokerPublishTimestamp": "2999-01-01T00:00:00",
        }  # fmt: skip
        row |= {"object_id": "ZTFcanary", "combined_anomaly": 0.999, "record": json.dumps(record)}
        connection.execute(sa.insert(OBJECTS), [row])
    try:
        parts.teacher._candidates = -np.inf, None
        assert listed(http) == before
    finally:
        with parts.index.engine.begin() as connection:
            connection.execute(sa.delete(OBJECTS).where(OBJECTS.c.object_id == "ZTFcanary"))


def test_by_command_and_from_python(address: str) -> None:
    first, second, *_ = _names(address)
    lines = _lines(address, first, "interesting", "--note", "odd minima")
    assert lines[0] == f"{first} interesting: kept, by local"
    assert lines[1].startswith("anomaly score 0.")
    assert lines[2].startswith("top 50: 0 entered, 0 left")
    given = give_feedback(address, second, "class=RRAB", "by eye")
    assert (given.learned, given.workers, given.answer.answer) == (True, None, "class=RRAB")
    answers = feedback_answers(address)
    assert [(f"{a.survey}:{a.object_id}", a.answer, a.note) for a in answers] == [
        (second, "class=RRAB", "by eye"), (first, "interesting", "odd minima"),
    ]  # fmt: skip
    assert _lines(address, "list")[1].endswith("odd minima")
    give_feedback(address, second, "class=RRAB", "by eye\n2026-11-29 06:00  ztf:a  interesting  by somebody else")
    assert len(_lines(address, "list")) == 3
    undo_feedback(address, second)
    assert _lines(address, "undo", first)[0] == f"{first} interesting: withdrawn, by local"
    assert "withdrawn" in _lines(address, "list", first)[0]
    assert undo_feedback(address, second).answer.withdrawn_mjd is not None
    with pytest.raises(ConfigurationError, match="has no answer about"):
        undo_feedback(address, second)
    with pytest.raises(ConfigurationError, match="none of interesting"):
        give_feedback(address, second, "dull")
    with pytest.raises(DependencyUnavailableError, match="does not answer"):
        give_feedback(f"http://127.0.0.1:{free_port()}", second, "boring")
    code, output = _run(address, first)
    assert code == 2
    assert "say what it is" in output


def _names(address: str) -> list[str]:
    import urllib.request

    with urllib.request.urlopen(f"{address}/api/v1/anomalies") as answer:
        return [f"{one['survey']}:{one['objectId']}" for one in json.load(answer)["objects"] if one["detections"] >= 5]


def _run(address: str, *words: str) -> tuple[int, str]:
    done = CliRunner().invoke(main, ["feedback", *words, "--server", address])
    return done.exit_code, done.output


def _lines(address: str, *words: str) -> list[str]:
    code, output = _run(address, *words)
    assert code == 0, output
    return output.splitlines()
