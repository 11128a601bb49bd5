"""How much a list would have found: of the annotations of the last night that the index has."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa

from broker.client.expression import Expression
from broker.client.fields import FIELDS, PROBABILITY, Columns, probability_of
from broker.database import ANNOTATIONS, OBJECTS
from broker.watch.content import Content
from broker.watch.match import Matcher, Wanted

MOST: Final = 50_000
"""Annotations that are looked at, the latest."""
_AT_ONCE: Final = 5000
_STORED: Final[Mapping[str, Callable[[Any], Any]]] = {
    "survey": lambda row: row["survey"],
    "objectId": lambda row: row["object_id"],
    "ra": lambda row: row["ra"],
    "dec": lambda row: row["dec"],
    "mjd": lambda row: row["mjd"],
    "class": lambda row: row["class_name"],
    "probability": lambda row: row["probability"],
    "parent": lambda row: row["parent"],
    "parentProbability": lambda row: row["parent_probability"],
    "anomalyScore": lambda row: row["anomaly_score"],
    "detections": lambda row: row["detections"],
    "period": lambda row: row["period"],
    "trigger": lambda row: row["trigger"],
    "modalities": lambda row: row["modalities"].split(),
    "known": lambda row: row["known"],
}
"""Fields that the index keeps of each annotation, or that stay an object's own."""
LATEST_ONLY: Final = frozenset(FIELDS) - frozenset(_STORED)
"""Fields that the index has of an object's latest annotation only."""


def count(engine: sa.Engine, content: Content, radius: float, expression: Expression | None) -> dict[str, Any]:
    """How many annotations of the 24 hours before the index's latest one a list wants, and of how many objects.

    Where the expression has fields of LATEST_ONLY, those of an object's latest annotation count for all of it, which
    ``approximate`` says. At most MOST annotations are looked at (``annotations``).
    """
    fields = frozenset[str]() if expression is None else expression.fields
    latest = bool(fields & LATEST_ONLY)
    matcher = Matcher([Wanted(0, content, radius, expression, not content)])
    columns = [c for c in ANNOTATIONS.c if c.name not in ("probabilities",)]
    columns += [OBJECTS.c[name] for name in ("survey", "object_id", "ra", "dec", "known")]
    if latest:
        columns.append(OBJECTS.c.record)
    if any(field.startswith(PROBABILITY) for field in fields):
        columns.append(ANNOTATIONS.c.probabilities)
    looked_at = found = 0
    objects: set[int] = set()
    with engine.connect() as connection:
        last = connection.execute(sa.select(sa.func.max(ANNOTATIONS.c.published))).scalar_one()
        below: int | None = None
        while last is not None and looked_at < MOST:
            query = sa.select(*columns).join(OBJECTS).where(ANNOTATIONS.c.published > last - 1.0)
            if below is not None:
                query = query.where(ANNOTATIONS.c.id < below)
            rows = connection.execute(query.order_by(ANNOTATIONS.c.id.desc()).limit(_AT_ONCE)).mappings().all()
            hits = matcher.match_columns(Columns(len(rows), _values(rows)))
            found += len(hits)
            objects |= {rows[hit.annotation]["object"] for hit in hits}
            looked_at += len(rows)
            if len(rows) < _AT_ONCE:
                break
            below = rows[-1]["id"]
    return {
        "annotations": looked_at,
        "matches": found,
        "objects": len(objects),
        "untilMjd": last,
        "approximate": latest,
    }


def _values(rows: Sequence[sa.RowMapping]) -> Callable[[str], Sequence[Any]]:
    records: list[dict[str, Any]] = []

    def values(name: str) -> Sequence[Any]:
        if name in _STORED:
            get = _STORED[name]
            return [get(row) for row in rows]
        if name.startswith(PROBABILITY):
            one = name.removeprefix(PROBABILITY)
            return [probability_of(one, json.loads(row["probabilities"])) for row in rows]
        if not records:
            records.extend(json.loads(row["record"]) for row in rows)
        return [record.get(name) for record in records]

    return values
