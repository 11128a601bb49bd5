"""What is prepared for the head for streams: the same from an empty cache, and never from one of something else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from broker.assemble import assemble
from training import origin as origin_module
from training.datasets.multiband import load_archive, scored
from training.stream import cache as cache_module
from training.stream import material as material_module
from training.stream.cache import Cache, origin_of
from training.stream.examples import Examples, FrozenEncoder
from training.stream.material import Material, prepare_material

MODEL_REPO = Path(__file__).resolve().parents[3] / "model_repo"
COLUMNS = Examples.__slots__


@pytest.fixture
def data(small: Path, tmp_path: Path) -> Path:
    """The small sample of stars, with ten of the light curves that were rebuilt from ZTF's alerts."""
    folder = tmp_path / "data"
    (folder / "multiband").mkdir(parents=True)
    for file in (small / "data").iterdir():
        if file.name != "multiband":
            (folder / file.name).symlink_to(file)
    name = "ztf_alerce_corrected.parquet"
    table = pq.read_table(small / "data" / "multiband" / name)
    pq.write_table(table.slice(0, 10), folder / "multiband" / name)
    return folder


def prepared(data: Path, folder: Path) -> Material:
    return prepare_material(MODEL_REPO, data, 0, Cache(folder, origin_of(MODEL_REPO, data)), lambda _line: None)


def assert_same(found: Examples, expected: Examples) -> None:
    for column in COLUMNS:
        np.testing.assert_array_equal(getattr(found, column), getattr(expected, column), err_msg=column)


def test_a_cache_of_something_else_is_not_taken(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(material_module, "REAL_SETS", ("ztf_rebuilt",))
    monkeypatch.setattr(material_module, "SPECTRUM_DRAWS", 1)
    folder = tmp_path / "cache"
    first = prepared(data, folder)
    # What is trained on is what the service assembles of the same stars.
    stars = scored(load_archive(data, "ztf_rebuilt"))
    served = assemble(stars.states).light_curve
    own = first.real.take(first.real.kind == "ztf_rebuilt/0")
    assert own.star.tolist() == [state.object_id for state in stars.states]
    np.testing.assert_array_equal(own.event, served.event)
    np.testing.assert_array_equal(own.detections, served.detections)

    # A file as an earlier release left it, with another star's label and a column that a script has added.
    with np.load(folder / "real.npz", allow_pickle=False) as file:
        columns: dict[str, Any] = {name: np.array(file[name]) for name in COLUMNS}
    columns["event"] = np.ones_like(columns["event"])
    columns["label"][:] = 0
    np.savez(folder / "real.npz", **columns)
    assert_same(prepared(data, folder).real, first.real)

    def fail(*_: object) -> Examples:
        raise AssertionError("made anew, although it is there")

    with monkeypatch.context() as patch:
        patch.setattr(FrozenEncoder, "examples", fail)
        again = prepared(data, folder)
        for name in ("real", "archive"):
            assert_same(getattr(again, name), getattr(first, name))
        np.testing.assert_array_equal(again.spectrum, first.spectrum)
        # Of other data it is made anew.
        path = data / "multiband" / "ztf_alerce_corrected.parquet"
        pq.write_table(pq.read_table(path).slice(0, 9), path)
        with pytest.raises(AssertionError, match="made anew"):
            prepared(data, folder)


def test_the_origin_is_that_of_data_encoders_and_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: Path
) -> None:
    assert all((origin_module._ROOT / name).exists() for name in cache_module.CODE)
    found = {origin_of(MODEL_REPO, data)}
    assert origin_of(MODEL_REPO, data) in found
    (data / "more.csv").write_text("a star")
    found.add(origin_of(MODEL_REPO, data))
    other = tmp_path / "models"
    for name in ("light_curve_encoder", "spectrum_encoder"):
        (other / name / "1").mkdir(parents=True)
        (other / name / "1" / "model.onnx").write_bytes(b"another")
    found.add(origin_of(other, data))
    (tmp_path / "code.py").write_text("A = 1\n")
    monkeypatch.setattr(origin_module, "_ROOT", tmp_path)
    monkeypatch.setattr(cache_module, "CODE", ("code.py",))
    found.add(origin_of(other, data))
    (tmp_path / "code.py").write_text("A = 2\n")
    found.add(origin_of(other, data))
    assert len(found) == 5
