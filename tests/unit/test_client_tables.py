"""Annotations as tables: each column with the values that were published."""

from __future__ import annotations

import csv
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest

from broker.batch import BatchResult
from broker.client import PublishedAnnotation, to_astropy, to_pandas, to_polars
from broker.publish.annotation import read
from broker.publish.files import annotation_file
from broker.publish.messages import Publisher
from broker.publish.topics import OutputTopics
from tests.unit.publish.test_messages import ANNOTATION, NOT_CLASSIFIED, OTHER

SENT = 60_310.5
NOON = datetime(2024, 1, 1, 12, tzinfo=UTC)
MISSING = ("period", "anomalyScore", "referenceSetVersion", "alertPublishTimestamp")
"""What the second of the annotations has not."""


@pytest.fixture(scope="module")
def published() -> list[PublishedAnnotation]:
    star = replace(ANNOTATION, alert_publish_mjd=SENT, trigger="alert", ingest_mjd=SENT)
    none = replace(NOT_CLASSIFIED, survey_detections=None)
    messages = Publisher(OutputTopics("trifid", 0.9), "Broker", 100).messages(
        BatchResult(annotations=[star, none, OTHER])
    )
    return [a for m in messages if m.topic.endswith(".all") for a in read(m.value, m.topic)]


def test_pandas(published: list[PublishedAnnotation]) -> None:
    frame = to_pandas(published)
    assert frame["alertId"].tolist() == [2**60 + 1] * 3  # no double has room for it
    assert frame["alertId"].dtype == np.dtype("int64")
    assert frame["className"].tolist() == ["RRAB", "NotClassified", "Other"]
    assert frame["probability"].tolist() == [0.75, 1.0, 0.75]
    assert frame["p_RRAB"].tolist()[::2] == [0.75, 0.1875]
    assert frame["p_Other"].isna().tolist() == [True, True, False]
    assert frame["predictionSet"].tolist() == [["RRAB", "EB"], [], ["Other", "RRAB", "EB"]]
    assert frame["alertPublishTimestamp"][0] == pd.Timestamp(NOON)
    assert str(frame["brokerIngestTimestamp"].dtype) == "datetime64[ms, UTC]"
    assert frame["surveyDetections"].tolist() == [99, pd.NA, 99]
    assert frame["brokerName"].tolist() == ["Broker"] * 3
    for name in MISSING:
        assert frame[name].isna().tolist()[:2] == [False, True], name


def test_polars(published: list[PublishedAnnotation]) -> None:
    frame = to_polars(published)
    assert frame.shape == (3, to_pandas(published).shape[1])
    assert frame.schema["alertId"] == pl.Int64
    assert frame.schema["predictionSet"] == pl.List(pl.String)
    assert frame.schema["alertPublishTimestamp"] == pl.Datetime("ms", "UTC")
    first = frame.row(0, named=True)
    assert (first["alertId"], first["ra"], first["alertPublishTimestamp"]) == (2**60 + 1, 12.5, NOON)
    assert frame.filter(pl.col("p_RRAB") > 0.5)["objectId"].to_list() == ["ZTF18abcdefg"]
    for name in MISSING:
        assert frame[name].is_null().to_list()[:2] == [False, True], name


def test_astropy(published: list[PublishedAnnotation]) -> None:
    table = to_astropy(published)
    assert table["alertId"].tolist() == [2**60 + 1] * 3
    assert (table["ra"].unit, table["period"].unit) == ("deg", "d")
    assert table["ra"].tolist() == [12.5] * 3
    assert table["predictionSet"].tolist() == ["RRAB EB", "", "Other RRAB EB"]
    assert table["alertPublishTimestamp"].scale == "utc"
    assert table["alertPublishTimestamp"][0].mjd == SENT
    assert table["brokerIngestTimestamp"][0].isot == "2024-01-01T12:00:00.000"
    for name in MISSING:
        mask = table[name].mask
        assert np.asarray(mask).tolist()[:2] == [False, True], name


def test_no_annotation_is_a_table_with_the_same_columns(published: list[PublishedAnnotation]) -> None:
    for make in (to_pandas, to_polars, to_astropy):
        empty, full = make([]), make(published)
        names = list(empty.columns) if make is not to_astropy else empty.colnames
        assert names == (list(full.columns) if make is not to_astropy else full.colnames)
        assert len(empty) == 0
    assert to_pandas([]).dtypes.to_dict() == to_pandas(published).dtypes.to_dict()
    assert to_polars([]).schema == to_polars(published).schema


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_file_has_what_was_published_and_not_when_it_was_written(
    published: list[PublishedAnnotation], tmp_path: Path, ending: str
) -> None:
    path = tmp_path / f"x.{ending}"
    with annotation_file(path, "nobody") as sink:
        sink.write(published[:1])
        sink.write(published[1:])
    if ending == "csv":
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["alertId"] for row in rows] == [str(2**60 + 1)] * 3
        assert list(rows[0]) == list(to_pandas(published).columns)
        sent = [datetime.fromisoformat(row["brokerPublishTimestamp"]) for row in rows]
        assert (rows[0]["p_RRAB"], rows[1]["period"], rows[2]["predictionSet"]) == ("0.75", "", "Other RRAB EB")
    else:
        rows = pq.read_table(path).to_pylist()
        assert rows[0]["classifications"]["probability"][3] == 0.75
        sent = [row["brokerPublishTimestamp"] for row in rows]
    assert {row["brokerName"] for row in rows} == {"Broker"}
    assert sent == to_polars(published)["brokerPublishTimestamp"].to_list()
