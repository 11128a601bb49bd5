"""The column of times in a table of light curves: what its numbers are, by its name, its unit and their range."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from broker.lightcurves.columns import EPOCH_IN_NAME, plain
from broker.records import TimeSystem
from broker.times import JD_OF_MJD_0, mjd_of_jd, utc_of_tai

Array = NDArray[np.float64]

EARLIEST_MJD: Final = 15_000.0
"""December 1899: earlier photometry is not digital, and most smaller numbers are days since some other epoch."""
_EPOCHS: Final = {"btjd": 2_457_000.0, "bkjd": 2_454_833.0, "rjd": 2_400_000.0}
_TAI: Final = ("expmidptmjd",)
"""Times of TAI whose names do not say so: those of Rubin's data previews (https://sdm-schemas.lsst.io)."""


@dataclass(frozen=True, slots=True)
class TimeColumn:
    """How the numbers of a column of times are read: by its name and, above all, by their range.

    Full Julian dates and MJD cannot be taken for each other. Smaller numbers count from some other epoch: from that in
    the column's name (``btjd``, ``HJD-2450000``) or, in one named ``jd`` or ``hjd``, from JD 2450000. What remains is
    no time.
    """

    name: str
    latest_mjd: float
    """Later times are mistakes: the time now, and a day for time zones."""
    about: str = ""
    """What the file says of the column: a unit such as ``BJD - 2457000, days`` or ``btjd``."""

    @property
    def _plain(self) -> str:
        return plain(self.name.rsplit(".", 1)[-1])

    @property
    def system(self) -> TimeSystem:
        """Where the column's name says that the times are: at the observatory, unless it is one such as ``hjd``."""
        text = self._plain + self.about.lower()
        if re.search(r"hm?jd|helio", text):
            return TimeSystem.HELIOCENTRIC
        return TimeSystem.BARYCENTRIC if re.search(r"bm?jd|btjd|bkjd|bary", text) else TimeSystem.UTC

    @property
    def _is_tai(self) -> bool:
        return "tai" in self._plain or self._plain in _TAI

    @property
    def epoch(self) -> float | None:
        """The Julian date at which the column's name or unit says it begins, None where they say none."""
        match = EPOCH_IN_NAME.search(self.name) or EPOCH_IN_NAME.search(self.about)
        return float(match[0]) if match else _EPOCHS.get(self._plain, _EPOCHS.get(self.about.strip().lower()))

    @property
    def said(self) -> str:
        """What the name says that the numbers are."""
        if self.epoch is not None:
            return f"JD-{self.epoch:.8g}"
        return "MJD" if "mjd" in self._plain else "JD" if "jd" in self._plain or "julian" in self._plain else "time"

    def to_mjd(self, value: Array) -> tuple[Array, dict[str, NDArray[np.bool_]]]:
        """(n,) MJD of ``system``, NaN for what is no time, and which values were read in which way (such as ``JD``)."""
        with np.errstate(invalid="ignore"):
            mjd = np.full(len(value), np.nan)
            ways: dict[str, NDArray[np.bool_]] = {}
            for way, epoch in self._ways():
                found = value + mjd_of_jd(epoch)
                fits = np.isnan(mjd) & (found >= EARLIEST_MJD) & (found <= self.latest_mjd)
                if way == "JD-2450000":  # BJD of 1325 to 4500 are more likely counted from 2457000: TESS
                    fits &= value > (5000.0 if self._plain.startswith("b") else 0.0)
                if fits.any():
                    mjd = np.where(fits, utc_of_tai(found) if self._is_tai else found, mjd)
                    ways[way] = fits
        return mjd, ways

    def _ways(self) -> list[tuple[str, float]]:
        ways = [("JD", 0.0)]
        if self.epoch is not None:
            ways.append((self.said, self.epoch))
        ways.append(("MJD", JD_OF_MJD_0))
        if self.epoch is None and self.said == "JD":
            ways.append(("JD-2450000", 2_450_000.0))
        return ways

    def mistake(self, value: float) -> str:
        """What a number that is no time may be, for a message."""
        number = f"{value:.10g} in column {self.name}"
        rename = "name the column hjd-2450000, btjd (BJD-2457000) or bkjd (BJD-2454833) to say which"
        if np.isnan(value):
            return f"no number in column {self.name}"
        if np.isinf(value) or value < 0:
            return f"{number} is no date"
        if value <= 1.0:
            return f"{number} is neither MJD nor JD: a phase?"
        if 1850.0 <= value <= 2150.0:
            return f"{number} is neither MJD nor JD: a decimal year, or days since some epoch: {rename}"
        if value < EARLIEST_MJD:
            return f"{number} is neither MJD nor JD but days since some epoch: {rename}"
        if 18_000_101 <= value <= 21_001_231:
            return f"{number} is neither MJD nor JD: a calendar date?"
        if 3e8 <= value <= 3e9:
            return f"{number} is neither MJD nor JD: Unix time in seconds? (MJD = 40587 + seconds / 86400)"
        if 3e9 < value <= 1e11:
            return f"{number} is neither MJD nor JD: MJD in seconds? (divide by 86400)"
        if value > 1e11:
            return f"{number} is neither MJD nor JD: Unix time in milliseconds or less?"
        return f"{number} is later than now (MJD {self.latest_mjd - 1:.1f}) as MJD, and no JD"
