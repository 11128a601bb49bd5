"""An annotation in the schema in which ELAsTiCC's brokers report to DESC: ``brokerClassfication`` v0_9_1, its spelling.

The schema is alert_schema/elasticc.v0_9_1.brokerClassification.avsc of https://github.com/LSSTDESC/elasticc. DESC reads
such messages as bare records of this schema, without a container or a header (``fastavro.schemaless_reader``), and so
names and types here are those of the official file, in its order.
"""

from __future__ import annotations

import io
from typing import Any, Final

import fastavro

from broker import __version__
from broker.records import Annotation
from broker.taxonomy import ELASTICC_ID
from broker.times import datetime_of

_TIME: Final = {"type": "long", "logicalType": "timestamp-millis"}
_SCHEMA: Final = fastavro.parse_schema(
    {
        "type": "record",
        "namespace": "elasticc.v0_9_1",
        "name": "brokerClassfication",
        "fields": [
            {"name": "alertId", "type": "long"},
            {"name": "diaSourceId", "type": "long"},
            {"name": "elasticcPublishTimestamp", "type": _TIME},
            {"name": "brokerIngestTimestamp", "type": ["null", _TIME]},
            {"name": "brokerName", "type": "string"},
            {"name": "brokerVersion", "type": "string"},
            {"name": "classifierName", "type": "string"},
            {"name": "classifierParams", "type": "string"},
            {
                "name": "classifications",
                "type": {
                    "type": "array",
                    "items": {
                        "type": "record",
                        "name": "classificationDict",
                        "fields": [{"name": "classId", "type": "int"}, {"name": "probability", "type": "float"}],
                    },
                },
            },
        ],
    }
)


def classification(annotation: Annotation, broker_name: str) -> bytes:
    """The message about one annotation, whose ``alert_publish_mjd`` is given.

    Probabilities are summed over the classes that have one number in ELAsTiCC's taxonomy: each number is there once.
    """
    assert annotation.alert_publish_mjd is not None
    sums: dict[int, float] = {}
    for name, probability in zip(annotation.class_names, annotation.probabilities, strict=True):
        number = ELASTICC_ID[name]
        sums[number] = sums.get(number, 0.0) + probability
    record: dict[str, Any] = {
        "alertId": annotation.alert_id,
        "diaSourceId": annotation.source_id,
        "elasticcPublishTimestamp": datetime_of(annotation.alert_publish_mjd),
        "brokerIngestTimestamp": datetime_of(annotation.ingest_mjd),
        "brokerName": broker_name,
        "brokerVersion": __version__,
        "classifierName": annotation.classifier_name,
        "classifierParams": annotation.model_version,
        "classifications": [{"classId": number, "probability": total} for number, total in sums.items()],
    }
    body = io.BytesIO()
    fastavro.schemaless_writer(body, _SCHEMA, record)
    return body.getvalue()
