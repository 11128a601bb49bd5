"""Fills the index from Kafka, in a thread of its own, and deletes what is older than the retention time."""

from __future__ import annotations

import logging
import threading
import time
from typing import Final, Self

import sqlalchemy as sa

from broker.annotation_stream import all_annotations
from broker.config import Settings
from broker.errors import TrifidError
from broker.metrics import WEB_FOLLOW_FAILURES, WEB_INDEXED
from broker.times import mjd_now
from broker.web.index import Index

log = logging.getLogger(__name__)

_BATCH: Final = 500
_RETRY_S: Final = 5.0
_PRUNE_S: Final = 600.0


class Follower:
    """Reads the annotations of all surveys, in the consumer group ``web.group_id``, into the index.

    A batch counts as read once it is in the database: none is lost, and one that comes again changes nothing. Where
    Kafka or the database does not answer, it tries again until it is stopped.
    """

    def __init__(self, settings: Settings, index: Index) -> None:
        self._settings, self._index = settings, index
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="index", daemon=True)
        self.problem: str | None = "not connected to Kafka yet"
        """Why nothing is read now; None where it is."""
        self.annotations = 0
        """Taken in since the start."""
        self.last: float | None = None
        """When the latest batch was taken in, MJD UTC."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join(10.0)

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                self._follow()
            except TrifidError as error:
                self._fail(str(error))
            except (sa.exc.DBAPIError, sa.exc.TimeoutError) as error:
                self._fail(f"database: {getattr(error, 'orig', error)}")
            except Exception as error:
                log.exception("the index cannot be filled")
                self._fail(f"{type(error).__name__}; see the log")
            self._stopped.wait(_RETRY_S)

    def _fail(self, problem: str) -> None:
        if problem != self.problem:
            log.warning("annotations are not read: %s; trying again", problem)
        self.problem = problem
        WEB_FOLLOW_FAILURES.inc()

    def _follow(self) -> None:
        """Read until it is stopped, or something fails."""
        self._prune()
        pruned = time.monotonic()
        with all_annotations(self._settings, self._settings.web.group_id) as subscription:
            while not self._stopped.is_set():
                for batch in subscription.batches(_BATCH):
                    self._index.add(batch)
                    self.problem, self.last = None, mjd_now()
                    self.annotations += len(batch)
                    WEB_INDEXED.inc(len(batch))
                    if self._stopped.is_set() or time.monotonic() - pruned > _PRUNE_S:
                        break
                self.problem = None
                if time.monotonic() - pruned > _PRUNE_S:
                    self._prune()
                    pruned = time.monotonic()

    def _prune(self) -> None:
        deleted = self._index.prune(mjd_now() - self._settings.web.retention_days)
        if deleted:
            log.info("%d annotations deleted after %g days", deleted, self._settings.web.retention_days)
