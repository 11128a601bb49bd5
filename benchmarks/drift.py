"""Faults planted into a stream of real light curves, and how often they are found; and alarms where there is no fault.

``python -m benchmarks.drift [SHARED]``: alerts of real ZTF and EROS-2 stars, each as its light curve was up to some
detection. Each of the baseline's seven nights, and each window, has a random half of the stars, as fields change from
night to night. It prints for each fault and window size the share of windows in which it is found, by which quantities,
and the false alarms of undisturbed windows; and what counting costs an alert.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from broker.anomaly.calibration import with_scores
from broker.anomaly.reference_set import ReferenceSet
from broker.anomaly.strata import strata_of_inputs
from broker.assemble import assemble
from broker.bands import BAND_CODE, BANDS
from broker.batch import IncomingMessage, Received
from broker.drift.compare import Drift, add, compare
from broker.drift.counts import Counts, Features, count
from broker.inference.onnx import OnnxEngine
from broker.models.repository import REFERENCE_SET_FILE
from broker.pipeline import Pipeline
from broker.records import Alert, LightCurve, ObjectState
from broker.state.memory import MemoryStore
from broker.surveys import Decoder
from tests.random_models import MODEL_REPO
from training.datasets.multiband import load_archive

FEWEST, NIGHTS, NIGHT, WINDOWS = 8, 7, 1200, 50
"""Detections before an alert; nights of the baseline, alerts in each; windows of each size."""
SIZES = (300, 1200)
SURVEYS = {"ztf": ("ztf_dr", "ztf_rebuilt"), "eros": ("eros2",)}
Fault = Callable[[LightCurve, str, int], LightCurve]
"""What is done with a light curve of a survey; the last is the number of points that came before the fault."""


def offset(curve: LightCurve, survey: str, before: int) -> LightCurve:
    """0.1 mag in one band, in all points: g of ZTF, B of EROS-2."""
    band = BAND_CODE["ztf:g" if survey == "ztf" else "eros:B"]
    return _scaled(curve, np.where(curve.band == band, 10**-0.04, 1.0))


def offset_of_new(curve: LightCurve, survey: str, before: int) -> LightCurve:
    """The same in the newest detection alone: the first night of a fault."""
    band = BAND_CODE["ztf:g" if survey == "ztf" else "eros:B"]
    new = np.arange(len(curve)) >= before
    return _scaled(curve, np.where(new & (curve.band == band), 10**-0.04, 1.0))


def renamed(curve: LightCurve, survey: str, before: int) -> LightCurve:
    """Two bands under each other's names."""
    first, second = (BAND_CODE[name] for name in (("ztf:g", "ztf:r") if survey == "ztf" else ("eros:B", "eros:R")))
    code = np.arange(len(BANDS), dtype=np.uint8)
    code[first], code[second] = second, first
    return replace(curve, band=code[curve.band])


def wrong_sign(curve: LightCurve, survey: str, before: int) -> LightCurve:
    """Brighter is fainter: magnitudes mirrored at the median of their band."""
    total = curve.flux + np.nan_to_num(curve.reference_flux)
    factor = np.ones(len(curve))
    for band in np.unique(curve.band):
        own = (curve.band == band) & (total > 0)
        factor[own] = (np.median(total[own]) / total[own]) ** 2
    return _scaled(curve, factor)


def half_errors(curve: LightCurve, survey: str, before: int) -> LightCurve:
    """Errors half as large, of all points."""
    return replace(curve, flux_error=curve.flux_error / np.float32(2))


def _scaled(curve: LightCurve, factor: NDArray[np.float64]) -> LightCurve:
    f = factor.astype(np.float32)
    return replace(curve, flux=curve.flux * f, flux_error=curve.flux_error * f, reference_flux=curve.reference_flux * f)


FAULTS: dict[str, Fault] = {
    "0.1 mag in one band, all points": offset, "0.1 mag in one band, new points": offset_of_new,
    "two bands swapped": renamed, "wrong sign": wrong_sign, "errors halved": half_errors,
}  # fmt: skip


def alerts_of(states: Sequence[ObjectState], survey: str, number: int, rng: np.random.Generator) -> list[ObjectState]:
    """``number`` objects as they were after one of their detections."""
    found: list[ObjectState] = []
    while len(found) < number:
        state = states[int(rng.integers(len(states)))]
        length = len(state.light_curve)
        if length > FEWEST:
            end = int(rng.integers(FEWEST, length))
            found.append(replace(state, light_curve=state.light_curve.take(np.arange(end + 1))))
    return found


def counted(
    pipeline: Pipeline, features: Features, states: Sequence[ObjectState], survey: str, fault: Fault | None = None
) -> tuple[list[Counts], list[str]]:
    """Counts and class of each alert by itself."""
    parts: list[Counts] = []
    classes: list[str] = []
    for first in range(0, len(states), 128):
        some = [
            state if fault is None
            else replace(state, light_curve=fault(state.light_curve, survey, len(state.light_curve) - 1))
            for state in states[first : first + 128]
        ]  # fmt: skip
        alerts = [alert_of(state, survey) for state in some]
        received = [Received(alert, IncomingMessage(b"", 60_000.0)) for alert in alerts]
        inputs = assemble(some)
        annotations, predictions = pipeline.annotate_inputs(received, some, inputs)
        strata = strata_of_inputs(inputs)
        for i in range(len(some)):
            row = slice(i, i + 1)
            parts.append(
                count(features, alerts[row], some[row], annotations[row], predictions.embeddings[row], strata[row])
            )
        classes += [annotation.best_class for annotation in annotations]
    return parts, classes


def alert_of(state: ObjectState, survey: str) -> Alert:
    """The alert of an object's newest detection."""
    curve = state.light_curve
    return Alert(
        survey, 1, 1, state.object_id, state.ra, state.dec, float(curve.mjd[-1]), BANDS[curve.band[-1]], curve, "1"
    )


def main(shared: Path) -> None:
    """Print what is found."""
    path = MODEL_REPO / REFERENCE_SET_FILE
    engine, reference = OnnxEngine(MODEL_REPO, threads=1), with_scores(ReferenceSet.load_npz(path), path)
    pipeline = Pipeline(Decoder(), MemoryStore(), engine, engine.manifest, reference)
    features = Features.of(reference)
    print("| survey | fault | alerts in the window | found | by (share of windows) |\n|---|---|---:|---:|---|")
    for survey, archives in SURVEYS.items():
        states = [state for name in archives for state in load_archive(shared / "data", name).states]
        rng = np.random.default_rng(0)
        nights = []
        for _ in range(NIGHTS):
            field = [states[i] for i in rng.choice(len(states), len(states) // 2, replace=False)]
            nights.append(add(counted(pipeline, features, alerts_of(field, survey, NIGHT, rng), survey)[0]))
        windows = alerts_of(states, survey, 4 * max(SIZES), rng)
        stars = np.array([state.object_id for state in windows])
        plain, classes = counted(pipeline, features, windows, survey)
        for name, fault in (("none", None), *FAULTS.items()):
            parts = plain if fault is None else counted(pipeline, features, windows, survey, fault)[0]
            report(survey, name, nights, parts, stars, np.full(len(parts), 1.0), rng)
        for name in sorted(set(classes)):
            share = classes.count(name) / len(classes)
            if 0.05 < share < 0.3:
                weight = np.where(np.array(classes) == name, 2.0 * (1 - share) / (1 - 2 * share), 1.0)
                report(survey, f"share of {name} doubled ({share:.2f})", nights, plain, stars, weight, rng)
    cost(pipeline, features, shared)


def report(
    survey: str, name: str, nights: list[Counts], parts: list[Counts], stars: NDArray[np.str_],
    weight: NDArray[np.float64], rng: np.random.Generator,
) -> None:  # fmt: skip
    """A row of the table for each size of the window."""
    names = np.unique(stars)
    for size in SIZES:
        found: list[list[Drift]] = []
        for _ in range(WINDOWS):
            own = weight * np.isin(stars, rng.choice(names, len(names) // 2, replace=False))
            rows = rng.choice(len(parts), size, p=own / own.sum())
            found.append([d for d in compare(add([parts[i] for i in rows]), nights) if d.detected])
        by = Counter(key for some in found for key in {f"{d.quantity} {d.band.split(':')[-1]}" for d in some})
        what = ", ".join(f"{key} {number / WINDOWS:.2f}" for key, number in by.most_common(5))
        print(f"| {survey} | {name} | {size} | {np.mean([bool(some) for some in found]):.2f} | {what} |", flush=True)


def cost(pipeline: Pipeline, features: Features, shared: Path) -> None:
    """CPU time of counting a batch of 256, against that of assembling and annotating it."""
    states = alerts_of(load_archive(shared / "data", "ztf_dr").states, "ztf", 256, np.random.default_rng(1))
    alerts = [alert_of(state, "ztf") for state in states]
    received = [Received(alert, IncomingMessage(b"", 60_000.0)) for alert in alerts]
    inputs = assemble(states)
    annotations, predictions = pipeline.annotate_inputs(received, states, inputs)
    strata = strata_of_inputs(inputs)
    calls: list[Callable[[], object]] = [
        lambda: count(features, alerts, states, annotations, predictions.embeddings, strata),
        lambda: pipeline.annotate_inputs(received, states, inputs),
        lambda: assemble(states),
    ]
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(11):
        for call, spent in zip(calls, times, strict=True):
            start = time.process_time()
            call()
            spent.append(time.process_time() - start)
    each = [1e6 * float(np.median(spent)) / len(states) for spent in times]
    print(f"\nCPU microseconds an alert: counting {each[0]:.1f}, annotating {each[1]:.0f}, assembling {each[2]:.0f}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "../shared"))
