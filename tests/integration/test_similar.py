"""Embeddings in the vector sets of a real Redis, single and as a cluster: what is kept, found, changed and removed."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
from numpy.typing import NDArray
from prometheus_client import REGISTRY

from broker.assemble.inputs import MODALITIES
from broker.embedded.redis import RedisServer
from broker.errors import ConfigurationError, TrifidError
from broker.records import Annotation, LightCurve, ObjectState
from broker.redis_client import RedisConnection
from broker.similar import keeper as keeping
from broker.similar.among import among
from broker.similar.keeper import Embedded, Keeper
from broker.similar.query import like_object, like_vectors
from broker.similar.search import Similar, UnknownToSetsError
from broker.similar.sets import KINDS, Element, Sets, Written
from broker.state.admin import StateAdmin
from broker.taxonomy import CLASS_NAMES
from broker.times import mjd_now
from deploy.local.redis_cluster import RedisCluster
from tests.integration.proxy import CountingProxy

MODEL = "trifid-test/1"
WIDTH = 512


def count(outcome: str) -> float:
    return REGISTRY.get_sample_value("trifid_similar_writes_total", {"outcome": outcome}) or 0.0


def curve(points: int, flux: float = 3.631e6) -> LightCurve:
    """Detections in one band; 3.631e6 nJy is magnitude 15."""
    return LightCurve(
        np.arange(points, dtype=np.float64) + 60_000.0, np.full(points, flux, np.float32),
        np.ones(points, np.float32), np.full(points, np.nan, np.float32),
        np.zeros(points, np.uint8), np.zeros(points, np.uint8),
    )  # fmt: skip


def annotation(number: int, class_name: str = "RRAB", detections: int = 20, **given: Any) -> Annotation:
    p = [0.01] * 10
    p[CLASS_NAMES.index(class_name)] = 0.91
    values: dict[str, Any] = {
        "survey": "ztf", "alert_id": number, "source_id": number, "object_id": f"ZTF{number:05d}",
        "ra": 10.0 + number / 100.0, "dec": -5.0, "mjd": 60_000.0, "class_names": CLASS_NAMES,
        "probabilities": tuple(p), "modalities": ("light_curve", "metadata"), "detections": detections, "period": None,
    }  # fmt: skip
    return Annotation(**(values | given))


def vectors(count: int, seed: int) -> NDArray[np.float32]:
    """Clustered unit vectors: random ones defeat every approximate search."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(8, WIDTH))
    found = centres[rng.integers(0, 8, count)] + 0.5 * rng.normal(size=(count, WIDTH))
    unit: NDArray[np.float32] = (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)
    return unit


def by_modality(fused: NDArray[np.float32], seed: int = 5) -> NDArray[np.float32]:
    """Of light curves and metadata; there is no spectrum."""
    found = np.zeros((len(fused), 3, WIDTH), np.float32)
    found[:, 0], found[:, 2] = vectors(len(fused), seed), vectors(len(fused), seed + 1)
    return found


def offer(keeper: Keeper, annotations: list[Annotation], fused: NDArray[np.float32], parts: Any = None) -> None:
    states = [ObjectState(a.object_id, a.ra, a.dec, curve(a.detections)) for a in annotations]
    keeper.offer(annotations, states, fused, by_modality(fused) if parts is None else parts)
    keeper.drain()


@pytest.fixture(params=["single", "cluster"])
def address(request: pytest.FixtureRequest) -> str:
    if request.param == "single":
        request.getfixturevalue("client")
        return str(request.getfixturevalue("server").url)
    request.getfixturevalue("nodes")
    cluster: RedisCluster = request.getfixturevalue("cluster")
    return str(cluster.address)


@pytest.fixture
def keeper(address: str) -> Iterator[Keeper]:
    with closing(Keeper(RedisConnection(address), MODEL, expiry_days=1000.0, growth=0.2)) as keeper:
        keeper.start()
        yield keeper


@pytest.fixture
def similar(address: str) -> Iterator[Similar]:
    with closing(Similar(Sets(RedisConnection(address), MODEL), 1000.0)) as similar:
        yield similar


@pytest.mark.parametrize("kind", ["all", "light_curve", "metadata"])
def test_the_nearest_are_those_of_an_exact_search(keeper: Keeper, similar: Similar, kind: str) -> None:
    fused = vectors(300, 1)
    parts = by_modality(fused)
    offer(keeper, [annotation(n) for n in range(300)], fused, parts)
    own = fused if kind == "all" else parts[:, MODALITIES.index(kind)]
    hits = 0
    for row in range(0, 300, 30):
        answer = like_object(similar, ("ztf", f"ZTF{row:05d}"), kind.replace("_", "-"), None, among([]), 10)
        cosines = own @ own[row]
        cosines[row] = -2.0
        exact = np.argsort(-cosines)[:10]
        assert len(answer.matches) == 10
        hits += len({m.object_id for m in answer.matches} & {f"ZTF{n:05d}" for n in exact})
        first = answer.matches[0]
        # The object's own vector and the other's are both from 8 bits a value here.
        assert first.similarity == pytest.approx(float(cosines[int(first.object_id[3:])]), abs=3e-3)
    assert hits >= 97


def test_what_is_said_of_an_object(keeper: Keeper, similar: Similar) -> None:
    offer(keeper, [annotation(n, "EW" if n else "M", detections=7) for n in range(2)], vectors(2, 1))
    (match,) = like_object(similar, ("ztf", "ZTF00000"), "all", None, among([]), 10).matches
    assert (match.survey, match.object_id, match.class_name, match.probability) == ("ztf", "ZTF00001", "EW", 0.91)
    assert [match.ra, match.dec] == pytest.approx([10.01, -5.0], abs=1e-6)
    assert match.magnitude == 15.0
    assert (match.detections, match.modalities) == (7, ("light_curve", "metadata"))
    assert match.record()["objectId"] == "ZTF00001"
    with pytest.raises(UnknownToSetsError, match="of ztf:ZTF00000 there is no spectrum embedding, only all, light-c"):
        like_object(similar, ("ztf", "ZTF00000"), "spectrum", None, among([]), 10)
    with pytest.raises(UnknownToSetsError, match="ztf:ZTF9 is not among the 2 objects"):
        like_object(similar, ("ztf", "ZTF9"), "all", None, among([]), 10)


def test_a_spectrum_finds_light_curves(keeper: Keeper, similar: Similar) -> None:
    """What has a spectrum alone is looked for among light curves, as the encoders' space is one."""
    fused = vectors(50, 1)
    parts = by_modality(fused)
    offer(keeper, [annotation(n) for n in range(50)], fused, parts)
    wanted = parts[17, 0]
    answer = like_vectors(similar, {"all": wanted, "spectrum": wanted}, "light-curve", None, among([]), 3)
    assert answer.matches[0].object_id == "ZTF00017"
    assert answer.matches[0].similarity == pytest.approx(1.0, abs=1e-3)
    with pytest.raises(ConfigurationError, match="there is no metadata to look with, only: light-curve, spectrum"):
        like_vectors(similar, {"light_curve": wanted, "spectrum": wanted}, "metadata", None, among([]), 3)


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("class=EW", {1, 3, 5, 7, 9}),
        ("class=ew|RRAB mag<18", set(range(10))),
        ("class=eclipsing", {1, 3, 5, 7, 9}),
        ("class=M", set()),
        ("mag<14.9", set()),
        ("detections>24 class=EW", {5, 7, 9}),
        ("probability>0.95", set()),
        ("survey=lsst", set()),
        # Declination -5: hundredths of a degree of right ascension are 35.86 arcsec there.
        ("cone=10.05,-5,36", {4, 5, 6}),
        ("cone=10.05,-5,35", {5}),
        ("cone=00:40:12,-05:00:00,1", {5}),
    ],
)
def test_filters(keeper: Keeper, similar: Similar, condition: str, expected: set[int]) -> None:
    offer(keeper, [annotation(n, "EW" if n % 2 else "RRAB", 20 + n) for n in range(10)], vectors(10, 1))
    answer = similar.search(vectors(1, 1)[0], "all", 10, among([condition]))
    assert {int(match.object_id[3:]) for match in answer.matches} == expected
    assert answer.complete


def test_written_again_when_grown(keeper: Keeper, similar: Similar) -> None:
    first, second = vectors(1, 1), vectors(1, 2)
    for detections, class_name, written, of in (
        (20, "RRAB", 1, first),
        (24, "RRAB", 0, first),  # 20 * 1.2 is not exceeded
        (25, "RRAB", 1, second),
        (25, "RRAB", 0, second),
        (25, "EW", 0, second),  # what is said of it is, the embedding is not
        (20, "EW", 1, first),  # points were removed
    ):
        before = count("written"), count("unchanged")
        offer(keeper, [annotation(0, class_name, detections)], second if detections == 25 else first)
        assert (count("written") - before[0], count("unchanged") - before[1]) == (written, 1 - written), detections
        kept = similar.vector_of(("ztf", "ZTF00000"), "all")
        assert float(kept @ of[0]) > 0.999, detections
        (match,) = similar.search(of[0], "all", 1).matches
        assert match.class_name == class_name


def test_what_is_unchanged_costs_one_command_and_one_round_trip(server: RedisServer, client: redis.Redis) -> None:
    with CountingProxy(server.port) as proxy:
        connection = RedisConnection(f"redis://127.0.0.1:{proxy.port}/0")
        with closing(Keeper(connection, MODEL, expiry_days=1000.0, growth=0.2)) as keeper:
            keeper.start()
            fused = vectors(40, 1)
            offer(keeper, [annotation(n) for n in range(40)], fused)
            commands = client.info("commandstats")
            trips = proxy.round_trips
            offer(keeper, [annotation(n, detections=21) for n in range(40)], fused)
            assert proxy.round_trips - trips == 1
            after = client.info("commandstats")
    grown = {name: after[name]["calls"] - commands.get(name, {"calls": 0})["calls"] for name in after}
    assert {name: calls for name, calls in grown.items() if calls and name != "cmdstat_info"} == {"cmdstat_zmscore": 1}


def test_what_was_lost_or_half_written_is_written_again(keeper: Keeper, similar: Similar) -> None:
    """The score says that the vectors are there: not where they were deleted, nor where writing them was cut off."""
    offer(keeper, [annotation(n) for n in range(2)], vectors(2, 1))
    sets = similar._sets
    lost, cut_off = (sets.key(sets.shard_of(f"ztf:ZTF0000{n}"), kind) for n, kind in enumerate(("all", "seen")))
    sets.connection.commands([("VREM", lost, "ztf:ZTF00000"), ("ZADD", cut_off, int(mjd_now()), "ztf:ZTF00001")])
    before = count("written")
    for class_name in ("EW", "EW", "EW"):  # another class is noted with the vector, which is seen to be missing
        offer(keeper, [annotation(n, class_name) for n in range(2)], vectors(2, 1))
    assert count("written") - before == 2
    assert sets.count() == 2
    assert float(similar.vector_of(("ztf", "ZTF00000"), "all") @ vectors(2, 1)[0]) > 0.999


def test_scores_hold_what_was_written() -> None:
    """Redis's doubles bring back each value, the largest included, and the day is their whole part."""
    written = Written(
        np.array([61_000, 99_999, 61_000, 61_001]), np.array([5, 4_194_303, 9_000_000, 1234]), np.array([0, 31, 11, 9]),
        np.array([1, 7, 5, 2]),
    )  # fmt: skip
    scores = written.scores()
    assert np.floor(scores).tolist() == [61_000, 99_999, 61_000, 61_001]
    back = Written.of_scores(np.array([float(repr(score)) for score in scores.tolist()] + [np.nan, 61_000.0]))
    assert back.day.tolist() == [61_000, 99_999, 61_000, 61_001, 0, 61_000]
    assert back.detections.tolist() == [5, 4_194_303, 4_194_303, 1234, 0, 0]
    assert back.class_index.tolist() == [0, 31, 11, 9, 0, 0]
    assert back.modalities.tolist() == [1, 7, 5, 2, 0, 0]


def test_a_modality_that_is_gone_leaves_its_set(keeper: Keeper, similar: Similar) -> None:
    offer(keeper, [annotation(0)], vectors(1, 1))
    assert similar.vector_of(("ztf", "ZTF00000"), "metadata").shape == (WIDTH,)
    fused = vectors(1, 3)
    alone = np.zeros((1, 3, WIDTH), np.float32)
    alone[:, 0] = fused
    offer(keeper, [annotation(0, modalities=("light_curve",))], fused, alone)
    with pytest.raises(UnknownToSetsError, match="only all, light-curve"):
        similar.vector_of(("ztf", "ZTF00000"), "metadata")


def test_what_is_not_kept(keeper: Keeper, similar: Similar) -> None:
    """No answer, a moving body, too few points, and of several alerts of one object all but the last."""
    left_out = [
        annotation(1, class_names=("NotClassified",), probabilities=(1.0,)),
        annotation(2, solar_system=True),
        annotation(3, modalities=("metadata",)),
    ]
    twice = [annotation(4, "EW"), annotation(4, "EA")]
    offer(keeper, [*left_out, *twice], vectors(5, 1))
    (match,) = similar.search(vectors(1, 1)[0], "all", 10).matches
    assert (match.object_id, match.class_name) == ("ZTF00004", "EA")


def test_two_models_never_meet(keeper: Keeper, address: str) -> None:
    offer(keeper, [annotation(0)], vectors(1, 1))
    with closing(Similar(Sets(RedisConnection(address), "trifid-test/2"), 1000.0)) as other:
        assert other.search(vectors(1, 1)[0], "all", 10).matches == ()


def test_expired_objects_leave_the_sets(keeper: Keeper, similar: Similar, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state of an object goes 1,000 days after its last alert; its embeddings then are none of an answer, and go
    within a hundredth of that."""
    now = mjd_now()
    offer(keeper, [annotation(n) for n in range(3)], vectors(3, 1))
    for late, found, removed in ((999.0, 4, 0), (1002.0, 1, 0), (1012.0, 1, 3)):
        for module in ("broker.similar.keeper", "broker.similar.search"):
            monkeypatch.setattr(f"{module}.mjd_now", lambda late=late: now + late)
        keeper._next_sweep = 0.0
        before = count("expired")
        offer(keeper, [annotation(9)], vectors(1, 9))
        assert len(similar.search(vectors(1, 1)[0], "all", 10).matches) == found
        assert count("expired") - before == removed
    sets = similar._sets
    assert sets.count() == 1
    for kind in (*KINDS[:2], "metadata"):
        left = sets.connection.commands(
            [("VGETATTR", sets.key(sets.shard_of(f"ztf:ZTF{n:05d}"), kind), f"ztf:ZTF{n:05d}") for n in range(3)]
        )
        assert left == [None] * 3


def test_an_object_that_is_seen_again_stays(keeper: Keeper, similar: Similar, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its embeddings need no writing, but the day on which it was seen does."""
    now = mjd_now()
    offer(keeper, [annotation(0)], vectors(1, 1))
    for late in (500.0, 1100.0):
        monkeypatch.setattr("broker.similar.keeper.mjd_now", lambda late=late: now + late)
        keeper._next_sweep = 0.0
        offer(keeper, [annotation(0 if late < 1000 else 1)], vectors(1, 1))
    assert similar.vector_of(("ztf", "ZTF00000"), "all").shape == (WIDTH,)


def test_forgotten_objects_leave_the_sets_of_all_models(keeper: Keeper, similar: Similar, address: str) -> None:
    offer(keeper, [annotation(n) for n in range(2)], vectors(2, 1))
    with (
        closing(StateAdmin(RedisConnection(address), {}, 100)) as admin,
        pytest.raises(TrifidError, match="nothing is"),
    ):
        admin.forget(("ztf", "ZTF00000"))  # of its state there is nothing, and the embeddings go all the same
    (match,) = similar.search(vectors(1, 1)[0], "all", 10).matches
    assert match.object_id == "ZTF00001"


def test_an_outage_loses_embeddings_and_nothing_else(
    server: RedisServer, client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(Keeper(RedisConnection(server.url), MODEL, expiry_days=1000.0, growth=0.2)) as keeper:
        keeper.start()
        client.set(Sets(RedisConnection(server.url), MODEL).key(0, "all"), "not a vector set")
        before = count("failed")
        with caplog.at_level(logging.WARNING):
            for _ in range(3):
                offer(keeper, [annotation(0)], vectors(1, 1))
        assert count("failed") - before == 3
        assert len([r for r in caplog.records if "not kept up to date" in r.message]) == 1
        client.flushall()
        written = count("written")
        offer(keeper, [annotation(0)], vectors(1, 1))
        assert count("written") - written == 1


def test_what_comes_too_fast_is_dropped_and_counted(server: RedisServer, client: redis.Redis) -> None:
    with closing(Keeper(RedisConnection(server.url), MODEL, expiry_days=1000.0, growth=0.2)) as keeper:
        keeper._thread = object()  # type: ignore[assignment]  # nobody writes
        before = count("dropped")
        fused = vectors(2, 1)
        for _ in range(keeping._BATCHES + 3):
            keeper.offer([annotation(0), annotation(1)], [ObjectState("", 0, 0, curve(5))] * 2, fused, None)
        assert count("dropped") - before == 6
        keeper._thread = None


class Without(CountingProxy):
    """In front of a Redis that so does not know VCARD: as Redis 7, it is the server that says so."""

    def rewrite(self, data: bytes) -> bytes:
        return data.replace(b"VCARD", b"VNONE")


def test_redis_without_vector_sets_is_told_once(server: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    with Without(server.port) as proxy:
        url = f"redis://127.0.0.1:{proxy.port}/0"
        keeper = Keeper(RedisConnection(url), MODEL, expiry_days=1000.0, growth=0.2)
        with closing(keeper), caplog.at_level(logging.WARNING):
            keeper.start()
            failed = count("failed")
            offer(keeper, [annotation(0)], vectors(1, 1))
            assert count("failed") == failed
        assert [r.message for r in caplog.records if "vector sets" in r.message] == [
            "this Redis has no vector sets (Redis 8 has; Redis 7 and Valkey have not): similar objects are neither "
            "kept nor found. All else works. `similar.enabled = false` (the default) ends this message"
        ]
        with (
            closing(Similar(Sets(RedisConnection(url), MODEL), 1000.0)) as similar,
            pytest.raises(ConfigurationError, match="has no vector sets"),
        ):
            similar.search(vectors(1, 1)[0], "all", 3)


def test_an_element_says_what_was_put_in() -> None:
    element = Element("EW", 0.912, "ztf", 359.99999, 89.5, 17.123, 30, 5, 61_000)
    again = Element.from_json(element.to_json().encode())
    assert again == replace(element, ra=again.ra, dec=again.dec, magnitude=17.12)
    assert [again.ra, again.dec] == pytest.approx([359.99999, 89.5], abs=1e-5)
    assert set(json.loads(element.to_json())) == set("cpsxyznkdm")


def test_a_vector_of_one_modality_alone_is_the_fused_one() -> None:
    fused = vectors(1, 1)
    batch = Embedded([annotation(0, modalities=("light_curve",))], [curve(5)], fused, None)
    assert batch.vector(0, "light_curve") is not None
    assert batch.vector(0, "metadata") is None


def test_the_users_of_the_example_have_the_rights_for_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """deploy/security/redis-users.acl: the service keeps, the page finds, the operator finds and forgets."""
    acl = (Path(__file__).parents[2] / "deploy" / "security" / "redis-users.acl").read_text()
    for place in ("ADMIN", "TRIFID", "OPERATOR", "WEB"):
        acl = acl.replace(f"@{place}_SHA256@", hashlib.sha256(place.encode()).hexdigest())
    (tmp_path / "users.acl").write_text(acl)
    with RedisServer(acl_file=tmp_path / "users.acl", login=("admin", "ADMIN")) as server:

        def connection(user: str, password: str) -> RedisConnection:
            return RedisConnection(f"redis://{user}:{password}@127.0.0.1:{server.port}/0")

        written = count("written")
        with closing(Keeper(connection("trifid", "TRIFID"), MODEL, expiry_days=1000.0, growth=0.2)) as keeper:
            keeper.start()
            for seen in (vectors(3, 1), vectors(3, 1)):
                offer(keeper, [annotation(n) for n in range(3)], seen)
            keeper._grain = -1  # the day is noted again
            offer(keeper, [annotation(n) for n in range(3)], seen)
        assert count("written") - written == 3
        assert [r.message for r in caplog.records if r.name == "broker.similar.keeper"] == []
        for user, password in (("trifid-web", "WEB"), ("trifid-operator", "OPERATOR")):
            with closing(Similar(Sets(connection(user, password), MODEL), 1000.0)) as found:
                assert len(like_object(found, ("ztf", "ZTF00001"), "all", None, among([]), 5).matches) == 2
        admin = StateAdmin(connection("trifid-operator", "OPERATOR"), {}, 100)
        with closing(admin), pytest.raises(TrifidError, match="nothing is stored"):
            admin.forget(("ztf", "ZTF00001"))
        with closing(Similar(Sets(connection("trifid-web", "WEB"), MODEL), 1000.0)) as found:
            assert {m.object_id for m in found.search(vectors(1, 1)[0], "all", 5).matches} == {"ZTF00000", "ZTF00002"}
