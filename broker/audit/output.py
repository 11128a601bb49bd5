"""Audited labels for people and for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from broker.audit.run import Audited
from broker.errors import InputFileError
from broker.files import reason
from broker.publish.files import ENDINGS
from broker.replaced import Replaced
from broker.taxonomy import CLASS_NAMES, OTHER

_TYPES: Final[dict[str, pa.DataType]] = {
        "rank": pa.int32(), "name": pa.string(), "tableName": pa.string(), "ra": pa.float64(), "dec": pa.float64(),
        "separationArcsec": pa.float64(), "claimedType": pa.string(), "claimedClass": pa.string(),
        "uncertain": pa.bool_(), "doubt": pa.float64(), "likelyWrong": pa.bool_(), "contradicted": pa.string(),
        "pClaimed": pa.float64(), "class": pa.string(), "probability": pa.float64(), "pOther": pa.float64(),
        "predictionSet": pa.list_(pa.string()), "inPredictionSet": pa.bool_(), "neighbours": pa.list_(pa.string()),
        "neighboursAgree": pa.int32(), "period": pa.float64(), "claimedPeriod": pa.float64(),
        "periodRatio": pa.string(), "amplitude": pa.float64(), "points": pa.int32(),
        "modalities": pa.list_(pa.string()), "anomalyScore": pa.float64(), "inTraining": pa.bool_(),
        "reason": pa.string(), **{f"p_{name}": pa.float64() for name in (*CLASS_NAMES, OTHER.name)},
}  # fmt: skip
SCHEMA: Final = pa.schema(_TYPES)
"""Columns of a file, and fields of a record; docs/discovery.md says what each is."""
HEADER: Final = (
    f"{'':>4} {'doubt':>5}   {'object':<24} {'claimed':<10} {'prob.':>7}  {'model':<8} {'prob.':>5}  {'set':<14} "
    f"{'period/d':>11} {'table/d':>11} {'ampl.':>5} {'points':>6} {'alike':>5}  nearest reference stars"
)


def line(row: Audited, rank: int) -> str:
    """One label under HEADER; ``!`` beside the doubt is a label that is likely to be wrong."""
    said, claim = row.annotation, row.claim
    neighbours = " ".join(f"{one.object_id} ({one.class_name})" for one in row.neighbours[:2])
    alike = f"{row.agreeing}/{len(row.neighbours)}" if row.neighbours else ""
    return (
        f"{rank:>4} {row.doubt:>5.3f} {'!' if row.likely_wrong else ' '} {said.object_id:<24} {claim.type:<10} "
        f"{row.p_claimed:>7.2g}  {row.best:<8} {row.p_best:>5.2f}  "
        f"{' '.join(said.prediction_set):<14} {_days(said.period):>11} {_days(claim.period):>11} "
        f"{'' if row.amplitude is None else f'{row.amplitude:.2f}':>5} {said.detections:>6} {alike:>5}  {neighbours}"
        f"{' (in training)' if row.in_training else ''}"
    )


def _days(period: float | None) -> str:
    return "" if period is None else f"{period:.6g}"


def check_ending(path: Path) -> None:
    """Raise InputFileError for a file whose ending does not say what is to be written."""
    if path.suffix not in ENDINGS:
        raise InputFileError(f"{path}: the ending says what is written: {', '.join(ENDINGS)}")


def write(path: Path, rows: Sequence[Audited]) -> None:
    """All rows with their ranks, in the format that the ending says; raises InputFileError where it cannot be.

    In CSV, lists are texts with blanks between (neighbours with semicolons).
    """
    check_ending(path)
    records = [row.record(rank) for rank, row in enumerate(rows, 1)]
    try:
        with Replaced(path) as partial:
            if path.suffix == ".parquet":
                pq.write_table(pa.Table.from_pylist(records, SCHEMA), partial, compression="zstd")
            elif path.suffix == ".csv":
                pa_csv.write_csv(_flat(records), partial)
            elif path.suffix == ".json":
                partial.write_text("[\n" + ",\n".join(map(to_json, records)) + "\n]\n", "utf-8")
            else:
                partial.write_text("".join(f"{to_json(record)}\n" for record in records), "utf-8")
    except OSError as error:
        raise InputFileError(f"{path}: {reason(error)}") from error


def to_json(record: dict[str, Any]) -> str:
    """A record as JSON, in one line; numbers that are none are null."""
    return json.dumps({name: None if value != value else value for name, value in record.items()}, allow_nan=False)


def _flat(records: Sequence[dict[str, Any]]) -> pa.Table:
    lists = {"predictionSet": " ", "modalities": " ", "neighbours": "; "}
    flat = [record | {name: between.join(record[name]) for name, between in lists.items()} for record in records]
    fields = [pa.field(f.name, pa.string()) if f.name in lists else f for f in SCHEMA]
    return pa.Table.from_pylist(flat, pa.schema(fields))
