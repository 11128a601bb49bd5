"""Light curves to model inputs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from broker.assemble.lightcurve import LIGHT_CURVE_FEATURES, MIN_POINTS, POINT_CHANNELS, POINTS, assemble_light_curves
from broker.records import BAND_CODE, LightCurve, PhotometryKind

FEATURE = {name: i for i, name in enumerate(LIGHT_CURVE_FEATURES)}


def variable(
    points: int = 150, period: float = 0.61, seed: int = 0, amplitude: float = 0.4, reference: float = 0.0
) -> LightCurve:
    """A sawtooth of ``amplitude`` magnitudes around 15 mag in ZTF g, as flux less ``reference``."""
    rng = np.random.default_rng(seed)
    mjd = 58000 + np.sort(rng.choice(1000, points, replace=False)) + rng.uniform(-0.1, 0.1, points)
    magnitude = 15 + amplitude * np.mod(mjd / period, 1.0) + rng.normal(0, 0.01, points)
    flux = 3631e9 * 10 ** (-0.4 * magnitude)
    return LightCurve(
        mjd, (flux - reference).astype(np.float32), (0.01 * flux).astype(np.float32),
        np.full(points, reference, np.float32), np.full(points, BAND_CODE["ztf:g"], np.uint8),
        np.zeros(points, np.uint8),
    )  # fmt: skip


def take(curve: LightCurve, index: np.ndarray) -> LightCurve:
    return LightCurve(
        curve.mjd[index], curve.flux[index], curve.flux_error[index],
        curve.reference_flux[index], curve.band[index], curve.kind[index],
    )  # fmt: skip


def join(*curves: LightCurve) -> LightCurve:
    names = ("mjd", "flux", "flux_error", "reference_flux", "band", "kind")
    return LightCurve(*(np.concatenate([getattr(c, n) for c in curves]) for n in names))


def same(first: LightCurve, second: LightCurve, atol: float = 1e-4) -> None:
    a, b = assemble_light_curves([first]), assemble_light_curves([second])
    np.testing.assert_allclose(a.points, b.points, atol=atol)
    np.testing.assert_allclose(a.folded, b.folded, atol=atol)
    np.testing.assert_allclose(a.features, b.features, atol=atol)


def test_period_amplitude_and_span() -> None:
    inputs = assemble_light_curves([variable()])
    assert inputs.period[0] == pytest.approx(0.61, rel=1e-3)
    assert inputs.detections[0] == 150
    features = inputs.features[0]
    # 0.36 mag in g are (475 nm / 547 nm)^0.9 of that in V.
    assert 10 ** features[FEATURE["log10_range_90"]] == pytest.approx(0.36 * (475 / 547) ** 0.9, abs=0.035)
    assert features[FEATURE["tone"]] == pytest.approx(np.log(475 / 547), abs=1e-3)
    assert 10 ** features[FEATURE["log10_span"]] == pytest.approx(1000, rel=0.05)
    assert features[FEATURE["is_total_flux"]] == 1.0


def test_each_row_is_independent_of_its_batch() -> None:
    curves = [variable(seed=s, points=20 + 40 * s, period=0.3 + s) for s in range(6)]
    together = assemble_light_curves([*curves[:3], LightCurve.empty(), *curves[3:]])
    for row, curve in zip([0, 1, 2, 4, 5, 6], curves, strict=True):
        alone = assemble_light_curves([curve])
        np.testing.assert_allclose(together.points[row], alone.points[0], atol=1e-5)
        np.testing.assert_allclose(together.folded[row], alone.folded[0], atol=1e-5)
        np.testing.assert_allclose(together.features[row], alone.features[0], atol=1e-5)
    assert not together.present[3]
    assert not together.points[3].any()


def test_order_of_points_does_not_matter() -> None:
    curve = variable()
    same(curve, take(curve, np.random.default_rng(1).permutation(len(curve))))


def test_difference_flux_with_its_reference_is_total_flux() -> None:
    same(variable(), variable(reference=2e6), atol=5e-3)


def test_without_reference_the_difference_flux_itself_is_used() -> None:
    curve = variable(reference=2e6)
    curve.reference_flux[:] = np.nan
    inputs = assemble_light_curves([curve])
    assert inputs.present[0]
    assert inputs.features[0, FEATURE["is_total_flux"]] == 0.0
    assert inputs.period[0] == pytest.approx(0.61, rel=1e-3)


@pytest.mark.parametrize("later", [1e-7, -1e-7])
def test_limits_are_left_out_and_a_forced_point_yields_to_the_detection(later: float) -> None:
    curve = variable()
    limits = take(curve, np.arange(30))
    limits = LightCurve(
        limits.mjd + 0.3, np.full(30, np.nan, np.float32), limits.flux_error,
        limits.reference_flux, limits.band, np.full(30, PhotometryKind.LIMIT, np.uint8),
    )  # fmt: skip
    forced = take(curve, np.arange(50))
    forced = LightCurve(
        forced.mjd + later, forced.flux * np.float32(3), forced.flux_error,
        forced.reference_flux, forced.band, np.full(50, PhotometryKind.FORCED, np.uint8),
    )  # fmt: skip
    same(curve, join(curve, limits, forced))


def test_a_constant_offset_between_bands_is_no_variability() -> None:
    first, second = variable(seed=1), variable(seed=2)
    second = LightCurve(
        second.mjd, second.flux * np.float32(4), second.flux_error * np.float32(4), second.reference_flux,
        np.full(len(second), BAND_CODE["ztf:r"], np.uint8), second.kind,
    )  # fmt: skip
    inputs = assemble_light_curves([join(first, second)])
    assert 10 ** inputs.features[0, FEATURE["log10_range_90"]] == pytest.approx(0.36, abs=0.04)
    assert inputs.period[0] == pytest.approx(0.61, rel=1e-3)


@pytest.mark.parametrize(("points", "present"), [(0, False), (MIN_POINTS - 1, False), (MIN_POINTS, True)])
def test_least_number_of_points(points: int, present: bool) -> None:
    inputs = assemble_light_curves([take(variable(), np.arange(points))])
    assert bool(inputs.present[0]) is present
    assert inputs.points_mask[0].sum() == (points if present else 0)


def test_long_light_curves_are_thinned_evenly() -> None:
    inputs = assemble_light_curves([variable(points=900)])
    assert inputs.points_mask[0].all()
    time = inputs.points[0, :, 0]
    assert time[0] == 0.0
    assert time[-1] == pytest.approx(1.0)
    assert np.all(np.diff(time) > 0)
    assert inputs.detections[0] == 900 > POINTS


def test_an_empty_batch() -> None:
    assert assemble_light_curves([]).points.shape == (0, POINTS, POINT_CHANNELS)


number = st.floats(width=32, allow_nan=True, allow_infinity=True)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 40).flatmap(lambda n: st.tuples(
    hnp.arrays(np.float64, n, elements=st.floats(5e4, 7e4) | st.just(np.nan) | st.sampled_from([58000.0, 58001.0])),
    hnp.arrays(np.float32, n, elements=number), hnp.arrays(np.float32, n, elements=number),
    hnp.arrays(np.float32, n, elements=number),
    hnp.arrays(np.uint8, n, elements=st.integers(0, len(BAND_CODE) - 1)),
    hnp.arrays(np.uint8, n, elements=st.integers(0, 2)),
)))  # fmt: skip
def test_any_photometry_gives_finite_inputs(columns: tuple[np.ndarray, ...]) -> None:
    inputs = assemble_light_curves([LightCurve(*columns)])
    assert np.isfinite(inputs.points).all()
    assert np.isfinite(inputs.folded).all()
    assert np.isfinite(inputs.features).all()
