"""AstroM3's data set from local Parquet of the two published structures: values, splits, gaps and messages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from numpy.typing import NDArray

from broker.assemble.lightcurve import LIGHT_CURVE_FEATURES
from broker.assemble.spectrum import BAD_PIXEL_ERROR, GRID
from broker.errors import InputFileError
from broker.records import METADATA_FEATURES
from broker.taxonomy import CLASS_INDEX, CLASS_NAMES
from training.datasets.astrom3 import AstroM3Data, load_astrom3

PERIOD = 0.61
LABELS = {"train": ["RRAB", "EW", "M", "SR"], "validation": ["DSCT"], "test": ["HADS", "EA"]}
RAW_NAMES = [{"cos_l": "l", "sin_b": "b"}.get(name, name) for name in METADATA_FEATURES]


@pytest.fixture(autouse=True)
def no_progress_bars() -> None:
    datasets.disable_progress_bars()


def photometry(seed: int, points: int = 150) -> NDArray[np.float64]:
    """(n, 3) HJD, flux and error in mJy of a sine of amplitude 0.2 mag."""
    rng = np.random.default_rng(seed)
    hjd = np.sort(rng.uniform(2456700.0, 2457900.0, points))
    magnitude = 0.2 * np.sin(2 * np.pi * hjd / PERIOD) + rng.normal(0, 0.01, points)
    return np.stack([hjd, 10.0 * 10 ** (-0.4 * magnitude), np.full(points, 0.1)], axis=1)


def raw_metadata(seed: int) -> dict[str, float | None]:
    rng = np.random.default_rng(seed)
    values: dict[str, float | None] = {name: float(rng.uniform(0.5, 1.5)) for name in RAW_NAMES}
    # 1 mas +- 0.01: absolute magnitude is apparent magnitude - 10.
    values |= {"parallax": 1.0, "parallax_error": 0.01, "parallax_over_error": 100.0, "l": 60.0, "b": 30.0}
    values["mean_vmag"] = 12.0 + seed
    return values


def raw_row(seed: int, label: str) -> dict[str, Any]:
    wavelength = np.arange(3700.0, 9100.0, 1.5)
    spectrum = np.stack([wavelength, 100 + wavelength / 100, np.full(len(wavelength), 2.0)], axis=1)
    return {
        "photometry": photometry(seed).tolist(),
        "spectra": spectrum.tolist(),
        "metadata": {
            "meta_cols": raw_metadata(seed),
            "photo_cols": {"amplitude": 0.4, "period": 99.0, "lksl_statistic": 0.2, "rfr_score": 0.9},
        },
        "label": label,
    }


RAW = datasets.Features(
    {
        "photometry": datasets.Array2D((None, 3), "float64"),
        "spectra": datasets.Array2D((None, 3), "float32"),
        "metadata": {
            "meta_cols": {name: datasets.Value("float64") for name in RAW_NAMES},
            "photo_cols": {
                n: datasets.Value("float64") for n in ("amplitude", "period", "lksl_statistic", "rfr_score")
            },
        },
        "label": datasets.Value("string"),
    }
)
PROCESSED = datasets.Features(
    {
        "photometry": datasets.Array2D((None, 9), "float32"),
        "spectra": datasets.Array2D((3, 2575), "float32"),
        "metadata": datasets.Sequence(datasets.Value("float32"), length=34),
        "label": datasets.ClassLabel(names=sorted(CLASS_NAMES)),
    }
)


def processed_row(seed: int, label: str) -> dict[str, Any]:
    points = photometry(seed)
    time, flux, error = points.T
    mad = float(np.median(np.abs(flux - np.median(flux))))
    columns = [
        (time - time[0]) / np.ptp(time), (flux - flux.mean()) / mad, error / mad,
        np.full(len(time), 0.4), np.full(len(time), 2.0), np.full(len(time), 0.2), np.full(len(time), 0.9),
        np.full(len(time), np.log10(mad)), np.full(len(time), np.ptp(time) / 365),
    ]  # fmt: skip
    spectrum = np.stack([np.linspace(-2, 2, 2575), np.full(2575, 0.05), np.full(2575, 1.5)])
    return {
        "photometry": np.stack(columns, axis=1).tolist(),
        "spectra": spectrum.tolist(),
        "metadata": np.linspace(-1, 8, 34).tolist(),
        "label": label,
    }


def write(rows: list[dict[str, Any]], features: datasets.Features, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_list(rows, features=features).to_parquet(path)


def write_all(row: Any, features: datasets.Features, folder: Path) -> None:
    seed = 0
    for split, labels in LABELS.items():
        rows = []
        for label in labels:
            rows.append(row(seed, label))
            seed += 1
        write(rows, features, folder / f"{split}-00000-of-00001.parquet")


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> AstroM3Data:
    folder = tmp_path_factory.mktemp("raw")
    write_all(raw_row, RAW, folder / "published" / "full_42")
    write_all(raw_row, RAW, folder / "published" / "full_0")
    return load_astrom3(folder / "published", "full_42", cache=folder / "cache", processes=1)


@pytest.fixture(scope="module")
def processed(tmp_path_factory: pytest.TempPathFactory) -> AstroM3Data:
    folder = tmp_path_factory.mktemp("processed")
    write_all(processed_row, PROCESSED, folder / "published")
    return load_astrom3(folder / "published", cache=folder / "cache", processes=1)


def feature(loaded: AstroM3Data, name: str) -> NDArray[np.float32]:
    values: NDArray[np.float32] = loaded.data.features[0, :, LIGHT_CURVE_FEATURES.index(name)].float().numpy()
    return values


@pytest.mark.parametrize("layout", ["raw", "processed"])
def test_splits_labels_and_light_curves_are_those_published(layout: str, request: pytest.FixtureRequest) -> None:
    loaded: AstroM3Data = request.getfixturevalue(layout)
    assert loaded.train_rows.tolist() == [0, 1, 2, 3]
    assert loaded.validation_rows.tolist() == [4]
    assert loaded.test_rows.tolist() == [5, 6]
    expected = [CLASS_INDEX[name] for labels in LABELS.values() for name in labels]
    assert loaded.labels.index.tolist() == expected
    assert loaded.labels.scored.all()
    assert loaded.data.present(*(np.zeros(7, np.int64), np.arange(7))[::-1]).all()
    # The period is found in the points; that of the catalogue (99 d, or 2.0) is not read.
    assert np.allclose(10 ** feature(loaded, "log10_period"), PERIOD, rtol=3e-3)
    spans = [np.ptp(photometry(seed)[:, 0]) for seed in range(7)]
    assert np.allclose(10 ** feature(loaded, "log10_span"), spans, rtol=3e-3)
    assert loaded.data.batch(loaded.test_rows).spectra.shape == (2, 3, 2575)


def test_raw_photometry_is_total_flux(raw: AstroM3Data) -> None:
    assert (feature(raw, "is_total_flux") == 1).all()
    # 90 % of a sine of amplitude 0.2 mag lie within 2 x 0.2 x sin(0.45 pi) mag.
    assert np.allclose(10 ** feature(raw, "log10_range_90"), 0.4 * np.sin(0.45 * np.pi), rtol=0.05)


def test_processed_photometry_is_difference_flux(processed: AstroM3Data) -> None:
    assert (feature(processed, "is_total_flux") == 0).all()


def test_raw_metadata_are_made_absolute_and_standardised_by_the_training_stars(raw: AstroM3Data) -> None:
    assert raw.scaler is not None
    column = METADATA_FEATURES.index("mean_vmag")
    absolute = np.array([12.0 + seed - 10.0 for seed in range(7)])
    low, middle, high = np.percentile(absolute[:4], [16, 50, 84])
    expected = (absolute - middle) / (0.5 * (high - low))
    assert np.allclose(raw.data.values[:, column].numpy(), expected, atol=1e-4)
    assert raw.scaler.mean[METADATA_FEATURES.index("cos_l")] == pytest.approx(0.5)
    assert raw.scaler.mean[METADATA_FEATURES.index("sin_b")] == pytest.approx(0.5)
    assert raw.data.known[:, : len(METADATA_FEATURES)].all()
    assert not raw.data.known[:, len(METADATA_FEATURES) :].any()


def test_processed_metadata_are_taken_as_they_are(processed: AstroM3Data) -> None:
    assert processed.scaler is None
    assert np.allclose(processed.data.values.numpy()[:, :34], np.linspace(-1, 8, 34).clip(max=6), atol=1e-5)


def test_processed_spectra_are_taken_as_they_are(processed: AstroM3Data) -> None:
    spectra = processed.data.batch(processed.test_rows).spectra.numpy()
    assert np.allclose(spectra[:, 0], np.linspace(-2, 2, 2575), atol=2e-3)
    assert np.allclose(spectra[:, 2], 1.5)


def test_raw_spectra_are_put_on_the_grid(raw: AstroM3Data) -> None:
    spectra = raw.data.batch(raw.test_rows).spectra.numpy()
    flux = 100 + GRID / 100
    mad = np.median(np.abs(flux - np.median(flux)))
    assert np.allclose(spectra[:, 0], (flux - flux.mean()) / mad, atol=5e-3)


@pytest.mark.parametrize("layout", ["raw", "processed"])
def test_missing_modalities_are_marked_absent(layout: str, tmp_path: Path) -> None:
    row, features = (raw_row, RAW) if layout == "raw" else (processed_row, PROCESSED)
    rows = [row(seed, "EW") for seed in range(4)]
    rows[0]["photometry"] = rows[0]["photometry"][:3]
    rows[1]["spectra"] = [] if layout == "raw" else np.full((3, 2575), np.nan).tolist()
    if layout == "raw":
        rows[2]["metadata"]["meta_cols"] = dict.fromkeys(RAW_NAMES) | {"l": 1.0, "b": 2.0}
    else:
        rows[2]["metadata"] = [np.nan] * 32 + [0.5, 0.5]
    write(rows, features, tmp_path / "train.parquet")
    loaded = load_astrom3(tmp_path / "train.parquet", cache=tmp_path / "cache", processes=1)
    batch = loaded.data.batch(loaded.train_rows)
    assert batch.present.tolist() == [
        [False, True, True],
        [True, False, True],
        [True, True, False],
        [True, True, True],
    ]
    assert (batch.values[2] == 0).all()
    assert not batch.known[2].any()
    assert (batch.spectra[1] == 0).all()
    assert len(loaded.test_rows) == 0


def test_bad_pixels_of_processed_spectra_are_marked_as_elsewhere(tmp_path: Path) -> None:
    row = processed_row(0, "EW")
    row["spectra"][0][7] = np.nan
    write([row], PROCESSED, tmp_path / "test.parquet")
    loaded = load_astrom3(tmp_path / "test.parquet", cache=tmp_path / "cache", processes=1)
    assert loaded.data.batch(loaded.test_rows).spectra[0, :2, 7].tolist() == [0.0, BAD_PIXEL_ERROR]


def refuse(tmp_path: Path, rows: list[dict[str, Any]], features: datasets.Features | None, message: str) -> None:
    write(rows, features, tmp_path / "train.parquet")
    with pytest.raises(InputFileError, match=message):
        load_astrom3(tmp_path, cache=tmp_path / "cache", processes=1)


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    row = raw_row(0, "EW")
    del row["spectra"]
    refuse(tmp_path, [row], None, "no column spectra; the columns are photometry, metadata, label")


def test_a_missing_catalogue_value_is_named(tmp_path: Path) -> None:
    row = raw_row(0, "EW")
    del row["metadata"]["meta_cols"]["ruwe"]
    refuse(tmp_path, [row], None, "no ruwe in meta_cols")


def test_an_unknown_label_is_named(tmp_path: Path) -> None:
    refuse(tmp_path, [raw_row(0, "CEP")], RAW, "label 'CEP' is none of EW, SR")


def test_standardised_values_in_the_place_of_raw_ones_are_refused(tmp_path: Path) -> None:
    row = raw_row(0, "EW")
    row["metadata"]["meta_cols"]["e_j_mag"] = -0.3
    refuse(tmp_path, [row], RAW, "errors below 0")


def test_rows_of_another_width_are_refused(tmp_path: Path) -> None:
    row = raw_row(0, "EW")
    row["photometry"] = [[*point, 0.0] for point in row["photometry"]]
    refuse(tmp_path, [row], None, "photometry: 3 numbers in a row are wanted, not 4")


def test_a_negative_span_is_refused(tmp_path: Path) -> None:
    row = processed_row(0, "EW")
    row["photometry"] = [[*point[:8], -1.0] for point in row["photometry"]]
    refuse(tmp_path, [row], PROCESSED, "no time span")


def test_files_of_no_split_and_empty_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match="no Parquet files of full_42"):
        load_astrom3(tmp_path, cache=tmp_path / "cache")
    write([raw_row(0, "EW")], RAW, tmp_path / "stars.parquet")
    with pytest.raises(InputFileError, match="of which split"):
        load_astrom3(tmp_path, cache=tmp_path / "cache")
    write([raw_row(0, "EW")], RAW, tmp_path / "test.parquet")
    with pytest.raises(InputFileError, match="no training split"):
        load_astrom3(tmp_path / "test.parquet", cache=tmp_path / "cache")
    (tmp_path / "train.parquet").write_bytes(b"no Parquet")
    with pytest.raises(InputFileError, match="AstroM3 data set"):
        load_astrom3(tmp_path / "train.parquet", cache=tmp_path / "cache")


def test_a_name_on_the_hub_that_cannot_be_reached_is_an_input_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputFileError, match="AstroMLCore/AstroM3Processed, full_42"):
        load_astrom3("AstroMLCore/AstroM3Processed", cache=tmp_path)


def test_julian_dates_in_single_precision_are_warned_of(tmp_path: Path) -> None:
    features = datasets.Features({**RAW, "photometry": datasets.Array2D((None, 3), "float32")})
    write([raw_row(seed, "EW") for seed in range(2)], features, tmp_path / "train.parquet")
    with pytest.warns(UserWarning, match="single precision"):
        load_astrom3(tmp_path, cache=tmp_path / "cache", processes=1)
