"""`trifid web` and runs over archives after a promotion: the first changes over, the second keep their version."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from broker.archives.partition import Job, _pipeline
from broker.build import local_pipeline
from broker.config import Settings
from broker.embedded.redis import RedisServer
from broker.models.build import build
from broker.models.repository import ModelRepository
from broker.web.app import application, parts_of
from broker.web.services import Services
from tests.integration.web_line import fill, publish, settings_for
from tests.random_models import build_random_repository

OLD, NEW = "0.0.0", "0.0.10"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Versions OLD, which is served, and NEW."""
    folder = tmp_path_factory.mktemp("models") / "repository"
    for seed in (0, 10):
        build(build_random_repository(tmp_path_factory.mktemp("run"), seed=seed), folder, "auto")
    return folder


@pytest.fixture
def settings(server: RedisServer, built: Path, tmp_path: Path) -> Settings:
    found = settings_for(server.url, tmp_path, requests_per_minute=100_000)
    folder = shutil.copytree(built, tmp_path / "repository")
    return found.model_copy(update={"inference": found.inference.model_copy(update={"model_repository": folder})})


@pytest.fixture
def parts(settings: Settings) -> Iterator[Services]:
    with parts_of(settings, fill(settings, publish(settings, objects=8, visits=12)), follow=False) as parts:
        yield parts


def curve() -> str:
    """A light curve as a table."""
    rows = [f"star,10.5,20.5,{60_000 + 1.7 * n},{17 + 0.3 * (n % 3)},0.02,g" for n in range(24)]
    return "\n".join(["name,ra,dec,mjd,mag,mag_err,band", *rows]) + "\n"


def post(http: TestClient, what: str, table: str) -> Any:
    answer = http.post(f"/api/v1/{what}/lightcurve", files={"file": ("star.csv", table)})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_the_next_request_after_a_promotion_has_the_promoted_version(settings: Settings, parts: Services) -> None:
    http, table = TestClient(application(parts), base_url="http://127.0.0.1:8080"), curve()
    repository = ModelRepository(settings.inference.model_repository)

    def version() -> str:
        (annotation,) = post(http, "classify", table)["annotations"]
        return str(annotation["modelVersion"])

    def alike() -> list[tuple[str, float]]:
        (answer,) = post(http, "similar", table)["answers"]
        return [(one["objectId"], one["similarity"]) for one in answer["objects"]]

    before = alike()
    assert version() == f"trifid-random {OLD}"
    assert len(before) > 1
    repository.serve(NEW, [OLD])
    assert version() == f"trifid-random {NEW}"
    assert alike() == []  # no worker has kept embeddings of that version yet; those of the other are not compared with
    publish(settings, objects=8, visits=12)
    after = alike()
    assert {name for name, _ in after} == {name for name, _ in before}
    assert dict(after) != dict(before)
    repository.serve(OLD, [])
    assert version() == f"trifid-random {OLD}"
    assert alike() == before


def test_a_promotion_between_the_model_and_the_search_mixes_nothing(
    settings: Settings, parts: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    http, table = TestClient(application(parts), base_url="http://127.0.0.1:8080"), curve()
    expected = post(http, "similar", table)
    vectors = parts.model.vectors

    def promoted_meanwhile(*given: Any) -> dict[str, Any]:
        found = vectors(*given)
        ModelRepository(settings.inference.model_repository).serve(NEW, [OLD])
        return found

    monkeypatch.setattr(parts.model, "vectors", promoted_meanwhile)
    assert post(http, "similar", table) == expected


def test_a_promoted_version_that_cannot_be_loaded_leaves_the_one_at_hand_in_use(
    settings: Settings, parts: Services, caplog: pytest.LogCaptureFixture
) -> None:
    http, table = TestClient(application(parts), base_url="http://127.0.0.1:8080"), curve()
    expected = post(http, "similar", table)
    repository = ModelRepository(settings.inference.model_repository)
    (repository.folder / repository.manifest(NEW).path_of("classifier")).write_bytes(b"no model")
    repository.serve(NEW, [OLD])
    for _ in range(2):
        (annotation,) = post(http, "classify", table)["annotations"]
        assert annotation["modelVersion"] == f"trifid-random {OLD}"
    assert caplog.text.count("0.0.10 was promoted and cannot be used, 0.0.0 goes on") == 1
    assert post(http, "similar", table) == expected


def test_following_can_be_turned_off(settings: Settings, server: RedisServer) -> None:
    still = settings.inference.model_copy(update={"follow_promotions": False})
    settings = settings.model_copy(update={"inference": still})
    with parts_of(settings, fill(settings, []), follow=False) as parts:
        http, table = TestClient(application(parts), base_url="http://127.0.0.1:8080"), curve()
        post(http, "classify", table)
        ModelRepository(settings.inference.model_repository).serve(NEW, [OLD])
        (annotation,) = post(http, "classify", table)["annotations"]
    assert annotation["modelVersion"] == f"trifid-random {OLD}"


def test_a_pipeline_of_a_version_has_its_reference_set_whatever_is_promoted(settings: Settings) -> None:
    """Of model and reference set each looked for the served version by itself."""
    ModelRepository(settings.inference.model_repository).serve(NEW, [OLD])
    pipeline = local_pipeline(settings, version=OLD)
    assert pipeline._engine.model_version == f"trifid-random {OLD}"
    assert pipeline._reference.version == OLD
    job = Job(settings.inference.model_repository / "results", settings, version=OLD)
    assert _pipeline(job)[0]._engine.model_version == f"trifid-random {OLD}"  # as a Dask worker that starts by now
