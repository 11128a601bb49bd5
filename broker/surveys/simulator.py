"""Simulated alerts in ZTF's own schema, so that everything can be tried without any data.

Stars of the ten classes with the light-curve shapes, periods and amplitudes typical of them, observed in g and
r in ZTF's manner: differences from a reference image, upper limits where nothing is seen, forced photometry.
One object in thirty is a supernova, which no class is meant for. Good for a demonstration and for load tests;
no scientific result may be drawn from it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.resources import files
from io import BytesIO
from typing import Any, Final

import fastavro
import numpy as np
from fastavro.schema import parse_schema
from numpy.typing import NDArray

from broker.avro.container import container_message
from broker.avro.schema import AvroSchema
from broker.photometry import POGSON
from broker.records import AB_ZERO_POINT_NJY
from broker.taxonomy import CLASS_NAMES
from broker.times import jd_of_mjd

Array = NDArray[np.float64]

SCHEMA_JSON: Final = files("broker.surveys").joinpath("ztf_alert_4_02.avsc").read_bytes()
SUPERNOVA: Final = "SN"
"""Name of the objects that are none of the ten classes."""
_SUPERNOVA_SHARE: Final = 1 / 30
_FIRST_MJD: Final = 58_300.0
_DAYS_BETWEEN_NIGHTS: Final = 9.0
_HISTORY_DAYS: Final = 30.0
"""What a packet of ZTF tells of the past."""
_ZERO_POINT: Final = 26.2
_CALIBRATION_ERROR: Final = 0.015
_LIMITING_MAGNITUDE: Final = 20.5
_LETTERS: Final = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, slots=True)
class SimulatedAlert:
    """One packet and the truth about its object."""

    payload: bytes
    object_id: str
    class_name: str


@dataclass(frozen=True, slots=True)
class _Kind:
    """How a class varies: ``shape`` of phase 0 to 1, about 0 (bright) to 1 (faint)."""

    period: tuple[float, float]
    """Shortest and longest, days."""
    amplitude: tuple[float, float]
    """Smallest and largest, mag."""
    shape: Callable[[Array], Array]


def _dip(phase: Array, center: float, width: float) -> Array:
    distance = (phase - center + 0.5) % 1.0 - 0.5
    return np.exp(-0.5 * (distance / width) ** 2)


def _saw(phase: Array) -> Array:
    rise = 0.15
    return np.where(phase < rise, 1 - phase / rise, (np.maximum(phase - rise, 0) / (1 - rise)) ** 0.6)


def _sine(phase: Array) -> Array:
    return 0.5 - 0.5 * np.cos(2 * np.pi * phase)


_KINDS: Final[dict[str, _Kind]] = {
    "EW": _Kind((0.25, 0.6), (0.3, 0.7), lambda p: np.abs(np.cos(2 * np.pi * p)) ** 1.6 * (0.93 + 0.07 * _sine(p))),
    "SR": _Kind((40.0, 200.0), (0.3, 1.2), lambda p: 0.6 * _sine(p) + 0.4 * _sine(1.618 * p)),
    "EA": _Kind((0.8, 8.0), (0.4, 1.5), lambda p: _dip(p, 0.0, 0.025) + 0.5 * _dip(p, 0.5, 0.025)),
    "RRAB": _Kind((0.45, 0.75), (0.6, 1.2), _saw),
    "EB": _Kind((0.5, 3.0), (0.4, 1.0), lambda p: _dip(p, 0.0, 0.07) + 0.45 * _dip(p, 0.5, 0.07) + 0.15 * _sine(2 * p)),
    "ROT": _Kind((1.0, 20.0), (0.1, 0.3), lambda p: _sine(p) * (0.8 + 0.2 * _sine(p + 0.3))),
    "RRC": _Kind((0.25, 0.4), (0.3, 0.5), lambda p: _sine(p) + 0.08 * np.sin(4 * np.pi * p)),
    "HADS": _Kind((0.06, 0.2), (0.3, 0.7), lambda p: 0.7 * _saw(p) + 0.3 * _sine(p)),
    "M": _Kind((120.0, 450.0), (2.5, 5.0), lambda p: 0.9 * _sine(p) + 0.1 * _saw(p)),
    "DSCT": _Kind((0.05, 0.15), (0.08, 0.25), _sine),
}
_LONG_RR_LYRAE: Final = _Kind((0.9, 0.97), (0.6, 1.2), _saw)
"""Few RR Lyrae stars have such periods: what the tutorial looks for."""
LONG_RR_LYRAE_AT: Final = (15.0, 25.0)
"""ICRS degrees."""


def simulate_alerts(
    objects: int, alerts_per_object: int, seed: int = 0, *, long_rr_lyrae: bool = False
) -> Iterator[SimulatedAlert]:
    """Packets of ``objects`` objects in order of time, up to ``alerts_per_object`` of each; the same for one seed.

    Objects whose variation often is below ZTF's limit of detection give fewer. With ``long_rr_lyrae`` the last object
    is an RRAB star with a period above 0.9 days, at LONG_RR_LYRAE_AT.
    """
    rng = np.random.default_rng(seed)
    last = objects - 1 if long_rr_lyrae else objects
    simulated = [
        _Object.draw(number, alerts_per_object, rng, long_rr_lyrae=number == last) for number in range(objects)
    ]
    mjd = np.concatenate([o.mjd[o.detected] for o in simulated])
    owner = np.repeat(np.arange(objects), [int(o.detected.sum()) for o in simulated])
    visit = np.concatenate([np.flatnonzero(o.detected) for o in simulated])
    writer = _Writer()
    for row in np.argsort(mjd, kind="stable"):
        which = simulated[owner[row]]
        yield SimulatedAlert(writer.packet(which, int(visit[row])), which.name, which.class_name)


@dataclass(frozen=True, slots=True, eq=False)
class _Object:
    """One object and all visits to it; arrays of one value a visit."""

    name: str
    class_name: str
    ra: float
    dec: float
    mjd: Array
    band: NDArray[np.intp]
    """1 for g, 2 for r."""
    difference: Array
    """Flux against the reference, nJy."""
    error: Array
    reference: Array
    """Flux of the reference image, nJy."""
    detected: NDArray[np.bool_]

    @staticmethod
    def draw(number: int, visits: int, rng: np.random.Generator, *, long_rr_lyrae: bool = False) -> _Object:
        supernova = rng.random() < _SUPERNOVA_SHARE and not long_rr_lyrae
        class_name = SUPERNOVA if supernova else CLASS_NAMES[rng.integers(len(CLASS_NAMES))]
        class_name = "RRAB" if long_rr_lyrae else class_name
        nights = _FIRST_MJD + np.cumsum(rng.exponential(_DAYS_BETWEEN_NIGHTS, (visits + 1) // 2) + 0.5)
        nights += rng.uniform(0.0, 0.3, len(nights))
        # Both filters in one night, an hour or more apart.
        mjd = np.stack([nights, nights + rng.uniform(1 / 24, 1 / 8, len(nights))], axis=1).ravel()[:visits]
        band = np.tile([1, 2], len(nights))[:visits]
        mean = rng.uniform(14.5, 18.0)
        color = rng.uniform(0.0, 0.6)
        if supernova:
            days = mjd - rng.uniform(mjd[0], mjd[-1])
            bell = np.where(days < 0, np.exp(-0.5 * (days / 8.0) ** 2), np.exp(-np.maximum(days, 0) / 30.0))
            total = _flux(mean + color * (band == 1)) * bell
            reference = np.zeros(visits)
        else:
            kind = _LONG_RR_LYRAE if long_rr_lyrae else _KINDS[class_name]
            period = np.exp(rng.uniform(*np.log(kind.period)))
            amplitude = rng.uniform(*kind.amplitude)
            phase = ((mjd - _FIRST_MJD) / period + rng.random()) % 1.0 if period < 30 else (mjd - _FIRST_MJD) / period
            offset = amplitude * (kind.shape(phase) - 0.4) * np.where(band == 1, 1.2, 1.0)
            total = _flux(mean + color * (band == 1) + offset)
            reference = _flux(mean + color * (band == 1))
        noise = _flux(np.full(visits, _LIMITING_MAGNITUDE)) / 5.0
        error = np.hypot(noise, _CALIBRATION_ERROR * total)
        difference = total - reference + rng.normal(0.0, error)
        letters = "".join(_LETTERS[(number // 26**power) % 26] for power in reversed(range(7)))
        ra, dec = float(rng.uniform(0, 360)), float(np.degrees(np.arcsin(rng.uniform(-0.5, 1))))
        if long_rr_lyrae:
            ra, dec = LONG_RR_LYRAE_AT
        return _Object(
            f"ZTF18{letters}", class_name, ra, dec,
            mjd, band, difference, error, reference, np.abs(difference) > 5 * error,
        )  # fmt: skip

    @property
    def has_reference(self) -> bool:
        return self.class_name != SUPERNOVA


class _Writer:
    def __init__(self) -> None:
        schema: AvroSchema = json.loads(SCHEMA_JSON)
        self._schema = parse_schema(schema)
        self._candidate = _blank(next(f for f in schema["fields"] if f["name"] == "candidate")["type"])

    def packet(self, source: _Object, visit: int) -> bytes:
        """The alert of one visit, with what its object showed in the days before."""
        since = source.mjd >= source.mjd[visit] - _HISTORY_DAYS
        before = np.flatnonzero(since & (np.arange(len(source.mjd)) < visit))
        record = {
            "schemavsn": "4.02",
            "publisher": "Trifid (simulated)",
            "objectId": source.name,
            "candid": _candid(source, visit),
            "candidate": {**self._candidate, **_candidate(source, visit)},
            "prv_candidates": [_candidate(source, int(v)) for v in before] or None,
            "fp_hists": [_forced(source, int(v)) for v in before] or None,
            "cutoutScience": None,
            "cutoutTemplate": None,
            "cutoutDifference": None,
        }
        out = BytesIO()
        fastavro.schemaless_writer(out, self._schema, record)
        return container_message(SCHEMA_JSON, out.getvalue())


def _blank(record: AvroSchema) -> dict[str, Any]:
    """A record of zeros and empty strings for the fields that may not be null."""
    empty = {"string": "", "int": 0, "long": 0, "float": 0.0, "double": 0.0}
    return {f["name"]: empty[f["type"]] for f in record["fields"] if isinstance(f["type"], str)}


def _flux(magnitude: Array) -> Array:
    return AB_ZERO_POINT_NJY * 10.0 ** (-0.4 * magnitude)


def _magnitude(flux: float) -> float:
    return float(-2.5 * np.log10(flux / AB_ZERO_POINT_NJY))


def _candid(source: _Object, visit: int) -> int:
    """Unique: the time in units of 1e-5 day, then the last letters of the object's name as a number."""
    number = 0
    for letter in source.name[-7:]:
        number = 26 * number + _LETTERS.index(letter)
    return int((source.mjd[visit] - 57_754) * 1e5) * 1_000_000_000 + number % 1_000_000_000


def _nearest_source(source: _Object, visit: int) -> dict[str, Any]:
    if not source.has_reference:
        return {"distnr": 12.0, "magnr": 20.0, "sigmagnr": 0.1}
    return {"distnr": 0.2, "magnr": _magnitude(source.reference[visit]), "sigmagnr": 0.01}


def _candidate(source: _Object, visit: int) -> dict[str, Any]:
    """One visit as a candidate; an upper limit where nothing was detected."""
    common = {
        "jd": jd_of_mjd(float(source.mjd[visit])),
        "fid": int(source.band[visit]),
        "pid": int((source.mjd[visit] - 57_754) * 1e8),
        "programid": 1,
        "diffmaglim": _magnitude(5 * source.error[visit]),
        "magzpsci": _ZERO_POINT,
        "rbversion": "simulated",
        "candid": None,
        "isdiffpos": None,
        "ra": None,
        "dec": None,
        "magpsf": None,
        "sigmapsf": None,
        "ranr": source.ra,
        "decnr": source.dec,
    }
    if not source.detected[visit]:
        return common
    flux, error = float(source.difference[visit]), float(source.error[visit])
    return {
        **common,
        **_nearest_source(source, visit),
        "candid": _candid(source, visit),
        "isdiffpos": "t" if flux > 0 else "f",
        "ra": source.ra,
        "dec": source.dec,
        "magpsf": _magnitude(abs(flux)),
        "sigmapsf": POGSON * error / abs(flux),
        "rb": 0.9,
        "drb": 0.99,
        "ssdistnr": -999.0,
        "drbversion": "simulated",
    }


def _forced(source: _Object, visit: int) -> dict[str, Any]:
    unit = AB_ZERO_POINT_NJY * 10.0 ** (-0.4 * _ZERO_POINT)
    return {
        "jd": jd_of_mjd(float(source.mjd[visit])),
        "fid": int(source.band[visit]),
        "pid": int((source.mjd[visit] - 57_754) * 1e8),
        "rfid": 0,
        "programid": 1,
        "procstatus": "0",
        "magzpsci": _ZERO_POINT,
        "forcediffimflux": float(source.difference[visit] / unit),
        "forcediffimfluxunc": float(source.error[visit] / unit),
        "ranr": source.ra,
        "decnr": source.dec,
        **_nearest_source(source, visit),
    }
