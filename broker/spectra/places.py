"""Spectra by the name of their object or their place, for files that are classified without a server."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from broker.errors import InputFileError
from broker.records import ObservedSpectrum
from broker.sky import separation
from broker.spectra.files import FILE, read_spectra


class Spectra:
    """Some spectra, found by name or position."""

    def __init__(self, spectra: Iterable[ObservedSpectrum], radius: float) -> None:
        """``radius`` in arcsec: within it a spectrum is a star's."""
        self.all: tuple[ObservedSpectrum, ...] = tuple(spectra)
        self._ra, self._dec = (np.array([getattr(s, axis) for s in self.all], np.float64) for axis in ("ra", "dec"))
        self._radius = radius
        self._named: dict[str, ObservedSpectrum] = {}
        for spectrum in self.all:
            for name in _names(spectrum):
                self._named.setdefault(name, spectrum)

    def of(self, name: str, ra: float, dec: float) -> ObservedSpectrum | None:
        """An object's: by its name, else at its position."""
        found = self._named.get(_comparable(name))
        return found if found is not None else self.at(ra, dec)

    def at(self, ra: float, dec: float) -> ObservedSpectrum | None:
        """The nearest within the radius of a position (ICRS degrees); None where there is none."""
        if not self.all or not math.isfinite(ra + dec):
            return None
        away = separation(np.full_like(self._ra, ra), np.full_like(self._dec, dec), self._ra, self._dec)
        away = np.where(np.isfinite(away), away, np.inf)
        nearest = int(away.argmin())
        return self.all[nearest] if away[nearest] <= self._radius else None

    @staticmethod
    def of_files(paths: Iterable[Path], radius: float, say: Callable[[str], None], *, placed: bool = True) -> Spectra:
        """The spectra of files; those that cannot be used are named to ``say``.

        Those without a position are such where ``placed``; else names tell. Raises InputFileError for a file of which
        none can be used.
        """
        found: list[ObservedSpectrum] = []
        for path in paths:
            before = len(found)
            try:
                found.extend(read_spectra(path, placed=placed))
            except InputFileError as error:
                if len(found) == before:
                    raise
                say(str(error))
        return Spectra(found, radius)


def _names(spectrum: ObservedSpectrum) -> list[str]:
    """Of the object that it is of: its id, that of the spectrum, and the file's name without endings."""
    of_file = spectrum.spectrum_id.removeprefix(FILE)
    if of_file != spectrum.spectrum_id:
        of_file = of_file.partition("#")[0].partition(".")[0]
    return [_comparable(name) for name in (spectrum.object_id, spectrum.spectrum_id, of_file) if name]


def _comparable(name: str) -> str:
    return "".join(name.split()).lower()
