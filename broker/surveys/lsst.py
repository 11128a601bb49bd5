"""LSST packets, schemas 3.0 to 11.1 (https://github.com/lsst/alert_packet)."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

import numpy as np

from broker.errors import DecodeError
from broker.records import Alert, PhotometryKind, SourceMetadata
from broker.surveys import columns
from broker.surveys.columns import (
    Checks,
    Numbers,
    PointFlaw,
    Points,
    TimeRange,
    band_codes,
    label,
    label_text,
    or_none,
)
from broker.surveys.survey import NULL, Column, FilledTable, Kind, Records, RowTable
from broker.times import utc_of_tai

BANDS: Final = {**{band: f"lsst:{band}" for band in "ugrizy"}, "Y": "lsst:y"}
_VERSION: Final = re.compile(r"v(\d+)_(\d+)")
_BAND_OF_LABEL: Final = {label(name): band for name, band in BANDS.items()}
_KINDS: Final = np.array(
    [PhotometryKind.DETECTION, PhotometryKind.DETECTION, PhotometryKind.FORCED, PhotometryKind.LIMIT], np.uint8
)
"""Of the points of each path."""
_SOURCE: Final = 0  # the first of these paths
_MAX_PARALLAX: Final = 1000.0
"""mas; the nearest star's is 769 (Gaia DR3)."""
_MAX_PROPER_MOTION: Final = 11_000.0
"""mas a year; Barnard's star, the fastest, has 10,393 (Gaia DR3)."""


TIMES: Final = TimeRange(first=56_000.0)
"""Rubin's own images begin in 2024; alerts of the images by which its software was tested (HiTS, DECam, from 2013 on;
Forster et al. 2016, ApJ 832, 155) are sent under the same schemas."""
_FLAGS: Final = (
    "psfFlux_flag", "psfFlux_flag_edge", "psfFlux_flag_noGoodPixels", "pixelFlags_offimage", "pixelFlags_nodataCenter",
    "pixelFlags_saturatedCenter", "pixelFlags_interpolatedCenter", "pixelFlags_crCenter", "pixelFlags_injectedCenter",
    "pixelFlags_injected_templateCenter",
)  # fmt: skip
"""Flags of a source, of schemas from 7.0 on, by which its flux is not that of a star: the fit failed, the pixels at its
center are missing, saturated, interpolated or hit by a cosmic ray, or the source was put in by the survey as a test.
Those of the whole footprint say less, and say it of many good ones. The bits of ``flags``, which schemas before 7.0
have, are documented nowhere."""


def _number(*names: str) -> Column:
    return Column(Kind.NUMBER, names)


def _integer(*names: str) -> Column:
    return Column(Kind.INTEGER, names)


class Lsst:
    """The survey for the decoder, see ``broker.surveys.survey.Survey``."""

    name: str = "lsst"
    flux_unit: float = 1.0
    """nJy."""
    times: TimeRange = TIMES
    # Second names are those of schemas before 5.0.
    tables: Final = {
        "packet": RowTable(
            ("",),
            {
                "alertId": _integer("alertId"),
                "diaSourceId": _integer("diaSourceId"),
                "lsst_schema_version": Column(Kind.TEXT, ("lsst_schema_version",)),
                "source": _integer("diaSource.diaSourceId"),
                "object": _integer("diaSource.diaObjectId"),
                "moving": _integer("diaSource.ssObjectId"),
                "ra": _number("diaSource.ra"),
                "dec": _number("diaSource.dec", "diaSource.decl"),
                "reliability": _number("diaSource.reliability"),
                "extendedness": _number("diaSource.extendedness"),
                "detections": _integer("diaObject.nDiaSources"),
                "first": _number("diaObject.firstDiaSourceMjdTai"),
                "last": _number("diaObject.lastDiaSourceMjdTai"),
                "parallax": _number("diaObject.parallax"),
                "parallax_error": _number("diaObject.parallaxErr"),
                "pmra": _number("diaObject.pmRa"),
                "pmra_error": _number("diaObject.pmRaErr"),
                "pmdec": _number("diaObject.pmDec", "diaObject.pmDecl"),
                "pmdec_error": _number("diaObject.pmDecErr", "diaObject.pmDeclErr"),
            },
        ),
        "points": RowTable(
            ("diaSource", "prvDiaSources[]", "prvDiaForcedSources[]", "prvDiaNondetectionLimits[]"),
            {
                "mjd": _number("midpointMjdTai", "midPointTai"),
                "band": Column(Kind.LABEL, ("band", "filterName")),
                "flux": _number("psfFlux", "psFlux"),
                "error": _number("psfFluxErr", "psFluxErr"),
                "science": _number("scienceFlux", "totFlux"),
                "template": _number("templateFlux"),
                "noise": _number("diaNoise"),
                "science_failed": _integer("forced_PsfFlux_flag"),
                "withdrawn": _number("timeWithdrawnMjdTai"),
                **{name: _integer(name) for name in _FLAGS},
            },
        ),
    }

    def recognises(self, schema_name: str, fields: frozenset[str]) -> bool:
        """Packets are known by their field ``diaSource``."""
        return "diaSource" in fields

    def to_alerts(self, records: Records) -> list[Alert | DecodeError]:
        """An Alert a record, times from TAI to UTC, or what identifies or places the detection and is missing.

        A point's reference flux is ``scienceFlux - psfFlux``, else ``templateFlux``, else unknown. Non-detections,
        which schemas before 8.0 have, come with the noise of the image at that place. Sources that the survey flags
        as badly measured (_FLAGS) or has withdrawn are not used.
        """
        count = len(records)
        packet, points = records.tables["packet"], records.tables["points"]
        mjd = utc_of_tai(points.numbers("mjd"))
        rows = np.flatnonzero(points.path == _SOURCE)
        own = points.owner[rows]
        missing = np.ones(count, np.bool_)
        missing[own] = False
        checks = Checks.of(count)
        checks.refuse(missing, "the packet has no diaSource")
        bands, own_mjd = np.full(count, NULL), np.full(count, np.nan)
        bands[own], own_mjd[own] = points.integers("band")[rows], mjd[rows]
        curves = columns.light_curves(
            self._points(points, mjd), count,
            times=self.times, detected=own_mjd, latest=records.latest, left_out=records.left_out,
        )  # fmt: skip
        left_out_bands = columns.unknown_bands(
            points.owner, points.integers("band"), band_codes(points.integers("band"), _BAND_OF_LABEL), label_text
        )
        source = packet.integers("source")
        checks.refuse(source == NULL, "the packet has no diaSourceId")
        checks.refuse(bands == NULL, "the packet has no band")
        names = [_BAND_OF_LABEL.get(band) for band in bands.tolist()]
        unknown = np.array([name is None for name in names], np.bool_)
        if unknown.any():
            checks.refuse(unknown, "{!r} is no filter of LSST", [label_text(band) for band in bands.tolist()])
        ra, dec = checks.position(packet)
        checks.time(own_mjd, self.times, records.latest)

        versions = map(_version, records.texts("lsst_schema_version"), records.schema_names())
        return [
            DecodeError(reason)
            if reason is not None
            else Alert(
                survey=self.name,
                alert_id=(alert_id if alert_id is not None else packet_id) or source_id,
                source_id=source_id,
                object_id=_object_id(object_id, moving, source_id),
                ra=alert_ra,
                dec=alert_dec,
                mjd=alert_mjd,
                band=band or "",
                light_curve=curve,
                schema_version=version,
                metadata=catalogue,
                real_bogus=real,
                solar_system=bool(moving),
                star_score=star,
                survey_detections=detections,
                first_detected=first,
                unknown_bands=left_out_bands.get(row, ()),
            )
            for row, (
                reason, alert_id, packet_id, source_id, object_id, moving, alert_ra, alert_dec, alert_mjd, band, curve,
                version, catalogue, real, star, detections, first,
            ) in enumerate(zip(
                checks.reasons, or_none(packet.integers("alertId")), or_none(packet.integers("diaSourceId")),
                source.tolist(), or_none(packet.integers("object")), or_none(packet.integers("moving")),
                ra.tolist(), dec.tolist(), own_mjd.tolist(), names, curves, versions, _metadata(packet),
                columns.share_or_none(packet.numbers("reliability")),
                columns.share_or_none(1.0 - packet.numbers("extendedness")),
                columns.counts(packet.integers("detections")),
                columns.times(utc_of_tai(packet.numbers("first")), self.times),
                strict=True,
            ))
        ]  # fmt: skip

    def _points(self, points: FilledTable, mjd: Numbers) -> Points:
        unit, path = self.flux_unit, points.path
        kind = _KINDS[path]
        flux = points.numbers("flux")
        science = np.where(points.integers("science_failed") == 1, np.nan, points.numbers("science"))
        with np.errstate(over="ignore", invalid="ignore"):
            reference = unit * np.where(np.isnan(science), points.numbers("template"), science - flux)
            error = unit * np.where(kind == PhotometryKind.LIMIT, points.numbers("noise"), points.numbers("error"))
            flux = unit * flux
        # Paths one after the other, whatever the order of the writer's fields.
        order = np.argsort(path.astype(np.uint8), kind="stable")
        band = band_codes(points.integers("band"), _BAND_OF_LABEL)
        reference = np.where(kind == PhotometryKind.LIMIT, np.nan, reference)
        flagged = points.numbers("withdrawn") > 0
        for name in _FLAGS:
            flagged |= points.integers(name) == 1
        left_out = np.where(flagged, np.uint8(PointFlaw.FLAGGED), np.uint8(PointFlaw.NONE))
        return Points(
            points.owner[order], mjd[order], flux[order], error[order], reference[order], band[order], kind[order],
            left_out[order],
        )  # fmt: skip


SURVEY: Final = Lsst()


@lru_cache(maxsize=256)
def _version(text: str | None, schema_name: str) -> str:
    version = _VERSION.search(text or schema_name)
    return ".".join(version.groups()) if version else ""


def _object_id(object_id: int | None, moving: int | None, source_id: int) -> str:
    """The DIA object, else the moving object, else the detection by itself; ids of 0 stand for none."""
    if object_id:
        return str(object_id)
    if moving:
        return f"sso:{moving}"
    return f"source:{source_id}"


def _metadata(packet: FilledTable) -> list[SourceMetadata | None]:
    """Parallax and proper motion of the DIA object, which schemas before 8.0 have (mas, mas a year), and its history.

    A parallax or motion counts with its error only: nulls, zeros and NaN stand for what was not measured.
    """
    detections = packet.integers("detections").astype(np.float64)  # null is far below 0
    extended = packet.numbers("extendedness")
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        days = packet.numbers("last") - packet.numbers("first")
        found = [
            ("star_score", np.where((extended >= 0) & (extended <= 1), 1.0 - extended, np.nan)),
            ("log10_detections_ever", np.where(detections > 0, np.log10(detections), np.nan)),
            ("log10_history_days", np.where((days >= 0) & (days < 1e5), np.log10(days + 0.1), np.nan)),
        ]
    for name, most in (("parallax", _MAX_PARALLAX), ("pmra", _MAX_PROPER_MOTION), ("pmdec", _MAX_PROPER_MOTION)):
        value, error = packet.numbers(name), packet.numbers(f"{name}_error")
        good = (np.abs(value) <= most) & (value != 0) & (error > 0) & (error <= most)
        found += [(name, np.where(good, value, np.nan)), (f"{name}_error", np.where(good, error, np.nan))]
    return columns.metadata(len(packet), found)
