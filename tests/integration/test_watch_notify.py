"""`trifid notify` with real Kafka, mail server and webhook: nothing is lost, whatever fails or is killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from aiosmtpd.controller import Controller
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, ResourceType

from broker.batch import BatchResult
from broker.client import Subscription
from broker.client.headers import FIELDS_IN_HEADERS, summary
from broker.config import Settings
from broker.database import DELIVERIES, LEASES, MATCHES, WATCHES
from broker.embedded.ports import free_port
from broker.publish.annotation import read
from broker.publish.messages import Publisher
from broker.publish.topics import OutputTopics
from broker.records import Annotation
from broker.watch import deliveries
from broker.watch.content import Content
from broker.watch.lists import Lists, Terms
from broker.watch.notifier import Notifier
from broker.watch.outbox import Outbox, Unsent
from broker.watch.topics import ListTopics
from broker.web.index import Index
from deploy.local.kafka_server import KafkaServer
from tests.waiting import wait_until

STAR = Annotation(
    survey="ztf", alert_id=0, source_id=0, object_id="star", ra=10.0, dec=-20.0, mjd=61000.0, class_names=("M", "SR"),
    probabilities=(0.75, 0.25), modalities=("light_curve",), detections=20, period=300.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def kafka(kafka: KafkaServer) -> KafkaServer:
    kafka.create_topics(["trifid.ztf.all"])
    return kafka


def send(kafka: KafkaServer, numbers: Sequence[int]) -> None:
    """Annotations by number: those with an even one are at the list's position, the others a degree north."""
    result = BatchResult()
    for number in numbers:
        result.annotations.append(
            replace(STAR, alert_id=number, object_id=f"o{number}", detections=number, dec=-20.0 + number % 2)
        )
    producer = Producer({"bootstrap.servers": kafka.bootstrap})
    for message in Publisher(OutputTopics("trifid", 1.0), "Trifid", 1000).messages(result):
        if message.topic == "trifid.ztf.all":
            producer.produce(message.topic, message.value, message.key)
    assert producer.flush(120) == 0


def settings_of(kafka: KafkaServer, folder: Path, **notify: object) -> Settings:
    given = {"reload_s": 0.2, "retry_s": 0.2, "max_retry_s": 1.0, "lease_s": 5.0, "timeout_s": 5.0} | notify
    return Settings.model_validate(
        {
            "kafka": {"bootstrap_servers": kafka.bootstrap, "replication_factor": 1},
            "web": {"database": f"sqlite:///{folder / 'web.sqlite'}"},
            "notify": {"group_id": f"notify-{folder.name}"} | given,
        }
    )


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    with closing(Index(f"sqlite:///{tmp_path / 'web.sqlite'}")) as index:
        yield index


def here() -> Content:
    return Content(np.array([10.0]), np.array([-20.0]), ["my star"])


def ready(notifier: Notifier) -> None:
    """Its group has a position from which on nothing is missed."""
    wait_until(lambda: not any(notifier.problems.values()))


def in_topic(kafka: KafkaServer, topic: str, count: int) -> list[tuple[str, str]]:
    """Numbers and objects of the messages of a topic, once there are so many; each is an annotation of that object."""
    consumer = Consumer(
        {"bootstrap.servers": kafka.bootstrap, "group.id": f"t{time.monotonic_ns()}", "auto.offset.reset": "earliest"}
    )
    consumer.subscribe([topic])
    found: list[tuple[str, str]] = []
    end = time.monotonic() + 300
    while len(found) < count and time.monotonic() < end:
        message = consumer.poll(0.5)
        if message is None or message.error():
            continue
        (annotation,) = read(message.value() or b"", topic)
        headers = dict(message.headers() or [])
        assert headers["label"] == b"my star"
        told = summary(message)
        assert told is not None  # as of any other topic
        assert told == {name: annotation[name] for name in FIELDS_IN_HEADERS}
        found.append(((headers["id"] or b"").decode(), annotation.object_id))
    consumer.close()
    return found


class Hook:
    """A webhook that answers as it is told, and keeps what it took."""

    def __init__(self) -> None:
        self.taken: list[tuple[str, Any]] = []
        self.asked: list[str] = []
        self.status = 200
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                hook.asked.append(self.headers["Idempotency-Key"])
                if hook.status == 200:
                    hook.taken.append((self.headers["Idempotency-Key"], body))
                self.send_response(hook.status)
                self.send_header("Location", "http://127.0.0.1:1/")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/services/T0/SECRET"
        self._thread = threading.Thread(target=self.server.serve_forever, daemon=True)

    def __enter__(self) -> Hook:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self._thread.join()


def rows(index: Index, table: sa.Table) -> list[dict[str, Any]]:
    with index.engine.connect() as connection:
        return [dict(row) for row in connection.execute(sa.select(table).order_by(table.c[0])).mappings()]


def test_a_list_gets_its_topic_with_retention_and_what_it_wants_in_it(
    kafka: KafkaServer, tmp_path: Path, index: Index
) -> None:
    settings = settings_of(kafka, tmp_path, topic_retention_hours=5.0)
    lists = Lists(index.engine, settings)
    topic = "trifid.user.local.mine"
    with Notifier(settings, index.engine) as notifier:
        ready(notifier)
        lists.create("local", "mine", Terms(expression="detections >= 4"), here())
        wait_until(lambda: topic in AdminClient({"bootstrap.servers": kafka.bootstrap}).list_topics(timeout=60).topics)
        time.sleep(0.5)  # until the list counts
        send(kafka, range(10))
        assert sorted(name for _, name in in_topic(kafka, topic, 3)) == ["o4", "o6", "o8"]
        wait_until(lambda: not any(row["unsent"] for row in rows(index, MATCHES)))
        assert [row["payload"] for row in rows(index, MATCHES)] == [None] * 3
        # A subscriber reads it as any other topic.
        with Subscription(topic, kafka.bootstrap, start="earliest", idle_timeout=3.0) as subscription:
            assert sorted(a.object_id for a in subscription) == ["o4", "o6", "o8"]
        admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
        resource = ConfigResource(ResourceType.TOPIC, topic)
        (described,) = admin.describe_configs([resource]).values()
        assert described.result()["retention.ms"].value == "18000000"
        lists.delete("local", "mine")
        wait_until(lambda: rows(index, WATCHES) == [])
        admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
        wait_until(lambda: topic not in admin.list_topics(timeout=60).topics)
        assert rows(index, MATCHES) == []


def test_one_killed_at_any_moment_loses_nothing(kafka: KafkaServer, tmp_path: Path, index: Index) -> None:
    with Hook() as hook:
        settings = settings_of(kafka, tmp_path, webhook_networks=("127.0.0.0/8",), lease_s=1.0)
        Lists(index.engine, settings).create("local", "kill", Terms(webhook=hook.url, every_hours=0.0), here())
        config = tmp_path / "trifid.toml"
        notify = settings.notify
        config.write_text(
            f'[kafka]\nbootstrap_servers = "{kafka.bootstrap}"\nreplication_factor = 1\n'
            f'[web]\ndatabase = "sqlite:///{tmp_path / "web.sqlite"}"\n'
            f'[notify]\ngroup_id = "{notify.group_id}"\nreload_s = 0.2\nretry_s = 0.2\nlease_s = 1.0\n'
            f'webhook_networks = ["127.0.0.0/8"]\n'
        )
        with Notifier(settings, index.engine) as notifier:  # gives the group its position
            ready(notifier)
        send(kafka, range(0, 3000))
        moments = (lambda: bool(rows(index, LEASES)), lambda: bool(rows(index, MATCHES)), lambda: bool(hook.asked))
        for moment in moments:
            with started(config) as process:
                wait_until(lambda moment=moment, process=process: process.poll() is not None or moment())  # type: ignore[misc]
                process.kill()
                assert process.wait() == -signal.SIGKILL
        expected = {f"o{number}" for number in range(0, 3000, 2)}
        with started(config) as process:
            wait_until(lambda: [row["unsent"] for row in rows(index, MATCHES)] == [False] * 1500)
            wait_until(lambda: sum(body["trifid"]["count"] for body in dict(hook.taken).values()) == 1500)
            process.send_signal(signal.SIGTERM)
            assert process.wait(300) == 0
    found = in_topic(kafka, "trifid.user.local.kill", 1500)
    assert {name for _, name in found} == expected
    # What came twice has the same number.
    assert len(set(found)) == 1500
    assert {row["event"] for row in rows(index, MATCHES)} == {number for number, _ in found}


@contextmanager
def started(config: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-m", "broker.cli", "notify", "--config", str(config)])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_webhook_that_fails_is_tried_again_and_given_up_at_last(
    kafka: KafkaServer, tmp_path: Path, index: Index, caplog: pytest.LogCaptureFixture
) -> None:
    with Hook() as hook:
        settings = settings_of(kafka, tmp_path, webhook_networks=("127.0.0.0/8",), max_attempts=3)
        lists = Lists(index.engine, settings)
        lists.create("local", "hook", Terms(webhook=hook.url, every_hours=0.0), here())
        hook.status = 503
        with Notifier(settings, index.engine) as notifier:
            ready(notifier)
            send(kafka, range(5))
            wait_until(lambda: len(hook.asked) >= 2)
            hook.status = 200
            wait_until(lambda: sum(body["trifid"]["count"] for _, body in hook.taken) == 3)
            assert len(set(hook.asked)) == len(hook.taken)  # each attempt had the same number
            text = hook.taken[0][1]["text"]
            assert text.startswith("*hook*: ")
            assert "\u2022 o0 (my star) M 0.75" in text
            # A redirect, which might lead inside, is not followed.
            hook.status, before = 307, len(hook.taken)
            send(kafka, [6])
            wait_until(lambda: any(row["state"] == "dead" for row in rows(index, DELIVERIES)))
            (dead,) = [row for row in rows(index, DELIVERIES) if row["state"] == "dead"]
            assert (dead["attempts"], dead["problem"]) == (3, "127.0.0.1 answers 307")
            assert hook.asked.count(dead["number"]) == 3
            hook.status = 200
            time.sleep(1.5)
            assert len(hook.taken) == before
            assert Outbox(index.engine, settings).revive(dead["watch"]) == 1
            wait_until(lambda: len(hook.taken) == before + 1)
            assert hook.taken[-1][0] == dead["number"]
    assert "SECRET" not in caplog.text


class Mailbox:
    """What a mail server got; it refuses as it is told."""

    def __init__(self) -> None:
        self.mails: list[Any] = []
        self.refusal: str | None = None
        self.attempts = 0

    async def handle_RCPT(self, server: Any, session: Any, envelope: Any, address: str, options: Any) -> str:  # noqa: N802
        self.attempts += 1
        if self.refusal is not None:
            return self.refusal
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802
        self.mails.append((envelope.rcpt_tos, envelope.content.decode()))
        return "250 OK"


@contextmanager
def mail_server() -> Iterator[tuple[Mailbox, int]]:
    box, port = Mailbox(), free_port()
    controller = Controller(box, hostname="127.0.0.1", port=port)
    controller.start()
    yield box, port
    controller.stop()


def test_a_daily_mail_comes_when_it_is_due_and_again_where_it_was_refused(
    kafka: KafkaServer, tmp_path: Path, index: Index
) -> None:
    with mail_server() as (box, port):
        settings = settings_of(
            kafka, tmp_path, smtp_host="127.0.0.1", smtp_port=port, smtp_security="none",
            mail_from="Trifid <trifid@example.org>", public_url="https://trifid.example.org/", max_attempts=4,
        )  # fmt: skip
        lists = Lists(index.engine, settings)
        lists.create("local", "daily", Terms(email="alice@example.org"), here())
        box.refusal = "451 4.3.0 greylisted"
        with Notifier(settings, index.engine) as notifier:
            ready(notifier)
            send(kafka, range(0, 240))
            wait_until(lambda: len(rows(index, MATCHES)) == 120)
            assert rows(index, DELIVERIES) == []
            with index.engine.begin() as connection:  # the hour has come
                connection.execute(sa.update(WATCHES).values(next_message=0.0))
            wait_until(lambda: box.attempts >= 2)
            box.refusal = None
            wait_until(lambda: len(box.mails) == 1)
            wait_until(lambda: rows(index, DELIVERIES)[0]["state"] == "sent")
        ((to, text),) = box.mails
        (delivery,) = rows(index, DELIVERIES)
        assert to == ["alice@example.org"]
        assert f"Message-ID: <{delivery['number']}@example.org>" in text
        assert "Subject: Trifid: daily: 120 new matches" in text
        assert "ztf:o0  M 0.75  10.00000 -20.00000  my star" in text
        assert "  https://trifid.example.org/object/ztf/o0" in text
        assert f"... and {120 - deliveries.SHOWN} more" in text
        assert "All are in the Kafka topic trifid.user.local.daily." in text
        assert rows(index, WATCHES)[0]["next_message"] > 61000


def test_a_match_that_cannot_be_read_holds_up_no_other(kafka: KafkaServer, tmp_path: Path) -> None:
    result = BatchResult()
    result.annotations.append(replace(STAR, object_id="o2"))
    good = next(Publisher(OutputTopics("trifid", 1.0), "Trifid", 1000).messages(result)).value
    damaged, fine = "trifid.user.local.damaged", "trifid.user.local.fine"
    matches = [
        Unsent(1, 1, damaged, "e1", "o1", "my star", good[:-20]), Unsent(2, 2, fine, "e2", "o2", "my star", good),
    ]  # fmt: skip
    with closing(ListTopics(settings_of(kafka, tmp_path))) as topics:
        sent, refused = topics.put(matches, lambda: True)
    assert sorted(one.key for one in sent) == [1, 2]
    assert refused == {}
    assert in_topic(kafka, fine, 1) == [("e2", "o2")]
    consumer = Consumer({"bootstrap.servers": kafka.bootstrap, "group.id": damaged})
    consumer.assign([TopicPartition(damaged, 0, 0)])
    message = consumer.poll(60)
    assert message is not None
    assert message.value() == good[:-20]
    assert message.headers() == [("id", b"e1"), ("label", b"my star")]
    consumer.close()


def test_a_topic_that_is_refused_holds_up_no_other(kafka: KafkaServer, tmp_path: Path, index: Index) -> None:
    settings = settings_of(kafka, tmp_path, max_attempts=2)
    lists = Lists(index.engine, settings)
    for name in ("bad", "good"):
        lists.create("local", name, Terms(), here())
    with index.engine.begin() as connection:  # a name that Kafka refuses
        connection.execute(sa.update(WATCHES).where(WATCHES.c.name == "bad").values(topic="trifid.user.lo cal.bad"))
    with Notifier(settings, index.engine) as notifier:
        ready(notifier)
        send(kafka, [0, 2])
        assert sorted(name for _, name in in_topic(kafka, "trifid.user.local.good", 2)) == ["o0", "o2"]
        wait_until(lambda: rows(index, WATCHES)[0]["topic_given_up"])
        bad, good = rows(index, WATCHES)
        assert bad["topic_attempts"] == 2
        assert "topic" in bad["problem"].lower()
        assert (good["problem"], good["topic_attempts"]) == (None, 0)
        assert [row["unsent"] for row in rows(index, MATCHES) if row["watch"] == bad["id"]] == [True, True]
        # Once it is fixed, what waited comes.
        with index.engine.begin() as connection:
            connection.execute(sa.update(WATCHES).where(WATCHES.c.name == "bad").values(topic="trifid.user.local.bad"))
        Outbox(index.engine, settings).revive(bad["id"])
        assert sorted(name for _, name in in_topic(kafka, "trifid.user.local.bad", 2)) == ["o0", "o2"]


def test_a_kafka_that_deletes_no_topics_holds_up_no_list(tmp_path: Path, index: Index) -> None:
    """``delete.topic.enable=false``: from the first list that was deleted on, no list got anything any more."""
    with KafkaServer(settings={"delete.topic.enable": "false"}) as kafka:
        kafka.create_topics(["trifid.ztf.all"])
        settings = settings_of(kafka, tmp_path)
        lists = Lists(index.engine, settings)
        for name in ("gone", "stays"):
            lists.create("local", name, Terms(), here())
        with Notifier(settings, index.engine) as notifier:
            ready(notifier)
            send(kafka, [0])
            assert in_topic(kafka, "trifid.user.local.gone", 1)
            lists.delete("local", "gone")
            wait_until(lambda: [row["name"] for row in rows(index, WATCHES)] == ["stays"])
            send(kafka, [2])
            assert sorted(name for _, name in in_topic(kafka, "trifid.user.local.stays", 2)) == ["o0", "o2"]
            wait_until(lambda: notifier.problems["send"] is None)
