"""One form for all spectra: vacuum wavelengths in Angstrom, the star's frame, flux per unit wavelength.

Files and messages give a ``RawSpectrum``; what becomes of it is decided here and nowhere else, so that a spectrum is
the same whichever way it comes. Doing it twice changes nothing.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from broker.assemble.spectrum import GRID, MIN_COVERAGE, resample
from broker.records import ObservedSpectrum, Spectrum

Array = NDArray[np.float64]

MIN_PIXELS: Final = 100
MAX_PIXELS: Final = 100_000
"""Of one spectrum: 0.05 Angstrom over the model's range. The model's own steps are of 2."""
MAX_PIXEL: Final = 10.0
"""Angstrom: a spectrum whose median pixel is wider has too little left of the lines that the model looks at."""
MAX_GAP: Final = 20.0
"""Angstrom: two pixels that are farther apart have a gap between them and not light of theirs."""
MAX_STELLAR_REDSHIFT: Final = 0.01
"""3,000 km/s: no star of the Galaxy is faster. A larger value is that of a galaxy, a quasar or a failed fit."""
MJD_RANGE: Final = (10_000.0, 100_000.0)
"""1886 to 2132: outside is a full Julian date or a code for an unknown one."""
_MAX_NAME: Final = 256
_MAX_UNIT: Final = 80
_LONG_NUMBER: Final = re.compile(r"\d{5,}")
_SHORTEST_IN_AIR: Final = 2000.0
"""Angstrom: by custom, and because air is opaque there, shorter wavelengths are always those in vacuum."""
_LEAST_NOISE: Final = 1e-3
"""Estimated error of a spectrum that has none, at least, as a share of its median flux: templates have no noise."""
_UNIT_NAMES: Final = (
    (re.compile(r"\b(aa|ang|angs|angstroms?|a)\b", re.IGNORECASE), "Angstrom"),
    (re.compile(r"\b(nanometers?|nanometres?)\b", re.IGNORECASE), "nm"),
    (re.compile(r"\b(microns?|micrometers?|micrometres?)\b", re.IGNORECASE), "um"),
    (re.compile(r"\bergs\b", re.IGNORECASE), "erg"),
    (re.compile(r"\bflam\b", re.IGNORECASE), "erg/(s cm2 Angstrom)"),
    (re.compile(r"\bfnu\b", re.IGNORECASE), "erg/(s cm2 Hz)"),
    (re.compile(r"\bsec\b", re.IGNORECASE), "s"),
    (re.compile(r"\b(counts|dn|adu)\b", re.IGNORECASE), "ct"),
)
"""Spellings in use that astropy does not know or takes for others: A is the ampere there."""
_RELATIVE: Final = frozenset({"", "none", "relative", "relative flux", "arbitrary", "normalized", "normalised"})


class UnusableSpectrumError(ValueError):
    """A spectrum that the model has no use for, or that is not one; the message says why."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class RawSpectrum:
    """A spectrum as it stands in a file or a message."""

    wavelength: Array
    """(m,) in ``wavelength_unit``, in any order."""
    flux: Array
    """(m,) in ``flux_unit``."""
    error: Array | None = None
    """(m,) one-sigma error in the unit of ``flux``, inf, NaN or not positive where the pixel is bad; None where the
    source gives none, and it is estimated."""
    bad: NDArray[np.bool_] | None = None
    """(m,) pixels that the source's mask forbids."""
    wavelength_unit: str = "Angstrom"
    flux_unit: str | None = None
    """None: any unit per unit wavelength."""
    air: bool = False
    """Whether the wavelengths are those in air."""
    redshift: float | None = None
    """By which the wavelengths are shifted; None where unknown or already taken out."""
    ra: float = np.nan
    """ICRS degrees, as ``dec``."""
    dec: float = np.nan
    mjd: float = np.nan
    """MJD UTC, NaN where unknown."""
    spectrum_id: str = ""
    survey: str | None = None
    object_id: str | None = None
    format: str = ""
    """What it was read as, for people."""

    @property
    def stellar(self) -> bool:
        """Whether the redshift can be a star's radial velocity."""
        return self.redshift is not None and abs(self.redshift) <= MAX_STELLAR_REDSHIFT


@np.errstate(all="ignore")  # values that overflow become inf, and their pixels bad
def to_observed(raw: RawSpectrum, *, rest_frame: bool = True, placed: bool = True) -> ObservedSpectrum:
    """The spectrum as the model wants it; raises UnusableSpectrumError where it cannot be.

    A redshift of at most 0.01 is a star's velocity and is taken out (unless not ``rest_frame``); with a larger one
    the spectrum stays as observed, since for a star, which alone is of interest here, such a value is wrong.
    Pixels are sorted, repeated wavelengths dropped; bad ones have the error inf, and flux 0 where it is not
    finite. Where two pixels are more than MAX_GAP apart, a bad one next to each keeps them from being spread
    over the gap. Without a position, which an object needs, it is refused where ``placed``; else its ``ra`` and
    ``dec`` are NaN.
    """
    size = len(raw.wavelength)
    for name, column in (("flux", raw.flux), ("error", raw.error), ("mask", raw.bad)):
        if column is not None and column.shape != (size,):
            raise UnusableSpectrumError(f"{name} has {column.size} pixels, wavelength {size}")
    if not MIN_PIXELS <= size <= MAX_PIXELS:
        raise UnusableSpectrumError(f"{size} pixels: {MIN_PIXELS} to {MAX_PIXELS} can be used")
    _check_names(raw)
    ra, dec = _position(raw, placed)
    wavelength = to_angstrom(raw.wavelength, raw.wavelength_unit)
    if raw.air:
        wavelength = air_to_vacuum(wavelength)
    flux, error = raw.flux, raw.error
    if raw.flux_unit is not None:
        factor = _per_wavelength(wavelength, raw.flux_unit)
        flux, error = flux * factor, None if error is None else error * factor
    if raw.stellar and rest_frame:
        assert raw.redshift is not None
        wavelength = wavelength / (1.0 + raw.redshift)
    bad = np.zeros(size, np.bool_) if raw.bad is None else raw.bad.copy()
    flux = flux.astype(np.float32).astype(np.float64)  # judged as they will be kept
    bad |= ~np.isfinite(flux)
    if error is not None:
        error = error.astype(np.float32).astype(np.float64)
        bad |= ~(np.isfinite(error) & (error > 0))
    use = _in_order(wavelength, bad)
    wavelength, flux, bad = wavelength[use], flux[use], bad[use]
    error = _estimated_error(flux, bad) if error is None else error[use]
    _check_values(wavelength, flux, bad)
    flux, error = np.where(np.isfinite(flux), flux, 0.0), np.where(bad, np.inf, error)
    wavelength, flux, error = _fill_gaps(wavelength, flux, error)
    spectrum = Spectrum(wavelength, flux.astype(np.float32), error.astype(np.float32))
    share = coverage(spectrum)
    if share < MIN_COVERAGE:
        raise UnusableSpectrumError(
            f"good pixels ({wavelength[0]:.5g} to {wavelength[-1]:.5g} Angstrom) on {share:.0%} of "
            f"{GRID[0]:.0f} to {GRID[-1]:.0f} Angstrom; the model needs {MIN_COVERAGE:.0%} "
            "(is the wavelength unit right?)"
        )
    mjd = raw.mjd if np.isfinite(raw.mjd) else np.nan
    return ObservedSpectrum(raw.spectrum_id, ra, dec, float(mjd), spectrum, raw.survey, raw.object_id)


def summary(raw: RawSpectrum, observed: ObservedSpectrum, *, rest_frame: bool = True) -> dict[str, Any]:
    """What was understood of a spectrum, for people and as JSON: None where a value is unknown."""
    spectrum = observed.spectrum
    good = np.isfinite(spectrum.flux_error)
    if raw.redshift is None:
        frame = "as it came, no redshift known"
    elif not raw.stellar:
        frame = f"observed, {raw.redshift:.4f} is no star's redshift"
    else:
        frame = f"{'rest' if rest_frame else 'observed'}, redshift {raw.redshift:.6f}"
    return {
        "spectrum_id": observed.spectrum_id,
        "survey": observed.survey,
        "object_id": observed.object_id,
        "ra": observed.ra if np.isfinite(observed.ra) else None,
        "dec": observed.dec if np.isfinite(observed.dec) else None,
        "mjd": observed.mjd if np.isfinite(observed.mjd) else None,
        "wavelength_min": float(spectrum.wavelength[0]),
        "wavelength_max": float(spectrum.wavelength[-1]),
        "pixels": len(spectrum.wavelength),
        "good_pixels": int(good.sum()),
        "coverage": round(coverage(spectrum), 4),
        "signal_to_noise": round(float(np.median(spectrum.flux[good] / spectrum.flux_error[good])), 2),
        "redshift": raw.redshift,
        "frame": frame,
        "medium": "air" if raw.air else "vacuum",
        "format": raw.format,
    }


def coverage(spectrum: Spectrum) -> float:
    """The share of the model's grid that has good pixels."""
    return float(np.isfinite(resample(spectrum)[0]).mean())


def error_of_ivar(ivar: Array) -> Array:
    """One-sigma error of an inverse variance, inf where that is not positive."""
    good = ivar > 0
    return np.where(good, 1.0 / np.sqrt(np.where(good, ivar, 1.0)), np.inf)


def air_to_vacuum(wavelength: Array) -> Array:
    """Vacuum wavelengths of wavelengths in standard air, both Angstrom; those under 2000 stay as they are.

    The refractive index of air is the IAU's standard, equation 8 of Morton (2000, ApJS 130, 403) after Birch &
    Downs (1994), a function of the vacuum wavelength: solved by iteration, to 1e-9 Angstrom.
    """
    in_air = np.isfinite(wavelength) & (wavelength >= _SHORTEST_IN_AIR)
    air = np.where(in_air, wavelength, _SHORTEST_IN_AIR)
    vacuum = air
    for _ in range(4):
        s2 = (1e4 / vacuum) ** 2
        vacuum = air * (1.0 + 8.34254e-5 + 2.406147e-2 / (130.0 - s2) + 1.5998e-4 / (38.9 - s2))
    return np.where(in_air, vacuum, wavelength)


def to_angstrom(values: Array, unit: str) -> Array:
    """Wavelengths in Angstrom, of wavelengths, frequencies, energies or wave numbers."""
    from astropy import units

    parsed = _unit(unit)
    try:
        with np.errstate(all="ignore"):
            return np.asarray(parsed.to(units.AA, values, equivalencies=units.spectral()), np.float64)
    except Exception as error:  # astropy has many kinds for units that do not fit
        raise UnusableSpectrumError(f"{unit!r} is no unit of wavelength") from error


def _per_wavelength(wavelength: Array, unit: str) -> Array:
    """(m,) what flux in ``unit`` is to be multiplied with to be per unit wavelength, in any unit."""
    if unit.strip().lower() in _RELATIVE:
        return np.ones(len(wavelength))
    from astropy import units

    parsed = _unit(unit)
    target = units.erg / units.s / units.cm**2 / units.AA
    for area in (units.dimensionless_unscaled, units.sr):  # surface brightness has the same shape
        try:
            if (parsed * area).is_equivalent(target):
                return np.ones(len(wavelength))
            usable = np.where(np.isfinite(wavelength) & (wavelength > 0), wavelength, np.nan)
            factor = (parsed * area).to(target, 1.0, equivalencies=units.spectral_density(usable * units.AA))
            return np.broadcast_to(np.asarray(factor, np.float64), wavelength.shape)
        except Exception:  # not a unit of this kind: the next one
            continue
    counts = {units.ct, units.adu, units.electron, units.photon, units.s, units.AA, units.pix}
    if set(getattr(parsed, "bases", [units.mag])) <= counts:
        return np.ones(len(wavelength))
    raise UnusableSpectrumError(f"{unit!r} is no unit of flux density")


# Astropy is imported where a spectrum has a unit: it is a fifth of what a worker's start would import.
@lru_cache(maxsize=64)
def _unit(text: str) -> Any:
    """The unit; raises UnusableSpectrumError for what is none."""
    from astropy import units

    spelled = text.strip()
    if len(spelled) > _MAX_UNIT or _LONG_NUMBER.search(spelled):  # powers are worked out while it is read
        raise UnusableSpectrumError(f"{text[:_MAX_UNIT]!r} is not a known unit")
    for pattern, name in _UNIT_NAMES:
        spelled = pattern.sub(name, spelled)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old spellings that it understands all the same
            return units.Unit(spelled)
    except Exception as error:  # astropy has many kinds for text that is no unit
        raise UnusableSpectrumError(f"{text!r} is not a known unit") from error


def _check_names(raw: RawSpectrum) -> None:
    if not raw.spectrum_id:
        raise UnusableSpectrumError("it has no id")
    if (raw.survey is None) != (raw.object_id is None):
        raise UnusableSpectrumError("survey and object id: both or neither")
    for name in (raw.spectrum_id, raw.survey, raw.object_id):
        if name is not None and not 0 < len(name) <= _MAX_NAME:
            raise UnusableSpectrumError(f"a name of {len(name)} characters; 1 to {_MAX_NAME} can be used")


def _position(raw: RawSpectrum, placed: bool) -> tuple[float, float]:
    known = bool(np.isfinite(raw.ra) and np.isfinite(raw.dec))
    if placed and not known:
        raise UnusableSpectrumError("its position is not known: give --ra and --dec, or ra and dec in the file")
    if known and not (-360.0 <= raw.ra <= 360.0 and -90.0 <= raw.dec <= 90.0):
        raise UnusableSpectrumError(f"({raw.ra:g}, {raw.dec:g}) is no position in degrees")
    if np.isfinite(raw.mjd) and not MJD_RANGE[0] < raw.mjd < MJD_RANGE[1]:
        raise UnusableSpectrumError(f"{raw.mjd:g} is no MJD")
    if raw.redshift is not None and not (np.isfinite(raw.redshift) and raw.redshift > -1):
        raise UnusableSpectrumError(f"{raw.redshift:g} is no redshift")
    return (float(raw.ra % 360.0), float(raw.dec)) if known else (float("nan"), float("nan"))


def _in_order(wavelength: Array, bad: NDArray[np.bool_]) -> NDArray[np.intp]:
    """The pixels with a wavelength, in its order; of equal ones the first good one."""
    order = np.lexsort((bad, wavelength))
    order = order[np.isfinite(wavelength[order]) & (wavelength[order] > 0)]
    sorted_ = wavelength[order]
    return order[np.concatenate([[True], sorted_[1:] > sorted_[:-1]])] if len(order) else order


def _check_values(wavelength: Array, flux: Array, bad: NDArray[np.bool_]) -> None:
    good = flux[~bad]
    if len(good) < MIN_PIXELS:
        raise UnusableSpectrumError(f"{len(good)} good pixels; {MIN_PIXELS} are needed")
    if good.min() == good.max():
        raise UnusableSpectrumError("its flux is the same everywhere")
    pixel = float(np.median(np.diff(wavelength)))
    if pixel > MAX_PIXEL:
        raise UnusableSpectrumError(f"pixels of {pixel:.3g} Angstrom; {MAX_PIXEL:g} is the most that can be used")


def _estimated_error(flux: Array, bad: NDArray[np.bool_]) -> Array:
    """(m,) one error for all pixels, from the scatter of the flux (DER_SNR, Stoehr et al. 2008, ASPC 394, 505)."""
    good = flux[~bad]
    if len(good) < MIN_PIXELS:
        return np.full(len(flux), np.inf)
    noise = 1.482602 / np.sqrt(6.0) * np.median(np.abs(2.0 * good[2:-2] - good[:-4] - good[4:]))
    return np.full(len(flux), max(noise, _LEAST_NOISE * np.median(np.abs(good))) or np.inf)


def _fill_gaps(wavelength: Array, flux: Array, error: Array) -> tuple[Array, Array, Array]:
    step = np.diff(wavelength)
    good = np.isfinite(error)
    left = np.flatnonzero((step > MAX_GAP) & good[:-1])
    right = np.flatnonzero((step > MAX_GAP) & good[1:])
    if not len(left) and not len(right):
        return wavelength, flux, error
    # As far from the good pixel as its neighbour on the other side, which leaves it its own width.
    pixel = np.minimum(np.median(step), step / 3)
    added = np.concatenate([wavelength[left] + pixel[left], wavelength[right + 1] - pixel[right]])
    place = np.concatenate([left + 1, right + 1])
    order = np.argsort(added)
    added, place = added[order], place[order]
    return (
        np.insert(wavelength, place, added),
        np.insert(flux, place, 0.0),
        np.insert(error, place, np.inf),
    )
