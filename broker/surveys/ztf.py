"""ZTF packets, schemas 3.0 to 4.02 (https://zwickytransientfacility.github.io/ztf-avro-alert/)."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from broker.errors import DecodeError
from broker.photometry import magnitude_to_flux
from broker.records import AB_ZERO_POINT_NJY, Alert, PhotometryKind, SourceMetadata
from broker.surveys import columns
from broker.surveys.columns import (
    LIMIT_SIGMA,
    UNKNOWN_BAND,
    Checks,
    Integers,
    Numbers,
    PointFlaw,
    Points,
    TimeRange,
    band_codes,
    label,
    label_text,
)
from broker.surveys.survey import NULL, Column, FilledTable, Kind, Records, RowTable
from broker.times import mjd_of_jd

BANDS: Final = {1: "ztf:g", 2: "ztf:r", 3: "ztf:i"}
MAX_REFERENCE_DISTANCE: Final = 1.4
"""Arcsec within which the nearest source of the reference image is taken for the star itself (by custom, as in
ALeRCE's correction, Forster et al. 2021, AJ 161, 242); the nearest of Gaia, too."""
MAX_PS1_DISTANCE: Final = 1.5
"""Arcsec within which the nearest PS1 source is taken for the star itself (as ZTF's own alert filters do)."""
MAX_SOLAR_SYSTEM_DISTANCE: Final = 5.0
"""Arcsec within which the nearest known moving object is taken for the detection."""
_MISSING: Final = -99.0
"""Magnitudes and distances are -999 or -99999 where they are missing."""
_NO_FLUX: Final = -99_999.0
"""Flux of forced photometry, in counts, where it is missing. A lower one is a measurement: a Mira of 13 mag in the
reference image has -2e5 in its minimum."""
TIMES: Final = TimeRange(first=58_000.0)
"""The camera saw its first light on 2017 November 1, MJD 58058 (Bellm et al. 2019, PASP 131, 018002)."""
_SIGN: Final = {
    **dict.fromkeys(("t", "true", "1", "+1", "1.0", "+"), 1.0),
    **dict.fromkeys(("f", "false", "0", "0.0", "-1", "-1.0", "-"), -1.0),
}
"""Spellings of ``isdiffpos``: ZTF's own are t, f, 1 and 0; packets that others wrote again have booleans and 1, -1."""
_PROCESSED: Final = "0"
"""The only ``procstatus`` of forced photometry that was measured without a fault. Of 543 points in 671 real packets
286 have it, stars without a source in the reference image among them; the others are 56, which have fluxes off by many
sigma (bad pixels; Masci et al. 2023, arXiv:2305.16279), and 55 and 61, which have none."""
_CANDIDATE: Final = 0  # the first of the paths of candidates
_NUMBERS: Final = (
    "ra", "dec", "drb", "rb", "ssdistnr", "sgscore1", "distpsnr1", "sgmag1", "srmag1", "simag1", "szmag1",
    "neargaia", "maggaia", "maggaiabright", "ncovhist", "jdstarthist", "jdendhist",
)  # fmt: skip


def _numbers(*names: str) -> dict[str, Column]:
    return {name: Column(Kind.NUMBER, (name,)) for name in names}


class Ztf:
    """The survey for the decoder, see ``broker.surveys.survey.Survey``."""

    name: Final = "ztf"
    times: Final = TIMES
    tables: Final = {
        "packet": RowTable(
            ("",),
            {
                "objectId": Column(Kind.TEXT, ("objectId",)),
                "schemavsn": Column(Kind.TEXT, ("schemavsn",)),
                "candid": Column(Kind.INTEGER, ("candid",)),
                "ndethist": Column(Kind.INTEGER, ("candidate.ndethist",)),
                **{name: Column(Kind.NUMBER, (f"candidate.{name}",)) for name in _NUMBERS},
            },
        ),
        "candidates": RowTable(
            ("candidate", "prv_candidates[]"),
            {
                **_numbers("jd", "magpsf", "sigmapsf", "diffmaglim", "distnr", "magnr", "nbad"),
                "fid": Column(Kind.INTEGER, ("fid",)),
                "isdiffpos": Column(Kind.LABEL, ("isdiffpos",)),
            },
        ),
        "forced": RowTable(
            ("fp_hists[]",),
            {
                **_numbers("jd", "forcediffimflux", "forcediffimfluxunc", "magzpsci", "distnr", "magnr"),
                "fid": Column(Kind.INTEGER, ("fid",)),
                "procstatus": Column(Kind.LABEL, ("procstatus",)),
            },
        ),
    }

    def recognises(self, schema_name: str, fields: frozenset[str]) -> bool:
        """Packets are known by their field ``candidate``."""
        return "candidate" in fields

    def to_alerts(self, records: Records) -> list[Alert | DecodeError]:
        """An Alert a record, or what identifies or places the detection and is missing.

        Difference fluxes are PSF magnitudes with the sign of ``isdiffpos``; a point's reference flux is that of
        ``magnr`` within MAX_REFERENCE_DISTANCE. Earlier candidates without a magnitude are upper limits. Candidates
        with bad pixels in the 5 x 5 around them (``nbad``, which ZTF advises to leave out) are not used, and of forced
        photometry only what was processed without a fault.
        """
        count = len(records)
        packet, candidates = records.tables["packet"], records.tables["candidates"]
        band = band_codes(candidates.integers("fid"), BANDS)
        mjd = mjd_of_jd(candidates.numbers("jd"))
        rows = np.flatnonzero(candidates.path == _CANDIDATE)
        own = candidates.owner[rows]
        missing = np.ones(count, np.bool_)
        missing[own] = False
        fid, own_band, own_mjd = np.full(count, NULL), np.full(count, UNKNOWN_BAND, np.uint8), np.full(count, np.nan)
        fid[own], own_band[own], own_mjd[own] = candidates.integers("fid")[rows], band[rows], mjd[rows]
        curves = columns.light_curves(
            _points(candidates, records.tables["forced"], mjd, band), count,
            times=TIMES, detected=own_mjd, latest=records.latest, left_out=records.left_out,
        )  # fmt: skip
        forced = records.tables["forced"]
        left_out_bands = columns.unknown_bands(
            np.concatenate([candidates.owner, forced.owner]),
            np.concatenate([candidates.integers("fid"), forced.integers("fid")]),
            np.concatenate([band, band_codes(forced.integers("fid"), BANDS)]), "fid {}".format,
        )  # fmt: skip
        checks = Checks.of(count)
        checks.refuse(missing, "the packet has no candidate")
        checks.refuse(fid == NULL, "the packet has no fid")
        checks.refuse(own_band == UNKNOWN_BAND, "fid {} is no filter of ZTF", fid)
        ra, dec = checks.position(packet)
        names = records.texts("objectId")
        candid = packet.integers("candid")
        checks.refuse(packet.is_null("objectId"), "the packet has no objectId")
        checks.refuse(np.array([name == "" for name in names], np.bool_), "the packet has an empty objectId")
        checks.refuse(candid == NULL, "the packet has no candid")
        checks.time(own_mjd, TIMES, records.latest)

        real_bogus = np.where(packet.is_null("drb"), packet.numbers("rb"), packet.numbers("drb"))
        moving = packet.numbers("ssdistnr")
        ps1 = _within(packet.numbers("distpsnr1"), MAX_PS1_DISTANCE)
        return [
            DecodeError(reason)
            if reason is not None
            else Alert(
                survey="ztf",
                alert_id=number,
                source_id=number,
                object_id=name or "",
                ra=alert_ra,
                dec=alert_dec,
                mjd=alert_mjd,
                band=BANDS[alert_fid],
                light_curve=curve,
                schema_version=version or "",
                metadata=catalogue,
                real_bogus=real,
                solar_system=moves,
                star_score=star,
                survey_detections=detections,
                first_detected=first,
                unknown_bands=left_out_bands.get(row, ()),
            )
            for row, (
                reason, number, name, alert_ra, alert_dec, alert_mjd, alert_fid, curve, version, catalogue, real, moves,
                star, detections, first,
            ) in enumerate(zip(
                checks.reasons, candid.tolist(), names, ra.tolist(), dec.tolist(), own_mjd.tolist(), fid.tolist(),
                curves, records.texts("schemavsn"), _metadata(packet, ps1), columns.share_or_none(real_bogus),
                _within(moving, MAX_SOLAR_SYSTEM_DISTANCE).tolist(),
                columns.share_or_none(np.where(ps1, packet.numbers("sgscore1"), np.nan)),
                columns.counts(packet.integers("ndethist")),
                columns.times(mjd_of_jd(packet.numbers("jdstarthist")), TIMES),
                strict=True,
            ))
        ]  # fmt: skip


SURVEY: Final = Ztf()


def _points(candidates: FilledTable, forced: FilledTable, mjd: Numbers, band: NDArray[np.uint8]) -> Points:
    """All points of a batch: the candidates first, then earlier detections, earlier limits and forced photometry."""
    own = candidates.path == _CANDIDATE
    limit = candidates.is_null("magpsf")
    order = np.concatenate([np.flatnonzero(own), np.flatnonzero(~own & ~limit), np.flatnonzero(~own & limit)])
    flux, error = magnitude_to_flux(_known(candidates.numbers("magpsf")), candidates.numbers("sigmapsf"))
    limit_flux, _ = magnitude_to_flux(_known(candidates.numbers("diffmaglim")), np.zeros(len(candidates)))
    forced_flux, forced_error = _forced_flux(forced)
    kind = np.where(limit, np.uint8(PhotometryKind.LIMIT), np.uint8(PhotometryKind.DETECTION))
    signs = _signs(candidates.integers("isdiffpos"))
    left_out = np.where(~limit & np.isnan(signs), np.uint8(PointFlaw.SIGN), np.uint8(PointFlaw.NONE))
    left_out[~limit & (candidates.numbers("nbad") > 0)] = PointFlaw.FLAGGED
    processed = _texts_are(forced.integers("procstatus"), _PROCESSED)
    return Points(
        owner=np.concatenate([candidates.owner[order], forced.owner]),
        mjd=np.concatenate([mjd[order], mjd_of_jd(forced.numbers("jd"))]),
        flux=np.concatenate([(np.where(np.isnan(signs), 1.0, signs) * flux)[order], forced_flux]),
        flux_error=np.concatenate([np.where(limit, limit_flux / LIMIT_SIGMA, error)[order], forced_error]),
        reference_flux=np.concatenate(
            [np.where(limit, np.nan, _reference_flux(candidates))[order], _reference_flux(forced)]
        ),
        band=np.concatenate([band[order], band_codes(forced.integers("fid"), BANDS)]),
        kind=np.concatenate([kind[order], np.full(len(forced), PhotometryKind.FORCED, np.uint8)]),
        left_out=np.concatenate(
            [left_out[order], np.where(processed, np.uint8(PointFlaw.NONE), np.uint8(PointFlaw.FLAGGED))]
        ),
    )


def _known(magnitudes: Numbers) -> Numbers:
    return np.where(magnitudes <= _MISSING, np.nan, magnitudes)


def _within(distance: Numbers, most: float) -> NDArray[np.bool_]:
    return (distance >= 0) & (distance <= most)


def _signs(labels: Integers) -> Numbers:
    """The sign (n,) that ``isdiffpos`` stands for, NaN where it says nothing."""
    signs = np.full(len(labels), np.nan)
    signs[labels == label("t")] = 1.0
    signs[labels == label("f")] = -1.0
    for other in np.unique(labels[np.isnan(signs) & (labels != NULL)]).tolist():
        signs[labels == other] = _SIGN.get(label_text(other).strip().lower(), math.nan)
    return signs


def _texts_are(labels: Integers, text: str) -> NDArray[np.bool_]:
    """Which labels (n,) are a text, whatever blanks are around it."""
    same: NDArray[np.bool_] = labels == label(text)
    for other in np.unique(labels[~same & (labels != NULL)]).tolist():
        if label_text(other).strip() == text:
            same |= labels == other
    return same


def _reference_flux(rows: FilledTable) -> Numbers:
    """Flux of the star in the reference image, NaN where none is near."""
    magnitude = rows.numbers("magnr")
    flux, _ = magnitude_to_flux(magnitude, np.zeros(len(rows)))
    own = _within(rows.numbers("distnr"), MAX_REFERENCE_DISTANCE) & (magnitude > _MISSING)
    return np.where(own, flux, np.nan)


def _forced_flux(forced: FilledTable) -> tuple[Numbers, Numbers]:
    """Forced photometry: counts of the difference image, with the zero point of its science image."""
    flux, error = forced.numbers("forcediffimflux"), forced.numbers("forcediffimfluxunc")
    with np.errstate(over="ignore", invalid="ignore"):  # absurd zero points become infinite, and nothing worse
        unit = AB_ZERO_POINT_NJY * 10.0 ** (-0.4 * forced.numbers("magzpsci"))
        return np.where(flux == _NO_FLUX, np.nan, flux) * unit, error * unit


def _metadata(packet: FilledTable, ps1: NDArray[np.bool_]) -> list[SourceMetadata | None]:
    """What the packet says of the source: see ``broker.assemble.metadata.PACKET_FEATURES``.

    V is that of the PS1 source at the position (Tonry et al. 2012, ApJ 750, 99, table 6).
    """

    def magnitude(name: str, own: NDArray[np.bool_]) -> Numbers:
        values = packet.numbers(name)
        return np.where(own & _is_magnitude(values), values, np.nan)

    g, r, i, z = (magnitude(f"s{band}mag1", ps1) for band in "griz")
    at_gaia = _within(packet.numbers("neargaia"), MAX_REFERENCE_DISTANCE)
    everywhere = np.ones(len(packet), np.bool_)
    # A null is far below 0.
    detections, visits = packet.integers("ndethist").astype(np.float64), packet.numbers("ncovhist")
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        days = packet.numbers("jdendhist") - packet.numbers("jdstarthist")
        return columns.metadata(
            len(packet),
            [
                ("mean_vmag", r + 0.006 + 0.474 * (g - r)),
                ("phot_g_mean_mag", magnitude("maggaia", at_gaia)),
                ("ps1_g_r", g - r),
                ("ps1_r_i", r - i),
                ("ps1_i_z", i - z),
                ("ps1_r_mag", r),
                ("star_score", np.where(ps1, _share(packet.numbers("sgscore1")), np.nan)),
                ("gaia_bright_mag", magnitude("maggaiabright", everywhere)),
                ("log10_detections_ever", np.where(detections > 0, np.log10(detections), np.nan)),
                ("log10_visits_ever", np.where(visits > 0, np.log10(visits), np.nan)),
                ("detected_ever_share", _share(np.where(visits > 0, detections / visits, np.nan))),
                ("log10_history_days", np.where((days >= 0) & (days < 1e5), np.log10(days + 0.1), np.nan)),
            ],
        )


def _share(values: Numbers) -> Numbers:
    """Values that are between 0 and 1, NaN for others."""
    return np.where((values >= 0) & (values <= 1), values, np.nan)


def _is_magnitude(values: Numbers) -> NDArray[np.bool_]:
    """Whether values are magnitudes that a star in these catalogues can have."""
    return (values > 0) & (values < 30)
