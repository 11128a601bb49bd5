from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from broker.surveys.simulator import SCHEMA_JSON, simulate_alerts
from broker.taxonomy import CLASS_NAMES
from tests.commands import classify

CASES = Path(__file__).resolve().parents[2] / "data" / "cases"


def curves(n: int = 3) -> dict[str, list[object]]:
    rng = np.random.default_rng(0)
    columns: dict[str, list[object]] = {name: [] for name in ("name", "ra", "dec", "mjd", "mag", "mag_err")}
    for number in range(n):
        time = np.sort(rng.uniform(55000, 56000, 150))
        phase = (time / 0.57) % 1.0
        columns["name"].append(f"star {number}")
        columns["ra"].append(10.0 + number)
        columns["dec"].append(-5.0)
        columns["mjd"].append(time.tolist())
        columns["mag"].append((13 + 0.9 * phase**0.6 + rng.normal(0, 0.03, 150)).tolist())
        columns["mag_err"].append([0.03] * 150)
    return columns


def test_packets_give_one_line_each(tmp_path: Path) -> None:
    packets = [a.payload for a in simulate_alerts(3, 20, seed=0)]
    for number, payload in enumerate(packets):
        (tmp_path / f"{number:03d}.avro").write_bytes(payload)
    code, lines, _ = classify(tmp_path, "--json")
    assert code == 0
    assert len(lines) == len(packets)
    for line in lines:
        assert sum(c["probability"] for c in json.loads(line)["classifications"]) == pytest.approx(1)
    (tmp_path / "zzz.avro").write_bytes(b"no packet")
    code, lines, errors = classify(tmp_path)
    assert code == 1
    assert len(lines) == len(packets) + 1
    assert "zzz.avro: neither an Avro container" in errors
    assert "b'no p', as a text does; a table of light curves is for --lightcurves" in errors


def test_lists_and_points_in_parquet_and_csv_give_the_same(tmp_path: Path) -> None:
    columns = curves()
    pq.write_table(pa.table(columns), tmp_path / "lists.parquet")
    size = len(columns["mjd"][0])  # type: ignore[arg-type]
    points = {
        name: [v for row in values for v in (row if isinstance(row, list) else [row] * size)]
        for name, values in columns.items()
    }
    points["hjd"] = [t + 2400000.5 for t in points.pop("mjd")]  # type: ignore[operator]
    pq.write_table(pa.table(points), tmp_path / "points.parquet")
    pa_csv.write_csv(pa.table(points), tmp_path / "points.csv")
    results = []
    for name in ("lists.parquet", "points.parquet", "points.csv"):
        code, lines, _ = classify("--lightcurves", tmp_path / name, "--json")
        assert code == 0
        results.append([json.loads(line) for line in lines])
    for other in results[1:]:
        for first, second in zip(results[0], other, strict=True):
            assert first["objectId"] == second["objectId"]
            assert [c["probability"] for c in first["classifications"]] == pytest.approx(
                [c["probability"] for c in second["classifications"]], abs=1e-3
            )
    for record in results[0]:
        best = max(record["classifications"], key=lambda c: c["probability"])
        assert best["className"] == "RRAB"
        assert record["period"] == pytest.approx(0.57, rel=1e-3)
        assert {c["className"] for c in record["classifications"]} == set(CLASS_NAMES)


def test_too_few_points_are_not_classified_with_the_reason(tmp_path: Path) -> None:
    columns = curves(1)
    for name in ("mjd", "mag", "mag_err"):
        columns[name] = [columns[name][0][:3]]  # type: ignore[index]
    pq.write_table(pa.table(columns), tmp_path / "short.parquet")
    code, lines, _ = classify("--lightcurves", tmp_path / "short.parquet", "--json")
    record = json.loads(lines[0])
    assert code == 0
    assert [c["className"] for c in record["classifications"]] == ["NotClassified"]
    assert record["reason"].startswith("3 usable photometric points")


@pytest.mark.parametrize(
    ("content", "reason"),
    [("name,ra,dec,mjd,mag\na,1,2,3,4\n", "mag_err"), ("", "table.csv"), ("x\n1\n", "the table has x")],
)
def test_a_table_without_what_is_needed_is_an_error_in_one_line(tmp_path: Path, content: str, reason: str) -> None:
    (tmp_path / "table.csv").write_text(content)
    code, lines, errors = classify("--lightcurves", tmp_path / "table.csv")
    assert code == 2
    assert reason in errors
    assert "Traceback" not in errors + "".join(lines)


def test_forced_photometry_that_ztf_calls_bad_does_not_change_the_class() -> None:
    """../shared/cases/19: with points of status 61 the star was M, 0.67."""
    code, lines, errors = classify(CASES / "19-ztf-procstatus" / "bad.avro", "--json")
    last = json.loads(lines[-1])
    best = max(last["classifications"], key=lambda c: c["probability"])
    assert (code, len(lines), best["className"], last["detections"]) == (0, 24, "RRAB", 30)
    assert "23 points of ztf left out: flagged" in errors


def test_an_alert_of_the_future_is_named_and_refused(tmp_path: Path) -> None:
    good = [a.payload for a in simulate_alerts(1, 6, seed=2)]
    record = next(fastavro.reader(io.BytesIO(good[-1])))
    record["candidate"]["jd"] += 50 * 365.25  # type: ignore[index, call-overload]
    out = io.BytesIO()
    fastavro.writer(out, fastavro.parse_schema(json.loads(SCHEMA_JSON)), [record])
    for number, payload in enumerate([*good[:-1], out.getvalue()]):
        (tmp_path / f"{number}.avro").write_bytes(payload)
    code, lines, errors = classify(tmp_path, "--json")
    assert (code, len(lines)) == (1, len(good) - 1)
    assert f"{len(good) - 1}.avro: MJD " in errors
    assert "is after the alert was received" in errors


def test_several_tables_are_all_classified_and_a_bad_one_is_named(tmp_path: Path) -> None:
    for name, first in (("a", 0), ("b", 5)):
        columns = curves()
        columns["name"] = [f"star {first + n}" for n in range(3)]
        pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet")
    (tmp_path / "bad.csv").write_text("<html>404</html>")
    os.mkfifo(tmp_path / "fifo.csv")
    tables = [tmp_path / name for name in ("a.parquet", "bad.csv", "fifo.csv", "missing.csv", "b.parquet")]
    packets = [a.payload for a in simulate_alerts(2, 10, seed=0)]
    (tmp_path / "night").mkdir()
    (tmp_path / "night" / "x.avro").write_bytes(packets[0])
    given = [argument for table in tables for argument in ("--lightcurves", table)]
    code, lines, errors = classify(*given, tmp_path / "night", "--json")
    assert code == 1
    assert [json.loads(line)["objectId"] for line in lines][:6] == [f"star {n}" for n in (0, 1, 2, 5, 6, 7)]
    assert len(lines) == 7
    for said in ("bad.csv", "fifo.csv: a FIFO (named pipe), not a file", "missing.csv: No such file or directory"):
        assert said in errors
    assert errors.endswith("7 classified or NotClassified, 3 not readable\n")


def test_archives_around_a_cut_off_one_are_classified(tmp_path: Path) -> None:
    good, bad = (CASES / "09-ztf-archive" / f"ztf_public_2019010{n}.tar.gz" for n in (2, 3))
    code, lines, errors = classify(good, bad, good, "--json")
    assert code == 1
    assert len(lines) == 6
    assert f"{bad}/55931624000000000.avro: cut short: its gzip data end early\n" in errors
    code, lines, errors = classify(good, "--json")
    assert (code, len(lines)) == (0, 3)


def test_names_from_an_archive_cannot_command_the_terminal(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("\x1b[2Jx.avro"))
    code, _, errors = classify(tmp_path / "a.tar")
    assert code == 1
    assert "a.tar/\\x1b[2Jx.avro: it is empty" in errors


def test_without_any_input_the_usage_is_said() -> None:
    code, lines, errors = classify()
    assert code == 2
    assert "give files with alerts, --lightcurves FILE, --spectra FILE or --archive FOLDER" in errors
    assert lines == []


def best(record: dict[str, Any]) -> str:
    return str(max(record["classifications"], key=lambda c: c["probability"])["className"])


@pytest.mark.parametrize(
    ("case", "points"),
    [
        ("00-baseline/star.csv", 60),
        ("01-ztf-dr-irsa-csv/irsa.csv.gz", 54),
        ("01-ztf-dr-irsa-csv/renamed_band_fid.csv", 60),
        ("01-ztf-dr-irsa-csv/renamed_band_zg.csv", 60),
        ("03-asassn-csv/adapted_v1.csv", 48),
        ("03-asassn-csv/skypatrol_v1.csv", 48),
        ("04-time-columns/hjd_minus_2450000.csv", 60),
        ("04-time-columns/jd.csv", 60),
        ("04-time-columns/jd_in_mjd.csv", 60),
        ("04-time-columns/mjd_in_hjd.csv", 60),
        ("06-csv-dialects/comments.csv", 60),
        ("06-csv-dialects/latin1.csv", 60),
        ("06-csv-dialects/space.txt", 60),
        ("06-csv-dialects/tab.tsv", 60),
        ("07-parquet-ids/int64.parquet", 40),
        ("08-nested-parquet/hats_struct.parquet", 40),
        ("12-atlas-forced/good.csv", 60),
        ("12-atlas-forced/with_negative_flux.csv", 60),
    ],
)
def test_tables_of_archives_are_classified(case: str, points: int) -> None:
    code, lines, errors = classify("--lightcurves", CASES / case, "--json")
    record = json.loads(lines[0])
    assert code == 0
    assert (best(record), record["detections"]) == ("RRAB", points)
    assert 58611 < record["mjd"] < 58993
    assert "are read as" in errors


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("03-asassn-csv/only_limits_v2.csv", "60 with an error of 1.09 mag or more in mag_err: limits, or noise"),
        ("05-duplicated-rows/one_point_five_times.csv", "4 repeated at the same time in the same band"),
    ],
)
def test_tables_without_enough_photometry_are_not_classified(case: str, reason: str) -> None:
    code, lines, errors = classify("--lightcurves", CASES / case, "--json")
    record = json.loads(lines[0])
    assert code == 0
    assert best(record) == "NotClassified"
    assert reason in record["reason"]
    assert reason in errors


def test_ids_that_floating_point_cannot_hold_are_refused() -> None:
    code, lines, errors = classify("--lightcurves", CASES / "07-parquet-ids" / "float64.parquet", "--json")
    assert (code, lines) == (2, [])
    assert "float64.parquet: column name holds ids as double" in errors


def test_an_impossible_position_is_not_published(tmp_path: Path) -> None:
    columns = curves(2)
    columns["ra"][0], columns["dec"][0] = 400.0, 100.0
    pq.write_table(pa.table(columns), tmp_path / "places.parquet")
    code, lines, _ = classify("--lightcurves", tmp_path / "places.parquet", "--json")
    first, second = map(json.loads, lines)
    assert code == 0
    assert (first["ra"], first["dec"], first["mjd"], best(first)) == (None, None, None, "NotClassified")
    assert "150 at a position that cannot be (ra 400, dec 100)" in first["reason"]
    assert (second["ra"], second["dec"], best(second)) == (11.0, -5.0, "RRAB")


def test_unknown_bands_are_named_also_where_the_rest_is_classified(tmp_path: Path) -> None:
    rows = (CASES / "00-baseline" / "star.csv").read_text().splitlines()
    table = tmp_path / "stars.csv"
    table.write_text("\n".join([*rows, *(row.removesuffix("g") + "F814W" for row in rows[1:6])]) + "\n")
    code, lines, _ = classify("--lightcurves", table, "--json")
    record = json.loads(lines[0])
    assert code == 0
    assert best(record) != "NotClassified"
    assert record["reason"] == "points left out, of bands that are not known: F814W"
    assert record["parents"][record["parent"]] == max(record["parents"].values())
    assert record["topics"] == []
    code, lines, _ = classify("--lightcurves", table)
    assert lines[1].endswith("(points left out, of bands that are not known: F814W)")


def test_known_stars_are_named_and_change_nothing_else(tmp_path: Path) -> None:
    pq.write_table(pa.table(curves()), tmp_path / "lists.parquet")
    (tmp_path / "vsx.csv").write_text("Name,V,RAJ2000,DEJ2000,Type,Period\nAB Xyz,0,10.0001,-5.0,RRC,0.57\n")
    (tmp_path / "gcvs.csv").write_text("ra,dec,VarType\n11.0,-5.0,M:\n")
    _, plain, _ = classify("--lightcurves", tmp_path / "lists.parquet", "--json")
    known = ("--known", tmp_path / "vsx.csv", "--known", f"old={tmp_path / 'gcvs.csv'}")
    code, lines, errors = classify("--lightcurves", tmp_path / "lists.parquet", "--json", *known)
    assert code == 0
    assert "vsx: 1 known stars" in errors
    records = [json.loads(line) for line in lines]
    stars = [record.pop("knownAs") for record in records]
    assert [[(s["catalogue"], s["name"], s["type"], s["class"], s["period"]) for s in of] for of in stars] == [
        [("vsx", "AB Xyz", "RRC", "RRC", 0.57)], [("old", None, "M:", "M", None)], [],
    ]  # fmt: skip
    assert stars[0][0]["distance"] == pytest.approx(0.3586, abs=1e-3)
    without = [json.loads(line) for line in plain]
    for record, of in zip(records, stars, strict=True):
        assert record.pop("catalogueDisagrees") == any(s["disagrees"] is not None for s in of)
    # What a catalogue says is one part of the combined anomaly score, and of nothing else.
    changing = (
        "knownAs", "catalogueDisagrees", "brokerIngestTimestamp", "brokerPublishTimestamp", "combinedAnomaly",
        "anomalyExplanation", "anomalyParts",
    )  # fmt: skip
    assert [{k: v for k, v in r.items() if k not in changing} for r in records] == [
        {k: v for k, v in r.items() if k not in changing} for r in without
    ]
    for record, before in zip(records, without, strict=True):
        parts = {name: value for name, value in record["anomalyParts"].items() if name != "catalogue"}
        assert parts == before["anomalyParts"]
    _, lines, _ = classify("--lightcurves", tmp_path / "lists.parquet", *known)
    assert "  = vsx AB Xyz: RRC, 0.57 d" in lines[1]
    assert lines[2].endswith("  = old: M:")


def test_known_stars_of_packets(tmp_path: Path) -> None:
    for number, simulated in enumerate(simulate_alerts(3, 20, seed=0)):
        (tmp_path / f"{number:03d}.avro").write_bytes(simulated.payload)
    _, lines, _ = classify(tmp_path, "--json")
    first = json.loads(lines[0])
    (tmp_path / "vsx.csv").write_text(f"ra,dec,Name,Type\n{first['ra']},{first['dec']},it,EA\n")
    code, lines, _ = classify(tmp_path, "--json", "--known", tmp_path / "vsx.csv")
    assert code == 0
    names = {r["objectId"]: [k["name"] for k in r["knownAs"]] for r in map(json.loads, lines)}
    assert len(names) == 3
    assert {object_id: of for object_id, of in names.items() if of} == {first["objectId"]: ["it"]}


def test_a_catalogue_of_known_stars_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    code, _, errors = classify("--lightcurves", tmp_path / "none.parquet", "--known", tmp_path / "vsx.dat")
    assert code == 2
    assert "vsx.dat" in errors
