"""``trifid notify``: matches annotations with users' lists, and sends what they found.

Threads. ``match`` reads all annotations in a consumer group of its own and stores what lists want in the database; a
batch counts as read after that. ``send`` puts what is stored into topics and makes messages of it, in one process at a
time. ``deliver`` sends the messages. ``hold`` keeps what this process has begun from other processes. Each goes on by
itself after a failure, and none waits for another's receivers.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final, Self

import sqlalchemy as sa

from broker.annotation_stream import all_annotations
from broker.avro.container import ContainerWriter
from broker.client import PublishedAnnotation
from broker.config import Settings
from broker.database import WATCHES
from broker.errors import TrifidError
from broker.metrics import NOTIFY_FAILURES, NOTIFY_MATCH_SECONDS, NOTIFY_READ
from broker.postgres import PRUNE_ANSWER_S, answers_within
from broker.publish.annotation import SCHEMA_TEXT, published_record
from broker.times import mjd_now
from broker.watch import lists, messages
from broker.watch.deliveries import Deliveries
from broker.watch.lease import Lease
from broker.watch.match import Matcher
from broker.watch.outbox import Outbox
from broker.watch.sender import Sender
from broker.watch.topics import ListTopics

log = logging.getLogger(__name__)

_ANSWER_S: Final = 15.0
"""Longest wait for one answer of the database, if that is PostgreSQL."""
_BATCH: Final = 500
_RETRY_S: Final = 5.0
_PRUNE_S: Final = 3600.0
_PAUSE_S: Final = 0.5
"""Between two looks for what is to be sent."""
_PUT: Final = 500
_EXTENSIONS: Final = 3
"""Within the time of a lease."""


class Notifier:
    """The threads of one process."""

    def __init__(self, settings: Settings, engine: sa.Engine) -> None:
        self._settings, self._engine = settings, engine
        self._outbox = Outbox(engine, settings)
        self._lease = Lease(engine, settings.notify.lease_s)
        self._stopped = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, name=name, args=(work,), daemon=True)
            for name, work in self._works().items()
        ]
        self._matcher, self._lists = Matcher([]), dict[int, Mapping[str, Any]]()
        self._version: tuple[Any, ...] | None = None
        self._loaded = 0.0
        self._write = ContainerWriter(SCHEMA_TEXT)
        self.problems: dict[str, str | None] = dict.fromkeys(self._works()) | {"match": "not connected to Kafka yet"}
        """Why a thread does not get on now; None where it does."""

    def _works(self) -> dict[str, Callable[[], None]]:
        return {"match": self._match, "send": self._send, "deliver": self._deliver, "hold": self._hold}

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join(2 * self._settings.notify.timeout_s)
        if any(thread.is_alive() for thread in self._threads):
            return  # with what it is sending
        try:
            self._lease.release()
        except sa.exc.SQLAlchemyError as error:
            log.warning("what this process held is free after %g s: %s", self._lease.seconds, error)

    def wait(self) -> None:
        """Until it is stopped."""
        self._stopped.wait()

    def stop(self) -> None:
        """Have the threads end."""
        self._stopped.set()

    def _run(self, work: Callable[[], None]) -> None:
        name = threading.current_thread().name
        while not self._stopped.is_set():
            try:
                with answers_within(_ANSWER_S):
                    work()
            except TrifidError as error:
                self._fail(name, str(error))
            except (sa.exc.DBAPIError, sa.exc.TimeoutError) as error:
                self._fail(name, f"database: {getattr(error, 'orig', error)}")
            except Exception as error:
                log.exception("%s", name)
                self._fail(name, f"{type(error).__name__}; see the log")
            self._stopped.wait(_RETRY_S)

    def _fail(self, name: str, problem: str) -> None:
        if problem != self.problems[name]:
            log.warning("%s: %s; trying again", name, problem)
        self.problems[name] = problem
        NOTIFY_FAILURES.inc()

    def _match(self) -> None:
        """Read until it is stopped, or something fails."""
        with all_annotations(self._settings, self._settings.notify.group_id, "latest") as subscription:
            while not self._stopped.is_set():
                for batch in subscription.batches(_BATCH):
                    self._take(batch)
                    self.problems["match"] = None
                    if self._stopped.is_set():
                        break
                self.problems["match"] = None

    def _take(self, batch: Sequence[PublishedAnnotation]) -> None:
        """Store what lists want of a batch."""
        self._load()
        with NOTIFY_MATCH_SECONDS.time():
            hits = self._matcher.match(batch)
        payloads = {one: self._write(published_record(batch[one])) for one in {hit.annotation for hit in hits}}
        if hits:
            self._outbox.add(hits, batch, payloads, self._lists)
        NOTIFY_READ.inc(len(batch))

    def _load(self) -> None:
        """Take the lists anew, where one has changed since."""
        now = time.monotonic()
        if self._version is not None and now - self._loaded < self._settings.notify.reload_s:
            return
        version = lists.version(self._engine)
        if version != self._version:
            found = lists.load(self._engine, tokens_required=self._settings.web.tokens_required)
            self._matcher = Matcher([wanted for wanted, _ in found])
            lists.keep_problems(self._engine, self._matcher.problems)
            self._lists = {wanted.key: row for wanted, row in found}
            self._version = version
            log.info("%d lists", len(found))
        self._loaded = now

    def _send(self) -> None:
        """Fill topics and make messages until it is stopped, or something fails."""
        topics = ListTopics(self._settings)
        pruned = time.monotonic() - _PRUNE_S
        known: tuple[Any, ...] | None = None
        try:
            while not self._stopped.is_set():
                if not self._lease.take_topics():
                    self._stopped.wait(_PAUSE_S)
                    continue
                if (version := lists.version(self._engine)) != known:
                    self._keep_topics(topics)
                    known = version
                busy = self._put(topics)
                self._outbox.collect()
                if time.monotonic() - pruned > _PRUNE_S:
                    with answers_within(PRUNE_ANSWER_S):
                        self._outbox.prune(mjd_now() - self._settings.web.retention_days)
                    pruned = time.monotonic()
                self.problems["send"] = None
                if not busy:
                    self._stopped.wait(_PAUSE_S)
        finally:
            topics.close()

    def _deliver(self) -> None:
        """Send messages until it is stopped, or the database fails."""
        deliveries = Deliveries(self._engine, self._settings, self._lease)
        send = partial(messages.send, settings=self._settings.notify)
        Sender(deliveries, send, self._stopped).run(lambda: self.problems.update(deliver=None))

    def _hold(self) -> None:
        """Keep what is being sent from other processes, while threads that send are at it."""
        others = [thread for thread in self._threads if thread.name in ("send", "deliver")]
        while not self._stopped.is_set() or any(thread.is_alive() for thread in others):
            self._lease.extend()
            self.problems["hold"] = None
            if self._stopped.is_set():
                time.sleep(_PAUSE_S)
            self._stopped.wait(self._lease.seconds / _EXTENSIONS)

    def _keep_topics(self, topics: ListTopics) -> None:
        """Make the topics of new lists, and end those that were deleted, with their topics."""
        query = sa.select(WATCHES.c.id, WATCHES.c.topic, WATCHES.c.deleted, WATCHES.c.topic_due)
        with self._engine.connect() as connection:
            rows = connection.execute(query.where(~WATCHES.c.topic_given_up | WATCHES.c.deleted)).all()
        gone = {topic: key for key, topic, deleted, _ in rows if deleted}
        if gone:
            for name, reason in topics.delete(list(gone)).items():
                log.error("topic %s of a list that was deleted stays: %s", name, reason)
            with self._engine.begin() as connection:
                connection.execute(sa.delete(WATCHES).where(WATCHES.c.id.in_(list(gone.values()))))
        now = mjd_now()
        own = {topic: key for key, topic, deleted, due in rows if not deleted and due <= now}
        for name, reason in topics.make(own).items():
            self._outbox.topic_refused(own[name], reason)

    def _put(self, topics: ListTopics) -> bool:
        """Put some matches into their topics; whether there may be more."""
        found = self._outbox.unsent(_PUT)
        if not found:
            return False
        sent, refused = topics.put(found, self._lease.holds_topics)
        self._outbox.published(sent)
        for watch, reason in refused.items():
            self._outbox.topic_refused(watch, reason)
        return len(found) == _PUT and bool(sent)
