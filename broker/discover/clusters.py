"""Clusters of one class's embeddings, and whether they are more than noise.

A Gaussian mixture in the space of the first principal components. The Bayesian information criterion says whether
there is more than one component (Fraley & Raftery 2002, JASA 97, 611); it also cuts one skewed cloud in pieces, the
more the more stars there are. So three questions are asked of the divisions that it prefers to one cloud, in its order,
and the first that is stable counts:

- *stable*: fitted to bootstrap samples, does each cluster come again? Mean Jaccard similarity (Hennig 2007, CSDA 52,
  258).
- *beyond one cloud*: are the clusters farther apart than those that the same fit finds in samples of one Gaussian with
  the same covariance? Silhouettes (the idea of Liu et al. 2008, JASA 103, 1281).
- *gap*: is the density between two clusters lower than within either? Without a gap they are ends of a continuum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from scipy.stats import gaussian_kde
from sklearn.decomposition import PCA
from sklearn.metrics import silhouette_score
from sklearn.mixture import GaussianMixture

STABLE: Final = 0.75
"""Mean Jaccard similarity from which Hennig calls a cluster stable."""
SIGNIFICANCE: Final = 0.05
GAP: Final = 0.5
"""Density in the valley between two clusters, of that of the lower peak, below which there is a gap. A uniform arc that
is cut in pieces has valleys of 0.7, since its ends are seen at an angle."""
LEAST: Final = 60
"""Objects, below which nothing is clustered."""
_COMPONENTS: Final = 8
_MOST: Final = 5
Verdict = Literal["subclasses", "continuum", "noise", "one cloud"]
"""``subclasses``: stable, beyond one cloud, with gaps; ``continuum``: without gaps; ``noise``: not stable, or no more
than one cloud gives; ``one cloud``: the criterion prefers a single component."""
_MEANINGS: Final[dict[str, str]] = {
    "subclasses": "groups with gaps between them, which come again in bootstrap samples",
    "continuum": "a stable division without a gap: ends of a continuum, no separate kinds",
    "noise": "a division that does not come again in bootstrap samples, or is no better than one of a single cloud",
    "one cloud": "a single cloud",
}


@dataclass(frozen=True, slots=True, eq=False)
class Clusters:
    """What was found among n embeddings."""

    label: NDArray[np.intp]
    """(n,) cluster of each, the largest is 0; all 0 for one cloud."""
    components: NDArray[np.float64]
    """(n, c) principal components; the first two are drawn."""
    stability: tuple[float, ...]
    """Of each cluster, mean Jaccard similarity over bootstrap samples."""
    silhouette: float
    p_value: float
    """Share of samples of one Gaussian whose silhouette is as large, times ``looked_at``; NaN for one cloud."""
    valley: float
    """Highest, over pairs of clusters, of the density between them relative to the lower peak; NaN for one cloud."""
    looked_at: int
    """Divisions that were tested for their stability."""
    verdict: Verdict
    pca: PCA

    @property
    def meaning(self) -> str:
        """The verdict in words."""
        return _MEANINGS[self.verdict]

    def project(self, embeddings: NDArray[np.float32]) -> NDArray[np.float64]:
        """(m, c) principal components of other embeddings (m, d)."""
        result: NDArray[np.float64] = self.pca.transform(embeddings.astype(np.float64))
        return result

    def belonging(self, components: NDArray[np.float64]) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        """Of others (m, c): the cluster of the nearest star of the class, and whether each lies outside the class.

        Outside is farther from its nearest star than 99 % of the class's stars are from theirs.
        """
        tree = cKDTree(self.components)
        own = tree.query(self.components, k=2)[0][:, 1]
        away, nearest = tree.query(components)
        return self.label[nearest], np.asarray(away > np.quantile(own, 0.99), np.bool_)


def find_clusters(embeddings: NDArray[np.float32], seed: int = 0, draws: int = 50) -> Clusters:
    """Clusters of ``embeddings`` (n, d); raises ValueError for fewer than LEAST."""
    if len(embeddings) < LEAST:
        raise ValueError(f"{len(embeddings)} objects, {LEAST} are needed")
    pca = PCA(min(_COMPONENTS, embeddings.shape[1]), random_state=seed)
    x = pca.fit_transform(embeddings.astype(np.float64))
    candidates = _candidates(x, seed)
    if not candidates:
        nothing = float("nan")
        one = np.zeros(len(x), np.intp)
        return Clusters(one, x, (1.0,), nothing, nothing, nothing, 0, "one cloud", pca)
    rng = np.random.default_rng(seed)
    looked = []
    for label in candidates:
        overlap = np.array([_jaccard(x, label, rng, seed) for _ in range(draws)])
        looked.append((tuple(overlap.mean(axis=0).tolist()), label))
        if min(looked[-1][0]) >= STABLE:
            break
    # Where none is stable, the one that the criterion prefers is shown.
    stability, label = looked[-1] if min(looked[-1][0]) >= STABLE else looked[0]
    count, silhouette = int(label.max()) + 1, _silhouette(x, label)
    cloud = [_silhouette(one, _divided(one, count, seed)) for one in _one_gaussian(x, rng, 2 * draws)]
    # By Bonferroni, since each division that was looked at is another chance to be larger.
    p_value = min(1.0, len(looked) * (1 + sum(other >= silhouette for other in cloud)) / (1 + 2 * draws))
    valley = max(_valley(x, label, a, b) for a in range(count) for b in range(a))
    verdict: Verdict = "subclasses" if valley < GAP else "continuum"
    if min(stability) < STABLE or p_value > SIGNIFICANCE:
        verdict = "noise"
    return Clusters(label, x, stability, silhouette, p_value, valley, len(looked), verdict, pca)


def _candidates(x: NDArray[np.float64], seed: int) -> list[NDArray[np.intp]]:
    """Divisions that the criterion prefers to one cloud, the best first; each part has a twentieth of the objects."""
    one = _mixture(1, seed).fit(x).bic(x)
    found = []
    for count in range(2, _MOST + 1):
        mixture = _mixture(count, seed).fit(x)
        label = _by_size(mixture.predict(x))
        enough = len(np.unique(label)) == count and np.bincount(label).min() >= max(10, len(x) // 20)
        if enough and (criterion := mixture.bic(x)) < one:
            found.append((criterion, label))
    return [label for _, label in sorted(found, key=lambda each: each[0])]


def _mixture(count: int, seed: int) -> GaussianMixture:
    return GaussianMixture(count, covariance_type="full", reg_covar=1e-4, n_init=1, random_state=seed)


def _divided(x: NDArray[np.float64], count: int, seed: int) -> NDArray[np.intp]:
    return np.asarray(_mixture(count, seed).fit_predict(x), np.intp)


def _by_size(label: NDArray[np.intp]) -> NDArray[np.intp]:
    """Numbers of clusters anew, the largest first."""
    values, index, count = np.unique(label, return_inverse=True, return_counts=True)
    rank = np.empty(len(values), np.intp)
    rank[np.argsort(-count, kind="stable")] = np.arange(len(values))
    return rank[index]


def _jaccard(x: NDArray[np.float64], label: NDArray[np.intp], rng: np.random.Generator, seed: int) -> list[float]:
    """Of each cluster the best Jaccard similarity with one of a bootstrap sample, over the objects in the sample."""
    drawn = np.unique(rng.integers(len(x), size=len(x)))
    own, other = label[drawn], _divided(x[drawn], int(label.max()) + 1, seed)
    best = []
    for cluster in range(int(label.max()) + 1):
        mine = own == cluster
        best.append(max(float(np.sum(mine & (other == o)) / np.sum(mine | (other == o))) for o in np.unique(other)))
    return best


def _silhouette(x: NDArray[np.float64], label: NDArray[np.intp]) -> float:
    if len(np.unique(label)) < 2:
        return -1.0
    return float(silhouette_score(x, label, sample_size=min(len(x), 1000), random_state=0))


def _one_gaussian(x: NDArray[np.float64], rng: np.random.Generator, draws: int) -> list[NDArray[np.float64]]:
    centre, covariance = x.mean(axis=0), np.cov(x.T)
    return [rng.multivariate_normal(centre, covariance, size=min(len(x), 1000)) for _ in range(draws)]


def _valley(x: NDArray[np.float64], label: NDArray[np.intp], a: int, b: int) -> float:
    """Lowest density between two clusters, relative to the lower peak, along the axis that separates them best."""
    one, other = x[label == a], x[label == b]
    within = np.cov(one.T) * len(one) + np.cov(other.T) * len(other)
    axis = np.linalg.solve(within + 1e-9 * np.eye(x.shape[1]) * np.trace(within), other.mean(0) - one.mean(0))
    first, second = one @ axis, other @ axis
    ends = np.median(first), np.median(second)
    grid = np.linspace(*ends, 100)
    # Each cluster counts the same: a small one is no smaller peak.
    density = gaussian_kde(first)(grid) + gaussian_kde(second)(grid)
    return float(density.min() / min(density[0], density[-1]))
