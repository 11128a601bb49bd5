"""What SkyPortal's generic broker asks for (skyportal/broker_apis/generic.py), under ``/api/skyportal``.

SkyPortal asks ``GET {base_url}/alerts`` and ``GET {base_url}/alerts/{objectId}``, with a token as *Bearer*, and takes
``data`` of the answer. Of an object it stores ``candidate`` and makes photometry (broker_apis/_save.py) of
``prv_candidates``, ``fp_hists`` and ``prv_nondetections``: ``psfFlux`` and ``psfFluxErr`` in nJy for LSST, ``magpsf``
and ``sigmapsf`` for ZTF. As in the surveys' own alerts, these are of the difference from the reference image.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import numpy as np
from fastapi import APIRouter, Depends, HTTPException, Query, Response

from broker.bands import BANDS
from broker.client.filters import Cone
from broker.photometry import POGSON
from broker.records import AB_ZERO_POINT_NJY, LightCurve, ObjectState, PhotometryKind
from broker.sky import ARCSEC
from broker.surveys import SURVEYS
from broker.web.api import ObjectId, as_json, missing, stored
from broker.web.parameters import angle
from broker.web.search import MAX_RADIUS, SearchError, search
from broker.web.search import Query as Search
from broker.web.services import Parts, Services, requires

router = APIRouter(prefix="/api/skyportal", dependencies=[Depends(requires("read"))])

_JD: Final = 2400000.5
_ARCSEC: Final = {"arcsec": 1.0, "arcmin": 60.0, "deg": ARCSEC, "degrees": ARCSEC, "rad": ARCSEC * 180.0 / np.pi}
_MOST: Final = 100
_DEFAULT_RADIUS: Final = 2.0
_PUBLIC: Final = 1
"""``programid`` of ZTF's public alerts, which are all that brokers get."""
_IN_MAGNITUDES: Final = ("ztf",)
"""Surveys whose points SkyPortal reads as magnitudes: it gives their fluxes another zero point than nanojansky have."""
_BANDS_OF: Final = {"elasticc": "lsst"}
_ARRAYS: Final = {
    "prv_candidates": PhotometryKind.DETECTION,
    "fp_hists": PhotometryKind.FORCED,
    "prv_nondetections": PhotometryKind.LIMIT,
}
Survey = Annotated[str | None, Query(max_length=32, description="ZTF, LSST or ELASTICC; all of them without.")]
Permissions = Annotated[
    list[str] | None, Query(max_length=20, description="Surveys that SkyPortal's user may see; all of them without.")
]
Jd = Annotated[float | None, Query(ge=0, le=1e8, description="Of the object's latest alert, Julian date (UTC).")]


@router.get("/alerts", summary="Objects, as SkyPortal asks for them")
def alerts(
    parts: Parts,
    objectId: Annotated[str | None, Query(max_length=256)] = None,  # noqa: N803 - SkyPortal's name
    ra: Annotated[str | None, Query(max_length=40, description="ICRS: degrees, or hours.")] = None,
    dec: Annotated[str | None, Query(max_length=40)] = None,
    radius: Annotated[float | None, Query(gt=0, le=MAX_RADIUS, description="2 arcsec where not given.")] = None,
    radius_units: Literal["arcsec", "arcmin", "deg", "degrees", "rad"] = "arcsec",
    survey: Survey = None,
    jd_start: Jd = None,
    jd_end: Jd = None,
    permissions: Permissions = None,
) -> Response:
    """By name, place or time: their latest alert and classes, without photometry; at most 100, the latest first."""
    allowed = _surveys(survey, permissions)
    if objectId:
        records = _named(parts, allowed, objectId)
        return as_json({"data": [_summary(record) for record in records if _within(record, jd_start, jd_end)]})
    if (ra is None) != (dec is None):
        raise HTTPException(422, "give both ra and dec")
    cone = None
    if ra is not None and dec is not None:
        arcsec = (radius or _DEFAULT_RADIUS) * _ARCSEC[radius_units]
        if arcsec > MAX_RADIUS:
            raise HTTPException(422, f"radius: {MAX_RADIUS:g} arcsec are the most")
        cone = Cone(angle(ra, "ra", 0.0, 360.0), angle(dec, "dec", -90.0, 90.0), arcsec)
    since, until = (None if jd is None else jd - _JD for jd in (jd_start, jd_end))
    found = []
    for one in allowed:
        wanted = Search(survey=one, cone=cone, alert_since=since, alert_until=until, sort="mjd")
        try:
            found += search(parts.index, wanted, _MOST).objects
        except SearchError as error:
            raise HTTPException(422, str(error)) from error
    found = sorted(found, key=lambda row: -float(row["mjd"]))[:_MOST]
    named = [parts.index.record(row["survey"], row["objectId"]) for row in found]
    return as_json({"data": [_summary(record) for record in named if record is not None]})


@router.get("/alerts/{object_id}", summary="An object with its photometry, as SkyPortal asks for it")
def alert(parts: Parts, object_id: ObjectId, survey: Survey = None, permissions: Permissions = None) -> Response:
    """Its latest alert, classes and photometry of the difference from the reference image."""
    found = _named(parts, _surveys(survey, permissions), object_id)
    if not found:
        raise missing(parts, (survey or "any survey").lower(), object_id)
    record = found[0]
    known, problem = stored(parts, record["survey"], object_id, record)
    if problem is not None:  # rather than an object without photometry, which SkyPortal would keep for a while
        raise HTTPException(503, problem, {"Retry-After": "5"})
    answer = _summary(record) | {name: [] for name in _ARRAYS}
    if known is not None:
        answer |= photometry(known.state, record["survey"])
        answer["candidate"] |= next((p for p in reversed(answer["prv_candidates"])
                                     if p["jd"] == answer["candidate"]["jd"]), {})  # fmt: skip
    return as_json({"data": answer})


def photometry(state: ObjectState, survey: str) -> dict[str, list[dict[str, Any]]]:
    """The object's own points by the arrays that they are in, without those of counterparts in other surveys.

    Of ZTF without those that are fainter than the reference, which have no magnitude.
    """
    curve = state.light_curve
    prefix = f"{_BANDS_OF.get(survey, survey)}:"
    own = np.isin(curve.band, [code for code, name in enumerate(BANDS) if name.startswith(prefix)])
    magnitudes = survey in _IN_MAGNITUDES
    if magnitudes:
        own &= (curve.kind == PhotometryKind.LIMIT) | (curve.flux > 0)
    return {name: _points(curve, own & (curve.kind == kind), magnitudes) for name, kind in _ARRAYS.items()}


def _points(curve: LightCurve, rows: np.ndarray[Any, np.dtype[np.bool_]], magnitudes: bool) -> list[dict[str, Any]]:
    """Points in SkyPortal's fields."""
    flux, error = (values[rows].astype(np.float64) for values in (curve.flux, curve.flux_error))
    common = [(mjd + _JD, BANDS[code].rpartition(":")[2])
              for mjd, code in zip(curve.mjd[rows].tolist(), curve.band[rows].tolist(), strict=True)]  # fmt: skip
    limit = curve.kind[rows] == PhotometryKind.LIMIT
    names: tuple[str, str] = ("psfFlux", "psfFluxErr")
    if magnitudes:
        names = ("magpsf", "sigmapsf")
        with np.errstate(divide="ignore", invalid="ignore"):
            flux, error = -2.5 * np.log10(flux / AB_ZERO_POINT_NJY), POGSON * error / flux
            faintest = -2.5 * np.log10(5.0 * curve.flux_error[rows].astype(np.float64) / AB_ZERO_POINT_NJY)
        return [
            {"jd": jd, "band": band, "programid": _PUBLIC}
            | ({"diffmaglim": _plain(least)} if is_limit else dict(zip(names, (_plain(f), _plain(e)), strict=True)))
            for (jd, band), f, e, least, is_limit in zip(common, flux, error, faintest, limit, strict=True)
        ]
    return [
        {"jd": jd, "band": band} | dict(zip(names, (_plain(f), _plain(e)), strict=True))
        for (jd, band), f, e in zip(common, flux, error, strict=True)
    ]


def _plain(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _summary(record: dict[str, Any]) -> dict[str, Any]:
    """The latest alert of an annotation in the fields of an alert, with its classes."""
    candidate = {name: record[name] for name in ("ra", "dec")} | {
        "candid": record["alertId"],
        "jd": record["mjd"] + _JD,
        "drb": record["realBogus"],
    }
    classes = {one["className"]: one["probability"] for one in record["classifications"]}
    told = ("answer", "parent", "anomalyScore", "combinedAnomaly", "period", "detections", "modelVersion")
    return {
        "objectId": record["objectId"],
        "candid": record["alertId"],
        "survey": record["survey"].upper(),
        "candidate": candidate,
        "classifications": classes,
        "trifid": {name: record[name] for name in told},
    }


def _surveys(survey: str | None, permissions: list[str] | None) -> list[str]:
    """Those asked for that may be seen, as Trifid names them; raises HTTPException 422."""
    if survey and survey.lower() not in SURVEYS:
        raise HTTPException(422, f"survey: {survey!r} is none of {', '.join(name.upper() for name in SURVEYS)}")
    asked = [survey.lower()] if survey else list(SURVEYS)
    if permissions is None:
        return asked
    allowed = {name.lower() for name in permissions}
    return [name for name in asked if name in allowed]


def _named(parts: Services, surveys: list[str], object_id: str) -> list[dict[str, Any]]:
    found = (parts.index.record(survey, object_id) for survey in surveys)
    return [record for record in found if record is not None]


def _within(record: dict[str, Any], jd_start: float | None, jd_end: float | None) -> bool:
    jd = record["mjd"] + _JD
    return (jd_start is None or jd >= jd_start) and (jd_end is None or jd < jd_end)
