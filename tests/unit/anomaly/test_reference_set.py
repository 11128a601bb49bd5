"""The reference set's file: it comes back as it was, and nothing else is taken for one."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from broker.anomaly.reference_set import ReferenceSet, as_stored, digest
from broker.errors import ConfigurationError
from broker.inference.manifest import load_manifest
from broker.models.repository import REFERENCE_SET_FILE
from tests.random_models import MODEL_REPO
from tests.unit.anomaly.sets import MODEL, reference_set, unit

Arrays = dict[str, Any]


def changed(change: Callable[[Arrays], Arrays]) -> bytes:
    """A good file with some arrays replaced."""
    with np.load(io.BytesIO(reference_set(unit(100)).to_bytes()), allow_pickle=False) as file:
        arrays = {name: file[name] for name in file}
    out = io.BytesIO()
    np.savez(out, **{**arrays, **change(arrays)})
    return out.getvalue()


def test_a_file_comes_back(tmp_path: Path) -> None:
    codes = np.tile([1, 5], 60).astype(np.uint8)
    stored = reference_set(unit(120), codes, np.full(120, 12, np.int32))
    (tmp_path / "set.npz").write_bytes(stored.to_bytes())
    again = ReferenceSet.load_npz(tmp_path / "set.npz", digest((tmp_path / "set.npz").read_bytes()))
    np.testing.assert_allclose(np.linalg.norm(again.embeddings - stored.embeddings, axis=1), 0, atol=0.02)
    np.testing.assert_allclose(again.embeddings, as_stored(stored.embeddings), atol=1e-6)
    for name in ("version", "model", "k"):
        assert getattr(again, name) == getattr(stored, name)
    for name in ("object_ids", "class_names", "modalities", "detections", "calibration_distances"):
        np.testing.assert_array_equal(getattr(again, name), getattr(stored, name))
    assert [s.name for s in again.strata.values()] == [
        "light_curve, 10 to 19 points",
        "light_curve+metadata, 10 to 19 points, fewer than 9 known values",
    ]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda a: {"scales": a["scales"] * np.nan}, "100 of 100 embeddings are no unit vectors"),
        (lambda a: {"scales": a["scales"] * 3}, "no unit vectors"),
        (lambda a: {"embeddings": a["embeddings"] * 0}, "no unit vectors"),
        (lambda a: {"embeddings": a["embeddings"].astype(np.float32)}, "type float32"),
        (lambda a: {"embeddings": a["embeddings"][:90]}, "embeddings has the shape"),
        (lambda a: {"object_ids": a["object_ids"][:90]}, "object_ids has the shape"),
        (lambda a: {"class_names": np.full(100, "CEP")}, "unknown classes CEP"),
        (lambda a: {"modalities": np.full(100, 8, np.uint8)}, "modalities are no subsets"),
        (lambda a: {"modalities": np.zeros(100, np.uint8)}, "modalities are no subsets"),
        (lambda a: {"detections": np.zeros(100, np.int32)}, "disagree on which have a light curve"),
        (lambda a: {"detections": np.full(100, 3.5)}, "no integers"),
        (lambda a: {"values": np.ones(100, np.int32)}, "values and modalities disagree on which have metadata"),
        (lambda a: {"calibration_modalities": a["calibration_modalities"] * 9}, "_modalities are no subsets"),
        (lambda a: {"calibration_distances": a["calibration_distances"] * np.nan}, "no distances"),
        (lambda a: {"calibration_distances": a["calibration_distances"] - 1}, "no distances"),
        (lambda a: {"calibration_detections": a["calibration_detections"][:9]}, "calibration_detections has the shape"),
        (lambda a: {"k": np.array(0)}, "0 neighbours"),
        (lambda a: {"format": np.array(3)}, "format 3, this release reads 2"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(change: Callable[[Arrays], Arrays], reason: str) -> None:
    with pytest.raises(ConfigurationError, match=f"here cannot be used as a reference set: .*{reason}"):
        ReferenceSet.from_bytes(changed(change), "here")


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.npz").write_bytes(b"PK nonsense")
    (tmp_path / "cut.npz").write_bytes(reference_set(unit(100)).to_bytes()[:3000])
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    for name in ("bad.npz", "cut.npz", "other.npz", "missing.npz"):
        with pytest.raises(ConfigurationError, match=name):
            ReferenceSet.load_npz(tmp_path / name)


def test_the_file_of_an_earlier_release_is_refused_with_what_to_do(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "old.npz", version=np.array("2026.11.24.2"), embeddings=unit(60), object_ids=np.full(60, "a"),
        class_names=np.full(60, "EW"), k=np.array(5), calibration_distances=np.linspace(0, 1, 60),
    )  # fmt: skip
    with pytest.raises(ConfigurationError, match=r"old\.npz is a reference set of an earlier release; make it again"):
        ReferenceSet.load_npz(tmp_path / "old.npz")


def test_a_set_of_another_model_or_width_is_refused() -> None:
    stored = reference_set(unit(100))
    stored.check_model(MODEL, 64)
    with pytest.raises(
        ConfigurationError, match=r"was made with the model trifid-test 1\.0, the service runs trifid 2"
    ):
        stored.check_model("trifid 2", 64)
    with pytest.raises(ConfigurationError, match=r"have 64 values, those of trifid-test 1\.0 512"):
        stored.check_model(MODEL, 512)


def test_the_published_set_is_whole_and_the_manifests() -> None:
    manifest = load_manifest(MODEL_REPO)
    assert manifest.reference_set_sha256 is not None
    published = ReferenceSet.load_npz(MODEL_REPO / REFERENCE_SET_FILE, manifest.reference_set_sha256)
    published.check_model(manifest.identity, 512)
    assert published.version.startswith(f"{manifest.model_version}+")
    assert len(published.strata) == 41
    assert [s.problem for s in published.strata.values()] == [None] * 41
