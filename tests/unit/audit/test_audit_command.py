from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from broker.audit.claims import Claims, claimed_type
from broker.audit.output import SCHEMA
from broker.audit.run import amplitude
from broker.cli import main
from broker.errors import InputFileError
from broker.lightcurves.objects import NamedLightCurve
from broker.records import BANDS, LightCurve
from broker.spectra.places import Spectra
from tests.random_models import MODEL_REPO

TABLE = """Name,RAJ2000,DEJ2000,Type,Period
good 1,10.0,-5.0,RRAB,0.57
good 2,11.0,-5.0,RRAB:,0.57
planted,12.0,-5.0,EA,1.14
open,13.0,-5.0,RR,0.57
cepheid,14.0,-5.0,DCEP,5.0
,15.0,-5.0,,
"""


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "vsx.csv"
    path.write_text(TABLE)
    return path


def curve(name: str, ra: float, dec: float = -5.0) -> NamedLightCurve:
    size = 5
    return NamedLightCurve(
        name, ra, dec,
        LightCurve(
            np.linspace(55000, 55100, size), np.array([100, 100, 100, 100, 50], np.float32),
            np.ones(size, np.float32), np.zeros(size, np.float32), np.zeros(size, np.uint8), np.zeros(size, np.uint8),
        ),
        None,
    )  # fmt: skip


def light_curves(path: Path) -> Path:
    """RR Lyrae stars by shape and period, at and beside the places of TABLE."""
    rng = np.random.default_rng(1)
    columns: dict[str, list[object]] = {name: [] for name in ("name", "ra", "dec", "mjd", "mag", "mag_err")}
    for number in range(7):
        time = np.sort(rng.uniform(55000, 56000, 200))
        phase = (time / 0.57) % 1.0
        columns["name"].append("planted" if number == 2 else f"lc {number}")
        columns["ra"].append(10.0 + number + (0.0002 if number else 0.0))  # 0.7 arcsec
        columns["dec"].append(-5.0)
        columns["mjd"].append(time.tolist())
        columns["mag"].append((13 + 0.9 * phase**0.6 + rng.normal(0, 0.03, 200)).tolist())
        columns["mag_err"].append([0.03] * 200)
    pq.write_table(pa.table(columns), path)
    return path


def test_what_a_class_is_called(table: Path) -> None:
    assert claimed_type("RRLyrae").classes == {"RRAB", "RRC"}
    assert not claimed_type("Eclipsing:").comparable
    assert claimed_type("SRB").class_name == "SR"
    assert claimed_type("DCEP").classes == frozenset()


def test_stars_are_found_by_name_then_by_place(table: Path) -> None:
    claims = Claims(table, 2.0)
    found = claims.of(
        [
            curve("planted", 12.0 + 30 / 3600),  # 29.9 arcsec away along the parallel of -5 degrees: the name counts
            curve("planted", 13.0),  # a degree away: another star of this name, and the place counts
            curve("planted", float("nan"), float("nan")),
            curve("x", 10.0 + 1.5 / 3600),
            curve("x", 10.0 + 2.5 / 3600),
        ]
    )
    assert [None if one is None else (one.name, one.type) for one in found] == [
        ("planted", "EA"), ("open", "RR"), ("planted", "EA"), ("good 1", "RRAB"), None,
    ]  # fmt: skip
    assert found[0] is not None
    assert found[0].distance == pytest.approx(30 * np.cos(np.radians(5)), abs=0.01)
    assert found[0].period == 1.14
    assert found[3] is not None
    assert found[3].catalogue == "vsx.csv"


def test_one_s_own_columns(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("star,alpha,delta,label\na,10.0,-5.0,LongPeriod\n")
    claims = Claims(path, 2.0, ["ra=alpha", "dec=delta"])
    (found,) = claims.of([curve("a", 10.0)])
    assert found is not None
    assert (found.name, found.class_name) == ("a", "LongPeriod")
    with pytest.raises(InputFileError, match="no column for ra"):
        Claims(path, 2.0)


def test_amplitude_is_that_of_the_central_points() -> None:
    wide = NamedLightCurve("", 0, 0, LightCurve.empty(), None)
    assert amplitude(wide.light_curve) is None
    size = 101
    flux = 10 ** (-0.4 * np.linspace(0.0, 1.0, size))
    points = LightCurve(
        np.arange(size, dtype=float), flux.astype(np.float32), np.ones(size, np.float32),
        np.zeros(size, np.float32), np.full(size, BANDS.index("ztf:r"), np.uint8), np.zeros(size, np.uint8),
    )  # fmt: skip
    assert amplitude(points) == pytest.approx(0.9, abs=1e-4)


@pytest.mark.skipif(not (MODEL_REPO / "manifest.json").exists(), reason="model_repo holds no trained model")
def test_the_planted_label_comes_first_and_each_star_is_accounted_for(table: Path, tmp_path: Path) -> None:
    curves = light_curves(tmp_path / "curves.parquet")
    written = {ending: tmp_path / f"out.{ending}" for ending in ("csv", "parquet", "json", "jsonl")}
    for path in written.values():
        result = CliRunner().invoke(
            main, ["audit", str(table), "--lightcurves", str(curves), "--top", "2", "--output", str(path)]
        )
        assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert len(lines) == 3  # header, and two of four labels
    assert lines[1].split()[:5] == ["1", lines[1].split()[1], "!", "planted", "EA"]
    assert "7 stars = 4 audited + 3 not audited; 1 likely wrong" in result.stderr
    assert "1 not audited: of a type that is none of the ten classes" in result.stderr
    assert "2 not audited: no star of the table has their name or place" in result.stderr

    records = pq.read_table(written["parquet"]).to_pylist()
    assert [record["rank"] for record in records] == [1, 2, 3, 4]
    first, rest = records[0], records[1:]
    assert first["tableName"] == "planted"
    assert first["class"] == "RRAB"
    assert first["likelyWrong"]
    assert first["doubt"] > 0.9 > max(record["doubt"] for record in rest)
    assert first["contradicted"] == "parent"
    assert not first["inPredictionSet"]
    assert first["neighboursAgree"] == 0
    assert first["period"] == pytest.approx(0.57, rel=1e-3)
    assert first["periodRatio"] == "half the table's"
    assert {record["tableName"]: record["uncertain"] for record in rest}["good 2"]
    assert {record["tableName"]: record["claimedClass"] for record in rest}["open"] == "RRLyrae"
    for record in records:
        total = sum(value for name, value in record.items() if name.startswith("p_"))
        assert total == pytest.approx(1.0, abs=1e-6)
    assert json.loads(written["json"].read_text()) == records
    assert [json.loads(line) for line in written["jsonl"].read_text().splitlines()] == records
    assert pa_csv.read_csv(written["csv"]).column_names == SCHEMA.names


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--lightcurves FILE"),
        (["--lightcurves", "missing.parquet"], "missing.parquet"),
        (["--lightcurves", "vsx.csv", "--output", "out.txt"], ".parquet"),
        (["--lightcurves", "vsx.csv", "--output", "vsx.csv"], "would be replaced"),
    ],
)
def test_what_cannot_be_done_is_refused(
    arguments: list[str], said: str, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(table.parent)
    result = CliRunner().invoke(main, ["audit", str(table), *arguments])
    assert result.exit_code == 2
    assert said in result.stderr


def test_of_a_file_s_spectra_those_that_can_be_used_are(tmp_path: Path) -> None:
    rows = {
        "spectrum_id": ["a", "b"], "ra": [10.0, None], "dec": [-5.0, None],
        "wavelength": [np.arange(4000.0, 8000.0, 2.0).tolist()] * 2,
        "flux": [(1 + 0.2 * np.sin(np.arange(2000) / 50)).tolist()] * 2,
        "flux_error": [[0.1] * 2000] * 2,
    }  # fmt: skip
    pq.write_table(pa.table(rows), tmp_path / "both.parquet")
    pq.write_table(pa.table({name: column[1:] for name, column in rows.items()}), tmp_path / "none.parquet")
    said: list[str] = []
    spectra = Spectra.of_files([tmp_path / "both.parquet"], 2.0, said.append)
    assert [one.spectrum_id for one in spectra.all] == ["a"]
    assert "position is not known" in said[0]
    found = spectra.at(10.0, -5.0 + 1.9 / 3600)
    assert found is spectra.all[0]
    assert spectra.at(10.0, -5.0 + 2.1 / 3600) is None
    with pytest.raises(InputFileError, match="position is not known"):
        Spectra.of_files([tmp_path / "none.parquet"], 2.0, said.append)
