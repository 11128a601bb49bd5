"""AstroM3's published data set, read through Hugging Face ``datasets`` into what this project trains on.

Two layouts are published (Rizhko & Bloom 2024, arXiv 2411.08842, and the data sets' cards). Both have the columns
``photometry``, ``spectra``, ``metadata`` and ``label``, the splits train, validation and test, and configurations
such as ``full_42`` or ``sub25_123``: the share of the stars and the seed of the split.

*AstroMLCore/AstroM3Processed* is Parquet, and what a name on the hub gives:

- ``photometry`` (n, 9) float32: time scaled to 0-1; flux less its mean and flux error, both over the flux's MAD;
  then, the same at every point, the catalogue's amplitude, period, ``lksl_statistic`` and ``rfr_score``, log10
  MAD, and the time span in units of 365 days.
- ``spectra`` (3, 2575): flux, error and log10 MAD on the grid of ``broker.assemble.spectrum``, not divided by the
  median first, so the third channel is in the spectrograph's units; taken as it is.
- ``metadata`` (34,): METADATA_FEATURES in order, standardised by the publishers; taken as it is, clipped at 6.
- ``label``: a class label, the classes in alphabetical order.

The mean flux is not in it, so the light curves can only be read as difference flux, without amplitudes in
magnitudes. *AstroMLCore/AstroM3Dataset* is complete, but comes with a loading script, which is never run here:
whoever has converted it to Parquet can give the folder.

- ``photometry`` (n, 3): HJD in days, total flux and its error in mJy (ASAS-SN's V band).
- ``spectra`` (m, 3): vacuum wavelength in Angstrom, flux, error (LAMOST).
- ``metadata``: a structure of ``meta_cols``, raw values by name with galactic ``l`` and ``b`` in degrees, and
  ``photo_cols``. Standardised here by the stars of the training split, as in ``training.simulate.metadata``.
- ``label``: the class's name.

The light curves of both go through ``assemble_light_curves``, so that every model sees the inputs it would be
served. The catalogue's ``photo_cols`` are left out: a new star in a stream has no catalogue period, and
``rfr_score`` is the output of another classifier.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from broker.assemble.metadata import MIN_KNOWN, MODEL_FEATURES, Scaler, absolute_values, widened
from broker.assemble.spectrum import BAD_PIXEL_ERROR, GRID, MIN_COVERAGE, assemble_spectra
from broker.errors import InputFileError
from broker.records import BAND_CODE, METADATA_FEATURES, LightCurve, Spectrum
from broker.taxonomy import CLASS_INDEX, CLASS_NAMES
from broker.times import mjd_of_jd
from training.data import Labels, TrainingSet
from training.prepare import prepare_light_curves
from training.simulate.metadata import fit_scaler

SPLITS: Final = ("train", "validation", "test")
NJY_OF_MJY: Final = 1e6
DAYS_OF_SPAN: Final = 365.0
_COLUMNS: Final = ("photometry", "spectra", "metadata", "label")
_READ_TOGETHER: Final = 256
_RAW_NAMES: Final = tuple({"cos_l": "l", "sin_b": "b"}.get(name, name) for name in METADATA_FEATURES)
_CATALOGUED: Final = np.isin(MODEL_FEATURES, sorted({*METADATA_FEATURES} - {"cos_l", "sin_b"}))


@dataclass(frozen=True, slots=True, eq=False)
class AstroM3Data:
    """The data set in memory; the rows are those of ``data``, in the published order."""

    data: TrainingSet
    train_rows: NDArray[np.intp]
    validation_rows: NDArray[np.intp]
    test_rows: NDArray[np.intp]
    scaler: Scaler | None
    """What raw metadata were standardised by; None where they came standardised."""

    @property
    def labels(self) -> Labels:
        """Classes in the order of ``broker.taxonomy``; all are scored."""
        return self.data.labels


@dataclass(slots=True, eq=False)
class _Objects:
    """All objects of all splits, column by column."""

    light_curves: list[LightCurve] = field(default_factory=list)
    spectra: list[NDArray[np.float16]] = field(default_factory=list)
    spectrum_present: list[NDArray[np.bool_]] = field(default_factory=list)
    metadata: list[NDArray[np.float64]] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    raw: bool = False


def load_astrom3(
    source: str | Path, config: str = "full_42", *, cache: Path, versions: int = 1, processes: int = 2
) -> AstroM3Data:
    """Read the data set from ``source``: a folder or file of Parquet, or else a name on the Hugging Face hub.

    A folder may hold the files of one configuration, or folders named by configuration. The split of a file is
    what its name, or its folder's, begins with. Downloads and assembled inputs are kept in ``cache``;
    ``versions`` as in ``prepare_light_curves``. InputFileError says what cannot be read, which column is
    missing or which label is none of the ten classes.
    """
    objects = _Objects()
    splits = _open(source, config, cache)
    rows: list[NDArray[np.intp]] = []
    for name in SPLITS:
        first = len(objects.labels)
        if name in splits:
            _read_split(splits[name], objects, f"{source}, {name}")
        rows.append(np.arange(first, len(objects.labels)))
    if not objects.labels:
        raise InputFileError(f"{source} has no objects")
    train_rows, validation_rows, test_rows = rows
    standard = widened(np.concatenate(objects.metadata))
    scaler = None
    if objects.raw:
        if not len(train_rows):
            raise InputFileError(f"{source} has no training split, by which raw metadata are standardised")
        scaler = fit_scaler(standard[train_rows], least=min(100, (len(train_rows) + 1) // 2))
        standard = (absolute_values(standard) - scaler.mean) / scaler.std
    values, known, metadata_present = _masked(standard)
    key = hashlib.sha256(f"{source}\n{config}".encode()).hexdigest()[:12]
    size = len(objects.labels)
    data = TrainingSet(
        Labels.from_columns(np.array(objects.labels, object), np.full(size, "std", object), np.zeros(size, np.bool_)),
        prepare_light_curves(
            objects.light_curves,
            [None] * len(objects.light_curves),
            versions,
            cache / f"light_curves-{key}",
            processes=processes,
        ),
        np.concatenate(objects.spectra)[None],
        np.concatenate(objects.spectrum_present),
        values,
        known,
        metadata_present,
    )
    return AstroM3Data(data, train_rows, validation_rows, test_rows, scaler)


def _open(source: str | Path, config: str, cache: Path) -> Any:
    """A ``datasets.DatasetDict``."""
    import datasets  # slow to import, and only this function needs it

    local = Path(source)
    arguments: tuple[str, ...] = (str(source), config)
    files = None
    if local.exists():
        arguments, files = ("parquet",), _local_files(local, config)
    try:
        return datasets.load_dataset(*arguments, data_files=files, cache_dir=str(cache / "huggingface"))
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError, pa.ArrowException) as error:
        # RuntimeError: the repository holds a loading script, which datasets >= 4 refuses to run.
        raise InputFileError(f"AstroM3 data set {source}, {config}: {error}") from error


def _local_files(path: Path, config: str) -> dict[str, list[str]]:
    """Parquet files by split."""
    if path.is_file():
        found = [path]
    else:
        folder = path / config if (path / config).is_dir() else path
        found = sorted(folder.glob("*.parquet")) + [f for s in SPLITS for f in sorted(folder.glob(f"{s}/*.parquet"))]
    files: dict[str, list[str]] = {}
    for file in found:
        split = next((s for s in SPLITS if file.name.startswith(s) or file.parent.name == s), None)
        if split is None:
            raise InputFileError(f"{file}: of which split? Its name should begin with one of {', '.join(SPLITS)}")
        files.setdefault(split, []).append(str(file))
    if not files:
        raise InputFileError(f"no Parquet files of {config} in {path}")
    return files


def _read_split(dataset: Any, objects: _Objects, where: str) -> None:
    """Append one split to ``objects``."""
    missing = [name for name in _COLUMNS if name not in dataset.column_names]
    if missing:
        have = ", ".join(dataset.column_names)
        raise InputFileError(f"{where}: no column {', '.join(missing)}; the columns are {have}")
    names = getattr(dataset.features["label"], "names", None)
    for batch in dataset.with_format("arrow").iter(_READ_TOGETHER):
        metadata = _storage(batch["metadata"])
        objects.raw = pa.types.is_struct(metadata.type)
        photometry = _matrices(_storage(batch["photometry"]), 3 if objects.raw else 9, f"{where}, photometry")
        spectra = _matrices(_storage(batch["spectra"]), 3 if objects.raw else len(GRID), f"{where}, spectra")
        if objects.raw:
            _check_precision(_storage(batch["photometry"]), where)
            objects.light_curves += [_raw_light_curve(points) for points in photometry]
            inputs = assemble_spectra([_raw_spectrum(spectrum) for spectrum in spectra])
            objects.spectra.append(inputs.spectra.astype(np.float16))
            objects.spectrum_present.append(inputs.present)
            objects.metadata.append(_raw_metadata(metadata, where))
        else:
            objects.light_curves += [_processed_light_curve(points, where) for points in photometry]
            stacked, present = _processed_spectra(list(spectra), where)
            objects.spectra.append(stacked)
            objects.spectrum_present.append(present)
            objects.metadata.append(_processed_metadata(metadata, where))
        objects.labels += _labels(batch["label"].to_pylist(), names, where)


def _storage(column: Any) -> Any:
    """A column as one plain Arrow array: the library keeps matrices in an extension type of its own."""
    array = column.combine_chunks()
    return array.storage if isinstance(array, pa.ExtensionArray) else array


def _matrices(array: Any, width: int, where: str) -> Iterator[NDArray[np.float64]]:
    """Each row's list of lists as (n, width); n is 0 where there is nothing."""
    if not (_is_list(array.type) and _is_list(array.type.value_type)):
        raise InputFileError(f"{where}: a list of lists of {width} numbers is wanted, not {array.type}")
    inner = array.flatten()
    flat = inner.flatten()
    lengths = np.asarray(inner.value_lengths().to_numpy(zero_copy_only=False))
    if np.any(lengths != width):
        wrong = int(lengths[lengths != width][0])
        raise InputFileError(f"{where}: {width} numbers in a row are wanted, not {wrong}")
    rows = np.asarray(flat.to_numpy(zero_copy_only=False), np.float64).reshape(-1, width)
    counts = np.nan_to_num(np.asarray(array.value_lengths().to_numpy(zero_copy_only=False), np.float64))
    bounds = np.concatenate([[0], np.cumsum(counts)]).astype(np.intp)
    for start, stop in pairwise(bounds):
        yield rows[start:stop]


def _is_list(kind: Any) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _check_precision(photometry: Any, where: str) -> None:
    """Warn of Julian dates that have lost their fraction of a day."""
    numbers = photometry.flatten().flatten()
    if pa.types.is_float32(numbers.type) and len(numbers) and numbers[0].as_py() > 1e6:
        warnings.warn(
            f"{where}, photometry: Julian dates in single precision are good to a quarter of a day only, "
            "so that short periods cannot be found",
            stacklevel=2,
        )


def _light_curve(
    mjd: NDArray[np.float64], flux: NDArray[np.float64], error: NDArray[np.float64], reference: float
) -> LightCurve:
    size = len(mjd)
    return LightCurve(
        mjd,
        flux.astype(np.float32),
        error.astype(np.float32),
        np.full(size, reference, np.float32),
        np.full(size, BAND_CODE["asas:V"], np.uint8),  # one band, so which of the V bands is of no consequence
        np.zeros(size, np.uint8),
    )


def _raw_light_curve(points: NDArray[np.float64]) -> LightCurve:
    """From (n, 3) HJD, flux and error in mJy. Repeated points are dropped, as the publishers do."""
    points = np.unique(points, axis=0)
    return _light_curve(mjd_of_jd(points[:, 0]), points[:, 1] * NJY_OF_MJY, points[:, 2] * NJY_OF_MJY, reference=0.0)


def _processed_light_curve(points: NDArray[np.float64], where: str) -> LightCurve:
    """From (n, 9) as above: days since the first point, and difference flux in MADs."""
    span = points[:, 8] * DAYS_OF_SPAN
    if np.any(span < 0):
        raise InputFileError(f"{where}, photometry: the ninth column is below 0, so it is no time span")
    return _light_curve(points[:, 0] * span, points[:, 1], points[:, 2], reference=np.nan)


def _raw_spectrum(spectrum: NDArray[np.float64]) -> Spectrum | None:
    """From (m, 3) wavelength, flux and error."""
    if not len(spectrum):
        return None
    spectrum = spectrum[np.argsort(spectrum[:, 0])]
    return Spectrum(spectrum[:, 0], spectrum[:, 1].astype(np.float32), spectrum[:, 2].astype(np.float32))


def _processed_spectra(spectra: list[NDArray[np.float64]], where: str) -> tuple[NDArray[np.float16], NDArray[np.bool_]]:
    """(n, 3, 2575) with bad pixels as ``broker.assemble.spectrum.normalise`` marks them, and which are usable."""
    stacked = np.zeros((len(spectra), 3, len(GRID)), np.float16)
    present = np.zeros(len(spectra), np.bool_)
    for row, spectrum in enumerate(spectra):
        if len(spectrum) not in (0, 3):
            raise InputFileError(f"{where}, spectra: 3 rows are wanted, not {len(spectrum)}")
        if not len(spectrum):
            continue
        flux, error, mad = spectrum
        good = np.isfinite(flux) & np.isfinite(error) & (error > 0)
        present[row] = good.mean() >= MIN_COVERAGE and bool(np.isfinite(mad).all())
        if present[row]:
            stacked[row, 0] = np.clip(np.where(good, flux, 0.0), -100, 100)
            stacked[row, 1] = np.minimum(np.where(good, error, BAD_PIXEL_ERROR), BAD_PIXEL_ERROR)
            stacked[row, 2] = mad
    return stacked, present


def _raw_metadata(array: Any, where: str) -> NDArray[np.float64]:
    """(n, 34) raw values in the order of METADATA_FEATURES, NaN where unknown."""
    if array.type.get_field_index("meta_cols") < 0:
        raise InputFileError(f"{where}, metadata: no meta_cols")
    columns = array.field("meta_cols")
    missing = [name for name in _RAW_NAMES if columns.type.get_field_index(name) < 0]
    if missing:
        raise InputFileError(f"{where}, metadata: no {', '.join(missing)} in meta_cols")
    raw = [np.asarray(columns.field(name).to_numpy(zero_copy_only=False), np.float64) for name in _RAW_NAMES]
    values = np.stack(raw, axis=1)
    errors = values[:, [name.endswith("_error") or name.startswith("e_") for name in METADATA_FEATURES]]
    if np.any(errors < 0):
        raise InputFileError(f"{where}, metadata: errors below 0, so the values are standardised; the raw are wanted")
    values[:, METADATA_FEATURES.index("cos_l")] = np.cos(np.radians(values[:, METADATA_FEATURES.index("cos_l")]))
    values[:, METADATA_FEATURES.index("sin_b")] = np.sin(np.radians(values[:, METADATA_FEATURES.index("sin_b")]))
    return values


def _processed_metadata(array: Any, where: str) -> NDArray[np.float64]:
    """(n, 34) standardised values, NaN where there are none."""
    if not _is_list(array.type):
        raise InputFileError(f"{where}, metadata: {len(METADATA_FEATURES)} numbers or meta_cols are wanted")
    values = np.full((len(array), len(METADATA_FEATURES)), np.nan)
    for row, own in enumerate(array.to_pylist()):
        if own is not None:
            if len(own) != len(METADATA_FEATURES):
                raise InputFileError(f"{where}, metadata: {len(METADATA_FEATURES)} numbers are wanted, not {len(own)}")
            values[row] = own
    return values


def _masked(standard: NDArray[np.float64]) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_]]:
    """Values, which are known and which objects have enough, by the rules of ``broker.assemble.metadata``."""
    standard = np.clip(standard, -6, 6)
    known = np.isfinite(standard)
    present = known[:, _CATALOGUED].sum(axis=1) >= MIN_KNOWN
    known &= present[:, None]
    return np.where(known, standard, 0.0).astype(np.float32), known, present


def _labels(labels: list[Any], names: list[str] | None, where: str) -> list[str]:
    """Class names from names or from positions in ``names``."""
    result = []
    for label in labels:
        name = names[label] if names is not None and label is not None and 0 <= label < len(names) else label
        if name not in CLASS_INDEX:
            raise InputFileError(f"{where}: label {name!r} is none of {', '.join(CLASS_NAMES)}")
        result.append(str(name))
    return result
