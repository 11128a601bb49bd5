"""ELAsTiCC's ``brokerClassfication`` v0_9_1, as DESC's readers have it, and how they read a message.

Names, types and order are those of alert_schema/elasticc.v0_9_1.brokerClassification.avsc in LSSTDESC/elasticc at
commit 1da315ffc82fe92268ea493533b13260a6a36145, without its documentation; not taken from the code under test.
"""

from __future__ import annotations

import io
import json
from typing import Any

import fastavro

OFFICIAL = fastavro.parse_schema(
    json.loads(
        '{"name":"elasticc.v0_9_1.brokerClassfication","type":"record","fields":[{"name":"alertId","type":"long"},'
        '{"name":"diaSourceId","type":"long"},{"name":"elasticcPublishTimestamp","type":{"type":"long",'
        '"logicalType":"timestamp-millis"}},{"name":"brokerIngestTimestamp","type":["null",{"type":"long",'
        '"logicalType":"timestamp-millis"}]},{"name":"brokerName","type":"string"},{"name":"brokerVersion",'
        '"type":"string"},{"name":"classifierName","type":"string"},{"name":"classifierParams","type":"string"},'
        '{"name":"classifications","type":{"type":"array","items":{"name":"elasticc.v0_9_1.classificationDict",'
        '"type":"record","fields":[{"name":"classId","type":"int"},{"name":"probability","type":"float"}]}}}]}'
    )
)


def read_classification(message: bytes) -> dict[str, Any]:
    """As DESC's TOM reads messages of brokers: no container, the official schema, and nothing behind the record."""
    body = io.BytesIO(message)
    record = fastavro.schemaless_reader(body, OFFICIAL, None)
    assert isinstance(record, dict)
    assert body.read() == b""
    return record
