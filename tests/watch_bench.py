"""A database with lists, and what of `trifid notify` sends for them: all of it but what needs Kafka."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import sqlalchemy as sa

from broker.avro.container import ContainerWriter
from broker.client import PublishedAnnotation
from broker.config import Settings
from broker.publish.annotation import SCHEMA_TEXT, published_record
from broker.watch.content import Content
from broker.watch.lists import Lists, Terms
from broker.watch.match import Hit
from broker.watch.notifier import Notifier
from broker.watch.outbox import Outbox
from broker.web.index import Index

STAR = PublishedAnnotation(
    survey="ztf", alert_id=1, source_id=1, object_id="a", ra=0.0, dec=60.0, mjd=61000.0, class_names=("RRAB", "EA"),
    probabilities=(0.75, 0.25), modalities=("light_curve",), detections=20, period=0.5,
)  # fmt: skip


class Bench:
    """A database of its own, with what tests do to it."""

    def __init__(self, url: str, **changed: object) -> None:
        """``changed`` over what its tests share of the section ``notify``."""
        notify = {
            "webhook_networks": ["127.0.0.0/8"], "lease_s": 0.6, "timeout_s": 20.0, "max_lists": 3, "reload_s": 0.1,
            "matches_per_day": 10,
        }  # fmt: skip
        self.settings = Settings.model_validate({"web": {"database": url}, "notify": notify | changed})
        self.index = Index(url)
        self.engine = self.index.engine
        self.lists, self.box = Lists(self.engine, self.settings), Outbox(self.engine, self.settings)

    def find(self, owner: str, name: str, *numbers: int) -> None:
        """Matches of annotations with these numbers."""
        self.add(owner, name, [replace(STAR, alert_id=number) for number in numbers])

    def add(self, owner: str, name: str, annotations: list[PublishedAnnotation]) -> None:
        row, write = self.lists.get(owner, name), ContainerWriter(SCHEMA_TEXT)
        hits = [Hit(row["id"], place, "") for place in range(len(annotations))]
        payloads = {place: write(published_record(one)) for place, one in enumerate(annotations)}
        self.box.add(hits, annotations, payloads, {row["id"]: row})

    def message(self, owner: str, name: str, url: str, number: int) -> None:
        """Have a message for a webhook wait."""
        if not any(row["name"] == name for row in self.lists.of(owner)):
            self.lists.create(owner, name, Terms(webhook=url, every_hours=0.0), Content(names=["a"]))
        self.find(owner, name, number)
        assert self.box.collect() == 1

    def rows(self, table: sa.Table) -> list[dict[str, Any]]:
        with self.engine.connect() as connection:
            return [dict(row) for row in connection.execute(sa.select(table).order_by(table.c[0])).mappings()]


@contextmanager
def process(bench: Bench) -> Iterator[Notifier]:
    """What sends messages of a ``trifid notify``, without what needs Kafka."""
    notifier = Notifier(bench.settings, bench.engine)
    notifier._threads = [thread for thread in notifier._threads if thread.name in ("deliver", "hold")]
    with notifier:
        yield notifier
