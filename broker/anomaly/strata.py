"""Which reference embeddings an object may be compared with: those made of the same modalities, of similar length.

An embedding is the mean of those of the modalities present, so that one of a light curve and catalogue values lies far
from all that are of a light curve alone, and one of six points far from those of six hundred. A distance says something
about the object only among embeddings that were made of the same.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from broker.assemble.inputs import MODALITIES, subset_codes

DETECTION_BINS: Final[tuple[int, ...]] = (5, 10, 20, 50, 100, 200)
"""Least number of photometric points in each bin; the last has no upper end."""
LIGHT_CURVE_BIT: Final = int(subset_codes(np.array([[name == "light_curve" for name in MODALITIES]]))[0])
"""Bit of the light curve in a code of ``subset_codes``."""


def strata_of(modalities: NDArray[np.integer], detections: NDArray[np.integer]) -> NDArray[np.intp]:
    """(n,) the stratum's number of each object; -1 for objects without any modality.

    ``modalities`` (n,) are codes of ``subset_codes``, ``detections`` (n,) the photometric points used, which count for
    nothing where there is no light curve.
    """
    codes = np.asarray(modalities, np.intp)
    length = np.searchsorted(DETECTION_BINS[1:], np.asarray(detections, np.intp), side="right")
    length = np.where(codes & LIGHT_CURVE_BIT, length, 0)
    return np.where(codes > 0, codes * len(DETECTION_BINS) + length, -1)


def every_stratum() -> list[int]:
    """The numbers of all strata."""
    codes = np.repeat(np.arange(1, 1 << len(MODALITIES)), len(DETECTION_BINS))
    return sorted(set(strata_of(codes, np.tile(DETECTION_BINS, len(codes) // len(DETECTION_BINS))).tolist()))


def stratum_name(stratum: int) -> str:
    """Such as ``light_curve+metadata, 20 to 49 points``, or ``spectrum``."""
    code, length = divmod(stratum, len(DETECTION_BINS))
    names = "+".join(name for bit, name in enumerate(MODALITIES) if code >> bit & 1)
    if not code & LIGHT_CURVE_BIT:
        return names
    first = DETECTION_BINS[length]
    if length + 1 == len(DETECTION_BINS):
        return f"{names}, {first} points or more"
    return f"{names}, {first} to {DETECTION_BINS[length + 1] - 1} points"
