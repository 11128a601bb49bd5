"""Catalogues of known variable stars: names, types and periods, which are published and never inputs of the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from broker.catalog.plausible import BLANK, Counts

NAME, TYPE, PERIOD, FLAG, LIMIT = "name", "type", "period", "flag", "period_limit"
KNOWN_FIELDS: Final = ("ra", "dec", NAME, TYPE, PERIOD, FLAG, LIMIT)
"""What a table of known variable stars can give; ``ra`` and ``dec`` and one of ``name`` and ``type`` it must."""
TEXTS: Final = (NAME, TYPE, FLAG, LIMIT)
STORED: Final[Mapping[str, int]] = {NAME: 8, TYPE: 8, PERIOD: 2}
"""Columns that are stored, with their words of four bytes: texts of 32 bytes (VSX has 30), periods in double
precision, of which VSX gives up to ten digits."""
_TEXT_BYTES: Final = 32
_LONGEST_PERIOD: Final = 1e6
_NO_STARS: Final[Mapping[bytes, str]] = {
    b"2": "constant or not existing", b"constant": "constant or not existing",
    b"3": "possible duplicate", b"duplicate": "possible duplicate",
}  # fmt: skip
"""VSX's flags of entries that are no variable stars of their own (column V of B/vsx; words of AAVSO's)."""


def known_columns(columns: Mapping[str, NDArray[Any]]) -> tuple[dict[str, NDArray[Any]], NDArray[np.bool_], Counts]:
    """Columns (n,) of STORED, (n,) which rows are a known star, and what was left out, by column and reason.

    A period that is only a limit, or no positive number of days, is unknown (NaN). Rows with neither name nor type,
    and those flagged as constant or as duplicates, are no known stars.
    """
    counts: Counts = {}
    stored: dict[str, NDArray[Any]] = {}
    for name in (NAME, TYPE):
        if name in columns:
            too_long = np.char.str_len(columns[name]) > _TEXT_BYTES
            stored[name] = np.where(too_long, b"", columns[name]).astype(f"S{_TEXT_BYTES}")
            counts[name] = {f"of more than {_TEXT_BYTES} bytes": int(too_long.sum())}
    usable = np.any([text != b"" for text in stored.values()], axis=0)
    if FLAG in columns:
        flags = np.char.lower(columns[FLAG])
        counts[FLAG] = {}
        for code, reason in _NO_STARS.items():
            flagged = flags == code
            usable &= ~flagged
            counts[FLAG][reason] = counts[FLAG].get(reason, 0) + int(flagged.sum())
    if PERIOD in columns:
        period = columns[PERIOD]
        limit = np.isin(columns[LIMIT], [b"<", b">"]) if LIMIT in columns else np.zeros(len(period), np.bool_)
        blank = np.isnan(period)
        with np.errstate(invalid="ignore"):
            wrong = ~blank & ~((period > 0.0) & (period < _LONGEST_PERIOD))
        stored[PERIOD] = np.where(limit | wrong, np.nan, period)
        counts[PERIOD] = {
            BLANK: int(blank.sum()), "a limit": int((limit & ~blank).sum()),
            f"not in 0 to {_LONGEST_PERIOD:g}": int((wrong & ~limit).sum()),
        }  # fmt: skip
    return stored, usable, {name: found for name, of in counts.items() if (found := {r: n for r, n in of.items() if n})}
