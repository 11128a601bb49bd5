"""Several processes and users at a time: who sends what, and what is slow for whom."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import sqlalchemy as sa

from broker.database import DELIVERIES, LEASES, MATCHES, WATCH_DAYS, WATCHES
from broker.log_fields import current_fields
from broker.times import mjd_now
from broker.tokens import Tokens
from broker.watch import deliveries, lists
from broker.watch.content import Content
from broker.watch.deliveries import Deliveries
from broker.watch.lease import Lease
from broker.watch.lists import ListError, Terms
from broker.watch.notifier import Notifier
from broker.web.index import Index
from tests.waiting import wait_until
from tests.watch_bench import Bench, process


@pytest.fixture
def bench(database: str) -> Iterator[Bench]:
    bench = Bench(database)
    with closing(bench.index):
        yield bench


class Hook:
    """A webhook that keeps its callers waiting until it is told to answer."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answer = threading.Event()
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                assert self.headers["Idempotency-Key"] == body["trifid"]["delivery"]
                hook.asked.append(self.headers["Idempotency-Key"])
                hook.answer.wait(300)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self.server.server_address[1]}"
        self.url = f"http://{self.host}/services/SECRET"


@contextmanager
def hook(*, slow: bool = False) -> Iterator[Hook]:
    made = Hook()
    if not slow:
        made.answer.set()
    thread = threading.Thread(target=made.server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield made
    finally:
        made.answer.set()
        made.server.shutdown()
        made.server.server_close()
        thread.join()


def states(bench: Bench) -> list[str]:
    return [row["state"] for row in bench.rows(DELIVERIES)]


def test_a_slow_receiver_holds_up_no_other_and_no_topic(bench: Bench) -> None:
    with hook(slow=True) as slow, hook() as quick, process(bench) as notifier:
        for number in range(5):
            bench.message("local", "slow", slow.url, number)
        wait_until(lambda: len(slow.asked) == 2)  # of one host and owner no more at a time
        owners = Tokens(bench.engine)
        owners.create("other", frozenset({"watch"}))
        for number in range(5):
            bench.message("other", "quick", quick.url, number)
        wait_until(lambda: len(quick.asked) == 5)
        # What fills topics is not in that thread.
        assert {thread.name for thread in notifier._threads} == {"deliver", "hold"}
        assert len(slow.asked) == 2
        slow.answer.set()
        wait_until(lambda: states(bench) == ["sent"] * 10)
    assert len(set(slow.asked)) == len(slow.asked) == 5


def test_many_lists_of_a_slow_receiver_hide_no_other(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deliveries, "_LOOKED_AT", 2)
    Tokens(bench.engine).create("other", frozenset({"watch"}))
    for number in range(5):  # three lists are the most of one owner
        host = "quick" if number == 4 else "slow"
        bench.message("local" if number < 3 else "other", f"a{number}", f"https://{host}.example.org/x", number)
    claimed = Deliveries(bench.engine, bench.settings, Lease(bench.engine, 60.0)).claim(
        lambda _, receiver: receiver != "slow.example.org"
    )
    assert claimed is not None
    assert claimed.receiver == "quick.example.org"


def test_what_is_logged_of_a_message_says_which_and_of_which_object(bench: Bench) -> None:
    said: list[dict[str, Any]] = []

    class Fields(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(dict(current_fields()))

    log, handler = logging.getLogger("broker.watch.deliveries"), Fields()
    log.addHandler(handler)
    try:
        with process(bench):
            bench.message("local", "mine", "http://127.0.0.1:1/", 1)
            wait_until(lambda: bool(said))
    finally:
        log.removeHandler(handler)
    (row,) = bench.rows(DELIVERIES)
    event = bench.rows(MATCHES)[0]["event"]
    where = {"message_number": row["number"], "list": row["watch"], "to": "webhook", "matches": 1}
    assert said[0] == {**where, "survey": "ztf", "object_id": "a", "event": event}


def test_of_several_processes_one_sends_a_message_however_long_its_receiver_takes(database: str) -> None:
    lease_s = 3.0  # long enough for a process on a busy machine to extend it in time
    bench = Bench(database, lease_s=lease_s)
    with closing(bench.index), hook(slow=True) as slow, process(bench), process(bench):
        bench.message("local", "slow", slow.url, 1)
        wait_until(lambda: len(slow.asked) == 1)
        first = bench.rows(DELIVERIES)[0]["until"]
        wait_until(lambda: bench.rows(DELIVERIES)[0]["until"] > first + 1.5 * lease_s / 86_400)
        assert len(slow.asked) == 1
        slow.answer.set()
        wait_until(lambda: states(bench) == ["sent"])
        assert len(slow.asked) == 1


HOUR = 3600.0


def pass_time(bench: Bench, hours: float, lease: Lease) -> None:
    """As though so much time had gone by for what is leased, and for the process that has this lease."""
    with bench.engine.begin() as connection:
        for table in (LEASES, DELIVERIES):
            connection.execute(sa.update(table).values(until=table.c.until - hours / 24))
    lease._topics_until -= hours * HOUR


def test_what_a_killed_process_was_sending_is_sent_by_another_once_its_lease_ends(bench: Bench) -> None:
    dead, lives = (Lease(bench.engine, HOUR) for _ in range(2))
    of_dead, of_other = (Deliveries(bench.engine, bench.settings, lease) for lease in (dead, lives))
    bench.message("local", "mine", "http://127.0.0.1:1/", 1)
    first = of_dead.claim(lambda *_: True)
    assert first is not None
    assert of_other.claim(lambda *_: True) is None
    pass_time(bench, 0.9, dead)
    dead.extend()
    pass_time(bench, 0.9, dead)
    assert of_other.claim(lambda *_: True) is None
    pass_time(bench, 0.2, dead)
    second = of_other.claim(lambda *_: True)
    assert second is not None
    assert second.number == first.number
    # The first one lives after all: what it says of its attempt does not end the other's.
    of_dead.refused(first, "late")
    (row,) = bench.rows(DELIVERIES)
    assert (row["attempts"], row["problem"], row["holder"]) == (0, None, lives.holder)
    of_other.delivered(second)
    assert states(bench) == ["sent"]


def test_what_a_process_is_sending_it_does_not_send_again_though_its_lease_has_ended(bench: Bench) -> None:
    """As on a machine that hung for longer than the lease."""
    lease = Lease(bench.engine, 0.05)
    mine = Deliveries(bench.engine, bench.settings, lease)
    bench.message("local", "mine", "http://127.0.0.1:1/", 1)
    first = mine.claim(lambda *_: True)
    assert first is not None
    time.sleep(0.1)
    assert mine.claim(lambda *_: True) is None
    mine.let_go(first)
    again = mine.claim(lambda *_: True)
    assert again is not None
    assert again.number == first.number


def test_topics_are_filled_by_one_process_as_long_as_it_extends_its_lease(bench: Bench) -> None:
    one, other = (Lease(bench.engine, HOUR) for _ in range(2))
    assert one.take_topics()
    for _ in range(4):
        pass_time(bench, 0.5, one)
        one.extend()
        assert not other.take_topics()
    assert one.holds_topics()
    pass_time(bench, 1.1, one)
    assert not one.holds_topics()
    assert other.take_topics()
    one.extend()
    assert not one.holds_topics()
    other.release()
    assert one.take_topics()


def test_a_change_counts_whatever_the_clock_of_the_host_that_makes_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = mjd_now()
    monkeypatch.setattr(lists, "mjd_now", lambda: now + 0.1)
    for name in ("mine", "other"):
        bench.lists.create("local", name, Terms(expression="detections > 1"), Content())
    notifier = Notifier(bench.settings, bench.engine)
    notifier._load()
    monkeypatch.setattr(lists, "mjd_now", lambda: now)  # a host whose clock is behind
    bench.lists.change("local", "mine", Terms(expression="detections > 2"), None)
    notifier._loaded -= 10.0
    notifier._load()
    assert [row["expression"] for row in notifier._lists.values()] == ["detections > 2", "detections > 1"]


def test_what_waits_for_a_user_whose_token_is_revoked_is_not_sent(bench: Bench) -> None:
    tokens = Tokens(bench.engine)
    tokens.create("alice", frozenset({"read", "watch"}))
    bench.message("alice", "mine", "http://127.0.0.1:1/", 1)
    bench.find("alice", "mine", 2)
    deliveries = Deliveries(bench.engine, bench.settings, Lease(bench.engine, 0.0))
    tokens.revoke("alice")
    assert bench.box.unsent(10) == []
    assert bench.box.collect() == 0
    assert deliveries.claim(lambda *_: True) is None
    # One that may do other things only, or is expired, is none either.
    for scopes, days in ((frozenset({"read"}), None), (frozenset({"watch"}), -1.0)):
        tokens.create("alice", scopes, days)
        assert (bench.box.unsent(10), bench.box.collect(), deliveries.claim(lambda *_: True)) == ([], 0, None)
        tokens.revoke("alice")
    tokens.create("alice", frozenset({"watch"}))
    assert [one.watch for one in bench.box.unsent(10)] == [1, 1]
    assert bench.box.collect() == 1
    assert deliveries.claim(lambda *_: True) is not None
    tokens.revoke("alice")
    bench.box.prune(mjd_now() + 1.0)
    assert (bench.rows(MATCHES), bench.rows(DELIVERIES)) == ([], [])


def at_once(works: list[Callable[[], object]]) -> list[BaseException | None]:
    """What each raised."""
    barrier = threading.Barrier(len(works))

    def begin(work: Callable[[], object]) -> BaseException | None:
        barrier.wait()
        try:
            work()
        except Exception as error:
            return error
        return None

    with ThreadPoolExecutor(len(works)) as pool:
        return list(pool.map(begin, works))


def test_lists_made_at_once_are_no_more_than_a_user_may_have(bench: Bench) -> None:
    def make(number: int) -> Callable[[], object]:
        return lambda: bench.lists.create("local", f"l{number}", Terms(expression="known"), Content())

    raised = at_once([make(number) for number in range(12)])
    assert sum(error is None for error in raised) == 3
    assert {type(error) for error in raised if error is not None} == {ListError}
    assert len(bench.rows(WATCHES)) == 3


def test_matches_found_at_once_are_no_more_than_a_user_may_have(bench: Bench) -> None:
    bench.lists.create("local", "mine", Terms(expression="known"), Content())

    def add(number: int) -> Callable[[], object]:
        return lambda: bench.find("local", "mine", *range(10 * number, 10 * number + 4))

    assert at_once([add(number) for number in range(8)]) == [None] * 8
    (row,), (today,) = bench.rows(WATCHES), bench.rows(WATCH_DAYS)
    assert (len(bench.rows(MATCHES)), row["left_out"], today["matches"]) == (10, 22, 10)


def test_a_message_is_made_once_where_two_processes_make_it(bench: Bench) -> None:
    bench.lists.create("local", "mine", Terms(webhook="http://127.0.0.1:1/", every_hours=24.0), Content(names=["a"]))
    bench.find("local", "mine", 1, 2)
    with bench.engine.begin() as connection:
        connection.execute(sa.update(WATCHES).values(next_message=mjd_now() - 0.5))
    assert at_once([bench.box.collect] * 6) == [None] * 6
    assert [row["matches"] for row in bench.rows(DELIVERIES)] == [2]


def test_a_webhook_as_it_is_shown_stays_the_one_that_it_was(bench: Bench) -> None:
    url = "http://127.0.0.1:8000/services/T0/SECRET?x=1"
    bench.lists.create("local", "mine", Terms(webhook=url), Content(names=["a"]))
    shown = lists.masked(url)
    assert shown == "http://127.0.0.1:8000/..."
    bench.lists.change("local", "mine", Terms(webhook=shown, every_hours=1.0), None)
    row = bench.lists.get("local", "mine")
    assert (row["webhook"], row["every_hours"]) == (url, 1.0)
    with pytest.raises(ListError, match="is what is shown of another URL"):
        bench.lists.change("local", "mine", Terms(webhook="http://127.0.0.1:9000/..."), None)
    with pytest.raises(ListError, match="is what is shown of another URL"):
        bench.lists.create("local", "other", Terms(webhook=shown), Content(names=["a"]))


def test_columns_that_an_earlier_release_has_not_are_added(bench: Bench) -> None:
    with bench.engine.begin() as connection:
        for column in ("holder", "until"):
            connection.execute(sa.text(f"ALTER TABLE trifid_deliveries DROP COLUMN {column}"))
        connection.execute(sa.text("DROP TABLE trifid_counters"))
    url = bench.settings.web.database.get_secret_value()

    def open_it() -> None:
        Index(url).close()

    assert at_once([open_it] * 4) == [None] * 4
    bench.message("local", "mine", "http://127.0.0.1:1/", 1)
    assert states(bench) == ["pending"]
