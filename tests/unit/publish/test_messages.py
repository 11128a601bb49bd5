from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import fastavro
import numpy as np
import pytest

from broker.batch import BatchResult, DeadLetter, IncomingMessage, Origin
from broker.errors import DecodeError
from broker.publish.annotation import SCHEMA, PublishedAnnotation, published_record, read, to_json, to_record
from broker.publish.headers import NUMBERS, TEXTS
from broker.publish.messages import OutgoingMessage, Publisher
from broker.publish.topics import OutputTopics
from broker.records import Annotation, KnownObject, Neighbour
from broker.taxonomy import CLASS_NAMES

ANNOTATION = Annotation(
    survey="ztf", alert_id=2**60 + 1, source_id=2**60 + 1, object_id="ZTF18abcdefg", ra=12.5, dec=-3.25, mjd=59000.25,
    class_names=CLASS_NAMES, probabilities=(0.0, 0.0, 0.0, 0.75, 0.25, 0.0, 0.0, 0.0, 0.0, 0.0),
    modalities=("light_curve", "metadata"), detections=42, period=0.55, prediction_set=("RRAB", "EB"),
    anomaly_score=0.5, anomaly_distance=0.25, neighbours=(Neighbour("asas:1", "RRAB", 0.125),),
    reference_set_version="r1", classifier_name="trifid", model_version="trifid 1", ingest_mjd=61000.5, real_bogus=0.5,
    star_score=0.75, associated=("lsst:123",), trigger="spectrum", remembered_points=30, history_start=58500.5,
    survey_detections=99, history="missing", time_system="HMJD", photometric_period=0.275, period_ambiguous=True,
    parents={"Eclipsing": 0.25, "RRLyrae": 0.75, "DeltaScuti": 0.0, "LongPeriod": 0.0, "Rotational": 0.0},
    p_other=0.125, known_as=(
        KnownObject("vsx", "V0001 Xyz", "EA/SD", 2.5, 0.25, "EA", "parent"), KnownObject("gcvs", None, "", None, 1.5),
    ),
)  # fmt: skip
NOT_CLASSIFIED = replace(
    ANNOTATION, class_names=("NotClassified",), probabilities=(1.0,), anomaly_score=None, anomaly_distance=None,
    neighbours=(), period=None, prediction_set=(), reference_set_version=None, reason="too few points", parents={},
    p_other=None,
)  # fmt: skip
OTHER = replace(
    ANNOTATION, class_names=(*CLASS_NAMES, "Other"), p_other=0.75, prediction_set=("Other", "RRAB", "EB"),
    probabilities=(*(0.25 * p for p in ANNOTATION.probabilities), 0.75),
    parents={name: 0.25 * p for name, p in ANNOTATION.parents.items()},
)  # fmt: skip
OLD_SCHEMA = json.loads((Path(__file__).resolve().parents[2] / "data" / "annotation" / "4a70615.avsc").read_text())
"""Of the release before parents, ``pOther`` and ``topics``."""
UNSCORED = replace(
    ANNOTATION, anomaly_score=None, anomaly_distance=None, neighbours=(), anomaly_reason="nothing of spectrum",
)  # fmt: skip


def publish(*annotations: Annotation, letters: tuple[DeadLetter, ...] = (), limit: int = 100) -> list[OutgoingMessage]:
    publisher = Publisher(OutputTopics("trifid", 0.9), "Trifid", limit)
    return list(publisher.messages(BatchResult(annotations=list(annotations), dead_letters=list(letters))))


def one(message: OutgoingMessage) -> PublishedAnnotation:
    (annotation,) = read(message.value, message.topic)
    return annotation


def test_topics_of_an_annotation() -> None:
    strange = replace(ANNOTATION, survey="lsst", anomaly_score=0.95)
    assert [m.topic for m in publish(ANNOTATION)] == ["trifid.ztf.all", "trifid.ztf.rrab", "trifid.ztf.rrlyrae"]
    assert [m.topic for m in publish(strange)] == [
        "trifid.lsst.all", "trifid.lsst.rrab", "trifid.lsst.rrlyrae", "trifid.lsst.anomaly",
    ]  # fmt: skip
    assert [m.topic for m in publish(OTHER)] == ["trifid.ztf.all", "trifid.ztf.other"]
    assert [m.topic for m in publish(NOT_CLASSIFIED)] == ["trifid.ztf.all", "trifid.ztf.notclassified"]
    assert [m.topic for m in publish(UNSCORED)] == ["trifid.ztf.all", "trifid.ztf.rrab", "trifid.ztf.rrlyrae"]
    assert {m.key for m in publish(ANNOTATION)} == {b"ZTF18abcdefg"}
    for message in publish(strange):
        assert one(message).topics == tuple(m.topic for m in publish(strange))
        assert message.topic in OutputTopics("trifid", 0.9).every()


@pytest.mark.parametrize("annotation", [ANNOTATION, NOT_CLASSIFIED, UNSCORED, OTHER])
def test_a_subscriber_reads_what_was_published(annotation: Annotation) -> None:
    again = one(publish(annotation)[0])
    for name in (
        "survey", "alert_id", "source_id", "object_id", "ra", "dec", "mjd", "class_names", "probabilities",
        "modalities",
        "detections", "period", "prediction_set", "anomaly_score", "anomaly_distance", "anomaly_reason", "neighbours",
        "reference_set_version", "classifier_name", "model_version", "reason", "real_bogus", "solar_system",
        "star_score", "associated", "trigger", "remembered_points", "history_start", "survey_detections", "history",
        "parents", "parent", "p_other", "answer", "best_class", "best_probability", "classified",
        "known_as", "catalogue_disagrees",
    ):  # fmt: skip
        assert getattr(again, name) == getattr(annotation, name), name
    assert again.ingest_mjd == pytest.approx(annotation.ingest_mjd, abs=2e-8)
    assert again.broker_name == "Trifid"
    assert again.topic == "trifid.ztf.all"


def test_json_has_the_fields_of_elasticc() -> None:
    record = json.loads(to_json(published_record(one(publish(ANNOTATION)[0]))))
    for name in ("alertId", "diaSourceId", "brokerName", "brokerVersion", "brokerIngestTimestamp", "classifierName"):
        assert name in record
    assert record["classifications"][3] == {
        "classId": 3, "className": "RRAB", "probability": 0.75, "elasticcId": 2323,
    }  # fmt: skip
    assert record["parents"] == ANNOTATION.parents
    assert (record["parent"], record["parentElasticcId"], record["answer"]) == ("RRLyrae", 2323, None)
    assert (record["pOther"], record["topics"]) == (0.125, ["trifid.ztf.all", "trifid.ztf.rrab", "trifid.ztf.rrlyrae"])
    assert record["brokerIngestTimestamp"].endswith("Z")
    assert record["catalogueDisagrees"] is True
    assert record["knownAs"] == [
        {"catalogue": "vsx", "name": "V0001 Xyz", "type": "EA/SD", "class": "EA", "period": 2.5, "distance": 0.25,
         "disagrees": "parent"},
        {"catalogue": "gcvs", "name": None, "type": "", "class": None, "period": None, "distance": 1.5,
         "disagrees": None},
    ]  # fmt: skip


def test_json_has_null_for_what_is_no_number() -> None:
    nan = float("nan")
    odd = replace(ANNOTATION, ra=nan, anomaly_score=float("inf"), neighbours=(Neighbour("asas:1", "RRAB", nan),))
    text = to_json(published_record(one(publish(odd)[0])))
    record = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert (record["ra"], record["anomalyScore"], record["neighbours"][0]["distance"]) == (None, None, None)


def test_json_has_ids_as_text_for_readers_that_have_doubles_only() -> None:
    """../shared/cases/16: in jq and browsers 170587115523932362 is 170587115523932350."""
    real = replace(ANNOTATION, alert_id=170587115523932362, source_id=170587115523932323)
    text = to_json(published_record(one(publish(real)[0])))
    in_a_browser = json.loads(text, parse_int=float)
    assert int(in_a_browser["alertId"]) != real.alert_id
    assert (in_a_browser["alertIdStr"], in_a_browser["diaSourceIdStr"]) == ("170587115523932362", "170587115523932323")
    exact = json.loads(text)
    assert (exact["alertId"], exact["diaSourceId"]) == (170587115523932362, 170587115523932323)


def test_headers_hold_what_filters_ask_for() -> None:
    third = replace(ANNOTATION, ra=1 / 3, dec=-2 / 3, anomaly_score=0.1 + 0.2, probabilities=(*[0.0] * 9, 1.0))
    for annotation in (ANNOTATION, third, NOT_CLASSIFIED, OTHER, UNSCORED):
        for message in publish(annotation):
            headers = dict(message.headers)
            again = one(message)
            for name in (*TEXTS, *NUMBERS):
                if (value := again[name]) is None:
                    assert name not in headers
                else:
                    assert type(value)(headers[name]) == value
            assert headers["known"] == ("true" if annotation.known_as else "false")
    doubles = replace(ANNOTATION, ra=np.float64(1 / 3), probabilities=tuple(np.full(10, 0.1)))
    assert dict(publish(doubles)[0].headers)["ra"] == "0.3333333333333333"


def test_a_field_by_its_documented_name() -> None:
    annotation = one(publish(ANNOTATION)[0])
    record = published_record(annotation)
    assert {name: annotation[name] for name in record} == record
    assert (annotation["objectId"], annotation["class"], annotation["probability"]) == ("ZTF18abcdefg", "RRAB", 0.75)
    assert (annotation["parentProbability"], annotation["known"]) == (0.75, True)
    with pytest.raises(KeyError, match="no field object_id; did you mean objectId"):
        annotation["object_id"]


def test_dead_letters_say_why_and_where_from() -> None:
    message = IncomingMessage(b"x" * 150, 61000.0, Origin("alerts.ztf", 2, 77, 1234))
    (letter,) = publish(letters=(DeadLetter(message, "unknown", "no alert"),))
    assert letter.topic == "trifid.deadletter"
    assert letter.value == b"x" * 100
    assert dict(letter.headers) == {
        "reason": b"no alert", "survey": b"unknown", "source-topic": b"alerts.ztf", "source-partition": b"2",
        "source-offset": b"77", "source-timestamp": b"1234", "cut-from-bytes": b"150",
    }  # fmt: skip


def test_dead_letters_of_a_bug_have_the_end_of_its_traceback() -> None:
    message = IncomingMessage(b"x", 61000.0)
    letters = (DeadLetter(message, "ztf", "KeyError: 'x'", 5, traceback="y" * 100_000 + "KeyError: 'x'"),)
    headers = dict(publish(letters=letters)[0].headers)
    assert len(headers["traceback"]) < 8100
    assert headers["traceback"].endswith(b"KeyError: 'x'")


@pytest.mark.parametrize("change", [lambda b: b[:-20], lambda b: b"nothing", lambda b: b""])
def test_bytes_that_are_no_annotation_are_refused(change: object) -> None:
    assert callable(change)
    with pytest.raises(DecodeError):
        read(change(publish(ANNOTATION)[0].value))


def test_a_message_of_an_earlier_release_is_read() -> None:
    """As release cb82431 wrote it, before ``history`` and its like."""
    old = json.loads(json.dumps(OLD_SCHEMA))
    new = {"rememberedPoints", "historyStart", "surveyDetections", "history"}
    old["fields"] = [field for field in old["fields"] if field["name"] not in new]
    out = io.BytesIO()
    record = to_record(ANNOTATION, "Trifid", 61000.6)
    fastavro.writer(out, fastavro.parse_schema(old), [record])
    (again,) = read(out.getvalue())
    assert (again.object_id, again.detections) == (ANNOTATION.object_id, ANNOTATION.detections)
    assert (again.remembered_points, again.history_start, again.survey_detections, again.history) == (
        None, None, None, "",
    )  # fmt: skip


@pytest.mark.parametrize("annotation", [ANNOTATION, NOT_CLASSIFIED])
def test_messages_of_the_release_before_parents_are_read(annotation: Annotation) -> None:
    out = io.BytesIO()
    fastavro.writer(out, fastavro.parse_schema(OLD_SCHEMA), [to_record(annotation, "Trifid", 61000.6)])
    (again,) = read(out.getvalue(), "trifid.ztf.all")
    assert again.probabilities == annotation.probabilities
    assert (again.best_class, again.prediction_set) == (annotation.best_class, annotation.prediction_set)
    assert (again.parents, again.parent, again.p_other, again.topics) == ({}, None, None, ())
    assert (again.known_as, again.catalogue_disagrees) == ((), False)
    assert again.elasticc_ids == (None,) * len(annotation.class_names)
    assert json.loads(to_json(published_record(again)))["parents"] == {}


@pytest.mark.parametrize("annotation", [ANNOTATION, NOT_CLASSIFIED, OTHER])
def test_subscribers_of_the_release_before_parents_read_messages_of_this_one(annotation: Annotation) -> None:
    value = publish(annotation)[0].value
    (record,) = fastavro.reader(io.BytesIO(value), reader_schema=fastavro.parse_schema(OLD_SCHEMA))
    assert isinstance(record, dict)
    assert set(record) == {field["name"] for field in OLD_SCHEMA["fields"]}
    assert [c["className"] for c in record["classifications"]] == list(annotation.class_names)
    assert sum(c["probability"] for c in record["classifications"]) == 1.0
    assert record["predictionSet"] == list(annotation.prediction_set)


def test_each_field_added_since_then_has_a_default() -> None:
    """Without one, messages of earlier releases cannot be read (Avro, "Schema Resolution")."""
    old = {field["name"] for field in OLD_SCHEMA["fields"]}
    added = [field for field in SCHEMA["fields"] if field["name"] not in old]
    assert {"parents", "parent", "parentElasticcId", "answer", "pOther", "topics", "knownAs"} <= {
        f["name"] for f in added
    }
    assert all("default" in field for field in added)
