from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from broker.cli import main
from broker.discover.sample import Values, indices
from broker.errors import InputFileError
from broker.records import Spectrum
from tests.random_models import MODEL_REPO


def test_numbers_of_a_table_are_found_by_place(tmp_path: Path) -> None:
    path = tmp_path / "values.csv"
    path.write_text("star,ra,dec,BP,RP,kind\na,10.0,-5.0,14.5,12.0,x\nb,11.0,-5.0,13,,y\nc,12.0,-5.0,n/a,9.5,z\n")
    values = Values(path, 2.0, ["BP-RP", "J-K"])
    assert set(values.columns) == {"BP", "RP", "BP-RP"}
    assert values.at(10.0, -5.0 + 1.9 / 3600) == {"BP": 14.5, "RP": 12.0, "BP-RP": 2.5}
    assert np.isnan(list(values.at(10.0, -5.0 + 2.1 / 3600).values())).all()
    found = values.at(11.0, -5.0)
    assert found["BP"] == 13.0
    assert np.isnan(found["RP"])
    path.write_text("star,x\na,1\n")
    with pytest.raises(InputFileError, match="no columns for ra and dec"):
        Values(path, 2.0)


def test_band_indices_are_below_one_where_a_band_absorbs() -> None:
    wavelength = np.arange(4500.0, 9000.0, 2.0)
    flux = np.where((wavelength > 7100) & (wavelength < 7200), 0.25, 1.0).astype(np.float32)
    found = indices(Spectrum(wavelength, flux, np.full(len(flux), 0.1, np.float32)))
    assert found["TiO 7100 (oxygen-rich)"] == pytest.approx(0.25)
    assert found["C2 5165 (carbon-rich)"] == 1.0
    assert np.isnan(found["Ca K"])  # not covered
    assert np.isnan(list(indices(None).values())).all()


@pytest.mark.skipif(not (MODEL_REPO / "manifest.json").exists(), reason="model_repo holds no trained model")
def test_two_kinds_of_one_label_come_apart_and_others_are_projected(tmp_path: Path) -> None:
    """A table that calls sine curves of 80 days and sawteeth of half a day the same, and knows a colour of them."""
    rng = np.random.default_rng(0)
    table = ["name,ra,dec,type,colour"]
    columns: dict[str, list[object]] = {name: [] for name in ("name", "ra", "dec", "mjd", "mag", "mag_err")}
    for number in range(75):
        fast = number % 2
        time = np.sort(rng.uniform(55000, 56500, 120))
        period = (0.5 if fast else 80.0) * (1 + 0.2 * rng.random())
        phase = (time / period) % 1.0
        shape = 0.9 * phase**0.6 if fast else 0.5 * np.sin(2 * np.pi * phase)
        kind = "M" if number < 70 else "CWA"
        table.append(f"s{number},{10 + number},-5.0,{kind},{(1.0 if fast else 3.0) + 0.1 * rng.random():.3f}")
        for name, value in (
            ("name", f"s{number}"), ("ra", 10.0 + number), ("dec", -5.0), ("mjd", time.tolist()),
            ("mag", (13 + shape + rng.normal(0, 0.02, 120)).tolist()), ("mag_err", [0.02] * 120),
        ):  # fmt: skip
            columns[name].append(value)
    (tmp_path / "t.csv").write_text("\n".join(table))
    pq.write_table(pa.table(columns), tmp_path / "lc.parquet")
    arguments = [
        "discover", str(tmp_path / "t.csv"), "--class", "m", "--lightcurves", str(tmp_path / "lc.parquet"),
        "--values", str(tmp_path / "t.csv"), "--project", "CW", "--figure", str(tmp_path / "m.png"),
    ]  # fmt: skip
    result = CliRunner().invoke(main, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    assert "70 of 75 stars are M in t.csv" in result.stderr
    summary, *found = [json.loads(line) for line in result.stdout.splitlines()]
    assert summary["verdict"] == "subclasses"
    assert sorted(summary["sizes"]) == [35, 35]
    projected = found.pop()  # five stars of the same two shapes, under another name
    assert projected["projected"] == "CWA"
    assert sum(projected["clusters"]) + projected["outside"] == 5
    by_name = {one["feature"]: one for one in found}
    for feature in ("log10_period", "t.csv: colour"):
        assert abs(by_name[feature]["effect"]) == 1.0
        assert by_name[feature]["q_value"] < 1e-6
    assert (tmp_path / "m.png").read_bytes().startswith(b"\x89PNG")
    refused = CliRunner().invoke(main, [*arguments[:-1], "m.txt"])
    assert refused.exit_code == 2
