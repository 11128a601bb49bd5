"""Whether ``trifid web`` or ``trifid notify`` can do its work: which of database, Kafka and Redis does not answer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

import sqlalchemy as sa
from confluent_kafka.admin import AdminClient

from broker.config import Settings
from broker.metrics import of_another_service
from broker.postgres import answers_within
from broker.state import Store
from broker.streaming import clients
from broker.streaming.health import Checks, HealthServer, Probe, Probes, Readiness

log = logging.getLogger(__name__)


class ServiceReadiness(Readiness):
    """Of a process whose work goes on in part without some of its dependencies.

    These count until they have answered once, so that an upgrade with a wrong address does not replace what works. An
    outage later is only noted: it is the same for all processes, and would take all of them out of service.
    """

    def __init__(self, interval_s: float, needed: Collection[str], own: Callable[[], Checks] | None = None) -> None:
        """``needed`` are the dependencies that always count, ``own`` gives checks of the process itself."""
        super().__init__(interval_s)
        self._needed, self._own = frozenset(needed), own
        self._answered: set[str] = set()

    def probed(self, dependency: str, problem: str | None) -> None:
        """See ``Readiness.probed``; what changes is logged."""
        with self._lock:
            before = self._checks.get(dependency)
        if problem is not None and problem != before and before is not None:
            log.warning("%s: %s", dependency, problem)
        elif problem is None and before is not None and dependency in self._answered:
            log.info("%s: answers again", dependency)
        if problem is None:
            self._answered.add(dependency)
        super().probed(dependency, problem)

    def ready(self) -> Checks:
        """The checks of ``/readyz``."""
        counted = {name: p for name, p in super().ready().items() if p is None or not self._spared(name)}
        return counted if self._own is None else {**counted, **self._own()}

    def notes(self) -> dict[str, str]:
        """What ``/readyz`` says beside its checks: the outages that do not count."""
        return super().notes() | {name: p for name, p in super().ready().items() if p and self._spared(name)}

    def _spared(self, dependency: str) -> bool:
        return dependency in self._answered and dependency not in self._needed


@contextmanager
def watched(
    settings: Settings, engine: sa.Engine, store: Store | None = None, own: Callable[[], Checks] | None = None
) -> Iterator[ServiceReadiness]:
    """Readiness whose dependencies are asked every ``metrics.probe_interval_s`` meanwhile.

    With a ``store`` it is that of the page, which shows what is in the database without Kafka and Redis, too.
    """
    probes: dict[str, Probe] = {
        "database": lambda: _database(engine, settings.metrics.probe_interval_s),
        "kafka": clients.probe(settings.kafka, _about_cluster),
    }
    if store is not None:
        probes["redis"] = store.check
    readiness = ServiceReadiness(settings.metrics.probe_interval_s, probes if store is None else ["database"], own)
    with Probes(readiness, settings.metrics.probe_interval_s, probes):
        yield readiness


@contextmanager
def metrics_server(address: str, port: int, readiness: Readiness) -> Iterator[None]:
    """Serve metrics, ``/healthz`` and ``/readyz``, unless ``port`` is 0; raises OSError where it is taken.

    Meanwhile there are no metrics of a worker that would be wrong of another service, nor at ``/metrics`` of the page.
    """
    with of_another_service():
        if port:
            with HealthServer(readiness, address, port):
                yield
        else:
            yield


def _database(engine: sa.Engine, seconds: float) -> str | None:
    try:
        with answers_within(seconds), engine.connect() as connection:
            connection.execute(sa.text("SELECT 1"))
    except (sa.exc.DBAPIError, sa.exc.TimeoutError) as error:
        return str(getattr(error, "orig", error)).partition("\n")[0]
    return None


def _about_cluster(client: AdminClient) -> None:
    client.describe_cluster(request_timeout=clients.CALL_TIMEOUT).result()
