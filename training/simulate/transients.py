"""One-off events and active nuclei, and stars, as a difference-imaging survey sends alerts of them: simulated.

Events have plain published forms, drawn over wide ranges, at the epochs of real surveys (``training.streams``):

- supernovae: rise and decline of Bazin et al. (2009, A&A 499, 653), a third with the plateau of Villar et al. (2019,
  ApJ 884, 83), a cooling black body;
- tidal disruptions: Gaussian rise, decline with the power -5/3 at constant temperature (van Velzen et al. 2021, ApJ
  908, 4);
- outbursts of cataclysmic variables: exponential rise and decline about a flat top, a third of them recurring (Warner
  1995, *Cataclysmic Variable Stars*, chapter 3);
- active nuclei: a damped random walk in magnitudes (MacLeod et al. 2010, ApJ 721, 1014), both sides of the reference;
- microlensing: Paczynski (1986, ApJ 304, 1), on a star.

``observed`` makes alerts of fluxes: what lies 5 sigma from the reference image is detected, the rest becomes an upper
limit, forced photometry or nothing, up to some alert. Real stars go the same way (``as_difference``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from broker.bands import BANDS, WAVELENGTH
from broker.records import LightCurve, ObjectState, PhotometryKind
from training.streams import Cadence

Fluxes = NDArray[np.float64]
KINDS: dict[str, int] = {"supernova": 1500, "disruption": 600, "outburst": 600, "nucleus": 600, "microlensing": 600}
"""What is simulated, and how many of each."""
_SIGNIFICANT = 5.0
_HISTORY = 30.0
"""Days before the first detection that a ZTF packet has."""
_TRIES = 30
_MOST_ALERTS = 80


def simulated_events(cadences: Sequence[Cadence], seed: int) -> list[tuple[str, ObjectState]]:
    """Kind and state of each of KINDS's events, those that are never detected twice left out."""
    found = []
    for number, (kind, count) in enumerate(KINDS.items()):
        for i in range(count):
            rng = np.random.default_rng([seed, number, i])
            curve = simulated_event(kind, cadences, rng)
            if curve is not None:
                ra, dec = rng.uniform(0, 360), np.degrees(np.arcsin(rng.uniform(-1, 1)))
                found.append((kind, ObjectState(f"simulated:{kind}:{i}", ra, float(dec), curve)))
    return found


def simulated_event(kind: str, cadences: Sequence[Cadence], rng: np.random.Generator) -> LightCurve | None:
    """Alerts of one event of KINDS; None where _TRIES fields and times gave none."""
    for _ in range(_TRIES):
        cadence = cadences[int(rng.integers(len(cadences)))]
        first, last = cadence.mjd[0], cadence.mjd[-1]
        begin = rng.uniform(first, max(last - 20.0, first + 1.0))
        near = np.flatnonzero(np.abs(cadence.mjd - begin - 140.0) < 260.0)
        if len(near) < 10:
            continue
        mjd, band = cadence.mjd[near], cadence.band[near]
        # A band's depth in a survey, and a night's: of an error only the scale against the event's flux matters.
        noise = np.exp(rng.normal(0.0, 0.4, len(BANDS)))[band] * np.exp(rng.normal(0.0, 0.25, len(mjd)))
        flux, source = _EVENTS[kind](mjd - begin, WAVELENGTH[band], rng)
        brightest = float(np.max(np.abs(flux) / noise))
        if not brightest > 0:
            continue
        scale = 10.0 ** rng.uniform(0.8, 2.8) / brightest
        error = np.sqrt(noise**2 + (0.01 * scale * flux) ** 2)
        measured = scale * flux + error * rng.standard_normal(len(mjd))
        curve = observed(mjd, band, measured, error, _with_gaps(scale * source, rng), rng)
        if curve is not None:
            return curve
    return None


def as_difference(
    curve: LightCurve, rng: np.random.Generator, *, has_source: bool | None = None, style: int | None = None
) -> LightCurve | None:
    """A star's total fluxes as alerts: differences from the mean of a few epochs; None for fewer than two.

    Whether there ``has_source`` in the reference image is drawn where None; ``style`` as in ``observed``.
    """
    good = np.flatnonzero((curve.kind != PhotometryKind.LIMIT) & np.isfinite(curve.flux) & (curve.flux_error > 0))
    curve = curve.take(good)
    reference = np.zeros(len(curve))
    for code in np.unique(curve.band):
        own = np.flatnonzero(curve.band == code)
        chosen = rng.choice(own, min(len(own), int(rng.integers(1, 16))), replace=False)
        reference[own] = np.mean(curve.flux[chosen])
    # A star of the same kind, farther away: up to ten times the noise.
    extra = np.sqrt(10.0 ** rng.uniform(0.0, 2.0) - 1.0) * curve.flux_error.astype(np.float64)
    flux = curve.flux - reference + extra * rng.standard_normal(len(curve))
    error = np.hypot(curve.flux_error, extra)
    drawn = rng.random() < 0.5
    source = reference if (drawn if has_source is None else has_source) else np.full(len(curve), np.nan)
    return observed(curve.mjd, curve.band, flux, error, source, rng, style)


def observed(
    mjd: NDArray[np.float64],
    band: NDArray[np.uint8],
    flux: Fluxes,
    error: Fluxes,
    reference: Fluxes,
    rng: np.random.Generator,
    style: int | None = None,
) -> LightCurve | None:
    """What alerts hold of difference fluxes (n,) in time order, up to one of the detections; None for fewer than two.

    ``reference`` is NaN where there is no source in the reference image. ``style`` is what is not detected: 0 for not
    there, 1 forced photometry, 2 upper limits; drawn where None.
    """
    detected = np.abs(flux) > _SIGNIFICANT * error
    alerts = np.flatnonzero(detected)
    if len(alerts) < 2:
        return None
    most = min(len(alerts), _MOST_ALERTS)
    # Streams begin with the survey and not with the star.
    first = 0 if rng.random() < 0.5 else int(rng.integers(0, len(alerts) - 1))
    number = int(np.exp(rng.uniform(np.log(4), np.log(max(most, 4) + 1))))
    last = alerts[min(first + number - 1, len(alerts) - 1)]
    window = (mjd >= mjd[alerts[first]] - _HISTORY) & (mjd <= mjd[last])
    kind = np.where(detected, PhotometryKind.DETECTION, PhotometryKind.LIMIT).astype(np.uint8)
    drawn = int(rng.integers(3))
    style = drawn if style is None else style
    if style == 0:
        window &= detected
    elif style == 1:  # Rubin's: forced photometry, some days after the first detection also of before
        kind[~detected] = PhotometryKind.FORCED
        if rng.random() < 0.5:
            window &= mjd >= mjd[alerts[first]]
    own = np.flatnonzero(window)
    limit = kind == PhotometryKind.LIMIT
    return LightCurve(
        mjd[own], np.where(limit, np.nan, flux)[own].astype(np.float32), error[own].astype(np.float32),
        np.where(limit, np.nan, reference)[own].astype(np.float32), band[own].astype(np.uint8), kind[own],
    )  # fmt: skip


def _supernova(t: Fluxes, wavelength: Fluxes, rng: np.random.Generator) -> tuple[Fluxes, Fluxes]:
    stretch = 1.0 + rng.uniform(0.0, 0.5)
    rise, slowest = _even(rng, 1.5, 8.0) * stretch, _even(rng, 10.0, 50.0) * stretch
    fall = slowest * (wavelength / 600.0) ** rng.uniform(0.0, 1.0)
    peak = 3.0 * rise
    since = t - peak
    shape = np.exp(-np.maximum(since, -50 * rise) / fall) / (1.0 + np.exp(np.clip(-since / rise, -50, 50)))
    if rng.random() < 1 / 3:
        plateau, decline = _even(rng, 30.0, 100.0) * stretch, rng.uniform(0.0, 0.008)
        before = np.maximum(1.0 - decline * np.minimum(since, plateau), 0.05)
        after = np.exp(-np.maximum(since - plateau, 0.0) / fall)
        shape = before * after / (1.0 + np.exp(np.clip(-since / rise, -50, 50)))
    hot, cool = _even(rng, 8000.0, 20000.0), rng.uniform(4500.0, 6500.0)
    temperature = cool + (hot - cool) * np.exp(-np.maximum(since, 0.0) / (_even(rng, 10.0, 40.0) * stretch))
    flux = shape * _black_body(wavelength, temperature / stretch)
    return flux, _host(flux, wavelength, rng)


def _disruption(t: Fluxes, wavelength: Fluxes, rng: np.random.Generator) -> tuple[Fluxes, Fluxes]:
    width, scale = _even(rng, 5.0, 20.0), _even(rng, 15.0, 80.0)
    since = t - 3.0 * width
    shape = np.where(
        since < 0, np.exp(-0.5 * (since / width) ** 2), (1.0 + np.maximum(since, 0.0) / scale) ** (-5.0 / 3.0)
    )
    flux = shape * _black_body(wavelength, np.full(len(t), _even(rng, 12000.0, 40000.0)))
    return flux, _host(flux, wavelength, rng)


def _outburst(t: Fluxes, wavelength: Fluxes, rng: np.random.Generator) -> tuple[Fluxes, Fluxes]:
    rise, top, fall = _even(rng, 0.2, 1.0), _even(rng, 1.0, 15.0), _even(rng, 0.8, 5.0)
    since = np.mod(t, _even(rng, 25.0, 300.0)) if rng.random() < 1 / 3 else t
    since = since - 2.0 * rise
    shape = np.exp(-np.maximum(-since, 0.0) / rise) * np.exp(-np.maximum(since - top, 0.0) / fall)
    flux = np.where(since < -10 * rise, 0.0, shape) * _black_body(wavelength, np.full(len(t), rng.uniform(8e3, 2e4)))
    if rng.random() < 0.5:
        return flux, np.full(len(t), np.nan)
    return flux, np.max(flux) * 10.0 ** (-0.4 * rng.uniform(2.0, 7.0)) * _relative(wavelength, rng.uniform(4e3, 1e4))


def _nucleus(t: Fluxes, wavelength: Fluxes, rng: np.random.Generator) -> tuple[Fluxes, Fluxes]:
    scale, deviation = _even(rng, 30.0, 600.0), _even(rng, 0.08, 0.4)
    order = np.argsort(t)
    walk = np.empty(len(t))
    value = rng.normal(0.0, deviation)
    reference = rng.normal(0.0, deviation)  # the reference images are of some other time
    before = t[order[0]]
    for i in order:
        keep = np.exp(-(t[i] - before) / scale)
        value = value * keep + rng.normal(0.0, deviation * np.sqrt(max(1.0 - keep**2, 0.0)))
        walk[i], before = value, t[i]
    blue = (wavelength / 500.0) ** -rng.uniform(0.0, 0.6)
    own = _relative(wavelength, rng.uniform(8e3, 2e4))
    source = own * 10.0 ** (-0.4 * reference * blue)
    flux = own * 10.0 ** (-0.4 * walk * blue) - source
    return flux, source + own * rng.exponential(0.5)


def _microlensing(t: Fluxes, wavelength: Fluxes, rng: np.random.Generator) -> tuple[Fluxes, Fluxes]:
    timescale, nearest = _even(rng, 5.0, 100.0), rng.uniform(0.01, 0.8)
    square = nearest**2 + ((t - 1.5 * timescale) / timescale) ** 2
    star = _relative(wavelength, rng.uniform(3300.0, 6500.0))
    flux = star * ((square + 2.0) / np.sqrt(square * (square + 4.0)) - 1.0)
    return flux, star * (1.0 + rng.exponential(0.3))


_EVENTS: dict[str, Callable[[Fluxes, Fluxes, np.random.Generator], tuple[Fluxes, Fluxes]]] = {
    "supernova": _supernova, "disruption": _disruption, "outburst": _outburst, "nucleus": _nucleus,
    "microlensing": _microlensing,
}  # fmt: skip
"""Difference fluxes and those of the reference source, in one unit, at days since the beginning (n,) and nm (n,)."""


def _host(flux: Fluxes, wavelength: Fluxes, rng: np.random.Generator) -> Fluxes:
    """Of the galaxy, near enough to be the reference source for half of the events."""
    if rng.random() < 0.5:
        return np.full(len(flux), np.nan)
    ratio = float(10.0 ** rng.uniform(-1.5, 0.7))
    return float(np.max(flux)) * ratio * _relative(wavelength, rng.uniform(3800.0, 7000.0))


def _with_gaps(source: Fluxes, rng: np.random.Generator) -> Fluxes:
    """One in four loses the reference source in some epochs: whether it is within reach differs by the centroid."""
    if rng.random() < 0.25:
        return np.where(rng.random(len(source)) < rng.uniform(0.1, 0.9), np.nan, source)
    return source


def _black_body(wavelength: Fluxes, temperature: Fluxes) -> Fluxes:
    """Flux density for each unit of frequency at ``wavelength`` (nm), against that at 600 nm at the hottest."""
    hottest = float(np.max(temperature))
    own = wavelength**-3.0 / np.expm1(1.4388e7 / (wavelength * temperature))
    return np.asarray(own / (600.0**-3.0 / np.expm1(1.4388e7 / (600.0 * hottest))), np.float64)


def _relative(wavelength: Fluxes, temperature: float) -> Fluxes:
    return _black_body(wavelength, np.full(len(wavelength), temperature))


def _even(rng: np.random.Generator, low: float, high: float) -> float:
    """Even in the logarithm."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))
