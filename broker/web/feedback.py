"""What people say an object is, kept beside what the model says."""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa

from broker.taxonomy import CLASS_NAMES, OTHER, PARENTS
from broker.times import mjd_now
from broker.web.tables import FEEDBACK

LABELS: Final = (*CLASS_NAMES, *PARENTS, OTHER.name, "Artefact")


def add(engine: sa.Engine, survey: str, object_id: str, label: str, comment: str, by: str) -> None:
    """Keep what somebody says; one person's latest word on an object replaces the earlier."""
    name = (FEEDBACK.c.survey == survey) & (FEEDBACK.c.object_id == object_id) & (FEEDBACK.c.by == by)
    row = {"survey": survey, "object_id": object_id, "label": label, "comment": comment, "by": by}
    with engine.begin() as connection:
        connection.execute(sa.delete(FEEDBACK).where(name))
        connection.execute(sa.insert(FEEDBACK), [row | {"created": mjd_now()}])


def of(engine: sa.Engine, survey: str, object_id: str) -> list[dict[str, Any]]:
    """What people say an object is, the latest first."""
    query = (
        sa.select(FEEDBACK)
        .where(FEEDBACK.c.survey == survey, FEEDBACK.c.object_id == object_id)
        .order_by(FEEDBACK.c.created.desc())
        .limit(100)
    )
    with engine.connect() as connection:
        return [
            {"label": row["label"], "comment": row["comment"], "by": row["by"], "mjd": row["created"]}
            for row in connection.execute(query).mappings()
        ]
