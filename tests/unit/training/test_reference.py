"""What the reference set is made of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from broker.anomaly.reference_set import MIN_EMBEDDINGS
from broker.anomaly.strata import DETECTION_BINS
from broker.assemble.spectrum import BAD_PIXEL_ERROR, MIN_COVERAGE
from broker.errors import ConfigurationError
from tests.random_models import build_random_repository
from training.reference import write_reference_set
from training.reference_stars import AS_FREQUENT_FROM, LEAST_SHARE, QUOTAS, ReferenceStars, quotas
from training.simulate.real_spectra import RealSpectra


@pytest.fixture(scope="module")
def stars(shared: Path) -> ReferenceStars:
    return ReferenceStars(shared / "data", seed=0)


def test_every_subset_of_the_modalities_has_reference_stars() -> None:
    assert len(QUOTAS) == 7
    assert min(QUOTAS.values()) >= 5 * MIN_EMBEDDINGS


def test_frequent_classes_are_frequent_and_rare_ones_are_not_missing() -> None:
    shares = np.array([0.5, 0.3, 0.18, 0.02, 0.0, 0.0])
    found = quotas(shares, 600, AS_FREQUENT_FROM)
    assert found[3:].tolist() == [30, 0, 0]
    assert found.sum() == pytest.approx(600, abs=2)
    # Beyond the least they keep their order, and are near to the shares.
    np.testing.assert_allclose(found[:3] / 600, shares[:3], rtol=0.05)
    assert quotas(np.full(10, 0.1), 250, AS_FREQUENT_FROM).tolist() == [25] * 10
    # Of short light curves there are as many of each class.
    assert quotas(shares, 600, AS_FREQUENT_FROM - 1).tolist() == [150, 150, 150, 150, 0, 0]


def test_no_star_is_both_in_the_set_and_in_its_calibration(stars: ReferenceStars) -> None:
    rng = np.random.default_rng(0)
    reference, calibration = stars.reference(50, rng), stars.calibration(50, rng)
    names = stars.table.star_id
    assert not set(names[reference]) & set(names[calibration])
    assert len(calibration) == 1500
    counts = np.bincount(stars.labels.index[reference], minlength=10)
    assert counts.tolist() == stars.quotas(max(QUOTAS.values()), 50).tolist()
    assert counts.min() == LEAST_SHARE * max(QUOTAS.values())
    assert counts.max() > 4 * counts.min()


@pytest.mark.parametrize("number", range(len(DETECTION_BINS)))
def test_histories_are_of_the_bins_length(stars: ReferenceStars, number: int) -> None:
    rng = np.random.default_rng(1)
    low = DETECTION_BINS[number]
    rows = stars.reference(low, rng)[:200]
    curves = [stars.history(int(row), number, rng) for row in rows]
    sizes = np.array([len(curve) for curve in curves])
    assert sizes.min() >= low
    if number + 1 < len(DETECTION_BINS):
        assert sizes.max() < DETECTION_BINS[number + 1]
    assert len(np.unique(sizes)) > 4
    difference = np.mean([np.isnan(curve.reference_flux).all() for curve in curves])
    assert difference == pytest.approx(0.2, abs=0.1)


def test_real_spectra_are_of_about_the_type_and_partly_cut() -> None:
    rng = np.random.default_rng(2)
    flux, error = rng.uniform(1, 2, (300, 2575)), np.full((300, 2575), 0.1)
    real = RealSpectra(flux, error, np.linspace(20, 60, 300))
    chosen = real.like(np.full(500, 40.0), rng)
    assert np.abs(real.code[chosen] - 40.0).max() < 3
    spectra = real.inputs(chosen, rng)
    covered = (spectra[:, 1] < BAD_PIXEL_ERROR).mean(axis=1)
    assert np.mean(covered < 0.999) == pytest.approx(0.3, abs=0.08)
    assert covered.min() > MIN_COVERAGE


def test_a_model_whose_split_is_not_known_gets_no_set(tmp_path: Path) -> None:
    """Without it there is no telling which stars the model has seen."""
    repository = build_random_repository(tmp_path)
    with pytest.raises(ConfigurationError, match=r"does not say with which seed the model was trained"):
        write_reference_set(repository, tmp_path, lambda _: None)
