"""Catalogue values to model inputs."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest

from broker.assemble.history import HISTORY_FEATURES
from broker.assemble.metadata import (
    MODEL_FEATURES,
    Scaler,
    absolute_values,
    assemble_metadata,
    default_scaler,
    galactic,
)
from broker.errors import ConfigurationError
from broker.records import MAGNITUDES, METADATA_FEATURES, SOURCE_FEATURES, SourceMetadata

COLUMN = {name: i for i, name in enumerate(MODEL_FEATURES)}
UNIT = Scaler(np.zeros(len(MODEL_FEATURES)), np.ones(len(MODEL_FEATURES)))


def no_history(objects: int) -> np.ndarray:
    return np.full((objects, len(HISTORY_FEATURES)), np.nan)


def source(**known: float) -> SourceMetadata:
    values = np.full(len(SOURCE_FEATURES), np.nan, np.float32)
    for name, value in known.items():
        values[COLUMN[name]] = value
    return SourceMetadata(values)


def test_galactic_coordinates_agree_with_astropy() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of astropy's bundled earth-rotation tables, not used here
        from astropy.coordinates import SkyCoord
    rng = np.random.default_rng(0)
    ra, dec = rng.uniform(0, 360, 50), np.degrees(np.arcsin(rng.uniform(-1, 1, 50)))
    expected = SkyCoord(ra, dec, unit="deg").galactic
    cos_l, sin_b = galactic(ra, dec)
    np.testing.assert_allclose(cos_l, np.cos(expected.l.rad), atol=1e-5)
    np.testing.assert_allclose(sin_b, np.sin(expected.b.rad), atol=1e-5)


def test_magnitudes_are_absolute_where_the_parallax_is_sure() -> None:
    rows = [
        source(phot_g_mean_mag=10, parallax=10, parallax_error=0.1),  # 100 pc: distance modulus 5
        source(phot_g_mean_mag=10, parallax=0.2, parallax_error=0.1),
        source(phot_g_mean_mag=10),
        source(phot_g_mean_mag=10, parallax=-1, parallax_error=0.1),
    ]
    values = absolute_values(np.stack([r.values for r in rows]).astype(np.float64))
    magnitude = values[:, COLUMN["phot_g_mean_mag"]]
    assert magnitude[0] == pytest.approx(5.0)
    assert np.isnan(magnitude[1:]).all()
    assert values[0, COLUMN["parallax_over_error"]] == pytest.approx(100.0)


def test_derived_columns_are_filled_in_but_not_overwritten() -> None:
    values = absolute_values(np.stack([source(j_mag=9, k_mag=8.3, pmra=3, pmdec=4, pm=7).values]).astype(np.float64))
    assert values[0, COLUMN["j_k"]] == pytest.approx(0.7)
    assert values[0, COLUMN["pm"]] == pytest.approx(7)


@pytest.mark.parametrize(
    ("known", "name", "value"),
    [
        ({"phot_bp_mean_mag": 12.5, "phot_rp_mean_mag": 11.25}, "bp_rp", 1.25),
        ({"j_mag": 9.5, "k_mag": 8.75}, "j_k", 0.75),
        ({"w1_mag": 8.5, "w2_mag": 8.25}, "w1_w2", 0.25),
        ({"w3_mag": 7.5, "w4_mag": 6.0}, "w3_w4", 1.5),
        ({"parallax": 6.0, "parallax_error": 0.5}, "parallax_over_error", 12.0),
        ({"pmra": -5.0, "pmdec": 12.0}, "pm", 13.0),
    ],
)
def test_what_follows_from_two_columns(known: dict[str, float], name: str, value: float) -> None:
    """A colour is the bluer band's magnitude less the redder one's."""
    values = absolute_values(np.stack([source(**known).values]).astype(np.float64))[0]
    assert values[COLUMN[name]] == value
    derived = ("bp_rp", "j_k", "w1_w2", "w3_w4", "parallax_over_error", "pm")
    assert [n for n in derived if not np.isnan(values[COLUMN[n]])] == [name]


def test_every_magnitude_becomes_absolute() -> None:
    """At 50 pc (20 mas) by 5 log10(50 / 10) = 3.495; errors and colours of magnitudes do not change."""
    known = dict.fromkeys(MAGNITUDES, 10.0) | {"parallax": 20.0, "parallax_error": 1.0, "e_j_mag": 0.5, "j_k": 0.25}
    values = absolute_values(np.stack([source(**known).values]).astype(np.float64))[0]
    assert [values[COLUMN[name]] for name in MAGNITUDES] == pytest.approx([10 - 3.4949] * len(MAGNITUDES), abs=1e-4)
    assert (values[COLUMN["e_j_mag"]], values[COLUMN["j_k"]], values[COLUMN["parallax"]]) == (0.5, 0.25, 20.0)


@pytest.mark.parametrize(("error", "absolute"), [(0.3333, True), (0.3334, False)])
def test_a_parallax_is_sure_from_three_errors_on(error: float, absolute: bool) -> None:
    values = absolute_values(np.stack([source(k_mag=10.0, parallax=1.0, parallax_error=error).values]).astype(float))
    assert np.isfinite(values[0, COLUMN["k_mag"]]) == absolute


def test_unknown_values_are_masked_and_a_position_alone_is_no_metadata() -> None:
    rows = [source(pmra=3.0, pmdec=np.nan, ruwe=1.0, parallax=1.0), source(pmra=3.0, ruwe=1.0), None]
    inputs = assemble_metadata(rows, no_history(3), np.zeros(3), np.zeros(3), UNIT)
    assert inputs.present.tolist() == [True, False, False]
    known = {MODEL_FEATURES[i] for i in np.flatnonzero(inputs.known[0])}
    assert known == {"pmra", "ruwe", "parallax", "cos_l", "sin_b"}
    assert not inputs.values[~inputs.known].any()
    assert not inputs.known[1:].any()


def test_one_color_is_enough_and_counts_are_not() -> None:
    history = no_history(4)
    history[2, HISTORY_FEATURES.index("total_g_r")] = 0.4
    history[3, HISTORY_FEATURES.index("total_r_mag")] = 17.0
    rows = [source(ps1_g_r=0.5), source(log10_detections_ever=2.0, star_score=1.0, ps1_r_mag=16.0), None, None]
    inputs = assemble_metadata(rows, history, np.zeros(4), np.zeros(4), UNIT)
    assert inputs.present.tolist() == [True, False, True, False]
    assert inputs.values[2, COLUMN["total_g_r"]] == pytest.approx(0.4)


def test_values_stored_by_an_earlier_release_are_fewer() -> None:
    stored = SourceMetadata(source(bp_rp=0.7).values[: len(METADATA_FEATURES)])
    inputs = assemble_metadata([stored], no_history(1), np.zeros(1), np.zeros(1), UNIT)
    assert inputs.values[0, COLUMN["bp_rp"]] == pytest.approx(0.7)
    assert not inputs.known[0, COLUMN["ps1_g_r"]]


def test_columns_the_model_was_not_trained_on_are_ignored() -> None:
    std = np.ones(len(MODEL_FEATURES))
    std[COLUMN["h_mag"]] = np.nan
    rows = [source(h_mag=9, bp_rp=1, ruwe=1, pmra=1, parallax=10, parallax_error=0.1)]
    inputs = assemble_metadata(
        rows, no_history(1), np.zeros(1), np.zeros(1), Scaler(np.zeros(len(MODEL_FEATURES)), std)
    )
    assert inputs.present[0]
    assert not inputs.known[0, COLUMN["h_mag"]]


def test_extreme_values_are_clipped() -> None:
    rows = [source(ruwe=1e6, bp_rp=-1e6, pmra=np.inf, pmdec=1)]
    inputs = assemble_metadata(rows, no_history(1), np.zeros(1), np.zeros(1), UNIT)
    assert inputs.values.max() == 6
    assert inputs.values.min() == -6
    assert not inputs.known[0, COLUMN["pmra"]]


def test_the_committed_scaler_has_every_column() -> None:
    scaler = default_scaler()
    assert scaler.mean.shape == (len(MODEL_FEATURES),)
    assert np.isfinite(
        scaler.std[
            [COLUMN[n] for n in ("bp_rp", "parallax", "cos_l", "sin_b", "ps1_g_r", "reference_g_r", "latest_change")]
        ]
    ).all()


def test_a_broken_scaler_says_so(tmp_path: Path) -> None:
    path = tmp_path / "scaler.json"
    path.write_text(json.dumps({"ruwe": [0, 1]}))
    with pytest.raises(ConfigurationError, match="mean_vmag"):
        Scaler.load(path)
