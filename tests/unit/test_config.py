from __future__ import annotations

from pathlib import Path

import pytest

from broker.config import Settings, load_settings
from broker.errors import ConfigurationError


def test_the_environment_wins_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "trifid.toml"
    file.write_text('[kafka]\ngroup_id = "file"\nbootstrap_servers = "a:1"\n[pipeline]\nbatch_size = 7\n')
    monkeypatch.setenv("TRIFID_KAFKA__GROUP_ID", "environment")
    monkeypatch.setenv("TRIFID_KAFKA__INPUT_TOPICS", "one, two")
    settings = load_settings(file)
    assert settings.kafka.group_id == "environment"
    assert settings.kafka.bootstrap_servers == "a:1"
    assert settings.kafka.input_topics == ("one", "two")
    assert settings.pipeline.batch_size == 7


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('[kafka]\ngroup = "x"\n', "did you mean 'kafka.group_id'"),
        ("[pipeline]\nbatch_size = 0\n", r"pipeline\.batch_size"),
        ("[pipeline\n", "settings file"),
        ('[inference]\nengine = "tpu"\n', r"inference\.engine"),
    ],
)
def test_wrong_settings_say_what_is_wrong(tmp_path: Path, text: str, reason: str) -> None:
    file = tmp_path / "trifid.toml"
    file.write_text(text)
    with pytest.raises(ConfigurationError, match=reason):
        load_settings(file)


def test_who_names_a_file_that_is_gone_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIFID_CONFIG", "gone.toml")
    with pytest.raises(ConfigurationError, match=r"gone\.toml, which TRIFID_CONFIG names: No such file or directory$"):
        load_settings()


def test_secrets_are_not_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIFID_REDIS__URL", "redis://user:hush@localhost:1/0")
    monkeypatch.setenv("TRIFID_KAFKA__SASL_PASSWORD", "hush")
    monkeypatch.setenv("TRIFID_KAFKA__SECURITY_PROTOCOL", "SASL_SSL")
    settings = load_settings()
    assert "hush" not in repr(settings)
    assert "hush" not in settings.model_dump_json()
    assert settings.kafka.client_options()["sasl.password"] == "hush"


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("TRIFID_KAFKA__OPTIONS", '{"sasl.password": "hush"}', "sasl.password is a secret"),
        ("TRIFID_KAFKA__SSL_CA_LOCATION", "/ca.pem", "security_protocol is not SSL"),
        ("TRIFID_KAFKA__SSL_KEY_LOCATION", "/key.pem", "security_protocol is not SSL"),
        ("TRIFID_KAFKA__SSL_KEY_PASSWORD", "hush", "security_protocol is not SSL"),
        ("TRIFID_KAFKA__SASL_USERNAME", "me", "security_protocol is not SASL"),
        ("TRIFID_KAFKA__SASL_PASSWORD", "hush", "sasl_password given, but security_protocol is not SASL"),
        ("TRIFID_KAFKA__SASL_MECHANISM", "PLAIN", "security_protocol is not SASL"),
        ("TRIFID_SCHEMA_REGISTRY__URL", "https://me:hush@registry", "username and password as settings of their own"),
    ],
)
def test_settings_that_only_seem_to_protect_are_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, problem: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=problem) as caught:
        load_settings()
    assert "hush" not in str(caught.value)


def text_settings() -> list[str]:
    """Variables of all settings that take a text, a path, a secret or names."""
    found = ["TRIFID_SURVEYS"]
    for section, field in Settings.model_fields.items():
        for key, inner in getattr(type(field.default), "model_fields", {}).items():
            if key != "options" and any(kind in str(inner.annotation) for kind in ("str", "Path", "Secret", "tuple")):
                found.append(f"TRIFID_{section}__{key}".upper())
    return found


@pytest.mark.parametrize("name", text_settings())
@pytest.mark.parametrize("value", ["", " "])
def test_an_empty_text_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    if name == "TRIFID_KAFKA__SPECTRA_TOPIC" and not value:
        assert load_settings().kafka.spectra_topic == ""
        return
    setting = name.removeprefix("TRIFID_").lower().replace("__", ".")
    with pytest.raises(ConfigurationError, match=setting):
        load_settings()


def number_settings() -> list[str]:
    found = []
    for section, field in Settings.model_fields.items():
        for key, inner in getattr(type(field.default), "model_fields", {}).items():
            if inner.annotation in (int, float):
                found.append(f"{section}.{key}")
    assert len(found) > 30
    return found


@pytest.mark.parametrize("name", number_settings())
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e30", "-2"])
def test_numbers_that_cannot_be_meant_are_refused(tmp_path: Path, name: str, value: str) -> None:
    section, _, key = name.partition(".")
    file = tmp_path / "trifid.toml"
    file.write_text(f"[{section}]\n{key} = {value}\n")
    with pytest.raises(ConfigurationError, match=name):
        load_settings(file)


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("KAFKA__INPUT_TOPICS", "^.*", "takes kafka.spectra_topic, which holds no alerts"),
        ("KAFKA__INPUT_TOPICS", "alerts.ztf,^tri", "takes trifid.ztf.all, which the service writes itself"),
        ("KAFKA__INPUT_TOPICS", "^[a-z.]+[.]m$", "takes trifid.ztf.m,"),
        ("KAFKA__INPUT_TOPICS", "trifid.lsst.anomaly", "takes trifid.lsst.anomaly"),
        ("KAFKA__INPUT_TOPICS", "^.*letter$", "takes trifid.deadletter"),
        ("KAFKA__INPUT_TOPICS", "spectra", "takes kafka.spectra_topic"),
        ("KAFKA__INPUT_TOPICS", "^alerts(", "no regular expression"),
        ("KAFKA__INPUT_TOPICS", r"^alerts-v\d+$", "is not in the regular expressions of Kafka's clients"),
        ("KAFKA__INPUT_TOPICS", "^(?:alerts)", "is not in the regular expressions of Kafka's clients"),
        ("KAFKA__SPECTRA_TOPIC", "^spectra", "no regular expression can be the topic of spectra"),
        ("KAFKA__INPUT_TOPICS", "alerts ztf", "no name of a topic"),
        ("KAFKA__INPUT_TOPICS", "alerts.*", "no name of a topic"),
        ("KAFKA__INPUT_TOPICS", ",", "names nothing"),
        ("KAFKA__SPECTRA_TOPIC", "trifid.ztf.all", "the service writes trifid.ztf.all itself"),
        ("KAFKA__BOOTSTRAP_SERVERS", "kafka:9092,,other:9092", "no host:port"),
        ("KAFKA__BOOTSTRAP_SERVERS", "kafka:port", "no host:port"),
        ("KAFKA__REPLICATION_FACTOR", "0", "number of replicas"),
        ("TRITON__URL", "http://triton:8000", "no host:port of Triton's gRPC service"),
        ("SCHEMA_REGISTRY__URL", "registry:8081", "no http:// or https:// URL"),
        ("REDIS__URL", "redis://h?socket_timeout=abc", "after the '[?]', socket_timeout"),
        ("REDIS__URL", "redis://h?socket_timeout=nan", "socket_timeout"),
        ("REDIS__URL", "redis://h?socket_timeout=-1", "socket_timeout"),
        ("REDIS__URL", "redis://h?socket_timout=1", "socket_timout"),
        ("REDIS__URL", "redis://h?socket_timeout=", "socket_timeout"),
        ("REDIS__URL", "redis://h?db=two", "after the '[?]', db"),
        ("REDIS__URL", "redis://h/two", "no number of a database"),
        ("PIPELINE__MAX_BACKOFF_S", "0.1", "below first_backoff_s"),
        ("PIPELINE__DEAD_LETTER_MIN_ALERTS", "1001", "above dead_letter_window"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, problem: str
) -> None:
    monkeypatch.setenv(f"TRIFID_{name}", value)
    with pytest.raises(ConfigurationError, match=problem):
        load_settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("KAFKA__INPUT_TOPICS", "^lsst-alerts-v[0-9.]+$"),
        ("KAFKA__INPUT_TOPICS", r"^alerts\..*, mirror.trifid.ztf"),
        ("KAFKA__BOOTSTRAP_SERVERS", "kafka, SASL_SSL://b-1.kafka:9096,[::1]:9092"),
        ("REDIS__URL", "redis://h:1/2?socket_timeout=3.5&socket_connect_timeout=1&health_check_interval=30"),
        ("REDIS__URL", "unix:///run/redis.sock?db=1"),
        ("REDIS__URL", "rediss://h?ssl_cert_reqs=required"),
        ("SCHEMA_REGISTRY__URL", "https://usdf-alert-schemas-dev.slac.stanford.edu/x"),
        ("TRITON__URL", "[::1]:8001"),
    ],
)
def test_settings_that_can_be_meant_are_taken(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"TRIFID_{name}", value)
    assert load_settings()
