"""Fixtures of the fault suite. Its table of results is printed by tests/conftest.py."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

import pytest

from deploy.local.kafka_server import find_kafka_home
from deploy.local.triton_server import TritonServer, triton_installed
from tests.conftest import FAULT
from tests.faults.harness import Case, Kafka
from tests.faults.ledger import Row
from tests.random_models import MODEL_REPO

NewCase = Callable[..., Case]


@pytest.fixture(scope="session")
def full() -> bool:
    """Whether to run the long form of the suite (``make faults``)."""
    return os.environ.get("TRIFID_FAULTS") == "full"


@pytest.fixture(scope="session")
def kafka() -> Iterator[Kafka]:
    """A broker that the cases share; one that kills it starts it again."""
    if find_kafka_home() is None:
        pytest.skip("no Apache Kafka with Java here (set TRIFID_KAFKA_HOME)")
    with Kafka() as server:
        yield server


@pytest.fixture
def triton() -> Iterator[TritonServer]:
    if not triton_installed():
        pytest.skip("no Triton here: run `python -m deploy.local.triton_server setup`")
    with TritonServer(MODEL_REPO) as server:
        yield server


@pytest.fixture
def report(record_property: Callable[[str, object], None]) -> Callable[[Row], None]:
    """Takes a line of the table, which is printed at the end of the run."""
    return lambda row: record_property(FAULT, asdict(row))


@pytest.fixture
def new_case(kafka: Kafka, tmp_path: Path, report: Callable[[Row], None]) -> NewCase:
    """Makes a case on the shared broker, from its prefix and what else ``Case`` takes."""
    return partial(Case, kafka, tmp_path, report)
