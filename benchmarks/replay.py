"""Real light curves replayed point by point, with and without keeping period searches from one alert to the next.

For each length: accuracy of the published model and periods recovered both ways on the same alerts, the share of alerts
with a full search, and core-ms an alert through the whole pipeline with a real Redis, both ways in turns.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from benchmarks.period import recovered
from broker.assemble import ModelInputs, assemble, assemble_with_searches, warm_up
from broker.assemble.kept import Reason
from broker.batch import IncomingMessage, Received
from broker.build import build_engine, load_reference_set
from broker.config import MODEL_REPOSITORY, InferenceSettings, Settings
from broker.embedded.redis import RedisServer
from broker.metrics import STAGE_CPU_SECONDS
from broker.pipeline import Pipeline
from broker.records import BANDS, Alert, KeptSearch, LightCurve, ObjectState, PhotometryKind
from broker.state.redis import RedisStore
from broker.surveys import Decoder
from broker.taxonomy import CLASS_NAMES
from training.datasets.multiband import ARCHIVES, has_archive, load_archive, load_packets, scored
from training.datasets.splits import split
from training.datasets.tables import load_objects
from training.live.scores import Repository

DATA: Final = Path(__file__).resolve().parents[2] / "shared" / "data"
LENGTHS: Final = (10, 20, 50, 100, 200, 400, 1000)
_WINDOW: Final = 0.2
"""Alerts of a length are those with up to this fraction fewer points, of which each star has one at random that is
scored: at one number of points, all searches would be equally old."""
_BATCH: Final = 128


@dataclass(frozen=True, slots=True, eq=False)
class Stars:
    """n labelled stars, their points in order of time."""

    name: str
    states: list[ObjectState]
    label: Sequence[str]
    period: NDArray[np.float64]
    """(n,) the catalogue's, days; NaN where it has none."""


@dataclass(slots=True)
class Tally:
    """Alerts of one length."""

    stars: int = 0
    right: Counter[str] = field(default_factory=Counter)
    """Stars that are classified right, by way."""
    found: Counter[str] = field(default_factory=Counter)
    """Periods that are recovered, by way."""
    periods: int = 0
    same: int = 0
    """Stars that both ways give the same class."""
    alerts: int = 0
    reasons: Counter[Reason] = field(default_factory=Counter)
    """Period searches in ``alerts``."""


def sets(part: str, most: int, seed: int = 0) -> Iterator[Stars]:
    """Stars of ASAS and Catalina that are for ``part`` (train or test); for tests, those of other archives as well."""
    if (DATA / "asas_v.parquet").exists():
        table = load_objects(DATA)
        rows = split(table, 0)[0 if part == "train" else 2]
        scorable = np.isin(table.label[rows], CLASS_NAMES) & ~table.label_is_coarse[rows]
        scorable &= np.isin(table.label_quality[rows], ("gold", "std"))
        periods = _periods(DATA / "css_v.parquet", "css_id")
        for survey, name in (("asas", "ASAS"), ("css", "Catalina")):
            own = rows[scorable & (table.survey[rows] == survey)]
            states = table.states(own)
            true = [periods.get(s.object_id.removeprefix("css:"), np.nan) for s in states]
            yield _some(Stars(name, states, table.label[own].tolist(), np.array(true)), most, seed)
    if part == "train":
        return
    archives = {name: load_archive(DATA, name) for name in ("ztf_dr", "stripe82") if has_archive(DATA, name)}
    if (DATA / "multiband" / "ztf_alert_labels.parquet").exists():
        archives["packets"] = load_packets(DATA)
    for name, objects in archives.items():
        ten = scored(objects)
        periods = {}
        for file in ARCHIVES.get(name, ()):
            periods |= _periods(DATA / "multiband" / file, "name")
        true = [periods.get(s.object_id.partition(":")[2], np.nan) for s in ten.states]
        yield _some(Stars(name, ten.states, ten.label.tolist(), np.array(true)), most, seed)


def _periods(path: Path, key: str) -> dict[str, float]:
    if "period" not in pq.read_schema(path).names:
        return {}
    rows = pq.read_table(path, columns=[key, "period"]).to_pylist()
    return {str(row[key]): float(row["period"] or np.nan) for row in rows}


def _some(stars: Stars, most: int, seed: int) -> Stars:
    """At most ``most`` of them, with at least ten points; without upper limits, in order of time."""
    states = []
    for state in stars.states:
        curve = state.light_curve
        measured = curve.take(np.flatnonzero(curve.kind != PhotometryKind.LIMIT))
        states.append(replace(state, light_curve=measured.take(np.argsort(measured.mjd, kind="stable"))))
    long = np.flatnonzero([len(s.light_curve) >= LENGTHS[0] for s in states])
    rows = np.sort(np.random.default_rng(seed).permutation(long)[:most]).tolist()
    return Stars(stars.name, [states[r] for r in rows], [stars.label[r] for r in rows], stars.period[rows])


def replay(stars: Stars, growth: float, repository: Repository, seed: int = 0) -> dict[int, Tally]:
    """All alerts of all stars up to the longest of LENGTHS, side by side."""
    size = np.array([len(s.light_curve) for s in stars.states])
    rng = np.random.default_rng(seed)
    when = {n: np.ceil(rng.uniform(n / (1 + _WINDOW), n, len(size))).astype(int).clip(LENGTHS[0]) for n in LENGTHS}
    tally = {n: Tally() for n in LENGTHS}
    kept: list[KeptSearch | None] = [None] * len(size)
    for points in range(LENGTHS[0], min(int(size.max()), LENGTHS[-1]) + 1):
        there = np.flatnonzero(size >= points)
        of = next(n for n in LENGTHS if points <= n)
        counted = tally[of] if points > of / (1 + _WINDOW) or of == LENGTHS[0] else None
        for first in range(0, len(there), _BATCH):
            rows = there[first : first + _BATCH]
            several = _first(stars, rows, np.full(len(rows), points))
            states = [replace(s, kept_search=kept[r]) for s, r in zip(several, rows.tolist(), strict=True)]
            _, searches = assemble_with_searches(states, growth)
            for row, search in zip(rows.tolist(), searches.kept, strict=True):
                kept[row] = search or kept[row]
            if counted is not None:
                counted.alerts += len(rows)
                counted.reasons.update(reason for reason in searches.reason if reason is not None)
            due = np.flatnonzero((when[of][rows] == points) & (size[rows] >= of))
            if len(due):
                both = {"full": assemble([states[i] for i in due]), "kept": inputs_of([states[i] for i in due], growth)}
                _score(tally[of], both, stars, rows[due], repository)
    return tally


def sampled(stars: Stars, growth: float, repository: Repository, seed: int = 0) -> dict[int, Tally]:
    """One alert of each star at each length, after a full search that is up to ``growth`` old, evenly in the logarithm.

    As ``replay`` but without the alerts in between, of which those with a worse fit would have renewed the search.
    """
    size = np.array([len(s.light_curve) for s in stars.states])
    rng = np.random.default_rng(seed)
    tally = {n: Tally() for n in LENGTHS}
    for n in LENGTHS:
        long = np.flatnonzero(size >= n)
        for first in range(0, len(long), _BATCH):
            rows = long[first : first + _BATCH]
            now = np.ceil(rng.uniform(n / (1 + _WINDOW), n, len(rows))).astype(int).clip(LENGTHS[0])
            then = np.ceil(now / (1 + growth) ** rng.random(len(rows))).astype(int).clip(LENGTHS[0])
            kept = assemble_with_searches(_first(stars, rows, then), growth)[1].kept
            states = [replace(s, kept_search=k) for s, k in zip(_first(stars, rows, now), kept, strict=True)]
            inputs, searches = assemble_with_searches(states, growth)
            tally[n].alerts += len(rows)
            tally[n].reasons.update(reason for reason in searches.reason if reason is not None)
            _score(tally[n], {"full": assemble(states), "kept": inputs}, stars, rows, repository)
    return tally


def _first(stars: Stars, rows: NDArray[np.intp], points: NDArray[np.intp]) -> list[ObjectState]:
    """Stars after so many points each."""
    states = [stars.states[row] for row in rows.tolist()]
    return [
        replace(s, light_curve=s.light_curve.take(np.arange(n))) for s, n in zip(states, points.tolist(), strict=True)
    ]


def inputs_of(states: Sequence[ObjectState], growth: float) -> ModelInputs:
    """As ``assemble_with_searches``, once more for some of a batch: the same, since all is a function of the states."""
    return assemble_with_searches(states, growth)[0]


def _score(
    tally: Tally, both: dict[str, ModelInputs], stars: Stars, rows: NDArray[np.intp], repository: Repository
) -> None:
    tally.stars += len(rows)
    label = np.array([CLASS_NAMES.index(stars.label[r]) for r in rows.tolist()])
    known = np.isfinite(stars.period[rows])
    tally.periods += int(known.sum())
    given = {}
    for way, inputs in both.items():
        answers = repository.of_inputs(inputs)
        leading = np.where(answers.probabilities.any(axis=1), answers.probabilities.argmax(axis=1), -1)
        given[way] = np.where(answers.is_other, -2, leading)
        tally.right[way] += int((given[way] == label).sum())
        pairs = zip(inputs.light_curve.period[known], stars.period[rows][known], strict=True)
        tally.found[way] += sum(recovered(found, true) for found, true in pairs)
    tally.same += int((given["full"] == given["kept"]).sum())


def add(total: dict[int, Tally], part: dict[int, Tally]) -> None:
    """Count the alerts of another set in ``total``."""
    for n, other in part.items():
        own = total.setdefault(n, Tally())
        for name in ("stars", "periods", "same", "alerts"):
            setattr(own, name, getattr(own, name) + getattr(other, name))
        for name in ("right", "found", "reasons"):
            getattr(own, name).update(getattr(other, name))


def print_scores(name: str, growth: float, tally: dict[int, Tally]) -> None:
    print(f"\n{name}, searched anew after growth by {growth:g}")
    print("points  stars  accuracy full  kept    points  same class  periods full  kept    alerts with a full search")
    for n, t in tally.items():
        if t.stars < 20:
            continue
        full, kept = (t.right[way] / t.stars for way in ("full", "kept"))
        found = [f"{t.found[way] / t.periods:.3f}" if t.periods else "" for way in ("full", "kept")]
        searched = sum(t.reasons.values()) - t.reasons[Reason.REFINED]
        why = ", ".join(f"{r} {c / t.alerts:.1%}" for r, c in t.reasons.most_common() if r is not Reason.REFINED)
        print(
            f"{n:6} {t.stars:6} {full:14.3f}  {kept:.3f}  {100 * (kept - full):+6.2f} {t.same / t.stars:11.3f} "
            f"{found[0]:>13}  {found[1]:>5}  {searched / t.alerts:6.1%} ({why})"
        )


def costs(states: Sequence[ObjectState], growth: float) -> None:
    """Core-ms an alert of one point each, by length: of this process, with state in Redis, both ways in turns."""
    settings = Settings(inference=InferenceSettings(threads=1))  # more spin while they wait, which counts as CPU time
    print("\nthe pipeline without Kafka, core-ms an alert (one point each, batches of all stars), searched in full")
    print("points  stars     always (assemble)   after growth (assemble)   ratio")
    kept_cost: dict[int, float] = {}
    with closing(build_engine(settings.inference, settings.triton)) as engine:
        for n in LENGTHS:
            own = [s for s in states if len(s.light_curve) >= n][:64]
            if len(own) < 16:
                continue
            spent: dict[str, tuple[float, float]] = {}
            for way, fraction in (("always", 0.0), ("after growth", growth)):
                with RedisServer() as server, closing(RedisStore(server.url)) as store:
                    pipeline = Pipeline(
                        Decoder(), store, engine, engine.manifest, load_reference_set(settings),
                        period_search_growth=fraction,
                    )  # fmt: skip
                    spent[way] = _cost(pipeline, own, n, way != "always")
            (always, assembled), (kept, kept_assembled) = spent["always"], spent["after growth"]
            kept_cost[n] = kept
            print(
                f"{n:6} {len(own):6} {always:10.2f} ({assembled:.2f}) {kept:15.2f} ({kept_assembled:.2f}) "
                f"{always / kept:10.2f}"
            )
    if {100, 1000} <= kept_cost.keys():
        print(f"cost at 1,000 points / at 100: {kept_cost[1000] / kept_cost[100]:.2f}")


def _cost(pipeline: Pipeline, states: Sequence[ObjectState], n: int, every: bool) -> tuple[float, float]:
    """Core-ms an alert, in all and to assemble it, of the alerts from n / (1 + _WINDOW) to n points: a cycle of full
    searches; without ``every`` of the first tenth."""
    start = max(int(n / (1 + _WINDOW)), 1)
    pipeline.annotate([_received(number, s, 0, start) for number, s in enumerate(states)])
    last = n if every else min(n, start + max(2, (n - start) // 10))
    spent = alerts = 0.0
    before = _assemble_seconds()
    for points in range(start, last):
        received = [_received(number, s, points, points + 1) for number, s in enumerate(states)]
        begun = time.process_time()
        pipeline.annotate(received)
        spent += time.process_time() - begun
        alerts += len(received)
    return 1e3 * spent / alerts, 1e3 * (_assemble_seconds() - before) / alerts


def _assemble_seconds() -> float:
    value: float = STAGE_CPU_SECONDS.labels("assemble")._value.get()
    return value


def _received(number: int, state: ObjectState, first: int, last: int) -> Received:
    """The points ``first`` to ``last`` of a star as one alert of ZTF; positions are spread over the sky."""
    curve: LightCurve = state.light_curve.take(np.arange(first, last))
    ra, dec = (137.5 * number) % 360, -60.0 + 120.0 * ((0.618 * number) % 1.0)
    alert = Alert(
        "ztf", last, last, f"ZTF18{number:07d}", ra, dec, float(curve.mjd[-1]), BANDS[curve.band[-1]], curve, ""
    )
    return Received(alert, IncomingMessage(b"", 61_000.0))


@threadpool_limits.wrap(limits=1)
def main() -> None:
    """Replay and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=("train", "test"), default="test")
    parser.add_argument("--stars", type=int, default=60, help="at most so many of each set")
    parser.add_argument("--growth", type=float, nargs="+", default=[Settings().pipeline.period_search_growth])
    parser.add_argument("--only", choices=("scores", "costs"))
    parser.add_argument("--sampled", action="store_true", help="scores of one alert a star and length, for many stars")
    given = parser.parse_args()
    warm_up()
    repository = Repository(MODEL_REPOSITORY)
    longest: list[ObjectState] = []
    totals: dict[float, dict[int, Tally]] = {growth: {} for growth in given.growth}
    for stars in sets(given.part, given.stars):
        if not stars.states:
            continue
        longest += stars.states
        for growth in given.growth if given.only != "costs" else ():
            way = sampled if given.sampled else replay
            tally = way(stars, growth, repository)
            print_scores(stars.name, growth, tally)
            add(totals[growth], tally)
    for growth, tally in totals.items():
        if tally:
            print_scores("All", growth, tally)
    if not longest:
        print(f"{DATA} has no light curves: nothing to measure")
    elif given.only != "scores":
        longest.sort(key=lambda state: -len(state.light_curve))
        costs(longest, given.growth[0])


if __name__ == "__main__":
    main()
