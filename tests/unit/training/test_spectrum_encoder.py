"""The spectrum encoder: what it makes of a part of the grid, and how it is trained by itself."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import onnxruntime
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from broker.assemble.spectrum import BAD_PIXEL_ERROR, GRID, MIN_COVERAGE, assemble_spectra, normalise
from broker.records import Spectrum
from tests.random_models import build_random_repository
from training import spectrum_encoder
from training.__main__ import main
from training.encoders.spectrum import LINE_SCALE, SpectrumEncoder, lines_and_continuum
from training.simulate.spectra import (
    DISK_METALLICITY,
    HALO_METALLICITY,
    SPECTRAL_TYPES,
    draw_metallicity,
    draw_velocity,
    hydrogen_strength,
    in_part,
    load_templates,
    simulate_spectra,
    template_error,
)


def seen(flux: np.ndarray, error: np.ndarray) -> np.ndarray:
    inputs = normalise(flux[None], error[None])
    assert inputs.present.all()
    return lines_and_continuum(torch.from_numpy(inputs.spectra)).numpy()[0]


def test_a_fifth_of_the_grid_says_the_same_as_all_of_it() -> None:
    """Median and MAD are those of the part that is seen, and no longer show in what the encoder sees."""
    rng = np.random.default_rng(0)
    continuum = np.linspace(1.0, 3.0, len(GRID))
    flux = continuum * np.exp(rng.normal(0, 0.05, len(GRID)))
    error = np.full(len(GRID), 0.05)
    place = np.arange(len(GRID))
    fifth = np.where((place >= 700) & (place < 1230), 7.0 * flux, np.nan)
    whole, part = seen(flux, error), seen(fifth, 7.0 * error)
    inside = slice(915, 1015)  # 430 Angstrom from both ends
    np.testing.assert_allclose(part[:2, inside], whole[:2, inside], rtol=1e-4, atol=1e-5)
    slope = part[2, inside] - whole[2, inside]
    np.testing.assert_allclose(slope, slope[0], atol=1e-5)  # the shape of the continuum, but for a constant
    assert not part[:, :700].any()
    assert not part[:, 1230:].any()


def test_lines_are_depths_below_the_continuum() -> None:
    """A line of half the continuum's light on a steep continuum, and a pixel's error, by hand."""
    flux = np.linspace(1.0, 5.0, len(GRID))
    flux[1000] *= 0.5
    depth, precision, shape = seen(flux, 0.03 * flux)
    # The continuum is a weighted mean of 41 bins of 5 pixels; the line takes 1/21 of a fifth of its half from it.
    expected = 0.5 / (1 - 0.5 / 5 / 21) - 1
    assert depth[1000] == pytest.approx(4.0 * expected, abs=0.01)
    assert precision[1500] == pytest.approx(0.5, abs=0.01)
    wanted = np.log(flux[2000] / flux[500])
    assert shape[2000] - shape[500] == pytest.approx(wanted, abs=0.01)


def test_parts_of_the_grid_are_drawn_between_the_least_coverage_and_all() -> None:
    flux = np.ones((2000, len(GRID)))
    factor = in_part(flux, np.random.default_rng(1), share=0.6)
    covered = np.isfinite(factor).mean(axis=1)
    assert covered.min() >= MIN_COVERAGE
    assert np.mean(covered == 1) == pytest.approx(0.4, abs=0.04)
    assert np.quantile(covered[covered < 1], 0.25) < 0.2
    ends = np.isfinite(factor[covered < 1][:, [0, 1287, -1]]).mean(axis=0)
    assert np.all((ends > 0.15) & (ends < 0.6))  # blue, middle and red are all seen
    assert np.nanmin(factor) > 0
    whole = in_part(flux, np.random.default_rng(1), share=0.0)
    assert np.isfinite(whole).all()


def test_the_halo_and_the_disk_differ_in_metallicity() -> None:
    rng = np.random.default_rng(2)
    rr = draw_metallicity([SPECTRAL_TYPES["RRAB"]] * 4000, rng)
    dsct = draw_metallicity([SPECTRAL_TYPES["DSCT"]] * 4000, rng)
    assert np.median(rr) == pytest.approx(HALO_METALLICITY[0] + 0.1, abs=0.1)  # a few are of the disk
    assert np.mean(rr > -0.7) == pytest.approx(0.15, abs=0.05)
    assert np.mean(dsct) == pytest.approx(DISK_METALLICITY[0], abs=0.02)
    assert np.std(dsct) == pytest.approx(DISK_METALLICITY[1], abs=0.02)


def test_the_hydrogen_lines_of_a_type_do_not_depend_on_the_metallicity(shared: Path) -> None:
    """The types of RR Lyrae stars are those of their hydrogen lines; metal-poor composites have none between A9 and F0.

    Pickles's dwarfs: H delta and H beta of F5, F2, F0 and A7 have equivalent widths of 7, 11, 14 and 20 Angstrom.
    """
    templates = load_templates(shared / "data")
    size = 200
    for part in (False, True):
        median = []
        for code in (35.0, 32.0, 30.0, 27.0):
            spectra = simulate_spectra(
                templates, ["RRAB"] * size, ["css"] * size, np.full(size, code), np.full(size, part),
                np.random.default_rng(5),
            )  # fmt: skip
            depth = lines_and_continuum(torch.from_numpy(spectra)).numpy()[:, 0].astype(np.float64) / LINE_SCALE
            median.append(np.median(hydrogen_strength(1.0 + depth)))
        np.testing.assert_allclose(median, [7.0, 10.5, 14.2, 19.7], rtol=0.2)


def test_hydrogen_strength_by_hand() -> None:
    """A line of a fifth of the light over 20 Angstrom in each band, on a steep continuum: 4 Angstrom each."""
    flux = np.linspace(1.0, 3.0, len(GRID))
    flux[((GRID >= 4092) & (GRID < 4112)) | ((GRID >= 4852) & (GRID < 4872))] *= 0.8
    assert hydrogen_strength(flux[None])[0] == pytest.approx(8.0, abs=0.02)


def test_no_blend_joins_a_template_of_training_with_one_of_test(shared: Path) -> None:
    """A test star's spectrum is of no template seen in training: it is no mixture of training templates either."""
    templates = load_templates(shared / "data")
    poor = (templates.metallicity < -0.75) & (templates.code > 27) & (templates.code < 36)
    own, other = (templates.flux[1, poor & (templates.for_test == part)] for part in (True, False))
    assert len(own) > 10
    weights, *_ = np.linalg.lstsq(other.T, own.T, rcond=None)
    assert np.all(np.abs(other.T @ weights - own.T).std(axis=0) > 1e-4)


def test_most_spectra_are_in_the_frame_of_the_star() -> None:
    """As the service wants them: a star at rest is no sign of a class, and a few have wavelengths in air."""
    rng = np.random.default_rng(6)
    for name in ("RRAB", "EA"):
        shift = draw_velocity([SPECTRAL_TYPES[name]] * 20_000, rng)
        # At rest: 0.6 * (0.85 * 1 + 0.15 * P(|N(-84, 20)| < 60)), and the tails of N(0, 20) at 3 deviations.
        observed = np.mean(np.abs(rng.normal(0, np.hypot(SPECTRAL_TYPES[name].velocity, 20), 20_000)) < 60)
        assert np.mean(np.abs(shift) < 60) == pytest.approx(0.6 * (0.85 + 0.15 * 0.115) + 0.4 * observed, abs=0.03)
        assert np.median(shift[(shift < -60) & (shift > -110)]) == pytest.approx(-84, abs=5)


def test_errors_are_not_always_those_of_lamost(shared: Path) -> None:
    """Most spectrographs are better in the blue; and a star is no mixture of templates, whatever the errors say."""
    templates = load_templates(shared / "data")
    size = 400
    spectra = simulate_spectra(
        templates, ["DSCT"] * size, ["css"] * size, np.full(size, 28.0), np.zeros(size, bool),
        np.random.default_rng(7),
    )  # fmt: skip
    blue, red = ((low < GRID) & (high > GRID) for low, high in ((3900, 4300), (6500, 7500)))
    own = spectra[:, 1, blue].mean(axis=1) / spectra[:, 1, red].mean(axis=1)
    lamost = templates.noise_shape[:, blue].mean(axis=1) / templates.noise_shape[:, red].mean(axis=1)
    assert np.quantile(lamost, 0.1) > 2.0
    assert np.mean(own < 2.0) > 0.3
    assert np.mean(own > np.median(lamost)) < 0.2
    error = template_error(size, np.random.default_rng(8))
    deviation = error.std(axis=1)
    assert 0.0045 < deviation.min() < 0.006
    assert 0.025 < deviation.max() < 0.033
    neighbours = np.mean(error[:, 1:] * error[:, :-1]) / np.mean(error**2)
    assert neighbours == pytest.approx(np.exp(-1 / (4 * 1.5**2)), abs=0.01)


def test_rr_lyrae_stars_have_a_weak_calcium_line(shared: Path) -> None:
    """Ca II K at 3934.8 Angstrom, for the same spectral type: what tells them from eclipsing binaries."""
    templates = load_templates(shared / "data")
    size = 100
    depth = {}
    for name in ("RRAB", "EW"):
        spectra = simulate_spectra(
            templates, [name] * size, ["css"] * size, np.full(size, 35.0), np.zeros(size, bool),
            np.random.default_rng(3),
        )  # fmt: skip
        lines = lines_and_continuum(torch.from_numpy(spectra)).numpy()[:, 0]
        depth[name] = np.median(lines[:, np.abs(GRID - 3934.8) < 6].mean(axis=1))
    assert depth["EW"] < depth["RRAB"] - 0.2


def test_real_spectra_of_a_fifth_of_the_grid_are_used(shared: Path) -> None:
    table = pq.read_table(shared / "data" / "multiband" / "spectra_rrlyrae_mcdonald.parquet")
    rows = table.slice(0, 20).to_pydict()
    spectra = [
        Spectrum(np.array(w), np.array(f, np.float32), np.array(n, np.float32))
        for w, f, n in zip(rows["wave"], rows["flux"], rows["noise"], strict=True)
    ]
    inputs = assemble_spectra(spectra)
    assert inputs.present.all()
    covered = (inputs.spectra[:, 1] < BAD_PIXEL_ERROR).mean(axis=1)
    assert np.all((covered > 0.19) & (covered < 0.22))


def test_the_encoder_is_trained_by_itself(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few steps through the command: weights, ONNX model and the manifest's checksum belong together."""
    repository = build_random_repository(tmp_path / "repository")
    before = json.loads((repository / "manifest.json").read_text())["sha256"]
    monkeypatch.setattr(spectrum_encoder, "STEPS", 3)
    monkeypatch.setattr(spectrum_encoder, "BATCH", 16)
    arguments = ["spectrum-encoder", "--shared", shared, "--repository", repository, "--output", tmp_path / "run"]
    result = CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0
    encoder = SpectrumEncoder().eval()
    encoder.load_state_dict(load_file(tmp_path / "run" / "spectrum_encoder.safetensors"))
    rng = np.random.default_rng(4)
    flux = 1.0 + rng.normal(0, 0.1, (2, len(GRID)))
    flux[1, 600:] = np.nan
    spectra = normalise(flux, np.full_like(flux, 0.1)).spectra
    path = repository / "spectrum_encoder" / "1" / "model.onnx"
    got = onnxruntime.InferenceSession(path).run(["embedding"], {"spectra": spectra})[0]
    with torch.no_grad():
        np.testing.assert_allclose(got, encoder(torch.from_numpy(spectra)).numpy(), atol=1e-5)
    after = json.loads((repository / "manifest.json").read_text())["sha256"]
    assert after["spectrum_encoder/1/model.onnx"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert {name for name in before if before[name] != after[name]} == {"spectrum_encoder/1/model.onnx"}
    assert {"asas", "css"} == {
        name.split(",")[0] for name in json.loads((tmp_path / "run/validation.json").read_text())
    }
