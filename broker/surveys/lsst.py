"""LSST packets, schemas 3.0 to 11.1 (https://github.com/lsst/alert_packet)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from broker.errors import DecodeError
from broker.records import Alert, PhotometryKind
from broker.surveys import columns
from broker.surveys.columns import TAI_MINUS_UTC, Photometry, band_codes, column, first, numbers, required
from broker.surveys.wire import Record

SURVEY: Final = "lsst"
MARK: Final = "diaSource"
"""The field at the top of a packet by which it is known."""
FIELDS: Final = frozenset(
    {
        "alertId", "diaSourceId", "diaSource", "prvDiaSources", "prvDiaForcedSources", "prvDiaNondetectionLimits",
        "lsst_schema_version", "diaObjectId", "ssObjectId", "reliability", "ra", "dec", "band",
        "midpointMjdTai", "psfFlux", "psfFluxErr", "scienceFlux", "templateFlux", "diaNoise",
        # the names of schemas before 5.0
        "decl", "filterName", "midPointTai", "psFlux", "psFluxErr", "totFlux",
    }
)  # fmt: skip
"""All that is read of a packet."""
BANDS: Final = {**{band: f"lsst:{band}" for band in "ugrizy"}, "Y": "lsst:y"}
_VERSION: Final = re.compile(r"v(\d+)_(\d+)")


def to_alert(record: Record, schema_name: str) -> Alert:
    """One packet as an Alert, fluxes as they are (nJy), times from TAI to UTC.

    A point's reference flux is ``scienceFlux - psfFlux``, else ``templateFlux``, else unknown. Raises
    DecodeError where what identifies or places the detection is missing.
    """
    return dia_alert(record, schema_name, SURVEY, 1.0)


def dia_alert(record: Record, schema_name: str, survey: str, unit: float) -> Alert:
    """A packet in LSST's structure, of fluxes in ``unit`` nJy."""
    source = record["diaSource"]
    if not isinstance(source, dict):
        raise DecodeError("the packet has no diaSource")
    photometry = Photometry()
    _add(photometry, PhotometryKind.DETECTION, [source, *(record.get("prvDiaSources") or [])], unit)
    _add(photometry, PhotometryKind.FORCED, record.get("prvDiaForcedSources") or [], unit)
    _add_limits(photometry, record.get("prvDiaNondetectionLimits") or [], unit)
    source_id = int(required(source, "diaSourceId"))
    name = required(source, "band", "filterName")
    if name not in BANDS:
        raise DecodeError(f"{name!r} is no filter of LSST")
    ra, dec = columns.position(required(source, "ra"), required(source, "dec", "decl"))
    version = _VERSION.search(str(record.get("lsst_schema_version") or schema_name))
    return Alert(
        survey=survey,
        alert_id=int(first(record, "alertId", "diaSourceId") or source_id),
        source_id=source_id,
        object_id=_object_id(source, source_id),
        ra=ra,
        dec=dec,
        mjd=columns.time(required(source, "midpointMjdTai", "midPointTai") - TAI_MINUS_UTC),
        band=BANDS[name],
        light_curve=photometry.light_curve(),
        schema_version=".".join(version.groups()) if version else "",
        real_bogus=columns.score(source.get("reliability")),
        solar_system=bool(source.get("ssObjectId")),
    )


def _object_id(source: Record, source_id: int) -> str:
    """The DIA object, else the moving object, else the detection by itself; ids of 0 stand for none."""
    if source.get("diaObjectId"):
        return str(source["diaObjectId"])
    if source.get("ssObjectId"):
        return f"sso:{source['ssObjectId']}"
    return f"source:{source_id}"


def _times_and_bands(records: Sequence[Record]) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
    mjd = numbers(column(records, "midpointMjdTai", "midPointTai")) - TAI_MINUS_UTC
    return mjd, band_codes(column(records, "band", "filterName"), BANDS)


def _add(photometry: Photometry, kind: PhotometryKind, records: Sequence[Record], unit: float) -> None:
    if not records:
        return
    mjd, band = _times_and_bands(records)
    flux = numbers(column(records, "psfFlux", "psFlux"))
    error = numbers(column(records, "psfFluxErr", "psFluxErr"))
    science = numbers(column(records, "scienceFlux", "totFlux"))
    template = numbers(column(records, "templateFlux"))
    reference = np.where(np.isnan(science), template, science - flux)
    photometry.add(kind, mjd, unit * flux, unit * error, unit * reference, band)


def _add_limits(photometry: Photometry, records: Sequence[Record], unit: float) -> None:
    """Non-detections, which schemas before 8.0 have with the noise of the image at that place."""
    if not records:
        return
    mjd, band = _times_and_bands(records)
    nothing = np.full(len(records), np.nan)
    noise = numbers(column(records, "diaNoise"))
    photometry.add(PhotometryKind.LIMIT, mjd, nothing, unit * noise, nothing, band)
