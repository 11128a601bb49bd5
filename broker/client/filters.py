"""Which annotations a subscriber wants, beyond what the topics tell apart."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from broker import moc, sky
from broker.client.fields import FIELDS
from broker.errors import ConfigurationError
from broker.publish.annotation import PublishedAnnotation
from broker.taxonomy import OUTPUT_NAMES, PARENTS


@dataclass(frozen=True, slots=True)
class Cone:
    """A circle on the sky: ICRS degrees, and arcsec."""

    ra: float
    dec: float
    radius: float


@dataclass(frozen=True, slots=True, eq=False)
class Region:
    """A region of the sky as a MOC (IVOA, Multi-Order Coverage map 2.0)."""

    ranges: NDArray[np.int64] = field(repr=False)
    """(m, 2) first HEALPix cell and the one behind the last, nested, of order 29."""

    @classmethod
    def of_text(cls, text: str) -> Region:
        """Of ``5/1,3-7 6/24`` or ``{"5": [1, 3]}``; raises InputFileError."""
        return cls(moc.of_text(text))

    @classmethod
    def of_file(cls, path: str | Path) -> Region:
        """Of a MOC in ASCII, JSON or FITS; raises InputFileError.

        For FITS it needs pyarrow and astropy, and raises ConfigurationError where one is not installed.
        """
        return cls(moc.of_file(Path(path)))

    def holds(self, ra: float, dec: float) -> bool:
        """Whether a position in ICRS degrees is inside; False for NaN."""
        if not (math.isfinite(ra) and math.isfinite(dec)):
            return False
        return bool(moc.inside(self.ranges, moc.cells_of(np.array([ra]), np.array([dec])))[0])


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
    region: Region | None = None
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
        return self.holds({name: FIELDS[name][1](annotation) for name in self.fields})

    @property
    def fields(self) -> frozenset[str]:
        """The fields of FIELDS that decide."""
        needed = (
            (self.class_name, ("class",)),
            (self.parent, ("parent",)),
            (self.min_probability, (self._probability,)),
            (self.min_anomaly_score, ("anomalyScore",)),
            (self.min_detections, ("detections",)),
            (self.known, ("known",)),
            (self.cone, ("ra", "dec")),
            (self.region, ("ra", "dec")),
        )
        return frozenset(name for condition, names in needed if condition is not None for name in names)

    @property
    def _probability(self) -> str:
        return "parentProbability" if self.parent is not None and self.class_name is None else "probability"

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Whether an annotation with these values of ``fields`` meets all conditions."""
        if self.class_name is not None and values["class"] != self.class_name:
            return False
        if self.parent is not None and values["parent"] != self.parent:
            return False
        for name, least in (
            (self._probability, self.min_probability),
            ("anomalyScore", self.min_anomaly_score),
            ("detections", self.min_detections),
        ):
            if least is not None and (values[name] is None or values[name] < least):
                return False
        if self.known is not None and values["known"] != self.known:
            return False
        if self.cone is not None and not _within(values["ra"], values["dec"], self.cone):
            return False
        return self.region is None or self.region.holds(values["ra"], values["dec"])


def _within(ra: float, dec: float, cone: Cone) -> bool:
    place = (np.array([value]) for value in (ra, dec, cone.ra, cone.dec))
    return bool(sky.separation(*place)[0] <= cone.radius)
