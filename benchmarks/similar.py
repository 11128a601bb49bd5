"""Similar objects: what is found of an exact search, how fast, at what cost, and how far embeddings move.

    PYTHONPATH=. python -m benchmarks.similar [--objects 100000] [--runs ../main/runs]
    PYTHONPATH=. python -m benchmarks.similar --only stream

``recall``: real light curves, as training prepared them (``runs/light_curves``: 33,920 stars of ASAS, Catalina and
others, each whole and in versions of fewer of its points, which count as objects of their own where there are not
enough stars), embedded by the model of the repository and put into a real Redis as workers put them. Queries are
versions that are not there. Exact is the order of all cosines in single precision.

``growth``: how far an embedding moves while a light curve grows, against how far its tenth neighbour is.

``stream``: one process, as ``stages.py``, real alerts of ZTF in their own mix of new and known objects, with and
without in turn; CPU time of this process and of Redis.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
from numpy.typing import NDArray

from benchmarks.workload.measures import cpu_seconds
from benchmarks.workload.packets import mix_of, templates
from benchmarks.workload.stars import Sky, Stream, preload_with_progress, read_curves
from broker.assemble.lightcurve import assemble_light_curves
from broker.batch import IncomingMessage
from broker.build import build_engine, load_reference_set
from broker.config import Settings
from broker.embedded.redis import RedisServer
from broker.inference.manifest import LIGHT_CURVE_ENCODER
from broker.inference.onnx import OnnxEngine
from broker.pipeline import Pipeline
from broker.records import Annotation
from broker.redis_client import RedisConnection
from broker.similar.keeper import Embedded, Keeper
from broker.similar.search import Similar
from broker.similar.sets import Sets
from broker.state.redis import RedisStore
from broker.surveys import Decoder
from broker.taxonomy import CLASS_NAMES
from broker.times import mjd_now
from training.datasets.tables import load_objects

_SHARED: Final = Path(__file__).resolve().parents[2] / "shared"
_BATCH: Final = 256
_MODEL: Final = "benchmark"
_VERSIONS: Final = (0, 2, 3, 1)
"""Of ``training.prepare``: whole, thinned, as a stream would show it, a part."""
_TOP: Final = 10


def embed(engine: OnnxEngine, arrays: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
    """Embeddings (n, d) of the light curves' encoder."""
    parts = []
    for first in range(0, len(arrays["points"]), _BATCH):
        feed = {name: np.asarray(array[first : first + _BATCH]) for name, array in arrays.items()}
        feed = {name: part if part.dtype == bool else part.astype(np.float32) for name, part in feed.items()}
        parts.append(engine._run_models({LIGHT_CURVE_ENCODER: feed})[LIGHT_CURVE_ENCODER]["embedding"])
    return np.concatenate(parts)


def prepared(engine: OnnxEngine, runs: Path, count: int) -> NDArray[np.float32]:
    """``count`` embeddings of real light curves, the whole ones first; raises click's error where there are too few."""
    names = ("points", "points_mask", "folded", "features")
    arrays = {name: np.load(runs / "light_curves" / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in names}
    present = np.load(runs / "light_curves" / "present.npy", mmap_mode="r", allow_pickle=False)
    found: list[NDArray[np.float32]] = []
    for version in _VERSIONS:
        left = count - sum(map(len, found))
        rows = np.flatnonzero(present[version])[:left]
        if len(rows):
            found.append(embed(engine, {name: array[version][rows] for name, array in arrays.items()}))
            print(f"  {len(rows)} embeddings of version {version}", flush=True)
    embeddings = np.concatenate(found)
    if len(embeddings) < count:
        raise click.ClickException(f"{len(embeddings)} light curves, {count} are needed")
    return embeddings


def annotation(number: int) -> Annotation:
    """What the keeper wants to know of an object."""
    probabilities = tuple(0.91 if i == number % 10 else 0.01 for i in range(10))
    return Annotation(
        "ztf", number, number, f"ZTF18a{number:07d}", number % 360.0, number % 90.0, 60_000.0, CLASS_NAMES,
        probabilities, ("light_curve",), 20, None,
    )  # fmt: skip


def recall(objects: int, queries: int, runs: Path) -> None:
    """Print recall, latency, memory and CPU time of VADD and VSIM."""
    settings = Settings()
    engine = build_engine(settings.inference, settings.triton)
    assert isinstance(engine, OnnxEngine)
    everything = prepared(engine, runs, objects + queries)
    order = np.random.default_rng(0).permutation(len(everything))
    kept, asked = everything[order[:objects]], everything[order[objects:]]
    top = np.argsort(-(asked @ kept.T), axis=1)[:, :_TOP]
    no_curve = load_curve()
    with RedisServer() as server, server.client() as client:
        pid = int(client.info()["process_id"])
        empty, began = int(client.info("memory")["used_memory"]), cpu_seconds(pid)
        keeper = Keeper(RedisConnection(server.url), _MODEL, expiry_days=1000.0, growth=0.2)
        own = time.thread_time()
        for first in range(0, objects, _BATCH):
            some = kept[first : first + _BATCH]
            annotations = [annotation(number) for number in range(first, first + len(some))]
            batch = Embedded(annotations, [no_curve] * len(some), some, np.zeros((len(some), 3, some.shape[1]), "f4"))
            keeper.write(batch, range(len(some)))
        sets = Sets(RedisConnection(server.url), _MODEL)
        vectors = 2 * sets.count()  # "all" and "light_curve" have the same here
        print(
            f"{objects:,} objects, two vector sets: {(cpu_seconds(pid) - began) / vectors * 1e3:.3f} core-ms of Redis "
            f"and {(time.thread_time() - own) / vectors * 1e3:.3f} of the worker a vector, "
            f"{(int(client.info('memory')['used_memory']) - empty) / vectors:.0f} bytes a vector with its attributes"
        )
        keeper.close()
        with closing(Similar(sets, 1000.0)) as similar:
            similar.check()
            hits, plain, seconds, cpu, redis_cpu = 0, 0, [], time.process_time(), cpu_seconds(pid)
            for vector, exact in zip(asked, top, strict=True):
                wanted = {f"ZTF18a{number:07d}" for number in exact}
                start = time.perf_counter()
                answer = similar.search(vector, "light_curve", _TOP)
                seconds.append(time.perf_counter() - start)
                hits += len({match.object_id for match in answer.matches} & wanted)
            cpu, redis_cpu = time.process_time() - cpu, cpu_seconds(pid) - redis_cpu
            for vector, exact in zip(asked, top, strict=True):
                reply = client.execute_command(
                    "VSIM", sets.key(0, "light_curve"), "FP32", vector.tobytes(), "COUNT", _TOP, "EF", 500
                )
                plain += len({name.decode()[4:] for name in reply} & {f"ZTF18a{number:07d}" for number in exact})
    p50, p99 = np.percentile(seconds, [50, 99]) * 1e3
    print(
        f"recall@{_TOP} {hits / top.size:.4f} (bar 0.95), of VSIM alone {plain / top.size:.4f}; p50 {p50:.2f} ms, p99 "
        f"{p99:.2f} ms (bar 10) with a load of {os.getloadavg()[0]:.1f}; core-ms a query "
        f"{cpu / len(asked) * 1e3:.2f} here, {redis_cpu / len(asked) * 1e3:.2f} in Redis"
    )


def load_curve() -> Any:
    """An empty light curve: magnitudes are not what is measured."""
    from broker.records import LightCurve

    return LightCurve.empty()


def growth(stars: int) -> None:
    """Print how far embeddings move."""
    settings = Settings()
    engine = build_engine(settings.inference, settings.triton)
    assert isinstance(engine, OnnxEngine)
    curves = load_objects(_SHARED / "data").light_curves
    rng = np.random.default_rng(0)
    print("| points | grown by | cosine moved, median | 90 % | to the 10th neighbour of as many stars, median |")
    print("|---:|---:|---:|---:|---:|")
    for points in (10, 30, 100):
        usable = [i for i in rng.permutation(len(curves)) if len(curves[i]) >= 2 * points][:stars]
        at = {n: _first(engine, [curves[i] for i in usable], n) for n in (points, *grown(points))}
        cosines = np.sort(at[points] @ at[points].T, axis=1)
        tenth = float(np.median(1 - cosines[:, -1 - _TOP]))
        for n in grown(points):
            moved = 1 - (at[points] * at[n]).sum(axis=1)
            print(
                f"| {points} | {n / points - 1:.0%} | {np.median(moved):.4f} | {np.percentile(moved, 90):.4f} "
                f"| {tenth:.4f} |"
            )


def grown(points: int) -> Sequence[int]:
    """Numbers of points after a tenth, a fifth, a half more, and twice as many."""
    return [round(points * factor) for factor in (1.1, 1.2, 1.5, 2.0)]


def _first(engine: OnnxEngine, curves: Sequence[Any], points: int) -> NDArray[np.float32]:
    from dataclasses import fields, replace

    cut = [replace(curve, **{f.name: getattr(curve, f.name)[:points] for f in fields(curve)}) for curve in curves]
    inputs = assemble_light_curves(cut)
    return embed(engine, {name: getattr(inputs, name) for name in ("points", "points_mask", "folded", "features")})


def stream(stars: int, alerts: int, rounds: int) -> None:
    """Print core-ms an alert with and without, in turn."""
    curves = read_curves(_SHARED / "data", 60)
    packets = templates(_SHARED / "alerts" / "ztf")
    sky = Sky(curves, stars, 40, 400, rounds * 2 * alerts // stars + 2, 0)
    told = Stream(sky, packets, 0)
    kinds = [one.kind for one in packets]
    settings = Settings()
    engine = build_engine(settings.inference, settings.triton)
    costs: dict[bool, list[float]] = {True: [], False: []}
    with RedisServer() as server, server.client() as client, closing(RedisStore(server.url, timeout=60)) as store:
        pid = int(client.info()["process_id"])
        preload_with_progress(sky, server.url, 1, 0.2, similar=True)
        keeper = Keeper(RedisConnection(server.url), engine.model_version, expiry_days=1000.0, growth=0.2)
        keeper.start()
        reference = load_reference_set(settings)
        with closing(keeper):
            for number in range(2 * rounds + 2):
                on = bool(number % 2)
                pipeline = Pipeline(
                    Decoder(), store, engine, engine.manifest, reference, similar=keeper if on else None
                )
                mix = told.kinds(mix_of(kinds), alerts)
                messages = [IncomingMessage(bytes(told.next(kind)), mjd_now()) for kind in mix]
                began, redis_began = time.process_time(), cpu_seconds(pid)
                for first in range(0, len(messages), _BATCH):
                    pipeline.process(messages[first : first + _BATCH])
                    keeper.drain()
                spent = time.process_time() - began, cpu_seconds(pid) - redis_began
                if number >= 2:  # the first of each warm up
                    costs[on].append(1e3 * sum(spent) / alerts)
                seconds = [1e3 * one / alerts for one in spent]
                print(f"  {'with' if on else 'without'}: {seconds[0]:.3f} + Redis {seconds[1]:.3f}", flush=True)
    without, with_it = np.median(costs[False]), np.median(costs[True])
    print(
        json.dumps({"without": costs[False], "with": costs[True]})
        + f"\nmedian core-ms an alert, Redis's with it: {without:.3f} without, {with_it:.3f} with: "
        f"{with_it / without - 1:+.1%} (bar 15 %)"
    )


@click.command(help=__doc__)
@click.option("--only", type=click.Choice(["recall", "growth", "stream"]))
@click.option("--objects", default=100_000, show_default=True)
@click.option("--queries", default=500, show_default=True)
@click.option("--runs", type=click.Path(path_type=Path), default=Path("runs"), show_default=True)
@click.option("--stars", default=2000, show_default=True, help="Known, of growth and stream.")
@click.option("--alerts", default=1024, show_default=True, help="Of each round of stream.")
@click.option("--rounds", default=3, show_default=True)
def main(only: str | None, objects: int, queries: int, runs: Path, stars: int, alerts: int, rounds: int) -> None:
    if only in (None, "recall"):
        recall(objects, queries, runs)
    if only in (None, "growth"):
        growth(stars)
    if only in (None, "stream"):
        stream(stars, alerts, rounds)


if __name__ == "__main__":
    main()
