"""Which catalogue values can be measurements; the others are codes for unknown ones.

Tables write an unknown value as -9.99, 0, 99.999, -999, 1e20 and the like. A value counts as unknown where it is
outside the range that sources on the sky have, or is exactly one of the codes that fall inside that range.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from broker.records import MAGNITUDES
from broker.sky import Array

Counts = dict[str, dict[str, int]]
"""For each column how many values are unknown, by the reason."""
BLANK: Final = "blank"
NOT_A_NUMBER: Final = "not a number"
CODE: Final = "a code such as -9.99 or 0"
OTHER: Final = "of an unknown value"
POSITION: Final = "position"
EPOCH: Final = "epoch"
"""Name of the column of Julian years."""


@dataclass(frozen=True, slots=True)
class _Rule:
    """What values of a column can be."""

    low: float
    """Values at it or below are no measurements."""
    high: float
    """Values at it or above are none."""
    zero: bool = False
    """Whether exactly 0 is a measurement."""
    negative_codes: float = 0.0
    """From which size on a negative number of nines (9.99, 99.99, 999) is a code; 0: none is."""
    positive_codes: float = 0.0
    """The same of positive ones."""


_ERRORS_OF: Final = (
    "phot_g_mean_mag", "phot_bp_mean_mag", "phot_rp_mean_mag", "j_mag", "h_mag", "k_mag", "w1_mag", "w2_mag",
)  # fmt: skip
# The brightest stars: Sirius V = -1.46, R Doradus K = -4.0, Betelgeuse W1 = -4; CW Leonis at 12 and 22 micron
# (47,500 and 30,000 Jy, IRAS) W3 = -8.0 and W4 = -8.9. A K of exactly 9.999 is far more often a code than a star.
_MAGNITUDE: Final = _Rule(-5.0, 30.0, negative_codes=9.99, positive_codes=9.999)
_FAR_INFRARED: Final = _Rule(-9.5, 30.0, negative_codes=9.99, positive_codes=9.999)
_COLOUR: Final = _Rule(-5.0, 9.99, zero=True)
# The largest proper motion is Barnard's star's, 10,393 mas/yr; the largest parallax Proxima's, 768 mas. Spurious
# parallaxes of Gaia DR3 go down to -190.
_MOTION: Final = _Rule(-10_500.0, 10_500.0, zero=True, negative_codes=99.99, positive_codes=99.99)
_MOTION_ERROR: Final = _Rule(0.0, 1000.0, positive_codes=99.9)
_RULES: Final[Mapping[str, _Rule]] = {
    **dict.fromkeys(MAGNITUDES, _MAGNITUDE),
    "w3_mag": _FAR_INFRARED, "w4_mag": _FAR_INFRARED,
    **{f"e_{name}": _Rule(0.0, 5.0) for name in _ERRORS_OF},
    **dict.fromkeys(("bp_rp", "j_k", "w1_w2", "w3_w4"), _COLOUR),
    "parallax": _Rule(-250.0, 800.0, negative_codes=9.99, positive_codes=99.9),
    "parallax_error": _Rule(0.0, 100.0, positive_codes=9.99),
    "parallax_over_error": _Rule(-1e5, 1e5, zero=True, negative_codes=99.9, positive_codes=999.0),
    "pmra": _MOTION, "pmdec": _MOTION, "pmra_error": _MOTION_ERROR, "pmdec_error": _MOTION_ERROR,
    "pm": _Rule(0.0, 10_500.0, positive_codes=99.99),
    "ruwe": _Rule(0.0, 1000.0, positive_codes=9.999),
    "cos_l": _Rule(-1.0001, 1.0001, zero=True), "sin_b": _Rule(-1.0001, 1.0001, zero=True),
    EPOCH: _Rule(1850.0, 2150.0),
}  # fmt: skip
_MADE_OF: Final[Mapping[str, tuple[str, ...]]] = {
    **{f"e_{name}": (name,) for name in _ERRORS_OF},
    "bp_rp": ("phot_bp_mean_mag", "phot_rp_mean_mag"), "j_k": ("j_mag", "k_mag"),
    "w1_w2": ("w1_mag", "w2_mag"), "w3_w4": ("w3_mag", "w4_mag"),
    "parallax_error": ("parallax",), "parallax_over_error": ("parallax", "parallax_error"),
    "pmra": ("pmdec",), "pmdec": ("pmra",), "pmra_error": ("pmra",), "pmdec_error": ("pmdec",), "pm": ("pmra", "pmdec"),
}  # fmt: skip
"""Values that mean nothing where one of these is a code. One component of a motion is none."""
_NINES: Final = np.array(
    sorted({float(f"{'9' * digits}e{shift}") for digits in range(3, 7) for shift in range(1 - digits, 5)})
)
_DECADES: Final = 10.0 ** np.arange(1, 12)
_SAME: Final = 1.5e-7
"""Relative: 99.99 as a single-precision number is the same code."""


def plausible(columns: Mapping[str, Array]) -> tuple[dict[str, Array], Counts]:
    """Columns (n,) with NaN for what is no measurement, and how many values are unknown, by column and reason.

    NaN stands for a blank in the table and infinity for text that is no number.
    """
    reasons = {name: _reasons(name, column) for name, column in columns.items()}
    if {"pmra", "pmdec"} <= columns.keys():
        # Each alone may be a measurement, but not both the same.
        ra, dec = columns["pmra"], columns["pmdec"]
        same = (ra == dec) & ((ra == 0.0) | _is_nines(ra, 9.99))
        if same.any():
            for name in ("pmra", "pmdec"):
                reasons[name][CODE] = reasons[name].get(CODE, False) | same
    none = {name: _any([mask for reason, mask in of.items() if reason != BLANK]) for name, of in reasons.items()}
    result, counts = {}, {}
    for name, column in columns.items():
        made = _any([mask for part in _MADE_OF.get(name, ()) if (mask := none.get(part)) is not None])
        unknown = _any(list(reasons[name].values()))
        if made is not None:
            reasons[name][OTHER] = made if unknown is None else made & ~unknown
            unknown = made if unknown is None else made | unknown
        result[name] = column if unknown is None else np.where(unknown, np.nan, column)
        counts[name] = {reason: n for reason, mask in reasons[name].items() if (n := int(np.count_nonzero(mask)))}
    return result, {name: of for name, of in counts.items() if of}


def _reasons(name: str, column: Array) -> dict[str, NDArray[np.bool_]]:
    """For each reason that there is, (n,) which values are unknown for it; a value has one reason at most."""
    rule = _RULES[name]
    inside = (column > rule.low) & (column < rule.high)
    code = np.zeros(len(column), np.bool_) if rule.zero else column == 0.0
    if rule.negative_codes:
        code |= (column < 0.0) & _is_nines(column, rule.negative_codes)
    if rule.positive_codes:
        code |= (column > 0.0) & _is_nines(column, rule.positive_codes)
    if inside.all() and not code.any():
        return {}
    blank, text = np.isnan(column), np.isinf(column)
    return {BLANK: blank, NOT_A_NUMBER: text, CODE: code, _range(name): ~(inside | blank | text | code)}


def _any(masks: Sequence[NDArray[np.bool_]]) -> NDArray[np.bool_] | None:
    """Where one of the masks is true; None where there are none."""
    found: NDArray[np.bool_] | None = None
    for mask in masks:
        found = mask if found is None else found | mask
    return found


def _range(name: str) -> str:
    return f"not in {_RULES[name].low:g} to {_RULES[name].high:g}"


def _is_nines(column: Array, least: float) -> NDArray[np.bool_]:
    """Which values are, but for the sign, at least three nines and nothing else, ``least`` or more."""
    size = np.abs(column)
    # All are within 0.1 % below a power of ten, as few other numbers are: the rest is looked at no further.
    near = np.zeros(len(column), np.bool_)
    largest = size.max(initial=0.0, where=np.isfinite(size))
    for decade in _DECADES:
        if least < decade and largest >= 0.998 * decade:
            near |= (size >= 0.998 * decade) & (size < decade)
    rows = np.flatnonzero(near)
    if len(rows):
        code = _NINES[np.minimum(np.searchsorted(_NINES, size[rows] * (1.0 - _SAME)), len(_NINES) - 1)]
        near[rows] = (np.abs(size[rows] - code) <= _SAME * code) & (code >= least * (1.0 - _SAME))
    return near


def add_counts(counts: Counts, more: Counts) -> None:
    """Add to what is counted so far, by column and reason."""
    for column, reasons in more.items():
        for reason, count in reasons.items():
            of_column = counts.setdefault(column, {})
            of_column[reason] = of_column.get(reason, 0) + count


def describe_unknown(unknown: Counts) -> str:
    """How many values and rows are left out, by column and reason, in one line."""
    return "; ".join(
        f"{column}: {', '.join(f'{count:,} {reason}' for reason, count in sorted(reasons.items()))}"
        for column, reasons in unknown.items()
    )
