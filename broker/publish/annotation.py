"""Annotations to Avro and JSON, and back.

Each message is an Avro object container with its schema, as ZTF's alerts are, so that a subscriber needs no
registry. The container's header is the same each time and is made once.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib import resources
from typing import Any, Final

import fastavro

from broker import __version__
from broker.errors import DecodeError
from broker.records import Annotation, KnownObject, Neighbour
from broker.taxonomy import CLASS_INDEX, ELASTICC_ID, NOT_CLASSIFIED, OTHER
from broker.times import datetime_of, mjd_of

IDS: Final = ("alertId", "diaSourceId")
"""Fields that are integers of 64 bits; ids of objects are text already."""
_REASON: Final = 200
"""Characters of a reason."""
_CLASS_ID: Final = {**CLASS_INDEX, **{c.name: c.class_id for c in (NOT_CLASSIFIED, OTHER)}}

SCHEMA_TEXT: Final = resources.files(__package__).joinpath("annotation.avsc").read_text("utf-8")
"""The schema with its documentation."""
SCHEMA: Final[Any] = fastavro.parse_schema(json.loads(SCHEMA_TEXT))


@dataclass(frozen=True, slots=True)
class PublishedAnnotation(Annotation):
    """An annotation as a subscriber reads it."""

    topic: str = ""
    broker_name: str = ""
    broker_version: str = ""
    publish_mjd: float = 0.0
    """When the broker made the message, MJD UTC."""
    class_ids: tuple[int, ...] = ()
    """``classId`` of each of ``class_names``, some of which a newer release may have added."""
    elasticc_ids: tuple[int | None, ...] = ()
    """ELAsTiCC's number of each of ``class_names``; None in messages of earlier releases."""
    topics: tuple[str, ...] = ()
    """All topics that this annotation was published to; empty in messages of earlier releases."""


def to_record(
    annotation: Annotation,
    broker_name: str,
    publish_mjd: float,
    broker_version: str = __version__,
    class_ids: tuple[int, ...] = (),
    elasticc_ids: tuple[int | None, ...] = (),
    topics: Sequence[str] = (),
) -> dict[str, Any]:
    """The annotation in the fields of ``annotation.avsc``; timestamps are datetimes.

    ``class_ids`` and ``elasticc_ids`` are those of this release's taxonomy where not given.
    """
    elasticc_ids = elasticc_ids or tuple(ELASTICC_ID[name] for name in annotation.class_names)
    parent = annotation.parent
    class_ids = class_ids or tuple(_CLASS_ID[name] for name in annotation.class_names)
    return {
        "alertId": annotation.alert_id,
        "diaSourceId": annotation.source_id,
        "objectId": annotation.object_id,
        "brokerName": broker_name,
        "brokerVersion": broker_version,
        "brokerIngestTimestamp": datetime_of(annotation.ingest_mjd),
        "brokerPublishTimestamp": datetime_of(publish_mjd),
        "classifierName": annotation.classifier_name,
        "classifierParams": annotation.model_version,
        "classifications": [
            {"classId": class_id, "className": name, "probability": probability, "elasticcId": elasticc_id}
            for class_id, name, probability, elasticc_id in zip(
                class_ids, annotation.class_names, annotation.probabilities, elasticc_ids, strict=True
            )
        ],
        "survey": annotation.survey,
        "ra": annotation.ra,
        "dec": annotation.dec,
        "mjd": annotation.mjd,
        "modalities": list(annotation.modalities),
        "detections": annotation.detections,
        "period": annotation.period,
        "predictionSet": list(annotation.prediction_set),
        "anomalyScore": annotation.anomaly_score,
        "anomalyReason": annotation.anomaly_reason,
        "anomalyDistance": annotation.anomaly_distance,
        "referenceSetVersion": annotation.reference_set_version,
        "neighbours": [
            {"objectId": n.object_id, "className": n.class_name, "distance": n.distance} for n in annotation.neighbours
        ],
        "modelVersion": annotation.model_version,
        "reason": annotation.reason,
        "realBogus": annotation.real_bogus,
        "solarSystem": annotation.solar_system,
        "starScore": annotation.star_score,
        "associatedObjects": list(annotation.associated),
        "trigger": annotation.trigger,
        "rememberedPoints": annotation.remembered_points,
        "historyStart": annotation.history_start,
        "surveyDetections": annotation.survey_detections,
        "history": annotation.history,
        "timeSystem": str(annotation.time_system),
        "photometricPeriod": annotation.photometric_period,
        "periodAmbiguous": annotation.period_ambiguous,
        "parents": annotation.parents,
        "parent": parent,
        "parentElasticcId": ELASTICC_ID.get(parent) if parent is not None else None,
        "answer": annotation.answer,
        "pOther": annotation.p_other,
        "topics": list(topics),
        "knownAs": [
            {
                "catalogue": known.catalogue,
                "name": known.name,
                "type": known.type,
                "class": known.class_name,
                "period": known.period,
                "distance": known.distance,
                "disagrees": known.disagrees,
            }
            for known in annotation.known_as
        ],
        "catalogueDisagrees": annotation.catalogue_disagrees,
    }


def from_record(record: dict[str, Any], topic: str = "") -> PublishedAnnotation:
    """The inverse of ``to_record``."""
    return PublishedAnnotation(
        survey=record["survey"],
        alert_id=record["alertId"],
        source_id=record["diaSourceId"],
        object_id=record["objectId"],
        ra=record["ra"],
        dec=record["dec"],
        mjd=record["mjd"],
        class_names=tuple(c["className"] for c in record["classifications"]),
        probabilities=tuple(c["probability"] for c in record["classifications"]),
        modalities=tuple(record["modalities"]),
        detections=record["detections"],
        period=record["period"],
        prediction_set=tuple(record["predictionSet"]),
        anomaly_score=record["anomalyScore"],
        anomaly_reason=record["anomalyReason"],
        anomaly_distance=record["anomalyDistance"],
        neighbours=tuple(Neighbour(n["objectId"], n["className"], n["distance"]) for n in record["neighbours"]),
        reference_set_version=record["referenceSetVersion"],
        classifier_name=record["classifierName"],
        model_version=record["modelVersion"],
        ingest_mjd=mjd_of(record["brokerIngestTimestamp"]),
        reason=record["reason"],
        real_bogus=record["realBogus"],
        solar_system=record["solarSystem"],
        star_score=record["starScore"],
        associated=tuple(record["associatedObjects"]),
        trigger=record["trigger"],
        remembered_points=record["rememberedPoints"],
        history_start=record["historyStart"],
        survey_detections=record["surveyDetections"],
        history=record["history"],
        time_system=record["timeSystem"],
        photometric_period=record["photometricPeriod"],
        period_ambiguous=record["periodAmbiguous"],
        parents=dict(record["parents"]),
        p_other=record["pOther"],
        known_as=tuple(
            KnownObject(k["catalogue"], k["name"], k["type"], k["period"], k["distance"], k["class"], k["disagrees"])
            for k in record["knownAs"]
        ),
        topic=topic,
        broker_name=record["brokerName"],
        broker_version=record["brokerVersion"],
        publish_mjd=mjd_of(record["brokerPublishTimestamp"]),
        class_ids=tuple(c["classId"] for c in record["classifications"]),
        elasticc_ids=tuple(c["elasticcId"] for c in record["classifications"]),
        topics=tuple(record["topics"]),
    )


def published_record(annotation: PublishedAnnotation) -> dict[str, Any]:
    """The record that a subscriber's annotation was made from."""
    return to_record(
        annotation, annotation.broker_name, annotation.publish_mjd, annotation.broker_version, annotation.class_ids,
        annotation.elasticc_ids, annotation.topics,
    )  # fmt: skip


def to_json(record: dict[str, Any]) -> str:
    """A record on one line of JSON (RFC 8259): times in ISO 8601, null for NaN and infinity, which JSON lacks.

    Each of ``IDS`` is there a second time as text, with ``Str`` behind its name: most readers of JSON (browsers, jq,
    some data frames) make floating-point numbers of integers, and end ids over 2^53 in other digits.
    """
    plain = {}
    for name, value in record.items():
        plain[name] = _without_nan(value)
        if name in IDS:
            plain[f"{name}Str"] = str(value)
    return json.dumps(plain, default=_iso, allow_nan=False)


def _without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _without_nan(inner) for name, inner in value.items()}
    return [_without_nan(inner) for inner in value] if isinstance(value, list) else value


def _iso(time: datetime) -> str:
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def read(message: bytes, topic: str = "") -> list[PublishedAnnotation]:
    """Annotations of one message, by any version of the schema that this release can read.

    Raises DecodeError where the bytes are not such a message.
    """
    try:
        annotations = [from_record(record, topic) for record in read_records(message)]
    except (KeyError, TypeError) as error:
        raise DecodeError(f"not an annotation of Trifid: {error!r}") from error
    if not all(annotation.class_names for annotation in annotations):
        raise DecodeError("not an annotation of Trifid: it names no class")
    return annotations


def read_records(message: bytes) -> list[dict[str, Any]]:
    """The same as plain records, timestamps as datetimes."""
    if not message.startswith(b"Obj\x01"):
        raise DecodeError("not an annotation of Trifid: no Avro object container")
    try:
        reader = fastavro.reader(io.BytesIO(message), reader_schema=SCHEMA)
        if (name := _full_name(reader.writer_schema)) != SCHEMA["name"]:
            raise DecodeError(f"not an annotation of Trifid: its schema is {name[:_REASON]}")
        return [dict(record) for record in reader]  # type: ignore[arg-type]
    except DecodeError:
        raise
    except Exception as error:  # fastavro lets many kinds through on damaged bytes
        # Whole schemas are in what it says of two that do not fit.
        raise DecodeError(f"not an annotation of Trifid: {repr(error)[:_REASON]}") from error


def _full_name(schema: Any) -> str:
    """The name of a parsed schema with its namespace."""
    if not isinstance(schema, dict):
        return str(schema)
    name, namespace = str(schema.get("name", schema.get("type"))), schema.get("namespace")
    return name if "." in name or not namespace else f"{namespace}.{name}"
