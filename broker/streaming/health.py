"""Whether a process is alive and ready, and the small HTTP server that says so beside the metrics.

Alive (``/healthz``) is a worker that a restart would not fix: its loop comes round, whatever is unavailable. Ready
(``/readyz``) is one that does its work at present; the answer names each check and what is wrong.
"""

from __future__ import annotations

import io
import json
import logging
import re
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from http import HTTPStatus
from socketserver import ThreadingMixIn
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, cast
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import make_wsgi_app

from broker.config import MetricsSettings
from broker.metrics import CHECK_FAILED, READY

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

log = logging.getLogger(__name__)

Checks = Mapping[str, str | None]
"""What is wrong by check; None where nothing is."""
Probe = Callable[[], str | None]
"""Asks a dependency whether it is there: None, or what is wrong. Bounded in time; may raise."""

_SAMPLES: Final = 60
"""Of the lag, within its window."""
_GROWTH: Final = 1.1
"""How much larger the mean lag of the later half of the window is than that of the earlier, to count as growing."""
_OVERDUE: Final = 3
"""Rounds of probing without an answer that are taken for one."""
_REQUEST_S: Final = 5.0
"""A connection ends so long after it was accepted, whatever it has sent or taken: each is for one request."""
_MAX_CONNECTIONS: Final = 32
"""At once; one more ends the oldest, so that whoever holds connections does not keep a probe out."""
_MAX_HEADER_BYTES: Final = 16_384
_BACKLOG: Final = 128
_LOOK_S: Final = 0.25
_ANY_VERSION: Final = re.compile(r"version=([^;,]*)")
_VERSION: Final = re.compile(r"\d{1,4}\.\d{1,4}\.\d{1,4}")
"""What prometheus_client can compare with its own formats' versions; it quotes them in its answer."""
_JSON: Final = "application/json; charset=utf-8"


class LagTrend:
    """Whether the lag grows, over a window longer than the bursts in which alerts come."""

    def __init__(self, window_s: float, floor: int, clock: Callable[[], float] = time.monotonic) -> None:
        """A lag of up to ``floor`` alerts is no matter of concern."""
        self._window, self._floor, self._clock = window_s, floor, clock
        self._samples: deque[tuple[float, int]] = deque()

    def add(self, alerts: int) -> None:
        """Enter the lag of now; more often than needed does no harm."""
        now = self._clock()
        if self._samples and now - self._samples[-1][0] < self._window / _SAMPLES:
            return
        self._samples.append((now, alerts))
        while now - self._samples[0][0] > self._window:
            self._samples.popleft()

    def clear(self) -> None:
        """Begin anew: the partitions are others now."""
        self._samples.clear()

    def problem(self) -> str | None:
        """What is wrong, once a whole window was seen."""
        samples = list(self._samples)
        if len(samples) < _SAMPLES // 2 or samples[-1][0] - samples[0][0] < 0.9 * self._window:
            return None
        middle = len(samples) // 2
        earlier, later = (sum(lag for _, lag in half) / len(half) for half in (samples[:middle], samples[middle:]))
        if later <= max(self._floor, _GROWTH * earlier):
            return None
        return f"has grown from {earlier:.0f} to {later:.0f} alerts over {self._window:.0f} s"


class Readiness:
    """What probes and the parts of a process report of themselves. Safe to use from several threads."""

    def __init__(self, probe_interval_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """A probe that has not answered for three times its interval has found something wrong."""
        self._overdue, self._clock = _OVERDUE * probe_interval_s, clock
        self._lock = threading.Lock()
        self._checks: dict[str, str | None] = {}
        self._probed: dict[str, float] = {}
        self._notes: dict[str, str] = {}

    def report(self, check: str, problem: str | None) -> None:
        """Say how a check of readiness stands: None, or what is wrong."""
        with self._lock:
            self._checks[check] = problem

    def probed(self, dependency: str, problem: str | None) -> None:
        """Say what a probe found; it has to say so again and again."""
        with self._lock:
            self._checks[dependency] = problem
            self._probed[dependency] = self._clock()

    def note(self, name: str, text: str | None) -> None:
        """Have ``/readyz`` say something that is no fault yet; None takes it back."""
        with self._lock:
            self._notes.pop(name, None)
            if text is not None:
                self._notes[name] = text

    def notes(self) -> dict[str, str]:
        """What ``/readyz`` says beside its checks."""
        with self._lock:
            return dict(self._notes)

    def alive(self) -> Checks:
        """The checks of ``/healthz``: none, so that a process that answers is alive."""
        return {}

    def ready(self) -> Checks:
        """The checks of ``/readyz``."""
        with self._lock:
            now = self._clock()
            checks = dict(self._checks)
            for name, at in self._probed.items():
                if checks[name] is None and now - at > self._overdue:
                    checks[name] = f"has not answered for {now - at:.0f} s"
        return checks

    def update_metrics(self) -> None:
        """Put the answers into the metrics, where there are some of them."""


class Health(Readiness):
    """What the parts of a worker report of themselves."""

    def __init__(self, settings: MetricsSettings, clock: Callable[[], float] = time.monotonic) -> None:
        """Nothing is ready yet."""
        super().__init__(settings.probe_interval_s, clock)
        self._settings = settings
        self._beat = clock()
        self._batch_since: float | None = None
        self._checks |= {"model": "not loaded yet", "group": "not joined yet", "work": None}
        self._lag = LagTrend(settings.lag_window_s, settings.lag_floor, clock)

    def beat(self) -> None:
        """The worker's loop has come round."""
        self._beat = self._clock()

    def begin(self) -> None:
        """A batch, or another piece of work, is in flight."""
        self._batch_since = self._clock()

    def progress(self) -> None:
        """Part of the batch is done, such as some of the many alerts of one message."""
        if self._batch_since is not None:
            self._batch_since = self._clock()

    def end(self) -> None:
        """It no longer is."""
        self._batch_since = None

    def lag(self, alerts: int) -> None:
        """Enter the worker's lag of now."""
        with self._lock:
            self._lag.add(alerts)

    def rebalanced(self) -> None:
        """The worker's partitions have changed, and with them its lag."""
        with self._lock:
            self._lag.clear()

    def alive(self) -> Checks:
        """The checks of ``/healthz``."""
        now, since = self._clock(), self._batch_since
        silent, busy = now - self._beat, 0.0 if since is None else now - since
        settings = self._settings
        return {
            "loop": f"has not come round for {silent:.0f} s" if silent > settings.alive_limit_s else None,
            "batch": f"has been in flight for {busy:.0f} s" if busy > settings.batch_limit_s else None,
        }

    def ready(self) -> Checks:
        """The checks of ``/readyz``, those of ``/healthz`` among them."""
        checks = super().ready()
        with self._lock:
            lag = self._lag.problem()
        return {**checks, "lag": lag, **self.alive()}

    def update_metrics(self) -> None:
        """Put the answers into the metrics."""
        checks = self.ready()
        READY.set(not any(checks.values()))
        for name, problem in checks.items():
            CHECK_FAILED.labels(name).set(problem is not None)


class Probes:
    """Looks at each dependency again and again, each in a thread of its own, while the context lasts."""

    def __init__(self, health: Readiness, interval_s: float, probes: Mapping[str, Probe]) -> None:
        """A dependency counts as not looked at yet, and so as unavailable, until its first answer."""
        self._health, self._interval, self._probes = health, interval_s, probes
        self._stop = threading.Event()

    def __enter__(self) -> Self:
        for name, probe in self._probes.items():
            self._health.probed(name, "not asked yet")
            # A thread that hangs in a probe must not hold up the end of the process.
            threading.Thread(target=self._watch, args=(name, probe), name=f"probe-{name}", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()

    def _watch(self, name: str, probe: Probe) -> None:
        while not self._stop.is_set():
            try:
                problem = probe()
            except Exception as error:  # whatever a client raises, the answer is no
                problem = str(error) or type(error).__name__
            self._health.probed(name, problem)
            self._stop.wait(self._interval)


def wrong_device(wanted: str, found: str | None) -> str | None:
    """What is wrong where the model is asked to run on ``wanted`` and runs on ``found``; None: cannot be known."""
    if wanted == "any" or found == wanted:
        return None
    return f"the model runs on {found or 'a device that cannot be known'}, inference.device asks for {wanted}"


class HealthServer:
    """Serves ``/metrics``, ``/healthz`` and ``/readyz`` in a thread, while the context lasts."""

    def __init__(self, health: Readiness, address: str, port: int) -> None:
        """Listen at once; raises OSError where the port is taken."""
        self._health = health
        self._metrics = make_wsgi_app()
        kind = _Server6 if ":" in address else _Server
        self._server = make_server(address, port, self._answer, server_class=kind, handler_class=_Handler)
        self.port: int = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, args=(_LOOK_S,), name="metrics", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path == "/healthz":
            return _respond(start_response, "alive", self._health.alive())
        if path == "/readyz":
            return _respond(start_response, "ready", self._health.ready(), self._health.notes())
        if path == "/metrics":
            self._health.update_metrics()
            return cast("Iterable[bytes]", self._metrics(environ, start_response))
        start_response("404 Not Found", [("Content-Type", "text/plain")])
        return [b"/metrics, /healthz and /readyz are here\n"]


def answer(question: str, checks: Checks, notes: Mapping[str, str] | None = None) -> tuple[bool, bytes]:
    """Whether nothing is wrong, and the JSON that says what each check has found."""
    good = not any(checks.values())
    body: dict[str, Any] = {question: good, "checks": {name: problem or "ok" for name, problem in checks.items()}}
    if notes:
        body["notes"] = dict(notes)
    return good, json.dumps(body, indent=1).encode() + b"\n"


def _respond(
    start_response: StartResponse, question: str, checks: Checks, notes: Mapping[str, str] | None = None
) -> Iterable[bytes]:
    good, body = answer(question, checks, notes)
    start_response("200 OK" if good else "503 Service Unavailable", [("Content-Type", _JSON)])
    return [body]


class _Server(ThreadingMixIn, WSGIServer):
    """Bounded in connections, and in the time of each: the standard library bounds single reads only."""

    daemon_threads = True
    request_queue_size = _BACKLOG

    def __init__(self, *arguments: Any) -> None:
        self._lock = threading.Lock()
        self._open: dict[socket.socket, float] = {}
        """Connections by age, the oldest first, and when they were accepted, monotonic seconds."""
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._open[request] = time.monotonic()
            if len(self._open) > _MAX_CONNECTIONS:
                self._end(next(iter(self._open)))
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Called every _LOOK_S, and after each new connection."""
        oldest = time.monotonic() - _REQUEST_S
        with self._lock:
            for connection in [c for c, since in self._open.items() if since < oldest]:
                self._end(connection)

    def handle_error(self, request: Any, client_address: Any) -> None:
        # Clients that say nothing or go away are no errors of the service.
        log.debug("connection of %s ended", client_address, exc_info=True)

    def _end(self, connection: socket.socket) -> None:
        """Have the thread that serves a connection see its end, and close it."""
        del self._open[connection]
        with suppress(OSError):  # the client was faster
            connection.shutdown(socket.SHUT_RDWR)


class _Server6(_Server):
    address_family = socket.AF_INET6


class _HeaderLimit(io.RawIOBase):
    """What a client sends, up to _MAX_HEADER_BYTES: no request has a body."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection, self._left = connection, _MAX_HEADER_BYTES

    @property
    def exhausted(self) -> bool:
        """Whether the limit was reached."""
        return not self._left

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._connection.recv_into(buffer, min(len(buffer), self._left)) if self._left else 0
        self._left -= count
        return count


class _Handler(WSGIRequestHandler):
    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self._head = _HeaderLimit(self.connection)
        self.rfile = io.BufferedReader(self._head)

    def parse_request(self) -> bool:
        if not super().parse_request():
            return False
        if self._head.exhausted:
            self.send_error(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
            return False
        return True

    def get_environ(self) -> WSGIEnvironment:
        environ = super().get_environ()
        accept = environ.get("HTTP_ACCEPT", "")
        if not (
            accept.isascii() and accept.isprintable() and all(map(_VERSION.fullmatch, _ANY_VERSION.findall(accept)))
        ):
            del environ["HTTP_ACCEPT"]
        return environ

    def log_message(self, format: str, *args: Any) -> None:
        log.debug(format, *args)
