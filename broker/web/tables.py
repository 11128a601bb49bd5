"""The tables of the index, in SQLite or PostgreSQL."""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import BigInteger, Boolean, Column, Float, ForeignKey, Index, Integer, String, Text, UniqueConstraint

from broker.errors import ConfigurationError

METADATA: Final = sa.MetaData()
_KEY: Final = BigInteger().with_variant(Integer, "sqlite")  # which counts up INTEGER primary keys only

OBJECTS: Final = sa.Table(
    "trifid_objects",
    METADATA,
    Column("id", _KEY, primary_key=True),
    Column("survey", String(32), nullable=False),
    Column("object_id", Text, nullable=False),
    Column("ra", Float(53), nullable=False),
    Column("dec", Float(53), nullable=False),
    Column("cell", BigInteger, nullable=False),
    Column("class_name", String(32), nullable=False),
    Column("probability", Float(53), nullable=False),
    Column("parent", String(32)),
    Column("parent_probability", Float(53)),
    Column("anomaly_score", Float(53)),
    Column("detections", Integer, nullable=False),
    Column("period", Float(53)),
    Column("known", Boolean, nullable=False),
    Column("disagrees", Boolean, nullable=False),
    Column("mjd", Float(53), nullable=False),
    Column("published", Float(53), nullable=False),
    Column("record", Text, nullable=False),
    UniqueConstraint("survey", "object_id"),
    Index("trifid_objects_by_class", "class_name", "probability"),
    Index("trifid_objects_by_parent", "parent", "parent_probability"),
    Index("trifid_objects_by_anomaly", "anomaly_score"),
    Index("trifid_objects_by_time", "published", "id"),
    Index("trifid_objects_by_cell", "cell"),
)
"""An object as its latest annotation has it. ``cell``: HEALPix, nested, of order ``index.ORDER``; times are MJD UTC,
positions ICRS degrees; ``known``: whether a catalogue of known variable stars has it; ``record``: the annotation in the
fields of annotation.avsc, as ``annotation.to_json`` writes them."""

ANNOTATIONS: Final = sa.Table(
    "trifid_annotations",
    METADATA,
    Column("id", _KEY, primary_key=True),
    Column("object", _KEY, ForeignKey(OBJECTS.c.id, ondelete="CASCADE"), nullable=False),
    Column("alert_id", BigInteger, nullable=False),
    Column("trigger", String(16), nullable=False),
    Column("mjd", Float(53), nullable=False),
    Column("published", Float(53), nullable=False),
    Column("class_name", String(32), nullable=False),
    Column("probability", Float(53), nullable=False),
    Column("parent", String(32)),
    Column("parent_probability", Float(53)),
    Column("anomaly_score", Float(53)),
    Column("detections", Integer, nullable=False),
    Column("period", Float(53)),
    Column("modalities", String(64), nullable=False),
    Column("probabilities", Text, nullable=False),
    UniqueConstraint("object", "alert_id", "trigger", "published"),
    Index("trifid_annotations_by_time", "published"),
)
"""What is kept of each annotation; ``probabilities``: a JSON object of them by class."""

TOKENS: Final = sa.Table(
    "trifid_tokens",
    METADATA,
    Column("id", _KEY, primary_key=True),
    Column("name", String(128), nullable=False, unique=True),
    Column("digest", String(64), nullable=False, unique=True),
    Column("scopes", String(64), nullable=False),
    Column("created", Float(53), nullable=False),
    Column("expires", Float(53)),
)
"""API tokens: the SHA-256 of each, never the token."""

FEEDBACK: Final = sa.Table(
    "trifid_feedback",
    METADATA,
    Column("id", _KEY, primary_key=True),
    Column("survey", String(32), nullable=False),
    Column("object_id", Text, nullable=False),
    Column("label", String(32), nullable=False),
    Column("comment", String(2000), nullable=False),
    Column("by", String(128), nullable=False),
    Column("created", Float(53), nullable=False),
    Index("trifid_feedback_by_object", "survey", "object_id"),
)
"""What people say an object is."""


def connect(url: str) -> sa.Engine:
    """The database, with the tables that are missing made; raises ConfigurationError where it cannot be used."""
    try:
        # Requests are answered by 40 threads.
        engine = sa.create_engine(url, pool_pre_ping=True, pool_size=20, max_overflow=20)
        if engine.dialect.name == "sqlite":
            sa.event.listen(engine, "connect", _set_up_sqlite)
        METADATA.create_all(engine)
    except (sa.exc.SQLAlchemyError, ImportError, TypeError) as error:
        # Neither the message nor the URL of some drivers is free of the password.
        raise ConfigurationError(f"web.database cannot be used: {type(error).__name__}: {_reason(error)}") from None
    return engine


def _reason(error: Exception) -> str:
    cause = getattr(error, "orig", None) or error
    return str(cause).splitlines()[0] if "://" not in str(cause) else "see its URL"


def _set_up_sqlite(connection: Any, _: Any) -> None:
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=10000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
