"""Annotations as tables of Arrow: the columns of ``broker.publish.columns``, one row an annotation.

The types follow from the Avro schema: times are UTC timestamps in milliseconds, arrays lists, and an array of records
is a struct of lists. A map becomes such a table of ``name`` and ``value``, since many readers of Parquet lack maps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import pyarrow as pa

from broker.publish.columns import AVRO, fields_of, inner, rows
from broker.records import Annotation

_PRIMITIVE: Final[dict[str, Any]] = {
    "boolean": pa.bool_(), "int": pa.int32(), "long": pa.int64(), "float": pa.float32(), "double": pa.float64(),
    "string": pa.string(),
}  # fmt: skip


def _type(avro: Any) -> Any:
    """The type of Arrow's for one of Avro's."""
    avro = inner(avro)
    if isinstance(avro, str):
        return _PRIMITIVE[avro]
    if avro.get("logicalType") == "timestamp-millis":
        return pa.timestamp("ms", tz="UTC")
    if avro["type"] == "array":
        fields = fields_of(avro)
        if not fields:
            return pa.list_(_type(avro["items"]))
        return pa.struct([pa.field(name, pa.list_(_type(kind))) for name, kind in fields.items()])
    if avro["type"] == "map":
        return pa.struct([pa.field("name", pa.list_(pa.string())), pa.field("value", pa.list_(_type(avro["values"])))])
    return _type(avro["type"])


SCHEMA: Final = pa.schema(
    {
        "className": pa.string(),
        "probability": pa.float64(),
        **{field["name"]: _type(field["type"]) for field in AVRO},
    }
)


def to_table(annotations: Sequence[Annotation], broker_name: str, publish_mjd: float) -> pa.Table:
    """A row for each annotation, columns as SCHEMA says; ``publish_mjd`` (MJD UTC) is when the table is made."""
    return pa.Table.from_pylist(rows(annotations, broker_name, publish_mjd), schema=SCHEMA)
