"""Light curves of one band as a survey of several bands would have seen the star, for training.

A periodic star's measurements are put at the epochs of a real survey: each epoch gets the measurement that is nearest
to it in phase, with its real scatter and error, at the amplitude and phase that the star would have in the band.
Other stars keep their own epochs, each with a band of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from broker.assemble.chromatic import log_wavelength
from broker.bands import BAND_CODE, BANDS, WAVELENGTH
from broker.errors import DecodeError
from broker.records import Alert, LightCurve, PhotometryKind
from broker.sources import iter_packets
from broker.surveys import Decoder

CEPHEID = "cepheid"
EXPONENT: dict[str, tuple[float, float]] = {
    "RRAB": (1.15, 0.2), "RRC": (1.15, 0.2), "HADS": (1.2, 0.2), "DSCT": (1.2, 0.25),
    "EA": (0.4, 0.4), "EB": (0.5, 0.35), "EW": (0.6, 0.35), "ROT": (0.9, 0.4), "SR": (1.3, 0.5), "M": (1.3, 0.5),
    CEPHEID: (1.3, 0.3),
}  # fmt: skip
"""Mean and deviation of the power of wavelength with which a class's amplitudes fall, measured by ``fit_bands`` on the
stars of ZTF's data release and Stripe 82; of SR, M and ROT there are too few, and their spread is a guess. Cepheids'
amplitudes in I are 0.6 of those in V."""
LAG: dict[str, tuple[float, float]] = {
    "RRAB": (0.02, 0.012), "RRC": (0.022, 0.012), "HADS": (0.02, 0.012), "DSCT": (0.025, 0.015),
    "SR": (0.03, 0.04), "M": (0.03, 0.04), CEPHEID: (0.02, 0.02),
}  # fmt: skip
"""Of the phase, cycles for each unit of ln(wavelength); elsewhere there is none, within 0.02."""
_ANY_EXPONENT, _NO_LAG = (0.8, 0.5), (0.0, 0.02)
_GREEN, _RED = BAND_CODE["ztf:g"], BAND_CODE["ztf:r"]
PERIODIC = 0.6
"""Share of the variance that a period has to explain for measurements to be moved along the phase."""
LEAST_FOR_PHASE = 60
BAND_SETS: tuple[tuple[str, ...], ...] = (
    ("ztf:g", "ztf:r"), ("ztf:g", "ztf:r"), ("ztf:g", "ztf:r", "ztf:i"), ("ztf:r",), ("ztf:g",),
    ("lsst:u", "lsst:g", "lsst:r", "lsst:i", "lsst:z", "lsst:y"), ("lsst:g", "lsst:r", "lsst:i"),
    ("gaia:G",), ("johnson:B", "johnson:V", "cousins:I"), ("eros:B", "eros:R"), ("atlas:c", "atlas:o"),
)  # fmt: skip
"""Bands that a star without a period is seen in."""


@dataclass(frozen=True, slots=True, eq=False)
class Cadence:
    """Epochs of one field of a real survey."""

    mjd: NDArray[np.float64]
    """(n,) in order."""
    band: NDArray[np.uint8]
    """(n,) codes of BANDS."""


def load_cadences(data: Path) -> list[Cadence]:
    """Epochs and bands of ZTF's data release, Stripe 82 and Rubin's alerts; none where the files are not there."""
    found = []
    for file in ("multiband/ztf_dr3_vsx.parquet", "multiband/sdss_s82_rrlyrae.parquet"):
        if (data / file).exists():
            table = pq.read_table(data / file, columns=["mjd", "band"])
            found += [_cadence(np.array(row["mjd"]), row["band"]) for row in table.to_pylist()]
    rubin = data.parent / "alerts" / "lsst" / "rubin_v9_0.avro"
    if rubin.exists():
        decoder = Decoder()
        for packet in iter_packets([rubin]):
            records = decoder.decode_batch([packet.payload])[0]
            for record in () if isinstance(records, DecodeError) else records:
                if isinstance(record, Alert):
                    curve = record.light_curve
                    found.append(_cadence(curve.mjd, [BANDS[code] for code in curve.band]))
    return [c for c in found if len(c.mjd) >= LEAST_FOR_PHASE]


def _cadence(mjd: NDArray[np.float64], band: Sequence[str]) -> Cadence:
    known = np.array([name in BAND_CODE for name in band], np.bool_) & np.isfinite(mjd)
    code = np.array([BAND_CODE.get(name, 0) for name in band], np.uint8)
    order = np.flatnonzero(known)[np.argsort(mjd[known])]
    return Cadence(mjd[order], code[order])


def as_streamed(
    curve: LightCurve,
    label: str | None,
    frequency: float,
    r_squared: float,
    cadences: Sequence[Cadence],
    rng: np.random.Generator,
    g_r: float = float("nan"),
) -> LightCurve:
    """The star in several bands, with as many points as ``curve`` or fewer.

    ``frequency`` (cycles/day) and ``r_squared`` are those of ``curve``, which has one band and total fluxes; ``g_r`` is
    the star's colour in magnitudes, NaN for a random one.
    """
    exponent = rng.normal(*EXPONENT.get(label or "", _ANY_EXPONENT))
    lag = rng.normal(*LAG.get(label or "", _NO_LAG))
    measured = np.flatnonzero((curve.kind != PhotometryKind.LIMIT) & (curve.flux > 0) & (curve.flux_error > 0))
    if len(measured) == 0:
        return curve
    curve = curve.take(measured)
    if cadences and np.isfinite(frequency) and r_squared >= PERIODIC and len(curve) >= LEAST_FOR_PHASE:
        cadence = cadences[int(rng.integers(len(cadences)))]
        chosen = np.sort(rng.permutation(len(cadence.mjd))[: len(curve)]) if rng.random() < 0.5 else slice(len(curve))
        mjd, band = cadence.mjd[chosen], cadence.band[chosen]
        tone = log_wavelength(WAVELENGTH[band])
        # At twice the period, so that both minima of a binary stay what they are.
        have = np.mod(0.5 * frequency * (curve.mjd - curve.mjd[0]), 1.0)
        wanted = np.mod(0.5 * frequency * (mjd - mjd[0]) + rng.random() - 0.5 * lag * tone, 1.0)
        source = _nearest_on_circle(have, wanted)
    else:
        names = BAND_SETS[int(rng.integers(len(BAND_SETS)))]
        code = np.array([BAND_CODE[name] for name in names], np.uint8)
        mjd, band = curve.mjd, code[rng.choice(len(code), len(curve), p=rng.dirichlet(np.full(len(code), 3.0)))]
        tone = log_wavelength(WAVELENGTH[band])
        source = np.arange(len(curve))
    own = log_wavelength(WAVELENGTH[curve.band[source]])
    level = float(np.median(curve.flux))
    ratio = (curve.flux[source] / level) ** np.exp(-exponent * (tone - own))
    # A survey's depth differs between bands, and so do the errors; what is added to them is added to the fluxes, too.
    deeper = np.exp(rng.normal(0.0, 0.3, len(BANDS)))[band]
    error = curve.flux_error[source] / curve.flux[source]
    extra = error * np.sqrt(np.maximum(deeper**2 - 1.0, 0.0))
    if not np.isfinite(g_r):
        g_r = rng.normal(0.6, 0.5)
    colour = g_r * np.log(10.0) / 2.5 / (log_wavelength(WAVELENGTH[_RED]) - log_wavelength(WAVELENGTH[_GREEN]))
    flux = level * np.exp(colour * tone) * ratio * np.exp(extra * rng.standard_normal(len(band)))
    error = error * deeper
    order = np.argsort(mjd, kind="stable")
    return LightCurve(
        mjd[order], flux[order].astype(np.float32), (error * flux)[order].astype(np.float32),
        np.zeros(len(order), np.float32), band[order].astype(np.uint8),
        np.full(len(order), PhotometryKind.DETECTION, curve.kind.dtype),
    )  # fmt: skip


def as_alerts(curve: LightCurve, rng: np.random.Generator) -> LightCurve:
    """Only the points that differ from a reference by 5 sigma, as difference imaging detects them, with total fluxes.

    The reference is the mean of a few epochs of each band. All points where fewer than 5 differ by as much.
    """
    reference = np.zeros(len(curve), np.float32)
    for code in np.unique(curve.band):
        own = np.flatnonzero(curve.band == code)
        reference[own] = np.mean(curve.flux[rng.choice(own, min(len(own), 15), replace=False)])
    found = np.flatnonzero(np.abs(curve.flux - reference) > 5 * curve.flux_error)
    return curve.take(found) if len(found) >= 5 else curve


def _nearest_on_circle(have: NDArray[np.float64], wanted: NDArray[np.float64]) -> NDArray[np.intp]:
    """(m,) positions in ``have`` (n,) of the phases nearest to ``wanted`` (m,), round the circle."""
    order = np.argsort(have)
    ring = np.concatenate([[have[order[-1]] - 1.0], have[order], [have[order[0]] + 1.0]])
    position = np.concatenate([[order[-1]], order, [order[0]]])
    after = np.clip(np.searchsorted(ring, wanted), 1, len(ring) - 1)
    nearer = np.where(wanted - ring[after - 1] < ring[after] - wanted, after - 1, after)
    return position[nearer]
