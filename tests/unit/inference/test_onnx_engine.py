from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from broker.assemble.inputs import ModelInputs
from broker.errors import ConfigurationError, InferenceError
from broker.inference.manifest import MODELS
from broker.inference.onnx import OnnxEngine
from tests.random_models import (
    EMBEDDING,
    build_random_repository,
    mixed_presence,
    random_inputs,
)


@pytest.fixture(scope="module")
def engine(repository: Path) -> Iterator[OnnxEngine]:
    engine = OnnxEngine(repository, threads=1)
    yield engine
    engine.close()


def test_predictions_are_probabilities_and_unit_vectors(engine: OnnxEngine) -> None:
    present = mixed_presence(40)
    predictions = engine.predict(random_inputs(present))
    any_present = present.any(axis=1)
    assert 0 < any_present.sum() < 40
    assert predictions.probabilities.shape == (40, 10)
    assert predictions.embeddings.shape == (40, EMBEDDING)
    assert predictions.probabilities.dtype == predictions.embeddings.dtype == np.float32
    np.testing.assert_allclose(predictions.probabilities[any_present].sum(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(predictions.embeddings[any_present], axis=1), 1, atol=1e-5)
    assert not predictions.probabilities[~any_present].any()
    assert not predictions.embeddings[~any_present].any()


def test_other_comes_from_the_classifier_where_it_has_that_output(tmp_path: Path) -> None:
    present = mixed_presence(40)
    inputs = random_inputs(present)
    with closing(OnnxEngine(build_random_repository(tmp_path / "without"), threads=1)) as without:
        expected = without.predict(inputs)
    assert np.isnan(expected.other).all()
    repository = build_random_repository(tmp_path / "with", other_threshold=0.75)
    with closing(OnnxEngine(repository, threads=1)) as engine:
        assert engine.manifest.other_thresholds is not None
        assert set(engine.manifest.other_thresholds.values()) == {(0.75,) * 7}
        predictions = engine.predict(inputs)
        row = int(np.flatnonzero(present.any(axis=1))[3])
        alone = engine.predict(_rows(inputs, slice(row, row + 1)))
    np.testing.assert_array_equal(np.isnan(predictions.other), ~present.any(axis=1))
    found = predictions.other[present.any(axis=1)]
    assert np.all((found > 0) & (found < 1))
    # What tells an event reaches the classifier, of each object its own, and nothing but Other depends on it.
    event = np.array(inputs.light_curve.event)
    event[row] += 1.0
    changed = replace(inputs, light_curve=replace(inputs.light_curve, event=event))
    with closing(OnnxEngine(repository, threads=1)) as engine:
        again = engine.predict(changed)
    others = np.arange(len(present)) != row
    np.testing.assert_allclose(again.other[others], predictions.other[others], atol=1e-6)
    assert abs(again.other[row] - predictions.other[row]) > 1e-3
    np.testing.assert_allclose(again.probabilities, predictions.probabilities, atol=1e-6)
    earlier = build_random_repository(tmp_path / "earlier", other_threshold=0.75, event=False)
    with closing(OnnxEngine(earlier, threads=1)) as engine:  # as before 2026.11.29
        np.testing.assert_array_equal(engine.predict(changed).other, engine.predict(inputs).other)
    with closing(OnnxEngine(repository, threads=1)) as engine, pytest.raises(InferenceError, match="takes event"):
        engine.predict(replace(inputs, light_curve=replace(inputs.light_curve, event=event[:, :-1])))

    assert len(set(found.tolist())) == len(found)
    assert alone.other[0] == pytest.approx(predictions.other[row], abs=1e-5)
    np.testing.assert_array_equal(predictions.probabilities, expected.probabilities)


def test_rows_without_a_modality_do_not_depend_on_its_arrays(engine: OnnxEngine) -> None:
    present = mixed_presence(16)
    inputs = random_inputs(present)
    expected = engine.predict(inputs)
    spectra = inputs.spectrum.spectra.copy()
    spectra[~present[:, 1]] = np.nan
    got = engine.predict(replace(inputs, spectrum=replace(inputs.spectrum, spectra=spectra)))
    np.testing.assert_array_equal(got.probabilities, expected.probabilities)


def test_a_batch_gives_what_its_rows_give_alone(engine: OnnxEngine) -> None:
    present = mixed_presence(6, seed=1)
    inputs = random_inputs(present)
    batch = engine.predict(inputs)
    for row in range(6):
        alone = engine.predict(_rows(inputs, slice(row, row + 1)))
        np.testing.assert_allclose(alone.probabilities[0], batch.probabilities[row], atol=1e-5)
        np.testing.assert_allclose(alone.embeddings[0], batch.embeddings[row], atol=1e-5)


@pytest.mark.parametrize("batch", [64, 65, 150])
def test_a_large_batch_is_run_in_parts_and_gives_what_they_give(engine: OnnxEngine, batch: int) -> None:
    inputs = random_inputs(np.ones((batch, 3), bool))
    whole = engine.predict(inputs)
    rows = [rows for rows in (slice(0, 64), slice(64, 128), slice(128, 150)) if rows.start < batch]
    parts = [engine.predict(_rows(inputs, part)) for part in rows]
    for name in ("probabilities", "embeddings"):
        np.testing.assert_allclose(
            getattr(whole, name), np.concatenate([getattr(part, name) for part in parts]), atol=1e-5
        )


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("batch", [1, 31, 32, 64, 65, 150, 256])
def test_threads_share_the_objects_of_a_batch(
    repository: Path, threads: int, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each runs a model on its part, in one thread: no more rows than fit the cache, and no fewer than pay."""
    present = mixed_presence(batch, seed=batch)
    present[:, 2] |= ~present.any(axis=1)
    inputs = random_inputs(present, seed=batch)
    given: list[tuple[str, int]] = []
    with (
        closing(OnnxEngine(repository, threads=1)) as alone,
        closing(OnnxEngine(repository, threads=threads)) as engine,
    ):
        expected = alone.predict(inputs)
        classifier = engine._sessions["classifier"]
        assert classifier.get_session_options().intra_op_num_threads == 1

        class Counted:
            def run(self, names: list[str], feed: dict[str, np.ndarray]) -> list[np.ndarray]:
                given.append((threading.current_thread().name, len(feed["present"])))
                found: list[np.ndarray] = classifier.run(names, feed)
                return found

            get_providers = classifier.get_providers

        engine._sessions["classifier"] = Counted()
        got = engine.predict(inputs)
    for name in ("probabilities", "embeddings", "other", "by_modality"):
        np.testing.assert_allclose(getattr(got, name), getattr(expected, name), atol=1e-5)
    rows = [number for _, number in given]
    assert sum(rows) == batch
    assert max(rows) - min(rows) <= 1
    assert max(rows) <= 64
    assert len(rows) == 1 or threads == 1 or min(rows) >= 16
    assert len(rows) >= min(threads, batch // 16)
    if batch == 256:
        assert len(rows) % threads == 0


def test_a_failure_in_a_thread_is_told_and_a_closed_engine_has_none(repository: Path) -> None:
    engine = OnnxEngine(repository, threads=2)
    inputs = random_inputs(np.ones((64, 3), bool))
    del engine._sessions["classifier"]
    with pytest.raises(InferenceError, match="closed"):
        engine.predict(inputs)
    engine.close()
    with pytest.raises(InferenceError, match="closed"):
        engine.predict(inputs)


@pytest.mark.parametrize("batch", [0, 3])
def test_nothing_present(engine: OnnxEngine, batch: int) -> None:
    predictions = engine.predict(random_inputs(np.zeros((batch, 3), bool)))
    assert predictions.probabilities.shape == (batch, 10)
    assert not predictions.embeddings.any()


def test_a_value_that_is_not_finite_spoils_only_its_own_row(engine: OnnxEngine) -> None:
    inputs = random_inputs(np.ones((3, 3), bool))
    inputs.light_curve.features[1] = np.nan
    predictions = engine.predict(inputs)
    assert np.isfinite(predictions.probabilities).all()
    np.testing.assert_array_equal(predictions.probabilities.any(axis=1), [True, False, True])


def test_inputs_of_another_release(engine: OnnxEngine) -> None:
    inputs = random_inputs(np.ones((2, 3), bool))
    short = replace(inputs.spectrum, spectra=inputs.spectrum.spectra[:, :, :-1])
    with pytest.raises(InferenceError, match="spectrum_encoder takes spectra of shape"):
        engine.predict(replace(inputs, spectrum=short))


def test_predicts_nothing_once_closed(repository: Path) -> None:
    engine = OnnxEngine(repository, threads=1)
    engine.close()
    with pytest.raises(InferenceError, match="closed"):
        engine.predict(random_inputs(np.ones((1, 3), bool)))


def test_provider_that_is_not_there(repository: Path) -> None:
    assert "TensorrtExecutionProvider" not in onnxruntime.get_available_providers()
    with pytest.raises(ConfigurationError, match="no TensorrtExecutionProvider"):
        OnnxEngine(repository, providers=["TensorrtExecutionProvider"])


def test_models_in_each_others_place(tmp_path: Path) -> None:
    repository = build_random_repository(tmp_path)
    first, second = (repository / model / "1/model.onnx" for model in MODELS[1:3])
    one, other = first.read_bytes(), second.read_bytes()
    first.write_bytes(other)
    second.write_bytes(one)
    manifest = repository / "manifest.json"
    text = manifest.read_text()
    for name, replacement in (("spectrum_encoder", "x"), ("metadata_encoder", "spectrum_encoder")):
        text = text.replace(f'"{name}/', f'"{replacement}/')
    manifest.write_text(text.replace('"x/', '"metadata_encoder/'))
    with pytest.raises(ConfigurationError, match="spectrum_encoder has the inputs"):
        OnnxEngine(repository)


def _rows(inputs: ModelInputs, rows: slice) -> ModelInputs:
    parts = {}
    for part in ("light_curve", "spectrum", "metadata"):
        arrays = getattr(inputs, part)
        fields = {name: getattr(arrays, name)[rows] for name in arrays.__slots__}
        parts[part] = replace(arrays, **fields)
    return ModelInputs(**parts)
