"""Real LAMOST spectra of other stars of the right type, whole and in part: what a survey's spectra look like."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from broker.assemble.spectrum import GRID, MIN_COVERAGE, assemble_spectra, normalise, resample
from broker.records import Spectrum
from training.simulate.spectra import type_code

PART_SHARE: Final = 0.3
"""Share of spectra, real and simulated, of which a part of the grid is seen."""
_TYPE_SCATTER: Final = 1.5
"""Subclasses by which the type may be missed."""


@dataclass(frozen=True, slots=True, eq=False)
class RealSpectra:
    """n spectra on the model's grid, with their spectral types."""

    flux: NDArray[np.float64]
    """(n, 2575), NaN without a good pixel, as ``error``."""
    error: NDArray[np.float64]
    code: NDArray[np.float64]
    """Type codes as ``training.simulate.spectra.type_code``."""

    def __len__(self) -> int:
        return len(self.code)

    def take(self, rows: NDArray[np.intp]) -> RealSpectra:
        """Those of ``rows``."""
        return RealSpectra(self.flux[rows], self.error[rows], self.code[rows])

    def like(self, code: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.intp]:
        """For each type code (m,) the row of a spectrum of about that type."""
        distance = np.abs(self.code[None, :] - code[:, None]) + rng.exponential(_TYPE_SCATTER, (len(code), len(self)))
        nearest: NDArray[np.intp] = np.argmin(distance, axis=1)
        return nearest

    def inputs(self, rows: NDArray[np.intp], rng: np.random.Generator) -> NDArray[np.float32]:
        """Model inputs (m, 3, 2575) of ``rows`` (m,); of three in ten only a part of the wavelengths."""
        flux = self.flux[rows].copy()
        kept = np.where(rng.random(len(rows)) < PART_SHARE, rng.uniform(MIN_COVERAGE + 0.02, 1.0, len(rows)), 1.0)
        first = rng.uniform(0.0, 1.0 - kept)
        place = (np.arange(len(GRID)) + 0.5) / len(GRID)
        flux[(place[None, :] < first[:, None]) | (place[None, :] > (first + kept)[:, None])] = np.nan
        seen = np.isfinite(flux).mean(axis=1) > MIN_COVERAGE  # a part may lie where the spectrum has gaps
        return normalise(np.where(seen[:, None], flux, self.flux[rows]), self.error[rows]).spectra


def load_real_spectra(data: Path) -> RealSpectra:
    """The usable spectra of ``lamost_spectra.npz`` that have a spectral type, in the order of the file."""
    subclass = pq.read_table(data / "lamost_index.parquet")["subclass"].to_pylist()
    spectra = []
    with np.load(data / "lamost_spectra.npz", allow_pickle=False) as file:
        wave, flux, variance = (file[name] for name in ("wave", "flux", "ivar"))
        for start, stop in pairwise(file["offsets"]):
            inverse = variance[start:stop].astype(np.float64)
            error = np.where(inverse > 0, np.where(inverse > 0, inverse, 1.0) ** -0.5, np.nan)
            spectra.append(Spectrum(wave[start:stop], flux[start:stop], error.astype(np.float32)))
    # "dM1" and "gM2" tell dwarfs from giants before the type.
    code = np.array([type_code((text or "").lstrip("dg")) for text in subclass])
    usable = np.flatnonzero(assemble_spectra(spectra).present & np.isfinite(code))
    grid = [resample(spectra[row]) for row in usable]
    return RealSpectra(np.array([f for f, _ in grid]), np.array([e for _, e in grid]), code[usable])
