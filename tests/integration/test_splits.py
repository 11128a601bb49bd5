"""How alerts are split into messages and batches changes nothing of what is said of them; crowds cost no more."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

import fastavro
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker.anomaly.reference_set import ReferenceSet
from broker.batch import BatchResult, IncomingMessage
from broker.embedded.redis import RedisServer
from broker.inference.onnx import OnnxEngine
from broker.metrics import CROWDED_SEARCHES
from broker.models.repository import REFERENCE_SET_FILE
from broker.pipeline import Pipeline
from broker.records import BAND_CODE, Alert, Annotation, LightCurve
from broker.state import Store, reading
from broker.state.memory import MemoryStore
from broker.state.places import CROWD, NEAREST
from broker.state.redis import RedisStore
from broker.surveys import Decoder
from tests.random_models import MODEL_REPO

MJD, RECEIVED = 60_000.0, 61_000.0


def number(name: str, kind: str = "double") -> dict[str, Any]:
    return {"name": name, "type": kind}


CANDIDATE = {
    "type": "record",
    "name": "candidate",
    "fields": [
        *map(number, ("jd", "ra", "dec", "magpsf", "sigmapsf", "magnr", "distnr")),
        number("fid", "int"),
        number("isdiffpos", "string"),
    ],
}
SOURCE = {
    "type": "record",
    "name": "diaSource",
    "fields": [
        *(number(name, "long") for name in ("diaSourceId", "diaObjectId")),
        *map(number, ("midpointMjdTai", "ra", "dec", "psfFlux", "psfFluxErr", "scienceFlux")),
        number("band", "string"),
    ],
}
SCHEMAS: dict[str, dict[str, Any]] = {
    "ztf": {
        "type": "record",
        "name": "ztf.alert",
        "fields": [
            number("objectId", "string"),
            number("candid", "long"),
            {"name": "candidate", "type": CANDIDATE},
            {"name": "prv_candidates", "type": {"type": "array", "items": "ztf.candidate"}},
        ],
    },
    "lsst": {
        "type": "record",
        "name": "lsst.alert",
        "fields": [
            number("diaSourceId", "long"),
            {"name": "diaSource", "type": SOURCE},
            {"name": "prvDiaSources", "type": {"type": "array", "items": "lsst.diaSource"}},
        ],
    },
}


@dataclass(frozen=True)
class Packet:
    survey: str
    record: dict[str, Any]


def ztf(star: int, night: int, ra: float, dec: float) -> Packet:
    def candidate(n: int) -> dict[str, Any]:
        return {
            "jd": 2_400_000.5 + MJD + 0.71 * n, "ra": ra, "dec": dec, "magpsf": 18.0 + np.sin(1.3 * n + star),
            "sigmapsf": 0.05, "magnr": 17.0, "distnr": 0.1, "fid": 1 + n % 2, "isdiffpos": "t",
        }  # fmt: skip

    earlier = [candidate(n) for n in range(max(0, night - 6), night)]
    record = {"objectId": f"ZTF18{star:07d}", "candid": 100 * star + night, "candidate": candidate(night)}
    return Packet("ztf", record | {"prv_candidates": earlier})


def lsst(star: int, night: int, ra: float, dec: float) -> Packet:
    def source(n: int) -> dict[str, Any]:
        flux = 1e5 * (1 + 0.4 * np.sin(1.3 * n + star))
        return {
            "diaSourceId": 10**9 + 100 * star + n, "diaObjectId": 10**9 + star, "midpointMjdTai": MJD + 0.3 + 0.71 * n,
            "ra": ra, "dec": dec, "psfFlux": flux, "psfFluxErr": 500.0, "scienceFlux": 2 * flux, "band": "gr"[n % 2],
        }  # fmt: skip

    earlier = [source(n) for n in range(max(0, night - 3), night)]
    own = source(night)
    return Packet("lsst", {"diaSourceId": own["diaSourceId"], "diaSource": own, "prvDiaSources": earlier})


def packets() -> list[Packet]:
    """Two stars that both surveys see, one that neither has as a counterpart, at a steady pace and in bursts."""
    sky = [(10.0, 20.0), (10.0, 20.0 + 40 / 3600), (200.0, -10.0)]
    found = []
    for night in range(11):
        for star, (ra, dec) in enumerate(sky):
            found.append(ztf(star, night, ra, dec))
            if star != 2 and night % 3:
                found.append(lsst(star, night, ra, dec + 0.4 / 3600))
    return found


PACKETS = packets()


def message(some: Sequence[Packet], codec: str) -> IncomingMessage:
    out = io.BytesIO()
    fastavro.writer(out, SCHEMAS[some[0].survey], [packet.record for packet in some], codec=codec)
    return IncomingMessage(out.getvalue(), RECEIVED)


def runs(cuts: Collection[int], order: Sequence[Packet]) -> list[list[Packet]]:
    """The packets in their order, cut into runs of one survey, and at ``cuts``."""
    parts: list[list[Packet]] = []
    for index, packet in enumerate(order):
        if not parts or index in cuts or parts[-1][-1].survey != packet.survey:
            parts.append([])
        parts[-1].append(packet)
    return parts


@dataclass(frozen=True)
class Split:
    """How the alerts come."""

    cuts: frozenset[int]
    """Alerts with which a message begins, whatever else there is."""
    codecs: frozenset[int]
    """Messages that are compressed."""
    groups: frozenset[int]
    """Messages with which those that are processed together begin."""
    size: int
    """Of a batch."""

    def messages(self) -> list[list[IncomingMessage]]:
        """Messages, as they are processed together."""
        messages = [
            message(part, "deflate" if index in self.codecs else "null")
            for index, part in enumerate(runs(self.cuts, ORDER))
        ]
        edges = [0, *sorted(index for index in self.groups if index < len(messages)), len(messages)]
        return [messages[a:b] for a, b in pairwise(edges)]


def some(most: int) -> st.SearchStrategy[frozenset[int]]:
    return st.frozensets(st.integers(1, most - 1)) | st.just(frozenset(range(1, most)))


SPLITS = st.builds(
    Split, some(len(PACKETS)), some(len(PACKETS)), some(len(PACKETS)), st.sampled_from([1, 2, 3, 7, 16, 256])
)


ORDER = sorted(PACKETS, key=lambda p: (p.record.get("candid", p.record.get("diaSourceId", 0)) % 100 // 5, p.survey))
"""Five nights of one survey, then of the other, and so on."""


@pytest.fixture(scope="module")
def engine() -> Iterator[OnnxEngine]:
    with closing(OnnxEngine(MODEL_REPO, threads=1)) as engine:
        yield engine


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


def classify(engine: OnnxEngine, store: Store, groups: Sequence[list[IncomingMessage]], size: int) -> BatchResult:
    reference = ReferenceSet.load_npz(MODEL_REPO / REFERENCE_SET_FILE)
    pipeline = Pipeline(Decoder(), store, engine, engine.manifest, reference, batch_size=size)
    result = BatchResult()
    for group in groups:
        result += pipeline.process(group)
    return result


def said(annotation: Annotation) -> dict[str, Any]:
    """All that is published of an alert but the names of its nearest stars, of which some are as near as others."""
    probable = dict(zip(annotation.class_names, annotation.probabilities, strict=True))
    return {
        "alert": (annotation.survey, annotation.object_id, annotation.alert_id, annotation.source_id),
        "place": (annotation.ra, annotation.dec, annotation.mjd),
        "points": annotation.detections,
        "period": annotation.period,
        "associated": annotation.associated,
        "modalities": annotation.modalities,
        "reason": annotation.reason,
        "probabilities": probable,
        "anomaly": annotation.anomaly_score,
    }


TOLERANCES = {"period": {"rel": 1e-6}, "probabilities": {"abs": 1e-4}, "anomaly": {"abs": 5e-3}}
"""The model's numbers depend a little on what is computed beside."""


class Said(list[dict[str, Any]]):
    """What is said of several alerts; Hypothesis prints all arguments of a test that fails."""

    def __repr__(self) -> str:
        return f"what is said of {len(self)} alerts"


@pytest.fixture(scope="module")
def alone(engine: OnnxEngine) -> Said:
    """What is said where each alert comes in a message and a batch of its own."""
    result = classify(engine, MemoryStore(), [[message([packet], "null")] for packet in ORDER], 1)
    assert len(result.annotations) == len(ORDER)
    assert not result.dead_letters
    assert sum(bool(a.associated) for a in result.annotations) > 20
    assert max(a.detections for a in result.annotations) > 20
    return Said(said(annotation) for annotation in result.annotations)


FEW = settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])


def assert_same(result: BatchResult, alone: Said) -> None:
    assert len(result.annotations) == len(alone)
    for annotation, expected in zip(result.annotations, alone, strict=True):
        assert said(annotation) == {
            name: value if value is None or name not in TOLERANCES else pytest.approx(value, **TOLERANCES[name])
            for name, value in expected.items()
        }


@FEW
@given(split=SPLITS)
def test_any_split_gives_the_same_annotations(engine: OnnxEngine, alone: Said, split: Split) -> None:
    groups = split.messages()
    result = classify(engine, MemoryStore(), groups, split.size)
    assert result.alerts_in.total() == len(ORDER)
    assert result.messages == sum(map(len, groups))
    assert not result.dead_letters
    assert_same(result, alone)


@settings(FEW, max_examples=6)
@given(split=SPLITS)
def test_any_split_gives_the_same_annotations_with_redis(
    engine: OnnxEngine, alone: Said, server: RedisServer, split: Split
) -> None:
    with server.client() as client:
        client.flushdb()
    with closing(RedisStore(server.url)) as store:
        result = classify(engine, store, split.messages(), split.size)
    assert not result.dead_letters
    assert_same(result, alone)


def test_runs_are_what_they_should_be() -> None:
    assert [key for key, _ in groupby(p.survey for p in ORDER)] == ["lsst", "ztf"] * 3
    assert sum(map(len, runs(set(), ORDER))) == len(ORDER)
    assert len(runs(set(range(len(ORDER))), ORDER)) == len(ORDER)


def alert(survey: str, name: int, ra: float = 10.0, dec: float = 20.0, mjd: float = MJD) -> Alert:
    ones, band = np.ones(1, np.float32), np.array([BAND_CODE[f"{survey}:g"]], np.uint8)
    curve = LightCurve(np.array([mjd]), ones, ones, ones, band, np.zeros(1, np.uint8))
    return Alert(survey, name, name, f"{name:06d}", float(ra), float(dec), mjd, f"{survey}:g", curve, "")


def calls(server: RedisServer, command: str) -> int:
    with server.client() as client:
        found: int = client.info("commandstats").get(f"cmdstat_{command}", {}).get("calls", 0)
        return found


def test_a_crowd_at_one_place_is_read_once_a_batch_and_its_nearest_only(server: RedisServer) -> None:
    """3,000 objects of ZTF in a circle of an arcsec, and 100 alerts of LSST there."""
    rng = np.random.default_rng(3)
    spread = rng.uniform(-0.7, 0.7, (3000, 2)) / 3600
    with server.client() as client, closing(RedisStore(server.url)) as store:
        client.flushdb()
        for start in range(0, 3000, 250):
            store.update([alert("ztf", n, 10.0 + spread[n, 0], 20.0 + spread[n, 1]) for n in range(start, start + 250)])
        client.config_resetstat()
        before = CROWDED_SEARCHES._value.get()
        states = store.update([alert("lsst", n) for n in range(100)])
        assert all(len(state.associated) == 1 for state in states)
        assert CROWDED_SEARCHES._value.get() - before >= 100
        # Each alert's cell was read by itself before, and all 3,000 objects in it.
        assert calls(server, "hgetall") <= 4
        assert calls(server, "mget") <= 100 + NEAREST + 2


def test_the_nearest_of_a_field_are_found_however_the_reading_is_cut(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A field with 60 stars in each of four cells: in one call of the script, in many, and in memory."""
    rng = np.random.default_rng(4)
    at = [(10.0 + 0.05 * x + dx, 20.0 + 0.05 * y + dy) for x in (0, 1) for y in (0, 1)
          for dx, dy in rng.uniform(-30, 30, (60, 2)) / 3600]  # fmt: skip
    known = [alert("ztf", n, *place) for n, place in enumerate(at)]
    wanted = [alert("lsst", n, ra + 0.4 / 3600, dec) for n, (ra, dec) in enumerate(at)]
    memory = MemoryStore()
    memory.update(known)
    expected = [state.associated for state in memory.update(wanted)]
    assert sum(associated == (f"ztf:{n:06d}",) for n, associated in enumerate(expected)) > 200
    for budget, scripts in ((1_000_000, 1), (60, 4)):
        monkeypatch.setattr(reading, "BUDGET", budget)
        with server.client() as client, closing(RedisStore(server.url)) as store:
            client.flushdb()
            store.update(known)
            client.config_resetstat()
            before = CROWDED_SEARCHES._value.get()
            assert [state.associated for state in store.update(wanted)] == expected
            assert calls(server, "eval") >= scripts + 1
            assert CROWDED_SEARCHES._value.get() == before


def test_a_cell_with_more_than_is_looked_at(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "CELL", 600)
    rng = np.random.default_rng(5)
    with server.client() as client, closing(RedisStore(server.url)) as store:
        client.flushdb()
        # In one cell of 206 arcsec, far from the alert.
        store.update([alert("ztf", n, 10.0, 20.0 + d / 3600) for n, d in enumerate(rng.uniform(-40, 40, 2500))])
        client.config_resetstat()
        before = CROWDED_SEARCHES._value.get()
        store.update([alert("lsst", 1)])
        assert CROWDED_SEARCHES._value.get() == before + 1
        assert calls(server, "hscan") >= 1
        assert calls(server, "hgetall") <= 12


def test_a_crowd_in_memory_is_compared_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search compares at most CROWD objects of each survey in a bin, of 4,000 that are there."""
    from broker.state.places import StoredPlace

    compared = 0
    distance = StoredPlace.distance

    def counted(place: StoredPlace, ra: float, dec: float, mjd: float) -> float:
        nonlocal compared
        compared += 1
        return distance(place, ra, dec, mjd)

    monkeypatch.setattr(StoredPlace, "distance", counted)
    store = MemoryStore()
    store.update([alert("ztf", n) for n in range(4000)])
    assert compared == 0  # of one survey none is another's counterpart
    (state,) = store.update([alert("lsst", 1)])
    assert compared == CROWD
    assert state.associated == ("ztf:000000",)
