"""The annotation schema in a registry: registered, checked for compatibility, and read by its id."""

from __future__ import annotations

import json
from collections.abc import Iterator

import fastavro
import pytest

from broker.avro.wire import confluent_message, read_confluent_header
from broker.batch import BatchResult
from broker.build import build_publisher
from broker.client.schemas import schemas_of
from broker.config import Settings
from broker.errors import ConfigurationError, DecodeError, DependencyUnavailableError
from broker.publish.annotation import SCHEMA_TEXT, published_record, read
from broker.publish.messages import Publisher
from tests.schema_registry_server import SchemaRegistryServer
from tests.unit.publish.test_messages import ANNOTATION, OLD_SCHEMA, publish

SUBJECT = "org.trifid.annotation.v1.BrokerClassification"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[SchemaRegistryServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with SchemaRegistryServer() as server:
        monkeypatch.setenv("TRIFID_ANNOTATION_REGISTRY__URL", server.url)
        yield server


def publisher(**settings: object) -> Publisher:
    given = {"annotation_registry": Settings().annotation_registry.model_copy(update=settings)}
    return build_publisher(Settings.model_construct(**given))


def test_a_message_carries_an_id_in_place_of_the_schema(server: SchemaRegistryServer) -> None:
    own = publisher()
    own.prepare()
    messages = list(own.messages(BatchResult(annotations=[ANNOTATION])))
    plain = publish(ANNOTATION)
    assert [m.topic for m in messages] == [m.topic for m in plain]
    value = messages[0].value
    assert read_confluent_header(value) == (1, 5)
    assert value[:5] == b"\0\0\0\0\1"
    # The container's schema and its frame are what is saved: the record is the same, but for the time of publication.
    saved = len(plain[0].value) - len(value)
    assert saved > 2_000
    assert saved > len(value)
    (again,) = read(value, "t", schemas_of(server.url))
    (before,) = read(plain[0].value, "t")
    ours, theirs = published_record(again), published_record(before)
    assert ours.pop("brokerPublishTimestamp") <= theirs.pop("brokerPublishTimestamp")
    assert ours == theirs


def test_the_schema_is_registered_once(server: SchemaRegistryServer) -> None:
    for _ in range(2):
        own = publisher()
        own.prepare()
        own.prepare()
    assert server.subjects == {SUBJECT: [1]}
    assert server.requests == [("POST", f"/subjects/{SUBJECT}/versions?normalize=False")] * 2
    assert json.loads(server.schemas[0]) == json.loads(SCHEMA_TEXT)


@pytest.mark.parametrize("level", ["BACKWARD", "FORWARD", "FULL_TRANSITIVE"])
def test_this_release_is_compatible_with_the_one_before_parents(server: SchemaRegistryServer, level: str) -> None:
    server.level = level
    server._register(SUBJECT, json.dumps(OLD_SCHEMA))
    publisher().prepare()
    assert server.subjects[SUBJECT] == [1, 2]


def test_a_schema_that_is_not_compatible_is_refused_at_the_start(server: SchemaRegistryServer) -> None:
    other = json.loads(SCHEMA_TEXT)
    other["fields"] = [
        f for f in other["fields"] if f["name"] != "objectId"
    ]  # which this release wants, without default
    server._register(SUBJECT, json.dumps(other))
    with pytest.raises(ConfigurationError, match=rf"(?s)subject {SUBJECT}: .* BACKWARD compatibility asks: .*objectId"):
        publisher().prepare()
    server.levels[SUBJECT] = "FORWARD"  # readers of before have no use for a field that is new
    publisher().prepare()
    assert server.subjects[SUBJECT] == [1, 2]


def test_a_schema_that_may_only_be_looked_up(server: SchemaRegistryServer) -> None:
    with pytest.raises(ConfigurationError, match="does not have this release's schema"):
        publisher(register_schema=False).prepare()
    assert server.subjects == {}
    publisher().prepare()
    publisher(register_schema=False).prepare()
    assert server.requests[-1] == ("POST", f"/subjects/{SUBJECT}?normalize=False&deleted=False")


def test_an_unavailable_registry_is_waited_for(server: SchemaRegistryServer) -> None:
    own = publisher()
    server.broken = True
    with pytest.raises(DependencyUnavailableError, match="restarting"):
        own.prepare()
    server.broken = False
    own.prepare()
    message = next(own.messages(BatchResult(annotations=[ANNOTATION]))).value
    schemas = schemas_of(server.url)
    server.broken = True
    with pytest.raises(DependencyUnavailableError, match="nothing else knows schema id 1"):
        read(message, "", schemas)


def test_messages_that_cannot_be_read_say_why(server: SchemaRegistryServer) -> None:
    own = publisher()
    own.prepare()
    message = next(own.messages(BatchResult(annotations=[ANNOTATION]))).value
    schemas = schemas_of(server.url)
    foreign = fastavro.parse_schema({"type": "record", "name": "other.Thing", "fields": []})
    server._register("other", json.dumps({"type": "record", "name": "other.Thing", "fields": []}))
    assert foreign["name"] == "other.Thing"
    for wrong, reason in (
        (confluent_message(99, message[5:]), "schema id 99 .*not found"),
        (confluent_message(2, message[5:]), "its schema is other.Thing"),
        (message[:60], "not an annotation of Trifid"),
        (message + b"x", "not one record of schema id 1"),
        (b"\0\0\0", "not in Confluent's wire format"),
    ):
        with pytest.raises(DecodeError, match=reason):
            read(wrong, "", schemas)
    with pytest.raises(DecodeError, match="has id 1 in a schema registry, of which no address is given"):
        read(message)


def test_an_annotation_of_the_release_before_is_read_by_its_own_schema(server: SchemaRegistryServer) -> None:
    import io

    old = fastavro.parse_schema(OLD_SCHEMA)
    (published,) = read(publish(ANNOTATION)[0].value)
    body = io.BytesIO()
    fastavro.schemaless_writer(body, old, published_record(published))
    number = server._register(SUBJECT, json.dumps(OLD_SCHEMA))
    (again,) = read(confluent_message(number, body.getvalue()), "", schemas_of(server.url))
    assert (again.object_id, again.best_class, again.parents) == ("ZTF18abcdefg", "RRAB", {})
