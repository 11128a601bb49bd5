"""Light curves in fluxes: which columns hold them, in what unit, and their magnitudes.

Fluxes become magnitudes, so that all that is known of magnitudes (codes, limits, noise) holds for them, too. Where
the unit is not known (Lightkurve's normalised flux, counts), the zero point is arbitrary: the shape is used all the
same, and only the brightness, which the model does not see, means nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from broker.photometry import POGSON
from broker.records import AB_ZERO_POINT_NJY

Array = NDArray[np.float64]

PAIRS: Final = (
    ("pdcsapflux", "pdcsapfluxerr"),
    ("kspsapflux", "kspsapfluxerr"),
    ("sciencefluxtotal", "sciencefluxtotalerr"),
    ("scienceflux", "sciencefluxerr"),
    ("psfflux", "psffluxerr"),
    ("ujy", "dujy"),
    ("flux", "fluxerr"), ("flux", "fluxerror"), ("flux", "eflux"), ("flux", "fluxunc"), ("flux", "fluxuncertainty"),
    ("flux", "dflux"), ("flux", "fluxsigma"), ("flux", "sigflux"), ("flux", "error"), ("flux", "err"),
    ("sapflux", "sapfluxerr"),
)  # fmt: skip
"""Plain names of a flux and its error, the best first: TESS and Kepler's pipelines with systematics removed before
those without, ATLAS's microjansky, Rubin's nanojansky."""
ARBITRARY: Final = 25.0
"""Magnitude of a flux of 1 in a unit that is not known."""
_NJY: Final = ("sciencefluxtotal", "scienceflux", "psfflux")
_JY: Final = 2.5 * np.log10(AB_ZERO_POINT_NJY / 1e9)
"""AB magnitude of 1 Jy."""
_UNITS: Final = {
    "njy": _JY + 22.5, "ujy": _JY + 15.0, "µjy": _JY + 15.0, "μjy": _JY + 15.0, "mjy": _JY + 7.5, "jy": _JY,
}  # fmt: skip
_MISSIONS: Final = {"tess": ("tess:T", 20.44), "kepler": ("kepler:Kp", 25.10), "k2": ("kepler:Kp", 25.10)}
"""Band, and magnitude of 1 electron a second: TESS Instrument Handbook (2018), section 7.6; Kepler: 1.74e5 e/s have
Kp = 12 (Kepler Instrument Handbook, KSCI-19033, section 4.1)."""


def find_pair(plain_names: Sequence[str]) -> tuple[int, int] | None:
    """Places of the flux and its error among the plain names of columns, None where there are none."""
    for flux, error in PAIRS:
        if flux in plain_names and error in plain_names:
            return plain_names.index(flux), plain_names.index(error)
    return None


def mission_of(header: Mapping[str, Any]) -> str | None:
    """The mission whose file this is, by its header: a key of the bands and zero points of missions."""
    for key in ("TELESCOP", "MISSION"):
        name = str(header.get(key, "")).strip().lower()
        if name in _MISSIONS:
            return name
    return None


def band_of(mission: str) -> str:
    """The one band of a mission."""
    return _MISSIONS[mission][0]


def zero_point(plain_name: str, name: str, unit: str | None, mission: str | None) -> float | None:
    """Magnitude of a flux of 1 in a column, None where its unit is not known."""
    inside = re.search(r"[\[(](.*?)[\])]", name)
    for text in (unit, inside[1] if inside else None, plain_name):
        if text is not None and (found := _UNITS.get(text.strip().lower().replace("micro", "u"))) is not None:
            return float(found)
    if (
        mission is not None
        and unit is not None
        and re.fullmatch(r"(e-|electrons?)\s*(/\s*s|s-1|s\*\*-1)", unit.strip())
    ):
        return _MISSIONS[mission][1]
    return _UNITS["njy"] if plain_name in _NJY else None


def error_scale(column: str, unit: str | None, flux_unit: str | None, zero: float | None) -> float | None:
    """By what errors are multiplied to be in the unit of their fluxes; None where that is not known.

    ``zero`` is the magnitude of a flux of 1, None where that unit is not known. Errors without a unit have the fluxes'.
    """
    own = zero_point("", column, unit, None)
    if (unit is None and (own is None or zero is None)) or unit == flux_unit:
        return 1.0
    return None if own is None or zero is None else float(10 ** (0.4 * (zero - own)))


def to_magnitudes(flux: Array, error: Array, zero: float) -> tuple[Array, Array]:
    """Magnitudes (n,) and their errors (n,); NaN where the flux is not above 0."""
    positive = flux > 0
    with np.errstate(invalid="ignore", divide="ignore"):
        magnitude = np.where(positive, zero - 2.5 * np.log10(np.where(positive, flux, 1.0)), np.nan)
        return magnitude, np.where(positive, POGSON * error / np.where(positive, flux, 1.0), error)
