"""What one small message costs that holds much: seconds, peak memory, and how long Redis serves nobody else meanwhile.

Each case runs in a process of its own, against a Redis of its own. ``python benchmarks/messages.py`` runs all of them,
``python benchmarks/messages.py NAME...`` some.
"""

from __future__ import annotations

import io
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from typing import Any

import fastavro
import numpy as np
import redis

from broker.anomaly.reference_set import ReferenceSet
from broker.avro.wire import confluent_message
from broker.batch import IncomingMessage
from broker.config import Settings
from broker.embedded.redis import RedisServer
from broker.inference.onnx import OnnxEngine
from broker.models.repository import REFERENCE_SET_FILE
from broker.pipeline import Pipeline
from broker.records import BAND_CODE, Alert, LightCurve
from broker.state.encoding import encode_object
from broker.state.keys import object_key, sky_key
from broker.state.memory import MemoryStore
from broker.state.places import own_cells, own_homes, place_of
from broker.state.redis import RedisStore
from broker.surveys import Decoder
from broker.surveys.lsst_schemas import lsst_schema

JD = 2_460_000.5
RECEIVED = 61_000.0
"""MJD."""
NIGHTS = 700.0
CANDIDATE = {
    "type": "record",
    "name": "candidate",
    "fields": [
        *({"name": name, "type": "double"} for name in ("jd", "ra", "dec", "magpsf", "sigmapsf", "diffmaglim")),
        {"name": "fid", "type": "int"},
        {"name": "isdiffpos", "type": "string"},
    ],
}
SCHEMA = {
    "type": "record",
    "name": "alert",
    "namespace": "ztf",
    "fields": [
        {"name": "objectId", "type": "string"},
        {"name": "schemavsn", "type": "string"},
        {"name": "candid", "type": "long"},
        {"name": "candidate", "type": CANDIDATE},
        {"name": "prv_candidates", "type": ["null", {"type": "array", "items": ["null", "ztf.candidate"]}]},
    ],
}


def candidate(number: int, ra: float = 10.0, dec: float = 20.0) -> dict[str, Any]:
    magnitude, night = 17.0 + 0.3 * np.sin(number), NIGHTS * np.sin(0.7 * number) ** 2
    return {
        "jd": JD + night, "ra": ra, "dec": dec, "magpsf": magnitude, "sigmapsf": 0.05, "diffmaglim": 20.5,
        "fid": 1 + number % 2, "isdiffpos": "t",
    }  # fmt: skip


def packet(number: int, name: str = "ZTF18aaaaaaa", **changes: Any) -> dict[str, Any]:
    return {
        "objectId": name, "schemavsn": "4.02", "candid": number, "candidate": candidate(number), "prv_candidates": None,
    } | changes  # fmt: skip


def container(packets: Iterable[Mapping[str, Any]], codec: str = "deflate") -> bytes:
    out = io.BytesIO()
    fastavro.writer(out, SCHEMA, packets, codec=codec)
    return out.getvalue()


def same_alert(count: int) -> bytes:
    return container(packet(1) for _ in range(count))


def growing(count: int) -> bytes:
    """Alerts of one object, each of another night."""
    return container(packet(number) for number in range(count))


def one_place(count: int) -> bytes:
    return container(packet(1, f"ZTF18{number:07d}") for number in range(count))


def history(count: int) -> bytes:
    earlier = [candidate(number) for number in range(count)]
    return container([packet(count, prv_candidates=earlier)])


def lsst_history(count: int) -> bytes:
    schema = lsst_schema(900)
    record = empty(schema)
    point = record["diaSource"] | {"band": "r", "psfFlux": 1000.0, "psfFluxErr": 10.0}
    record["diaSource"] = point | {"diaSourceId": 1, "diaObjectId": 1, "ra": 10.0, "dec": 20.0, "midpointMjdTai": 6e4}
    record["prvDiaSources"] = [
        point | {"midpointMjdTai": 6e4 + NIGHTS * np.sin(0.7 * number) ** 2} for number in range(count)
    ]
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(schema), record)
    return confluent_message(900, out.getvalue())


def empty(schema: Any, named: dict[str, Any] | None = None) -> Any:
    """A value of a schema: null where it may be, else zeros."""
    named = {} if named is None else named
    if isinstance(schema, list):
        return None if "null" in schema else empty(schema[0], named)
    kind = schema["type"] if isinstance(schema, dict) else schema
    if kind == "record":
        named[schema["name"]] = schema
        return {field["name"]: empty(field["type"], named) for field in schema["fields"]}
    if kind in named or kind.split(".")[-1] in named:
        return empty(named.get(kind) or named[kind.split(".")[-1]], named)
    zeros = {"array": [], "string": "", "bytes": b"", "boolean": False, "float": 0.0, "double": 0.0}
    return zeros.get(kind, 0) if not isinstance(kind, (dict, list)) else empty(kind, named)


def nulls(count: int) -> bytes:
    return container([packet(1, prv_candidates=[None] * count)])


def long_text(size: int, count: int, **field: str) -> bytes:
    (name,) = field
    return container(packet(number, **{name: field[name] * size}) for number in range(count))


CASES: dict[str, Callable[[], list[bytes]]] = {
    "one usual alert": lambda: [growing(1)],
    "10,000 times one alert": lambda: [same_alert(10_000)],
    "10,000 alerts of one object": lambda: [growing(10_000)],
    "5,000 objects in one place": lambda: [one_place(5_000)],
    "100,000 times one alert": lambda: [same_alert(100_000)],
    "32 messages of 2,000 alerts": lambda: [same_alert(2_000)] * 32,
    "history of 10^5": lambda: [history(100_000)],
    "history of 10^6 less 100": lambda: [history(999_900)],
    "LSST history of 10^5": lambda: [lsst_history(100_000)],
    "64 histories of 10^5": lambda: [history(100_000)] * 64,
    "60 MB of object id": lambda: [long_text(60_000_000, 1, objectId="x")],
    "1,000 versions of 60 kB": lambda: [long_text(60_000, 1_000, schemavsn="x")],
    "array of 60 million nulls": lambda: [nulls(60_000_000)],
    "64 messages of 60 MB": lambda: [long_text(60_000_000, 1, schemavsn="x")] * 64,
    "20,000 objects in one cell": lambda: [],
    "20,000 objects in one place": lambda: [],
    "5,000 of each survey in one place, in memory": lambda: [],
}


def crowd(store: RedisStore, client: redis.Redis, count: int, width: float) -> float:
    """Fill a cell with objects of ZTF; the time for as many alerts of LSST there as a batch has."""
    rng = np.random.default_rng(0)
    ones = np.ones(1, np.float32)

    def alert(survey: str, number: int) -> Alert:
        ra, dec = 45.0 + width * rng.uniform(-1, 1) / 3600, 0.03 + width * rng.uniform(-1, 1) / 3600
        curve = LightCurve(np.array([60000.0]), ones, ones, ones, np.zeros(1, np.uint8) + BAND_CODE[f"{survey}:g"],
                           np.zeros(1, np.uint8))  # fmt: skip
        return Alert(survey, number, number, str(number), ra, dec, 60000.0, f"{survey}:g", curve, "")

    known = [alert("ztf", number) for number in range(count)]
    pipeline = client.pipeline()
    for one, home, cell in zip(known, own_homes(known), own_cells(known), strict=True):
        name = (one.survey, one.object_id)
        pipeline.set(object_key("trifid", home, name, "lc"), encode_object(one.light_curve, one))
        pipeline.hset(sky_key("trifid", home, "objects", cell), ":".join(name), place_of(one, None).pack())
    pipeline.execute()
    client.slowlog_reset()
    start_time = time.perf_counter()
    states = store.update([alert("lsst", number) for number in range(256)])
    print(f"{sum(bool(s.associated) for s in states)} of 256 with a counterpart", file=sys.stderr)
    return time.perf_counter() - start_time


def crowd_in_memory(count: int) -> float:
    one = np.ones(1, np.float32)

    def alert(survey: str, number: int) -> Alert:
        curve = LightCurve(np.array([60000.0]), one, one, one, np.zeros(1, np.uint8) + BAND_CODE[f"{survey}:g"],
                           np.zeros(1, np.uint8))  # fmt: skip
        return Alert(survey, number, number, str(number), 45.0, 0.03, 60000.0, f"{survey}:g", curve, "")

    store = MemoryStore()
    start_time = time.perf_counter()
    store.update([alert(survey, number) for number in range(count) for survey in ("ztf", "lsst")])
    return time.perf_counter() - start_time


def run(name: str) -> None:
    repository = Settings().inference.model_repository
    with RedisServer() as server, closing(RedisStore(server.url, timeout=120)) as store, server.client() as client:
        client.config_set("slowlog-log-slower-than", 2000)
        client.config_set("slowlog-max-len", 100_000)
        engine = OnnxEngine(repository, threads=1)
        reference = ReferenceSet.load_npz(repository / REFERENCE_SET_FILE)
        pipeline = Pipeline(Decoder(), store, engine, engine.manifest, reference)
        pipeline.process([IncomingMessage(growing(300), RECEIVED)])
        client.flushdb()
        client.slowlog_reset()
        payloads = CASES[name]()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.perf_counter()
        outcome = ""
        if name.startswith("20,000"):
            seconds = crowd(store, client, 20_000, 0.0 if "place" in name else 90.0)
        elif "in memory" in name:
            seconds = crowd_in_memory(5000)
        else:
            result = pipeline.process([IncomingMessage(payload, RECEIVED) for payload in payloads])
            seconds = time.perf_counter() - start
            reasons = {letter.reason[:80] for letter in result.dead_letters}
            outcome = f"; {len(result.annotations)} annotated, {len(result.dead_letters)} dead letters {reasons or ''}"
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        slowest = max((entry["duration"] for entry in client.slowlog_get(-1)), default=0) / 1e3
        size = sum(map(len, payloads)) / 1e3
        print(
            f"{name} ({size:.0f} kB): {seconds:.2f} s, {(after - before) / 1024:.0f} MiB more than the "
            f"{before / 1024:.0f} of a process with its input, Redis busy for {slowest:.0f} ms at most{outcome}",
            flush=True,
        )


def main() -> None:
    if sys.argv[1:2] == ["--in-this-process"]:
        run(sys.argv[2])
        return
    for name in sys.argv[1:] or CASES:
        done = subprocess.run([sys.executable, __file__, "--in-this-process", name], timeout=600, check=False)
        if done.returncode:
            print(f"{name}: ended with {done.returncode}", flush=True)


if __name__ == "__main__":
    main()
