"""The documented fields of annotations that filters may use, as arrays."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from broker.publish.annotation import DERIVED, PublishedAnnotation
from broker.taxonomy import PARENTS

Array = NDArray[Any]
PROBABILITY: Final = "probability:"
"""Begins what Columns calls the probability of one class or parent."""


class Kind(Enum):
    """Of a value; missing ones are NaN, the empty text and no texts, and no comparison with them is true."""

    NUMBER = "a number"
    TEXT = "a text"
    FLAG = "true or false"
    TEXTS = "a list of texts"


FIELDS: Final[Mapping[str, tuple[Kind, Callable[[PublishedAnnotation], Any], str]]] = {
    "survey": (Kind.TEXT, lambda a: a.survey, "ztf, lsst or elasticc"),
    "objectId": (Kind.TEXT, lambda a: a.object_id, "name of the object in the survey"),
    "ra": (Kind.NUMBER, lambda a: a.ra, "ICRS degrees"),
    "dec": (Kind.NUMBER, lambda a: a.dec, "ICRS degrees"),
    "mjd": (Kind.NUMBER, lambda a: a.mjd, "of the detection"),
    "class": (Kind.TEXT, DERIVED["class"], "the most probable class, `Other` or `NotClassified`"),
    "probability": (Kind.NUMBER, DERIVED["probability"], "of `class`"),
    "parent": (Kind.TEXT, lambda a: a.parent, "the most probable parent"),
    "parentProbability": (Kind.NUMBER, DERIVED["parentProbability"], "of `parent`"),
    "answer": (Kind.TEXT, lambda a: a.answer, "what the prediction set leaves open"),
    "predictionSet": (Kind.TEXTS, lambda a: a.prediction_set, "classes that are not ruled out"),
    "pOther": (Kind.NUMBER, lambda a: a.p_other, "probability that it is none of the ten classes"),
    "modalities": (Kind.TEXTS, lambda a: a.modalities, "`light_curve`, `spectrum`, `metadata`: those used"),
    "detections": (Kind.NUMBER, lambda a: a.detections, "points of the light curve"),
    "period": (Kind.NUMBER, lambda a: a.period, "days"),
    "photometricPeriod": (Kind.NUMBER, lambda a: a.photometric_period, "days, as found"),
    "periodAmbiguous": (Kind.FLAG, lambda a: a.period_ambiguous, "whether twice or half of it may be the orbit"),
    "anomalyScore": (Kind.NUMBER, lambda a: a.anomaly_score, "0 to 1"),
    "anomalyDistance": (Kind.NUMBER, lambda a: a.anomaly_distance, "0 to 2"),
    "known": (Kind.FLAG, DERIVED["known"], "whether a catalogue of variable stars has it"),
    "catalogueDisagrees": (Kind.FLAG, lambda a: a.catalogue_disagrees, "whether the model contradicts one"),
    "realBogus": (Kind.NUMBER, lambda a: a.real_bogus, "the survey's score that it is real"),
    "starScore": (Kind.NUMBER, lambda a: a.star_score, "how star-like it is, by the survey"),
    "solarSystem": (Kind.FLAG, lambda a: a.solar_system, "whether the survey names a moving body there"),
    "trigger": (Kind.TEXT, lambda a: a.trigger, "`alert` or `spectrum`"),
    "history": (Kind.TEXT, lambda a: a.history, "`remembered`, `packet` or `missing`"),
    "rememberedPoints": (Kind.NUMBER, lambda a: a.remembered_points, "beyond the packet"),
    "surveyDetections": (Kind.NUMBER, lambda a: a.survey_detections, "as the survey counts them"),
}
"""Kind, how an annotation has it, and what it is: names and meanings are those of annotation.avsc, but for ``class``,
``probability``, ``parentProbability`` and ``known``, which follow from its fields."""


class Columns:
    """The fields of some annotations as arrays (n,), each made when it is first asked for."""

    def __init__(self, count: int, values: Callable[[str], Sequence[Any]]) -> None:
        """``values`` gives a field of FIELDS of all annotations; None is missing.

        It is also asked for ``probability:NAME``, of a class or a parent, as ``probability_of`` gives it.
        """
        self.count = count
        self._values = values
        self._made: dict[str, Array] = {}

    def __getitem__(self, name: str) -> Array:
        """float64, str, bool, or object (tuples of str), by the field's kind."""
        if name not in self._made:
            self._made[name] = _column(FIELDS[name][0] if name in FIELDS else Kind.NUMBER, self._values(name))
        return self._made[name]

    @classmethod
    def of(cls, annotations: Sequence[PublishedAnnotation]) -> Columns:
        """Those of annotations."""

        def values(name: str) -> Sequence[Any]:
            if name in FIELDS:
                get = FIELDS[name][1]
                return [get(a) for a in annotations]
            one = name.removeprefix(PROBABILITY)
            return [
                a.parents.get(one)
                if one in PARENTS
                else dict(zip(a.class_names, a.probabilities, strict=True)).get(one)
                for a in annotations
            ]

        return cls(len(annotations), values)


def probability_of(name: str, by_class: Mapping[str, float]) -> float | None:
    """The probability of a class, or the sum of those of a parent's classes; None where there is none."""
    own = [by_class[one] for one in PARENTS.get(name, (name,)) if one in by_class]
    return sum(own) if own else None


def _column(kind: Kind, values: Sequence[Any]) -> Array:
    match kind:
        case Kind.NUMBER:
            return np.array([math.nan if v is None else v for v in values], np.float64)
        case Kind.TEXT:
            return np.array(["" if v is None else v for v in values], np.str_)
        case Kind.FLAG:
            return np.array([bool(v) for v in values], np.bool_)
        case Kind.TEXTS:
            column = np.empty(len(values), np.object_)
            column[:] = [tuple(v or ()) for v in values]
            return column
