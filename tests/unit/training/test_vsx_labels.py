"""Labels that VSX disputes: made-up stars and catalogue, and the real ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from training.data import WEAK_LABEL_WEIGHT, Labels
from training.datasets.tables import load_objects
from training.datasets.vsx import DISPUTED, contradicted, types_at
from training.label_limits import label_disputes

ARCSEC = 1 / 3600


def write(folder: Path, stars: list[tuple[float, float, str]]) -> Path:
    pq.write_table(
        pa.table(
            {
                "ra_e5": pa.array([round(ra * 1e5) for ra, _, _ in stars], pa.int32()),
                "dec_e5": pa.array([round(dec * 1e5) for _, dec, _ in stars], pa.int32()),
                "vsx_type": pa.array([kind for _, _, kind in stars]).dictionary_encode(),
            }
        ),
        folder / "vsx_2022.parquet",
    )
    return folder


@pytest.mark.parametrize(
    ("label", "types", "differs"),
    [
        ("SR", ["M"], True), ("SR", ["SRA"], False), ("SR", ["M|SR"], False), ("SR", ["L"], False),
        ("EB", ["EA/SD"], True), ("EB", ["E"], False), ("EB", ["EA:"], False), ("EA", ["EA", "EW"], False),
        ("RRAB", ["RRAB/BL"], False), ("ROT", ["EW"], True), ("ROT", ["BY"], False), (None, ["EW"], False),
        ("EW", [], False), ("RRAB", ["DCEP"], False),
    ],
)  # fmt: skip
def test_what_contradicts(tmp_path: Path, label: str | None, types: list[str], differs: bool) -> None:
    """An open or uncertain type contradicts nothing, nor does one of two stars at the place that agrees."""
    data = write(tmp_path, [(10.0, -30.0, kind) for kind in types] + [(200.0, 5.0, "EA")])
    place = np.array([10.0]), np.array([-30.0])
    assert contradicted(data, np.array([label], object), np.array([False]), *place).tolist() == [differs]


def test_places(tmp_path: Path) -> None:
    data = write(tmp_path, [(0.0, 60.0, "EA"), (100.0, 0.0, "M"), (100.0, 89.0, "EW")])
    # 4 arcsec on the sky, across the meridian of 0 h; 6 arcsec; 4 arcsec near the pole; no position.
    ra = np.array([360.0 - 8 * ARCSEC, 100.0, 100.0 + 4 * ARCSEC / np.cos(np.radians(89.0)), np.nan])
    dec = np.array([60.0, 6 * ARCSEC, 89.0, 0.0])
    assert types_at(data, ra, dec) == [("EA",), (), ("EW",), ()]
    assert types_at(tmp_path / "nothing", ra, dec) == [(), (), (), ()]


def test_a_coarse_label_is_two(tmp_path: Path) -> None:
    data = write(tmp_path, [(10.0, 0.0, "EB"), (20.0, 0.0, "EA")])
    label, ra, dec = np.array(["EW", "EW"], object), np.array([10.0, 20.0]), np.zeros(2)
    assert contradicted(data, label, np.ones(2, bool), ra, dec).tolist() == [False, True]
    assert contradicted(data, label, np.zeros(2, bool), ra, dec).tolist() == [True, True]


def test_a_disputed_label_is_not_scored_and_counts_less() -> None:
    labels = Labels.from_columns(
        np.array(["SR", "SR"], object), np.array(["gold", DISPUTED], object), np.zeros(2, bool)
    )
    assert labels.scored.tolist() == [True, False]
    assert labels.weight.tolist() == [1.0, WEAK_LABEL_WEIGHT]


def test_real_stars(shared: Path) -> None:
    """Nothing but qualities changes, and no star that was not scored before is now."""
    data = shared / "data"
    if not (data / "vsx_2022.parquet").exists():
        pytest.skip("no vsx_2022.parquet")
    before, now = load_objects(data, against_vsx=False), load_objects(data)
    assert np.array_equal(before.label, now.label)
    differs = before.label_quality != now.label_quality
    assert set(now.label_quality[differs]) == {DISPUTED}
    assert set(before.label_quality[differs]) == {"gold", "std"}
    assert DISPUTED not in before.label_quality
    # 305 of ASAS's 8,391 and 253 of Catalina's 15,109, most of them SR that are VSX's M and EB that are its EA.
    asas = now.survey == "asas"
    assert np.sum(differs & asas) == 305
    assert np.sum(differs & ~asas & ~now.label_is_coarse) == 253
    assert np.sum(differs & asas & (now.label == "SR")) >= 124
    text = label_disputes(data)
    assert "| ASAS | EB |" in text
    row = next(line for line in text.splitlines() if line.startswith("| ASAS | SR |"))
    assert "M 124" in row
