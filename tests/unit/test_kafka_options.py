"""What kafka.options may not override, however it is spelled."""

from __future__ import annotations

import json
import re

import pytest
from confluent_kafka import Consumer, KafkaException

from broker.config import KafkaSettings, load_settings
from broker.config.kafka_options import _SETTINGS, ALLOWED, refusal
from broker.errors import ConfigurationError


@pytest.mark.parametrize(
    ("name", "value", "setting"),
    [
        ("enable.auto.commit", True, "kafka.delivery"),
        ("auto.commit.enable", "true", "kafka.delivery"),
        ("enable.auto.offset.store", "false", "kafka.delivery"),
        ("isolation.level", "read_uncommitted", "kafka.delivery"),
        ("auto.offset.reset", "latest", "kafka.delivery"),
        ("enable.idempotence", "false", "kafka.delivery"),
        ("acks", 0, "kafka.delivery"),
        ("request.required.acks", 1, "kafka.delivery"),
        ("topic.acks", 0, "kafka.delivery"),
        ("{topic}.auto.offset.reset", "latest", "kafka.delivery"),
        ("topic.topic.request.required.acks", 0, "kafka.delivery"),
        ("Enable.Auto.Commit", True, "kafka.delivery"),
        (" enable.auto.commit ", True, "kafka.delivery"),
        ("max.in.flight", 100, "kafka.delivery"),
        ("group.id", "other", "kafka.group_id"),
        ("group.instance.id", "other", "kafka.worker_id"),
        ("transactional.id", "other", "kafka.worker_id"),
        ("partition.assignment.strategy", "range", "kafka.group_protocol"),
        ("group.protocol", "consumer", "kafka.group_protocol"),
        ("message.timeout.ms", 1, "kafka.transaction_timeout_s"),
        ("topic.metadata.refresh.interval.ms", -1, "kafka.metadata_refresh_s"),
        ("topic.blacklist", "alerts.*", "kafka.input_topics"),
        ("security.protocol", "PLAINTEXT", "kafka.security_protocol"),
        ("bootstrap.servers", "elsewhere:9092", "kafka.bootstrap_servers"),
        ("metadata.broker.list", "elsewhere:9092", "kafka.bootstrap_servers"),
    ],
)
def test_what_delivery_rests_on_is_refused_with_the_setting_to_use(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str | int | bool, setting: str
) -> None:
    monkeypatch.setenv("TRIFID_KAFKA__OPTIONS", json.dumps({name: value}))
    with pytest.raises(ConfigurationError, match=rf"{re.escape(name)} is what delivery.* use .*{setting}"):
        load_settings()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("default.topic.config", "none of the properties"),
        ("enabled_events", "none of the properties"),
        ("api.version.request", "none of the properties"),  # without it, fetches do not know isolation levels
        ("broker.version.fallback", "none of the properties"),
        ("test.mock.num.brokers", "none of the properties"),
        ("plugin.library.paths", "none of the properties"),
        ("on_commit", "none of the properties"),
        ("error_cb", "none of the properties"),
        ("stats_cb", "none of the properties"),
        ("share.acknowledgement.mode", "none of the properties"),
        ("fetch.min.byte", "did you mean fetch.min.bytes"),
        ("FETCH.MIN.BYTES", "write fetch.min.bytes"),
        ("ssl.keystore.password", "is a secret"),
        ("sasl.oauthbearer.assertion.private.key.passphrase", "is a secret"),
        ("sasl.oauthbearer.assertion.private.key.pem", "is a secret"),
        ("SASL.Password", "is a secret"),
        ("ssl_key", "is a secret"),
    ],
)
def test_whatever_nobody_thought_about_is_refused(name: str, told: str) -> None:
    assert told in str(refusal(name))
    with pytest.raises(ValueError, match=re.escape(name)):
        KafkaSettings(options={name: "x"})


def test_all_wrong_properties_are_named_at_once() -> None:
    with pytest.raises(ValueError, match=r"group\.id.*isolation\.level"):
        KafkaSettings(options={"group.id": "a", "isolation.level": "b", "linger.ms": 1})


def test_tuning_is_passed_on() -> None:
    settings = KafkaSettings(options={"fetch.min.bytes": 100_000, "socket.keepalive.enable": True})
    assert settings.client_options()["fetch.min.bytes"] == 100_000
    assert settings.client_options()["socket.keepalive.enable"] is True


def test_allowed_properties_are_librdkafkas_and_settings_named_instead_exist() -> None:
    def problem(name: str) -> str:
        try:
            Consumer({"group.id": "x", "log_level": 0, name: "\t"}).close()
        except KafkaException as error:  # what is no value of this property
            return str(error.args[0].str())
        return ""

    assert "No such configuration property" in problem("no.such.thing")
    assert [name for name in ALLOWED if "No such configuration property" in problem(name)] == []
    named = {setting for text in _SETTINGS for setting in re.findall(r"kafka\.(\w+)", text)}
    assert named <= set(KafkaSettings.model_fields)
    forbidden = [name for names in _SETTINGS.values() for name in names.split()]
    assert not ALLOWED & set(forbidden)
    assert len(forbidden) == len(set(forbidden))
