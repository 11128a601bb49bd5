"""The audit of a table: its stars that have a light curve or a spectrum, classified and compared with their labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from broker.audit.claims import Claims, claimed_type
from broker.audit.doubt import LIKELY_WRONG, doubts, self_confidence
from broker.lightcurves.objects import NamedLightCurve
from broker.offline import batched, classify_curves
from broker.photometry import POGSON
from broker.pipeline import Pipeline
from broker.publish.disagreement import CONFIDENCE, compare
from broker.records import Annotation, KnownObject, LightCurve, Neighbour, PhotometryKind
from broker.spectra.places import Spectra
from broker.taxonomy import CLASS_NAMES, OTHER

NOT_IN_TABLE: Final = "no star of the table has their name or place"
NO_TYPE: Final = "the table gives them no type"
OUTSIDE: Final = "of a type that is none of the ten classes, which is not audited"
NOT_CLASSIFIED: Final = "NotClassified"
_SAME_PERIOD: Final = 0.01
"""Relative difference below which two periods are the same, or in a ratio of small whole numbers."""
_RATIOS: Final = {1.0: "same", 2.0: "twice the table's", 0.5: "half the table's"}


@dataclass(frozen=True, slots=True, eq=False)
class Audited:
    """One label and what speaks for and against it."""

    annotation: Annotation
    star: NamedLightCurve
    claim: KnownObject
    """What the table says; ``disagrees`` where the model contradicts it with confidence."""
    claimed: tuple[str, ...]
    """The classes that the claimed type may stand for."""
    uncertain: bool
    """Whether the table itself marks the type as uncertain, or gives a second one that is none of ours."""
    p_claimed: float
    """Probability of these classes, if the star is one of the ten."""
    best: str
    """The most probable of the ten, which need not be what is published."""
    p_best: float
    """Its probability, if the star is one of the ten."""
    doubt: float
    """0 to 1, see ``broker.audit.doubt.doubts``."""
    neighbours: tuple[Neighbour, ...]
    """The nearest reference stars, without the star itself."""
    in_training: bool
    """Whether the star is a reference star: the model was trained on its label, and doubts it too little."""
    amplitude: float | None
    """Magnitudes that the central 90 % of the points span in the band that has most; None for fewer than five."""

    @property
    def likely_wrong(self) -> bool:
        """Whether the doubt is LIKELY_WRONG or more."""
        return self.doubt >= LIKELY_WRONG

    @property
    def in_set(self) -> bool:
        """Whether the prediction set holds a class that the type may stand for."""
        return not set(self.claimed).isdisjoint(self.annotation.prediction_set)

    @property
    def agreeing(self) -> int:
        """How many neighbours have a class that the type may stand for."""
        return sum(one.class_name in self.claimed for one in self.neighbours)

    @property
    def period_ratio(self) -> str:
        """How the period that is found compares with the table's; empty where one of them is unknown."""
        found, given = self.annotation.period, self.claim.period
        if found is None or not found > 0 or given is None or not given > 0:
            return ""
        ratio = found / given
        return next((text for at, text in _RATIOS.items() if abs(ratio / at - 1) < _SAME_PERIOD), "another")

    def reasons(self) -> str:
        """What speaks against the label, or for it, in one sentence."""
        said = self.annotation
        label = f"{self.claim.type} is in the prediction set" if self.in_set else f"{self.claim.type} is ruled out"
        parts = [f"{self.best} {self.p_best:.2f} against {self.p_claimed:.2g}; {label}"]
        if said.best_class == OTHER.name:
            parts.append(f"taken for none of the ten ({said.best_probability:.2f})")
        if self.neighbours:
            parts.append(f"{self.agreeing} of {len(self.neighbours)} nearest reference stars have the label")
        if self.period_ratio == "another":
            parts.append("another period")
        elif self.period_ratio and self.period_ratio != "same":
            parts.append(f"the period is {self.period_ratio}")
        if self.uncertain:
            parts.append("uncertain in the table")
        if self.in_training:
            parts.append("the model was trained on this label")
        return "; ".join(parts)

    def record(self, rank: int) -> dict[str, Any]:
        """All of it as plain values, under the names of ``broker.audit.output.SCHEMA``."""
        said, claim = self.annotation, self.claim
        return {
            "rank": rank, "name": said.object_id, "tableName": claim.name, "ra": said.ra, "dec": said.dec,
            "separationArcsec": None if np.isnan(claim.distance) else claim.distance, "claimedType": claim.type,
            "claimedClass": claim.class_name, "uncertain": self.uncertain, "doubt": self.doubt,
            "likelyWrong": self.likely_wrong, "contradicted": claim.disagrees, "pClaimed": self.p_claimed,
            "class": self.best, "probability": self.p_best, "pOther": said.p_other,
            "predictionSet": list(said.prediction_set), "inPredictionSet": self.in_set,
            "neighbours": [f"{n.object_id} ({n.class_name})" for n in self.neighbours],
            "neighboursAgree": self.agreeing, "period": said.period, "claimedPeriod": claim.period,
            "periodRatio": self.period_ratio or None, "amplitude": self.amplitude, "points": said.detections,
            "modalities": list(said.modalities), "anomalyScore": said.anomaly_score, "inTraining": self.in_training,
            "reason": self.reasons(),
            **{f"p_{name}": value for name, value in _by_name(said).items()},
        }  # fmt: skip


@dataclass(slots=True)
class Audit:
    """A table's audited labels, the most doubtful first, and what could not be audited."""

    rows: list[Audited] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    """Light curves and spectra by the reason why they have no row."""

    @property
    def total(self) -> int:
        """All light curves and spectra that were given."""
        return len(self.rows) + self.left_out.total()


def audit(
    pipeline: Pipeline,
    curves: Iterable[NamedLightCurve],
    claims: Claims,
    batch_size: int,
    spectra: Spectra | None = None,
) -> Audit:
    """Classify the stars that the table names a class of ours for, and order their labels by doubt.

    ``curves`` of stars without a light curve may be empty where ``spectra`` have one at their place. What is not in
    the table is not classified. Whatever is given is a row or is counted.
    """
    result = Audit()
    kept: list[tuple[Annotation, NamedLightCurve, KnownObject]] = []
    for batch in batched(curves, batch_size):
        own: list[tuple[NamedLightCurve, KnownObject]] = []
        for curve, claim in zip(batch, claims.of(batch), strict=True):
            problem = _not_audited(claim)
            if problem is not None or claim is None:
                result.left_out[problem or NOT_IN_TABLE] += 1
            else:
                own.append((curve, claim))
        found = classify_curves(pipeline, [curve for curve, _ in own], batch_size, spectra=spectra)
        for (curve, claim), (annotation, _) in zip(own, found, strict=True):
            if annotation.classified:
                kept.append((annotation, curve, claim))
            else:
                result.left_out[f"{NOT_CLASSIFIED}: {_short(annotation.reason)}"] += 1
    result.rows = _ranked(kept)
    return result


def _not_audited(claim: KnownObject | None) -> str | None:
    if claim is None:
        return NOT_IN_TABLE
    if not claim.type.strip():
        return NO_TYPE
    return None if claimed_type(claim.type).classes else OUTSIDE


def _short(reason: str | None) -> str:
    """A reason without what is particular to the star."""
    return (reason or "").partition(" (")[0].strip()


def _ranked(kept: Sequence[tuple[Annotation, NamedLightCurve, KnownObject]]) -> list[Audited]:
    if not kept:
        return []
    # Of the ten alone, which all labels are of: whether a star is none of them is less certain (docs/discovery.md).
    given = np.array([[_by_name(one)[name] for name in CLASS_NAMES] for one, _, _ in kept], np.float64)
    probabilities = given / np.maximum(given.sum(axis=1, keepdims=True), 1e-300)
    types = [claimed_type(claim.type) for _, _, claim in kept]
    claimed = np.array([[name in kind.classes for name in CLASS_NAMES] for kind in types], np.bool_)
    doubt, confidence = doubts(probabilities, claimed), self_confidence(probabilities, claimed)
    rows = []
    for number, ((annotation, curve, claim), kind) in enumerate(zip(kept, types, strict=True)):
        others = tuple(n for n in annotation.neighbours if not _is_star(n, annotation.object_id))
        rows.append(
            Audited(
                annotation, curve, _compared(annotation, claim),
                tuple(name for name in CLASS_NAMES if name in kind.classes), not kind.comparable,
                float(confidence[number]), CLASS_NAMES[int(probabilities[number].argmax())],
                float(probabilities[number].max()), float(doubt[number]), others,
                len(others) < len(annotation.neighbours), amplitude(curve.light_curve),
            )
        )  # fmt: skip
    return sorted(rows, key=lambda row: (-row.doubt, row.p_claimed, row.annotation.object_id))


def _by_name(annotation: Annotation) -> dict[str, float]:
    """Probabilities of the ten and of Other, which sum to 1."""
    given = dict(zip(annotation.class_names, annotation.probabilities, strict=True))
    return {name: given.get(name, 0.0) for name in (*CLASS_NAMES, OTHER.name)}


def _is_star(neighbour: Neighbour, name: str) -> bool:
    """Whether a reference star is the audited one: they are called ``asas:<name>``."""
    return name in (neighbour.object_id, neighbour.object_id.partition(":")[2])


def _compared(annotation: Annotation, claim: KnownObject) -> KnownObject:
    if annotation.best_class == OTHER.name:
        return claim
    given = {name: p for name, p in _by_name(annotation).items() if name != OTHER.name}
    (compared,) = compare([claim], given, annotation.parents, annotation.prediction_set, CONFIDENCE)
    return compared


def amplitude(curve: LightCurve) -> float | None:
    """Magnitudes that the central 90 % of the points span, in the band that has most; None for fewer than five."""
    measured = (curve.kind != PhotometryKind.LIMIT) & np.isfinite(curve.flux)
    bands, count = np.unique(curve.band[measured], return_counts=True)
    if not len(bands) or count.max() < 5:
        return None
    own = measured & (curve.band == bands[count.argmax()])
    reference = curve.reference_flux[own].astype(np.float64)
    flux = curve.flux[own] + np.where(np.isfinite(reference), reference, 0.0)
    flux = flux[flux > 0]
    if len(flux) < 5:
        return None
    low, high = np.quantile(np.log(flux), [0.05, 0.95])
    return float(POGSON * (high - low))


def spectra_alone(spectra: Spectra, curves: Iterable[NamedLightCurve]) -> Iterator[NamedLightCurve]:
    """The light curves, then an empty one for each spectrum that is at none of their places."""
    used: set[str] = set()
    for curve in curves:
        found = spectra.at(curve.ra, curve.dec)
        if found is not None:
            used.add(found.spectrum_id)
        yield curve
    for one in spectra.all:
        if one.spectrum_id not in used:
            yield NamedLightCurve(one.object_id or one.spectrum_id, one.ra, one.dec, LightCurve.empty(), None)
