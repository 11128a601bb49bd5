"""What is left of a worker that ended with an error."""

from __future__ import annotations

import gc
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from broker.config import Settings
from broker.errors import ConfigurationError
from broker.streaming import supervisor
from broker.streaming.supervisor import supervise


class Client:
    """As Kafka's: its threads end when nobody holds it."""

    itself: Client


def test_no_client_of_kafka_lives_on_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    clients: list[weakref.ref[Client]] = []

    def connect() -> None:
        client = Client()
        clients.append(weakref.ref(client))
        raise KeyError("not allowed")

    @contextmanager
    def worker(*_: Any, **__: Any) -> Iterator[None]:
        another = Client()
        clients.append(weakref.ref(another))
        try:
            connect()
        except KeyError as error:
            raise ConfigurationError("Kafka does not allow it") from error
        yield

    monkeypatch.setattr(supervisor, "worker", worker)
    with pytest.raises(ConfigurationError, match="Kafka does not allow it"):
        supervise(Settings.model_validate({"metrics": {"port": 0}}))
    assert [client() for client in clients] == [None, None]


def test_what_a_ready_worker_holds_is_no_garbage_to_look_for_until_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    clients: list[weakref.ref[Client]] = []

    @contextmanager
    def worker(*_: Any, **__: Any) -> Iterator[None]:
        client = Client()
        client.itself = client
        clients.append(weakref.ref(client))
        end = time.monotonic() + 300
        while not gc.get_freeze_count() and time.monotonic() < end:
            time.sleep(0.01)
        assert gc.get_freeze_count()
        raise ConfigurationError("no such model")
        yield

    monkeypatch.setattr(supervisor, "worker", worker)
    monkeypatch.setattr(supervisor.Health, "ready", lambda _: {})
    with pytest.raises(ConfigurationError, match="no such model"):
        supervise(Settings.model_validate({"metrics": {"port": 0}}))
    assert clients[0]() is None
    assert gc.get_freeze_count() == 0
