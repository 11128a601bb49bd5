from __future__ import annotations

from pathlib import Path

import pytest

from broker.config import load_settings
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


def test_secrets_are_not_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIFID_REDIS__URL", "redis://user:hush@localhost:1/0")
    monkeypatch.setenv("TRIFID_KAFKA__SASL_PASSWORD", "hush")
    settings = load_settings()
    assert "hush" not in repr(settings)
    assert "hush" not in settings.model_dump_json()
    assert settings.kafka.client_options()["sasl.password"] == "hush"


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("TRIFID_KAFKA__OPTIONS", '{"sasl.password": "hush"}', "sasl.password is a secret"),
        ("TRIFID_KAFKA__SSL_CA_LOCATION", "/ca.pem", "security_protocol is not SSL"),
        ("TRIFID_KAFKA__SASL_USERNAME", "me", "security_protocol is not SASL"),
    ],
)
def test_settings_that_only_seem_to_protect_are_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, problem: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=problem) as caught:
        load_settings()
    assert "hush" not in str(caught.value)
