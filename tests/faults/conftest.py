"""Fixtures of the fault suite, and its table of results."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

import pytest

from broker.embedded.kafka import find_kafka_home
from broker.embedded.triton import TritonServer, triton_installed
from tests.faults.harness import Case, Kafka, markdown
from tests.faults.ledger import Row
from tests.random_models import MODEL_REPO

ROWS = pytest.StashKey[list[Row]]()

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
        pytest.skip("no Triton here: run `python -m broker.embedded.triton setup`")
    with TritonServer(MODEL_REPO) as server:
        yield server


@pytest.fixture(scope="session")
def report(request: pytest.FixtureRequest) -> Callable[[Row], None]:
    """Takes a line of the table, which is printed at the end of the run."""
    return request.config.stash.setdefault(ROWS, []).append


@pytest.fixture
def new_case(kafka: Kafka, tmp_path: Path, report: Callable[[Row], None]) -> NewCase:
    """Makes a case on the shared broker, from its prefix and what else ``Case`` takes."""
    return partial(Case, kafka, tmp_path, report)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the table, and write it where TRIFID_FAULTS_REPORT says: Markdown, and JSON beside it."""
    rows = config.stash.get(ROWS, [])
    if not rows:
        return
    terminalreporter.section("faults")
    for row in rows:
        terminalreporter.write_line(str(row))
    if path := os.environ.get("TRIFID_FAULTS_REPORT"):
        table = Path(path)
        table.parent.mkdir(parents=True, exist_ok=True)
        table.write_text(markdown(rows))
        table.with_suffix(".json").write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
