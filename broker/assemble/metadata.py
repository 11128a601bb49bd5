"""The third modality: values of catalogues, of the packet and of the light curve's brightness, to model inputs."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from broker.assemble.history import HISTORY_FEATURES
from broker.assemble.inputs import MetadataInputs
from broker.errors import ConfigurationError
from broker.records import MAGNITUDES, METADATA_FEATURES, SOURCE_FEATURES, SourceMetadata

MODEL_FEATURES: Final[tuple[str, ...]] = SOURCE_FEATURES + HISTORY_FEATURES
"""The columns of ``MetadataInputs``: the source's values, and those of its light curve (``broker.assemble.history``).
"""

MIN_PARALLAX_SNR: Final = 3.0
"""Parallaxes less certain than this give no absolute magnitude: its error would exceed 0.7 mag."""
MIN_KNOWN: Final = 3
"""Catalogue values, coordinates aside, that make metadata usable; a colour does so by itself."""
COLORS: Final[tuple[str, ...]] = (
    "bp_rp",
    "j_k",
    "w1_w2",
    "ps1_g_r",
    "ps1_r_i",
    "ps1_i_z",
    "reference_g_r",
    "total_g_r",
)
"""Columns of which one is enough. Brightness and range of a light curve alone are no metadata."""

SCALER_FILE: Final = Path(__file__).with_name("metadata_scaler.json")
"""Written by ``python -m training export`` with the model that needs it."""

_COLUMN: Final = {name: index for index, name in enumerate(MODEL_FEATURES)}
_CATALOGUED: Final = np.array([name in METADATA_FEATURES and name not in ("cos_l", "sin_b") for name in MODEL_FEATURES])
_COLOR_COLUMNS: Final = [_COLUMN[name] for name in COLORS]
# Rotation from ICRS to galactic coordinates (Hipparcos and Tycho Catalogues, ESA SP-1200, 1997, vol. 1, 1.5.3).
_GALACTIC: Final = np.array(
    [
        [-0.0548755604162154, -0.8734370902348850, -0.4838350155487132],
        [+0.4941094278755837, -0.4448296299600112, +0.7469822444972189],
        [-0.8676661490190047, -0.1980763734312015, +0.4559837761750669],
    ]
)


@dataclass(frozen=True, slots=True, eq=False)
class Scaler:
    """Mean and deviation of each column over the training stars; NaN for columns it did not have."""

    mean: NDArray[np.float64]
    std: NDArray[np.float64]

    @staticmethod
    def load(path: Path = SCALER_FILE) -> Scaler:
        """Read the scaler; ConfigurationError where the file is missing or names other columns."""
        try:
            columns = json.loads(path.read_text())
            pairs = [columns[name] or (np.nan, np.nan) for name in MODEL_FEATURES]
        except (OSError, ValueError, KeyError) as error:
            raise ConfigurationError(f"metadata scaler {path}: {error!r}") from error
        mean, std = np.array(pairs, np.float64).T
        return Scaler(mean, std)


@functools.cache
def default_scaler() -> Scaler:
    """The scaler the committed model was trained with."""
    return Scaler.load()


def galactic(ra: NDArray[np.float64], dec: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """cos l and sin b of ICRS positions in degrees."""
    ra, dec = np.radians(ra), np.radians(dec)
    x, y, z = _GALACTIC @ np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)])
    return x / np.maximum(np.hypot(x, y), 1e-12), z


def absolute_values(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The columns as the model sees them: magnitudes made absolute, derived columns filled in where possible.

    ``values`` (n, MODEL_FEATURES) raw, NaN where unknown. M = m + 5 log10(parallax / 100 mas), unknown where the
    parallax is not MIN_PARALLAX_SNR times its error.
    """
    values = np.array(values, np.float64)

    def column(name: str) -> NDArray[np.float64]:
        view: NDArray[np.float64] = values[:, _COLUMN[name]]
        return view

    def fill(name: str, computed: NDArray[np.float64]) -> None:
        values[:, _COLUMN[name]] = np.where(np.isnan(column(name)), computed, column(name))

    with np.errstate(invalid="ignore", divide="ignore"):
        fill("parallax_over_error", column("parallax") / column("parallax_error"))
        fill("pm", np.hypot(column("pmra"), column("pmdec")))
        fill("bp_rp", column("phot_bp_mean_mag") - column("phot_rp_mean_mag"))
        fill("j_k", column("j_mag") - column("k_mag"))
        fill("w1_w2", column("w1_mag") - column("w2_mag"))
        fill("w3_w4", column("w3_mag") - column("w4_mag"))
        sure = (column("parallax_over_error") >= MIN_PARALLAX_SNR) & (column("parallax") > 0)
        modulus = np.where(sure, 5.0 * np.log10(column("parallax") / 100.0), np.nan)
    for name in MAGNITUDES:
        values[:, _COLUMN[name]] += modulus
    values[~np.isfinite(values)] = np.nan
    return values


def assemble_metadata(
    metadata: Sequence[SourceMetadata | None],
    history: NDArray[np.float64],
    ra: NDArray[np.float64],
    dec: NDArray[np.float64],
    scaler: Scaler | None = None,
) -> MetadataInputs:
    """Model inputs of a batch of source values, histories (batch, HISTORY_FEATURES) and ICRS positions in degrees.

    Columns the model was not trained on count as unknown. Objects without any of COLORS and with fewer than
    MIN_KNOWN known catalogue values besides the coordinates are marked absent, and their rows are zero: a position
    alone is no metadata.
    """
    return standardise(raw_values(metadata, history), ra, dec, scaler or default_scaler())


def raw_values(metadata: Sequence[SourceMetadata | None], history: NDArray[np.float64]) -> NDArray[np.float64]:
    """(batch, MODEL_FEATURES) as they come, NaN where unknown."""
    values = np.full((len(metadata), len(MODEL_FEATURES)), np.nan)
    for row, source in enumerate(metadata):
        if source is not None:
            values[row, : len(source.values)] = source.values
    values[:, len(SOURCE_FEATURES) :] = history
    return values


def widened(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(batch, MODEL_FEATURES) from values (batch, m) of the first m of these columns; the others are NaN."""
    result = np.full((len(values), len(MODEL_FEATURES)), np.nan)
    result[:, : values.shape[1]] = values
    return result


def standardise(
    values: NDArray[np.float64], ra: NDArray[np.float64], dec: NDArray[np.float64], scaler: Scaler
) -> MetadataInputs:
    """Model inputs from raw values (batch, MODEL_FEATURES), NaN where unknown, and positions (batch,)."""
    values = absolute_values(values)
    values[:, _COLUMN["cos_l"]], values[:, _COLUMN["sin_b"]] = galactic(ra, dec)
    standard = np.clip((values - scaler.mean) / scaler.std, -6, 6)
    known = np.isfinite(standard)
    present = usable_metadata(known)
    known &= present[:, None]
    return MetadataInputs(np.where(known, standard, 0.0).astype(np.float32), known, present)


def usable_metadata(known: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(batch,) whether what is ``known`` (batch, MODEL_FEATURES) is enough: a colour, or MIN_KNOWN catalogue values."""
    enough: NDArray[np.bool_] = (known[:, _CATALOGUED].sum(axis=1) >= MIN_KNOWN) | known[:, _COLOR_COLUMNS].any(axis=1)
    return enough
