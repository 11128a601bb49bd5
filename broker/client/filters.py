"""Which annotations a subscriber wants, beyond what the topics tell apart."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from broker import sky
from broker.errors import ConfigurationError
from broker.publish.annotation import PublishedAnnotation
from broker.taxonomy import OUTPUT_NAMES, PARENTS


@dataclass(frozen=True, slots=True)
class Cone:
    """A circle on the sky: ICRS degrees, and arcsec."""

    ra: float
    dec: float
    radius: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Conditions that an annotation must meet, all of them; None and empty are no condition.

    ``Filter(parent="RRLyrae", min_probability=0.9)`` takes what is an RR Lyrae star of either kind with 0.9. Raises
    ConfigurationError for a name or a number that cannot be meant.
    """

    class_name: str | None = None
    """The most probable class."""
    parent: str | None = None
    """The most probable parent."""
    min_probability: float | None = None
    """Of ``class_name``; of ``parent`` where that alone is given; else of the most probable class."""
    min_anomaly_score: float | None = None
    """What has no anomaly score does not meet it."""
    min_detections: int | None = None
    cone: Cone | None = None
    known: bool | None = None
    """Whether a catalogue of known variable stars has the object."""

    def __post_init__(self) -> None:
        """Check what was given."""
        for name, value, names in (("class_name", self.class_name, OUTPUT_NAMES), ("parent", self.parent, PARENTS)):
            if value is not None and value not in names:
                raise ConfigurationError(f"{name} is {value!r}: give one of {', '.join(names)}")
        for name, number in (("min_probability", self.min_probability), ("min_anomaly_score", self.min_anomaly_score)):
            if number is not None and not 0.0 <= number <= 1.0:
                raise ConfigurationError(f"{name} is {number}: give 0 to 1")
        cone = self.cone
        if cone is not None and not (
            math.isfinite(cone.ra) and -90.0 <= cone.dec <= 90.0 and 0.0 < cone.radius <= 180.0 * sky.ARCSEC
        ):
            raise ConfigurationError(f"{cone} is no circle on the sky: give degrees, and a radius in arcsec")

    def __call__(self, annotation: PublishedAnnotation) -> bool:
        """Whether an annotation meets all conditions."""
        if self.class_name is not None and annotation.best_class != self.class_name:
            return False
        if self.parent is not None and annotation.parent != self.parent:
            return False
        if self.min_probability is not None and self._probability(annotation) < self.min_probability:
            return False
        score = annotation.anomaly_score
        if self.min_anomaly_score is not None and (score is None or score < self.min_anomaly_score):
            return False
        if self.min_detections is not None and annotation.detections < self.min_detections:
            return False
        if self.known is not None and bool(annotation.known_as) != self.known:
            return False
        return self.cone is None or _within(annotation, self.cone)

    def _probability(self, annotation: PublishedAnnotation) -> float:
        if self.parent is not None and self.class_name is None:
            return annotation.parents[self.parent]
        return annotation.best_probability


def _within(annotation: PublishedAnnotation, cone: Cone) -> bool:
    place = (np.array([value]) for value in (annotation.ra, annotation.dec, cone.ra, cone.dec))
    return bool(sky.separation(*place)[0] <= cone.radius)
