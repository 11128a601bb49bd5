from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from broker.batch import BatchResult
from broker.build import build_publisher
from broker.client import Subscription
from broker.config import PublishSettings, Settings
from broker.errors import ConfigurationError
from broker.publish.messages import OutgoingMessage, Publisher
from broker.publish.topics import OutputTopics
from broker.records import Annotation
from tests.elasticc_schema import read_classification
from tests.unit.publish.test_messages import ANNOTATION, NOT_CLASSIFIED, OTHER

TOPIC = "trifid.brokerclassification"
SENT = 60_310.5 + 0.123 / 86_400
"""2024 January 1, noon, and 123 ms, which is no multiple of a millisecond in floating point."""
SIMULATED = replace(
    ANNOTATION, survey="elasticc", alert_id=11, source_id=12, ingest_mjd=60_310.75, alert_publish_mjd=SENT,
    probabilities=(0.125, 0.0625, 0.0625, 0.25, 0.0625, 0.0625, 0.25, 0.0625, 0.03125, 0.03125),
)  # fmt: skip


def messages(*annotations: Annotation, surveys: tuple[str, ...] = ("elasticc",)) -> list[OutgoingMessage]:
    publisher = Publisher(OutputTopics("trifid", 0.9, elasticc_surveys=surveys), "Trifid", 100)
    found = publisher.messages(BatchResult(annotations=list(annotations)))
    return [message for message in found if message.topic == TOPIC]


def test_desc_reads_what_is_published() -> None:
    (message,) = messages(SIMULATED)
    record = read_classification(message.value)
    assert message.key == b"ZTF18abcdefg"
    version = record.pop("brokerVersion")
    assert version.count(".") == 2
    assert record == {
        "alertId": 11, "diaSourceId": 12,
        "elasticcPublishTimestamp": datetime(2024, 1, 1, 12, 0, 0, 123_000, UTC),
        "brokerIngestTimestamp": datetime(2024, 1, 1, 18, tzinfo=UTC),
        "brokerName": "Trifid", "classifierName": "trifid", "classifierParams": "trifid 1",
        # EW + EA + EB, SR + M, RRAB + RRC, ROT, HADS + DSCT: sums of negative powers of two, exact in single precision.
        "classifications": [
            {"classId": 2325, "probability": 0.25}, {"classId": 2326, "probability": 0.09375},
            {"classId": 2323, "probability": 0.5}, {"classId": 2321, "probability": 0.0625},
            {"classId": 2324, "probability": 0.09375},
        ],
    }  # fmt: skip


def test_what_is_none_of_the_classes_has_elasticcs_number() -> None:
    other, none = (replace(a, survey="elasticc", alert_publish_mjd=SENT) for a in (OTHER, NOT_CLASSIFIED))
    first, second = messages(other, none)
    assert read_classification(first.value)["classifications"] == [
        {"classId": 2325, "probability": 0.0625}, {"classId": 2326, "probability": 0.0},
        {"classId": 2323, "probability": 0.1875}, {"classId": 2321, "probability": 0.0},
        {"classId": 2324, "probability": 0.0}, {"classId": 100, "probability": 0.75},
    ]  # fmt: skip
    assert read_classification(second.value)["classifications"] == [{"classId": 300, "probability": 1.0}]


def test_only_alerts_of_the_surveys_that_were_asked_for() -> None:
    again = replace(SIMULATED, trigger="spectrum", alert_publish_mjd=None)
    assert messages(SIMULATED, surveys=()) == []
    assert messages(replace(SIMULATED, survey="ztf"), again) == []
    assert len(messages(replace(SIMULATED, survey="ztf"), surveys=("ztf", "elasticc"))) == 1
    assert TOPIC not in OutputTopics("trifid", 0.9).every()
    assert OutputTopics("trifid", 0.9, elasticc_surveys=("ztf",)).every()[-2:] == [TOPIC, "trifid.deadletter"]


def test_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIFID_PUBLISH__ELASTICC_SURVEYS", "elasticc,lsst")
    assert build_publisher(Settings()).topics.elasticc_surveys == ("elasticc", "lsst")
    with pytest.raises(ConfigurationError, match="elasticc_surveys: ztv is none of ztf, lsst, elasticc"):
        build_publisher(Settings.model_construct(publish=PublishSettings(elasticc_surveys=("ztv",))))
    monkeypatch.setenv("TRIFID_KAFKA__INPUT_TOPICS", "^trifid[.]b")
    with pytest.raises(ValueError, match=r"takes trifid[.]brokerclassification, which the service writes itself"):
        Settings()


def test_subscribers_are_told_that_the_topic_holds_no_annotations() -> None:
    with pytest.raises(ConfigurationError, match="ELAsTiCC's schema reads, no annotations"):
        Subscription(TOPIC, "localhost:1")
