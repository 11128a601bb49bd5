"""The bands of all surveys, each with its wavelength, which is what a band is to the model: for readers and model.

Effective wavelengths for Vega's spectrum are those of the SVO Filter Profile Service (Rodrigo & Solano 2020,
https://svo2.cab.inta-csic.es/theory/fps/), rounded to 1 nm; EROS-2's are from Tisserand et al. (2007, A&A 469, 387).
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

_BANDS: Final[tuple[tuple[str, int], ...]] = (
    ("ztf:g", 475), ("ztf:r", 637), ("ztf:i", 783),
    ("lsst:u", 369), ("lsst:g", 473), ("lsst:r", 614), ("lsst:i", 750), ("lsst:z", 867), ("lsst:y", 971),
    ("asas:V", 547), ("css:V", 547),  # Catalina observes without a filter and gives magnitudes on the V scale
    ("sdss:u", 361), ("sdss:g", 467), ("sdss:r", 614), ("sdss:i", 746), ("sdss:z", 892),
    ("ps1:g", 481), ("ps1:r", 616), ("ps1:i", 750), ("ps1:z", 867), ("ps1:y", 961),
    ("gaia:G", 582), ("gaia:BP", 504), ("gaia:RP", 762),
    ("asassn:V", 547), ("asassn:g", 475),
    ("atlas:c", 518), ("atlas:o", 663),
    ("johnson:U", 355), ("johnson:B", 437), ("johnson:V", 547), ("cousins:R", 641), ("cousins:I", 787),
    ("tess:T", 745), ("kepler:Kp", 599), ("hipparcos:Hp", 502),
    ("ogle:V", 535), ("ogle:I", 788),
    ("eros:B", 570), ("eros:R", 770),
)  # fmt: skip
"""Name and effective wavelength in nm. The position in this tuple is the band's code in stored light curves: append,
never reorder."""

BANDS: Final[tuple[str, ...]] = tuple(name for name, _ in _BANDS)
BAND_CODE: Final[dict[str, int]] = {name: code for code, name in enumerate(BANDS)}
_VEGA: Final[dict[str, float]] = {
    "asas:V": 0.02, "css:V": 0.02, "asassn:V": 0.02, "johnson:U": 0.79, "johnson:B": -0.09, "johnson:V": 0.02,
    "cousins:R": 0.21, "cousins:I": 0.45, "gaia:G": 0.11, "gaia:BP": 0.02, "gaia:RP": 0.36, "hipparcos:Hp": 0.02,
    "tess:T": 0.37, "ogle:V": 0.02, "ogle:I": 0.45, "eros:B": 0.05, "eros:R": 0.43,
}  # fmt: skip
"""AB minus Vega magnitude (Blanton & Roweis 2007, AJ 133, 734, table 1; Gaia: Riello et al. 2021, A&A 649, A3,
table 3, the difference of its two zero points; TESS, EROS: of the nearest Johnson-Cousins bands)."""
AB_OFFSET: Final[NDArray[np.float64]] = np.array([_VEGA.get(name, 0.0) for name in BANDS])
"""(len(BANDS),) what to add to a magnitude in the survey's own system to have it in AB, for colours between bands."""
WAVELENGTH: Final[NDArray[np.float64]] = np.array([wavelength for _, wavelength in _BANDS], np.float64)
"""(len(BANDS),) effective wavelengths, nm."""
