"""Which lists an annotation is for: many annotations against all lists at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from broker import moc, sky
from broker.client.expression import Expression
from broker.client.fields import Columns
from broker.publish.annotation import PublishedAnnotation
from broker.watch.content import Content

MIN_RADIUS: Final = 0.01
"""Arcsec, as MAX_RADIUS."""
MAX_RADIUS: Final = 600.0
_FINEST: Final = 16
_AT_ONCE: Final = 500_000
"""Pairs of an annotation and a position that are looked at together: some 100 bytes each."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """One list to be matched."""

    key: int
    content: Content
    radius: float
    """Arcsec, of its positions."""
    expression: Expression | None
    whole_sky: bool
    """Whether it has no places or names, and its expression alone counts."""


@dataclass(frozen=True, slots=True)
class Hit:
    """An annotation that a list wants."""

    key: int
    annotation: int
    """Its number among those that were given."""
    label: str
    """What the list calls the nearest of its positions, or the name that it has; may be empty."""


class _Positions:
    """Positions of lists whose radii are alike, sorted by cells that are wider than these."""

    def __init__(self, order: int, lists: Sequence[tuple[int, Wanted, NDArray[np.int64]]]) -> None:
        """Of lists with their numbers and the cells of their positions."""
        self._order = order
        sizes = [len(cells) for _, _, cells in lists]
        cells = np.concatenate([cells for _, _, cells in lists])
        by_cell = np.argsort(cells, kind="stable")
        self._cells = cells[by_cell]
        self._ra = np.concatenate([w.content.ra for _, w, _ in lists])[by_cell]
        self._dec = np.concatenate([w.content.dec for _, w, _ in lists])[by_cell]
        self._list = np.repeat([number for number, _, _ in lists], sizes)[by_cell]
        self._row = np.concatenate([np.arange(size) for size in sizes])[by_cell]
        self._radius = np.repeat([w.radius for _, w, _ in lists], sizes)[by_cell]
        self._reach = max(w.radius for _, w, _ in lists)

    def near(self, ra: NDArray[np.float64], dec: NDArray[np.float64]) -> tuple[NDArray[np.intp], ...]:
        """(m,) each: position (n,) asked for, list, row of its content; the nearest row of each list."""
        owner, cell = sky.cone_cells(ra, dec, self._reach, self._order)
        low, high = (np.searchsorted(self._cells, cell, side=side) for side in ("left", "right"))
        behind = np.cumsum(high - low)
        found: list[tuple[NDArray[Any], ...]] = []
        pairs = int(behind[-1]) if len(behind) else 0
        for start in range(0, max(pairs, 1), _AT_ONCE):
            pair = np.arange(start, min(start + _AT_ONCE, pairs))
            entry = np.searchsorted(behind, pair, side="right")
            asked, place = owner[entry], high[entry] - behind[entry] + pair
            distance = sky.separation(ra[asked], dec[asked], self._ra[place], self._dec[place])
            within = np.flatnonzero(distance <= self._radius[place])
            place = place[within]
            found.append(_nearest(asked[within], self._list[place], self._row[place], distance[within]))
        asked, lists, rows, _ = _nearest(*(np.concatenate(parts) for parts in zip(*found, strict=True)))
        return asked, lists, rows


def _nearest(
    asked: NDArray[Any], lists: NDArray[Any], rows: NDArray[Any], distance: NDArray[Any]
) -> tuple[NDArray[Any], ...]:
    """Of each position asked for and list, the row with the smallest distance."""
    order = np.lexsort((distance, lists, asked))
    asked, lists, rows, distance = asked[order], lists[order], rows[order], distance[order]
    new = np.ones(len(asked), np.bool_)
    new[1:] = (asked[1:] != asked[:-1]) | (lists[1:] != lists[:-1])
    return asked[new], lists[new], rows[new], distance[new]


class Matcher:
    """All lists of all users, as arrays; made anew when one changes."""

    def __init__(self, lists: Sequence[Wanted]) -> None:
        self._lists = list(lists)
        self.problems: dict[int, str] = {}
        """Why lists by their keys cannot be matched; the others are."""
        by_order: dict[int, list[tuple[int, Wanted, NDArray[np.int64]]]] = {}
        for number, wanted in enumerate(self._lists):
            if not len(wanted.content.ra):
                continue
            try:
                order = _order_for(wanted.radius)
                cells = sky.cells(wanted.content.ra, wanted.content.dec, order)
            except (ArithmeticError, ValueError) as error:
                self.problems[wanted.key] = f"its positions or radius cannot be used: {error}"
            else:
                by_order.setdefault(order, []).append((number, wanted, cells))
        self._positions = [_Positions(order, group) for order, group in by_order.items()]
        self._names: dict[str, list[int]] = {}
        for number, wanted in enumerate(self._lists):
            for name in wanted.content.names:
                self._names.setdefault(name, []).append(number)

    def match(self, annotations: Sequence[PublishedAnnotation]) -> list[Hit]:
        """What each list wants of some annotations, by list and then as they were given."""
        return self.match_columns(Columns.of(annotations))

    def match_columns(self, columns: Columns) -> list[Hit]:
        """The same of annotations whose fields are arrays already."""
        if not columns.count or not self._lists:
            return []
        labels = self._labels(columns)
        hits = []
        for number, wanted in enumerate(self._lists):
            own = labels.get(number, {})
            if not own and not wanted.whole_sky:
                continue
            meets = None if wanted.expression is None else wanted.expression.mask(columns)
            chosen = range(columns.count) if wanted.whole_sky else sorted(own)
            hits += [Hit(wanted.key, one, own.get(one, "")) for one in chosen if meets is None or meets[one]]
        return hits

    def _labels(self, columns: Columns) -> dict[int, dict[int, str]]:
        """By list and annotation, of those that lists have by place or name."""
        found: dict[int, dict[int, str]] = {}
        if self._names:
            pairs = zip(columns["survey"].tolist(), columns["objectId"].tolist(), strict=True)
            for one, (survey, object_id) in enumerate(pairs):
                for name in (object_id, f"{survey}:{object_id}"):
                    for number in self._names.get(name, ()):
                        found.setdefault(number, {})[one] = name
        placed = np.flatnonzero(np.isfinite(columns["ra"]) & (np.abs(columns["dec"]) <= 90.0))
        ra, dec = columns["ra"][placed], columns["dec"][placed]
        regions = [(number, w.content.region) for number, w in enumerate(self._lists) if len(w.content.region)]
        if regions:
            cells = moc.cells_of(ra, dec)
            for number, region in regions:
                for one in placed[moc.inside(region, cells)].tolist():
                    found.setdefault(number, {}).setdefault(one, "")
        for positions in self._positions:
            asked, lists, rows = positions.near(ra, dec)
            for one, number, row in zip(placed[asked].tolist(), lists.tolist(), rows.tolist(), strict=True):
                found.setdefault(number, {})[one] = self._lists[number].content.labels[row]
        return found


def _order_for(radius: float) -> int:
    """Of cells four times as wide as a radius in arcsec, or more."""
    return int(np.clip(math.floor(math.log2(211_000.0 / (4.0 * max(radius, MIN_RADIUS)))), 0, _FINEST))
