"""Magnitudes to fluxes, for the edges where magnitudes come in: `surveys`, `lightcurves`, training sets."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from broker.records import AB_ZERO_POINT_NJY

POGSON: Final = 2.5 / np.log(10.0)
"""Magnitudes per relative flux change: sigma_m = POGSON sigma_F / F (Pogson 1856)."""


def magnitude_to_flux(
    magnitude: NDArray[np.float64], error: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """AB magnitudes and their errors to flux and flux error in nJy (Oke & Gunn 1983, ApJ 266, 713).

    Vega magnitudes may be given as well where, as in variability, only ratios of flux within a band matter.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # absurd magnitudes become infinite, and nothing worse
        flux = AB_ZERO_POINT_NJY * 10.0 ** (-0.4 * np.asarray(magnitude, np.float64))
        return flux, flux * np.asarray(error, np.float64) / POGSON
