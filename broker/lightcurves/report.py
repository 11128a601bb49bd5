"""Why points are left out of light curves, and what is said of a file: a line for each reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from broker.lightcurves.columns import NO_BAND, Columns
from broker.photometry import POGSON
from broker.records import BANDS
from broker.state.merge import MAX_POINTS

BRIGHTEST, FAINTEST = -2.0, 30.0
"""Magnitudes: Sirius has -1.5, and no survey sees fainter than 28. What is outside is a code for a missing value, such
as 99.999, or the magnitude of a negative flux (ATLAS)."""
NO_SIGNAL: Final = POGSON
"""An error in magnitudes at which the signal is as large as the noise: no detection. Codes (99.99) are larger."""
IMPOSSIBLE_GAP: Final = 5.0
"""A single point, brighter or fainter by so many magnitudes than all others of its band, is a mistake. The deepest
eclipses have 4 mag, and an outburst of more lasts for days."""
_MOST_NAMED: Final = 20
"""Points of one file that are named one by one."""
_MOST_BANDS: Final = 100
"""Unknown bands of one file that are told apart."""
SHORTEST: Final = 0.01
"""Days that the points of an object must span: the shortest periods of the classes are 0.02 d."""


class LeftOut(IntEnum):
    """Why a point is left out."""

    USED = 0
    TIME = 1
    LIMIT = 2
    MAGNITUDE = 3
    ERROR = 4
    NO_SIGNAL = 5
    CODE = 6
    FAR = 7
    BAND = 8
    POSITION = 9
    FLAGGED = 10
    REPEATED = 11
    THINNED = 12
    AT_ONCE = 13
    FILTER = 14


@dataclass(slots=True)
class Report:
    """What is said of one file."""

    path: Path
    columns: Columns
    say: Callable[[str], None]
    points: int = 0
    left_out: Counter[int] = field(default_factory=Counter)
    examples: dict[int, str] = field(default_factory=dict)
    """Of some reasons a value, as a text for the message."""
    bands: Counter[str] = field(default_factory=Counter)
    """Unknown ones, with their points."""
    numbers: dict[str, int] = field(default_factory=dict)
    """Of unknown bands, in the order in which they came."""
    ways: set[str] = field(default_factory=set)
    place: str = ""
    """Where the times are, and from what that is known."""
    named: int = 0
    uneven_lists: int = 0
    wide: int = 0
    """Objects whose rows lie within _SAME_PLACE, but not within a few arcsec."""

    def line(self, text: str) -> None:
        """Say one line of the file."""
        self.say(f"{self.path}: {text}")

    def unknown_band(self, name: str) -> int:
        """The code of an unknown band, from below NO_BAND on; of more than _MOST_BANDS all others have the last."""
        return NO_BAND - 1 - min(self.numbers.setdefault(name, len(self.numbers)), _MOST_BANDS - 1)

    def band_names(self, codes: NDArray[np.uint8]) -> tuple[str, ...]:
        """The names of such codes (n,), each once."""
        names, numbers = list(self.numbers), (NO_BAND - 1 - np.unique(codes)[::-1].astype(int)).tolist()
        return tuple(names[number] for number in numbers if number >= 0)

    def describe(self, counts: Counter[int], points: int, examples: dict[int, str]) -> str:
        """``3 of 60 points left out: 2 upper limits; 1 ...``."""
        parts = []
        for reason in sorted(counts):
            example = examples.get(reason)
            parts.append(f"{counts[reason]} {self._text(reason)}{f' ({example})' if example else ''}")
        return f"{sum(counts.values())} of {points} points left out: {'; '.join(parts)}"

    def _text(self, reason: int) -> str:
        columns = self.columns
        return {
            LeftOut.TIME: "without a possible time",
            LeftOut.LIMIT: "upper limits",
            LeftOut.MAGNITUDE: f"without a flux above 0 in column {columns.magnitude}"
            if columns.flux
            else f"without a possible magnitude in column {columns.magnitude} ({BRIGHTEST:g} to {FAINTEST:g}, not 0)",
            LeftOut.ERROR: f"without a positive error in column {columns.error}",
            LeftOut.NO_SIGNAL: f"with an error of {NO_SIGNAL:.2f} mag or more in {columns.error}: limits, or noise",
            LeftOut.CODE: f"codes such as 9.999 in column {columns.magnitude}",
            LeftOut.FAR: f"further than {IMPOSSIBLE_GAP:g} mag from all others of their object",
            LeftOut.BAND: f"of a band that is not known (known: {', '.join(BANDS)})",
            LeftOut.POSITION: "at a position that cannot be",
            LeftOut.FLAGGED: f"flagged as bad in column {columns.flag}",
            LeftOut.REPEATED: "repeated at the same time in the same band",
            LeftOut.AT_ONCE: f"within {SHORTEST:g} d, too short a time to tell how a star varies",
            LeftOut.FILTER: "of ASAS-SN in V or in g, and nothing tells which",
            LeftOut.THINNED: f"beyond {MAX_POINTS} in a band (an even choice in time is kept)",
        }[LeftOut(reason)]

    def time_read(self, way: str, said: str, value: float) -> None:
        """Say once how times are read."""
        if way not in self.ways:
            self.ways.add(way)
            but = "" if way == said or said == "time" else f", although the column's name says {said}"
            self.line(f"times in column {self.columns.time} ({value:.10g}, ...) are read as {way}{but}{self.place}")

    def far(self, name: str, mjd: float, magnitude: float, median: float, band: int, what: str) -> None:
        """Name a point that is far from all others of its object; ``what`` is done with it."""
        self.named += 1
        if self.named <= _MOST_NAMED:
            self.line(
                f"{name}: magnitude {magnitude:g} at MJD {mjd:.5f} is {abs(magnitude - median):.1f} mag from the "
                f"median {median:.2f} in {BANDS[band]}, and no other is near it: {what}"
            )

    def close(self, uneven: int) -> None:
        """Say what was left out of the whole file."""
        if self.bands:
            common = ", ".join(f"{band!r}" for band, _ in self.bands.most_common(8))
            self.examples[LeftOut.BAND] = f"in column {self.columns.band}: {common}"
        if self.left_out:
            self.line(self.describe(self.left_out, self.points, self.examples))
        if self.named > _MOST_NAMED:
            self.line(f"{self.named - _MOST_NAMED} more points far from the median of their object")
        if self.wide:
            self.line(f"objects with rows more than 3 arcsec apart: {self.wide}; their median position is used")
        if self.uneven_lists:
            names = f"{self.columns.time}, {self.columns.magnitude}, {self.columns.error}"
            self.line(f"rows left out for lists {names} of unequal length: {self.uneven_lists}")
        if uneven:
            self.line(f"rows left out for another number of cells than the header: {uneven}")
