"""The tables of the index and of what users keep beside it, in SQLite or PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    String,
    Text,
    UniqueConstraint,
)
from sqlalchemy.dialects import postgresql, sqlite

from broker.errors import ConfigurationError
from broker.postgres import answers_within, connection_options, limit_silence
from broker.secret_text import SecretText, protect, use_keys

METADATA: Final = sa.MetaData()
_POOL_S: Final = 5.0
"""Longest wait for one of the pool's connections, all of which may wait for the database."""
_MAKE_S: Final = 600.0
"""Longest wait for another process that makes the tables, or for the database to change one."""
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
    Column("combined_anomaly", Float(53)),
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
"""An object as its latest annotation has it. ``cell``: HEALPix, nested, of order ``broker.web.index.ORDER``; times are
MJD UTC, positions ICRS degrees; ``known``: whether a catalogue of known variable stars has it; ``record``: the
annotation in the fields of annotation.avsc, as ``annotation.to_json`` writes them."""

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

ANSWERS: Final = sa.Table(
    "trifid_answers",
    METADATA,
    Column("id", _KEY, primary_key=True),
    Column("survey", String(32), nullable=False),
    Column("object_id", Text, nullable=False),
    Column("kind", String(16), nullable=False),
    Column("label", String(32)),
    Column("note", String(2000), nullable=False),
    Column("by", String(128), nullable=False),
    Column("created", Float(53), nullable=False),
    Column("withdrawn", Float(53)),
    Column("score_before", Float(53)),
    Column("score_after", Float(53)),
    Column("rank_before", Integer),
    Column("rank_after", Integer),
    Index("trifid_answers_by_object", "survey", "object_id"),
    sqlite_autoincrement=True,
)
"""What people answer about objects: ``kind`` interesting, boring or class, of which ``label`` is the class; ``by``: a
token's name; ``withdrawn``: since when it does not count, MJD UTC. Rows are never deleted."""

EVIDENCE: Final = sa.Table(
    "trifid_answer_evidence",
    METADATA,
    Column("answer", _KEY, ForeignKey(ANSWERS.c.id, ondelete="CASCADE"), primary_key=True),
    Column("model", String(128), primary_key=True),
    Column("reference_version", String(128), primary_key=True),
    Column("score", Float(53), nullable=False),
    Column("vectors", LargeBinary, nullable=False),
)
"""What an object was like when it was answered about, in the space of one model: its combined anomaly score, and its
embeddings by modality, (3, d) of 16 bits, zeros where absent."""

_EARLIER_FEEDBACK: Final = "trifid_feedback"
"""The table of earlier releases, whose rows are classes that people named."""

WATCHES: Final = sa.Table(
    "trifid_watches",
    METADATA,
    Column("id", _KEY, primary_key=True),
    Column("owner", String(128), nullable=False),
    Column("name", String(64), nullable=False),
    Column("topic", String(249), nullable=False, unique=True),
    Column("expression", Text),
    Column("radius", Float(53), nullable=False),
    Column("size", Integer, nullable=False),
    Column("regions", Integer, nullable=False),
    Column("email", String(254)),
    Column("webhook", SecretText),
    Column("every_hours", Float(53), nullable=False),
    Column("next_message", Float(53), nullable=False),
    Column("deleted", Boolean, nullable=False),
    Column("created", Float(53), nullable=False),
    Column("changed", Float(53), nullable=False),
    Column("left_out", BigInteger, nullable=False),
    Column("problem", Text),
    Column("topic_attempts", Integer, nullable=False),
    Column("topic_given_up", Boolean, nullable=False),
    Column("topic_due", Float(53), nullable=False),
    Column("format", String(16)),
    Column("options", Text),
    Column("token", SecretText),
    UniqueConstraint("owner", "name"),
)
"""Users' lists and filters. ``owner``: a token's name; ``radius``: arcsec; ``size``: positions and names; ``regions``:
ranges of its MOC; ``left_out``: matches beyond a quota; ``problem``, ``topic_attempts``, ``topic_due``: of its topic,
which is tried again when that is due; ``format``, ``options`` (JSON) and ``token``: of what is sent to ``webhook``
(``watch.outputs``), Slack's where there is none. Times are MJD UTC."""

WATCH_CONTENTS: Final = sa.Table(
    "trifid_watch_contents",
    METADATA,
    Column("watch", _KEY, ForeignKey(WATCHES.c.id, ondelete="CASCADE"), primary_key=True),
    Column("places", LargeBinary, nullable=False),
    Column("texts", LargeBinary, nullable=False),
    Column("region", LargeBinary, nullable=False),
)
"""What a list holds, as arrays (``watch.content``): they are only ever read as a whole."""

DELIVERIES: Final = sa.Table(
    "trifid_deliveries",
    METADATA,
    Column("id", _KEY, primary_key=True),
    Column("watch", _KEY, ForeignKey(WATCHES.c.id, ondelete="CASCADE"), nullable=False),
    Column("number", String(32), nullable=False, unique=True),
    Column("created", Float(53), nullable=False),
    Column("matches", Integer, nullable=False),
    Column("state", String(8), nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("due", Float(53), nullable=False),
    Column("problem", Text),
    Column("holder", String(32)),
    Column("until", Float(53)),
    Index("trifid_deliveries_by_state", "state", "due"),
    Index("trifid_deliveries_by_watch", "watch", "created"),
)
"""Mails and calls of webhooks: ``pending``, ``sent``, or ``dead`` after the last attempt; ``number`` is the same in
each attempt, for receivers to tell what came twice. ``holder``: the process that sends it now, and no other does before
``until``, which is by the database's clock."""

MATCHES: Final = sa.Table(
    "trifid_matches",
    METADATA,
    Column("id", _KEY, primary_key=True),
    Column("watch", _KEY, ForeignKey(WATCHES.c.id, ondelete="CASCADE"), nullable=False),
    Column("event", String(32), nullable=False),
    Column("created", Float(53), nullable=False),
    Column("survey", String(32), nullable=False),
    Column("object_id", Text, nullable=False),
    Column("class_name", String(32), nullable=False),
    Column("probability", Float(53), nullable=False),
    Column("anomaly_score", Float(53)),
    Column("ra", Float(53)),
    Column("dec", Float(53)),
    Column("label", String(128), nullable=False),
    Column("unsent", Boolean, nullable=False),
    Column("payload", LargeBinary),
    Column("waiting", Boolean, nullable=False),
    Column("delivery", _KEY, ForeignKey(DELIVERIES.c.id, ondelete="SET NULL")),
    UniqueConstraint("watch", "event"),
    Index("trifid_matches_by_watch", "watch", "created"),
    Index("trifid_matches_by_time", "created"),
    Index("trifid_matches_by_delivery", "delivery"),
    Index("trifid_matches_unsent", "id", sqlite_where=sa.text("unsent"), postgresql_where=sa.text("unsent")),
    Index(
        "trifid_matches_waiting", "watch", "id", sqlite_where=sa.text("waiting"), postgresql_where=sa.text("waiting")
    ),
)
"""What a list has found, once by list and annotation (``event``). ``payload``: the annotation, until it is in the
list's topic (``unsent``) and, where the list has a format, sent; ``waiting``: it is to be in the next mail or call."""

WATCH_DAYS: Final = sa.Table(
    "trifid_watch_days",
    METADATA,
    Column("owner", String(128), primary_key=True),
    Column("day", Integer, primary_key=True, autoincrement=False),
    Column("matches", Integer, nullable=False),
    Column("messages", Integer, nullable=False),
)
"""What a user's lists have found and sent in a day (MJD), those that were deleted since included: for quotas."""

LEASES: Final = sa.Table(
    "trifid_leases",
    METADATA,
    Column("name", String(32), primary_key=True),
    Column("holder", String(32), nullable=False),
    Column("until", Float(53), nullable=False),
)
"""Which of several processes does what only one should at a time; ``until`` is by the database's clock."""

COUNTERS: Final = sa.Table(
    "trifid_counters",
    METADATA,
    Column("name", String(32), primary_key=True),
    Column("value", BigInteger, nullable=False),
)
"""Versions that grow with each change, whatever the clocks of those who make it say."""


def insert_missing(connection: sa.Connection, table: sa.Table, unique: Sequence[str]) -> sa.Insert:
    """An insertion that leaves rows that are there already, by their ``unique`` columns, as they are."""
    if connection.dialect.name == "postgresql":
        return postgresql.insert(table).on_conflict_do_nothing(index_elements=list(unique))
    return sqlite.insert(table).on_conflict_do_nothing(index_elements=list(unique))


def count_up(connection: sa.Connection, counter: str) -> None:
    """Another version, from when the transaction ends; until then no other transaction gets past this for the counter.

    In PostgreSQL it holds the counter's row, in SQLite, as any write does, the database.
    """
    connection.execute(insert_missing(connection, COUNTERS, ("name",)), [{"name": counter, "value": 0}])
    connection.execute(sa.update(COUNTERS).where(COUNTERS.c.name == counter).values(value=COUNTERS.c.value + 1))


def database_now(connection: sa.Connection) -> float:
    """MJD UTC by the clock of the database, the same for all that use it."""
    if connection.dialect.name == "postgresql":
        text = "SELECT extract(epoch FROM clock_timestamp())::float8 / 86400 + 40587"
    else:
        text = "SELECT julianday('now') - 2400000.5"
    return float(connection.execute(sa.text(text)).scalar_one())


def connect(url: str, secret_keys: Sequence[str] = ()) -> sa.Engine:
    """The database, with the tables that are missing made; raises ConfigurationError where it cannot be used.

    With ``secret_keys``, secrets of receivers are encrypted, by the first of them, those that are there already, too.
    """
    try:
        # Requests are answered by 40 threads. Errors would have addresses of webhooks and tokens of receivers in them.
        engine = sa.create_engine(
            url, pool_pre_ping=True, pool_size=20, max_overflow=20, pool_timeout=_POOL_S, hide_parameters=True,
            connect_args=connection_options(url),
        )  # fmt: skip
        limit_silence(engine)
        if engine.dialect.name == "sqlite":
            sa.event.listen(engine, "connect", _set_up_sqlite)
        use_keys(engine, secret_keys)
        try:
            with answers_within(_MAKE_S), engine.begin() as connection:
                _make(connection)
                protect(connection, WATCHES)
        except BaseException:
            engine.dispose()
            raise
    except (sa.exc.SQLAlchemyError, ImportError, TypeError) as error:
        # Neither the message nor the URL of some drivers is free of the password.
        raise ConfigurationError(f"web.database cannot be used: {type(error).__name__}: {_reason(error)}") from None
    return engine


def _make(connection: sa.Connection) -> None:
    """Tables and columns that are missing, by one process at a time; what an earlier release has not is null.

    Its feedback goes into the table of answers.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(hashtext('trifid'))"))
    elif connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    METADATA.create_all(connection)
    found = sa.inspect(connection)
    for table in METADATA.sorted_tables:
        there = {column["name"] for column in found.get_columns(table.name)}
        for column in table.c:
            if column.name not in there:
                told = sa.schema.CreateColumn(column).compile(dialect=connection.dialect)
                connection.exec_driver_sql(f"ALTER TABLE {table.name} ADD COLUMN {told}")
    index = f"CREATE INDEX IF NOT EXISTS trifid_objects_by_combined ON {OBJECTS.name} (combined_anomaly)"
    connection.execute(sa.text(index))
    if found.has_table(_EARLIER_FEEDBACK):
        columns = 'survey, object_id, label, "by", created'
        connection.execute(
            sa.text(
                f"INSERT INTO {ANSWERS.name} ({columns}, kind, note) "
                f"SELECT {columns}, 'class', comment FROM {_EARLIER_FEEDBACK} ORDER BY created"
            )
        )
        connection.execute(sa.text(f"DROP TABLE {_EARLIER_FEEDBACK}"))


def _reason(error: Exception) -> str:
    cause = getattr(error, "orig", None) or error
    return str(cause).splitlines()[0] if "://" not in str(cause) else "see its URL"


def _set_up_sqlite(connection: Any, _: Any) -> None:
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=10000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
