"""What an object's embeddings and probabilities say of how strange it is, before it is compared with other stars.

- ``neighbours``: mean distance to the k nearest reference embeddings (Ramaswamy et al. 2000; Sun et al. 2022, arXiv
  2204.06507, for embeddings).
- ``mahalanobis``: squared distance to the nearest class, in units of the scatter that all classes share (Lee et al.
  2018, arXiv 1807.03888).
- ``centroid``: 1 - cosine to the nearest class centroid (Rizhko & Bloom 2025, arXiv 2411.08842, section 5).
- ``uncertainty``: entropy of the ten probabilities (Hendrycks & Gimpel 2017, arXiv 1610.02136, as entropy).
- ``disagreement``: how little the classes that two modalities point to have in common, the worst pair: 1 - the
  Bhattacharyya coefficient of their probabilities by centroid.
- ``catalogue``: 1 - the probability of the class that a catalogue of known variable stars names.
- ``class_neighbours``: mean distance to the k nearest stars of each class, in units of the class's own spacing,
  weighted by the probabilities of the classes; the mean of two spaces, the embedding's and that of ``mahalanobis``
  (``class_stars.py``).
- ``density``: minus the logarithm of the sum over reference embeddings of exp(cosine / DENSITY_TEMPERATURE), a kernel
  density (Parzen 1962) with a wide kernel: large where stars of all classes together are few.
- ``shape``: mean distance to the k nearest stars by period, amplitude and shape of the light curve (``shape.py``).

The first three are of each modality alone (``light_curve.neighbours``) and of all together (``all.neighbours``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from broker.anomaly.class_stars import ClassStars, class_numbers
from broker.anomaly.reference_set import ReferenceSet
from broker.anomaly.scores import nearest
from broker.anomaly.shape import Shapes, shapes_of
from broker.anomaly.strata import LIGHT_CURVE_BIT, METADATA_BIT, known_values, strata_of
from broker.assemble.inputs import MODALITIES, ModelInputs, subset_codes
from broker.blas import one_blas_thread
from broker.taxonomy import CLASS_NAMES

DISTANCES: Final = ("neighbours", "mahalanobis", "centroid")
OTHERS: Final = ("uncertainty", "disagreement", "catalogue", "shape", "class_neighbours", "density")
SPACES: Final = ("all", *MODALITIES)
DENSITY_TEMPERATURE: Final = 0.1
"""Of the kernel, in cosines. Chosen on one half of the test stars of classes left out, of 0.1, 0.2 and 0.4."""
_TEMPERATURE: Final = 0.07
"""Of the probabilities by centroid: CLIP's (Radford et al. 2021, arXiv 2103.00020), with which the spaces were made."""


@dataclass(frozen=True, slots=True, eq=False)
class ClassCentres:
    """The classes of one stratum: c of them."""

    unit: NDArray[np.float32]
    """(c, d) unit vectors."""
    whitened: NDArray[np.float32]
    """(c, p) means in the whitened space of the stratum's modalities."""
    class_index: NDArray[np.intp]
    """(c,) positions in CLASSES."""
    stars: ClassStars
    """Those of the stratum."""
    whitened_stars: ClassStars
    """The same in the whitened space."""


def class_centres(reference: ReferenceSet, whitening: NDArray[np.float32]) -> dict[int, ClassCentres]:
    """By the number of a stratum that can give scores; ``whitening`` (7, p, d) as ``Calibration`` has it."""
    found = {}
    for number, stratum in reference.strata.items():
        if stratum.problem is not None:
            continue
        rows = slice(stratum.first, stratum.first + len(stratum.embeddings))
        label = class_numbers(reference.class_names[rows].astype(str))
        present = np.unique(label)
        means = np.stack([stratum.embeddings[label == i].mean(axis=0) for i in present.tolist()])
        unit = means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
        code = int(reference.modalities[stratum.first])
        axes = whitening[code - 1].T
        found[number] = ClassCentres(
            unit.astype(np.float32), (means @ axes).astype(np.float32), present,
            ClassStars.of(stratum.embeddings, label, reference.k),
            ClassStars.of(stratum.embeddings @ axes, label, reference.k),
        )  # fmt: skip
    return found


@dataclass(frozen=True, slots=True, eq=False)
class Objects:
    """n objects that are scored."""

    embeddings: NDArray[np.float32]
    """(n, d) of all modalities together, unit vectors."""
    by_modality: NDArray[np.float32] | None
    """(n, 3, d) of each; None where the engine does not say."""
    probabilities: NDArray[np.float32]
    """(n, 10)."""
    present: NDArray[np.bool_]
    """(n, 3)."""
    detections: NDArray[np.integer]
    values: NDArray[np.integer]
    """(n,) known catalogue values, coordinates included."""
    doubt: NDArray[np.float64]
    """(n,) 1 - the probability of the class that a catalogue of known variable stars names; NaN where none does."""
    shapes: NDArray[np.float32]
    """(n, SHAPE) as ``shapes_of``; NaN where there is none."""

    @staticmethod
    def of(
        inputs: ModelInputs,
        embeddings: NDArray[np.float32],
        by_modality: NDArray[np.float32] | None,
        probabilities: NDArray[np.float32],
        doubt: NDArray[np.float64],
    ) -> Objects:
        """The objects of ``inputs`` with what the model says of them."""
        points = inputs.light_curve.detections
        return Objects(
            embeddings, by_modality, probabilities, inputs.present, points, known_values(inputs.metadata), doubt,
            shapes_of(inputs.light_curve.features, points),
        )  # fmt: skip

    def take(self, rows: NDArray[np.intp]) -> Objects:
        """Some of the objects."""
        return Objects(
            self.embeddings[rows], None if self.by_modality is None else self.by_modality[rows],
            self.probabilities[rows], self.present[rows], self.detections[rows], self.values[rows], self.doubt[rows],
            self.shapes[rows],
        )  # fmt: skip

    @staticmethod
    def joined(parts: Sequence[Objects]) -> Objects:
        """Several, one at least, as one; ``by_modality`` where all have it."""
        each = [part.by_modality for part in parts]
        several = [one for one in each if one is not None]
        columns = (
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("probabilities", "present", "detections", "values", "doubt", "shapes")
        )
        return Objects(
            np.concatenate([part.embeddings for part in parts]),
            np.concatenate(several) if len(several) == len(each) else None,
            *columns,
        )

    def strata(self, modality: int | None = None) -> NDArray[np.intp]:
        """(n,) of all modalities together, or of one alone; -1 where it is absent."""
        codes = (
            subset_codes(self.present) if modality is None else self.present[:, modality].astype(np.intp) << modality
        )
        return strata_of(
            codes,
            np.where(codes & LIGHT_CURVE_BIT, self.detections, 0),
            np.where(codes & METADATA_BIT, self.values, 0),
        )


def statistics_of(
    objects: Objects,
    reference: ReferenceSet,
    centres: Mapping[int, ClassCentres],
    whitening: NDArray[np.float32],
    shapes: Shapes,
    distance: NDArray[np.float32] | None = None,
) -> tuple[dict[str, NDArray[np.float64]], NDArray[np.intp]]:
    """Each statistic (n,) by name, such as ``all.neighbours``, NaN where there is none; and (n, 3) leading classes.

    ``shapes`` are those of known stars; ``distance`` (n,) are the neighbours' of all modalities together where they are
    known already. The leading class of each modality is that of the nearest centroid, -1 where there is none. Objects
    of one modality have ``all`` alone, and where ``by_modality`` is None all have.
    """
    size = len(objects.embeddings)
    found: dict[str, NDArray[np.float64]] = {}
    _add_distances(found, "all", objects.embeddings, objects.strata(), reference, centres, whitening, distance)
    leading = np.full((size, len(MODALITIES)), -1, np.intp)
    several = objects.present.sum(axis=1) > 1
    by_class = np.full((size, len(MODALITIES), len(CLASS_NAMES)), np.nan)
    if objects.by_modality is not None and several.any():
        for column, name in enumerate(MODALITIES):
            strata = np.where(several, objects.strata(column), -1)
            if (strata >= 0).any():
                cosines = _add_distances(
                    found, name, objects.by_modality[:, column], strata, reference, centres, whitening, None
                )
                there = ~np.isnan(cosines).all(axis=1)
                leading[there, column] = np.nanargmax(cosines[there], axis=1)
                by_class[there, column] = _probabilities(cosines[there])
    with np.errstate(divide="ignore", invalid="ignore"):
        p = objects.probabilities.astype(np.float64)
        entropy = -np.where(p > 0, p * np.log(p), 0.0).sum(axis=1)
    found["uncertainty"] = np.where(p.any(axis=1), entropy, np.nan)
    found["disagreement"] = _disagreement(by_class)
    found["catalogue"] = objects.doubt.astype(np.float64)
    found["shape"] = shapes.distance(objects.shapes, objects.strata(MODALITIES.index("light_curve")), reference.k)
    _add_by_class(found, objects, reference, centres, whitening)
    return found, leading


def _add_distances(
    found: dict[str, NDArray[np.float64]],
    space: str,
    embeddings: NDArray[np.float32],
    strata: NDArray[np.intp],
    reference: ReferenceSet,
    centres: Mapping[int, ClassCentres],
    whitening: NDArray[np.float32],
    distance: NDArray[np.float32] | None,
) -> NDArray[np.float64]:
    """Put the three distances of one space into ``found``; cosines (n, 10) to the class centroids."""
    size = len(embeddings)
    near, squared, cosine = (np.full(size, np.nan) for _ in DISTANCES)
    cosines = np.full((size, len(CLASS_NAMES)), np.nan)
    with one_blas_thread():
        for number in np.unique(strata).tolist():
            if number not in centres:
                continue
            rows, own, stratum = np.flatnonzero(strata == number), centres[number], reference.strata[number]
            vectors = embeddings[rows]
            if distance is None:
                near[rows] = nearest(stratum.embeddings, vectors, reference.k)[0].mean(axis=1)
            else:
                near[rows] = distance[rows]
            white = vectors @ whitening[int(reference.modalities[stratum.first]) - 1].T
            products = white @ own.whitened.T
            squares = np.square(own.whitened).sum(axis=1) - 2.0 * products
            squared[rows] = squares.min(axis=1) + np.square(white).sum(axis=1)
            to_centres = vectors @ own.unit.T
            cosine[rows] = 1.0 - to_centres.max(axis=1)
            cosines[np.ix_(rows, own.class_index)] = to_centres
    for name, values in zip(DISTANCES, (near, squared, cosine), strict=True):
        found[f"{space}.{name}"] = values
    return cosines


def _add_by_class(
    found: dict[str, NDArray[np.float64]],
    objects: Objects,
    reference: ReferenceSet,
    centres: Mapping[int, ClassCentres],
    whitening: NDArray[np.float32],
) -> None:
    """Put ``class_neighbours`` and ``density`` into ``found``: of all modalities together."""
    strata, size = objects.strata(), len(objects.embeddings)
    by_class, density = np.full(size, np.nan), np.full(size, np.nan)
    with one_blas_thread():
        for number in np.unique(strata).tolist():
            if number not in centres:
                continue
            rows, own, stratum = np.flatnonzero(strata == number), centres[number], reference.strata[number]
            vectors, probabilities = objects.embeddings[rows], objects.probabilities[rows]
            cosines = vectors @ own.stars.vectors.T
            white = vectors @ whitening[int(reference.modalities[stratum.first]) - 1].T
            in_white = own.whitened_stars.spacings(white, white @ own.whitened_stars.vectors.T, probabilities)
            by_class[rows] = (own.stars.spacings(vectors, cosines, probabilities) + in_white) / 2.0
            # A cosine is 1 at most: no exponential overflows.
            density[rows] = -np.log(np.exp(cosines / DENSITY_TEMPERATURE).sum(axis=1, dtype=np.float64))
    found["class_neighbours"], found["density"] = by_class, density


def _probabilities(cosines: NDArray[np.float64]) -> NDArray[np.float64]:
    """(m, 10) cosines to probabilities; 0 for classes of which there is no centroid."""
    exponent = np.where(np.isnan(cosines), -np.inf, cosines / _TEMPERATURE)
    exponent -= exponent.max(axis=1, keepdims=True)
    result: NDArray[np.float64] = np.exp(exponent)
    result /= result.sum(axis=1, keepdims=True)
    return result


def _disagreement(by_class: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n,) of probabilities (n, 3, 10), NaN rows where a modality is absent: the pair that has least in common."""
    root = np.sqrt(by_class)
    pairs = [(root[:, i] * root[:, j]).sum(axis=1) for i in range(len(MODALITIES)) for j in range(i)]
    common = np.stack(pairs, axis=1)
    nothing = np.isnan(common).all(axis=1)
    result: NDArray[np.float64] = 1.0 - np.where(np.isnan(common), np.inf, common).min(axis=1)
    result[nothing] = np.nan
    return result


def whitening_of(reference: ReferenceSet, width: int, shrinkage: float = 0.1) -> NDArray[np.float32]:
    """(7, width, d) of each subset of the modalities: rows that make the scatter within the classes a unit matrix.

    The scatter is about the class's mean in its stratum, over all strata of the subset; its ``width`` largest
    directions, each variance ``shrinkage`` of the way to their mean (as Ledoit & Wolf 2004 shrink to a multiple of the
    unit matrix). Zero for subsets without an embedding.
    """
    d = reference.embeddings.shape[1]
    result = np.zeros(((1 << len(MODALITIES)) - 1, width, d), np.float32)
    strata = strata_of(reference.modalities, reference.detections, reference.values)
    names = reference.class_names.astype(str)
    residual = np.empty_like(reference.embeddings)
    for number in np.unique(strata):
        for name in np.unique(names[strata == number]):
            own = (strata == number) & (names == name)
            residual[own] = reference.embeddings[own] - reference.embeddings[own].mean(axis=0)
    for code in np.unique(reference.modalities).tolist():
        own = residual[reference.modalities == code].astype(np.float64)
        variances, directions = np.linalg.eigh(own.T @ own / len(own))
        variances, directions = variances[::-1][:width], directions[:, ::-1][:, :width]
        variances = np.maximum((1.0 - shrinkage) * variances + shrinkage * variances.mean(), 1e-12)
        result[code - 1, : len(variances)] = (directions / np.sqrt(variances)).T
    return result
