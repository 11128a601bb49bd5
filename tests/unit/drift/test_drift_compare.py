"""Distances and their significance, against scipy and against counts drawn at random."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from broker.drift import compare as module
from broker.drift.compare import Drift, compare
from broker.drift.counts import CLASSES, EDGES, FEATURES, SCALE, SIZE, SLICES, Counts

GROUP = ("ztf", "ztf:g")
SHARES = np.array([0.2, 0.05, 0.1, 0.15, 0.02, 0.08, 0.05, 0.03, 0.02, 0.05, 0.2, 0.05])
UPPER = np.triu_indices(FEATURES)


def drawn(
    rng: np.random.Generator, alerts: int, shares: NDArray[np.float64] = SHARES, shift: float = 0.0, wide: float = 1.0,
    score: float = 0.0,
) -> NDArray[np.int64]:  # fmt: skip
    """Counts of independent alerts: features of a normal distribution, scores uniform."""
    vector = np.zeros(SIZE, np.int64)
    vector[0] = alerts
    vector[SLICES["classes"]] = rng.multinomial(alerts, shares)
    for name, edges in EDGES.items():
        values = rng.uniform(0, 1, alerts) + score if name in ("anomaly", "probability") else rng.normal(0, 0.3, alerts)
        vector[SLICES[name]] = np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1)
    steps = np.rint((wide * rng.normal(0, 1, (alerts, FEATURES)) + shift) * SCALE).astype(np.int64)
    vector[SLICES["embedding"]] = [alerts, *steps.sum(axis=0), *(steps.T @ steps)[UPPER]]
    return vector


def blocks(rng: np.random.Generator, alerts: int = 2000) -> list[Counts]:
    return [{GROUP: drawn(rng, alerts)} for _ in range(7)]


def found(window: NDArray[np.int64], past: list[Counts]) -> dict[str, Drift]:
    return {drift.quantity: drift for drift in compare({GROUP: window}, past)}


def test_tails_are_those_of_chi_squared() -> None:
    for freedom in (1, 2, 11, FEATURES):
        for z in (1.0, 3.0, 5.0):
            chi = float(stats.chi2.isf(stats.norm.sf(z), freedom))
            assert module._normal(chi, freedom) == pytest.approx(z, abs=0.35), (freedom, z)


def test_distances_and_statistics_are_those_of_scipy() -> None:
    rng = np.random.default_rng(0)
    other = np.roll(SHARES, 1)
    a, b = drawn(rng, 400, other, score=0.1), drawn(rng, 3000)
    classes = module._statistic(a, b, "classes")
    table = np.stack([a[SLICES["classes"]], b[SLICES["classes"]]])
    assert (table * 400 / 3400).min() > 0
    expected = stats.chi2_contingency(table)
    common = table.sum(axis=0) * 400 / 3400 >= 5
    assert (classes.chi, classes.freedom) == (
        pytest.approx(expected.statistic) if common.all() else classes.chi,
        int(common.sum()) - (1 if common.all() else 0),
    )
    assert classes.single is not None
    for index in np.flatnonzero(common):
        of_one = np.stack([[row[index], row.sum() - row[index]] for row in table])
        assert classes.single[index] == pytest.approx(stats.chi2_contingency(of_one, correction=False).statistic)
    scores = module._statistic(a, b, "anomaly")
    samples = [np.repeat(np.arange(20), vector[SLICES["anomaly"]]) for vector in (a, b)]
    assert scores.distance == pytest.approx(stats.ks_2samp(*samples).statistic)
    tail = 2 * stats.chi2.sf(scores.chi, 2)
    assert tail == pytest.approx(stats.kstwobign.sf(scores.distance * np.sqrt(scores.size)), rel=1e-3)


def test_hotelling_by_two_samples() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(0, 1, (150, FEATURES)), rng.normal(0.2, 2.0, (400, FEATURES))
    vectors = []
    for sample in (x, y):
        steps = np.rint(sample * SCALE).astype(np.int64)
        vectors.append(np.array([len(steps), *steps.sum(axis=0), *(steps.T @ steps)[UPPER]]))
    pooled = (149 * np.cov(x.T) + 399 * np.cov(y.T)) / 548
    difference = x.mean(axis=0) - y.mean(axis=0)
    expected = 150 * 400 / 550 * difference @ np.linalg.inv(pooled) @ difference
    assert module._hotelling(*vectors).chi == pytest.approx(expected, rel=2e-3)


def test_a_stability_index_by_hand() -> None:
    a, b = np.array([200, 800]), np.array([1000, 9000])
    p, q = np.array([200.5, 800.5]) / 1001, np.array([1000.5, 9000.5]) / 10001
    assert module._homogeneity(a, b).distance == pytest.approx(
        (p[0] - q[0]) * np.log(p[0] / q[0]) + (p[1] - q[1]) * np.log(p[1] / q[1])
    )


@pytest.mark.parametrize("alerts", [100, 400, 3000])
def test_undisturbed_windows_of_any_size_are_no_drift(alerts: int) -> None:
    rng = np.random.default_rng(2)
    past = blocks(rng)
    all_found = [drift for _ in range(60) for drift in compare({GROUP: drawn(rng, alerts)}, past)]
    assert {drift.quantity for drift in all_found} == set(SLICES)
    assert [drift for drift in all_found if drift.detected] == []
    # The chance of 3e-7 is not to be seen; three standard deviations are, and are as rare as they should be.
    assert np.mean([drift.significance > 3.5 for drift in all_found]) < 0.005


@pytest.mark.parametrize(
    ("quantity", "fault"),
    [
        ("embedding", {"shift": 0.3}),
        ("anomaly", {"score": 0.15}),
        ("classes", {"shares": np.where(np.arange(12) == 2, 0.2, SHARES * 0.8 / 0.9)}),
    ],
)
def test_what_is_planted_is_found_and_what_is_not_is_not(quantity: str, fault: dict[str, object]) -> None:
    rng = np.random.default_rng(3)
    drifts = found(drawn(rng, 1000, **fault), blocks(rng))  # type: ignore[arg-type]
    detected = {name for name, drift in drifts.items() if drift.detected}
    assert quantity in detected
    assert detected <= {quantity} | ({"probability"} if quantity == "anomaly" else set())
    if quantity == "classes":
        assert drifts["classes"].remark.startswith(f"{CLASSES[2]} 0.1")


def test_nights_that_differ_by_themselves_are_allowed_to() -> None:
    rng = np.random.default_rng(4)

    def night() -> NDArray[np.int64]:
        return drawn(rng, 2000, rng.dirichlet(SHARES * 100), shift=float(rng.normal(0, 0.1)))

    past = [{GROUP: night()} for _ in range(7)]
    windows = [found(night(), past) for _ in range(40)]
    assert np.mean([any(drift.detected for drift in drifts.values()) for drifts in windows]) <= 0.05
    # Independent alerts would be said to drift every night.
    steady = [{GROUP: drawn(rng, 2000)} for _ in range(7)]
    assert np.mean([found(night(), steady)["classes"].significance > 5 for _ in range(20)]) > 0.5
    assert windows[0]["classes"].overdispersion > 2


def test_little_is_said_of_little() -> None:
    rng = np.random.default_rng(5)
    past = blocks(rng)
    assert compare({GROUP: drawn(rng, 99)}, past) == []
    assert compare({GROUP: drawn(rng, 1000)}, past[:2]) == []
    assert compare({("lsst", "lsst:g"): drawn(rng, 1000)}, past) == []
    assert compare({}, past) == []


def test_a_band_under_another_name_is_seen_in_the_shares_of_bands() -> None:
    rng = np.random.default_rng(6)
    past = [{GROUP: drawn(rng, 1000), ("ztf", "ztf:r"): drawn(rng, 1500)} for _ in range(5)]
    usual = compare({GROUP: drawn(rng, 400), ("ztf", "ztf:r"): drawn(rng, 600)}, past)
    (bands,) = [drift for drift in usual if drift.quantity == "bands"]
    assert (bands.band, bands.detected, bands.alerts) == ("all", False, 1000)
    assert {drift.quantity for drift in usual if drift.band == "all"} == {
        "bands", "classes", "anomaly", "probability", "embedding",
    }  # fmt: skip
    changed = compare({("ztf", "ztf:r"): drawn(rng, 1000)}, past)
    (bands,) = [drift for drift in changed if drift.quantity == "bands"]
    assert bands.detected
    assert bands.remark in ("ztf:g 0.400 -> 0.000", "ztf:r 0.600 -> 1.000")
