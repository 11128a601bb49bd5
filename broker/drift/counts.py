"""What is counted of each alert, by survey and band: whole numbers that add up over batches, workers and days.

One vector of SIZE numbers for each survey and band holds it all: histograms of what is one number, and sums and sums of
products of what is a vector. So it needs no memory of single alerts, and the counts of two workers are added.

- ``classes``: the published class, Other and NotClassified among them.
- ``anomaly``, ``probability``: combined anomaly score, and the probability of the leading class.
- ``embedding``: the fused embedding, along the principal axes of the reference set and as random Fourier features of
  these (Rahimi & Recht 2007), each less its mean among reference stars of the same stratum, so that short light curves
  are no drift: an object with fewer points is compared with stars of as few.
- ``brightness``: of the detection that caused the alert, less the mean of the object's other ones in the band, mag.
- ``colour``: mean of the object's detections in the band less that in the survey's other bands, mag.
- ``error``: that detection's relative error of flux, as a logarithm to base ten.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from broker.anomaly.reference_set import ReferenceSet
from broker.bands import BAND_CODE, BANDS
from broker.blas import one_blas_thread
from broker.photometry import POGSON
from broker.records import Alert, Annotation, ObjectState, PhotometryKind
from broker.taxonomy import CLASS_NAMES, NOT_CLASSIFIED, OTHER

LAYOUT: Final = 1
"""Of the numbers in a vector; counts of two layouts are never added."""
CLASSES: Final = (*CLASS_NAMES, OTHER.name, NOT_CLASSIFIED.name)
AXES: Final = 8
"""Principal axes of the reference set; what is seen along them is the classes and what lies beside them."""
FREQUENCIES: Final = 8
"""Random Fourier features."""
FEATURES: Final = AXES + FREQUENCIES
SCALE: Final = 1000
"""Features are counted in steps of 1 / SCALE."""
_PRODUCTS: Final = FEATURES * (FEATURES + 1) // 2
_BRIGHTNESS: Final = np.concatenate(
    [np.arange(-1.0, -0.5, 0.1), np.arange(-0.5, 0.501, 0.05), np.arange(0.6, 1.05, 0.1)]
)
_COLOUR: Final = np.arange(-3.0, 3.01, 0.1)
_ERROR: Final = np.arange(-3.5, 0.51, 0.1)
_SHARES: Final = np.arange(0.05, 0.975, 0.05)
EDGES: Final = {
    "anomaly": _SHARES, "probability": _SHARES, "brightness": _BRIGHTNESS, "colour": _COLOUR, "error": _ERROR,
}  # fmt: skip
"""Between the bins of each histogram; the first and the last bin have no outer end."""
_SIZES: Final = {"classes": len(CLASSES), **{name: len(edges) + 1 for name, edges in EDGES.items()}}
_POINTS: Final = 64
"""Latest points of a light curve that are looked at: the cost of an alert has a bound."""
_SAME_TIME: Final = 1e-5
"""Days between the detection that caused an alert and its point in the light curve: under a second."""
_FARTHEST: Final = 6.0
"""Standard deviations: what lies farther along an axis counts as if there, so that no single alert moves a mean."""
_SEED: Final = 20_150_624
_BANDWIDTH: Final = float(np.sqrt(2 * AXES))
"""Of the Gaussian kernel: about the median distance between two reference stars in standardised axes."""


def _slices() -> dict[str, slice]:
    found, at = {}, 1
    for name, size in (*_SIZES.items(), ("embedding", 1 + FEATURES + _PRODUCTS)):
        found[name] = slice(at, at + size)
        at += size
    return found


SLICES: Final = _slices()
"""Where each quantity is in a vector; the first number is that of alerts. Of ``embedding``: how many, the sums of the
features, and those of their products (upper triangle by rows)."""
SIZE: Final = SLICES["embedding"].stop
Counts = dict[tuple[str, str], NDArray[np.int64]]
"""(SIZE,) by survey and band."""


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """What the embedding's features are made by: of one reference set, and so of one model."""

    axes: NDArray[np.float32]
    """(d, AXES) principal axes of the scatter within strata, in units of it."""
    waves: NDArray[np.float32]
    """(AXES, FREQUENCIES)"""
    phases: NDArray[np.float32]
    middle: dict[int, NDArray[np.float32]]
    """(AXES,) of each stratum along the axes, and of all stars together under -1."""
    level: dict[int, NDArray[np.float32]]
    """(FREQUENCIES,) mean of each stratum's Fourier features, as ``middle``."""

    @classmethod
    def of(cls, reference: ReferenceSet) -> Features:
        """Those of a reference set; the same for every worker, whichever made them."""
        parts = {number: stratum.embeddings for number, stratum in reference.strata.items() if len(stratum.embeddings)}
        with one_blas_thread():
            within = np.concatenate([own - own.mean(axis=0) for own in parts.values()])
            values, vectors = np.linalg.eigh((within.T @ within).astype(np.float64) / len(within))
            # The sign of an axis is any: the largest component is made positive, so that all workers count alike.
            top = vectors[:, ::-1][:, :AXES]
            top = top * np.sign(top[np.abs(top).argmax(axis=0), np.arange(top.shape[1])])
            axes = (top / np.sqrt(np.maximum(values[::-1][:AXES], 1e-12))).astype(np.float32)
        rng = np.random.default_rng(_SEED)
        waves = (rng.standard_normal((axes.shape[1], FREQUENCIES)) / _BANDWIDTH).astype(np.float32)
        phases = rng.uniform(0, 2 * np.pi, FREQUENCIES).astype(np.float32)
        parts[-1] = reference.embeddings
        middle = {number: own.mean(axis=0) @ axes for number, own in parts.items()}
        level = {
            number: np.cos(_clipped(own @ axes - middle[number]) @ waves + phases).mean(axis=0)
            for number, own in parts.items()
        }
        return cls(axes, waves, phases, middle, level)

    def __call__(self, embeddings: NDArray[np.float32], strata: NDArray[np.intp]) -> NDArray[np.float32]:
        """(n, FEATURES) of embeddings (n, d) of objects in the strata (n,)."""
        own = [number if number in self.middle else -1 for number in strata.tolist()]
        with one_blas_thread():
            along = embeddings @ self.axes
        along = _clipped(along - np.stack([self.middle[number] for number in own]))
        waves = np.cos(along @ self.waves + self.phases) - np.stack([self.level[number] for number in own])
        return np.concatenate([along, waves], axis=1)


def _clipped(along: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.clip(along, -_FARTHEST, _FARTHEST)


def count(
    features: Features,
    alerts: Sequence[Alert],
    states: Sequence[ObjectState],
    annotations: Sequence[Annotation],
    embeddings: NDArray[np.float32],
    strata: NDArray[np.intp],
) -> Counts:
    """Counts of a batch of n alerts; ``embeddings`` (n, d), zeros where there was nothing to embed."""
    names: dict[tuple[str, str], int] = {}
    group = np.array([names.setdefault((alert.survey, alert.band), len(names)) for alert in alerts], np.intp)
    vectors = np.zeros((len(names), SIZE), np.int64)
    vectors[:, 0] = np.bincount(group, minlength=len(names))
    classes = np.array([_CLASS_INDEX[annotation.best_class] for annotation in annotations], np.intp)
    _add(vectors, group, classes, np.ones(len(group), np.bool_), "classes")
    nan = float("nan")
    found = {
        "anomaly": np.array([nan if a.combined_anomaly is None else a.combined_anomaly for a in annotations]),
        "probability": np.array([max(a.probabilities) if a.classified else nan for a in annotations]),
        **_photometry(alerts, states),
    }
    for name, values in found.items():
        _add(vectors, group, np.searchsorted(EDGES[name], values, side="right"), ~np.isnan(values), name)
    embedded = np.flatnonzero(embeddings.any(axis=1))
    if len(embedded):
        steps = np.rint(features(embeddings[embedded], strata[embedded]) * SCALE).astype(np.float64)
        for number in range(len(names)):
            own = steps[group[embedded] == number]
            # Below 2^53, and so exact.
            products = (own.T @ own)[_UPPER]
            vectors[number, SLICES["embedding"]] = [len(own), *own.sum(axis=0), *products]
    return dict(zip(names, vectors, strict=True))


_CLASS_INDEX: Final = {name: index for index, name in enumerate(CLASSES)}
_UPPER: Final = np.triu_indices(FEATURES)
_SURVEY_CODE: Final = np.array(
    [sorted({b.split(":")[0] for b in BANDS}).index(b.split(":")[0]) for b in BANDS], np.intp
)


def _add(
    vectors: NDArray[np.int64],
    group: NDArray[np.intp],
    bins: NDArray[np.intp],
    known: NDArray[np.bool_],
    name: str,
) -> None:
    size = _SIZES[name]
    flat = np.bincount(group[known] * size + bins[known], minlength=len(vectors) * size)
    vectors[:, SLICES[name]] = flat.reshape(len(vectors), size)


def _photometry(alerts: Sequence[Alert], states: Sequence[ObjectState]) -> dict[str, NDArray[np.float64]]:
    """(n,) ``brightness``, ``colour`` and ``error``, NaN where there is none; from total fluxes that are positive."""
    curves = [state.light_curve for state in states]
    size = len(curves)
    row = np.repeat(np.arange(size), [min(len(curve), _POINTS) for curve in curves])
    mjd = np.concatenate([curve.mjd[-_POINTS:] for curve in curves])
    flux = np.concatenate([curve.flux[-_POINTS:] for curve in curves])
    reference = np.concatenate([curve.reference_flux[-_POINTS:] for curve in curves])
    error = np.concatenate([curve.flux_error[-_POINTS:] for curve in curves])
    band = np.concatenate([curve.band[-_POINTS:] for curve in curves])
    kind = np.concatenate([curve.kind[-_POINTS:] for curve in curves])
    total = flux + reference  # NaN where there is no reference: a difference alone is no brightness
    used = np.flatnonzero((kind == PhotometryKind.DETECTION) & (total > 0))
    row, total, band = row[used], total[used].astype(np.float64), band[used]
    magnitude = -POGSON * np.log(total)
    alert_band = np.array([BAND_CODE[alert.band] for alert in alerts], np.intp)[row]
    same = band == alert_band
    newest = same & (np.abs(mjd[used] - np.array([alert.mjd for alert in alerts])[row]) < _SAME_TIME)
    other = ~same & (_SURVEY_CODE[band] == _SURVEY_CODE[alert_band])

    def mean(which: NDArray[np.bool_]) -> NDArray[np.float64]:
        number = np.bincount(row[which], minlength=size)
        summed = np.bincount(row[which], magnitude[which], minlength=size)
        return np.where(number > 0, summed / np.maximum(number, 1), np.nan)

    relative = np.full(size, np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        relative[row[newest]] = np.log10(error[used][newest] / total[newest])
    relative[~np.isfinite(relative)] = np.nan
    return {"brightness": mean(newest) - mean(same & ~newest), "colour": mean(same) - mean(other), "error": relative}
