"""Annotations to Avro and JSON, and back.

Each message is an Avro object container with its schema, as ZTF's alerts are, so that a subscriber needs no
registry. The container's header is the same each time and is made once.
"""

from __future__ import annotations

import difflib
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib import resources
from operator import attrgetter
from typing import Any, Final, NamedTuple

import fastavro

from broker import __version__
from broker.avro.wire import CONFLUENT_MAGIC, read_confluent_header
from broker.errors import DecodeError, TrifidError
from broker.records import Annotation, KnownObject, Neighbour
from broker.taxonomy import CLASS_INDEX, ELASTICC_ID, NOT_CLASSIFIED, OTHER, place_of_best
from broker.times import datetime_of, mjd_of

IDS: Final = ("alertId", "diaSourceId")
"""Fields that are integers of 64 bits; ids of objects are text already."""
_REASON: Final = 200
"""Characters of a reason."""
_CLASS_ID: Final = {**CLASS_INDEX, **{c.name: c.class_id for c in (NOT_CLASSIFIED, OTHER)}}

SCHEMA_TEXT: Final = resources.files(__package__).joinpath("annotation.avsc").read_text("utf-8")
"""The schema with its documentation."""
SCHEMA: Final[Any] = fastavro.parse_schema(json.loads(SCHEMA_TEXT))
_ORDER: Final = [field["name"] for field in SCHEMA["fields"]]


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

    def __getitem__(self, name: str) -> Any:
        """A field by its documented name: those of ``annotation.avsc``, as a record has them, and of DERIVED.

        ``annotation["objectId"]`` is ``annotation.object_id``. Raises KeyError for other names.
        """
        if name in DERIVED:
            return DERIVED[name](self)
        if (field := _FIELDS.get(name)) is not None:
            value = getattr(self, field.attribute)
            return value if field.encode is None else field.encode(value)
        if name in _ORDER:
            return published_record(self)[name]
        near = difflib.get_close_matches(str(name), [*_ORDER, *DERIVED], n=1)
        raise KeyError(f"an annotation has no field {name}" + (f"; did you mean {near[0]}?" if near else ""))


def _parent_probability(annotation: Annotation) -> float | None:
    parent = annotation.parent
    return None if parent is None else annotation.parents[parent]


DERIVED: Final[Mapping[str, Callable[[Annotation], Any]]] = {
    "class": lambda a: a.best_class,
    "probability": lambda a: a.best_probability,
    "parentProbability": _parent_probability,
    "known": lambda a: bool(a.known_as),
}
"""What filters and headers know of an annotation that is no field of ``annotation.avsc``, but follows from some."""


class _Field(NamedTuple):
    """A field of ``annotation.avsc`` that is an attribute of ``Annotation``."""

    attribute: str
    encode: Callable[[Any], Any] | None = None
    """From the attribute's value to the field's; None where they are the same."""
    decode: Callable[[Any], Any] | None = None
    """The inverse."""


def _known_record(known: KnownObject) -> dict[str, Any]:
    return {name: getattr(known, attribute) for name, attribute in _KNOWN.items()}


def _neighbour_record(neighbour: Neighbour) -> dict[str, Any]:
    return {name: getattr(neighbour, attribute) for name, attribute in _NEIGHBOUR.items()}


def _optional(convert: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The same conversion, of which None is left as it is."""
    return lambda value: None if value is None else convert(value)


_NEIGHBOUR: Final = {"objectId": "object_id", "className": "class_name", "distance": "distance"}
_KNOWN: Final = {
    "catalogue": "catalogue",
    "name": "name",
    "type": "type",
    "class": "class_name",
    "period": "period",
    "distance": "distance",
    "disagrees": "disagrees",
}
_FIELDS: Final[dict[str, _Field]] = {
    "alertId": _Field("alert_id"),
    "diaSourceId": _Field("source_id"),
    "objectId": _Field("object_id"),
    "brokerIngestTimestamp": _Field("ingest_mjd", datetime_of, mjd_of),
    "alertPublishTimestamp": _Field("alert_publish_mjd", _optional(datetime_of), _optional(mjd_of)),
    "classifierName": _Field("classifier_name"),
    "survey": _Field("survey"),
    "ra": _Field("ra"),
    "dec": _Field("dec"),
    "mjd": _Field("mjd"),
    "modalities": _Field("modalities", list, tuple),
    "detections": _Field("detections"),
    "period": _Field("period"),
    "predictionSet": _Field("prediction_set", list, tuple),
    "anomalyScore": _Field("anomaly_score"),
    "anomalyReason": _Field("anomaly_reason"),
    "anomalyDistance": _Field("anomaly_distance"),
    "combinedAnomaly": _Field("combined_anomaly"),
    "anomalyParts": _Field("anomaly_parts", None, dict),
    "anomalyExplanation": _Field("anomaly_explanation"),
    "anomalyAfterAnswers": _Field("anomaly_after_answers"),
    "anomalyAnswers": _Field("anomaly_answers"),
    "referenceSetVersion": _Field("reference_set_version"),
    "neighbours": _Field(
        "neighbours",
        lambda found: [_neighbour_record(n) for n in found],
        lambda found: tuple(Neighbour(**{a: n[name] for name, a in _NEIGHBOUR.items()}) for n in found),
    ),
    "modelVersion": _Field("model_version"),
    "reason": _Field("reason"),
    "realBogus": _Field("real_bogus"),
    "solarSystem": _Field("solar_system"),
    "starScore": _Field("star_score"),
    "associatedObjects": _Field("associated", list, tuple),
    "trigger": _Field("trigger"),
    "rememberedPoints": _Field("remembered_points"),
    "historyStart": _Field("history_start"),
    "surveyDetections": _Field("survey_detections"),
    "history": _Field("history"),
    "timeSystem": _Field("time_system", str, str),
    "photometricPeriod": _Field("photometric_period"),
    "periodAmbiguous": _Field("period_ambiguous"),
    "parents": _Field("parents", None, dict),
    "pOther": _Field("p_other"),
    "knownAs": _Field(
        "known_as",
        lambda found: [_known_record(k) for k in found],
        lambda found: tuple(KnownObject(**{a: k[name] for name, a in _KNOWN.items()}) for k in found),
    ),
}
"""Each attribute of ``Annotation`` but names and probabilities of classes, which are ``classifications`` together.

The only mapping of Avro fields to attributes; derived fields and those the broker sets are added in ``to_record``;
types and docs are in annotation.avsc."""
_values: Final = attrgetter(*(field.attribute for field in _FIELDS.values()))
_ENCODED: Final = [(name, field.encode) for name, field in _FIELDS.items() if field.encode is not None]


def best_of(classifications: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Which of a record's ``classifications`` is its class, as ``Annotation.best_class``."""
    names, probabilities = ([one[field] for one in classifications] for field in ("className", "probability"))
    return classifications[place_of_best(names, probabilities)]


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
    record: dict[str, Any] = dict(zip(_FIELDS, _values(annotation), strict=True))
    for name, encode in _ENCODED:
        record[name] = encode(record[name])
    record |= {
        "brokerName": broker_name,
        "brokerVersion": broker_version,
        "brokerPublishTimestamp": datetime_of(publish_mjd),
        "topics": list(topics),
        "classifierParams": annotation.model_version,
        "classifications": [
            {"classId": class_id, "className": name, "probability": probability, "elasticcId": elasticc_id}
            for class_id, name, probability, elasticc_id in zip(
                class_ids, annotation.class_names, annotation.probabilities, elasticc_ids, strict=True
            )
        ],
        "parent": parent,
        "parentElasticcId": ELASTICC_ID.get(parent) if parent is not None else None,
        "answer": annotation.answer,
        "catalogueDisagrees": annotation.catalogue_disagrees,
    }
    return {name: record[name] for name in _ORDER}


def from_record(record: dict[str, Any], topic: str = "") -> PublishedAnnotation:
    """The inverse of ``to_record``."""
    attributes: dict[str, Any] = {
        field.attribute: record[name] if field.decode is None else field.decode(record[name])
        for name, field in _FIELDS.items()
    }
    classes = record["classifications"]
    return PublishedAnnotation(
        **attributes,
        class_names=tuple(c["className"] for c in classes),
        probabilities=tuple(c["probability"] for c in classes),
        class_ids=tuple(c["classId"] for c in classes),
        elasticc_ids=tuple(c["elasticcId"] for c in classes),
        topic=topic,
        broker_name=record["brokerName"],
        broker_version=record["brokerVersion"],
        publish_mjd=mjd_of(record["brokerPublishTimestamp"]),
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
    some data frames) make floating-point numbers of integers, and round ids above 2^53.
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


Schemas = Callable[[int], Any]
"""The schema of an id, as fastavro parses it: raises DecodeError where there is none, DependencyUnavailableError where
that cannot be told now."""


def read(message: bytes, topic: str = "", schemas: Schemas | None = None) -> list[PublishedAnnotation]:
    """Annotations of one message, by any version of the schema that this release can read.

    ``schemas`` are those of a registry, for messages that only name theirs. Raises DecodeError where the bytes are not
    such a message, and what ``schemas`` raises.
    """
    try:
        annotations = [from_record(record, topic) for record in read_records(message, schemas)]
    except (KeyError, TypeError) as error:
        raise DecodeError(f"not an annotation of Trifid: {error!r}") from error
    if not all(annotation.class_names for annotation in annotations):
        raise DecodeError("not an annotation of Trifid: it names no class")
    return annotations


def read_records(message: bytes, schemas: Schemas | None = None) -> list[dict[str, Any]]:
    """The same as plain records, timestamps as datetimes."""
    try:
        if message.startswith(b"Obj\x01"):
            reader = fastavro.reader(io.BytesIO(message), reader_schema=SCHEMA)
            _check_name(reader.writer_schema)
            return [dict(record) for record in reader]  # type: ignore[arg-type]
        if message[:1] == bytes([CONFLUENT_MAGIC]):
            return [_read_registered(message, schemas)]
        raise DecodeError("not an annotation of Trifid: no Avro object container")
    except TrifidError:
        raise
    except Exception as error:  # fastavro lets many kinds through on damaged bytes
        # Of incompatible schemas fastavro's message quotes both in full.
        raise DecodeError(f"not an annotation of Trifid: {repr(error)[:_REASON]}") from error


def _read_registered(message: bytes, schemas: Schemas | None) -> dict[str, Any]:
    """The record of a message in Confluent's wire format."""
    schema_id, start = read_confluent_header(message)
    if schemas is None:
        raise DecodeError(f"its schema has id {schema_id} in a schema registry, of which no address is given")
    writer = schemas(schema_id)
    _check_name(writer)
    body = io.BytesIO(message)
    body.seek(start)
    record = fastavro.schemaless_reader(body, writer, SCHEMA)
    if body.tell() != len(message) or not isinstance(record, dict):
        raise DecodeError(f"not an annotation of Trifid: not one record of schema id {schema_id}")
    return record


def _check_name(writer: Any) -> None:
    if (name := _full_name(writer)) != SCHEMA["name"]:
        raise DecodeError(f"not an annotation of Trifid: its schema is {name[:_REASON]}")


def _full_name(schema: Any) -> str:
    """The name of a parsed schema with its namespace."""
    if not isinstance(schema, dict):
        return str(schema)
    name, namespace = str(schema.get("name", schema.get("type"))), schema.get("namespace")
    return name if "." in name or not namespace else f"{namespace}.{name}"
