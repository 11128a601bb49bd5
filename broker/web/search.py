"""Search in the index: by class, parent, probability, anomaly, time and place, a page at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final, Literal

import hpgeom
import numpy as np
import sqlalchemy as sa

from broker import sky
from broker.client.filters import Cone
from broker.database import OBJECTS
from broker.web.index import ORDER, Index

MAX_RADIUS: Final = 36_000.0
"""Of a cone, arcsec."""
MAX_IN_CONE: Final = 20_000
"""Objects whose distance is computed."""
_MAX_ID: Final = (1 << 63) - 1
"""Of a row, in SQLite as in PostgreSQL."""
Sort = Literal["published", "mjd", "probability", "anomaly", "distance"]


class SearchError(ValueError):
    """What was asked for cannot be answered; the message says why."""


@dataclass(frozen=True, slots=True)
class Query:
    """What an object must have, as its latest annotation says; None for whatever."""

    survey: str | None = None
    class_name: str | None = None
    parent: str | None = None
    min_probability: float | None = None
    """Of the class; of the parent, where ``parent`` is given and ``class_name`` is not."""
    max_probability: float | None = None
    min_anomaly: float | None = None
    min_detections: int | None = None
    known: bool | None = None
    """Whether a catalogue of known variable stars has it."""
    disagrees: bool | None = None
    """Whether the model contradicts one of these with confidence."""
    since: float | None = None
    """Published at or after this MJD UTC, and before ``until``."""
    until: float | None = None
    alert_since: float | None = None
    """The latest alert at or after this MJD UTC, and before ``alert_until``."""
    alert_until: float | None = None
    cone: Cone | None = None
    sort: Sort = "published"
    """The highest or latest first; ``distance``, which needs a cone, the nearest first."""


@dataclass(frozen=True, slots=True)
class Page:
    """Some of the objects found, and where the others begin."""

    objects: list[dict[str, Any]]
    cursor: str | None
    """What gives the next page; None at the end."""


_COLUMNS: Final = tuple(column for column in OBJECTS.c if column.name != "record")
_SORTS: Final[dict[str, sa.Column[Any]]] = {
    "published": OBJECTS.c.published,
    "mjd": OBJECTS.c.mjd,
    "anomaly": OBJECTS.c.anomaly_score,
}


def search(index: Index, query: Query, limit: int = 50, cursor: str | None = None) -> Page:
    """The objects that a query finds, ``limit`` at a time; raises SearchError where it cannot be answered."""
    conditions = _conditions(query)
    if query.cone is not None:
        return _in_cone(index, query, query.cone, conditions, limit, cursor)
    if query.sort == "distance":
        raise SearchError("sort=distance needs ra, dec and radius")
    column = _sorted_by(query)
    conditions.append(column.is_not(None))
    if cursor is not None:
        value, number = _position(cursor)
        conditions.append((column < value) | ((column == value) & (OBJECTS.c.id < number)))
    found = sa.select(*_COLUMNS).where(*conditions).order_by(column.desc(), OBJECTS.c.id.desc()).limit(limit + 1)
    with index.engine.connect() as connection:
        rows = connection.execute(found).mappings().all()
    more = f"{rows[limit - 1][column.name]!r}_{rows[limit - 1]['id']}" if len(rows) > limit else None
    return Page([_shown(row) for row in rows[:limit]], more)


def _probability(query: Query) -> sa.Column[Any]:
    """Of the class; of the parent, where that alone is asked for."""
    by_parent = query.parent is not None and query.class_name is None
    return OBJECTS.c.parent_probability if by_parent else OBJECTS.c.probability


def _sorted_by(query: Query) -> sa.Column[Any]:
    return _probability(query) if query.sort == "probability" else _SORTS[query.sort]


def _conditions(query: Query) -> list[sa.ColumnElement[bool]]:
    probability = _probability(query)
    asked = (
        (query.survey, OBJECTS.c.survey.__eq__),
        (query.class_name, OBJECTS.c.class_name.__eq__),
        (query.parent, OBJECTS.c.parent.__eq__),
        (query.min_probability, probability.__ge__),
        (query.max_probability, probability.__le__),
        (query.min_anomaly, OBJECTS.c.anomaly_score.__ge__),
        (query.min_detections, OBJECTS.c.detections.__ge__),
        (query.known, OBJECTS.c.known.__eq__),
        (query.disagrees, OBJECTS.c.disagrees.__eq__),
        (query.since, OBJECTS.c.published.__ge__),
        (query.until, OBJECTS.c.published.__lt__),
        (query.alert_since, OBJECTS.c.mjd.__ge__),
        (query.alert_until, OBJECTS.c.mjd.__lt__),
    )
    return [compare(value) for value, compare in asked if value is not None]


def _in_cone(
    index: Index, query: Query, cone: Cone, conditions: list[sa.ColumnElement[bool]], limit: int, cursor: str | None
) -> Page:
    """All objects in the cone, whose pages are told by a number: those of a cone are few."""
    start = 0
    if cursor is not None:
        if not (cursor.isascii() and cursor.isdecimal()) or len(cursor) > len(str(MAX_IN_CONE)):
            raise SearchError("cursor is none that this search gave")
        start = int(cursor)
    column = None if query.sort == "distance" else _sorted_by(query)
    if column is not None:
        conditions.append(column.is_not(None))
    within = sa.or_(*(OBJECTS.c.cell.between(low, high - 1) for low, high in _ranges(cone)))
    with index.engine.connect() as connection:
        rows = (
            connection.execute(sa.select(*_COLUMNS).where(within, *conditions).limit(MAX_IN_CONE + 1)).mappings().all()
        )
    if len(rows) > MAX_IN_CONE:
        raise SearchError(f"more than {MAX_IN_CONE:,} objects in this cone: give a smaller radius or more conditions")
    if not rows:
        return Page([], None)
    ra, dec = (np.array([row[name] for row in rows], np.float64) for name in ("ra", "dec"))
    distance = sky.separation(np.full_like(ra, cone.ra), np.full_like(dec, cone.dec), ra, dec)
    key = distance if column is None else -np.array([row[column.name] for row in rows], np.float64)
    order = np.lexsort((-np.array([row["id"] for row in rows]), key))
    order = order[distance[order] <= cone.radius]
    chosen = order[start : start + limit].tolist()
    objects = [_shown(rows[row]) | {"distanceArcsec": float(distance[row])} for row in chosen]
    return Page(objects, str(start + limit) if start + limit < len(order) else None)


def _ranges(cone: Cone) -> list[tuple[int, int]]:
    """Ranges of cells of ORDER, the upper end excluded, that cover a cone."""
    radius = cone.radius / sky.ARCSEC
    order = int(np.clip(np.floor(np.log2(58.6 / max(radius, 1e-9))) + 2, 0, ORDER - 2))  # cells of radius / 4 or so
    found = hpgeom.query_circle(1 << order, cone.ra % 360.0, cone.dec, radius, inclusive=True, return_pixel_ranges=True)
    shift = 2 * (ORDER - order)
    return [(low << shift, high << shift) for low, high in np.asarray(found).tolist()]


def _position(cursor: str) -> tuple[float, int]:
    try:
        value, _, number = cursor.partition("_")
        position = float(value), int(number)
    except ValueError:
        position = math.nan, -1
    if not (math.isfinite(position[0]) and 0 <= position[1] <= _MAX_ID):
        raise SearchError("cursor is none that this search gave")
    return position


def _shown(row: Any) -> dict[str, Any]:
    """An object as the API has it."""
    return {
        "survey": row["survey"],
        "objectId": row["object_id"],
        "ra": row["ra"],
        "dec": row["dec"],
        "class": row["class_name"],
        "probability": row["probability"],
        "parent": row["parent"],
        "parentProbability": row["parent_probability"],
        "anomalyScore": row["anomaly_score"],
        "detections": row["detections"],
        "period": row["period"],
        "known": row["known"],
        "catalogueDisagrees": row["disagrees"],
        "mjd": row["mjd"],
        "publishedMjd": row["published"],
    }
