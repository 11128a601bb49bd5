"""What lists have found, in the database: when it is sent, quotas, and what of it goes with an address."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa

from broker.client import PublishedAnnotation
from broker.config import Settings
from broker.database import DELIVERIES, MATCHES, WATCH_DAYS, WATCHES
from broker.times import mjd_now
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
HOOK = Terms(webhook="https://example.org/x")


class Bench:
    """One database with the list ``mine`` of whoever is at this machine."""

    def __init__(self, index: Index, settings: Settings) -> None:
        self.engine, self.settings = index.engine, settings
        self.box, self.lists = Outbox(index.engine, settings), Lists(index.engine, settings)
        self.make()

    def make(self) -> None:
        self.lists.create("local", "mine", HOOK, Content(names=["a"]))

    def find(self, *numbers: int) -> None:
        """Matches of annotations with these numbers."""
        row = self.lists.get("local", "mine")
        annotations = [replace(STAR, alert_id=number) for number in numbers]
        hits = [Hit(row["id"], place, "") for place in range(len(numbers))]
        self.box.add(hits, annotations, dict.fromkeys(range(len(numbers)), b"x"), {row["id"]: row})

    def rows(self, table: sa.Table) -> list[dict[str, Any]]:
        with self.engine.connect() as connection:
            return [dict(row) for row in connection.execute(sa.select(table)).mappings()]

    def due(self) -> None:
        with self.engine.begin() as connection:
            connection.execute(sa.update(WATCHES).values(next_message=mjd_now() - 0.5))

    def remove(self) -> None:
        """Delete the list, as `trifid notify` does at last."""
        with self.engine.begin() as connection:
            connection.execute(sa.delete(WATCHES))


@pytest.fixture
def bench(database: str) -> Iterator[Bench]:
    notify = {"matches_per_day": 3, "messages_per_day": 1}
    settings = Settings.model_validate({"web": {"database": database}, "notify": notify})
    with closing(Index(database)) as index:
        yield Bench(index, settings)


def test_what_is_found_after_an_hour_without_matches_is_for_the_next_day(bench: Bench) -> None:
    bench.due()
    assert bench.box.collect() == 0
    assert bench.lists.get("local", "mine")["next_message"] > mjd_now()
    bench.find(1)
    assert bench.box.collect() == 0
    bench.due()
    assert bench.box.collect() == 1


def test_a_list_that_is_made_anew_has_no_new_quota(bench: Bench) -> None:
    bench.find(1, 2)
    bench.due()
    assert bench.box.collect() == 1
    bench.remove()
    bench.make()
    bench.find(1, 2)
    assert (len(bench.rows(MATCHES)), bench.lists.get("local", "mine")["left_out"]) == (1, 1)
    bench.due()
    assert bench.box.collect() == 0  # it waits for the next day
    with bench.engine.begin() as connection:
        connection.execute(sa.update(WATCH_DAYS).values(day=WATCH_DAYS.c.day - 1))
    assert bench.box.collect() == 1
    bench.box.prune(0.0)
    (today,) = bench.rows(WATCH_DAYS)
    assert (today["matches"], today["messages"]) == (0, 1)


def test_what_waited_for_an_address_goes_with_it(bench: Bench) -> None:
    bench.find(1)
    bench.due()
    assert bench.box.collect() == 1
    bench.find(2)
    held = bench.lists.get("local", "mine")
    bench.lists.change("local", "mine", Terms(), None)
    assert (bench.rows(DELIVERIES), [row["waiting"] for row in bench.rows(MATCHES)]) == ([], [False, False])
    # The thread that matches knows a list as it was for some seconds.
    bench.box.add([Hit(held["id"], 0, "")], [replace(STAR, alert_id=3)], {0: b"x"}, {held["id"]: held})
    assert [row["waiting"] for row in bench.rows(MATCHES)] == [False] * 3


def test_a_refused_topic_is_not_tried_before_it_is_due(bench: Bench) -> None:
    class Topics:
        asked: list[str] = []  # noqa: RUF012

        def make(self, names: Any) -> dict[str, str]:
            self.asked += names
            return dict.fromkeys(names, "refused")

    notifier, topics = Notifier(bench.settings, bench.engine), Topics()
    for _ in range(3):
        notifier._keep_topics(topics)  # type: ignore[arg-type]
    assert topics.asked == ["trifid.user.local.mine"]
    assert bench.lists.get("local", "mine")["topic_attempts"] == 1
