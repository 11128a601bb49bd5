"""The client of a schema registry, against a server of our own.

No real registry can be had here (Karapace is not on PyPI): ``StandIn`` is a small HTTP server on the loopback
interface that answers ``GET /schemas/ids/{id}`` as the registry's documentation says
(https://docs.confluent.io/platform/current/schema-registry/develop/api.html), and can be made to fail. Its schemas
are in Avro's parsing canonical form, as LSST's own registry has them (syncAllSchemasToRegistry.py of
https://github.com/lsst/alert_packet).
"""

from __future__ import annotations

import base64
import io
import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import pytest

from broker.avro import registry as schema_registry
from broker.avro import registry_http
from broker.avro.compiler import check_schema
from broker.avro.wire import confluent_message, read_confluent_header
from broker.errors import ConfigurationError, DecodeError, DependencyUnavailableError
from broker.records import Alert
from broker.surveys import Decoder
from broker.surveys.lsst_schemas import lsst_schema
from tests.busy import Stopwatch
from tests.waiting import wait_until

SchemaRegistry = partial(schema_registry.SchemaRegistry, fallback=lsst_schema, check=check_schema)
"""As the service reads LSST's alerts."""
PATH = "/schema-registry"
FOREIGN = 54
"""An id that is not 100 major + minor of anything."""
SECRET = "horse-battery"
NOT_FOUND = (404, json.dumps({"error_code": 40403, "message": "Schema not found"}).encode())


def canonical(version: int) -> str:
    """LSST's schema of this version, as its registry has it."""
    return fastavro.schema.to_parsing_canonical_form(lsst_schema(version))


def answer(schema: str, **more: Any) -> tuple[int, bytes]:
    return 200, json.dumps({"schema": schema, **more}).encode()


class StandIn:
    """A registry in a thread; ``answers`` by schema id, ``NOT_FOUND`` for others, ``hang`` to say nothing at all."""

    def __init__(self, port: int = 0) -> None:
        self.answers: dict[int, tuple[int, bytes]] = {}
        self.asked: list[int] = []
        self.authorization: list[str | None] = []
        self.hang = False
        self.drip_s = 0.0
        self.drip_headers = False
        self._released = threading.Event()
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                folder, _, number = self.path.rpartition("/")
                stand_in.asked.append(int(number))
                stand_in.authorization.append(self.headers["Authorization"])
                if stand_in.hang:
                    stand_in._released.wait(30)
                    return
                if stand_in.drip_headers:
                    with suppress(BrokenPipeError, ConnectionResetError):
                        self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Padding: ")
                        while not stand_in._released.wait(stand_in.drip_s):
                            self.wfile.write(b"a")
                    return
                status, body = stand_in.answers.get(int(number), NOT_FOUND)
                if folder != f"{PATH}/schemas/ids":
                    status, body = 404, b"<html>no such page</html>"
                self.send_response(status)
                self.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
                self.end_headers()  # without a length: the end of the connection is the end of the answer
                try:
                    if stand_in.drip_s:
                        for byte in body:
                            self.wfile.write(bytes([byte]))
                            if stand_in._released.wait(stand_in.drip_s):
                                return
                    else:
                        self.wfile.write(body)
                except (BrokenPipeError, ConnectionResetError):
                    pass

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.port = int(self._server.server_address[1])
        self.url = f"http://127.0.0.1:{self.port}{PATH}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def stop(self) -> None:
        self._released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(schema_registry, "_RETRY_PAUSE_MS", 1)


@pytest.fixture
def server() -> Iterator[StandIn]:
    stand_in = StandIn()
    yield stand_in
    stand_in.stop()


def unavailable(stand_in: StandIn) -> str:
    """The address of a registry that was there, and is not."""
    stand_in.stop()
    return stand_in.url


@pytest.fixture
def gone() -> str:
    return unavailable(StandIn())


def test_the_registry_is_asked_once_for_an_id(server: StandIn, tmp_path: Path) -> None:
    server.answers[FOREIGN] = answer(canonical(1101))
    schemas = SchemaRegistry(server.url + "/", cache_dir=tmp_path)
    first = schemas(FOREIGN)
    assert first["name"] == "lsst.v11_1.alert"
    assert schemas(FOREIGN) is first
    assert server.asked == [FOREIGN]
    kept = tmp_path / f"127.0.0.1_{server.port}_schema-registry" / f"{FOREIGN}.avsc"
    assert json.loads(kept.read_text()) == first
    assert list(kept.parent.iterdir()) == [kept]


def test_the_disk_serves_after_a_restart_and_without_the_registry(server: StandIn, tmp_path: Path) -> None:
    server.answers[FOREIGN] = answer(canonical(1101))
    first = SchemaRegistry(server.url, cache_dir=tmp_path)(FOREIGN)
    assert SchemaRegistry(server.url, cache_dir=tmp_path)(FOREIGN) == first
    assert server.asked == [FOREIGN]


def test_another_registry_has_a_folder_of_its_own(server: StandIn, tmp_path: Path, gone: str) -> None:
    server.answers[FOREIGN] = answer(canonical(1101))
    SchemaRegistry(server.url, cache_dir=tmp_path)(FOREIGN)
    with pytest.raises(DependencyUnavailableError):
        SchemaRegistry(gone, cache_dir=tmp_path)(FOREIGN)


@pytest.mark.parametrize("damage", [b"", b'{"type": "rec', b"\xff\xfe", b'{"type": "record"}', b"[" * 100_000])
def test_a_damaged_file_is_fetched_again(
    server: StandIn, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: bytes
) -> None:
    server.answers[FOREIGN] = answer(canonical(1101))
    first = SchemaRegistry(server.url, cache_dir=tmp_path)(FOREIGN)
    (kept,) = tmp_path.glob(f"*/{FOREIGN}.avsc")
    kept.write_bytes(damage)
    assert SchemaRegistry(server.url, cache_dir=tmp_path)(FOREIGN) == first
    assert len(server.asked) == 2
    assert f"{kept} is of no use" in caplog.text
    assert json.loads(kept.read_text()) == first


def test_a_disk_that_cannot_be_written_does_not_matter(
    server: StandIn, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.answers[FOREIGN] = answer(canonical(1101))
    blocked = tmp_path / "a file"
    blocked.touch()
    schemas = SchemaRegistry(server.url, cache_dir=blocked)
    assert schemas(FOREIGN)["name"] == "lsst.v11_1.alert"
    assert "cannot be kept on disk" in caplog.text


def test_what_the_registry_does_not_have_is_no_alert(server: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    schemas = SchemaRegistry(server.url)
    for _ in range(5):
        with pytest.raises(DecodeError, match=rf"schema id {FOREIGN} of {server.url}: Schema not found \(HTTP 404\)"):
            schemas(FOREIGN)
    assert server.asked == [FOREIGN]
    server.answers[FOREIGN] = answer(canonical(1101))
    monkeypatch.setattr(schema_registry.time, "monotonic", lambda now=time.monotonic: now() + 60)
    assert schemas(FOREIGN)["name"] == "lsst.v11_1.alert"


def test_a_registry_without_lsst_s_schemas_is_not_believed(server: StandIn) -> None:
    """As LSST's does for a moment at each deployment."""
    schemas = SchemaRegistry(server.url)
    assert schemas(1101) == lsst_schema(1101)
    server.answers[1101] = answer(canonical(1101))
    assert schemas(1101) == json.loads(canonical(1101))


def test_ids_that_are_refused_do_not_pile_up(server: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema_registry, "_MOST_REFUSED", 3)
    schemas = SchemaRegistry(server.url)
    for schema_id in range(1, 9):
        with pytest.raises(DecodeError):
            schemas(schema_id)
    assert len(schemas._refused) == 3


@pytest.mark.parametrize("schema_id", [0, -1, 2**31, 2**32 - 1])
def test_ids_that_cannot_be_are_not_asked_for(gone: str, schema_id: int) -> None:
    with pytest.raises(DecodeError, match=str(schema_id)):
        SchemaRegistry(gone)(schema_id)


def test_lsst_s_package_stands_in_with_one_warning(gone: str, caplog: pytest.LogCaptureFixture) -> None:
    schemas = SchemaRegistry(gone)
    for _ in range(3):
        assert schemas(1101) == lsst_schema(1101)
        assert schemas(704) == lsst_schema(704)
    warned = [r.getMessage() for r in caplog.records if r.name == schema_registry.__name__]
    assert len(warned) == 2
    assert "schema id 1101 (ConnectError" in warned[0]
    assert "read with lsst.v11_1.alert" in warned[0]
    assert gone in warned[0]


def test_what_only_the_registry_knows_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema_registry, "_UNAVAILABLE_FOR_S", 0.0)
    stand_in = StandIn()
    schemas = SchemaRegistry(unavailable(stand_in))
    for _ in range(2):
        with pytest.raises(DependencyUnavailableError, match=f"{stand_in.url} is unavailable .*schema id {FOREIGN}"):
            schemas(FOREIGN)
    assert schemas(1101) == lsst_schema(1101)
    back = StandIn(stand_in.port)
    try:
        back.answers = {FOREIGN: answer(canonical(704)), 1101: answer(canonical(1101))}
        assert schemas(FOREIGN)["name"] == "lsst.v7_4.alert"
        assert schemas(1101) == json.loads(canonical(1101))  # what the package said was not kept
    finally:
        back.stop()


@pytest.mark.parametrize(
    "said",
    [
        (500, b'{"error_code": 50001, "message": "Error in the backend data store"}'),
        (503, b"busy"),
        (401, b'{"error_code": 40101, "message": "Unauthorized"}'),
        (404, b"<html>a proxy's page</html>"),
        (404, b'{"error_code": 404, "message": "HTTP 404 Not Found"}'),
        (301, b""),
        (200, b"<html>please log in</html>"),
        (200, b"{}"),
        (200, b'{"schema": {"type": "record"}}'),
        (200, b"[]"),
        (200, b""),
        (204, b""),
    ],
)
def test_answers_of_another_server_count_as_unavailable(
    server: StandIn, said: tuple[int, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema_registry, "_UNAVAILABLE_FOR_S", 0.0)
    server.answers = {FOREIGN: said, 1101: said}
    schemas = SchemaRegistry(server.url)
    with pytest.raises(DependencyUnavailableError):
        schemas(FOREIGN)
    assert schemas(1101) == lsst_schema(1101)
    server.answers[FOREIGN] = answer(canonical(1101))
    assert schemas(FOREIGN) == json.loads(canonical(1101))


def test_a_wrong_path_is_not_taken_for_the_registry_s_answer(server: StandIn) -> None:
    with pytest.raises(DependencyUnavailableError):
        SchemaRegistry(server.url.removesuffix(PATH))(FOREIGN)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (answer('"string"'), "not that of a record"),
        (answer('{"type": "enum", "name": "e", "symbols": ["a"]}'), "not that of a record"),
        (answer('{"type": "record", "name": "r"}'), "of no use: records of this schema have no bytes"),
        (answer('{"type": "record", "name": "r", "fields": [{"name": "a", "type": "b"}]}'), "not a valid Avro schema"),
        (answer("syntax = proto3;"), "not JSON"),
        (answer("[" * 100_000), "not JSON"),
        (answer('{"type": "object"}', schemaType="JSON"), "of type JSON, not AVRO"),
        (
            answer(canonical(1101), references=[{"name": "a", "subject": "s", "version": 1}]),
            "refers to other schemas",
        ),
    ],
)
def test_schemas_of_no_use_are_refused(server: StandIn, tmp_path: Path, said: tuple[int, bytes], reason: str) -> None:
    server.answers[FOREIGN] = said
    schemas = SchemaRegistry(server.url, cache_dir=tmp_path)
    for _ in range(2):
        with pytest.raises(DecodeError, match=f"schema id {FOREIGN} of {server.url}.*{reason}"):
            schemas(FOREIGN)
    assert server.asked == [FOREIGN]
    assert not list(tmp_path.rglob("*.avsc"))


def test_an_answer_may_name_its_type(server: StandIn) -> None:
    server.answers[FOREIGN] = answer(canonical(1101), schemaType="AVRO", references=[])
    assert SchemaRegistry(server.url)(FOREIGN)["name"] == "lsst.v11_1.alert"


def test_an_answer_that_is_too_large_is_abandoned(server: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_http, "MAX_SCHEMA_BYTES", 10_000)
    server.answers[FOREIGN] = answer(canonical(1101))
    with pytest.raises(DecodeError, match=f"schema id {FOREIGN} .*more than 10000 bytes"):
        SchemaRegistry(server.url)(FOREIGN)


def test_silence_is_not_waited_for_long(server: StandIn) -> None:
    server.hang = True
    schemas = SchemaRegistry(server.url, timeout_s=0.3)
    with Stopwatch() as watch, pytest.raises(DependencyUnavailableError, match="ReadTimeout"):
        schemas(FOREIGN)
    assert watch.seconds < 2.5
    assert len(server.asked) == 2
    for schema_id in (FOREIGN, FOREIGN + 1):
        with pytest.raises(DependencyUnavailableError, match="ReadTimeout"):
            schemas(schema_id)
    assert schemas(1101) == lsst_schema(1101)
    assert len(server.asked) == 2, "a batch with many ids waits once"


def test_an_answer_byte_by_byte_is_not_waited_for_long(server: StandIn) -> None:
    server.drip_s = 0.05
    server.answers[FOREIGN] = answer(canonical(1101))
    with Stopwatch() as watch, pytest.raises(DependencyUnavailableError, match=r"no whole answer within 1\.1 s"):
        SchemaRegistry(server.url, timeout_s=0.3)(FOREIGN)
    assert watch.seconds < 2.5


def test_headers_byte_by_byte_are_not_waited_for_long_and_leave_no_thread_behind(server: StandIn) -> None:
    server.drip_s, server.drip_headers = 0.05, True
    schemas = SchemaRegistry(server.url, timeout_s=0.3)
    with Stopwatch() as watch:
        with pytest.raises(DependencyUnavailableError, match=r"no whole answer within 1\.1 s"):
            schemas(FOREIGN)
        assert schemas(1101) == lsst_schema(1101)
    assert watch.seconds < 5
    # The request ends, too.
    wait_until(lambda: all(thread.name != "schema registry" for thread in threading.enumerate()))
    assert len(server.asked) == 1, "what was abandoned is not asked again"


def test_a_name_that_does_not_resolve_for_long_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()

    def resolve(*arguments: object, **options: object) -> None:
        released.wait(30)
        raise socket.gaierror("no such name")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    try:
        with Stopwatch() as watch, pytest.raises(DependencyUnavailableError, match="no whole answer"):
            SchemaRegistry("http://registry.invalid/x", timeout_s=0.3)(FOREIGN)
        assert watch.seconds < 5
    finally:
        released.set()


def test_several_threads_ask_once(server: StandIn) -> None:
    server.answers[FOREIGN] = answer(canonical(1101))
    schemas = SchemaRegistry(server.url)
    threads = [threading.Thread(target=schemas, args=(FOREIGN,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.asked == [FOREIGN]


def test_user_and_password_go_to_the_registry_and_nowhere_else(
    server: StandIn, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    schemas = SchemaRegistry(server.url, cache_dir=tmp_path, username="trifid", password=SECRET)
    encoded = base64.b64encode(f"trifid:{SECRET}".encode()).decode()
    said = [repr(schemas), str(vars(schemas))]
    server.answers = {
        2: (401, b'{"error_code": 40101, "message": "Unauthorized"}'),
        3: answer('"string"'),
        FOREIGN: answer(canonical(1101)),
    }
    schemas(FOREIGN)
    for schema_id in (1, 3, 2):
        with pytest.raises((DecodeError, DependencyUnavailableError)) as caught:
            schemas(schema_id)
        said += [str(caught.value), repr(caught.value), repr(caught.value.__cause__)]
    server.stop()
    with pytest.raises(DependencyUnavailableError) as gone:
        SchemaRegistry(server.url, username="trifid", password=SECRET)(FOREIGN)
    said += [str(gone.value), repr(gone.value.__cause__), caplog.text]
    assert server.authorization == [f"Basic {encoded}"] * len(server.asked)
    assert not any(SECRET in text or encoded in text for text in said)
    assert not any(SECRET in path.read_text() for path in tmp_path.rglob("*.avsc"))


@pytest.mark.parametrize(
    "url",
    [
        f"https://trifid:{SECRET}@host",
        f"https://trifid:{SECRET}@[::",
        "ftp://host",
        "host:8081",
        "https://",
        "https://host:port",
        "https://a,https://b",
        "https://host?x=1",
        "mock://",
        "",
    ],
)
def test_wrong_addresses_are_refused_at_the_start(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        SchemaRegistry(url)
    assert SECRET not in str(caught.value)
    assert SECRET not in repr(caught.value.__cause__)


@pytest.mark.parametrize(
    "wrong",
    [
        {"username": "trifid"},
        {"password": SECRET},
        {"username": "tri:fid", "password": SECRET},
        {"ca_location": Path("/no/such.pem")},
        {"key_location": Path("/no/such.key"), "key_password": SECRET},
    ],
)
def test_wrong_settings_are_refused_at_the_start(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        SchemaRegistry("https://host", **wrong)
    assert SECRET not in str(caught.value)


def test_without_an_address_it_is_lsst_s_package(tmp_path: Path) -> None:
    schemas = SchemaRegistry(None, cache_dir=tmp_path)
    assert schemas(1101) == lsst_schema(1101)
    for schema_id in (FOREIGN, 0, 2**31):
        with pytest.raises(DecodeError, match="newest of LSST's alert schemas known here") as caught:
            schemas(schema_id)
        with pytest.raises(DecodeError) as plain:
            lsst_schema(schema_id)
        assert str(caught.value) == str(plain.value)
    assert not list(tmp_path.iterdir())


def versions_that_read(payload: bytes) -> list[int]:
    """Ids of LSST's schemas with which the whole of a message is a record."""
    _, start = read_confluent_header(payload)
    found = []
    for version in (700, 701, 702, 703, 704, 800, 900, 1000, 1100, 1101):
        stream = io.BytesIO(payload[start:])
        try:
            fastavro.schemaless_reader(stream, fastavro.parse_schema(lsst_schema(version)), None)
        except Exception:  # damaged records make fastavro raise anything
            continue
        if stream.tell() == len(payload) - start:
            found.append(version)
    return found


def test_real_messages_decode_under_ids_that_only_the_registry_knows(server: StandIn, shared: Path) -> None:
    paths = sorted((shared / "alerts" / "lsst" / "confluent_wire").iterdir())
    assert len(paths) == 18
    payloads = [path.read_bytes() for path in paths]
    fitting = [versions_that_read(payload) for payload in payloads]
    server.answers = {FOREIGN + n: answer(canonical(versions[-1])) for n, versions in enumerate(fitting)}
    plain, with_registry = Decoder(), Decoder(schema_of_id=SchemaRegistry(server.url))
    for n, (payload, versions) in enumerate(zip(payloads, fitting, strict=True)):
        schema_id, start = read_confluent_header(payload)
        assert schema_id in versions
        (expected,) = plain.decode(payload)
        (alert,) = with_registry.decode(confluent_message(FOREIGN + n, payload[start:]))
        assert isinstance(expected, Alert)
        assert isinstance(alert, Alert)
        assert (alert.alert_id, alert.object_id) == (expected.alert_id, expected.object_id)
        for column in ("mjd", "flux", "flux_error", "reference_flux", "band", "kind"):
            np.testing.assert_array_equal(
                getattr(alert.light_curve, column), getattr(expected.light_curve, column), err_msg=paths[n].name
            )
