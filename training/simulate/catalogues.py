"""What catalogues know of a star: a few of its values, and less certain ones of a faint star.

An operator loads the catalogues that he has, and most alerts are of fainter stars than ASAS's. So of the values that
``simulate_metadata`` gives a star all, only some blocks are left, as catalogues have them together, and half of the
stars are moved away, with the errors that Gaia has at their new brightness. See docs/simulation.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from broker.records import METADATA_FEATURES
from broker.taxonomy import CLASS_INDEX
from training.datasets.tables import ObjectTable
from training.simulate.metadata import load_donors, simulate_metadata
from training.simulate.spectra import draw_types

_COLUMN: Final = {name: index for index, name in enumerate(METADATA_FEATURES)}

_BLOCKS: Final[dict[str, tuple[str, ...]]] = {
    "v": ("mean_vmag",),
    "g": ("phot_g_mean_mag", "e_phot_g_mean_mag"),
    "gaia_color": (
        "phot_bp_mean_mag", "e_phot_bp_mean_mag", "phot_rp_mean_mag", "e_phot_rp_mean_mag", "bp_rp",
    ),
    "parallax": ("parallax", "parallax_error", "parallax_over_error"),
    "motion": ("pmra", "pmdec", "pm"),
    "motion_error": ("pmra_error", "pmdec_error"),
    "ruwe": ("ruwe",),
    "2mass": ("j_mag", "e_j_mag", "h_mag", "e_h_mag", "k_mag", "e_k_mag", "j_k"),
    "wise": ("w1_mag", "e_w1_mag", "w2_mag", "e_w2_mag", "w3_mag", "w4_mag", "w1_w2", "w3_w4"),
}  # fmt: skip
"""Columns that a catalogue has together or not at all."""
_EVERYTHING: Final = tuple(_BLOCKS)
_GAIA: Final = ("g", "gaia_color", "parallax", "motion", "motion_error", "ruwe")

# What is always there, what is there with which probability. All are as frequent.
_HOLDINGS: Final[tuple[tuple[tuple[str, ...], tuple[str, ...], float], ...]] = (
    (_EVERYTHING, (), 0.0),
    (_GAIA, ("v", "2mass", "wise"), 0.4),
    (("g", "motion"), ("v", "gaia_color", "motion_error"), 0.5),  # a list of proper motions
    (("v", "g", "motion"), (), 0.0),  # and the same without anything else: four numbers
    (("v", "g", "gaia_color"), (), 0.0),  # two magnitudes and a colour: what ASAS's own stars have
    (("g", "gaia_color", "parallax"), ("v", "ruwe"), 0.5),  # Gaia's columns without its motions
    (("g", "gaia_color", "2mass", "wise"), ("v", "motion"), 0.3),  # colours
    (("v", "g", "motion", "parallax"), ("motion_error",), 0.3),  # a parallax and a motion, of any catalogue
)
_FAINTER_SHARE: Final = 0.5
_FAINTER_MAX: Final = 7.0
"""Magnitudes: the faintest of ASAS's stars, 14, become 21, ZTF's and Gaia's limit."""
_WORSE_DEX: Final = 2.0
"""Hipparcos's parallaxes have fifty times Gaia's errors."""
_NOISE_FROM_G: Final = 14.0
"""Gaia's astrometric errors are constant above, and grow with the photons' noise below (Lindegren et al. 2021, A&A
649, A2, figure 7): by 10 ** (0.2 (G - 14))."""


def catalogue_values(
    table: ObjectTable, data: Path, part: NDArray[np.intp], rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Values (n, 34) of all stars, with donors drawn without regard to the period, and spectral type codes (n,).

    ``part`` (n,) as in ``simulate_metadata``; ``data`` is the folder of the donors. Stars without a label have what is
    known of themselves, and no type (NaN).
    """
    labelled = np.flatnonzero([name in CLASS_INDEX for name in table.label])
    code, unknown = np.full(len(table), np.nan), np.full(len(table), np.nan)
    code[labelled] = draw_types(list(table.label[labelled]), list(table.survey[labelled]), rng)
    values, _ = simulate_metadata(table, load_donors(data), code, unknown, part, rng)
    return values, code


def as_catalogued(values: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """``values`` (n, 34), raw, NaN where unknown, with the distances and the gaps that catalogues give them."""
    values = _farther(values, rng)
    kind = rng.integers(0, len(_HOLDINGS) + 1, len(values))
    worse = np.where(kind == len(_HOLDINGS) - 1, 10.0 ** rng.uniform(0.0, _WORSE_DEX, len(values)), 1.0)
    values = _less_certain(values, worse, rng)
    # The last kind: any blocks, few or many.
    share = np.where(kind == len(_HOLDINGS), rng.uniform(0.2, 0.95, len(values)), 0.0)
    for name, columns in _BLOCKS.items():
        kept = rng.random(len(values)) < share
        for number, (always, sometimes, probability) in enumerate(_HOLDINGS):
            kept |= (kind == number) & (name in always)
            if name in sometimes:
                kept |= (kind == number) & (rng.random(len(values)) < probability)
        for column in columns:
            values[~kept, _COLUMN[column]] = np.nan
    return values


def _farther(values: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Half of the stars at distances where they are up to 7 mag fainter, with Gaia's errors there."""
    values = values.copy()
    fainter = np.where(rng.random(len(values)) < _FAINTER_SHARE, rng.uniform(0.0, _FAINTER_MAX, len(values)), 0.0)
    for name in ("parallax", "pmra", "pmdec", "pm"):
        values[:, _COLUMN[name]] *= 10.0 ** (-0.2 * fainter)
    for name in ("mean_vmag", "phot_g_mean_mag"):
        values[:, _COLUMN[name]] += fainter
    g = np.where(fainter > 0, np.nan_to_num(values[:, _COLUMN["phot_g_mean_mag"]], nan=0.0), 0.0)
    values = _less_certain(values, np.maximum(1.0, 10.0 ** (0.2 * (g - _NOISE_FROM_G))), rng)
    # Follows from the two, which have changed.
    values[fainter > 0, _COLUMN["parallax_over_error"]] = np.nan
    return values


def _less_certain(
    values: NDArray[np.float64], factor: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.float64]:
    """Astrometric errors larger by ``factor`` (n,), and the parallax scattered by its new error where that is not 1."""
    values = values.copy()
    for name in ("parallax_error", "pmra_error", "pmdec_error"):
        values[:, _COLUMN[name]] *= factor
    scatter = rng.normal(size=len(values)) * np.nan_to_num(values[:, _COLUMN["parallax_error"]])
    changed = factor > 1.0
    values[:, _COLUMN["parallax"]] += np.where(changed, scatter, 0.0)
    values[changed, _COLUMN["parallax_over_error"]] = np.nan
    return values
