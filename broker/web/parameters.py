"""What a search is asked for in an address, as people write it: positions, times, names of classes."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import HTTPException, Query
from pydantic import BaseModel, ConfigDict, Field

from broker import sky
from broker.client.filters import Cone
from broker.taxonomy import OUTPUT_NAMES, PARENTS
from broker.times import moment_of
from broker.web import search
from broker.web.search import Sort

_BY_LOWER_CLASS: Final = {name.lower(): name for name in OUTPUT_NAMES}
_BY_LOWER_PARENT: Final = {name.lower(): name for name in PARENTS}
_DEFAULT_RADIUS: Final = 60.0


class SearchParameters(BaseModel):
    """Conditions that an object's latest annotation must meet, all of them."""

    model_config = ConfigDict(populate_by_name=True, extra="forbid")

    survey: str | None = Field(None, max_length=32, description="ztf, lsst or elasticc.")
    class_: str | None = Field(
        None, alias="class", description=f"The most probable class: {', '.join(OUTPUT_NAMES)}.", max_length=32
    )
    parent: str | None = Field(None, description=f"The most probable parent: {', '.join(PARENTS)}.", max_length=32)
    min_probability: float | None = Field(
        None, ge=0, le=1, description="Of the class; of the parent where parent is given and class is not."
    )
    max_probability: float | None = Field(None, ge=0, le=1)
    min_anomaly: float | None = Field(None, ge=0, le=1, description="Lowest anomaly score.")
    min_detections: int | None = Field(None, ge=0, le=10**9)
    known: bool | None = Field(None, description="Whether a catalogue of known variable stars has the object.")
    disagrees: bool | None = Field(None, description="Whether the model contradicts such a catalogue.")
    since: str | None = Field(None, description="Published at or after: MJD, or ISO 8601 (UTC).", max_length=40)
    until: str | None = Field(None, description="Published before: likewise.", max_length=40)
    ra: str | None = Field(None, description="ICRS: degrees, or hours such as 17:57:48.5.", max_length=40)
    dec: str | None = Field(None, description="ICRS: degrees, or such as +04:41:36.", max_length=40)
    radius: float | None = Field(
        None, gt=0, le=search.MAX_RADIUS, description=f"Arcsec; {_DEFAULT_RADIUS:g} where not given."
    )
    sort: Sort | None = Field(None, description="Highest or latest first; distance: nearest first, as in a cone.")
    limit: int = Field(50, ge=1, le=1000)
    cursor: str | None = Field(None, description="As the page before gave it.", max_length=80)

    def query(self) -> search.Query:
        """The query; raises HTTPException 422 for what cannot be meant."""
        cone = self._cone()
        return search.Query(
            survey=self.survey or None,
            class_name=_named(self.class_, _BY_LOWER_CLASS, "class"),
            parent=_named(self.parent, _BY_LOWER_PARENT, "parent"),
            min_probability=self.min_probability,
            max_probability=self.max_probability,
            min_anomaly=self.min_anomaly,
            min_detections=self.min_detections,
            known=self.known,
            disagrees=self.disagrees,
            since=moment(self.since, "since"),
            until=moment(self.until, "until"),
            cone=cone,
            sort=self.sort or ("published" if cone is None else "distance"),
        )

    def _cone(self) -> Cone | None:
        if not self.ra and not self.dec:
            if self.radius is not None:
                raise HTTPException(422, "radius needs ra and dec")
            return None
        if not self.ra or not self.dec:
            raise HTTPException(422, "give both ra and dec")
        return Cone(
            angle(self.ra, "ra", 0.0, 360.0), angle(self.dec, "dec", -90.0, 90.0), self.radius or _DEFAULT_RADIUS
        )


SearchQuery = Annotated[SearchParameters, Query()]


def angle(text: str, name: str, low: float, high: float) -> float:
    """Degrees of a position; raises HTTPException 422."""
    # A plus sign of an address stands for a space.
    degrees = sky.angle(text.strip(), hours=name == "ra")
    if degrees is None or not low <= degrees <= high:
        form = "17:57:48.5" if name == "ra" else "+04:41:36"
        raise HTTPException(422, f"{name}: {text!r} is none of {low:g} to {high:g} degrees, nor such as {form}")
    return degrees


def moment(text: str | None, name: str) -> float | None:
    """MJD UTC of an MJD or an ISO 8601 time, without a zone UTC; raises HTTPException 422."""
    if not text:
        return None
    try:
        return moment_of(text)
    except ValueError:
        raise HTTPException(422, f"{name}: {text!r} is neither an MJD nor such as 2026-11-28T03:00") from None


def without_empty(given: Any) -> dict[str, str]:
    """The fields of a form that were filled in."""
    return {name: value for name, value in given.items() if value != ""}


def _named(given: str | None, names: dict[str, str], what: str) -> str | None:
    if not given:
        return None
    if (name := names.get(given.lower())) is None:
        raise HTTPException(422, f"{what}: {given!r} is none of {', '.join(names.values())}")
    return name
