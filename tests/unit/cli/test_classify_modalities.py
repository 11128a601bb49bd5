"""`trifid classify` with spectra and catalogue values beside light curves and alerts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from broker.surveys.simulator import simulate_alerts
from tests.commands import classify

ALL = ["light_curve", "spectrum", "metadata"]


def records(*arguments: object) -> dict[str, dict[str, Any]]:
    code, lines, said = classify(*arguments, "--json")
    assert code == 0, said
    return {record["objectId"]: record for record in map(json.loads, lines)}


def light_curves(path: Path, *, places: bool = True) -> Path:
    """Two stars, ``a b`` at (10, -5) and ``c`` at (11, -5)."""
    rng = np.random.default_rng(0)
    rows = ["name,ra,dec,mjd,mag,mag_err"] if places else ["name,mjd,mag,mag_err"]
    for name, ra in (("a b", 10.0), ("c", 11.0)):
        for time in np.sort(rng.uniform(55000, 56000, 60)):
            place = f"{ra},-5.0," if places else ""
            rows.append(f"{name},{place}{time:.5f},{13 + 0.9 * ((time / 0.57) % 1.0):.4f},0.03")
    path.write_text("\n".join(rows) + "\n")
    return path


def spectrum(path: Path, header: str = "") -> Path:
    wavelength = np.arange(3850.0, 9000.0, 2.0)
    flux = 1.0 + 0.2 * np.sin(wavelength / 1500.0) - 0.5 * np.exp(-(((wavelength - 6564.6) / 8.0) ** 2))
    rows = [f"{w:.1f},{f:.5f},0.02" for w, f in zip(wavelength, flux, strict=True)]
    path.write_text("\n".join([*header.split("\n"), "wavelength,flux,error", *rows]).lstrip() + "\n")
    return path


VALUES = "phot_g_mean_mag,phot_bp_mean_mag,phot_rp_mean_mag,parallax,parallax_error"
STAR = "13.2,13.4,12.9,1.5,0.02"


def test_spectra_by_themselves(shared: Path, tmp_path: Path) -> None:
    spectra = shared / "data" / "multiband" / "spectra_rrlyrae_mcdonald.parquet"
    if not spectra.exists():
        pytest.skip("no ../shared/data/multiband")
    names = pq.read_table(spectra, columns=["label"])["label"].to_pylist()
    found = list(records("--spectra", spectra).values())
    assert len(found) == len(names)
    assert all(record["modalities"] == ["spectrum"] for record in found)
    # A fifth of the grid: docs/spectra.md says for whom it is enough.
    right = [
        record["parent"] == "RRLyrae" for record, name in zip(found, names, strict=True) if name in ("RRAB", "RRC")
    ]
    assert len(right) >= 150
    assert np.mean(right) >= 0.6


def test_a_spectrum_by_itself_has_its_place_and_catalogue_values(tmp_path: Path) -> None:
    file = spectrum(tmp_path / "star.csv", "# ra = 10.0\n# dec = -5.0")
    values = tmp_path / "gaia.csv"
    values.write_text(f"ra,dec,{VALUES}\n10.0,-5.0,{STAR}\n")
    (alone,) = records("--spectra", file).values()
    assert (alone["objectId"], alone["ra"], alone["dec"]) == ("file:star.csv", 10.0, -5.0)
    assert alone["modalities"] == ["spectrum"]
    (both,) = records("--spectra", file, "--catalog", values).values()
    assert both["modalities"] == ["spectrum", "metadata"]
    code, lines, _ = classify("--spectra", file, "--output", tmp_path / "out.csv")
    assert (code, lines) == (0, [])
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 2


def test_six_real_stars_with_light_curve_spectrum_and_parallax(shared: Path, tmp_path: Path) -> None:
    spectra = shared / "data" / "multiband" / "spectra_rrlyrae_mcdonald.parquet"
    if not spectra.exists() or not (shared / "data" / "asas_v.parquet").exists():
        pytest.skip("not there: the spectra of McDonald Observatory, or ASAS")
    known = {name for name in pq.read_table(spectra, columns=["asas_name"])["asas_name"].to_pylist() if name}
    asas = pq.read_table(shared / "data" / "asas_v.parquet")
    own = asas.filter(pc.is_in(asas["name"], pa.array(sorted(known))))
    assert len(own) == 6
    pq.write_table(own.select(["name", "ra", "dec", "hjd", "vmag", "vmag_err"]), tmp_path / "asas.parquet")
    values = own.select(["ra", "dec", "hip_plx", "hip_e_plx"]).rename_columns(
        ["ra", "dec", "parallax", "parallax_error"]
    )
    pa_csv.write_csv(values, tmp_path / "hipparcos.csv")
    given = ["--lightcurves", tmp_path / "asas.parquet"]
    alone = records(*given)
    assert [record["modalities"] for record in alone.values()] == [["light_curve"]] * 6
    # ASAS's positions are some arcsec off.
    catalogue = ["--catalog", tmp_path / "hipparcos.csv"]
    together = records(*given, "--spectra", spectra, "--radius", 10, *catalogue)
    labels = dict(zip(own["name"].to_pylist(), own["label"].to_pylist(), strict=True))
    assert {name: record["modalities"] for name, record in together.items()} == dict.fromkeys(labels, ALL)
    best = {name: max(one["classifications"], key=lambda c: c["probability"]) for name, one in together.items()}
    assert {name: one["className"] for name, one in best.items()} == labels
    near = records(*given, "--spectra", spectra, *catalogue)
    assert all(record["modalities"] == ["light_curve", "metadata"] for record in near.values())


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("AB.csv", ""),  # the file is called as the object
        ("s.csv", "# ra: 10.0001\n# dec: -5.0"),
        ("s.csv", "# spectrum_id: A B"),
        ("s.csv", "# survey: table\n# object_id: a b"),
    ],
)
def test_a_spectrum_is_an_objects_by_name_or_place(tmp_path: Path, name: str, header: str) -> None:
    table = light_curves(tmp_path / "stars.csv")
    found = records("--lightcurves", table, "--spectra", spectrum(tmp_path / name, header))
    assert {name: record["modalities"] for name, record in found.items()} == {
        "a b": ["light_curve", "spectrum"], "c": ["light_curve"]
    }  # fmt: skip
    assert found["a b"]["classifications"] != records("--lightcurves", table)["a b"]["classifications"]


def test_catalogue_values_by_place_by_name_and_by_another_ones_columns(tmp_path: Path) -> None:
    table = light_curves(tmp_path / "stars.csv")
    placed, named, gaia = (tmp_path / name for name in ("placed.csv", "named.csv", "gaia.csv"))
    placed.write_text(f"ra,dec,{VALUES}\n10.0001,-5.0,{STAR}\n")
    named.write_text(f"object_id,{VALUES}\na b,{STAR}\n,{STAR}\nz,,,,,\n")
    gaia.write_text(f"RA_ICRS,DE_ICRS,Gmag,BPmag,RPmag,Plx,e_Plx\n10.0001,-5.0,{STAR}\n")
    by_place = records("--lightcurves", table, "--catalog", placed)
    assert by_place["a b"]["modalities"] == ["light_curve", "metadata"]
    assert by_place["c"]["modalities"] == ["light_curve"]
    for given in (named, f"gaia={gaia}"):
        other = records("--lightcurves", table, "--catalog", given)
        assert other["a b"]["classifications"] == by_place["a b"]["classifications"]
        assert other["c"]["modalities"] == ["light_curve"]
    nowhere = light_curves(tmp_path / "nowhere.csv", places=False)
    assert records("--lightcurves", nowhere, "--catalog", named)["a b"]["modalities"] == ["light_curve", "metadata"]


def test_what_is_left_out_of_catalogues_is_counted(tmp_path: Path) -> None:
    table = light_curves(tmp_path / "stars.csv")
    placed, named, known, whole = (tmp_path / name for name in ("placed.csv", "named.csv", "vsx.csv", "whole.csv"))
    placed.write_text(f"ra,dec,{VALUES}\n10.0001,-5.0,{STAR}\n,-5.0,{STAR}\n11.0,-5.0,,,,,\n12.0,95.0,{STAR}\n")
    named.write_text(f"object_id,{VALUES}\na b,{STAR}\n,{STAR}\nz,,,,,\na b,{STAR}\n")
    known.write_text("ra,dec,name,type\n10.0001,-5.0,RR Abc,RRAB\n11.0,-5.0,,\n")
    whole.write_text(f"ra,dec,{VALUES}\n10.0001,-5.0,{STAR}\n")
    _, _, said = classify("--lightcurves", table, "--catalog", placed, "--catalog", named, "--known", known)
    lines = said.splitlines()
    (one,) = [line for line in lines if line.startswith("placed.csv")]
    assert one.startswith("placed.csv: 1 sources, by position; 3 rows left out; unknown ")
    assert "position: 1 blank, 1 not in degrees" in one
    assert "row: 1 no value" in one
    (one,) = [line for line in lines if line.startswith("named.csv")]
    assert one.startswith("named.csv: 1 sources, by name; 3 rows left out; unknown ")
    assert "row: 1 no value, 1 of a name that is there already, 1 without a name" in one
    (one,) = [line for line in lines if line.startswith("vsx")]
    assert one.startswith("vsx: 1 known stars; 1 row left out; unknown ")
    _, _, said = classify("--lightcurves", table, "--catalog", whole)
    assert "whole.csv: 1 sources, by position" in said.splitlines()


def test_alerts_have_spectra_and_catalogue_values_of_their_place(tmp_path: Path) -> None:
    alerts = list(simulate_alerts(2, 12, seed=0))
    for number, alert in enumerate(alerts):
        (tmp_path / f"{number:03d}.avro").write_bytes(alert.payload)
    plain = records(tmp_path)
    first = next(iter(plain.values()))
    place = f"# ra: {first['ra']}\n# dec: {first['dec']}"
    values = tmp_path / "values.csv"
    values.write_text(f"ra,dec,{VALUES}\n{first['ra']},{first['dec']},{STAR}\n")
    spectra = tmp_path / "spectra"
    spectra.mkdir()
    found = records(
        *sorted(tmp_path.glob("*.avro")), "--spectra", spectrum(spectra / "s.csv", place), "--catalog", values
    )
    assert found[first["objectId"]]["modalities"] == ALL
    others = [record["modalities"] for name, record in found.items() if name != first["objectId"]]
    assert "spectrum" not in others[0]


def test_the_terminal_says_which_modalities_were_used(tmp_path: Path) -> None:
    table = light_curves(tmp_path / "stars.csv")
    code, lines, said = classify("--lightcurves", table, "--spectra", spectrum(tmp_path / "ab.csv"))
    assert code == 0
    assert [line.endswith("[light curve + spectrum]") for line in lines[1:]] == [True, False]
    assert lines[2].endswith("[light curve]")
    assert "1 by light curve + spectrum\n1 by light curve\n" in said
    assert "[" not in classify("--lightcurves", table)[1][1]


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (["--catalog", "vsx=x.csv"], "give [PRESET=]FILE, with a preset of gaia, 2mass, wise"),
        (["--radius", "3"], "--radius is of --spectra"),
        (["--catalog", "empty.csv"], "no column of catalogue values"),
        (["--catalog", "nameless.csv"], "no column for ra and dec"),
        (["--catalog", "none.csv"], "none.csv"),
        (["--spectra", "stars.csv"], "stars.csv"),
    ],
)
def test_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: list[str], problem: str) -> None:
    monkeypatch.chdir(tmp_path)
    light_curves(Path("stars.csv"))
    Path("empty.csv").write_text("ra,dec,x\n1,2,3\n")
    Path("nameless.csv").write_text("x,parallax\n1,2\n")
    code, lines, said = classify("--lightcurves", "stars.csv", *given)
    assert (code, problem in said) == (2, True), said
    assert lines == []
