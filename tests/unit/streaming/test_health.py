from __future__ import annotations

import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest

import broker.streaming.health
from broker.config import MetricsSettings
from broker.streaming.health import Health, HealthServer, LagTrend, Probes, wrong_device
from tests.busy import Stopwatch
from tests.waiting import wait_until

SETTINGS = MetricsSettings(address="127.0.0.1", port=0, probe_interval_s=1.0, alive_limit_s=60.0, batch_limit_s=600.0)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def problems(checks: object) -> set[str]:
    assert isinstance(checks, dict)
    return {name for name, problem in checks.items() if problem}


def test_is_ready_when_each_check_is() -> None:
    health = Health(SETTINGS, Clock())
    assert problems(health.ready()) == {"model", "group"}
    health.report("model", None)
    health.probed("redis", "not asked yet")
    health.report("group", None)
    assert problems(health.ready()) == {"redis"}
    health.probed("redis", None)
    assert not problems(health.ready())
    health.report("work", "waits: Redis is unavailable")
    assert health.ready()["work"] == "waits: Redis is unavailable"


def test_a_probe_without_an_answer_is_none() -> None:
    clock = Clock()
    health = Health(SETTINGS, clock)
    health.probed("triton", None)
    clock.now += 2.9
    assert health.ready()["triton"] is None
    clock.now += 0.2
    assert health.ready()["triton"] == "has not answered for 3 s"


def test_is_alive_while_the_loop_comes_round_and_a_batch_ends() -> None:
    clock = Clock()
    health = Health(SETTINGS, clock)
    health.begin()
    for _ in range(11):
        clock.now += 55
        health.beat()
    assert health.alive() == {"loop": None, "batch": "has been in flight for 605 s"}
    health.progress()  # a slice of a message with many alerts is done
    assert not problems(health.alive())
    health.end()
    health.progress()  # of what was abandoned: no batch is in flight by that
    clock.now += 601
    health.beat()
    assert not problems(health.alive())
    clock.now += 61
    assert problems(health.alive()) == {"loop"}
    assert "loop" in problems(health.ready())


@pytest.mark.parametrize(
    ("lag", "grows"),
    [
        (lambda t: 10_000, False),
        (lambda t: 10_000 + 20 * t, True),
        (lambda t: 10_000 - 20 * t, False),
        (lambda t: t, False),  # below the floor
        # LSST's bursts: 10,000 alerts every 40 s, worked off in 30.
        (lambda t: max(0.0, 10_000 - (t % 40) * 333), False),
        (lambda t: max(0.0, 10_000 - (t % 40) * 333) + 30 * t, True),
    ],
)
def test_lag_that_grows(lag: object, grows: bool) -> None:
    assert callable(lag)
    clock = Clock()
    trend = LagTrend(300.0, 2000, clock)
    for second in range(1000):
        clock.now = 1000.0 + second
        trend.add(int(lag(second)))
        if second < 250:
            assert trend.problem() is None
    assert (trend.problem() is not None) == grows
    trend.clear()
    assert trend.problem() is None


def test_the_device() -> None:
    assert wrong_device("any", None) is None
    assert wrong_device("gpu", "gpu") is None
    assert wrong_device("gpu", "cpu") == "the model runs on cpu, inference.device asks for gpu"
    assert "cannot be known" in str(wrong_device("cpu", None))


def get(port: int, path: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def test_answers_over_http() -> None:
    health = Health(SETTINGS)
    with (
        HealthServer(health, SETTINGS.address, SETTINGS.port) as server,
        # Somebody who connects and is silent holds up nobody.
        socket.create_connection(("127.0.0.1", server.port)),
    ):
        status, body = get(server.port, "/healthz")
        assert (status, json.loads(body)) == (200, {"alive": True, "checks": {"loop": "ok", "batch": "ok"}})
        status, body = get(server.port, "/readyz")
        assert status == 503
        answer = json.loads(body)
        assert not answer["ready"]
        assert answer["checks"]["model"] == "not loaded yet"
        health.report("model", None)
        health.report("group", None)
        assert get(server.port, "/readyz")[0] == 200
        metrics = get(server.port, "/metrics")[1].decode()
        assert "trifid_ready 1.0" in metrics
        assert 'trifid_check_failed{check="model"} 0.0' in metrics
        assert get(server.port, "/etc/passwd")[0] == 404


def test_probes_report_what_they_find_and_what_they_raise() -> None:
    health = Health(SETTINGS)
    asked = threading.Event()

    def away() -> str | None:
        raise OSError("no route")

    def there() -> str | None:
        asked.set()
        return None

    with Probes(health, 0.01, {"away": away, "there": there}):
        assert asked.wait(300)
        wait_until(lambda: health.ready()["away"] == "no route" and health.ready()["there"] is None)
        assert problems(health.ready()) == {"model", "group", "away"}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[HealthServer]:
    monkeypatch.setattr(broker.streaming.health, "_REQUEST_S", 1.0)
    with HealthServer(Health(SETTINGS), SETTINGS.address, SETTINGS.port) as started:
        yield started


def connect(server: HealthServer) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", server.port))
    connection.settimeout(120)
    return connection


def answer(server: HealthServer, request: bytes) -> bytes:
    """What comes until the connection ends."""
    with connect(server) as connection:
        connection.sendall(request)
        found = b""
        with suppress(ConnectionResetError):  # the rest of the request was not read
            while part := connection.recv(65536):
                found += part
        return found


def test_a_request_has_a_total_time(server: HealthServer, capfd: pytest.CaptureFixture[str]) -> None:
    """However often the client sends something, or nothing at all."""
    with connect(server) as dripping, connect(server) as idle, Stopwatch() as watch:
        dripping.sendall(b"GET /healthz HTTP/1.1\r\nX: ")
        with suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(300):
                dripping.sendall(b"a")
                time.sleep(0.1)
        assert idle.recv(100) == b""
    assert watch.elapsed > 1.0
    assert watch.seconds < 15
    assert get(server.port, "/healthz")[0] == 200
    assert capfd.readouterr().err == ""


def test_connections_that_are_held_keep_no_probe_out(server: HealthServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker.streaming.health, "_REQUEST_S", 3600.0)
    with ExitStack() as stack:
        held = [stack.enter_context(connect(server)) for _ in range(200)]
        for connection in held:
            connection.sendall(b"GET /readyz HT")
        for _ in range(5):
            assert get(server.port, "/healthz")[0] == 200
        # The oldest had to go.
        assert held[0].recv(100) == b""
        assert sum(t.name.startswith("Thread-") for t in threading.enumerate()) <= 40


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /healthz HTTP/1.1\r\nX: " + b"a" * 20_000 + b"\r\n\r\n", b"431"),
        (b"GET /healthz HTTP/1.1\r\n" + b"X: a\r\n" * 200 + b"\r\n", b"431"),
        (b"GET /metrics HTTP/1.1\r\nAccept: application/openmetrics-text;version=\xff\r\n\r\n", b"200"),
        (b"GET /metrics HTTP/1.1\r\nAccept: application/openmetrics-text;version=1.0.0\r\n\r\n", b"200"),
        (b"GET /metrics HTTP/1.1\r\nAccept: application/openmetrics-text;version=1.\x01\r\n\r\n", b"200"),
        (b"GET /metrics HTTP/1.1\r\nAccept: application/openmetrics-text;version=x\r\n\r\n", b"200"),
        (b"GET /metrics HTTP/1.1\r\nAccept: text/plain;version=\xe2\x98\x83\r\n\r\n", b"200"),
        (b"GET /metrics HTTP/1.1\r\nAccept: text/plain;version=1.x.0;escaping=\xff\r\n\r\n", b"200"),
        (b"GET /metrics HTTP/1.1\r\nAccept-Encoding: \xff\r\n\r\n", b"200"),
        (b"GET /metrics?name[]=%ff\xff HTTP/1.1\r\n\r\n", b"200"),
        (b"GET /\xff%ff\x1b HTTP/1.1\r\n\r\n", b"404"),
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 9\r\n\r\n", b"405"),
        (b"nonsense nonsense nonsense\r\n\r\n", b"400"),
    ],
)
def test_strange_requests_have_an_answer(
    server: HealthServer, request_: bytes, status: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    found = answer(server, request_)
    if found:  # of a request that was not read to its end, the answer may be lost
        assert status in found[:500]
    else:
        assert status == b"431"
    assert capfd.readouterr().err == ""


def test_metrics_are_those_asked_for(server: HealthServer) -> None:
    request = b"GET /metrics HTTP/1.1\r\nAccept: application/openmetrics-text;version=1.0.0\r\n\r\n"
    found = answer(server, request)
    assert b"application/openmetrics-text; version=1.0.0" in found
    assert found.endswith(b"# EOF\n")
