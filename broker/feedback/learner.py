"""A correction of anomaly scores, learned from answers: ``interesting`` or ``boring``.

The log-odds that an object is interesting are BETA (s - TYPICAL) + f: s is its surprise, minus the logarithm of the
share of known stars that are as strange in the combined score, and f a Gaussian process in embedding space with zero
mean (Rasmussen & Williams 2006, chapter 3: classification, the mode of the posterior, by Newton's method). So without
answers the order is that of the unsupervised score, which is the prior; each answer moves the objects around it, by
at most ``AMPLITUDE / BETA`` nats; and far from all answers nothing changes. It is active anomaly detection in the
sense of Das et al. (2016, "Incorporating expert feedback into active anomaly discovery") and of SNAD's PineForest
(Kornilov et al. 2025), on embeddings instead of the leaves of trees.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from broker.assemble.inputs import MODALITIES
from broker.blas import one_blas_thread
from broker.errors import ConfigurationError
from broker.npz import from_npz, to_npz

FORMAT: Final = 1
BETA: Final = 0.5
"""Log-odds of being interesting for each nat of surprise."""
TYPICAL: Final = 6.0
"""Surprise at which half of the objects would be interesting: 1 in 400 known stars is as strange."""
AMPLITUDE: Final = 4.0
"""Variance of f, and with it the largest |f| that a single answer can cause, as its log-likelihood has a slope of 1 at
most."""
LENGTH: Final = 0.5
"""Distance of unit vectors over which answers hold (a Gaussian of this width). With AMPLITUDE and BETA it was chosen on
other splits of the stars of `python -m training evaluate-feedback`."""
MOST: Final = 500
"""Answers that are learned from, the latest: they bound what a batch costs."""
NOTICEABLE: Final = 0.1
"""Nats, of what one answer and all together change: what is below is not said to be changed."""
_KNEE: Final = 8.0
_STEPS: Final = 100
_UNPACKED: Final = 64 << 20
"""Bytes of a correction's arrays: MOST answers of three modalities with 4096 numbers each have 12 MB, 8 MiB of zeros
would be 8 GB."""
_ROUNDING: Final = 1e-3
"""Of weights, between two machines: products of vectors are of 32 bits, and summed in an order of the processor's."""
_LONGEST: Final = 1.1
"""Of a vector, whose length is 1 but for rounding: the kernel grows exponentially with the product of two."""
_ARRAYS: Final = ("format", "model", "reference_version", "made", "vectors", "weights")


@dataclass(frozen=True, slots=True, eq=False)
class Corrected:
    """n objects after the answers."""

    score: NDArray[np.float64]
    """(n,) 0 to 1; NaN where there was no score before."""
    change: NDArray[np.float64]
    """(n,) what was added to the surprise, nats; 0 where no answer is near."""
    answers: NDArray[np.intp]
    """(n,) how many answers raised it where ``change`` is positive, lowered it where it is negative."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Correction:
    """What was learned from m answers, for the embeddings of one model and the scores of one reference set."""

    model: str
    reference_version: str
    vectors: NDArray[np.float32]
    """(m, 3, d) embeddings of what was answered about, by modality: unit vectors, zeros where absent."""
    weights: NDArray[np.float64]
    """(m,) of each answer in f, between -1 and 1: positive for ``interesting``."""
    made: float = 0.0
    """MJD UTC when it was learned."""
    present: NDArray[np.float32] = field(init=False)

    def __post_init__(self) -> None:
        """Find which modalities there are."""
        object.__setattr__(self, "present", _weights_of(self.vectors))

    def __len__(self) -> int:
        return len(self.weights)

    def fits(self, model: str, reference_version: str) -> bool:
        """Whether it may be applied to scores of this model and reference set."""
        return (self.model, self.reference_version) == (model, reference_version)

    def teaches_as(self, other: Correction) -> bool:
        """Whether both are of the same answers, and change scores alike but for rounding errors."""
        return (
            other.fits(self.model, self.reference_version)
            and self.made == other.made
            and np.array_equal(self.vectors, other.vectors)
            and np.allclose(self.weights, other.weights, rtol=0.0, atol=_ROUNDING)
        )

    def apply(self, score: NDArray[np.float64], vectors: NDArray[np.float32]) -> Corrected:
        """Combined anomaly scores (n,) of objects with ``vectors`` (n, 3, d) as they are after the answers."""
        change, answers = np.zeros(len(score)), np.zeros(len(score), np.intp)
        if len(self):
            parts = kernel(vectors, self.vectors, self.present) * (self.weights / BETA)
            change = parts.sum(axis=1)
            change[np.abs(change) < NOTICEABLE] = 0.0
            answers = (parts * np.sign(change)[:, None] >= NOTICEABLE / len(self)).sum(axis=1)
        return Corrected(changed(score, change), change, answers)

    def to_bytes(self) -> bytes:
        """As one .npz file."""
        return to_npz(
            format=np.array(FORMAT, np.int32),
            model=self.model,
            reference_version=self.reference_version,
            made=self.made,
            vectors=self.vectors.astype(np.float16),
            weights=self.weights,
        )

    @staticmethod
    def from_bytes(data: bytes, origin: str) -> Correction:
        """The inverse of ``to_bytes``; raises ConfigurationError, naming ``origin``, for anything else."""
        refusal = f"{origin} is no correction of anomaly scores"
        arrays = from_npz(data, _ARRAYS, refusal, most=_UNPACKED)
        try:
            vectors, weights = arrays["vectors"].astype(np.float32), arrays["weights"].astype(np.float64)
            made, version = float(arrays["made"]), int(arrays["format"])
        except (TypeError, ValueError, OverflowError) as error:
            raise ConfigurationError(f"{refusal}: {error!r}") from error
        if version != FORMAT:
            raise ConfigurationError(f"{origin} is a correction of format {version}, this release reads {FORMAT}")
        if (
            vectors.ndim != 3
            or vectors.shape[:2] != (len(weights), len(MODALITIES))
            or weights.ndim != 1
            or len(weights) > MOST
            or not (np.isfinite(vectors).all() and np.isfinite(weights).all() and 0.0 <= made < 1e6)
            or np.abs(weights).max(initial=0.0) > 1.0
            or np.linalg.norm(vectors, axis=2).max(initial=0.0) > _LONGEST
        ):
            raise ConfigurationError(f"{origin} cannot be used as a correction of anomaly scores: {vectors.shape}")
        return Correction(str(arrays["model"]), str(arrays["reference_version"]), vectors, weights, made)


def learn(
    model: str,
    reference_version: str,
    vectors: NDArray[np.float32],
    score: NDArray[np.float64],
    interesting: NDArray[np.bool_],
    made: float = 0.0,
) -> Correction:
    """What m answers teach, the latest last: ``vectors`` (m, 3, d), combined ``score`` (m,) and answers (m,).

    Several answers about one object count as several, so that two people who contradict each other cancel out.
    """
    vectors, score, interesting = vectors[-MOST:], score[-MOST:], interesting[-MOST:]
    covariance = kernel(vectors, vectors)
    prior = BETA * (compressed(surprise(score)) - TYPICAL)
    weights = _mode(covariance, prior, interesting.astype(np.float64))
    return Correction(model, reference_version, vectors.astype(np.float16).astype(np.float32), weights, made)


def _mode(
    covariance: NDArray[np.float64], prior: NDArray[np.float64], target: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Weights (m,) of the kernel at the mode of the posterior, where they are the residuals target - p."""
    f, identity = np.zeros(len(target)), np.eye(len(target))
    for _ in range(_STEPS):
        p = 1.0 / (1.0 + np.exp(-(prior + f)))
        root = np.sqrt(p * (1.0 - p))
        b = root * root * f + (target - p)
        a = b - root * np.linalg.solve(identity + root[:, None] * covariance * root, root * (covariance @ b))
        before, f = f, covariance @ a
        if np.abs(f - before).max(initial=0.0) < 1e-9:
            break
    return np.asarray(np.clip(target - 1.0 / (1.0 + np.exp(-(prior + f))), -1.0, 1.0), np.float64)


def kernel(
    a: NDArray[np.float32], b: NDArray[np.float32], weights_b: NDArray[np.float32] | None = None
) -> NDArray[np.float64]:
    """Covariance (n, m) of f between ``a`` (n, 3, d) and ``b`` (m, 3, d).

    AMPLITUDE times the mean over the modalities of both of a Gaussian of their distance; what has no modality in common
    has none. A sum of products of kernels, and so positive definite whatever is absent.
    """
    weights_a = _weights_of(a)
    weights_b = _weights_of(b) if weights_b is None else weights_b
    total = np.zeros((len(a), len(b)))
    with one_blas_thread():
        for column in range(len(MODALITIES)):
            rows, others = np.flatnonzero(weights_a[:, column]), np.flatnonzero(weights_b[:, column])
            if len(rows) and len(others):
                # |a - b|^2 = 2 - 2 a.b of unit vectors
                near = np.exp((a[rows, column] @ b[others, column].T - 1.0) / LENGTH**2)
                near *= weights_a[rows, column, None] * weights_b[others, column]
                total[np.ix_(rows, others)] += near
    return AMPLITUDE * total


def _weights_of(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n, 3) 1 / sqrt of the number of modalities where there is one, else 0: an object is like itself by 1."""
    there = vectors.any(axis=2)
    return np.asarray(there / np.sqrt(np.maximum(there.sum(axis=1, keepdims=True), 1)), np.float32)


def surprise(score: NDArray[np.float64]) -> NDArray[np.float64]:
    """Minus the logarithm of the share of known stars that are as strange, from the score 0 to 1."""
    return np.asarray(-np.log1p(-np.clip(score, 0.0, 1.0 - 1e-15)), np.float64)


def compressed(nats: NDArray[np.float64]) -> NDArray[np.float64]:
    """Surprise that grows by its logarithm beyond 8: answers could not lower what is stranger by any amount."""
    return np.asarray(np.where(nats > _KNEE, _KNEE + np.log1p(np.maximum(nats - _KNEE, 0.0)), nats), np.float64)


def changed(score: NDArray[np.float64], change: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scores (n,) after a change of their surprise in nats; as they are where it is 0.

    What is lowered by a nat or more is lowered from its compressed surprise.
    """
    nats = surprise(score)
    nats = nats - (nats - compressed(nats)) * np.clip(-change, 0.0, 1.0)
    after = -np.expm1(-np.maximum(nats + change, 0.0))
    return np.asarray(np.where(change == 0.0, score, after), np.float64)


def vectors_of(
    fused: NDArray[np.float32], by_modality: NDArray[np.float32] | None, present: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """(n, 3, d) of each modality that is ``present`` (n, 3), zeros elsewhere.

    The fused embedding of what has one modality is that modality's; of several without ``by_modality`` there are none.
    """
    if by_modality is not None:
        return np.asarray(by_modality * present[:, :, None], np.float32)
    single = present & (present.sum(axis=1, keepdims=True) == 1)
    return np.asarray(fused[:, None, :] * single[:, :, None], np.float32)


def digest(data: bytes) -> str:
    """What tells two corrections apart."""
    return hashlib.sha256(data).hexdigest()
