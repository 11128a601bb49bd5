"""Spectra of the right spectral types for stars whose spectra nobody here has: simulated, and called so.

Every assumption is listed with its source in docs/simulation.md.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from broker.assemble.spectrum import GRID, MIN_COVERAGE, normalise, resample
from broker.records import Spectrum

_LETTER: Final = {letter: 10.0 * index for index, letter in enumerate("OBAFGKM")}


@dataclass(frozen=True, slots=True)
class TypeRange:
    """Spectral types of a class: a normal distribution of the type code (A0 = 20, G2 = 42), clipped."""

    mean: float
    deviation: float
    earliest: float
    latest: float
    giant: bool = False
    halo: float = 0.0
    """Share of stars with the metallicity of the halo, HALO_METALLICITY; the others have the disk's."""
    velocity: float = 50.0
    """Dispersion of radial velocity, km/s."""


DISK_METALLICITY: Final = (-0.1, 0.25)
"""[Fe/H], mean and deviation: Casagrande et al. 2011 (A&A 530, A138), stars near the Sun."""
HALO_METALLICITY: Final = (-1.5, 0.4)
"""[Fe/H] of field RR Lyrae stars: Fabrizio et al. 2019 (ApJ 882, 169); a tenth to a fifth are the disk's, Layden 1994
(AJ 108, 1016)."""


SPECTRAL_TYPES: Final[dict[str, TypeRange]] = {
    "EW": TypeRange(45.0, 6.0, 30.0, 57.0),  # Webbink 2003 (ASP Conf. 293, 76): contact binaries are F to K
    "EB": TypeRange(32.0, 9.0, 12.0, 55.0),  # Avvakumova et al. 2013 (AN 334, 860), as EA
    "EA": TypeRange(34.0, 10.0, 14.0, 57.0),
    "RRAB": TypeRange(32.0, 2.5, 27.0, 36.0, halo=0.85, velocity=130.0),  # Smith 1995, "RR Lyrae Stars"
    "RRC": TypeRange(29.5, 2.0, 26.0, 33.0, halo=0.9, velocity=130.0),
    "HADS": TypeRange(29.0, 3.0, 23.0, 35.0, halo=0.15),  # Breger 2000 (ASP Conf. 210, 3): A2 to F5, some SX Phe
    "DSCT": TypeRange(28.0, 3.0, 22.0, 34.0),
    "M": TypeRange(65.5, 1.5, 62.0, 69.0, giant=True),  # Yao et al. 2017 (ApJS 232, 16): LAMOST Miras, M4 to M9
    "SR": TypeRange(63.0, 2.5, 57.0, 69.0, giant=True),  # Kholopov et al., GCVS: late K to M giants
    "ROT": TypeRange(48.0, 5.0, 36.0, 58.0),  # RS CVn stars: Drake et al. 2017; Strassmeier et al. 1993
    "ROT:asas": TypeRange(21.0, 3.0, 15.0, 27.0),  # ASAS's ROT are alpha2 CVn stars: Renson & Manfroid 2009, B8 to A7
}
"""By class, or ``class:survey`` where one survey's stars of a class differ."""

RESOLUTIONS: Final = (3.0, 5.0, 8.0)
"""Angstrom, full width at half maximum: templates are smoothed to each of these, as spectrographs differ. Pickles'
giants, which have 5 as they are, stay so where it is finer."""
_SDSS_RESOLUTION: Final = 2.5
_PICKLES_RESOLUTION: Final = 5.0
_HYDROGEN: Final = (((4042, 4082), (4082, 4124), (4124, 4162)), ((4828, 4848), (4848, 4878), (4878, 4892)))
"""Angstrom, vacuum: H delta and H beta between their sidebands; both lines hardly have metal lines in their bands."""
_METAL_POOR: Final = -0.75
"""[Fe/H]: below, the composites are typed anew, by their hydrogen lines, and blended."""
_BLENDED: Final = ((25.5, 29.5), (29.5, 34.5))
"""Types, as the composites are named, between which metal-poor ones are blended: A6 to A9 with F0 to F4."""
_BLEND_METALLICITY: Final = 0.6
"""[Fe/H] by which two that are blended differ at most."""
_BLEND_SHARES: Final = (0.2, 0.4, 0.6, 0.8)
"""Of the A star's light, at the median."""
_VELOCITY_KNOWN: Final = 0.6
"""Share of spectra that come in the star's frame; the others are as observed."""
_VELOCITY_ERROR: Final = 20.0
"""km/s, of every wavelength scale."""
_IN_AIR: Final = 0.15
"""Share of spectra whose wavelengths are those in air and said to be in vacuum."""
_AIR_SHIFT: Final = -84.0
"""km/s, at 4300 Angstrom: by which such lines are too blue (Morton 2000, ApJS 130, 403)."""
_TEMPLATE_ERROR: Final = (0.005, 0.03)
"""Deviation of a star's flux from any mixture of templates, at the width of _TEMPLATE_PIXELS, drawn even in its
logarithm: composites have noise of their own, a star has abundances and a gravity of its own, and neither is in the
error that comes with a spectrum."""
_TEMPLATE_PIXELS: Final = 1.5
"""Grid steps."""
_SIGNAL_TO_NOISE: Final = (10.0, 200.0)
PARTIAL: Final = 0.6
"""Share of spectra in training that cover a part of the grid."""
_LEAST_PART, _MOST_PART = MIN_COVERAGE, 0.95
_TWO_ARMS: Final = 0.2
_GAPS, _GAP_SHARE, _GAP_WIDTH = 3, 0.25, 0.12
"""At most so many gaps, each with this probability and at most this share of the part wide."""
_UNCALIBRATED: Final = (0.2, 0.6)
"""Share of spectra, whole and in part, whose flux is not calibrated: counts."""
_CONTINUUM_DIVIDED: Final = (0.05, 0.15)
"""Share of spectra, whole and in part, that come divided by their continuum."""
_CALIBRATION_ERROR: Final = (0.5, 0.25, 0.12, 0.06)
"""Deviations of the Legendre coefficients, first order on, of the logarithm of a throughput nobody took out."""


def type_code(spectral_type: str) -> float:
    """20.0 for A0, 42.0 for G2V, 34.5 for F4.5; NaN for anything else. ``K34II`` means K3.5."""
    match = re.match(r"([OBAFGKM])(\d)(\d?)", spectral_type)
    if match is None:
        return float("nan")
    digits = [int(d) for d in match.group(2, 3) if d]
    return _LETTER[match.group(1)] + sum(digits) / len(digits)


@dataclass(frozen=True, slots=True, eq=False)
class Templates:
    """Template spectra on the model's grid, at unit median."""

    flux: NDArray[np.float64]
    """(r, t, 2575): at each of RESOLUTIONS."""
    scatter: NDArray[np.float64]
    """(t, 2575) star-to-star standard deviation, in the unit of ``flux``; 0 where not known."""
    code: NDArray[np.float64]
    giant: NDArray[np.bool_]
    metallicity: NDArray[np.float64]
    """[Fe/H], NaN where not known."""
    for_test: NDArray[np.bool_]
    """Kept for stars of validation and test, as blends of two of these are; no blend is of one and another."""
    noise_shape: NDArray[np.float64]
    """(s, 2575) error against wavelength of real LAMOST spectra, at unit median."""


def load_templates(data: Path) -> Templates:
    """SDSS composites, Pickles giants and dwarfs, and the error curves of the real LAMOST spectra in ``data``."""
    table = pq.read_table(data / "stellar_templates.parquet").to_pydict()
    flux = [np.asarray(f, np.float64) for f in table["flux"]]
    scatter = [np.asarray(s, np.float64) for s in table["flux_std"]]
    code = [type_code(t) for t in table["spectral_type"]]
    giant = [False] * len(flux)
    metallicity = [np.nan if m is None else float(m) for m in table["feh"]]
    with np.load(data / "pickles_uvklib.npz", allow_pickle=False) as pickles:
        inside = (pickles["wave"] > GRID[0] - 20) & (pickles["wave"] < GRID[-1] + 20)
        for name, spectrum in zip(pickles["sptype"], pickles["flux"], strict=True):
            if not str(name).endswith(("V", "III")) or str(name).endswith("IV"):
                continue
            wave, values = pickles["wave"][inside].astype(np.float64), spectrum[inside].astype(np.float64)
            on_grid, _ = resample(Spectrum(wave, values.astype(np.float32), np.ones(len(wave), np.float32)))
            flux.append(np.interp(GRID, wave, values) if np.isnan(on_grid).any() else on_grid)
            scatter.append(np.zeros(len(GRID)))
            code.append(type_code(str(name)))
            giant.append(str(name).endswith("III"))
            metallicity.append(np.nan)
    sdss = len(table["flux"])
    smooth = np.array([_smoothed(np.array(flux), sdss, resolution) for resolution in RESOLUTIONS])
    unit = np.median(smooth, axis=2, keepdims=True)
    usable = (unit[0, :, 0] > 0) & np.isfinite(code)
    relative_scatter = np.clip(np.array(scatter) / unit[0], 0.0, 0.5)
    single = Templates(
        flux=(smooth / unit)[:, usable],
        scatter=relative_scatter[usable],
        code=np.array(code)[usable],
        giant=np.array(giant)[usable],
        metallicity=np.array(metallicity)[usable],
        for_test=np.arange(int(usable.sum())) % 4 == 0,
        noise_shape=_noise_shapes(data / "lamost_spectra.npz"),
    )
    from_pickles = (np.arange(len(flux)) >= sdss)[usable]
    return _by_hydrogen_lines(_blended(single), from_pickles)


def _blended(templates: Templates) -> Templates:
    """With blends of metal-poor A and F composites behind them.

    Between A9 and F0 the composites of [Fe/H] -1 and less leap from stars of the horizontal branch and blue stragglers
    (H delta of 12 to 14 Angstrom) to the turn-off of the halo (3 to 5), and what lies between is where RR Lyrae stars
    are: without blends no simulated one has their hydrogen lines.
    """
    poor = templates.metallicity < _METAL_POOR
    hot, cool = (np.flatnonzero(poor & (templates.code > low) & (templates.code < high)) for low, high in _BLENDED)
    first, second = (pair.ravel() for pair in np.meshgrid(hot, cool, indexing="ij"))
    near = np.abs(templates.metallicity[first] - templates.metallicity[second]) < _BLEND_METALLICITY
    near &= templates.for_test[first] == templates.for_test[second]
    first, second = (np.repeat(pair[near], len(_BLEND_SHARES)) for pair in (first, second))
    share = np.tile(_BLEND_SHARES, int(near.sum()))

    def with_blends(columns: NDArray[np.float64]) -> NDArray[np.float64]:
        """(..., t, k) and the blends behind the t."""
        blend = share[:, None] * columns[..., first, :] + (1.0 - share[:, None]) * columns[..., second, :]
        return np.concatenate([columns, blend], axis=-2)

    return replace(
        templates,
        flux=with_blends(templates.flux),
        scatter=with_blends(templates.scatter),
        code=with_blends(templates.code[:, None])[:, 0],
        metallicity=with_blends(templates.metallicity[:, None])[:, 0],
        giant=np.concatenate([templates.giant, np.zeros(len(first), np.bool_)]),
        for_test=np.concatenate([templates.for_test, templates.for_test[first]]),
    )


def _by_hydrogen_lines(templates: Templates, from_pickles: NDArray[np.bool_]) -> Templates:
    """With the types that the hydrogen lines of metal-poor A and F templates have on the scale of Pickles's dwarfs.

    The types of RR Lyrae stars are such ones. The composites' are of all lines, so that a metal-poor one of F0 has
    hydrogen lines of F5 or later. ``from_pickles`` (t or fewer,): the first templates that are Pickles's.
    """
    strength = hydrogen_strength(templates.flux[1])
    scale = np.flatnonzero(from_pickles & ~templates.giant[: len(from_pickles)])
    scale = scale[(templates.code[scale] >= _LETTER["A"] + 2) & (templates.code[scale] <= _LETTER["G"] + 5)]
    scale = scale[np.argsort(-templates.code[scale])]
    rising = np.maximum.accumulate(strength[scale])
    poor = (templates.metallicity < _METAL_POOR) & (templates.code > _LETTER["A"] + 2) & (templates.code < 45.5)
    return replace(templates, code=np.where(poor, np.interp(strength, rising, templates.code[scale]), templates.code))


def hydrogen_strength(flux: NDArray[np.float64]) -> NDArray[np.float64]:
    """Equivalent width, Angstrom, of H delta and H beta together (n,) in spectra (n, 2575)."""
    total = np.zeros(len(flux))
    for bands in _HYDROGEN:
        left, line, right = ((low <= GRID) & (high >= GRID) for low, high in bands)
        blue, red = flux[:, left].mean(axis=1), flux[:, right].mean(axis=1)
        place = (GRID[line] - GRID[left].mean()) / (GRID[right].mean() - GRID[left].mean())
        continuum = blue[:, None] + (red - blue)[:, None] * place
        total += (1.0 - flux[:, line] / continuum).sum(axis=1) * (GRID[1] - GRID[0])
    return total


def _smoothed(flux: NDArray[np.float64], sdss: int, resolution: float) -> NDArray[np.float64]:
    """Spectra (t, 2575), of which the first ``sdss`` are SDSS's and the others Pickles', at a resolution, Angstrom."""
    step = GRID[1] - GRID[0]
    width = [max(resolution**2 - own**2, 0.0) ** 0.5 / 2.355 / step for own in (_SDSS_RESOLUTION, _PICKLES_RESOLUTION)]
    parts = (flux[:sdss], flux[sdss:])
    return np.concatenate([gaussian_filter1d(f, w, axis=1) if w > 0 else f for f, w in zip(parts, width, strict=True)])


def _noise_shapes(path: Path) -> NDArray[np.float64]:
    shapes = []
    with np.load(path, allow_pickle=False) as lamost:
        offsets, wave, variance = lamost["offsets"], lamost["wave"], lamost["ivar"]
        for start, stop in pairwise(offsets):
            good = variance[start:stop] > 0
            if good.mean() < 0.9:
                continue
            error = variance[start:stop][good].astype(np.float64) ** -0.5
            curve = np.interp(GRID, wave[start:stop][good], error)
            shapes.append(np.clip(gaussian_filter1d(curve / np.median(curve), 10.0), 0.2, 10.0))
    return np.array(shapes)


def extinction(color_excess: NDArray[np.float64]) -> NDArray[np.float64]:
    """Transmission (n, 2575) of dust with E(B-V) (n,), R_V = 3.1 (Cardelli, Clayton & Mathis 1989, ApJ 345, 245)."""
    y = 1e4 / GRID - 1.82
    a = np.polyval([0.32999, -0.77530, 0.01979, 0.72085, -0.02427, -0.50447, 0.17699, 1.0], y)
    b = np.polyval([-2.09002, 5.30260, -0.62251, -5.38434, 1.07233, 2.28305, 1.41338, 0.0], y)
    return np.asarray(10.0 ** (-0.4 * 3.1 * color_excess[:, None] * (a + b / 3.1)))


def draw_types(classes: Sequence[str], surveys: Sequence[str], rng: np.random.Generator) -> NDArray[np.float64]:
    """Spectral-type codes (n,) for classes and surveys (n,)."""
    ranges = [_range(c, s) for c, s in zip(classes, surveys, strict=True)]
    draw = rng.normal([r.mean for r in ranges], [r.deviation for r in ranges])
    return np.clip(draw, [r.earliest for r in ranges], [r.latest for r in ranges])


def simulate_spectra(
    templates: Templates,
    classes: Sequence[str],
    surveys: Sequence[str],
    code: NDArray[np.float64],
    held_out: NDArray[np.bool_],
    rng: np.random.Generator,
    partial: float = 0.0,
) -> NDArray[np.float32]:
    """Model inputs (n, 3, 2575) of simulated spectra for objects of the given classes and type codes (n,).

    Objects with ``held_out`` (n,) draw from templates that the others do not draw from, so that a test star's
    spectrum is not of a template seen in training; among giants there are too few, and they share them. A share
    ``partial`` is as ``in_part`` has it; with 0 all are whole and their flux is calibrated.
    """
    ranges = [_range(c, s) for c, s in zip(classes, surveys, strict=True)]
    size = len(classes)
    cost = np.abs(templates.code[None, :] - code[:, None])
    giant = np.array([r.giant for r in ranges])
    cost += 100.0 * (templates.giant[None, :] != giant[:, None])
    metallicity = draw_metallicity(ranges, rng)
    cost += np.abs(np.nan_to_num(templates.metallicity, nan=0.0)[None, :] - metallicity[:, None]) / 0.25
    wrong_part = (templates.for_test[None, :] != held_out[:, None]) & ~templates.giant[None, :]
    cost += 100.0 * wrong_part
    resolution = rng.integers(0, len(RESOLUTIONS), size)
    # Between two templates, as types and metallicities do not come in steps.
    first, second = (np.argmin(cost + rng.exponential(0.7, cost.shape), axis=1) for _ in range(2))
    share = rng.random((size, 1))
    flux = share * templates.flux[resolution, first] + (1.0 - share) * templates.flux[resolution, second]
    # One random factor a star: the composites' deviation is mostly in overall shape, not pixel by pixel.
    flux += rng.normal(0, 0.7, (size, 1)) * templates.scatter[first]
    flux *= 1.0 + template_error(size, rng)
    velocity = draw_velocity(ranges, rng)
    for row, shift in enumerate(1.0 + velocity / 299792.458):
        flux[row] = np.interp(GRID, GRID * shift, flux[row])
    flux *= extinction(np.minimum(rng.exponential(0.15, size), 1.0))
    flux = np.maximum(flux, 0.0)
    signal_to_noise = np.exp(rng.uniform(np.log(_SIGNAL_TO_NOISE[0]), np.log(_SIGNAL_TO_NOISE[1]), size))
    # Between that of a LAMOST spectrum, whose blue end is the worst, and one as good everywhere.
    error = templates.noise_shape[rng.integers(0, len(templates.noise_shape), size)] ** rng.random((size, 1))
    error = error * (np.median(flux, axis=1) / signal_to_noise)[:, None]
    flux = flux + error * rng.standard_normal(flux.shape, np.float32)
    if partial > 0:
        factor = in_part(flux, rng, partial)
        flux, error = flux * factor, error * factor
    return normalise(flux, error).spectra


def template_error(size: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Relative errors (size, 2575) of templates."""
    noise = gaussian_filter1d(rng.standard_normal((size, len(GRID)), np.float32), _TEMPLATE_PIXELS, axis=1)
    deviation = np.exp(rng.uniform(np.log(_TEMPLATE_ERROR[0]), np.log(_TEMPLATE_ERROR[1]), (size, 1)))
    return np.asarray(noise * (deviation * (2.0 * np.pi**0.5 * _TEMPLATE_PIXELS) ** 0.5), np.float32)


def draw_velocity(ranges: Sequence[TypeRange], rng: np.random.Generator) -> NDArray[np.float64]:
    """Shifts (n,) of the lines of stars of the given ranges (n,), km/s: of the star, where it was not taken out, and
    of the wavelength scale."""
    size = len(ranges)
    observed = rng.random(size) >= _VELOCITY_KNOWN
    scale = rng.normal(0.0, _VELOCITY_ERROR, size) + np.where(rng.random(size) < _IN_AIR, _AIR_SHIFT, 0.0)
    return np.asarray(scale + np.where(observed, rng.normal(0.0, [r.velocity for r in ranges]), 0.0))


def draw_metallicity(ranges: Sequence[TypeRange], rng: np.random.Generator) -> NDArray[np.float64]:
    """[Fe/H] (n,) of stars of the given ranges (n,): a normal distribution for the disk, and one for the halo."""
    halo = rng.random(len(ranges)) < [r.halo for r in ranges]
    mean, deviation = (np.where(halo, h, d) for h, d in zip(HALO_METALLICITY, DISK_METALLICITY, strict=True))
    return np.asarray(rng.normal(mean, deviation))


def in_part(flux: NDArray[np.float64], rng: np.random.Generator, share: float) -> NDArray[np.float64]:
    """What spectrographs make of spectra (n, 2575): a factor (n, 2575) for flux and error, NaN where nothing is seen.

    A share of the spectra cover one stretch of the grid, from MIN_COVERAGE to 95 % of it and even in the logarithm, or
    two; there are gaps in them. Some, whole or not, are not calibrated in flux, or divided by their continuum.
    """
    size = len(flux)
    place = ((np.arange(len(GRID)) + 0.5) / len(GRID))[None, :]
    partial = rng.random(size) < share
    factor = np.ones_like(flux)

    def stretch(width: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        # Beyond both ends, so that stretches at the ends of the grid are as likely as others.
        first = np.clip(rng.uniform(-0.15, 1.15 - width), 0.0, 1.0 - width)[:, None]
        return first, (place >= first) & (place <= first + width[:, None])

    width = np.where(partial, np.exp(rng.uniform(np.log(_LEAST_PART * 1.02), np.log(_MOST_PART), size)), 1.0)
    first, seen = stretch(width)
    two = partial & (rng.random(size) < _TWO_ARMS)
    _, second = stretch(np.exp(rng.uniform(np.log(0.05), np.log(0.4), size)))
    seen |= second & two[:, None]
    kept = seen.copy()
    for _ in range(_GAPS):
        middle, half = first + rng.random((size, 1)) * width[:, None], 0.5 * _GAP_WIDTH * width * rng.random(size)
        there = partial & (rng.random(size) < _GAP_SHARE)
        kept &= ~(there[:, None] & (np.abs(place - middle) < half[:, None]))
    seen = np.where((kept.mean(axis=1) > MIN_COVERAGE)[:, None], kept, seen)
    counts = np.flatnonzero(rng.random(size) < np.where(partial, *_UNCALIBRATED[::-1]))
    along = np.clip((place - first[counts]) / width[counts, None], 0.0, 1.0) * 2.0 - 1.0
    coefficient = rng.normal(0.0, _CALIBRATION_ERROR, (len(counts), len(_CALIBRATION_ERROR)))
    basis = np.polynomial.legendre.legvander(along, len(_CALIBRATION_ERROR))[..., 1:]
    factor[counts] *= np.exp(np.einsum("nwk,nk->nw", basis, coefficient))
    divided = np.flatnonzero(rng.random(size) < np.where(partial, *_CONTINUUM_DIVIDED[::-1]))
    continuum = gaussian_filter1d(flux[divided], 60.0, axis=1)
    factor[divided] = 1.0 / np.maximum(continuum, 0.02 * continuum.max(axis=1, keepdims=True))
    return np.where(seen, factor, np.nan)


def _range(class_name: str, survey: str) -> TypeRange:
    return SPECTRAL_TYPES.get(f"{class_name}:{survey}", SPECTRAL_TYPES[class_name])
