"""Period searches that are kept in Redis: from alert to alert, by several workers, through damage and old state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
import redis

from broker.anomaly.reference_set import ReferenceSet
from broker.batch import IncomingMessage, Received
from broker.embedded.redis import RedisServer
from broker.inference.onnx import OnnxEngine
from broker.metrics import PERIOD_SEARCHES
from broker.models.repository import REFERENCE_SET_FILE
from broker.pipeline import Pipeline
from broker.records import BAND_CODE, Alert, Annotation, LightCurve
from broker.state import Store
from broker.state.encoding import decode_search
from broker.state.keys import object_key
from broker.state.memory import MemoryStore
from broker.state.redis import RedisStore
from broker.surveys import Decoder
from tests.random_models import MODEL_REPO

KEY = object_key("trifid", "71290", ("ztf", "ZTF18a"), "ps")
"""At (150, 20) degrees."""
REASONS = ("refined", "few", "first", "grown", "changed", "other_search", "worse")
FREQUENCY = 1.7342


@pytest.fixture(scope="module")
def engine() -> Iterator[OnnxEngine]:
    with closing(OnnxEngine(MODEL_REPO)) as engine:
        yield engine


def worker(engine: OnnxEngine, store: Store) -> Pipeline:
    return Pipeline(Decoder(), store, engine, engine.manifest, ReferenceSet.load_npz(MODEL_REPO / REFERENCE_SET_FILE))


def alert(first: int, last: int, survey: str = "ztf", object_id: str = "ZTF18a") -> Alert:
    """The points ``first`` to ``last`` of a sine of 0.577 d, one a night."""
    night = np.arange(200)
    mjd = (58_000 + night + np.random.default_rng(5).uniform(-0.3, 0.3, 200))[first:last]
    flux = 1000 + 300 * np.sin(2 * np.pi * FREQUENCY * mjd) + np.random.default_rng(6).normal(0, 20, 200)[first:last]
    ones, none = np.ones(len(mjd), np.float32), np.zeros(len(mjd), np.uint8)
    band = none + np.uint8(BAND_CODE[f"{survey}:g"])
    curve = LightCurve(mjd, flux.astype(np.float32), 10 * ones, 0 * ones, band, none)
    return Alert(survey, last, last, object_id, 150.0, 20.0, float(mjd[-1]), f"{survey}:g", curve, "")


def annotate(pipeline: Pipeline, *alerts: Alert) -> tuple[list[Annotation], dict[str, int]]:
    """The annotations, and how many period searches were done for each reason."""

    def counted() -> dict[str, float]:
        return {reason: PERIOD_SEARCHES.labels(reason)._value.get() for reason in REASONS}

    before = counted()
    annotations = pipeline.annotate([Received(a, IncomingMessage(b"", 61_000.0)) for a in alerts])
    return annotations, {r: int(n - before[r]) for r, n in counted().items() if n > before[r]}


@pytest.fixture
def pipeline(engine: OnnxEngine, store: RedisStore) -> Pipeline:
    return worker(engine, store)


def test_a_search_is_kept_from_alert_to_alert(pipeline: Pipeline, store: RedisStore, client: redis.Redis) -> None:
    (first,), searches = annotate(pipeline, alert(0, 100))
    assert searches == {"first": 1}
    kept = decode_search(client.get(KEY))  # type: ignore[arg-type]
    assert kept.points == 100
    assert kept.candidates[0][0] == pytest.approx(FREQUENCY, abs=3e-4)
    assert 1000 * 86_400 - 60 < client.ttl(KEY) <= 1000 * 86_400
    for night in range(100, 119):
        (one,), searches = annotate(pipeline, alert(night, night + 1))
        assert searches == {"refined": 1}
        assert one.photometric_period == pytest.approx(1 / FREQUENCY, rel=3e-4)
        assert one.best_class == first.best_class
        assert decode_search(client.get(KEY)) == kept  # type: ignore[arg-type]
    # 119.7 is what 120 % of the time is: by then it has grown.
    _, searches = annotate(pipeline, alert(119, 121))
    assert searches == {"grown": 1}
    assert decode_search(client.get(KEY)).points == 121  # type: ignore[arg-type]
    # A point of the past replaced by a better one.
    better = alert(60, 61)
    better = replace(better, light_curve=replace(better.light_curve, flux_error=np.array([1.0], np.float32)))
    assert annotate(pipeline, better)[1] == {"changed": 1}
    assert annotate(pipeline, better)[1] == {"refined": 1}


def test_redelivered_alerts_give_the_same_annotation(pipeline: Pipeline) -> None:
    annotate(pipeline, alert(0, 100))
    (once,), searches = annotate(pipeline, alert(100, 110))
    assert searches == {"refined": 1}
    (again,), searches = annotate(pipeline, alert(100, 110))
    assert searches == {"refined": 1}
    assert once.remembered_points == again.remembered_points == 100
    assert again == once
    # Whoever has nothing kept, as after a loss, finds the same.
    (anew,), searches = annotate(worker(pipeline._engine, MemoryStore()), alert(0, 110))  # type: ignore[arg-type]
    assert searches == {"first": 1}
    assert anew.photometric_period == once.photometric_period
    assert anew.probabilities == pytest.approx(once.probabilities, abs=0.02)


def test_memory_and_redis_keep_the_same(pipeline: Pipeline, engine: OnnxEngine) -> None:
    memory = worker(engine, MemoryStore())
    for first, last in ((0, 40), (40, 60), (60, 70), (65, 100), (100, 101)):
        theirs, searches = annotate(pipeline, alert(first, last))
        ours, in_memory = annotate(memory, alert(first, last))
        assert ours == theirs
        assert searches == in_memory


def test_two_workers_at_one_object_lose_nothing(
    pipeline: Pipeline, engine: OnnxEngine, server: RedisServer, client: redis.Redis
) -> None:
    """The one that is behind may overwrite the other's search; that is still one of the object's points."""
    with closing(RedisStore(server.url)) as other:
        second = worker(engine, other)
        annotate(pipeline, alert(0, 80))
        early = client.get(KEY)
        assert annotate(second, alert(80, 100))[1] == {"grown": 1}
        assert client.get(KEY) != early
        client.set(KEY, early)  # type: ignore[arg-type]
        assert annotate(pipeline, alert(100, 101))[1] == {"grown": 1}
        assert annotate(second, alert(101, 102))[1] == {"refined": 1}
        # A search of points that only the other one has seen yet: the object in Redis has all of them.
        assert decode_search(client.get(KEY)).points == 101  # type: ignore[arg-type]


def test_a_search_of_an_object_begun_anew_is_not_used(pipeline: Pipeline, client: redis.Redis) -> None:
    """As where it was in flight at a worker while ``trifid state forget`` deleted the object."""
    annotate(pipeline, alert(0, 100))
    left = client.get(KEY)
    client.flushdb()
    client.set(KEY, left)  # type: ignore[arg-type]
    other = alert(0, 100)
    flux = np.random.default_rng(1).normal(1000, 100, 100).astype(np.float32)
    assert annotate(pipeline, replace(other, light_curve=replace(other.light_curve, flux=flux)))[1] == {"changed": 1}


@pytest.mark.parametrize("value", [b"\x03Pgarbage", b"\x01L", b""])
def test_what_is_damaged_is_set_aside(pipeline: Pipeline, client: redis.Redis, value: bytes) -> None:
    annotate(pipeline, alert(0, 100))
    client.set(KEY, value)
    assert annotate(pipeline, alert(100, 101))[1] == {"first": 1}
    assert client.get(f"{KEY}:damaged") == value
    assert decode_search(client.get(KEY)).points == 101  # type: ignore[arg-type]


def test_what_a_later_release_kept_is_not_used(pipeline: Pipeline, client: redis.Redis) -> None:
    annotate(pipeline, alert(0, 100))
    value = client.get(KEY)
    assert isinstance(value, bytes)
    client.set(KEY, bytes([value[0] + 1]) + value[1:])
    assert annotate(pipeline, alert(100, 101))[1] == {"first": 1}
    assert client.keys("*:damaged") == []


def test_state_without_searches_is_read(pipeline: Pipeline, store: RedisStore, client: redis.Redis) -> None:
    """As releases before this one wrote it."""
    store.update([alert(0, 100)])
    assert client.keys("*:ps") == []
    assert annotate(pipeline, alert(100, 101))[1] == {"first": 1}
    assert annotate(pipeline, alert(101, 102))[1] == {"refined": 1}


def test_a_counterpart_adds_its_points(pipeline: Pipeline, client: redis.Redis) -> None:
    """Each object has its own search, of its light curve and the counterpart's together."""
    annotate(pipeline, alert(0, 100))
    assert annotate(pipeline, alert(20, 60, "lsst", "7"))[1] == {"first": 1}
    assert decode_search(client.get(KEY.replace("ztf:ZTF18a", "lsst:7"))).points == 140  # type: ignore[arg-type]
    assert annotate(pipeline, alert(100, 101))[1] == {"changed": 1}
    assert annotate(pipeline, alert(101, 102))[1] == {"refined": 1}


def test_objects_of_one_batch_and_alerts_of_one_object(pipeline: Pipeline, client: redis.Redis) -> None:
    """Alerts of one batch are annotated as of when it was read; the latest of their searches is kept."""
    _, searches = annotate(pipeline, alert(0, 90), alert(90, 100), alert(100, 101), alert(0, 9, object_id="ZTF18b"))
    assert searches == {"first": 3}
    assert decode_search(client.get(KEY)).points == 101  # type: ignore[arg-type]
    assert client.keys("*:ps") == [KEY.encode()]
