"""What the settings say reaches what it is about: each with a value of its own that no default has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from broker import build
from broker.batch import IncomingMessage
from broker.config import InferenceSettings, KafkaSettings, Settings, TritonSettings, load_settings
from broker.errors import ConfigurationError, DependencyUnavailableError, InferenceError
from broker.inference import triton, triton_requests
from broker.inference.triton import TritonEngine
from broker.inference.triton_client import TritonTls
from broker.state.objects import Limits
from broker.surveys.simulator import simulate_alerts
from tests.random_models import build_random_repository

PEM = "-----BEGIN PRIVATE KEY-----\nMIIEvg\n-----END PRIVATE KEY-----"


def settings(**sections: dict[str, object]) -> Settings:
    return load_settings().model_copy(
        update={name: getattr(load_settings(), name).model_copy(update=values) for name, values in sections.items()}
    )


def test_what_the_store_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[Any, ...]] = []
    monkeypatch.setattr(build, "RedisStore", lambda *given, **named: told.append((given, named)))
    state = {"max_points": 7, "association_radius_arcsec": 0.75, "spectrum_radius_arcsec": 1.25, "expiry_days": 12.5}
    build.build_store(settings(state=state, redis={"wait_replicas": 2}))
    ((_, limits), named), = told  # fmt: skip
    assert limits == Limits(7, 0.75, 1.25)
    assert named == {"expiry_days": 12.5, "wait_replicas": 2, "read_only": False}


def test_days_after_which_trifid_state_forgets_are_seconds_of_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[Any, ...]] = []
    monkeypatch.setattr(build, "StateAdmin", lambda *given: told.append(given))
    build.build_state_admin(settings(state={"expiry_days": 2.5}))
    assert told[0][2] == 216_000


def test_what_triton_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told: list[tuple[Any, ...]] = []
    monkeypatch.setattr(triton, "TritonEngine", lambda *given, **named: told.append((given, named)))
    inference = InferenceSettings(engine="triton", model_repository=tmp_path)
    given = {"url": "triton:9", "timeout_s": 3.5, "retries": 5}
    build.build_engine(inference, TritonSettings.model_validate(given))
    auto = {
        "version": None, "one_request": True, "requests_in_flight": 2, "shared_memory": True, "by_modality": False,
    }  # fmt: skip
    assert told == [(("triton:9", tmp_path), {"timeout": 3.5, "retries": 5, "tls": None, **auto})]
    files = {"root_certificates": tmp_path / "a", "private_key": tmp_path / "b", "certificate_chain": tmp_path / "c"}
    build.build_engine(inference, TritonSettings.model_validate({**given, "tls": True, **files}))
    assert told[1][1]["tls"] == TritonTls(tmp_path / "a", tmp_path / "b", tmp_path / "c")
    build.build_engine(inference, TritonSettings.model_validate({**given, "one_request": "off"}))
    assert (told[2][1]["one_request"], told[2][1]["shared_memory"]) == (False, True)
    build.build_engine(inference, TritonSettings.model_validate({**given, "shared_memory": "off"}))
    assert (told[3][1]["one_request"], told[3][1]["shared_memory"]) == (True, False)
    build.build_engine(inference, TritonSettings.model_validate({**given, "requests_in_flight": 3}))
    assert told[4][1]["requests_in_flight"] == 3


class Triton:
    """A client whose requests fail as they are written."""

    def __init__(self, *statuses: str) -> None:
        self.statuses, self.calls = list(statuses), 0

    def async_infer(self, model: str, inputs: object, *, callback: Callable[..., None], **options: object) -> None:
        self.calls += 1
        assert options == {"model_version": "1", "client_timeout": 3.5, "timeout": 3_500_000}
        callback(None, InferenceServerException("said Triton", f"StatusCode.{self.statuses.pop(0)}"))

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("retries", "statuses", "calls", "error", "pauses"),
    [
        (2, ["UNAVAILABLE"] * 3, 3, DependencyUnavailableError, [0.1, 0.2]),
        (0, ["UNAVAILABLE"], 1, DependencyUnavailableError, []),
        (3, ["INTERNAL"] * 4, 4, InferenceError, [0.1, 0.2, 0.4]),
        (3, ["UNKNOWN", "INVALID_ARGUMENT"], 2, InferenceError, [0.1]),  # no use in asking that again
        (3, ["INVALID_ARGUMENT"], 1, InferenceError, []),
    ],
)
def test_a_request_is_tried_again_as_often_as_the_settings_say(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    retries: int,
    statuses: list[str],
    calls: int,
    error: type[Exception],
    pauses: list[float],
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(triton_requests, "jittered", lambda pause: pause)
    monkeypatch.setattr(triton_requests.time, "sleep", slept.append)
    repository = build_random_repository(tmp_path)
    engine = TritonEngine("127.0.0.1:1", repository, timeout=3.5, retries=retries, shared_memory=False)
    engine.close()
    client: Any = Triton(*statuses)
    engine._client = client
    with pytest.raises(error, match="said Triton"):
        engine._run_models({"classifier": 0}, {"classifier": {"present": np.ones((2, 3), np.bool_)}})
    assert client.calls == calls
    assert slept == pytest.approx(pauses)


@pytest.mark.parametrize(
    "name", ["ssl.key.pem", "ssl.key.location", "ssl_key", "ssl.key.password", "sasl.oauthbearer.config", "SSL.Key.Pem"]
)
def test_no_private_key_and_no_secret_may_be_among_the_options(name: str) -> None:
    """They would be printed: with the settings, and with librdkafka's own log of its configuration."""
    with pytest.raises(ValueError, match=r"is a secret|use kafka\.ssl_key_location") as caught:
        KafkaSettings.model_validate({"options": {name: PEM}})
    assert "MIIEvg" not in str(caught.value)


def test_a_private_key_in_the_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIFID_KAFKA__OPTIONS", '{"ssl.key.pem": "MIIEvg"}')
    with pytest.raises(ConfigurationError, match=r"ssl\.key\.pem is a secret") as caught:
        load_settings()
    assert "MIIEvg" not in str(caught.value)


def test_a_pipeline_without_servers_decodes_by_the_settings(tmp_path: Path) -> None:
    """It took the default surveys, limits and schemas, whatever the settings said."""
    (packet,) = simulate_alerts(1, 1, seed=4)
    repository = build_random_repository(tmp_path)
    for surveys, reason in (
        (("broker.surveys.lsst",), "are no alerts of a known survey"), (("broker.surveys.ztf",), None),
    ):  # fmt: skip
        given = {"surveys": surveys, "inference": {"model_repository": repository}}
        result = build.local_pipeline(Settings.model_validate(given)).process(
            [IncomingMessage(packet.payload, 61000.0)]
        )
        assert [letter.reason.endswith(reason or "") for letter in result.dead_letters] == ([True] if reason else [])
        assert len(result.annotations) == (0 if reason else 1)
