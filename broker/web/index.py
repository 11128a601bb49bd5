"""The index of annotations: the latest of each object, and a short history of all, for the retention time."""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import sqlalchemy as sa

from broker import sky
from broker.database import ANNOTATIONS, OBJECTS, connect, insert_missing
from broker.errors import DependencyUnavailableError
from broker.metrics import WEB_NEW_MEMBERS, WEB_REFUSED
from broker.publish.annotation import PublishedAnnotation, published_record, to_json
from broker.taxonomy import NOT_CLASSIFIED

log = logging.getLogger(__name__)

ORDER: Final = 20
"""Of the stored HEALPix cells, which are 0.2 arcsec wide: a cone is a few ranges of them."""
LONGEST_NAME: Final = 256
"""Characters of an object's name, of four bytes at most: an index of PostgreSQL takes 2704 bytes, and a longer one is
told as if there were no memory or disk left."""
_ROWS: Final = 200
"""Objects asked for at once: SQLite bounds the values of a statement."""
_PRUNED_AT_ONCE: Final = 5000


class Index:
    """Annotations in a database; may be used by several threads and, in PostgreSQL, processes."""

    def __init__(self, url: str, secret_keys: Sequence[str] = ()) -> None:
        """``url`` as SQLAlchemy takes it; ``secret_keys`` as ``connect`` has them.

        Raises ConfigurationError where the database cannot be used.
        """
        self.engine = connect(url, secret_keys)

    def close(self) -> None:
        """Close the connections."""
        self.engine.dispose()

    def add(self, annotations: Iterable[PublishedAnnotation]) -> None:
        """Take annotations in, in one transaction; one that is there already changes nothing.

        An object has the values of its latest annotation, by the alert's time and then by when it was published. One
        that cannot be stored, such as one without a place, is logged, counted and left out. Raises
        DependencyUnavailableError where the database does not answer.
        """
        given = []
        for annotation in annotations:
            if not (math.isfinite(annotation.ra) and abs(annotation.dec) <= 90.0 and math.isfinite(annotation.mjd)):
                _refuse(annotation, "it has no place or no time")
            elif len(annotation.object_id) > LONGEST_NAME:
                _refuse(annotation, f"its name has more than {LONGEST_NAME} characters")
            else:
                given.append(annotation)
        self._add_those_that_can_be(given)

    def _add_those_that_can_be(self, given: Sequence[PublishedAnnotation]) -> None:
        if not given:
            return
        try:
            with self.engine.begin() as connection:
                joined = self._add(connection, given)
            for class_name, count in joined.items():
                WEB_NEW_MEMBERS.labels(class_name).inc(count)
        except (sa.exc.DataError, sa.exc.IntegrityError, OverflowError, ValueError) as error:
            # A value that the database does not take, such as a zero byte: the others must not wait for it for ever.
            if len(given) == 1:
                _refuse(given[0], str(getattr(error, "orig", error)))
                return
            for half in (given[: len(given) // 2], given[len(given) // 2 :]):
                self._add_those_that_can_be(half)
        except (sa.exc.DBAPIError, sa.exc.TimeoutError) as error:
            raise DependencyUnavailableError(f"database of the index: {getattr(error, 'orig', error)}") from error

    def _add(self, connection: sa.Connection, given: Sequence[PublishedAnnotation]) -> Counter[str]:
        """Write them; how many objects have a class by their latest annotation that they did not have before it."""
        latest: dict[tuple[str, str], PublishedAnnotation] = {}
        for annotation in given:
            name = annotation.survey, annotation.object_id
            if name not in latest or _age(annotation) >= _age(latest[name]):
                latest[name] = annotation
        ra, dec = (np.array([getattr(a, name) for a in latest.values()], np.float64) for name in ("ra", "dec"))
        cells = sky.cells(ra, dec, ORDER)
        before = self._known(connection, list(latest))
        rows = [_object(a, cell) for a, cell in zip(latest.values(), cells.tolist(), strict=True)]
        connection.execute(insert_missing(connection, OBJECTS, ("survey", "object_id")), rows)
        added = self._known(connection, [name for name in latest if name not in before])
        ids = {name: number for name, (number, *_) in (before | added).items()}
        for row in rows:
            row["key"] = ids[row["survey"], row["object_id"]]
        older = (OBJECTS.c.mjd < sa.bindparam("mjd")) | (
            (OBJECTS.c.mjd == sa.bindparam("mjd")) & (OBJECTS.c.published <= sa.bindparam("published"))
        )
        changed: dict[str, Any] = {name: sa.bindparam(name) for name in rows[0] if name != "key"}
        connection.execute(sa.update(OBJECTS).where(OBJECTS.c.id == sa.bindparam("key"), older).values(changed), rows)
        connection.execute(
            insert_missing(connection, ANNOTATIONS, ("object", "alert_id", "trigger", "published")),
            [_annotation(a, ids[a.survey, a.object_id]) for a in given],
        )
        return _joined(latest, before)

    def _known(
        self, connection: sa.Connection, names: Sequence[tuple[str, str]]
    ) -> dict[tuple[str, str], tuple[int, str, tuple[float, float]]]:
        """Number, class and age of those objects that the index has."""
        found = {}
        columns = [OBJECTS.c[name] for name in ("id", "survey", "object_id", "class_name", "mjd", "published")]
        for start in range(0, len(names), _ROWS):
            asked = sa.tuple_(OBJECTS.c.survey, OBJECTS.c.object_id).in_(names[start : start + _ROWS])
            for number, survey, object_id, class_name, mjd, published in connection.execute(
                sa.select(*columns).where(asked)
            ):
                found[survey, object_id] = (number, class_name, (mjd, published))
        return found

    def prune(self, before: float) -> int:
        """Delete what was published before an MJD; returns how many annotations, a piece at a time."""
        deleted = 0
        unused = ~sa.exists().where(ANNOTATIONS.c.object == OBJECTS.c.id)
        for table, condition in ((ANNOTATIONS, sa.true()), (OBJECTS, unused)):
            while True:
                old = sa.select(table.c.id).where(table.c.published < before, condition).limit(_PRUNED_AT_ONCE)
                with self.engine.begin() as connection:
                    count = connection.execute(sa.delete(table).where(table.c.id.in_(old))).rowcount
                deleted += count if table is ANNOTATIONS else 0
                if count < _PRUNED_AT_ONCE:
                    break
        return deleted

    def record(self, survey: str, object_id: str) -> dict[str, Any] | None:
        """The latest annotation of an object, in the fields of annotation.avsc; None where there is none."""
        query = sa.select(OBJECTS.c.record).where(OBJECTS.c.survey == survey, OBJECTS.c.object_id == object_id)
        with self.engine.connect() as connection:
            found = connection.execute(query).scalar_one_or_none()
        return None if found is None else json.loads(found)

    def most_anomalous(self, limit: int) -> list[dict[str, Any]]:
        """The latest annotations of the objects with the highest combined anomaly scores, the highest first."""
        query = (
            sa.select(OBJECTS.c.record)
            .where(OBJECTS.c.combined_anomaly.is_not(None))
            .order_by(OBJECTS.c.combined_anomaly.desc(), OBJECTS.c.id)
            .limit(limit)
        )
        with self.engine.connect() as connection:
            return [json.loads(record) for record in connection.execute(query).scalars()]

    def history(self, survey: str, object_id: str, limit: int = 1000) -> list[dict[str, Any]]:
        """The latest ``limit`` annotations of an object, the oldest first."""
        query = (
            sa.select(ANNOTATIONS)
            .join(OBJECTS)
            .where(OBJECTS.c.survey == survey, OBJECTS.c.object_id == object_id)
            .order_by(ANNOTATIONS.c.mjd.desc(), ANNOTATIONS.c.published.desc())
            .limit(limit)
        )
        with self.engine.connect() as connection:
            rows = connection.execute(query).mappings().all()
        return [_history(row) for row in reversed(rows)]

    def surveys_of(self, object_id: str) -> list[str]:
        """The surveys that have an object of this name."""
        query = sa.select(OBJECTS.c.survey).where(OBJECTS.c.object_id == object_id).order_by(OBJECTS.c.survey)
        with self.engine.connect() as connection:
            return list(connection.execute(query).scalars())

    def night(self, start: float, end: float) -> dict[str, Any]:
        """Annotations that were published between two MJDs: how many, of which classes, and of how many objects."""
        within = (ANNOTATIONS.c.published >= start) & (ANNOTATIONS.c.published < end)
        count = sa.func.count()
        by_class = (
            sa.select(ANNOTATIONS.c.class_name, count, sa.func.avg(ANNOTATIONS.c.probability))
            .where(within)
            .group_by(ANNOTATIONS.c.class_name)
            .order_by(count.desc(), ANNOTATIONS.c.class_name)
        )
        objects = sa.select(sa.func.count(sa.distinct(ANNOTATIONS.c.object))).where(within)
        with self.engine.connect() as connection:
            classes = [
                {"class": name, "annotations": number, "meanProbability": mean}
                for name, number, mean in connection.execute(by_class)
            ]
            return {
                "annotations": sum(row["annotations"] for row in classes),
                "objects": connection.execute(objects).scalar_one(),
                "classes": classes,
            }

    def contents(self) -> dict[str, Any]:
        """How many objects the index has, and when the first and the last annotation of it were published, MJD."""
        query = sa.select(
            sa.select(sa.func.count()).select_from(OBJECTS).scalar_subquery(),
            sa.select(sa.func.min(ANNOTATIONS.c.published)).scalar_subquery(),
            sa.select(sa.func.max(ANNOTATIONS.c.published)).scalar_subquery(),
        )
        with self.engine.connect() as connection:
            objects, first, last = connection.execute(query).one()
        return {"objects": objects, "firstPublished": first, "lastPublished": last}


def _joined(
    latest: Mapping[tuple[str, str], PublishedAnnotation],
    before: Mapping[tuple[str, str], tuple[int, str, tuple[float, float]]],
) -> Counter[str]:
    """Objects by class, of which the index had none, or another one that is not newer."""
    counts: Counter[str] = Counter()
    for name, annotation in latest.items():
        _, class_name, age = before.get(name, (0, "", (-math.inf, -math.inf)))
        best = annotation.best_class
        if best not in (class_name, NOT_CLASSIFIED.name) and _age(annotation) >= age:
            counts[best] += 1
    return counts


def _refuse(annotation: PublishedAnnotation, reason: str) -> None:
    WEB_REFUSED.inc()
    log.error(
        "an annotation of %r (alert %d) is not in the index: %s",
        f"{annotation.survey}:{annotation.object_id}"[:200], annotation.alert_id, reason[:200],
        extra={"survey": annotation.survey, "alert_id": annotation.alert_id},
    )  # fmt: skip


def _age(annotation: PublishedAnnotation) -> tuple[float, float]:
    return annotation.mjd, annotation.publish_mjd


def _common(annotation: PublishedAnnotation) -> dict[str, Any]:
    parent = annotation.parent
    return {
        "class_name": annotation.best_class,
        "probability": annotation.best_probability,
        "parent": parent,
        "parent_probability": None if parent is None else annotation.parents[parent],
        "anomaly_score": annotation.anomaly_score,
        "detections": annotation.detections,
        "period": annotation.period if annotation.period is not None and math.isfinite(annotation.period) else None,
        "mjd": annotation.mjd,
        "published": annotation.publish_mjd,
    }


def _object(annotation: PublishedAnnotation, cell: int) -> dict[str, Any]:
    return _common(annotation) | {
        "survey": annotation.survey,
        "object_id": annotation.object_id,
        "ra": annotation.ra,
        "dec": annotation.dec,
        "cell": cell,
        "combined_anomaly": annotation.combined_anomaly,
        "known": bool(annotation.known_as),
        "disagrees": annotation.catalogue_disagrees,
        "record": to_json(published_record(annotation)),
    }


def _annotation(annotation: PublishedAnnotation, key: int) -> dict[str, Any]:
    classes = zip(annotation.class_names, annotation.probabilities, strict=True)
    return _common(annotation) | {
        "object": key,
        "alert_id": annotation.alert_id,
        "trigger": annotation.trigger,
        "modalities": " ".join(annotation.modalities),
        "probabilities": json.dumps({name: round(probability, 6) for name, probability in classes}),
    }


def _history(row: Mapping[Any, Any]) -> dict[str, Any]:
    return {
        "alertIdStr": str(row["alert_id"]),
        "trigger": row["trigger"],
        "mjd": row["mjd"],
        "publishedMjd": row["published"],
        "class": row["class_name"],
        "probability": row["probability"],
        "parent": row["parent"],
        "parentProbability": row["parent_probability"],
        "anomalyScore": row["anomaly_score"],
        "detections": row["detections"],
        "period": row["period"],
        "modalities": row["modalities"].split(),
        "probabilities": json.loads(row["probabilities"]),
    }
