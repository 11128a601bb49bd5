"""Spectra by their place, for files that are classified without a server."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from broker.errors import InputFileError
from broker.records import ObservedSpectrum
from broker.sky import separation
from broker.spectra.files import read_spectra


class Spectra:
    """Some spectra, found by position."""

    def __init__(self, spectra: Iterable[ObservedSpectrum], radius: float) -> None:
        """``radius`` in arcsec: within it a spectrum is a star's."""
        self.all: tuple[ObservedSpectrum, ...] = tuple(spectra)
        self._ra, self._dec = (np.array([getattr(s, axis) for s in self.all], np.float64) for axis in ("ra", "dec"))
        self._radius = radius

    def at(self, ra: float, dec: float) -> ObservedSpectrum | None:
        """The nearest within the radius of a position (ICRS degrees); None where there is none."""
        if not self.all or not math.isfinite(ra + dec):
            return None
        away = separation(np.full_like(self._ra, ra), np.full_like(self._dec, dec), self._ra, self._dec)
        away = np.where(np.isfinite(away), away, np.inf)
        nearest = int(away.argmin())
        return self.all[nearest] if away[nearest] <= self._radius else None

    @staticmethod
    def of_files(paths: Iterable[Path], radius: float, say: Callable[[str], None]) -> Spectra:
        """The spectra of files; those that cannot be used are named to ``say``.

        Raises InputFileError for a file of which none can be used.
        """
        found: list[ObservedSpectrum] = []
        for path in paths:
            before = len(found)
            try:
                found.extend(read_spectra(path))
            except InputFileError as error:
                if len(found) == before:
                    raise
                say(str(error))
        return Spectra(found, radius)
