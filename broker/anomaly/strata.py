"""Which reference embeddings an object may be compared with: those made of the same, and of about as much of it.

An embedding is the mean of those of the modalities present, so that one of a light curve and catalogue values lies far
from all that are of a light curve alone, one of six points far from those of six hundred, and one of a proper motion
far from those of all that Gaia knows. A distance says something of the object only among embeddings made of the same.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from broker.assemble.inputs import MODALITIES, MetadataInputs, ModelInputs, subset_codes
from broker.records import SOURCE_FEATURES

DETECTION_BINS: Final[tuple[int, ...]] = (5, 10, 20, 50, 100, 200)
"""Least number of photometric points in each bin; the last has no upper end."""
MANY_VALUES: Final = 9
"""Known catalogue values, coordinates included: fewer are a proper motion and what little comes with it."""
LIGHT_CURVE_BIT: Final = 1 << MODALITIES.index("light_curve")
"""In a code of ``subset_codes``, as the next."""
METADATA_BIT: Final = 1 << MODALITIES.index("metadata")


def strata_of(
    modalities: NDArray[np.integer], detections: NDArray[np.integer], values: NDArray[np.integer]
) -> NDArray[np.intp]:
    """(n,) the stratum's number of each object; -1 for objects without any modality.

    ``modalities`` (n,) are codes of ``subset_codes``, ``detections`` (n,) the photometric points used and ``values``
    (n,) the known catalogue values, coordinates included. These two count for nothing where the modality is absent.
    """
    codes = np.asarray(modalities, np.intp)
    length = np.searchsorted(DETECTION_BINS[1:], np.asarray(detections, np.intp), side="right")
    length = np.where(codes & LIGHT_CURVE_BIT, length, 0)
    many = np.where(codes & METADATA_BIT, np.asarray(values, np.intp) >= MANY_VALUES, False)
    return np.where(codes > 0, (codes * len(DETECTION_BINS) + length) * 2 + many, -1)


def strata_of_inputs(inputs: ModelInputs) -> NDArray[np.intp]:
    """(batch,) the strata of a batch of objects."""
    return strata_of(subset_codes(inputs.present), inputs.light_curve.detections, known_values(inputs.metadata))


def known_values(metadata: MetadataInputs) -> NDArray[np.intp]:
    """(batch,) how many values of catalogue and packet are known; those of the light curve itself do not count."""
    counts: NDArray[np.intp] = metadata.known[:, : len(SOURCE_FEATURES)].sum(axis=1)
    return counts


def every_stratum() -> list[int]:
    """The numbers of all strata."""
    codes, detections, values = np.meshgrid(
        np.arange(1, 1 << len(MODALITIES)), np.array(DETECTION_BINS), np.array([0, MANY_VALUES])
    )
    return sorted(set(strata_of(codes.ravel(), detections.ravel(), values.ravel()).tolist()))


def stratum_name(stratum: int) -> str:
    """Such as ``light_curve+metadata, 20 to 49 points, 9 known values or more``, or ``spectrum``."""
    rest, many = divmod(stratum, 2)
    code, length = divmod(rest, len(DETECTION_BINS))
    parts = ["+".join(name for bit, name in enumerate(MODALITIES) if code >> bit & 1)]
    if code & LIGHT_CURVE_BIT:
        first = DETECTION_BINS[length]
        last = length + 1 == len(DETECTION_BINS)
        parts.append(f"{first} points or more" if last else f"{first} to {DETECTION_BINS[length + 1] - 1} points")
    if code & METADATA_BIT:
        parts.append(f"{MANY_VALUES} known values or more" if many else f"fewer than {MANY_VALUES} known values")
    return ", ".join(parts)
