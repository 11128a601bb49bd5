"""``trifid classify --output``, ``--column`` and ``--limit``: the same values in each format."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from broker.taxonomy import CLASS_NAMES
from tests.commands import classify
from tests.unit.cli.test_classify import curves

TIMES = ("brokerIngestTimestamp", "brokerPublishTimestamp")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three stars and one without usable points; the columns are called as no archive does."""
    columns = curves(4)
    columns["mag"][3] = [99.99] * 150
    path = tmp_path_factory.mktemp("table") / "stars.parquet"
    columns["brightness"] = columns.pop("mag")
    pq.write_table(pa.table(columns), path)
    return path


@pytest.fixture(scope="module")
def records(table: Path) -> list[dict[str, Any]]:
    code, lines, _ = classify("--lightcurves", table, "--column", "mag=brightness", "--json")
    assert code == 0
    found = [json.loads(line) for line in lines]
    assert [record["objectId"] for record in found] == ["star 0", "star 1", "star 2", "star 3"]
    assert found[0]["classifications"][0]["className"] in CLASS_NAMES
    assert found[3]["classifications"] == [
        {"classId": 10, "className": "NotClassified", "probability": 1.0, "elasticcId": 300}
    ]
    return found


def without_times(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in TIMES}


@pytest.mark.parametrize("ending", [".json", ".jsonl"])
def test_json(ending: str, table: Path, records: list[dict[str, Any]], tmp_path: Path) -> None:
    path = tmp_path / f"out{ending}"
    code, lines, said = classify("--lightcurves", table, "--column", "mag=brightness", "--output", path)
    assert (code, lines) == (0, [])
    assert "4 classified or NotClassified" in said
    text = path.read_text()
    found = json.loads(text) if ending == ".json" else [json.loads(line) for line in text.splitlines()]
    assert [without_times(record) for record in found] == [without_times(record) for record in records]
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_csv_and_parquet(table: Path, records: list[dict[str, Any]], tmp_path: Path) -> None:
    for name in ("out.csv", "out.parquet"):
        code, _, _ = classify("--lightcurves", table, "--column", "mag=brightness", "--output", tmp_path / name)
        assert code == 0
    with (tmp_path / "out.csv").open(newline="") as file:
        flat = list(csv.DictReader(file))
    rows = pq.read_table(tmp_path / "out.parquet").to_pylist()
    for record, cells, row in zip(records, flat, rows, strict=True):
        probabilities = {c["className"]: c["probability"] for c in record["classifications"]}
        best = max(probabilities, key=lambda name: probabilities[name])
        for name in CLASS_NAMES:
            assert cells[f"p_{name}"] == ("" if name not in probabilities else repr(probabilities[name]))
        assert (cells["className"], float(cells["probability"])) == (best, probabilities[best])
        assert (row["className"], row["probability"]) == (best, probabilities[best])
        assert cells["period"] == ("" if record["period"] is None else repr(record["period"]))
        assert cells["predictionSet"] == " ".join(record["predictionSet"])
        assert row["period"] == record["period"]
        assert dict(zip(row["classifications"]["className"], row["classifications"]["probability"], strict=True)) == (
            probabilities
        )
        assert row["neighbours"]["distance"] == [n["distance"] for n in record["neighbours"]]


def test_no_more_than_the_limit_and_nothing_half_written(table: Path, tmp_path: Path) -> None:
    code, lines, said = classify("--lightcurves", table, "--column", "mag=brightness", "--limit", 2, "--json")
    assert code == 0
    assert [json.loads(line)["objectId"] for line in lines] == ["star 0", "star 1"]
    assert "2 classified or NotClassified" in said
    code, _, said = classify("--lightcurves", table, "--output", tmp_path / "out.csv")
    assert code == 2
    assert "no column for the magnitude" in said
    assert list(tmp_path.iterdir()) == []


def test_a_flux_may_be_named(table: Path, tmp_path: Path) -> None:
    columns = pq.read_table(table).slice(0, 1).to_pylist()[0]
    flux = [10 ** (-0.4 * (m - 25.0)) for m in columns["brightness"]]
    error = (np.array(flux) * 0.03 * np.log(10) / 2.5).tolist()
    pq.write_table(pa.table({"mjd": [columns["mjd"]], "counts": [flux], "s": [error]}), tmp_path / "counts.parquet")
    found = []
    for path, roles in ((tmp_path / "counts.parquet", ("flux=counts", "error=s")), (table, ("mag=brightness",))):
        code, lines, _ = classify(
            "--lightcurves", path, *(word for role in roles for word in ("--column", role)), "--limit", 1, "--json"
        )
        assert code == 0
        found.append(json.loads(lines[0]))
    assert found[0]["period"] == pytest.approx(found[1]["period"], rel=2e-5)  # without a position not barycentric
    assert found[0]["detections"] == found[1]["detections"] == 150


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--output", "out.txt"), "the ending says what is written: .csv, .parquet, .json, .jsonl"),
        (("--column", "colour=b"), "give ROLE=NAME, with a role of name, ra, dec"),
        (("--column", "mag"), "give ROLE=NAME"),
        (("--column", "mag=none"), "no column none for the magnitude; the table has"),
        (("--json", "--output", "out.jsonl"), "--output FILE.jsonl writes the same records"),
    ],
)
def test_wrong_options_are_refused(arguments: tuple[str, ...], reason: str, table: Path) -> None:
    code, lines, said = classify("--lightcurves", table, *arguments)
    assert code == 2
    assert reason in said
    assert [line for line in lines if "star" in line] == []


def test_results_replace_nothing_that_is_read(table: Path, tmp_path: Path) -> None:
    before = table.read_bytes()
    link = tmp_path / "link.parquet"
    link.symlink_to(table)
    for output in (table, link):
        code, _, errors = classify("--lightcurves", table, "--column", "mag=brightness", "--output", output)
        assert code == 2
        assert "is read as well, and would be replaced" in str(errors)
    assert table.read_bytes() == before
    folder = tmp_path / "folder.csv"
    folder.mkdir()
    code, _, errors = classify("--lightcurves", table, "--column", "mag=brightness", "--output", folder)
    assert code == 2
    assert "a folder, give the name of a file" in str(errors)
    assert sorted(tmp_path.iterdir()) == [folder, link]


@pytest.mark.parametrize("more", [("--column", "magnitude=other"), ("--limit", "9" * 20)])
def test_options_that_cannot_be_meant_are_refused(more: tuple[str, str], table: Path) -> None:
    code, _, errors = classify("--lightcurves", table, "--column", "mag=brightness", *more)
    assert code == 2
    assert "is that already" in str(errors) or "is not in the range" in str(errors)
