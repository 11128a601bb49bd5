"""Catalogue values with the gaps and errors of real catalogues."""

from __future__ import annotations

import numpy as np

from broker.records import METADATA_FEATURES
from training.simulate.catalogues import as_catalogued

COLUMN = {name: index for index, name in enumerate(METADATA_FEATURES)}
WHOLE = {
    "mean_vmag": 12.0, "phot_g_mean_mag": 11.8, "bp_rp": 0.9, "parallax": 2.0, "parallax_error": 0.02,
    "parallax_over_error": 100.0, "pmra": 6.0, "pmra_error": 0.02, "pmdec": -8.0, "pmdec_error": 0.02, "pm": 10.0,
    "j_k": 0.5, "w1_w2": 0.0, "ruwe": 1.0,
}  # fmt: skip


def catalogued(stars: int = 4000) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    values = np.full((stars, len(METADATA_FEATURES)), np.nan)
    for name, value in WHOLE.items():
        values[:, COLUMN[name]] = value
    before = values.copy()
    result = as_catalogued(values, np.random.default_rng(0))
    np.testing.assert_array_equal(values, before)  # the caller's array is its own
    return result


def test_few_values_are_as_frequent_as_many() -> None:
    known = np.isfinite(catalogued())
    assert not known[:, [i for n, i in COLUMN.items() if n not in WHOLE]].any()
    counts = known.sum(axis=1)
    assert 0.1 < np.mean(counts >= 12) < 0.4
    assert 0.2 < np.mean((counts >= 3) & (counts <= 6)) < 0.6
    # Exactly V, G and a colour, as ASAS's stars have, or a proper motion.
    for own in (("bp_rp",), ("pmra", "pmdec", "pm")):
        columns = [COLUMN[n] for n in ("mean_vmag", "phot_g_mean_mag", *own)]
        assert np.mean(known[:, columns].all(axis=1) & (counts == len(columns))) > 0.09


def test_what_belongs_together_is_there_together() -> None:
    known = np.isfinite(catalogued())
    for names in (("pmra", "pmdec", "pm"), ("pmra_error", "pmdec_error"), ("parallax", "parallax_error")):
        columns = known[:, [COLUMN[name] for name in names]]
        assert (columns.all(axis=1) | ~columns.any(axis=1)).all()


def test_half_of_the_stars_are_farther_and_known_less_well() -> None:
    values = catalogued()
    g, error = values[:, COLUMN["phot_g_mean_mag"]], values[:, COLUMN["parallax_error"]]
    assert np.nanmax(g) < 11.8 + 7.0
    assert 0.4 < np.mean(g[np.isfinite(g)] > 11.8) < 0.6
    both = np.isfinite(g) & np.isfinite(error)
    worse = error[both] / (0.02 * np.maximum(1.0, 10 ** (0.2 * (g[both] - 14.0))))
    # Gaia's errors, or those of a catalogue of parallaxes alone, up to a hundred times as large.
    assert np.mean(np.isclose(worse, 1.0)) > 0.5
    assert worse.min() > 0.999
    assert 50 < worse.max() < 100
    motion = values[:, COLUMN["pm"]]
    both = np.isfinite(g) & np.isfinite(motion)
    np.testing.assert_allclose(motion[both], 10.0 * 10 ** (-0.2 * (g[both] - 11.8)), rtol=1e-6)
    parallax = values[:, COLUMN["parallax"]]
    both = np.isfinite(g) & np.isfinite(parallax) & np.isfinite(error)
    deviation = (parallax[both] - 2.0 * 10 ** (-0.2 * (g[both] - 11.8))) / error[both]
    noisy = (g[both] > 14.0) | (worse > 1.001)
    assert np.std(deviation[noisy]) > 0.8
    np.testing.assert_allclose(deviation[~noisy], 0, atol=1e-6)
    assert np.isnan(values[g > 11.8, COLUMN["parallax_over_error"]]).all()
