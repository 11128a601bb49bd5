"""Each field of an annotation has the value of its own source: no two of them are alike here."""

from __future__ import annotations

import io
import json
from dataclasses import fields, replace
from datetime import UTC, datetime

import fastavro
import numpy as np
import pytest

from broker import __version__
from broker.anomaly.scores import AnomalyScores
from broker.assemble import assemble
from broker.batch import DeadLetter, IncomingMessage, Origin
from broker.errors import DecodeError
from broker.inference import Predictions
from broker.publish.annotate import annotate, not_classified
from broker.publish.annotation import published_record, read, to_json, to_record
from broker.publish.topics import OutputTopics
from broker.records import (
    Alert,
    Annotation,
    KnownObject,
    LightCurve,
    Neighbour,
    ObjectState,
    SourceMetadata,
    TimeSystem,
)
from broker.taxonomy import CLASS_INDEX, CLASS_NAMES
from broker.times import mjd_of
from tests.unit.publish.test_annotate import manifest
from tests.unit.publish.test_messages import ANNOTATION, publish

NEIGHBOURS = (Neighbour("asas:7", "EW", 0.125), Neighbour("asas:8", "EA", 0.1875))
KNOWN = KnownObject("vsx", "AB Xyz", "EA", 2.5, 0.75, "EA")


def light_curve(points: int) -> LightCurve:
    rng = np.random.default_rng(points)
    return LightCurve(
        np.sort(rng.uniform(59_000, 59_200, points)), rng.normal(1e5, 1e4, points).astype(np.float32),
        np.full(points, 1e3, np.float32), np.zeros(points, np.float32), np.zeros(points, np.uint8),
        np.zeros(points, np.uint8),
    )  # fmt: skip


def alert(number: int, points: int, **changes: object) -> Alert:
    curve = light_curve(points)
    plain = Alert(
        survey="ztf", alert_id=100 + number, source_id=200 + number, object_id=f"ZTF18{number}", ra=10.5 + number,
        dec=-20.25 - number, mjd=59_300.125 + number, band="ztf:g", light_curve=curve, schema_version="4.02",
        real_bogus=0.75, star_score=0.625, survey_detections=43, first_detected=58_000.0,
    )  # fmt: skip
    return replace(plain, **changes)  # type: ignore[arg-type]


def state(of: Alert, **changes: object) -> ObjectState:
    return replace(ObjectState(of.object_id, of.ra, of.dec, of.light_curve), **changes)  # type: ignore[arg-type]


@pytest.fixture
def annotations() -> list[Annotation]:
    """Of a star with a score, one whose stratum has none, one of few points, and one of which nothing is known."""
    alerts = [alert(1, 30), alert(2, 12, survey="lsst", real_bogus=None), alert(3, 4), alert(4, 2, star_score=None)]
    colors = SourceMetadata(np.full(34, np.nan, np.float32))
    colors.values[7] = 0.5  # BP - RP
    states = [
        state(
            alerts[0], associated=("lsst:17",), remembered=6, history_start=58_100.5, known_as=(KNOWN,), metadata=colors
        ),
        state(alerts[1], remembered=0, history_start=58_200.5, time_system=TimeSystem.HELIOCENTRIC),
        state(alerts[2], remembered=None, metadata=colors),
        state(alerts[3], remembered=0),
    ]
    probabilities = np.zeros((4, 10), np.float32)
    probabilities[0, [CLASS_INDEX["EA"], CLASS_INDEX["EB"], CLASS_INDEX["M"]]] = 0.5, 0.3125, 0.1875
    probabilities[1, [CLASS_INDEX["RRAB"], CLASS_INDEX["RRC"]]] = 0.75, 0.25
    probabilities[2, CLASS_INDEX["SR"]] = 1.0
    inputs = assemble(states)
    inputs.light_curve.period[:] = np.nan
    nan = np.nan
    return annotate(
        alerts,
        [61_000.25, 61_000.5, 61_000.75, 61_001.0],
        inputs,
        states,
        Predictions(probabilities, np.zeros((4, 512), np.float32), np.array([0.25, nan, 0.125, nan], np.float32)),
        AnomalyScores(
            "set 9",
            np.array([0.40625, 0.5, 0.5625, nan], np.float32),
            np.array([0.96875, 0.25, 0.375, nan], np.float32),
            [NEIGHBOURS, (), NEIGHBOURS[:1], ()],
            [None, "nothing of light_curve", None, "no modality is present"],
        ),
        manifest(classifier_name="trifid", model_version="2026.12"),
        0.5,
        0.9,
    )


def test_a_score_is_the_percentile_and_a_distance_the_distance(annotations: list[Annotation]) -> None:
    first, second, third, fourth = annotations
    assert (first.anomaly_score, first.anomaly_distance, first.anomaly_reason) == (0.96875, 0.40625, None)
    assert (second.anomaly_score, second.anomaly_distance) == (None, None)
    assert second.anomaly_reason == "nothing of light_curve"
    assert (third.anomaly_score, third.anomaly_distance, third.anomaly_reason) == (0.375, 0.5625, None)
    assert (fourth.anomaly_score, fourth.anomaly_distance, fourth.anomaly_reason) == (None, None, None)
    assert [a.neighbours for a in annotations] == [NEIGHBOURS, (), NEIGHBOURS[:1], ()]
    assert [a.reference_set_version for a in annotations] == ["set 9", "set 9", "set 9", None]
    assert [name.split(".")[-1] for name in OutputTopics("trifid", 0.9).of(first)] == [
        "all",
        "ea",
        "eclipsing",
        "anomaly",
    ]
    assert "trifid.ztf.anomaly" not in OutputTopics("trifid", 0.97).of(first)
    assert "trifid.ztf.anomaly" in OutputTopics("trifid", 0.96875).of(first)


def test_what_identifies_the_alert_is_its_own(annotations: list[Annotation]) -> None:
    assert [a.survey for a in annotations] == ["ztf", "lsst", "ztf", "ztf"]
    assert [a.alert_id for a in annotations] == [101, 102, 103, 104]
    assert [a.source_id for a in annotations] == [201, 202, 203, 204]
    assert [a.object_id for a in annotations] == ["ZTF181", "ZTF182", "ZTF183", "ZTF184"]
    assert [a.ra for a in annotations] == [11.5, 12.5, 13.5, 14.5]
    assert [a.dec for a in annotations] == [-21.25, -22.25, -23.25, -24.25]
    assert [a.mjd for a in annotations] == [59_301.125, 59_302.125, 59_303.125, 59_304.125]
    assert [a.ingest_mjd for a in annotations] == [61_000.25, 61_000.5, 61_000.75, 61_001.0]
    assert [a.real_bogus for a in annotations] == [0.75, None, 0.75, 0.75]
    assert [a.star_score for a in annotations] == [0.625, 0.625, 0.625, None]
    assert {a.classifier_name for a in annotations} == {"trifid"}
    assert {a.model_version for a in annotations} == {"trifid 2026.12"}


def test_what_is_known_of_the_object_is_its_own(annotations: list[Annotation]) -> None:
    first, second, _third, _fourth = annotations
    assert [a.detections for a in annotations] == [30, 12, 4, 2]
    assert [a.modalities for a in annotations] == [("light_curve", "metadata"), ("light_curve",), ("metadata",), ()]
    assert (first.associated, second.associated) == (("lsst:17",), ())
    assert [a.remembered_points for a in annotations] == [6, 0, None, 0]
    assert [a.history_start for a in annotations] == [58_100.5, 58_200.5, None, None]
    assert [a.survey_detections for a in annotations] == [43] * 4
    assert [a.history for a in annotations] == ["remembered", "missing", "", "missing"]
    assert [a.time_system for a in annotations] == ["MJD UTC", "HMJD", "MJD UTC", "MJD UTC"]
    assert first.known_as == (KNOWN,)


def test_what_the_model_says_is_of_its_own_row(annotations: list[Annotation]) -> None:
    first, second, third, fourth = annotations
    assert first.probabilities == tuple({"EA": 0.5, "EB": 0.3125, "M": 0.1875}.get(name, 0.0) for name in CLASS_NAMES)
    assert (first.parents["Eclipsing"], first.parents["LongPeriod"]) == (0.8125, 0.1875)
    assert first.prediction_set == ("EA", "EB")
    assert second.prediction_set == ("RRAB", "RRC")
    assert [a.best_class for a in annotations] == ["EA", "RRAB", "SR", "NotClassified"]
    assert [a.p_other for a in annotations] == [0.25, None, 0.125, None]
    assert fourth.probabilities == (1.0,)
    assert fourth.parents == {}
    assert third.reason is None
    assert fourth.reason == (
        "2 usable photometric points of at least 5 needed, no spectrum, no colour, too few catalogue values"
    )


def test_what_the_model_cannot_be_asked_of_is_not_classified() -> None:
    of = alert(1, 6, survey="lsst", solar_system=True)
    known = state(
        of, associated=("ztf:ZTF18a",), remembered=3, history_start=58_100.5, time_system=TimeSystem.BARYCENTRIC
    )
    said = not_classified(of, known, 61_000.25, "no reason at all")
    assert (said.class_names, said.probabilities, said.best_class) == (("NotClassified",), (1.0,), "NotClassified")
    assert (said.survey, said.alert_id, said.source_id, said.object_id) == ("lsst", 101, 201, "ZTF181")
    assert (said.ra, said.dec, said.mjd, said.ingest_mjd) == (11.5, -21.25, 59_301.125, 61_000.25)
    assert (said.real_bogus, said.solar_system, said.star_score, said.survey_detections) == (0.75, True, 0.625, 43)
    assert (said.associated, said.remembered_points, said.history_start) == (("ztf:ZTF18a",), 3, 58_100.5)
    assert (said.modalities, said.detections, said.period, said.time_system) == ((), 6, None, "BMJD")
    assert (said.reason, said.prediction_set, said.parents, said.anomaly_score) == ("no reason at all", (), {}, None)


@pytest.mark.parametrize(
    ("namespace", "foreign"),
    [("org.trifid.annotation.v1", None), ("another", "another.BrokerClassification"), ("", "BrokerClassification")],
)
def test_the_name_of_a_schema_is_that_with_its_namespace(namespace: str, foreign: str | None) -> None:
    """As Java's writers spell it, in two fields; fastavro's own have them in one."""
    schema = json.loads(fastavro.reader(io.BytesIO(publish(DISTINCT)[0].value)).metadata["avro.schema"])
    schema |= {"name": "BrokerClassification", "namespace": namespace}
    header, body = b"Obj\x01", io.BytesIO()
    fastavro.schemaless_writer(body, {"type": "map", "values": "string"}, {"avro.schema": json.dumps(schema)})
    empty = header + body.getvalue() + bytes(16)
    if foreign is None:
        assert read(empty, "trifid.lsst.all") == []
    else:
        with pytest.raises(DecodeError, match=f"its schema is {foreign}$"):
            read(empty, "trifid.lsst.all")


DISTINCT = Annotation(
    survey="lsst", alert_id=1, source_id=2, object_id="3", ra=4.5, dec=-5.5, mjd=60_006.5,
    class_names=("RRAB", "EW"), probabilities=(0.75, 0.25), modalities=("spectrum",), detections=7, period=8.5,
    prediction_set=("RRAB",), parents={"RRLyrae": 0.75, "Eclipsing": 0.25}, p_other=0.0625, anomaly_score=0.9375,
    anomaly_distance=0.4375, anomaly_reason="why not", neighbours=(Neighbour("asas:9", "EB", 0.1875),),
    reference_set_version="set 10", classifier_name="name 11", model_version="name 11 12", ingest_mjd=61_013.5,
    reason="reason 14", real_bogus=0.6875, solar_system=True, star_score=0.5625, associated=("ztf:15",),
    remembered_points=16, history_start=58_017.5, survey_detections=18, photometric_period=4.25,
    period_ambiguous=True, time_system="BMJD", history="missing", trigger="spectrum",
    known_as=(KnownObject("vsx", "AB Xyz", "RRC", 0.3125, 1.25, "RRC", "class"),), alert_publish_mjd=61_012.75,
    combined_anomaly=0.984375, anomaly_parts={"all.neighbours": 0.9921875}, anomaly_explanation="said so",
    anomaly_after_answers=0.96875, anomaly_answers=-21,
)  # fmt: skip
"""Of which no two fields have one value, and none its default."""


def test_each_field_of_a_message_is_named_as_the_schema_says() -> None:
    record = to_record(DISTINCT, "Broker", 61_019.5, "20.0", (3, 0), (2323, 2325), ["a", "b"])
    assert record == {
        "alertId": 1, "diaSourceId": 2, "objectId": "3", "brokerName": "Broker", "brokerVersion": "20.0",
        "brokerIngestTimestamp": datetime(2025, 12, 4, 12, tzinfo=UTC),
        "brokerPublishTimestamp": datetime(2025, 12, 10, 12, tzinfo=UTC),
        "classifierName": "name 11", "classifierParams": "name 11 12",
        "classifications": [
            {"classId": 3, "className": "RRAB", "probability": 0.75, "elasticcId": 2323},
            {"classId": 0, "className": "EW", "probability": 0.25, "elasticcId": 2325},
        ],
        "survey": "lsst", "ra": 4.5, "dec": -5.5, "mjd": 60_006.5, "modalities": ["spectrum"], "detections": 7,
        "period": 8.5, "predictionSet": ["RRAB"], "anomalyScore": 0.9375, "anomalyReason": "why not",
        "combinedAnomaly": 0.984375, "anomalyParts": {"all.neighbours": 0.9921875}, "anomalyExplanation": "said so",
        "anomalyAfterAnswers": 0.96875, "anomalyAnswers": -21,
        "anomalyDistance": 0.4375, "referenceSetVersion": "set 10",
        "neighbours": [{"objectId": "asas:9", "className": "EB", "distance": 0.1875}], "modelVersion": "name 11 12",
        "reason": "reason 14", "realBogus": 0.6875, "solarSystem": True, "starScore": 0.5625,
        "associatedObjects": ["ztf:15"], "trigger": "spectrum", "rememberedPoints": 16, "historyStart": 58_017.5,
        "surveyDetections": 18, "history": "missing", "timeSystem": "BMJD", "photometricPeriod": 4.25,
        "periodAmbiguous": True, "parents": {"RRLyrae": 0.75, "Eclipsing": 0.25}, "parent": "RRLyrae",
        "parentElasticcId": 2323, "answer": "RRAB", "pOther": 0.0625, "topics": ["a", "b"],
        "knownAs": [
            {"catalogue": "vsx", "name": "AB Xyz", "type": "RRC", "class": "RRC", "period": 0.3125, "distance": 1.25,
             "disagrees": "class"},
        ],
        "catalogueDisagrees": True, "alertPublishTimestamp": datetime(2025, 12, 3, 18, tzinfo=UTC),
    }  # fmt: skip


def test_a_subscriber_reads_every_field() -> None:
    (message, *_) = publish(DISTINCT)
    (again,) = read(message.value, message.topic)
    for name in (field.name for field in fields(Annotation)):
        assert getattr(again, name) == getattr(DISTINCT, name), name
    assert (again.class_ids, again.elasticc_ids) == ((3, 0), (2323, 2325))
    assert again.topics == ("trifid.lsst.all", "trifid.lsst.rrab", "trifid.lsst.rrlyrae", "trifid.lsst.anomaly")
    assert (again.topic, again.broker_name, again.broker_version) == ("trifid.lsst.all", "Trifid", __version__)
    assert published_record(again)["topics"] == list(again.topics)


def test_times_are_those_of_the_calendar() -> None:
    """MJD 51544.5 is noon of 2000 January 1, and MJD 0 is midnight of 1858 November 17."""
    assert mjd_of(datetime(2000, 1, 1, 12, tzinfo=UTC)) == 51_544.5
    assert mjd_of(datetime(1858, 11, 17, tzinfo=UTC)) == 0.0


def test_json_of_what_json_lacks() -> None:
    record = {"a": float("nan"), "b": [1.5, float("inf")], "c": {"d": float("-inf"), "e": "x"}, "alertId": 2**60 + 1}
    assert to_json(record) == (
        '{"a": null, "b": [1.5, null], "c": {"d": null, "e": "x"}, "alertId": 1152921504606846977, '
        '"alertIdStr": "1152921504606846977"}'
    )
    assert to_json({"t": datetime(2025, 1, 2, 3, 4, 5, 678_000, tzinfo=UTC)}) == '{"t": "2025-01-02T03:04:05.678Z"}'
    assert '"diaSourceIdStr": "1152921504606846977"' in to_json(to_record(ANNOTATION, "Trifid", 61_000.0))


def test_headers_of_a_dead_letter() -> None:
    """With what the message was, so that it can be sent back; a long text is told by its beginning and its end."""
    origin = Origin("alerts.ztf", 3, 17, 1_700_000_000_123)
    letter = DeadLetter(IncomingMessage(b"x" * 101, 61000.0, origin), "ztf", "why", 5, traceback="y" * 8001)
    (message,) = publish(letters=(letter,))
    assert (message.topic, message.value, message.key) == ("trifid.deadletter", b"x" * 100, None)
    assert dict(message.headers) == {
        "reason": b"why", "survey": b"ztf", "alert-id": b"5", "traceback": b"y" * 4000 + b" ... " + b"y" * 4000,
        "source-topic": b"alerts.ztf", "source-partition": b"3", "source-offset": b"17",
        "source-timestamp": b"1700000000123", "cut-from-bytes": b"101",
    }  # fmt: skip
    plain = DeadLetter(IncomingMessage(b"x" * 100, 61000.0), "unknown", "z" * 8000)
    (message,) = publish(letters=(plain,))
    assert dict(message.headers) == {"reason": b"z" * 8000, "survey": b"unknown"}
    assert message.value == b"x" * 100


def test_all_topics() -> None:
    topics = OutputTopics("p", 0.9, ("ztf", "lsst"))
    assert topics.dead_letter == "p.deadletter"
    assert topics.all_alerts() == ["p.ztf.all", "p.lsst.all"]
    assert len(topics.every()) == 2 * 19 + 1
    assert topics.every()[-1] == "p.deadletter"
    assert {"p.ztf.rrab", "p.lsst.eclipsing", "p.lsst.notclassified", "p.ztf.anomaly"} <= set(topics.every())
