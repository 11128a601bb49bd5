"""What a night brought, from the index of annotations: counts, new members of classes, the strangest objects."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa

from broker.database import ANNOTATIONS, OBJECTS
from broker.errors import DependencyUnavailableError
from broker.state import Store
from broker.taxonomy import NOT_CLASSIFIED
from broker.times import mjd_now, mjd_of
from broker.web import objects
from broker.web.index import Index
from broker.web.templating import render

TONIGHT: Final = "tonight"
_MOST_REASONS: Final = 12
_DRAWN: Final = ("mjd", "band", "kind", "magnitude", "magnitudeError", "total", "mjdBarycentric")
"""Columns of ``objects.points`` that plots of magnitudes need."""
_SHOWN: Final = ("object_id", "survey", "ra", "dec")


@dataclass(frozen=True, slots=True)
class Bounds:
    """From noon UTC of a day to the next, as Rubin's dayObs."""

    day: str
    start: float
    """MJD UTC, as ``end``."""
    end: float


@dataclass(slots=True)
class Night:
    """What the report shows."""

    day: str
    start: float
    end: float
    annotations: int
    objects: int
    classified: int
    not_classified: int
    reasons: dict[str, int]
    """Objects that are NotClassified by reason, as their latest annotation says it."""
    classes: list[dict[str, Any]]
    since: float | None
    """When the oldest annotation of the index was published."""
    new: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By class: ``count``, and as ``objects`` the most probable."""
    anomalies: list[dict[str, Any]] = field(default_factory=list)
    dead_letters: dict[str, int] | None = None
    """By reason; None where they are not known, and why."""
    dead_letters_problem: str = "Kafka was not asked"


def bounds_of(text: str) -> Bounds:
    """Of ``tonight``, or of the evening of YYYY-MM-DD; raises ValueError for anything else."""
    try:
        day = (datetime.now(UTC) - timedelta(hours=12)).date() if text == TONIGHT else date.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r} is neither {TONIGHT} nor such as 2026-11-28") from None
    start = mjd_of(datetime(day.year, day.month, day.day, 12, tzinfo=UTC))
    return Bounds(day.isoformat(), start, start + 1.0)


def collect(index: Index, bounds: Bounds, most_new: int, most_anomalies: int) -> Night:
    """All that the index has of a night."""
    found = index.night(bounds.start, bounds.end)
    by_class = {row["class"]: row["annotations"] for row in found["classes"]}
    refused = by_class.get(NOT_CLASSIFIED.name, 0)
    night = Night(
        bounds.day, bounds.start, bounds.end, found["annotations"], found["objects"], found["annotations"] - refused,
        refused, _reasons(index, bounds), found["classes"], index.contents()["firstPublished"],
    )  # fmt: skip
    with index.engine.connect() as connection:
        night.new = _new_members(connection, bounds, most_new)
        night.anomalies = _anomalies(connection, bounds, most_anomalies)
    return night


def _last(bounds: Bounds) -> sa.Subquery:
    """The last annotation of each object in a night."""
    order = (ANNOTATIONS.c.mjd.desc(), ANNOTATIONS.c.published.desc(), ANNOTATIONS.c.id.desc())
    place = sa.func.row_number().over(partition_by=ANNOTATIONS.c.object, order_by=order).label("place")
    within = (ANNOTATIONS.c.published >= bounds.start) & (ANNOTATIONS.c.published < bounds.end)
    numbered = sa.select(ANNOTATIONS, place).where(within).subquery()
    return sa.select(numbered).where(numbered.c.place == 1).subquery()


def _new_members(connection: sa.Connection, bounds: Bounds, most: int) -> dict[str, dict[str, Any]]:
    last, earlier = _last(bounds), ANNOTATIONS.alias("earlier")
    before = (earlier.c.object == last.c.object) & (earlier.c.published < bounds.start)
    same = sa.exists().where(before, earlier.c.class_name == last.c.class_name)
    new = sa.select(last).where(~same, last.c.class_name != NOT_CLASSIFIED.name).subquery()
    count = sa.func.count()
    totals = sa.select(new.c.class_name, count).group_by(new.c.class_name).order_by(count.desc(), new.c.class_name)
    result = {name: {"count": number, "objects": []} for name, number in connection.execute(totals)}
    rank = sa.func.row_number().over(
        partition_by=new.c.class_name, order_by=(new.c.probability.desc(), new.c.object)
    ).label("rank")  # fmt: skip
    ranked = sa.select(new, rank).subquery()
    was = (
        sa.select(earlier.c.class_name)
        .where(earlier.c.object == ranked.c.object, earlier.c.published < bounds.start)
        .order_by(earlier.c.mjd.desc(), earlier.c.published.desc())
        .limit(1)
        .scalar_subquery()
        .label("before")
    )
    columns = [OBJECTS.c[name] for name in (*_SHOWN, "record")]
    first = (
        sa.select(ranked, was, *columns)
        .join(OBJECTS, OBJECTS.c.id == ranked.c.object)
        .where(ranked.c.rank <= most)
        .order_by(ranked.c.rank)
    )
    for row in connection.execute(first).mappings():
        shown = dict(row)
        shown["known"] = _known(json.loads(shown.pop("record")))
        result[row["class_name"]]["objects"].append(shown)
    return result


def _anomalies(connection: sa.Connection, bounds: Bounds, most: int) -> list[dict[str, Any]]:
    last = _last(bounds)
    query = (
        sa.select(last, *(OBJECTS.c[name] for name in (*_SHOWN, "record")))
        .join(OBJECTS, OBJECTS.c.id == last.c.object)
        .where(last.c.anomaly_score.is_not(None))
        .order_by(last.c.anomaly_score.desc(), last.c.object)
        .limit(most)
    )
    return [
        {
            **row, "record": json.loads(row["record"]), "light_curve": None, "spectrum": None,
            "modalities": ", ".join(row["modalities"].split()).replace("_", " "),
        }
        for row in connection.execute(query).mappings()
    ]  # fmt: skip


def _reasons(index: Index, bounds: Bounds) -> dict[str, int]:
    within = (OBJECTS.c.published >= bounds.start) & (OBJECTS.c.published < bounds.end)
    query = sa.select(OBJECTS.c.record).where(OBJECTS.c.class_name == NOT_CLASSIFIED.name, within)
    with index.engine.connect() as connection:
        records = connection.execute(query).scalars()
        return most_common((json.loads(record).get("reason") or "").partition(" (")[0] for record in records)


def most_common(reasons: Iterable[str]) -> dict[str, int]:
    """How many there are of each reason, the most frequent first, the rest together."""
    counts = Counter(reasons).most_common()
    result = dict(counts[:_MOST_REASONS])
    if rest := sum(count for _, count in counts[_MOST_REASONS:]):
        result["others"] = rest
    return result


def _known(record: Mapping[str, Any]) -> str:
    return "; ".join(
        f"{known['catalogue']} {known['name'] or ''}: {known['type'] or 'no type'}"
        f"{', contradicted' if known['disagrees'] else ''}"
        for known in record["knownAs"]
    )


def add_light_curves(night: Night, store: Store) -> str | None:
    """Give the anomalies their light curves and spectra; returns why there are none, where Redis does not answer."""
    for one in night.anomalies:
        if not math.isfinite(one["ra"] + one["dec"]):
            continue
        try:
            known = objects.find(store, one["survey"], one["object_id"], one["ra"], one["dec"])
        except DependencyUnavailableError as error:
            return f"Light curves cannot be had: {error}"
        if known is None:
            continue
        if len(known.state.light_curve):
            one["light_curve"] = drawn(objects.points(known.state))
        if known.state.spectrum is not None:
            one["spectrum"] = objects.spectrum(known.state.spectrum)
    return None


def drawn(points: Mapping[str, Sequence[Any]]) -> dict[str, Sequence[Any]]:
    """Of the columns of ``objects.points`` those that plots of magnitudes need."""
    return {name: points[name] for name in _DRAWN}


def page(night: Night, most_new: int, problem: str | None) -> str:
    """The report: one HTML file that needs no other."""
    surveys = sorted(
        {one["survey"] for one in night.anomalies}
        | {row["survey"] for one in night.new.values() for row in one["objects"]}
    )
    return render(
        "night.html", night=night, most_new=most_new, problem=problem, surveys=surveys, made=mjd_now()
    )  # fmt: skip
