"""ZTF packets, schemas 3.0 to 4.02 (https://zwickytransientfacility.github.io/ztf-avro-alert/)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from broker.errors import DecodeError
from broker.photometry import magnitude_to_flux
from broker.records import AB_ZERO_POINT_NJY, JD_OF_MJD_0, Alert, PhotometryKind
from broker.surveys import columns
from broker.surveys.columns import LIMIT_SIGMA, Photometry, band_codes, column, numbers, required
from broker.surveys.wire import Record

SURVEY: Final = "ztf"
MARK: Final = "candidate"
"""The field at the top of a packet by which it is known."""
FIELDS: Final = frozenset(
    {
        "schemavsn", "objectId", "candid", "candidate", "prv_candidates", "fp_hists",
        "jd", "fid", "ra", "dec", "magpsf", "sigmapsf", "diffmaglim", "isdiffpos", "distnr", "magnr", "rb", "drb",
        "ssdistnr", "forcediffimflux", "forcediffimfluxunc", "magzpsci",
    }
)  # fmt: skip
"""All that is read of a packet."""
BANDS: Final = {1: "ztf:g", 2: "ztf:r", 3: "ztf:i"}
MAX_REFERENCE_DISTANCE: Final = 1.4
"""Arcsec within which the nearest source of the reference image is taken for the star itself (by custom, as in
ALeRCE's correction, Forster et al. 2021, AJ 161, 242)."""
MAX_SOLAR_SYSTEM_DISTANCE: Final = 5.0
"""Arcsec within which the nearest known moving object is taken for the detection."""
_MISSING: Final = -99.0
"""Magnitudes, distances and fluxes are -999 or -99999 where they are missing."""
_SIGN: Final = {"t": 1.0, "1": 1.0, "true": 1.0, "f": -1.0, "0": -1.0, "false": -1.0}


def to_alert(record: Record, schema_name: str) -> Alert:
    """One packet as an Alert; raises DecodeError where what identifies or places the detection is missing.

    Difference fluxes are PSF magnitudes with the sign of ``isdiffpos``; a point's reference flux is that of
    ``magnr`` within MAX_REFERENCE_DISTANCE. Earlier candidates without a magnitude are upper limits.
    """
    candidate = record["candidate"]
    if not isinstance(candidate, dict):
        raise DecodeError("the packet has no candidate")
    photometry = Photometry()
    _add_candidates(photometry, [candidate])
    if (band := BANDS.get(required(candidate, "fid"))) is None:
        raise DecodeError(f"fid {candidate['fid']} is no filter of ZTF")
    _add_candidates(photometry, record.get("prv_candidates") or [])
    _add_forced(photometry, record.get("fp_hists") or [])
    ra, dec = columns.position(required(candidate, "ra"), required(candidate, "dec"))
    name = required(record, "objectId")
    if not name:
        raise DecodeError("the packet has an empty objectId")
    candid = int(required(record, "candid"))
    moving = candidate.get("ssdistnr")
    return Alert(
        survey=SURVEY,
        alert_id=candid,
        source_id=candid,
        object_id=name,
        ra=ra,
        dec=dec,
        mjd=columns.time(required(candidate, "jd") - JD_OF_MJD_0),
        band=band,
        light_curve=photometry.light_curve(),
        schema_version=str(record.get("schemavsn") or ""),
        real_bogus=columns.score(columns.first(candidate, "drb", "rb")),
        solar_system=moving is not None and 0.0 <= moving <= MAX_SOLAR_SYSTEM_DISTANCE,
    )


def _reference_flux(records: Sequence[Record]) -> NDArray[np.float64]:
    distance, magnitude = numbers(column(records, "distnr")), numbers(column(records, "magnr"))
    flux, _ = magnitude_to_flux(magnitude, np.zeros(len(records)))
    own = (distance >= 0) & (distance <= MAX_REFERENCE_DISTANCE) & (magnitude > _MISSING)
    return np.where(own, flux, np.nan)


def _add_candidates(photometry: Photometry, records: Sequence[Record]) -> None:
    """Detections, and limits where there is no magnitude."""
    for kind, chosen in (
        (PhotometryKind.DETECTION, [r for r in records if r.get("magpsf") is not None]),
        (PhotometryKind.LIMIT, [r for r in records if r.get("magpsf") is None]),
    ):
        if not chosen:
            continue
        mjd = numbers(column(chosen, "jd")) - JD_OF_MJD_0
        band = band_codes(column(chosen, "fid"), BANDS)
        if kind is PhotometryKind.DETECTION:
            magnitude = numbers(column(chosen, "magpsf"))
            magnitude[magnitude <= _MISSING] = np.nan
            flux, error = magnitude_to_flux(magnitude, numbers(column(chosen, "sigmapsf")))
            sign = np.array([_sign(value) for value in column(chosen, "isdiffpos")], np.float64)
            photometry.add(kind, mjd, sign * flux, error, _reference_flux(chosen), band)
        else:
            magnitude = numbers(column(chosen, "diffmaglim"))
            magnitude[magnitude <= _MISSING] = np.nan
            limit, _ = magnitude_to_flux(magnitude, np.zeros(len(chosen)))
            nothing = np.full(len(chosen), np.nan)
            photometry.add(kind, mjd, nothing, limit / LIMIT_SIGMA, nothing, band)


def _sign(value: Any) -> float:
    return _SIGN.get(str(value).strip().lower(), math.nan)


def _add_forced(photometry: Photometry, records: Sequence[Record]) -> None:
    """Forced photometry: counts of the difference image, with the zero point of its science image."""
    if not records:
        return
    unit = AB_ZERO_POINT_NJY * 10.0 ** (-0.4 * numbers(column(records, "magzpsci")))
    flux, error = numbers(column(records, "forcediffimflux")), numbers(column(records, "forcediffimfluxunc"))
    flux[flux <= -99_999.0] = np.nan
    photometry.add(
        PhotometryKind.FORCED,
        numbers(column(records, "jd")) - JD_OF_MJD_0,
        flux * unit,
        error * unit,
        _reference_flux(records),
        band_codes(column(records, "fid"), BANDS),
    )
