"""The reference set in a real Redis: each model's own, and never another's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import redis
from click.testing import CliRunner

from broker.anomaly import stored
from broker.anomaly.calibration import COLUMNS, COMBINED, Calibration, calibration_path
from broker.build import reference_set_in_redis
from broker.cli import main
from broker.config import Settings
from broker.embedded.redis import RedisServer
from broker.errors import ConfigurationError
from broker.models.repository import REFERENCE_SET_FILE
from tests.random_models import build_random_repository

OLD, NEW = "trifid-random 0.0.0", "trifid-random 0.0.1"


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
def repositories(tmp_path: Path) -> tuple[Path, Path]:
    """Two versions of a model, each with its reference set."""
    return build_random_repository(tmp_path / "old"), build_random_repository(tmp_path / "new", seed=1)


def settings(server: RedisServer, repository: Path, **anomaly: Path) -> Settings:
    return Settings.model_validate(
        {"redis": {"url": server.url}, "inference": {"model_repository": repository}, "anomaly": anomaly}
    )


def test_a_new_model_has_its_own_set_beside_the_old_ones(server: RedisServer, repositories: tuple[Path, Path]) -> None:
    old, new = repositories
    assert reference_set_in_redis(settings(server, old)).model == OLD
    assert reference_set_in_redis(settings(server, new)).model == NEW
    # Workers of both versions start again: none has the other's set.
    for repository, model in ((old, OLD), (new, NEW)):
        reference = reference_set_in_redis(settings(server, repository))
        assert reference.model == model
        reference.check_model(model, 512)
    with redis.Redis.from_url(server.url) as client:
        assert set(client.keys()) == {stored.key_of(OLD).encode(), stored.key_of(NEW).encode()}
        assert 0 < client.ttl(stored.key_of(OLD)) <= 180 * 86_400


def test_a_set_that_a_worker_takes_is_kept_for_as_long_again(server: RedisServer) -> None:
    stored.put(server.url, "used 1", b"used")
    stored.put(server.url, "left 1", b"left")
    with redis.Redis.from_url(server.url) as client:
        for model in ("used 1", "left 1"):
            client.expire(stored.key_of(model), 1000)
        assert (stored.get(server.url, "used 1"), stored.get(server.url, "none 1")) == (b"used", None)
        assert 180 * 86_400 - 1000 < client.ttl(stored.key_of("used 1")) <= 180 * 86_400
        assert 0 < client.ttl(stored.key_of("left 1")) <= 1000


def test_the_set_of_an_earlier_release_in_redis_is_not_looked_at(
    server: RedisServer, repositories: tuple[Path, Path]
) -> None:
    with redis.Redis.from_url(server.url) as client:
        client.set("trifid:reference_set", b"what an earlier release put there")
        assert reference_set_in_redis(settings(server, repositories[0])).model == OLD
        assert client.get("trifid:reference_set") == b"what an earlier release put there"


def test_redis_is_enough_where_a_worker_has_the_manifest_alone(
    server: RedisServer, repositories: tuple[Path, Path]
) -> None:
    first = reference_set_in_redis(settings(server, repositories[0]))
    (repositories[0] / REFERENCE_SET_FILE).unlink()
    again = reference_set_in_redis(settings(server, repositories[0]))
    assert again.version == first.version
    np.testing.assert_array_equal(again.embeddings, first.embeddings)
    np.testing.assert_array_equal(again.object_ids, first.object_ids)


@pytest.mark.parametrize("contents", [b"nonsense", None])
def test_what_is_not_the_manifests_is_replaced_at_once(
    server: RedisServer, repositories: tuple[Path, Path], contents: bytes | None
) -> None:
    """Nonsense, or a good set of another model that somebody put in the place of this one's."""
    old, new = repositories
    stored.put(server.url, OLD, contents or (new / REFERENCE_SET_FILE).read_bytes())
    assert reference_set_in_redis(settings(server, old)).model == OLD
    assert stored.get(server.url, OLD) == (old / REFERENCE_SET_FILE).read_bytes()


def test_what_is_no_file_in_its_place_is_replaced(server: RedisServer, repositories: tuple[Path, Path]) -> None:
    old, _ = repositories
    with redis.Redis.from_url(server.url) as client:
        client.hset(stored.key_of(OLD), "field", "value")
    assert reference_set_in_redis(settings(server, old)).model == OLD
    assert stored.get(server.url, OLD) == (old / REFERENCE_SET_FILE).read_bytes()


def test_without_the_file_another_set_in_redis_is_refused(server: RedisServer, repositories: tuple[Path, Path]) -> None:
    old, new = repositories
    stored.put(server.url, OLD, (new / REFERENCE_SET_FILE).read_bytes())
    (old / REFERENCE_SET_FILE).unlink()
    with pytest.raises(ConfigurationError, match=r"Redis holds another reference set of trifid-random 0\.0\.0"):
        reference_set_in_redis(settings(server, old))


def test_a_file_that_is_not_the_manifests_is_refused(server: RedisServer, repositories: tuple[Path, Path]) -> None:
    old, new = repositories
    shutil.copy(new / REFERENCE_SET_FILE, old)
    with pytest.raises(ConfigurationError, match=r"reference_set\.npz is not the reference set that the manifest"):
        reference_set_in_redis(settings(server, old))
    assert stored.get(server.url, OLD) is None


def test_a_manifest_without_a_set_is_refused_with_what_to_do(
    server: RedisServer, repositories: tuple[Path, Path]
) -> None:
    path = repositories[0] / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["reference_set_sha256"]
    path.write_text(json.dumps(manifest))
    with pytest.raises(ConfigurationError, match="names no reference set: make one with"):
        reference_set_in_redis(settings(server, repositories[0]))


def test_an_operators_own_set_has_to_be_the_models(server: RedisServer, repositories: tuple[Path, Path]) -> None:
    old, new = repositories
    with pytest.raises(ConfigurationError, match=r"was made with the model trifid-random 0\.0\.1, the service runs"):
        reference_set_in_redis(settings(server, old, reference_set=new / REFERENCE_SET_FILE))
    assert stored.get(server.url, OLD) is None
    own = old.parent / "own.npz"
    shutil.copy(old / REFERENCE_SET_FILE, own)
    assert reference_set_in_redis(settings(server, old, reference_set=own)).model == OLD


def test_the_command_replaces_the_models_set_and_no_other(
    server: RedisServer, repositories: tuple[Path, Path], tmp_path: Path
) -> None:
    new = repositories[1]
    config = tmp_path / "trifid.toml"
    config.write_text(f'[redis]\nurl = "{server.url}"\n[inference]\nmodel_repository = "{new}"\n')
    stored.put(server.url, OLD, b"old")
    stored.put(server.url, NEW, b"new")
    result = CliRunner().invoke(main, ["reference", "load", "--config", str(config)], catch_exceptions=False)
    assert result.output == f"reference set 0.0.1 of {NEW}: 5040 embeddings\n"
    assert stored.get(server.url, OLD) == b"old"
    assert stored.get(server.url, NEW) == (new / REFERENCE_SET_FILE).read_bytes()
    shown = CliRunner().invoke(main, ["reference", "show", "--config", str(config)], catch_exceptions=False)
    lines = shown.output.splitlines()
    assert lines[0] == f"reference set 0.0.1 of {NEW}: 5040 embeddings"
    assert len(lines) == 42
    assert any(
        line.startswith("light_curve+metadata, 5 to 9 points, 9 known values or more: 60 embeddings, 120")
        for line in lines
    )


def test_the_calibration_of_combined_scores_goes_with_its_set_and_with_no_other(
    server: RedisServer, repositories: tuple[Path, Path]
) -> None:
    """A worker that has the manifest and the set alone finds it; one of another set is refused, not mixed."""
    old, new = repositories
    reference = reference_set_in_redis(settings(server, old))
    assert reference.scores is None
    columns = len(COLUMNS) + len(COMBINED)
    whitening = np.zeros((7, 4, reference.embeddings.shape[1]), np.float32)
    made = Calibration(OLD, reference.version, whitening, np.zeros(3, np.int32), np.ones((3, columns), np.float32))
    file = calibration_path(old / REFERENCE_SET_FILE)
    file.write_bytes(made.to_bytes())
    assert reference_set_in_redis(settings(server, old)).scores is not None
    file.write_bytes(replace(made, reference_version="of an image's earlier version").to_bytes())
    again = reference_set_in_redis(settings(server, old)).scores
    assert again is not None
    assert again.reference_version == reference.version
    file.unlink()
    again = reference_set_in_redis(settings(server, old)).scores
    assert again is not None
    assert (again.model, again.reference_version) == (OLD, reference.version)
    assert reference_set_in_redis(settings(server, new)).scores is None
    calibration_path(new / REFERENCE_SET_FILE).write_bytes(made.to_bytes())
    with pytest.raises(ConfigurationError, match="scores of two spaces have nothing in common"):
        reference_set_in_redis(settings(server, new))
