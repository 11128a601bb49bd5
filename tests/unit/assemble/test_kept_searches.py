"""Which alerts have a full period search, and that a refinement finds what it would have found."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
from numpy.typing import NDArray

import broker.assemble
from broker.assemble import assemble, assemble_with_searches, kept
from broker.assemble.inputs import MODALITIES
from broker.assemble.kept import Reason
from broker.assemble.lightcurve import LIGHT_CURVE_FEATURES
from broker.assemble.period import SEARCH_VERSION, refine_period
from broker.records import BAND_CODE, KeptSearch, LightCurve, ObjectState, PhotometryKind, TimeSystem

FREQUENCY = 1.7342
"""Cycles/day of the star that all light curves here are of."""
GROWTH = 0.2


def times(points: int, seed: int = 1) -> NDArray[np.float64]:
    """One point every second night or so, by day, too, so that there are no aliases."""
    rng = np.random.default_rng(seed)
    return 58_000 + 2.0 * np.arange(points) + rng.uniform(-0.3, 0.3, points)


def curve(mjd: NDArray[np.float64], frequency: float = FREQUENCY, noise: float = 0.02) -> LightCurve:
    """A sine of 0.3 times the mean flux of 1000 nJy; each point the same whatever others there are."""
    error = np.array([np.random.default_rng(int(1e4 * t)).normal(0, noise) for t in mjd])
    flux = 1000 * (1 + 0.3 * np.sin(2 * np.pi * frequency * mjd) + error)
    ones, none = np.ones(len(mjd), np.float32), np.zeros(len(mjd), np.uint8)
    return LightCurve(mjd, flux.astype(np.float32), 10 * ones, 0 * ones, none + np.uint8(BAND_CODE["ztf:g"]), none)


def state(light_curve: LightCurve, before: KeptSearch | None = None) -> ObjectState:
    return ObjectState("ZTF18a", 150.0, 20.0, light_curve, kept_search=before)


def searched(light_curve: LightCurve, before: KeptSearch | None = None) -> tuple[Reason | None, KeptSearch, float]:
    """Reason of the search, what is kept after it, and the period."""
    inputs, searches = assemble_with_searches([state(light_curve, before)], GROWTH)
    after = searches.kept[0] or before
    assert after is not None
    return searches.reason[0], after, float(inputs.light_curve.period[0])


@pytest.fixture(scope="module")
def first() -> KeptSearch:
    """Of the first hundred points."""
    reason, search, period = searched(curve(times(200)[:100]))
    assert reason is Reason.FIRST
    assert period == pytest.approx(1 / FREQUENCY, rel=1e-4)
    return search


def test_what_is_kept_of_a_search(first: KeptSearch) -> None:
    mjd = times(200)[:100]
    assert (first.search, first.points, first.first, first.last) == (SEARCH_VERSION, 100, mjd[0], mjd[-1])
    assert len(first.checksums) == 8
    assert len(set(first.checksums)) == 8
    (frequency, r_squared), *others = first.candidates
    assert frequency == pytest.approx(FREQUENCY, abs=2e-4)
    assert r_squared > 0.98
    assert 0 < len(others) <= 15
    assert all(0 <= r2 < r_squared for _, r2 in others)


@pytest.mark.parametrize(("points", "reason"), [(100, "refined"), (101, "refined"), (120, "refined"), (121, "grown")])
def test_a_search_is_repeated_once_a_fifth_was_added(first: KeptSearch, points: int, reason: str) -> None:
    """Within ten days, so that the time they span does not grow by as much."""
    mjd = times(100)
    more = np.append(mjd, mjd[-1] + np.linspace(0, 10, points - 99)[1:])
    found, after, period = searched(curve(more), first)
    assert found == reason
    assert (after is first) == (reason == "refined")
    assert after.points == (100 if reason == "refined" else 121)
    assert period == pytest.approx(1 / FREQUENCY, rel=1e-4)


@pytest.mark.parametrize(("days", "reason"), [(39.0, "refined"), (41.0, "grown")])
def test_a_search_is_repeated_where_the_time_spanned_has_grown(first: KeptSearch, days: float, reason: str) -> None:
    """From 198 d by 20 %: 39.6 d."""
    mjd = times(100)
    assert np.ptp(mjd) == pytest.approx(198, abs=0.2)
    found, _, period = searched(curve(np.append(mjd, mjd[-1] + days)), first)
    assert found == reason
    assert period == pytest.approx(1 / FREQUENCY, rel=1e-4)


def test_a_refinement_finds_what_a_search_finds(first: KeptSearch) -> None:
    """All of it but the second period, which may be another one of noise."""
    light_curve = curve(times(119))
    reason, _, period = searched(light_curve, first)
    assert reason is Reason.REFINED
    full = assemble([state(light_curve)]).light_curve
    assert period == full.period[0]
    refined = assemble_with_searches([state(light_curve, first)], GROWTH)[0].light_curve
    second = [LIGHT_CURVE_FEATURES.index(name) for name in ("log10_second_period", "r2_second_period")]
    np.testing.assert_array_equal(*(np.delete(x.features, second, axis=1) for x in (refined, full)))
    np.testing.assert_array_equal(refined.folded, full.folded)


@pytest.mark.parametrize(("points", "noise"), [(100, 0.02), (50, 0.02), (51, 0.2), (70, 0.2), (70, 1e-4)])
def test_redelivery_gives_the_same_again(points: int, noise: float) -> None:
    light_curve = curve(times(points), noise=noise)
    inputs, searches = assemble_with_searches([state(light_curve)], GROWTH)
    assert searches.kept[0] is not None
    again, repeated = assemble_with_searches([state(light_curve, searches.kept[0])], GROWTH)
    assert (repeated.reason, repeated.kept) == ([Reason.REFINED], [None])
    for name in ("features", "folded", "points", "period"):
        np.testing.assert_array_equal(getattr(again.light_curve, name), getattr(inputs.light_curve, name))


def test_there_may_be_no_second_period(first: KeptSearch) -> None:
    """Where all candidates were simple ratios of the best."""
    alone = replace(first, candidates=(first.candidates[0], (float("nan"), 0.0)))
    names = [LIGHT_CURVE_FEATURES.index(name) for name in ("log10_second_period", "r2_second_period")]
    for points in (100, 101):
        inputs, searches = assemble_with_searches([state(curve(times(points)), alone)], GROWTH)
        assert searches.reason == [Reason.REFINED]
        assert inputs.light_curve.period[0] == pytest.approx(1 / FREQUENCY, rel=1e-4)
        assert inputs.light_curve.features[0, names].tolist() == [0, 0]


def test_few_points_are_searched_each_time() -> None:
    """Up to 49 nothing is kept."""
    before: KeptSearch | None = None
    for points, reason in ((10, "few"), (49, "few"), (50, "first"), (51, "refined"), (49, "few")):
        inputs, searches = assemble_with_searches([state(curve(times(points)), before)], GROWTH)
        assert searches.reason == [reason]
        assert (searches.kept[0] is not None) == (reason == "first")
        before = searches.kept[0] or before
        np.testing.assert_equal(inputs.light_curve.period, assemble([state(curve(times(points)))]).light_curve.period)


def test_another_signal_in_the_new_points_makes_the_fit_worse(first: KeptSearch) -> None:
    mjd = times(118)
    before, later = curve(mjd), curve(mjd, frequency=2.9)
    flux = np.where(np.arange(118) < 100, before.flux, later.flux).astype(np.float32)
    reason, after, _ = searched(replace(before, flux=flux), first)
    assert reason is Reason.WORSE
    assert after.points == 118
    # What is kept now is what this light curve allows: another point is no reason to search again.
    mjd = np.append(mjd, mjd[-1] + 0.7)
    assert searched(replace(curve(mjd), flux=np.append(flux, curve(mjd).flux[-1:])), after)[0] is Reason.REFINED


def one(light_curve: LightCurve, at: int, **columns: float) -> LightCurve:
    """With other values of one point."""
    changed = {}
    for name, value in columns.items():
        column = np.array(getattr(light_curve, name))
        column[at] = value
        changed[name] = column
    return replace(light_curve, **changed)


@pytest.mark.parametrize("at", [0, 42, 99])
@pytest.mark.parametrize("column", ["flux", "flux_error", "reference_flux"])
def test_a_point_that_was_replaced_drops_what_was_kept(first: KeptSearch, at: int, column: str) -> None:
    light_curve = curve(times(103))
    assert searched(light_curve, first)[0] is Reason.REFINED
    value = float(getattr(light_curve, column)[at])
    reason, after, _ = searched(one(light_curve, at, **{column: value + 0.25}), first)
    assert reason is Reason.CHANGED
    assert after.points == 103


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.take(np.delete(np.arange(103), 42)),  # a point that was repaired away
        lambda c: one(c, 42, band=BAND_CODE["ztf:r"]),
        lambda c: one(c, 42, mjd=float(c.mjd[42]) + 1e-5),  # merged with a better time
        lambda c: one(c, 42, kind=PhotometryKind.LIMIT),  # no measurement any more
    ],
)  # fmt: skip
def test_points_that_are_gone_or_of_another_kind_drop_it(first: KeptSearch, change: object) -> None:
    assert callable(change)
    assert searched(change(curve(times(103))), first)[0] is Reason.CHANGED


def test_a_point_that_comes_late_drops_it(first: KeptSearch) -> None:
    """Within the time that was searched, it is told from one that was replaced no more; before it, it is one more."""
    mjd = times(100)
    assert searched(curve(np.sort(np.append(mjd, mjd[50] + 0.3))), first)[0] is Reason.CHANGED
    assert searched(curve(np.append(mjd[0] - 5.0, mjd)), first)[0] is Reason.REFINED


def test_the_oldest_points_may_go(first: KeptSearch) -> None:
    """As of an object with ``max_points``: the points gone and those new are 20 of 100 together, then 22."""
    mjd = times(120)
    mjd[100:] = mjd[99] + np.linspace(0, 10, 21)[1:]
    assert searched(curve(mjd[10:110]), first)[0] is Reason.REFINED
    assert searched(curve(mjd[11:111]), first)[0] is Reason.GROWN


def test_other_times_or_brightness_drop_it(first: KeptSearch) -> None:
    light_curve = curve(times(100))
    for other in (
        replace(state(light_curve, first), time_system=TimeSystem.BARYCENTRIC),
        replace(state(light_curve, first), ra=float("nan")),  # not corrected to the barycentre any more
    ):
        assert assemble_with_searches([other], GROWTH)[1].reason == [Reason.CHANGED]
    # A position that moves by less than its error is no change, though all corrected times differ.
    moved = replace(state(light_curve, first), ra=150.00003)
    assert assemble_with_searches([moved], GROWTH)[1].reason == [Reason.REFINED]
    # More than half of the points lose their reference: brightness is difference flux then.
    none = np.where(np.arange(160) < 100, 0.0, np.nan).astype(np.float32)
    half = replace(curve(times(160)), reference_flux=none)
    assert assemble_with_searches([state(half)], GROWTH)[1].kept[0].basis == first.basis  # type: ignore[union-attr]
    basis = assemble_with_searches([state(replace(light_curve, reference_flux=none[-100:]))], GROWTH)[1].kept[0]
    assert basis is not None
    assert basis.basis != first.basis


def test_another_search_drops_it(first: KeptSearch) -> None:
    other = replace(first, search=SEARCH_VERSION ^ 1)
    reason, after, _ = searched(curve(times(100)), other)
    assert reason is Reason.OTHER_SEARCH
    assert after.search == SEARCH_VERSION


@pytest.mark.parametrize(
    "nonsense",
    [
        {"candidates": ()}, {"candidates": ((1.0, 0.5),)}, {"candidates": ((float("nan"), 0.5), (1.0, 0.4))},
        {"candidates": ((-1.0, 0.5), (1.0, 0.4))}, {"points": 0},
        {"last": 0.0}, {"first": float("nan")}, {"checksums": (1, 2)},
        {"first": -np.inf}, {"last": np.inf}, {"first": -1e308, "last": 1e308},
        {"candidates": ((1e307, 0.5), (1.0, 0.4))}, {"candidates": ((1e-310, 0.5), (1.0, 0.4))},
    ],
)  # fmt: skip
def test_what_makes_no_sense_counts_as_nothing(first: KeptSearch, nonsense: dict[str, object]) -> None:
    reason, after, period = searched(curve(times(100)), replace(first, **nonsense))  # type: ignore[arg-type]
    assert reason is Reason.FIRST
    assert after == first
    assert period == pytest.approx(1 / FREQUENCY, rel=1e-4)


def test_each_object_of_a_batch_has_its_own(first: KeptSearch) -> None:
    """One refined, one grown, one without points, one with too few, one of other points altogether."""
    states = [
        state(curve(times(101)), first),
        state(curve(times(125)), first),
        state(LightCurve.empty(), first),
        state(curve(times(9))),
        state(curve(times(100) + 3000.0), first),
    ]
    inputs, searches = assemble_with_searches(states, GROWTH)
    assert searches.reason == [Reason.REFINED, Reason.GROWN, None, None, Reason.GROWN]
    assert [search is not None for search in searches.kept] == [False, True, False, False, True]
    for row, of in enumerate(states):
        alone, single = assemble_with_searches([of], GROWTH)
        assert single.kept == [searches.kept[row]]
        np.testing.assert_array_equal(alone.light_curve.features[0], inputs.light_curve.features[row])
    assert assemble_with_searches([], GROWTH)[1].reason == []


def test_full_searches_are_as_rare_as_promised() -> None:
    """Of 400 alerts one by one: log(400 / 50) / log(1.2) = 11.4 for points and time that grow alike, and worse fits."""
    mjd = times(400)
    whole = curve(mjd, noise=0.1)
    before: KeptSearch | None = None
    reasons: list[Reason | None] = []
    for points in range(10, 401):
        _, searches = assemble_with_searches([state(whole.take(np.arange(points)), before)], GROWTH)
        before = searches.kept[0] or before
        reasons += searches.reason
    assert reasons[:40] == [Reason.FEW] * 40
    assert reasons[40] is Reason.FIRST
    assert 6 < reasons.count(Reason.GROWN) <= 12
    assert reasons.count(Reason.WORSE) <= 5
    assert set(reasons[41:]) <= {Reason.GROWN, Reason.WORSE, Reason.REFINED}


def test_without_growth_each_new_point_is_a_search(first: KeptSearch) -> None:
    (reason,) = assemble_with_searches([state(curve(times(101)), first)], 0.0)[1].reason
    assert reason is Reason.GROWN


def test_a_refinement_looks_as_far_as_the_shorter_light_curve_could_tell() -> None:
    """A quarter of 1 / T of the time T before, whatever the length now: beyond that the nearest is taken."""
    mjd = np.sort(np.random.default_rng(3).uniform(0, 400, 300))
    value, weight = np.sin(2 * np.pi * FREQUENCY * mjd), np.full(300, 1 / 300)
    for aside, right in ((0.9, True), (1.2, False)):
        start = FREQUENCY + aside * 0.25 / 200
        found = refine_period(mjd, value, weight, None, [start], 200.0)
        assert (abs(found.frequency - FREQUENCY) < 1e-5) == right


@pytest.mark.parametrize(("aside", "reason"), [(0.26, "refined"), (0.35, "worse")])
def test_a_refinement_reaches_by_the_time_spanned_when_it_was_searched(
    first: KeptSearch, aside: float, reason: str
) -> None:
    """A quarter of 1 / 198 d, and one fine step; by the 237 d that the points span now it would be a fifth less."""
    mjd = np.append(times(100), times(100)[-1] + 39.0)
    off = ((FREQUENCY + aside / (first.last - first.first), first.candidates[0][1]), (float("nan"), 0.0))
    found, _, period = searched(curve(mjd), replace(first, candidates=off))
    assert found == reason
    assert period == pytest.approx(1 / FREQUENCY, rel=1e-4)


def test_stamps_tell_points_apart_and_not_their_order() -> None:
    light_curve = curve(times(50))
    stamps = kept._stamps([light_curve])
    assert len(set(stamps.tolist())) == 50
    order = np.random.default_rng(0).permutation(50)
    assert kept._stamps([light_curve.take(order)]).tolist() == stamps[order].tolist()
    assert kept._stamps([light_curve, light_curve]).tolist() == [*stamps, *stamps]
    swapped = replace(light_curve, flux=light_curve.flux_error, flux_error=light_curve.flux)
    assert not set(kept._stamps([swapped]).tolist()) & set(stamps.tolist())
    assert kept._stamps([]).tolist() == []


@pytest.mark.parametrize("piece", [1, 150, 400])
def test_a_batch_in_pieces_gives_what_it_gives_at_once(monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    states = [state(curve(times(points, seed))) for seed, points in enumerate((60, 0, 3, 140, 0, 80, 200, 0))]
    whole, searches = assemble_with_searches(states, GROWTH)
    monkeypatch.setattr(broker.assemble, "_PIECE", piece)
    inputs, found = assemble_with_searches(states, GROWTH)
    for modality in MODALITIES:
        for field in fields(getattr(whole, modality)):
            expected = getattr(getattr(whole, modality), field.name)
            np.testing.assert_array_equal(getattr(getattr(inputs, modality), field.name), expected)
    assert (found.reason, found.kept) == (searches.reason, searches.kept)
    assert [reason is None for reason in found.reason] == [False, True, True, False, True, False, False, True]
    assert len(assemble_with_searches([], GROWTH)[0]) == 0
